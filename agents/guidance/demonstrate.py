"""Demonstrate: DQN takes the tutor's action, keeps it as a demonstration, and learns that nothing else is as good.

Where a demonstration says a*, strength * (max over legal a of [Q(s, a) + margin * (a is not a*)] - Q(s, a*)) is added
to the loss, the mean over all moments of the sample. Strength stays 1. Source: DQfD (Hester et al. 2018,
arXiv:1704.03732), equation 2, whose margin is 0.8 for rewards of Atari games, and which learns from demonstrations
before it plays and samples them by priority; ours come as the run goes, and are sampled like everything else.
"""

import math

import torch
from torch import Tensor

from agents.base import Choice, Extras, Heard, Proposal, Shapes
from agents.guidance.override import Override
from agents.policy import gather_action

MARGIN = 0.1  # a tenth of what a game of Connect Four or Blackjack can bring
NOBODY = -1  # in place of an action: no demonstration


class Demonstrate(Override):
    """Take the tutor's best action, and keep it best."""

    students = ("dqn",)
    strongest, strength_to = math.inf, 1.0

    def extras(self, num_actions: int) -> Shapes:
        return {"shown": ((), torch.int64)}

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        choice = super().choose(proposal, heard, action_mask, u)
        return choice._replace(extras={"shown": torch.where(heard.heeded, choice.action, NOBODY)})

    def loss(self, scores: Tensor, action_mask: Tensor, extras: Extras) -> Tensor:
        shown = extras["shown"]
        best = shown.clamp(min=0)
        others = torch.arange(scores.shape[1], device=scores.device) != best[:, None]
        rival = (scores + MARGIN * others).masked_fill(~action_mask, -torch.inf).amax(1)
        return self.strength * ((rival - gather_action(scores, best)) * (shown != NOBODY)).mean()
