"""Override: the tutor's best action is done.

`override` is the method of Toral & Lazebnik 2025, arXiv:2509.08329, with the decaying consult probability of
`tutors.query`: DQN's exploration gives way to the tutor; PPO and A2C take the tutor's action for their own, with its
probability under their own policy, uncorrected.

`override-corrected` is ours: a transition whose action the student did not choose has no weight in the loss of its
policy, whose gradient holds for the policy's own actions only, nor in the mean and the deviation by which advantages
are normalized; the value learns from it all the same. The advantage of an own action still comes from an episode in
which the tutor may act later on. For DQN, which may learn from anybody's actions, it would be the same as `override`.
"""

import torch
from torch import Tensor

from agents.guidance.base import Guidance, Transitions, has_advice
from agents.policy import Decision


class Override(Guidance):
    """Do the tutor's best action in place of the student's."""

    acts_on_advice = True

    def act(self, decision: Decision, advice: Tensor, action_mask: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        followed = has_advice(advice)
        return torch.where(followed, advice.argmax(1), decision.action), followed


class CorrectedOverride(Override):
    """Do it, and let the policy learn from the student's own actions alone."""

    students = ("ppo", "a2c")
    stores_advice = True

    def advantage(self, advantages: Tensor, rollout: Transitions) -> tuple[Tensor, Tensor]:
        return advantages, (~rollout.followed).float()
