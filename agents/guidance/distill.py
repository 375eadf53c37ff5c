"""Distillation: the student always acts itself, and its loss draws it to the tutor while it learns to win.

`distill` adds strength * CE(tutor, student) = -strength * sum over actions of p_tutor log p_student, the mean over all
transitions, 0 where there is no advice. Source: kickstarting (Schmitt et al. 2018, arXiv:1803.03835), with a language
model as the teacher in LLM4Teach (Zhou et al. 2024, IJCAI). Theirs falls from 10 to 0.1 by 0.005 an update and is
dropped after 3,000; ours falls from 5 to 0 in the first half of the run.

`kl` adds strength * KL(student || tutor) instead, which minds what the student does and the tutor would not. The
tutor's distribution is smoothed with 5 % of the uniform one, since the divergence from a certain tutor is infinite.

DQN has no policy; softmax(values / 0.1) stands for it, as in `tutors.query`. That has no source that we know. With `kl`
its targets value a state that came with advice as V(s) = t * log(sum over a of p_tutor(a) exp(Q(s, a) / t)), with the
temperature t = strength / 10: the value under the best policy whose divergence from the tutor's costs t. Hot, that is
the value of following the tutor; cold, that of the best action. Source of `kl`, policies and values: LINVIT (Zhang et
al. 2024, arXiv:2402.16181), which plans over a finite horizon; the single step and the schedule are ours.
"""

import math

import torch
from torch import Tensor

from agents.guidance.base import Guidance, Transitions, has_advice
from agents.policy import TEMPERATURE, masked_log_softmax

SMOOTHING = 0.05  # share of the uniform policy in the tutor's distribution that a divergence is taken from


class Distill(Guidance):
    """Go down the cross-entropy from the tutor to the student."""

    stores_advice = is_annealed = True
    max_strength = math.inf
    strength_start = 5.0
    trusted_strength = 1.0  # measured: docs/concepts/trust.md

    def loss(self, scores: Tensor, batch: Transitions) -> Tensor:
        log_probs = scores if self.has_policy else masked_log_softmax(scores / TEMPERATURE, batch.action_mask)
        return self.strength * self.distance(log_probs, batch.action_mask, batch.advice).mean()

    def distance(self, log_probs: Tensor, action_mask: Tensor, advice: Tensor) -> Tensor:
        """Return how far the student is from the tutor in each state, (B,); 0 where there is no advice."""
        return -(advice * log_probs).sum(1)


class KL(Distill):
    """Go down the divergence of the student from the tutor."""

    def distance(self, log_probs: Tensor, action_mask: Tensor, advice: Tensor) -> Tensor:
        divergence = log_probs.exp() * (log_probs - smoothed(advice, action_mask).clamp(min=1e-30).log())
        return (divergence * action_mask).sum(1) * has_advice(advice)

    def bootstrap(self, value: Tensor, q_values: Tensor, action_mask: Tensor, next_advice: Tensor) -> Tensor:
        temperature = (self.strength * TEMPERATURE).clamp(min=1e-3)
        weighted = smoothed(next_advice, action_mask).clamp(min=1e-30).log() + q_values / temperature
        soft = temperature * weighted.masked_fill(~action_mask, -torch.inf).logsumexp(1)
        return torch.where(has_advice(next_advice) & (self.strength > 0), soft, value)


def smoothed(advice: Tensor, action_mask: Tensor) -> Tensor:
    """Return the tutor's distribution mixed with the uniform one, (B, A)."""
    return (1 - SMOOTHING) * advice + SMOOTHING * action_mask / action_mask.sum(1, keepdim=True)
