"""Hint: the student sees what the tutor would do, beside its observation, and decides itself.

It sees the tutor's distribution over the actions and a flag that says whether there is advice, A + 1 numbers that are
all 0 where there is none: an evaluation never has any. What it proposed before it was told is only used to decide
whether to ask. Source: hints in the observation, arXiv:2510.08779, whose hint is one action, asked for every few steps,
in an ASCII grid; ours are numbers that join the observation at the network's first dense layer, with weights that begin
at 0. What a position is worth is judged with the hint that it came with; without one where none is known: at the end of
a rollout, in the newest moment of a replay, and where the clock ended a game. With the consult probability the hints
become rarer, so that the student learns to go without.
"""

import torch
from torch import Tensor

from agents.base import Choice, Extras, Guidance, Heard, Proposal, Shapes


class Hint(Guidance):
    """Show the advice to the student."""

    def extras(self, num_actions: int) -> Shapes:
        return {"hint": ((num_actions + 1,), torch.float32)}

    def inputs(self, num_actions: int) -> int:
        return num_actions + 1

    def see(self, extras: Extras) -> Tensor:
        return extras["hint"]

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        hint = torch.cat([heard.advised, heard.heeded[:, None].float()], 1)
        return Choice(proposal.action, proposal.scores, {"hint": hint})
