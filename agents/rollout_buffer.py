"""The last `num_steps` time steps of all env copies, on the device, in buffers that never move."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from agents.guidance.base import EMPTY
from envs.base import Spec

COLUMNS = (  # that are written one time step at a time
    *("obs", "action_mask", "action", "log_prob", "value", "reward", "terminated", "truncated", "next_value"),
    *("advice", "followed", "bonus"),
)


class Batch(NamedTuple):
    """B transitions of a rollout. The last three are EMPTY without a guidance that stores advice."""

    obs: Tensor  # (B, *obs_shape) float32
    action_mask: Tensor  # (B, A) bool
    action: Tensor  # (B,) int64
    log_prob: Tensor  # (B,) float32, of the action under the policy that acted
    advantage: Tensor  # (B,) float32, times the weight of the transition in the policy's loss
    returns: Tensor  # (B,) float32
    advice: Tensor = EMPTY  # (B, A) float32, zeros where there was none
    followed: Tensor = EMPTY  # (B,) bool
    bonus: Tensor = EMPTY  # (B,) float32


class RolloutBuffer:
    """Columns of T time steps of N env copies, written one time step at a time."""

    def __init__(
        self, num_steps: int, num_envs: int, spec: Spec, device: str | torch.device, stores_advice: bool
    ) -> None:
        shape = (num_steps, num_envs)
        number = torch.zeros(shape, device=device)
        flag = torch.zeros(shape, dtype=torch.bool, device=device)
        self.obs = torch.zeros(*shape, *spec.obs_shape, device=device)
        self.action_mask = torch.zeros(*shape, spec.num_actions, dtype=torch.bool, device=device)
        self.action = number.long()
        self.log_prob = number.clone()
        self.value = number.clone()
        self.reward = number.clone()
        self.terminated = flag.clone()
        self.truncated = flag.clone()
        self.next_value = number.clone()  # V(final_obs), stored only where there is a time limit
        self.stores_advice = stores_advice
        self.advice = torch.zeros(*shape, spec.num_actions if stores_advice else 0, device=device)
        self.followed = flag.clone()
        self.bonus = number.clone()
        self.advantage = number.clone()
        self.returns = number.clone()
        self.pos = torch.zeros((), dtype=torch.int64, device=device)  # time steps stored

    def add(self, **columns: Tensor) -> None:
        """Store one time step: (N, …) of each column that is given."""
        pos = self.pos[None]
        for name, value in columns.items():
            getattr(self, name).index_copy_(0, pos, value[None])
        self.pos += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the time steps stored: nothing of what an update makes of them."""
        return {name: getattr(self, name)[: int(self.pos)] for name in COLUMNS}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned; no time step, where those do not fit."""
        number = len(state["obs"])
        fits = number <= len(self.obs) and all(
            state[name].shape[1:] == getattr(self, name).shape[1:] for name in COLUMNS
        )
        self.pos.fill_(number if fits else 0)
        for name in COLUMNS if fits else ():
            getattr(self, name)[:number] = state[name]

    def observations(self) -> Iterator[Tensor]:
        """Yield what is stored of observations."""
        yield self.obs

    def batch(self, rows: Tensor) -> Batch:
        """Return the transitions at `rows` (B,) int64 of the rollout, counted along its time steps."""
        names = Batch._fields if self.stores_advice else Batch._fields[:-3]
        return Batch(*(getattr(self, name).flatten(0, 1)[rows] for name in names))
