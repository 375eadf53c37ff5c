"""What every student can do, and a frozen copy of one."""

import copy
from typing import Any, Protocol

from torch import Tensor, nn

from agents.guidance.base import EMPTY, Guidance
from agents.policy import Decision
from envs.base import Step


class Agent(Protocol):
    """A student: it knows tensors and a Spec, no game, no tutor and no table.

    `act`, `observe` and the `compiled_methods` of an update are functions of tensors that write only into tensors which
    never move, so that `agents.compile` can replace them by faster ones; what Python decides is in `update`.
    """

    steps: Tensor  # 0-d int64: time steps acted in
    steps_per_update: int  # time steps observed between two updates
    compiled_methods: tuple[str, ...]  # names of the methods that `update` calls
    network: nn.Module
    guidance: Guidance
    has_policy: bool  # whether a decision's scores are log-probabilities of a policy; else they are action values

    def act(self, obs: Tensor, action_mask: Tensor) -> Decision:
        """Return what the student would do now. Uses up one step of its exploration noise."""

    def decide(self, obs: Tensor, action_mask: Tensor, advice: Tensor) -> Decision:
        """Return what the student would do in the time step of the last `act`, with the same noise.

        `advice` (N, A) is an input beside the observation, for a guidance that uses it so; EMPTY: no such input.
        """

    def greedy(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return the student's best actions, (N,) int64, without exploration; changes nothing."""

    def explore(self, obs: Tensor, action_mask: Tensor, u: Tensor) -> Tensor:
        """Return what the student would do, (N,) int64, exploring as now by `u` (N, A + 1); changes nothing."""

    def observe(
        self,
        step: Step,
        decision: Decision,
        action: Tensor,
        next_step: Step,
        reward: Tensor,
        advice: Tensor = EMPTY,
        followed: Tensor = EMPTY,
        bonus: Tensor = EMPTY,
    ) -> None:
        """Store one transition of every env copy.

        Args:
            step: where the action was taken.
            decision: what the student would have done there.
            action: (N,) int64, what was done.
            next_step: where it led.
            reward: (N,) float32, as shaped by the guidance.
            advice: (N, A) float32, zeros where there is none; of a guidance that stores it.
            followed: (N,) bool, of the same.
            bonus: (N,) float32, of the same: a reward that fades in memory.
        """

    def update(self, step: Step) -> dict[str, Tensor]:
        """Learn; `step` follows the last one observed.

        Returns 0-d tensors named as on TensorBoard; an empty dict where there is nothing to learn from yet.
        """

    def pretrain(self, obs: Tensor, action_mask: Tensor, advice: Tensor) -> None:
        """Go one step towards a tutor's advice, (B, A) float32 with zeros where there was none."""

    def state_dict(self) -> dict[str, object]:
        """Return all that a checkpoint holds: tensors and plain containers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


def frozen_copy(agent: Agent) -> Agent:
    """Return a copy of a student whose `greedy` later updates do not change."""
    other = copy.copy(agent)
    other.network = copy.deepcopy(agent.network).requires_grad_(False)
    return other
