"""What a student is, and where advice may act on it."""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from envs.base import Step


class Proposal(NamedTuple):
    """What the student would do on its own in N games, and what it makes of them."""

    action: Tensor  # (N,) int64, legal, with its exploration
    greedy: Tensor  # (N,) int64, legal, the best by its own judgement
    scores: Tensor  # (N, A) float32: a policy's log-probabilities, or the actions' values
    value: Tensor  # (N,) float32: the position's value


Extras = Mapping[str, Tensor]  # what a method of guidance keeps beside a moment, each (N, …)
NOTHING: Extras = MappingProxyType({})
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # of extras: one game's shape, and the type


class Heard(NamedTuple):
    """What a student hears from its tutor in N games."""

    advised: Tensor  # (N, A) float32: a distribution over legal actions; zeros where there is no advice
    heeded: Tensor  # (N,) bool: where there is advice, it was asked for, and it is to be followed


class Choice(NamedTuple):
    """What is done in N games."""

    action: Tensor  # (N,) int64, legal
    scores: Tensor  # (N, A) float32: as those of the proposal, but of whoever chose the action
    extras: Extras


class Guidance:
    """What a student does with advice; this one does nothing.

    Each method here is one place where advice may act. A method of guidance is a subclass that fills some. All are
    functions of tensors, as those of a student; `strength` is a 0-d float32 tensor that never moves.

    Args:
        has_policy: of the student: its scores are log-probabilities; else they are values.
        device: where all tensors live.
        num_envs: N.
        gamma: the student's discount of one step.
    """

    students: tuple[str, ...] = ("dqn", "ppo", "a2c")  # for whom it makes sense
    strongest = 0.0  # the largest strength that makes sense; 0: the method has none
    strength_from, strength_to, strength_over = 1.0, 0.0, 0.5  # of one that has, over that share of the run
    pauses = False  # whether a run must stop for it first: the student's games are read
    reward_scale = 0.2  # of a method that keeps a bonus beside a moment, what a reward of 1 in its eyes is worth
    fades = False  # whether it does nothing where strength is 0: then advice is wanted everywhere, and not at all there
    kept: tuple[str, ...] = ()  # names of the tensors that a run which goes on must have again

    def __init__(self, has_policy: bool, device: torch.device | str, num_envs: int = 1, gamma: float = 1.0) -> None:
        self.has_policy, self.gamma = has_policy, gamma
        self.strength = torch.zeros((), device=device)

    def extras(self, num_actions: int) -> Shapes:
        """Return what is kept beside a moment: the shape of one game's, and the type."""
        return {}

    def inputs(self, num_actions: int) -> int:
        """Return how many numbers the student sees beside its observation."""
        return 0

    def see(self, extras: Extras) -> Tensor | None:
        """Return these numbers, (B, inputs) float32, after `choose`; the student then decides once more."""
        return None

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        """Return what to do, after the student's own proposal.

        Args:
            proposal: the student's own.
            heard: the tutor's.
            legal: (N, A) bool.
            luck: (N, A + 1) in [0, 1), this method's own.
        """
        return Choice(proposal.action, proposal.scores, {})

    def unheard(self, action_mask: Tensor) -> Extras:
        """Return what is kept beside moments of N games in which nobody said anything; legal is (N, A) bool."""
        nothing = torch.zeros(len(action_mask), device=action_mask.device)
        nobody = Proposal(nothing.long(), nothing.long(), torch.zeros_like(action_mask, dtype=torch.float32), nothing)
        u = torch.zeros(len(action_mask), action_mask.shape[1] + 1, device=action_mask.device)
        return self.choose(nobody, Heard(nobody.scores, nothing.bool()), action_mask, u).extras

    def reward(self, after: Step) -> Tensor:
        """Return what the student is to take for the reward, (N,) float32, of the step that `choose` decided."""
        return after.reward

    def remember(self, after: Step, extras: Extras) -> Extras:
        """Return what is kept beside the moment for which `choose` returned these `extras`, now that it is over."""
        return extras

    def felt(self, rewards: Tensor, extras: Extras) -> Tensor:
        """Return the rewards to learn from, of remembered moments of any shape: a bonus fades in memory, too."""
        return rewards + self.strength * self.reward_scale * extras["bonus"] if "bonus" in extras else rewards

    def bend(self, log_probs: Tensor, action_mask: Tensor, extras: Extras) -> Tensor:
        """Return the policy that is learned, (B, A) log-probabilities, made of the student's own."""
        return log_probs

    def counts(self, extras: Extras) -> Tensor | None:
        """Return which moments the policy learns from, (T, N) bool; None for all. The value learns from all."""
        return None

    def future(self, future: Tensor, values: Tensor, action_mask: Tensor, extras: Extras) -> Tensor:
        """Return what a position is worth that a value aims at, (B,), of the student's own estimate `future`.

        Args:
            values: (B, A), what the target network holds of the actions there.
            legal: (B, A) bool.
            extras: of that moment; zeros where it is not known yet.
        """
        return future

    def advantage(self, advantages: Tensor, extras: Extras) -> Tensor:
        """Return the advantages (T, N) to learn from."""
        return advantages

    def loss(self, scores: Tensor, action_mask: Tensor, extras: Extras) -> Tensor | float:
        """Return what to add to the loss, 0-d, for the student's scores (B, A): log-probabilities, or values."""
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on must have again."""
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name in self.kept:
            getattr(self, name).copy_(state[name])


UNGUIDED = Guidance(True, "cpu")


class Agent(Protocol):
    """A student: it knows tensors and a Spec, never a game, a tutor or a table.

    `act`, `observe` and the `parts` of an update are functions of tensors that write into tensors which never move,
    so that `agents.compile` can replace them by faster ones; what Python decides stands in `update`.
    """

    horizon: int  # moments observed between two updates
    parts: tuple[str, ...]  # names of the methods that `update` calls
    network: nn.Module
    guidance: Guidance
    has_policy: bool  # whether a proposal's scores are a policy's log-probabilities; else they are values

    def act(self, step: Step) -> Proposal:
        """Return what the student would do now. Uses up one step of its exploration's luck."""

    def think(self, step: Step, besides: Tensor | None) -> Proposal:
        """Return what the student would do in the moment that `act` was last asked about, with the same luck.

        `besides` (N, inputs) is what it sees beside its observation; None: nothing.
        """

    def greedy(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return the student's best actions, (N,) int64, without exploration; changes nothing."""

    def observe(self, step: Step, proposal: Proposal, action: Tensor, after: Step, extras: Extras = NOTHING) -> None:
        """Take note that `action` (N,), after `proposal` in `step`, led to `after`; keep `extras` beside it."""

    def update(self, step: Step) -> dict[str, Tensor]:
        """Learn; `step` is the moment that follows the last one observed.

        Returns 0-d tensors named as on TensorBoard; nothing where there was nothing to learn yet.
        """

    def state_dict(self) -> dict[str, object]:
        """Return all that must be saved, tensors and plain containers only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


def frozen_copy(agent: Agent) -> Agent:
    """Return a copy of a student for its `greedy`, which later updates do not change."""
    other = copy.copy(agent)
    other.network = copy.deepcopy(agent.network).requires_grad_(False)
    return other
