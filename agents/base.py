"""What a student is, and where advice may act on it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from envs.base import Step


class Proposal(NamedTuple):
    """What the student would do on its own in N games."""

    action: Tensor  # (N,) int64, legal, with its exploration
    greedy: Tensor  # (N,) int64, legal, the best by its own judgement


class Guidance:
    """What a student does with advice; this one does nothing.

    Each method is one place where advice may act. A method of guidance is a subclass that fills one or two.
    """

    def choose(self, proposal: Proposal, advised: Tensor, wanted: Tensor) -> Tensor:
        """Return the actions to take, (N,) int64.

        Args:
            proposal: the student's own.
            advised: (N, A) float32, the tutor's distribution over legal actions; zeros where it is silent.
            wanted: (N,) bool, where advice was asked for.
        """
        return proposal.action


class Agent(Protocol):
    """A student: it knows tensors and a Spec, never a game, a tutor or a table."""

    horizon: int  # moments observed between two updates

    def act(self, step: Step) -> Proposal:
        """Return what the student would do now. Uses up one step of its exploration's luck."""

    def greedy(self, obs: Tensor, legal: Tensor) -> Tensor:
        """Return the student's best actions, (N,) int64, without exploration; changes nothing."""

    def frozen(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `greedy` as it is now: later updates do not change it."""

    def observe(self, step: Step, action: Tensor, after: Step) -> None:
        """Take note that `action` (N,) in `step` led to `after`."""

    def update(self) -> dict[str, Tensor]:
        """Learn; return 0-d tensors named as on TensorBoard. Empty where there was nothing to learn yet."""

    def state_dict(self) -> dict[str, object]:
        """Return all that must be saved, tensors and plain containers only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


def best_legal(values: Tensor, legal: Tensor) -> Tensor:
    """Return the legal action of the largest value, (N,) int64 for two (N, A) tensors."""
    return values.masked_fill(~legal, -torch.inf).argmax(1)
