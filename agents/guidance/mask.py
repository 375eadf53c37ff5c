"""Mask: the student chooses among the actions that the tutor holds plausible.

An action is plausible if the tutor gives it at least a tenth of what it gives its best one. The mask is applied to a
state with the probability strength, which falls to 0 in the first half of the run; under it the student's own policy
decides, and PPO's ratio is that of the masked policy. DQN takes the best plausible action where its own is not
plausible. Source: CAMEL, arXiv:2502.11896, whose model bounds continuous actions.
"""

import torch
from torch import Tensor

from agents.guidance.base import Guidance, has_advice
from agents.policy import Decision, gather_action, masked_argmax, masked_log_softmax, sample_action

PLAUSIBLE = 0.1  # of the best action's probability


class Mask(Guidance):
    """Leave out what the tutor holds implausible."""

    stores_advice = is_annealed = acts_on_advice = True
    max_strength = 1.0

    def act(self, decision: Decision, advice: Tensor, action_mask: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        followed = has_advice(advice) & (u[:, -1] < self.strength)
        plausible = plausible_actions(advice, action_mask, followed)
        if self.has_policy:
            bounded = self.policy(decision.scores, action_mask, advice, followed)
            return torch.where(followed, sample_action(bounded, plausible, u[:, :-1]), decision.action), followed
        is_plausible = gather_action(plausible, decision.action)
        return torch.where(is_plausible, decision.action, masked_argmax(decision.scores, plausible)), followed

    def policy(self, log_probs: Tensor, action_mask: Tensor, advice: Tensor, followed: Tensor) -> Tensor:
        plausible = plausible_actions(advice, action_mask, followed)
        is_bounded = (plausible != action_mask).any(1, keepdim=True)
        return torch.where(is_bounded, masked_log_softmax(log_probs, plausible), log_probs)


def plausible_actions(advice: Tensor, action_mask: Tensor, followed: Tensor) -> Tensor:
    """Return the actions that the student may choose among, (B, A) bool: all legal ones where no mask is applied."""
    return torch.where(followed[:, None], advice >= PLAUSIBLE * advice.amax(1, keepdim=True), action_mask)
