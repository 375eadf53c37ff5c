"""Blend: the student acts by a mixture of the tutor's policy and its own, which is what it learns.

P = w p_tutor + (1 - w) p_student with w = strength * (1 - H), where H is the tutor's entropy as a share of the largest
that there can be: a tutor without doubt decides, one that does not know leaves it to the student. PPO's ratio is that
of the mixture, at acting and at learning, so it stays true. Source: uncertainty-aware policy shaping, arXiv:2411.14457,
whose w is 1 - H; ours begins at 0.9 of that and falls to 0 in the first half of the run, since a student that has no
say learns nothing.
"""

import torch
from torch import Tensor

from agents.base import Choice, Extras, Guidance, Heard, Proposal, Shapes
from agents.policy import normalized_entropy, sample_action


class Blend(Guidance):
    """Act and learn as a mixture."""

    students = ("ppo", "a2c")
    fades, strongest = True, 1.0
    strength_from = 0.9

    def extras(self, num_actions: int) -> Shapes:
        return {"advised": ((num_actions,), torch.float32)}

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        extras = {"advised": heard.advised}
        scores = self.bend(proposal.scores, action_mask, extras)
        drawn = sample_action(scores, action_mask, u[:, :-1])
        return Choice(torch.where(heard.heeded, drawn, proposal.action), scores, extras)

    def bend(self, log_probs: Tensor, action_mask: Tensor, extras: Extras) -> Tensor:
        advised = extras["advised"]
        given = advised.sum(1, keepdim=True) > 0
        weight = self.strength * (1 - normalized_entropy(advised, action_mask))[:, None]
        mixed = weight * advised + (1 - weight) * log_probs.exp()
        return torch.where(given, mixed.clamp(min=1e-30).log(), log_probs)
