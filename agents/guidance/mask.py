"""Mask: the student chooses among what the tutor holds plausible.

An action is plausible if the tutor gives it at least a tenth of what it gives its best one. The mask lies on a moment
with the probability strength, which falls to 0 in the first half of the run; under it the student's own policy decides,
and PPO's ratio is that of the masked policy. DQN takes the best plausible action where its own is not plausible.
Source: CAMEL, arXiv:2502.11896, whose model bounds continuous actions.
"""

import torch
from torch import Tensor

from agents.base import Choice, Extras, Guidance, Heard, Proposal, Shapes
from agents.policy import gather_action, masked_argmax, masked_log_softmax, sample_action

PLAUSIBLE = 0.1  # of the best action's probability


class Mask(Guidance):
    """Leave out what the tutor does not believe in."""

    fades, strongest = True, 1.0

    def extras(self, num_actions: int) -> Shapes:
        return {"plausible": ((num_actions,), torch.bool)}

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        masked = heard.heeded & (u[:, -1] < self.strength)
        believed = heard.advised >= PLAUSIBLE * heard.advised.amax(1, keepdim=True)
        plausible = torch.where(masked[:, None], believed, action_mask)
        extras = {"plausible": plausible}
        if not self.has_policy:
            may = gather_action(plausible, proposal.action)
            return Choice(
                torch.where(may, proposal.action, masked_argmax(proposal.scores, plausible)), proposal.scores, extras
            )
        scores = self.bend(proposal.scores, action_mask, extras)
        drawn = sample_action(scores, plausible, u[:, :-1])
        return Choice(torch.where(masked, drawn, proposal.action), scores, extras)

    def bend(self, log_probs: Tensor, action_mask: Tensor, extras: Extras) -> Tensor:
        plausible = extras["plausible"]
        bounded = (plausible != action_mask).any(1, keepdim=True)
        return torch.where(bounded, masked_log_softmax(log_probs, plausible), log_probs)
