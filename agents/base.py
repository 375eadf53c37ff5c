"""What a student is, and where advice may act on it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from envs.base import Step


class Proposal(NamedTuple):
    """What the student would do on its own in N games, and what it makes of them."""

    action: Tensor  # (N,) int64, legal, with its exploration
    greedy: Tensor  # (N,) int64, legal, the best by its own judgement
    scores: Tensor  # (N, A) float32: a policy's log-probabilities, or the actions' values
    value: Tensor  # (N,) float32: the position's value


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
    """A student: it knows tensors and a Spec, never a game, a tutor or a table.

    `act`, `observe` and the `parts` of an update are functions of tensors that write into tensors which never move,
    so that `agents.capture` can replace them by faster ones; what Python decides stands in `update`.
    """

    horizon: int  # moments observed between two updates
    parts: tuple[str, ...]  # names of the methods that `update` calls
    has_policy: bool  # whether a proposal's scores are a policy's log-probabilities; else they are values

    def act(self, step: Step) -> Proposal:
        """Return what the student would do now. Uses up one step of its exploration's luck."""

    def greedy(self, obs: Tensor, legal: Tensor) -> Tensor:
        """Return the student's best actions, (N,) int64, without exploration; changes nothing."""

    def frozen(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `greedy` as it is now: later updates do not change it."""

    def observe(self, step: Step, proposal: Proposal, action: Tensor, after: Step) -> None:
        """Take note that `action` (N,), after the student's own `proposal` in `step`, led to `after`."""

    def update(self, step: Step) -> dict[str, Tensor]:
        """Learn; `step` is the moment that follows the last one observed.

        Returns 0-d tensors named as on TensorBoard; nothing where there was nothing to learn yet.
        """

    def state_dict(self) -> dict[str, object]:
        """Return all that must be saved, tensors and plain containers only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


def best_legal(values: Tensor, legal: Tensor) -> Tensor:
    """Return the legal action of the largest value, (N,) int64 for two (N, A) tensors."""
    return values.masked_fill(~legal, -torch.inf).argmax(1)


def taken(scores: Tensor, action: Tensor) -> Tensor:
    """Return each row's score of its action, (N,) for (N, A) and (N,)."""
    assert action.shape == scores.shape[:1], "one action a row"
    return scores.gather(1, action[:, None])[:, 0]
