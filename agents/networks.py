"""The students' networks."""

import math

import torch
from torch import nn


def make_network(obs_shape: tuple[int, ...], hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Return a multi-layer perceptron from observations (N, *obs_shape) to (N, outputs).

    Orthogonal weights of gain sqrt(2), and of gain 0.01 in the last layer, so that it begins
    without a preference (Andrychowicz et al. 2020, arXiv:2006.05990, section 3.2).
    """
    sizes = (math.prod(obs_shape), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, units in zip(sizes, sizes[1:], strict=False):
        layers += [linear(inputs, units, math.sqrt(2)), nn.ReLU()]
    return nn.Sequential(*layers, linear(sizes[-1], outputs, 0.01))


def linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """Return a linear layer with orthogonal weights and no bias to begin with."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move the target's weights a share `tau` of the way to the source's."""
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        ours.lerp_(theirs, tau)
