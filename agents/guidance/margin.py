"""Margin: DQN learns that no action is as good as the tutor's, and still makes half of its moves itself.

In every other env copy the tutor's best action is done as long as the strength is above 0; in the others the student
acts by itself. Wherever there is advice, strength * (max over legal a of [Q(s, a) + margin * (a is not a*)] - max over
a* of Q(s, a*)) is added to the loss, a* being the tutor's best actions. It is `demonstrate` but for two things: advice
teaches where it is not followed, too, and the student meets the positions that its own moves lead to. Source: DQfD
(Hester et al. 2018, arXiv:1704.03732), equation 2. That both halves are needed was measured: see
docs/concepts/trust.md.
"""

import torch
from torch import Tensor

from agents.guidance.base import Transitions
from agents.guidance.demonstrate import MARGIN, Demonstrate
from agents.policy import Decision


class Margin(Demonstrate):
    """Do the tutor's best action in half of the env copies, and keep its value the largest in all."""

    is_annealed = True
    acts_on_advice = False  # it leaves half of the env copies alone itself, and learns from advice in all
    strength_end = 0.0

    def __init__(self, has_policy: bool, device: torch.device | str, num_envs: int = 1, gamma: float = 1.0) -> None:
        super().__init__(has_policy, device, num_envs, gamma)
        self.alone = torch.arange(num_envs, device=device) % 2 == 0

    def act(self, decision: Decision, advice: Tensor, action_mask: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        action, followed = super().act(decision, advice, action_mask, u)
        followed = followed & ~self.alone & (self.strength > 0)
        return torch.where(followed, action, decision.action), followed

    def loss(self, scores: Tensor, batch: Transitions) -> Tensor:
        return self.strength * margin_loss(scores, batch.action_mask, batch.advice)


def margin_loss(scores: Tensor, action_mask: Tensor, advice: Tensor) -> Tensor:
    """Return by how much other actions are too good beside the tutor's best ones, the mean over all rows, 0-d.

    A row without advice has no other actions, and adds 0.
    """
    is_best = (advice == advice.amax(1, keepdim=True)) & action_mask
    others = (scores + MARGIN * ~is_best).masked_fill(~action_mask, -torch.inf).amax(1)
    return (others - scores.masked_fill(~is_best, -torch.inf).amax(1)).mean()
