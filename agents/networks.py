"""The students' networks."""

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import torch
from annotated_types import Interval
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
CHANNELS = (16, 32)  # of the two convolutions
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
LARGE_CONVOLUTIONS = ((16, 8, 4), (32, 4, 2))  # channels, kernel and stride, for large pictures
MIN_PICTURE_SIZE = 36  # rows and columns of a large picture, of which those leave something
MIN_CNN_SIZE = 5  # rows and columns from which on convolutions are used


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a student's network."""

    network: Literal["auto", "mlp", "conv"] = "auto"  # auto: conv for observations of (channels, rows, columns)
    # units of each dense layer, at least 1; one dense layer follows the convolutions
    hidden: tuple[Annotated[int, Interval(le=2**16)], ...] = (256, 256)
    activation: Literal["relu", "tanh"] = "relu"  # of a dense network: tanh is bounded on states never visited
    bfloat16: bool = False  # products in bfloat16, weights and losses in float32

    def check(self, num_envs: int) -> None:
        """Raise ValueError for a config that cannot train on `num_envs` env copies."""
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden is {self.hidden}; there must be a layer, and each of at least 1 unit")


class Network(nn.Module):
    """A body and a linear head, from observations (N, *obs_shape) to (N, outputs) float32, made on the CPU.

    Orthogonal weights of gain sqrt(2), and of gain `gain` in the head: small, so that a policy begins without a
    preference (Andrychowicz et al. 2020, arXiv:2006.05990, section 3.2). Weights are drawn with `seed` and
    `part`: networks of one student that differ in `part` begin with different weights.

    `extra_inputs` is the number of inputs beside the observation, which join it at the first dense layer. Their weights
    begin at 0: without those inputs it computes the same as a network that has none.
    """

    def __init__(
        self,
        config: NetworkConfig,
        obs_shape: tuple[int, ...],
        outputs: int,
        seed: int,
        gain: float = 0.01,
        part: int = 0,
        extra_inputs: int = 0,
    ) -> None:
        super().__init__()
        generator = make_generator(seed, part)
        self.autocast = config.bfloat16
        self.uses_cnn = uses_cnn(config, obs_shape)
        if self.uses_cnn:
            self.body, width = cnn(obs_shape, config.hidden[0], generator), config.hidden[0]
        else:
            sizes = (math.prod(obs_shape), *config.hidden)
            self.body, width = mlp(sizes, ACTIVATIONS[config.activation], generator), config.hidden[-1]
        self.head = linear_layer(width, outputs, gain, generator)
        if extra_inputs:
            self.joint, first = next((at, one) for at, one in enumerate(self.body) if isinstance(one, nn.Linear))
            self.extra_inputs = nn.utils.skip_init(nn.Linear, extra_inputs, first.out_features, bias=False)
            nn.init.zeros_(self.extra_inputs.weight)

    def forward(self, obs: Tensor, extra_inputs: Tensor | None = None) -> Tensor:
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.head(self.features(obs, extra_inputs))
        return output.float()

    def features(self, obs: Tensor, extra_inputs: Tensor | None = None) -> Tensor:
        """Return the body's output (N, width) for observations and, if given, extra inputs (N, extra_inputs)."""
        if self.uses_cnn and obs.device.type == "cpu":  # the backward pass of a strided convolution: 24 ms, not 61
            obs = obs.contiguous(memory_format=torch.channels_last)
        for at, layer in enumerate(self.body):
            obs = layer(obs)
            if extra_inputs is not None and at == self.joint:
                obs = obs + self.extra_inputs(extra_inputs)
        return obs


class ActorCritic(nn.Module):
    """A policy and a value, from observations (N, *obs_shape) to logits (N, A) and values (N,), float32.

    Two dense networks that share nothing; or one of convolutions, which are expensive, with both heads.
    """

    def __init__(
        self, config: NetworkConfig, obs_shape: tuple[int, ...], num_actions: int, seed: int, extra_inputs: int = 0
    ) -> None:
        super().__init__()
        self.shared = uses_cnn(config, obs_shape)
        self.policy = Network(config, obs_shape, num_actions, seed, extra_inputs=extra_inputs)
        if self.shared:
            generator = make_generator(seed, 1)
            self.value: nn.Module = linear_layer(config.hidden[0], 1, 1.0, generator)
        else:
            self.value = Network(config, obs_shape, 1, seed, gain=1.0, part=1, extra_inputs=extra_inputs)

    def forward(self, obs: Tensor, extra_inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.shared:
            return self.policy(obs, extra_inputs), self.value(obs, extra_inputs)[:, 0]
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.policy.autocast):
            features = self.policy.features(obs, extra_inputs)
            logits, value = self.policy.head(features), self.value(features)[:, 0]
        return logits.float(), value.float()

    def get_value(self, obs: Tensor) -> Tensor:
        """Return the values alone, (N,)."""
        return self(obs)[1] if self.shared else self.value(obs)[:, 0]


