"""Policies as pure functions of tensors: masking, choosing, sampling, entropy."""

from typing import NamedTuple

import torch
from torch import Tensor

MASKED_LOGIT = -1e9  # an illegal action's logit: its probability is 0, and 0 * log 0 is 0 too
TEMPERATURE = 0.1  # of the softmax over action values: a tenth of the largest return of Connect Four or Blackjack


class Decision(NamedTuple):
    """What the student would do on its own in N env copies, and how it values them."""

    action: Tensor  # (N,) int64, legal, with exploration
    greedy: Tensor  # (N,) int64, legal, without exploration
    scores: Tensor  # (N, A) float32: a policy's log-probabilities, or action values
    value: Tensor  # (N,) float32: the state's value


def masked_argmax(values: Tensor, action_mask: Tensor) -> Tensor:
    """Return the legal action of the largest value, (N,) int64 for two (N, A) tensors."""
    return values.masked_fill(~action_mask, -torch.inf).argmax(1)


def gather_action(scores: Tensor, action: Tensor) -> Tensor:
    """Return each row's score of its action, (N,) for (N, A) and (N,)."""
    assert action.shape == scores.shape[:1], "one action a row"
    return scores.gather(1, action[:, None])[:, 0]


def masked_log_softmax(logits: Tensor, action_mask: Tensor) -> Tensor:
    """Return the log-probabilities of a policy over the legal actions, (N, A)."""
    return logits.masked_fill(~action_mask, MASKED_LOGIT).log_softmax(1)


def sample_action(log_probs: Tensor, action_mask: Tensor, u: Tensor) -> Tensor:
    """Sample a legal action from each row's policy, (N,) int64; `u` is (N, A) in [0, 1).

    The largest of log p + g with Gumbel noise g = -log(-log u) falls on an action with its probability p.
    """
    noise = -(-(u + 2.0**-25).clamp(max=1 - 2.0**-24).log()).log()  # finite at both ends
    return masked_argmax(log_probs + noise, action_mask)


def entropy(log_probs: Tensor) -> Tensor:
    """Return each row's entropy in nats, (N,) for log-probabilities (N, A)."""
    return -(log_probs.exp() * log_probs).sum(1)


def normalized_entropy(probs: Tensor, action_mask: Tensor) -> Tensor:
    """Return each row's entropy as a share of the largest that its legal actions allow, (N,) in [0, 1].

    It is 0 where only one action is legal.
    """
    return torch.special.entr(probs).sum(1) / action_mask.sum(1).clamp(min=2).log()


def action_probs(scores: Tensor, action_mask: Tensor, has_policy: bool) -> Tensor:
    """Return a decision's scores as probabilities, (N, A): the policy's own, or softmax(values / TEMPERATURE)."""
    return scores.exp() if has_policy else (scores / TEMPERATURE).masked_fill(~action_mask, -torch.inf).softmax(1)
