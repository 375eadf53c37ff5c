"""Random numbers as a pure function of where they are used: (seed, stream, game, step, column).

A counter-based generator has no state. Game i draws the same numbers for every number of games, every
sharding and every device, a checkpoint has nothing to save, and a compiler sees plain arithmetic.

The mixer is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195). Int64
products wrap around in PyTorch on every device, which is what the mixer needs.
"""

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 2**64 / golden ratio, as a signed number
MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)

GAMES, EXPLORATION, SAMPLING, ADVISING, GUIDING = range(5)  # the streams of one run


def splitmix64(x: Tensor) -> Tensor:
    """Scramble int64 numbers one to one: every input bit moves about half of the output bits."""
    x = (x ^ shift_right(x, 30)) * MULTIPLIERS[0]
    x = (x ^ shift_right(x, 27)) * MULTIPLIERS[1]
    return x ^ shift_right(x, 31)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int64 numbers right and fill with zeros, where `>>` would fill with the sign."""
    return x >> bits & (1 << 64 - bits) - 1


class CounterRNG:
    """A stream of uniform numbers for each game; two streams of one seed are independent.

    Args:
        seed: of the run.
        games: (N,) int64, the games' ids, which stay the same however the games are split over devices.
        stream: which of the run's streams.
    """

    def __init__(self, seed: int, games: Tensor, stream: int) -> None:
        origin = splitmix64(splitmix64(torch.tensor(seed, device=games.device) + GOLDEN) + stream)
        self.base = splitmix64(origin + games * GOLDEN)

    def uniform(self, step: Tensor | int, columns: int) -> Tensor:
        """Return (N, columns) float32 in [0, 1), multiples of 2**-24. `step` is a number or a 0-d int64."""
        place = splitmix64(torch.as_tensor(step, device=self.base.device) + GOLDEN)
        places = splitmix64(place + torch.arange(columns, device=self.base.device))
        return bits_to_uniform(splitmix64(self.base + places[:, None])).T


def bits_to_uniform(bits: Tensor) -> Tensor:
    """Return the top 24 bits of mixed int64 numbers as float32 in [0, 1)."""
    return shift_right(bits, 40).float() * 2.0**-24


def sample_legal(allowed: Tensor, u: Tensor) -> Tensor:
    """Choose one of the allowed columns of each row, all equally likely; 0 where none is.

    Args:
        allowed: (N, A) bool.
        luck: (N,) in [0, 1).

    Returns:
        (N,) int64.
    """
    wanted = (u * allowed.sum(1)).long()
    rank, column = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for one in allowed.unbind(1):  # no cumsum: a compiler makes one loop over N of this
        rank = rank + one
        column = column + (rank <= wanted)
    return column * (rank > 0)
