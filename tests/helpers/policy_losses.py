"""Policies, batches and what a policy gradient is made of, worked out row by row in Python floats."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from agents.rollout_buffer import Batch


class FixedNetwork(nn.Module):
    """An actor-critic whose outputs are its parameters; it notes the extra inputs that it was given."""

    def __init__(self, logits: Tensor, value: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.value = nn.Parameter(value)
        self.extra_inputs: Tensor | None = None

    def forward(self, obs: Tensor, extra_inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.extra_inputs = extra_inputs
        return self.logits, self.value


def random_batch(rows: int = 200, actions: int = 5, seed: int = 0) -> tuple[FixedNetwork, Batch]:
    """Return policies near and far from those that acted, about half of the actions illegal, advantages of both signs.

    The last two rows in five have no advice; half of the others were followed.
    """
    draw = partial(torch.rand, generator=torch.Generator().manual_seed(seed))
    action_mask = draw(rows, actions) < 0.4
    action = (draw(rows) * actions).long()
    action_mask[torch.arange(rows), action] = True
    network = FixedNetwork(draw(rows, actions) * 4 - 2, draw(rows) * 2 - 1)
    acted = log_probs_by_definition(network.logits.tolist(), action_mask.tolist())
    log_prob = torch.tensor([row[at] for row, at in zip(acted, action.tolist(), strict=True)])
    log_prob += (draw(rows) - 0.5) * 1.2
    advantage, returns = draw(rows) * 4 - 2, draw(rows) * 4 - 2
    has_advice = (torch.arange(rows) % 5 < 3)[:, None]
    advice = draw(rows, actions) * action_mask
    advice = advice / advice.sum(1, keepdim=True) * has_advice
    followed = has_advice[:, 0] & (draw(rows) < 0.5)
    bonus = draw(rows)
    batch = Batch(torch.zeros(rows, 1), action_mask, action, log_prob, advantage, returns, advice, followed, bonus)
    return network, batch


def log_probs_by_definition(logits: list[list[float]], action_mask: list[list[bool]]) -> list[list[float]]:
    """Return log(e^z / the sum of e^z over legal actions); -inf for illegal ones."""
    rows = []
    for numbers, legal in zip(logits, action_mask, strict=True):
        total = math.fsum(math.exp(number) for number, one in zip(numbers, legal, strict=True) if one)
        rows.append(
            [number - math.log(total) if one else -math.inf for number, one in zip(numbers, legal, strict=True)]
        )
    return rows


def entropy_by_definition(log_probs: list[float]) -> float:
    return -math.fsum(math.exp(one) * one for one in log_probs if one > -math.inf)


def terms_by_definition(network: FixedNetwork, batch: Batch) -> list[tuple[float, float, float, float, float]]:
    """Return for each row: log pi(a), the ratio, the advantage, half the value's squared error, the entropy."""
    policies = log_probs_by_definition(network.logits.tolist(), batch.action_mask.tolist())
    rows = []
    for row, policy in enumerate(policies):
        log_prob = policy[batch.action[row].item()]
        ratio = math.exp(log_prob) / math.exp(batch.log_prob[row].item())
        error = (network.value[row].item() - batch.returns[row].item()) ** 2 / 2
        rows.append((log_prob, ratio, batch.advantage[row].item(), error, entropy_by_definition(policy)))
    return rows


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)
