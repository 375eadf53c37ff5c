"""Demonstrate: DQN does the tutor's action, stores it as a demonstration, and learns that no other is as good.

Where a demonstration says a*, strength * (max over legal a of [Q(s, a) + margin * (a is not a*)] - Q(s, a*)) is added
to the loss, the mean over all transitions of the batch. Strength stays 1. Source: DQfD (Hester et al. 2018,
arXiv:1704.03732), equation 2, whose margin is 0.8 for rewards of Atari games, and which learns from demonstrations
before it acts and samples them by priority; ours come as the run goes, and are sampled like all transitions.
"""

import math

import torch
from torch import Tensor

from agents.guidance.base import Transitions
from agents.guidance.override import Override
from agents.policy import gather_action

MARGIN = 0.1  # a tenth of the largest return of Connect Four or Blackjack


class Demonstrate(Override):
    """Do the tutor's best action, and keep its value the largest."""

    students = ("dqn",)
    stores_advice = True
    max_strength, strength_end = math.inf, 1.0

    def loss(self, scores: Tensor, batch: Transitions) -> Tensor:
        demonstrated = batch.advice.argmax(1)
        others = torch.arange(scores.shape[1], device=scores.device) != demonstrated[:, None]
        best = (scores + MARGIN * others).masked_fill(~batch.action_mask, -torch.inf).amax(1)
        return self.strength * ((best - gather_action(scores, demonstrated)) * batch.followed).mean()
