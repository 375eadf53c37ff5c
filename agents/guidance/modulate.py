"""Modulation: a model has read the student's games; where it found a position critical, its word counts.

The table holds a row of numbers in [-1, 1] for each critical position: what the model thinks of each action there. With
`modulate-a` the best of the legal ones is done in place of the student's own with the probability strength, where its
number is above 0: of two games one may say the opposite of the other. With `modulate-r` the reward becomes r + strength
* reward_scale * (the number of the action that was done); `modulate` does both. Nothing is done anywhere else, and
strength falls from 1 to 0 in the first half of what is left of the run. The trajectories are ordinary data for the
student's updates; what DQN remembers is paid as it is worth when it is learned from.

Source: ULTRA-A, -R and -RA (Tan, Yan & Yang 2025, arXiv:2505.20671). How they scale the reward, fade it out and find a
position again is not known: the exact key, the row and the schedule are ours.

`modulate-d` is ours, too: the student always acts itself, and in critical positions its loss draws it to that best
action, by the cross-entropy of `distill` and with its strength, 5 falling to 0 in the first half of what is left.
"""

import math

import torch
from torch import Tensor

from agents.base import Choice, Guidance, Heard, Proposal, Shapes
from agents.guidance.distill import Distill
from agents.policy import gather_action


class Modulate(Guidance):
    """Take the model's action in critical positions, and its reward."""

    pauses, strongest = True, 1.0
    acts = pays = True

    def extras(self, num_actions: int) -> Shapes:
        return {"bonus": ((), torch.float32)} if self.pays else {}

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        action = proposal.action
        if self.acts:
            best, is_named = better(heard, action_mask)
            action = torch.where(is_named & (u[:, -1] < self.strength), best, action)
        bonus = {"bonus": gather_action(heard.advised, action)} if self.pays else {}
        return Choice(action, proposal.scores, bonus)


class ModulateActions(Modulate):
    """Take its action alone."""

    pays = False


class ModulateRewards(Modulate):
    """Take its reward alone."""

    acts, strongest = False, math.inf


class ModulateDistill(Distill):
    """Learn its action."""

    pauses, fades = True, False

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        best, is_named = better(heard, action_mask)
        advised = (best[:, None] == torch.arange(action_mask.shape[1], device=best.device)) & is_named[:, None]
        return Choice(proposal.action, proposal.scores, {"advised": advised.float()})


def better(heard: Heard, action_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (the best legal action, whether somebody named it), (N,) int64 and bool."""
    worth, best = heard.advised.masked_fill(~action_mask, -torch.inf).max(1)
    return best, heard.heeded & (worth > 0)
