"""Advantage: what the tutor would have done counts as better than it turned out to be, less and less.

A' = A + strength * (p_tutor(a) - 1 / legal actions) where there is advice, before advantages are normalised; strength
falls from 0.3 to 0 in the first half of the run. The student always acts itself. Source: advantage shaping,
arXiv:2602.17931, whose decaying utility comes from a memory of good segments; ours is the tutor's preference for the
action.
"""

import math

import torch
from torch import Tensor

from agents.base import Choice, Extras, Guidance, Heard, Proposal, Shapes
from agents.policy import gather_action


class Advantage(Guidance):
    """Add the tutor's preference to the advantage."""

    students = ("ppo", "a2c")
    fades, strongest = True, math.inf
    strength_from = 0.3

    def extras(self, num_actions: int) -> Shapes:
        return {"utility": ((), torch.float32)}

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        utility = (gather_action(heard.advised, proposal.action) - 1 / action_mask.sum(1)) * heard.heeded
        return Choice(proposal.action, proposal.scores, {"utility": utility})

    def advantage(self, advantages: Tensor, extras: Extras) -> Tensor:
        return advantages + self.strength * extras["utility"]
