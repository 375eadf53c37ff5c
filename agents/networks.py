"""The students' networks."""

import itertools
import math

import torch
from torch import nn


def make_network(obs_shape: tuple[int, ...], hidden: tuple[int, ...], outputs: int, seed: int) -> nn.Sequential:
    """Return a multi-layer perceptron from observations (N, *obs_shape) to (N, outputs), on the CPU.

    Orthogonal weights of gain sqrt(2), and of gain 0.01 in the last layer, so that it begins
    without a preference (Andrychowicz et al. 2020, arXiv:2006.05990, section 3.2).
    """
    chance = torch.Generator().manual_seed(seed)
    sizes = (math.prod(obs_shape), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, units in itertools.pairwise(sizes):
        layers += [linear(inputs, units, math.sqrt(2), chance), nn.ReLU()]
    return nn.Sequential(*layers, linear(sizes[-1], outputs, 0.01, chance))


def linear(inputs: int, outputs: int, gain: float, chance: torch.Generator) -> nn.Linear:
    """Return a linear layer with orthogonal weights and no bias to begin with."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)  # its own weights would use up everybody's chance
    nn.init.orthogonal_(layer.weight, gain, generator=chance)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move the target's weights a share `tau` of the way to the source's."""
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        ours.lerp_(theirs, tau)
