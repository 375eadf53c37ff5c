"""Override: where advice is heeded, the tutor's best action is taken.

`override` is the method of Toral & Lazebnik 2025, arXiv:2509.08329, with the decaying consult probability of
`tutors.query`: DQN's exploration gives way to the tutor; PPO and A2C take the tutor's action for their own, with its
probability under their own policy, uncorrected.

`override-corrected` is ours: a moment whose action the student did not choose leaves the loss of its policy, whose
gradient holds for the policy's own actions only, and the mean and spread by which advantages are normalised; the value
learns from it all the same. The advantage of an own action still comes from a game in which the tutor may act later on.
For DQN, which may learn from anybody's actions, it would be the same as `override`.
"""

import torch
from torch import Tensor

from agents.base import Choice, Extras, Guidance, Heard, Proposal, Shapes


class Override(Guidance):
    """Take the tutor's best action in place of the student's."""

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        action = torch.where(heard.heeded, heard.advised.argmax(1), proposal.action)
        return Choice(action, proposal.scores, {})


class CorrectedOverride(Override):
    """Take it, and let the policy learn from the student's own actions alone."""

    students = ("ppo", "a2c")

    def extras(self, num_actions: int) -> Shapes:
        return {"own": ((), torch.bool)}

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        return super().choose(proposal, heard, action_mask, u)._replace(extras={"own": ~heard.heeded})

    def counts(self, extras: Extras) -> Tensor | None:
        return extras["own"]
