"""Blend: the student acts by a mixture of the tutor's policy and its own, and learns that mixture.

P = w p_tutor + (1 - w) p_student with w = strength * (1 - H), where H is the tutor's normalized entropy: a certain
tutor decides, an undecided one leaves it to the student. PPO's ratio is that of the mixture, in acting and in learning,
so it stays true. Source: uncertainty-aware policy shaping, arXiv:2411.14457, whose w is 1 - H; ours begins at 0.9 of
that and falls to 0 in the first half of the run, since a student that never decides learns nothing.
"""

import torch
from torch import Tensor

from agents.guidance.base import Guidance, has_advice
from agents.policy import Decision, normalized_entropy, sample_action


class Blend(Guidance):
    """Act and learn as a mixture."""

    students = ("ppo", "a2c")
    stores_advice = is_annealed = acts_on_advice = True
    max_strength = 1.0
    strength_start = 0.9

    def act(self, decision: Decision, advice: Tensor, action_mask: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        followed = has_advice(advice)
        mixture = self.policy(decision.scores, action_mask, advice, followed)
        return torch.where(followed, sample_action(mixture, action_mask, u[:, :-1]), decision.action), followed

    def policy(self, log_probs: Tensor, action_mask: Tensor, advice: Tensor, followed: Tensor) -> Tensor:
        weight = self.strength * (1 - normalized_entropy(advice, action_mask))[:, None]
        mixture = weight * advice + (1 - weight) * log_probs.exp()
        return torch.where(has_advice(advice)[:, None], mixture.clamp(min=1e-30).log(), log_probs)
