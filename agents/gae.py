"""Advantages and returns of a rollout, as pure functions of tensors."""

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminations: Tensor,
    truncations: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Return (advantages, returns), both (T, N).

    All inputs are (T, N); `next_values[t]` is V(final_obs[t]), the value of where action t led *before* any
    reset. A termination has no future, so its next value is dropped. A truncation has one, so its next value is
    kept, but the sum still stops there: the row below is another episode.

    A_t = delta_t + c_t A_{t+1} is solved by doubling: after k rounds a row holds the sum of its first 2^k
    terms, so T = 128 takes seven rounds over the whole rollout where a loop takes 128 small steps.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    assert rewards.shape == values.shape == next_values.shape == terminations.shape, "all inputs are (T, N)"
    advantages = rewards + gamma * next_values * ~terminations - values
    carry = gamma * gae_lambda * (~(terminations | truncations)).float()
    reach = 1
    while reach < len(rewards):
        zeros = torch.zeros_like(carry[:reach])
        advantages = advantages + carry * torch.cat([advantages[reach:], zeros])
        carry = carry * torch.cat([carry[reach:], zeros])
        reach *= 2
    return advantages, advantages + values


def normalize(advantages: Tensor, mean: Tensor, square: Tensor, floor: float) -> Tensor:
    """Return advantages of mean 0 and standard deviation 1, unless that is below `floor`: then they stay small.

    Args:
        advantages: any shape.
        mean: their mean, 0-d.
        square: the mean of their squares, 0-d.
        floor: the least number that they are divided by.
    """
    std = (square - mean * mean).clamp(min=0).sqrt()
    return (advantages - mean) / std.clamp(min=floor)
