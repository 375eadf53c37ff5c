"""Learning to be like the tutor while learning to win: the student always acts itself, its loss draws it to the advice.

`distill` adds strength * CE(tutor, student) = -strength * sum over actions of p_tutor log p_student, the mean over all
moments, 0 where there is no advice. Source: kickstarting (Schmitt et al. 2018, arXiv:1803.03835), with a language model
as the teacher in LLM4Teach (Zhou et al. 2024, IJCAI). Theirs falls from 10 to 0.1 by 0.005 an update and is dropped
after 3,000; ours falls from 5 to 0 in the first half of the run.

`kl` adds strength * KL(student || tutor) instead, which minds what the student does and the tutor would not. The
tutor's distribution is mixed with 5 % of uniform play, since the divergence from a tutor without doubt has no end.

DQN has no policy; softmax(values / 0.1) stands for it, as in `tutors.query`. That has no source that we know. With
`kl` its targets value a position that came with advice as V(s) = heat * log(sum over a of p_tutor(a) exp(Q(s, a) /
heat)), heat = strength / 10: the value under the best policy whose divergence from the tutor's costs heat. Hot, that is
the value of the tutor's play; cold, that of the best action. Source of `kl`, policies and values: LINVIT (Zhang et al.
2024, arXiv:2402.16181), which plans over a finite horizon; the single step and the schedule are ours.
"""

import math

import torch
from torch import Tensor

from agents.base import Choice, Extras, Guidance, Heard, Proposal, Shapes
from agents.policy import TEMPERATURE, masked_log_softmax

DOUBT = 0.05  # share of uniform play in the tutor's distribution that a divergence is taken from


class Distill(Guidance):
    """Go down the cross-entropy from the tutor to the student."""

    fades, strongest = True, math.inf
    strength_from = 5.0

    def extras(self, num_actions: int) -> Shapes:
        return {"advised": ((num_actions,), torch.float32)}

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        return Choice(proposal.action, proposal.scores, {"advised": heard.advised})

    def loss(self, scores: Tensor, action_mask: Tensor, extras: Extras) -> Tensor:
        log_probs = scores if self.has_policy else masked_log_softmax(scores / TEMPERATURE, action_mask)
        return self.strength * self.distance(log_probs, action_mask, extras["advised"]).mean()

    def distance(self, log_probs: Tensor, action_mask: Tensor, advised: Tensor) -> Tensor:
        """Return how far the student is from the tutor in each moment, (B,); 0 where there is no advice."""
        return -(advised * log_probs).sum(1)


class Near(Distill):
    """Go down the divergence of the student from the tutor."""

    def distance(self, log_probs: Tensor, action_mask: Tensor, advised: Tensor) -> Tensor:
        apart = log_probs.exp() * (log_probs - self.doubted(advised, action_mask).clamp(min=1e-30).log())
        return (apart * action_mask).sum(1) * (advised.sum(1) > 0)

    def future(self, future: Tensor, values: Tensor, action_mask: Tensor, extras: Extras) -> Tensor:
        advised = extras["advised"]
        heat = (self.strength * TEMPERATURE).clamp(min=1e-3)
        weighed = self.doubted(advised, action_mask).clamp(min=1e-30).log() + values / heat
        soft = heat * weighed.masked_fill(~action_mask, -torch.inf).logsumexp(1)
        return torch.where((advised.sum(1) > 0) & (self.strength > 0), soft, future)

    def doubted(self, advised: Tensor, action_mask: Tensor) -> Tensor:
        """Return the tutor's distribution with some uniform play in it, (B, A)."""
        return (1 - DOUBT) * advised + DOUBT * action_mask / action_mask.sum(1, keepdim=True)
