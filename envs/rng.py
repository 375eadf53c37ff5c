"""Random numbers as a pure function of (seed, stream, env id, step, column).

A counter-based generator has no state: env copy i draws the same numbers for every number of copies, every sharding
and every device, a checkpoint has nothing to save, and a compiler sees plain arithmetic.

The mixer is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195). Int64
products wrap around in PyTorch on every device, which is what the mixer needs.
"""

from typing import Any

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 2**64 / golden ratio, as a signed number
WORD = (1 << 64) - 1
MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)

# The independent streams of one run. Their numbers must not change: they decide every random number of a run.
ENV_STREAM = 0  # resets and steps of the environments
EXPLORATION_STREAM = 1  # the student's actions
SAMPLING_STREAM = 2  # rows of the replay buffer, order of minibatches
QUERY_STREAM = 3  # whether the tutor is consulted
GUIDANCE_STREAM = 4  # what a guidance method draws
PROBE_STREAM = 5  # the student's actions in probe episodes
PRETRAINING_STREAM = 6  # rows of the demonstrations that it is pretrained on


def splitmix64(x: Tensor) -> Tensor:
    """Scramble int64 numbers one to one: every input bit flips about half of the output bits."""
    x = (x ^ shift_right(x, 30)) * MULTIPLIERS[0]
    x = (x ^ shift_right(x, 27)) * MULTIPLIERS[1]
    return x ^ shift_right(x, 31)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int64 numbers right and fill with zeros, where `>>` would fill with the sign."""
    return x >> bits & (1 << 64 - bits) - 1


class CounterRNG:
    """A stream of uniform numbers for each env copy; two streams of one seed are independent.

    Args:
        seed: of the run.
        env_ids: (N,) int64, which stay the same however the copies are split over devices.
        stream: which of the run's streams.
    """

    def __init__(self, seed: int, env_ids: Tensor, stream: int) -> None:
        origin = splitmix64(splitmix64(torch.tensor(seed, device=env_ids.device) + GOLDEN) + stream)
        self.base = splitmix64(origin + env_ids * GOLDEN)

    def uniform(self, step: Tensor | int, columns: int) -> Tensor:
        """Return (N, columns) float32 in [0, 1), multiples of 2**-24. `step` is a number or a 0-d int64."""
        device = self.base.device
        if can_read(device):  # which saves half of the time
            number: Any = step if isinstance(step, int) else step.tolist()
            keys = torch.tensor(column_keys(number, columns), dtype=torch.int64)
        else:
            step_key = splitmix64(torch.as_tensor(step, device=device) + GOLDEN)
            keys = splitmix64(step_key + torch.arange(columns, device=device))
        return bits_to_uniform(splitmix64(self.base + keys[:, None])).T


def can_read(device: torch.device) -> bool:
    """Return whether Python may read values of a tensor: nobody waits for a CPU, but a compiler has no values yet."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def column_keys(step: int, columns: int) -> list[int]:
    """Return the keys of a step's columns, by Python's arithmetic."""
    step_key = splitmix64_of(step + GOLDEN)
    return [splitmix64_of(step_key + column) for column in range(columns)]


def splitmix64_of(x: int) -> int:
    """Scramble one number as `splitmix64` does."""
    x &= WORD
    x = (x ^ x >> 30) * MULTIPLIERS[0] & WORD
    x = (x ^ x >> 27) * MULTIPLIERS[1] & WORD
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x


def bits_to_uniform(bits: Tensor) -> Tensor:
    """Return the top 24 bits of mixed int64 numbers as float32 in [0, 1)."""
    return shift_right(bits, 40).float() * 2.0**-24


def sample_legal(action_mask: Tensor, u: Tensor) -> Tensor:
    """Sample one legal action per row, all equally likely; 0 where no action is legal.

    Args:
        action_mask: (N, A) bool.
        u: (N,) uniforms in [0, 1).

    Returns:
        (N,) int64.
    """
    wanted = (u * action_mask.sum(1)).long()
    rank, action = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for is_legal in action_mask.unbind(1):  # no cumsum: a compiler makes one loop over N of this
        rank = rank + is_legal
        action = action + (rank <= wanted)
    return action * (rank > 0)
