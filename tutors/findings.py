"""What an analyst found in a student's episodes: a value of each action, by position."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from envs.base import State
from tutors.advice_table import hash_keys
from tutors.prompts.base import PromptView


class FindingsTable:
    """Values of actions in the critical positions of reviewed episodes, on the device.

    They are no advice: a row is no distribution but one number in [-1, 1] for each action. The table is filled once,
    before the first step, and then only read: `lookup` is a function of tensors, safe to compile and to capture.

    Args:
        view: which positions are equivalent.
        name: of the analyst.
        device: where all tensors live.
    """

    def __init__(self, view: PromptView, name: str, device: str | torch.device) -> None:
        self.view = view.to(device)
        self.name = name
        self.stats: Counter[str] = Counter()  # the analyst's
        self.audit: dict[str, Any] = {}  # what the findings were shown to be worth: plain values
        self.keys = torch.zeros(0, 2, dtype=torch.int64, device=device)  # (K, 2), in the order of their hashes
        self.values = torch.zeros(0, len(view.labels), device=device)  # (K, A) float32, of canonical positions
        self.hashes = self.keys[:, 0]  # (K,) int64
        self.lookups = torch.zeros(2, dtype=torch.int64, device=device)  # positions looked up, found

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Replace the contents by `values` (K, A) of different canonical positions with `keys` (K, 2)."""
        keys, values = keys.to(self.keys.device), values.to(self.keys.device)
        self.hashes, order = hash_keys(keys).sort()
        self.keys, self.values = keys[order], values[order]

    @torch.no_grad()
    def lookup(self, state: State) -> Tensor:
        """Return the values of the env's own actions, (N, A) float32; zeros where nothing was found."""
        positions, transform = self.view.canonicalize(state)
        keys = self.view.key(positions)
        values, is_found = torch.zeros(len(keys), self.values.shape[1], device=keys.device), torch.zeros_like(transform)
        if len(self.keys):
            row = torch.searchsorted(self.hashes, hash_keys(keys)).clamp(max=len(self.keys) - 1)
            is_found = (self.keys[row] == keys).all(1)
            values = torch.where(is_found[:, None], self.values[row], 0)
        self.lookups += torch.stack([torch.ones_like(transform).sum(), is_found.sum()])
        return values.gather(1, self.view.symmetry[transform])

    def counters(self) -> dict[str, float]:
        """Return what was counted since the start of the run, the analyst's counters included; one read-back."""
        positions, hits = self.lookups.tolist()
        return {**self.stats, "positions": positions, "consulted": positions, "hits": hits}

    def state_dict(self) -> dict[str, Any]:
        """Return the contents and the counts."""
        counts = {"lookups": self.lookups, "stats": dict(self.stats), "audit": self.audit}
        return {"keys": self.keys, "values": self.values, **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.fill(state["keys"], state["values"])
        self.lookups.copy_(state["lookups"])
        self.stats.clear()
        self.stats.update(state["stats"])
        self.audit = dict(state.get("audit", {}))  # none in version 1.0