def make_generator(seed: int, part: int) -> torch.Generator:
    """Return the generator of one network's weights; PyTorch's on the CPU uses the last 32 bits of a seed."""
    return torch.Generator().manual_seed((seed + part * 0x9E3779B1) % (1 << 32))


def uses_cnn(config: NetworkConfig, obs_shape: tuple[int, ...]) -> bool:
    """Return whether the network begins with convolutions."""
    if config.network == "auto":
        return len(obs_shape) == 3 and min(obs_shape[1:]) >= MIN_CNN_SIZE
    if config.network == "conv" and len(obs_shape) != 3:
        raise ValueError(f"--network conv requires observations of (channels, rows, columns), not of {obs_shape}")
    return config.network == "conv"


def mlp(sizes: tuple[int, ...], activation: type[nn.Module], generator: torch.Generator) -> nn.Sequential:
    """Return a multi-layer perceptron's hidden layers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, units in itertools.pairwise(sizes):
        layers += [linear_layer(inputs, units, math.sqrt(2), generator), activation()]
    return nn.Sequential(*layers)


def cnn(obs_shape: tuple[int, ...], units: int, generator: torch.Generator) -> nn.Sequential:
    """Return convolutions and a dense layer: two of 3 x 3, the second with stride 2; of large pictures those of DQN."""
    inputs, rows, columns = obs_shape
    if min(rows, columns) >= MIN_PICTURE_SIZE:
        return large_cnn(obs_shape, units, generator)
    first, second = CHANNELS
    cells = ((rows + 1) // 2) * ((columns + 1) // 2)
    return nn.Sequential(
        layer_init(nn.utils.skip_init(nn.Conv2d, inputs, first, 3, padding=1), math.sqrt(2), generator),
        nn.ReLU(),
        layer_init(nn.utils.skip_init(nn.Conv2d, first, second, 3, stride=2, padding=1), math.sqrt(2), generator),
        nn.ReLU(),
        nn.Flatten(),
        linear_layer(second * cells, units, math.sqrt(2), generator),
        nn.ReLU(),
    )


def large_cnn(obs_shape: tuple[int, ...], units: int, generator: torch.Generator) -> nn.Sequential:
    """Return the convolutions and the dense layer of DQN's first paper, with what is between them normalised.

    Source: Mnih et al. 2013, arXiv:1312.5602, section 4.1; LayerNorm as in Gallici et al. 2024, arXiv:2407.04811.
    Without it A2C named 56 % of the corners of tests/envs/test_odd_envs.py after 15 updates, and with it 90 %; three
    convolutions, as in DQN's second paper, 72 and 75 %.
    """
    inputs, *size = obs_shape
    layers: list[nn.Module] = []
    for channels, kernel, stride in LARGE_CONVOLUTIONS:
        conv = nn.utils.skip_init(nn.Conv2d, inputs, channels, kernel, stride)
        layers += [layer_init(conv, math.sqrt(2), generator), nn.ReLU()]
        inputs, size = channels, [(length - kernel) // stride + 1 for length in size]
    width = inputs * math.prod(size)
    layers += [nn.Flatten(), nn.LayerNorm(width, elementwise_affine=False)]
    return nn.Sequential(*layers, linear_layer(width, units, math.sqrt(2), generator), nn.ReLU())


def linear_layer(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer."""
    return layer_init(nn.utils.skip_init(nn.Linear, inputs, outputs), gain, generator)


def layer_init(layer: Layer, gain: float, generator: torch.Generator) -> Layer:
    """Initialize a layer, made without drawing from the global generator: orthogonal weights, zero bias."""
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, share: Tensor | float) -> None:
    """Move the target's weights a share of the way to the source's."""
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        ours.lerp_(theirs, share)
