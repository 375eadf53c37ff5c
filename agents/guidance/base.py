"""Where advice may act on a student: six hooks. `Guidance` itself leaves the student alone."""

from typing import Any, Protocol

import torch
from torch import Tensor

from agents.policy import Decision
from envs.base import Step

EMPTY = torch.zeros(0)  # in place of a column that is not stored


class Transitions(Protocol):
    """Stored transitions, whatever else a student stores beside them: (B, …), or (T, N, …) of a whole rollout."""

    @property
    def action_mask(self) -> Tensor:
        """(…, A) bool."""

    @property
    def action(self) -> Tensor:
        """(…) int64: what was done."""

    @property
    def advice(self) -> Tensor:
        """(…, A) float32: the tutor's distribution over legal actions; zeros where there was no advice."""

    @property
    def followed(self) -> Tensor:
        """(…) bool: as `Guidance.act` returned it."""


class Guidance:
    """What a student does with advice; this one does nothing.

    A method of guidance is a subclass that fills some of the six hooks. All are functions of tensors. Three columns are
    stored beside every transition, from which a method derives all that it requires later: `advice`, `followed` and
    `bonus`. The order in one time step is: `act`, the env's step, `reward`; `policy` gives the log-probabilities that
    are stored. In an update: `advantage` (PPO, A2C) or `bootstrap` (DQN), then `policy` and `loss` of each minibatch.

    Args:
        has_policy: whether the student's scores are log-probabilities; else they are action values.
        device: where all tensors live.
        num_envs: N.
        gamma: the student's discount of one step.
    """

    students: tuple[str, ...] = ("dqn", "ppo", "a2c")  # those that the method is for
    stores_advice = False  # whether the three columns are stored; without them the hooks of an update see no advice
    uses_advice_as_input = False  # whether the student's network sees the advice beside the observation
    acts_on_advice = False  # whether `act` follows advice wherever there is some: then trust leaves env copies alone
    needs_episode_review = False  # whether the run stops first, for a model to read the student's episodes
    is_annealed = False  # whether it does nothing where strength is 0: then advice is wanted everywhere, or nowhere
    max_strength = 0.0  # the largest strength that makes sense; 0: the method has no strength
    strength_start, strength_end, strength_fraction = 1.0, 0.0, 0.5  # linear over that share of the run
    trusted_strength: float | None = None  # at full trust; None: strength_start
    reward_scale = 0.2  # what a bonus of 1 is worth as a reward
    state_keys: tuple[str, ...] = ()  # names of the tensors that a checkpoint holds

    def __init__(self, has_policy: bool, device: torch.device | str, num_envs: int = 1, gamma: float = 1.0) -> None:
        self.has_policy = has_policy
        self.gamma = gamma
        self.strength = torch.zeros((), device=device)  # 0-d float32, never moves
        # env copies in which the student acts by itself whatever the advice; where trust counts, it counts those
        self.alone = torch.ones(num_envs, dtype=torch.bool, device=device)

    def act(self, decision: Decision, advice: Tensor, action_mask: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return (action (N,) int64, followed (N,) bool), after the student's own decision.

        Args:
            decision: the student's own.
            advice: (N, A) float32: a distribution over legal actions; zeros where there is none to follow.
            action_mask: (N, A) bool.
            u: (N, A + 1) uniforms in [0, 1), for this method alone.
        """
        return decision.action, torch.zeros_like(decision.action, dtype=torch.bool)

    def policy(self, log_probs: Tensor, action_mask: Tensor, advice: Tensor, followed: Tensor) -> Tensor:
        """Return the policy that acts and is learned, (B, A) log-probabilities, made of the student's own."""
        return log_probs

    def reward(self, next_step: Step, action: Tensor, advice: Tensor) -> tuple[Tensor, Tensor]:
        """Return (the reward to learn from, a bonus that fades in memory), both (N,) float32."""
        return next_step.reward, torch.zeros_like(next_step.reward)

    def advantage(self, advantages: Tensor, rollout: Transitions) -> tuple[Tensor, Tensor]:
        """Return (advantages, the weight of each transition in the policy's loss), both (T, N) float32."""
        return advantages, torch.ones_like(advantages)

    def bootstrap(self, value: Tensor, q_values: Tensor, action_mask: Tensor, next_advice: Tensor) -> Tensor:
        """Return the next state's value (B,) that a target is made of.

        Args:
            value: (B,), the student's estimate.
            q_values: (B, A), the target network's action values there.
            action_mask: (B, A) bool, of that state.
            next_advice: (B, A), of that state; zeros where it is not known yet.
        """
        return value

    def loss(self, scores: Tensor, batch: Transitions) -> Tensor | float:
        """Return what to add to the loss, 0-d, for the student's scores (B, A): log-probabilities, or action values."""
        return 0.0

    def inputs(self, advice: Tensor) -> Tensor | None:
        """Return what the network sees beside the observation, (B, A + 1), or None where it has no such inputs.

        It is the advice and whether there is any; None, too, where `advice` is EMPTY.
        """
        if not self.uses_advice_as_input or not advice.numel():
            return None
        return torch.cat([advice, has_advice(advice)[:, None].float()], 1)

    def num_inputs(self, num_actions: int) -> int:
        """Return the width of `inputs`."""
        return num_actions + 1 if self.uses_advice_as_input else 0

    def shaped(self, rewards: Tensor, bonus: Tensor) -> Tensor:
        """Return rewards with the bonus that is stored beside them, as much as it is worth now. Any shape."""
        return rewards + self.strength * self.reward_scale * bonus

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        return {name: getattr(self, name) for name in self.state_keys}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for name in self.state_keys:
            getattr(self, name).copy_(state[name])


def has_advice(advice: Tensor) -> Tensor:
    """Return where there is advice, (B,) bool for (B, A)."""
    return advice.sum(1) > 0


NO_GUIDANCE = Guidance(True, "cpu")
