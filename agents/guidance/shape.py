"""Shape: what the tutor would have done too is rewarded at once, and paid back a step later.

The reward becomes r + gamma * phi' - phi. The potential phi' of the next moment is strength * p_tutor(a | s), the
tutor's approval of the action that led there: 0 where there was no advice, in a game's first moment and where the game
has terminated. strength falls from 0.2 to 0 in the first half of the run. The student always acts itself. Source:
potential-based shaping leaves the best policies the best (Ng, Harada & Russell 1999, "Policy invariance under reward
transformations"); with a potential of the last action, look-back advice (Wiewiora, Cottrell & Elkan 2003, "Principled
methods for advising reinforcement learning agents"); with one that changes in time, Devlin & Kudenko 2012, "Dynamic
potential-based reward shaping". The theorem is about a student that remembers phi. Ours does not see it, so its values
know only what phi is on average in a position, and the invariance is as good as that.
"""

import math

import torch
from torch import Tensor

from agents.base import Choice, Guidance, Heard, Proposal
from agents.policy import gather_action
from envs.base import Step


class Shape(Guidance):
    """Lend a reward for what the tutor would have done."""

    fades, strongest = True, math.inf
    strength_from = 0.2
    kept = ("potential",)

    def __init__(self, has_policy: bool, device: torch.device | str, num_envs: int = 1, gamma: float = 1.0) -> None:
        super().__init__(has_policy, device, num_envs, gamma)
        self.potential = torch.zeros(num_envs, device=device)  # of the moment that is acted in
        self.approval = torch.zeros(num_envs, device=device)  # of the action that was chosen in it

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        self.approval.copy_(self.strength * gather_action(heard.advised, proposal.action))
        return Choice(proposal.action, proposal.scores, {})

    def reward(self, after: Step) -> Tensor:
        there = self.approval * ~after.terminated
        felt = after.reward + self.gamma * there - self.potential
        self.potential.copy_(there * ~after.truncated)
        return felt
