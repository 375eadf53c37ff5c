"""What the student has lived through, in a ring on the device."""

from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import Step


class Batch(NamedTuple):
    """B transitions. `next_obs` is where the action led, before any fresh deal."""

    obs: Tensor  # (B, *obs_shape) float32
    action: Tensor  # (B,) int64
    reward: Tensor  # (B,) float32
    terminated: Tensor  # (B,) bool; a truncated game is not terminated: it had a future
    next_obs: Tensor  # (B, *obs_shape) float32
    next_legal: Tensor  # (B, A) bool


class Replay:
    """The last `buffer_size` transitions of all games; the oldest make room.

    Args:
        buffer_size: transitions, rounded down to whole moments of `num_envs` games, at least one.
    """

    def __init__(
        self,
        buffer_size: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        num_actions: int,
        device: str | torch.device,
    ) -> None:
        self.moments = max(1, buffer_size // num_envs)
        self.num_envs = num_envs
        rows = self.moments * num_envs
        self.data = Batch(
            obs=torch.zeros(rows, *obs_shape, device=device),
            action=torch.zeros(rows, dtype=torch.int64, device=device),
            reward=torch.zeros(rows, device=device),
            terminated=torch.zeros(rows, dtype=torch.bool, device=device),
            next_obs=torch.zeros(rows, *obs_shape, device=device),
            next_legal=torch.zeros(rows, num_actions, dtype=torch.bool, device=device),
        )
        self.written = 0  # moments, ever

    def add(self, step: Step, action: Tensor, after: Step) -> None:
        """Write one moment of all games."""
        start = self.written % self.moments * self.num_envs
        values = (step.obs, action, after.reward, after.terminated, after.final_obs, after.final_legal)
        for column, value in zip(self.data, values, strict=True):
            column[start : start + self.num_envs] = value
        self.written += 1

    def __len__(self) -> int:
        """Return how many transitions can be sampled."""
        return min(self.written, self.moments) * self.num_envs

    def sample(self, luck: Tensor) -> Batch:
        """Return one transition for each number of `luck` (B,) in [0, 1), all equally likely."""
        rows = (luck.double() * len(self)).long()
        return Batch(*(column[rows] for column in self.data))

    def state_dict(self) -> dict[str, object]:
        """Return the whole ring."""
        return {"written": self.written, "data": dict(self.data._asdict())}

    def load_state_dict(self, state: dict) -> None:
        """Take over a ring of the same size."""
        self.written = state["written"]
        for name, column in self.data._asdict().items():
            column.copy_(state["data"][name])
