"""Advantage: what the tutor would have done counts as better than it turned out to be, less and less.

A' = A + strength * (p_tutor(a) - 1 / legal actions) where there is advice, before advantages are normalized; strength
falls from 0.3 to 0 in the first half of the run. The student always acts itself. Source: advantage shaping,
arXiv:2602.17931, whose decaying utility comes from a memory of good segments; ours is the tutor's preference for the
action.
"""

import math

import torch
from torch import Tensor

from agents.guidance.base import Guidance, Transitions


class Advantage(Guidance):
    """Add the tutor's preference to the advantage."""

    students = ("ppo", "a2c")
    stores_advice = is_annealed = True
    max_strength = math.inf
    strength_start = 0.3

    def advantage(self, advantages: Tensor, rollout: Transitions) -> tuple[Tensor, Tensor]:
        chosen = rollout.advice.gather(-1, rollout.action[..., None])[..., 0]
        preference = (chosen - 1 / rollout.action_mask.sum(-1)) * (rollout.advice.sum(-1) > 0)
        return advantages + self.strength * preference, torch.ones_like(advantages)
