"""The generators that a process shares, for code from elsewhere that draws from them: NumPy's, Python's and PyTorch's.

An env that draws from `np.random` or `random` is determined by no seed of its own, and its copies share what they draw
from. So before each call of a copy these generators are seeded, by the copy and the time step; after the calls they are
what they were.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

GLOBAL: Any = np.random  # its type stubs lack two functions
OWN = np.random.MT19937(0)  # in place of the process's own; to make one takes as long as ten steps of CartPole
MIXED = 0x9E3779B1  # odd: the seeds of 2**32 successive time steps differ
OTHER = 0x5DEECE66  # so that Python's generator does not repeat NumPy's


@contextmanager
def own_generators() -> Iterator[Callable[[int, int], None]]:
    """Yield a function that seeds the process's generators for a copy's seed and a time step, within the block."""
    numpys, python, pytorch = GLOBAL.get_bit_generator(), random.getstate(), torch.get_rng_state()
    GLOBAL.set_bit_generator(OWN)

    def seed(copy_seed: int, time_step: int) -> None:
        mixed = (copy_seed + time_step * MIXED) % (1 << 32)
        np.random.seed(mixed)
        random.seed(mixed ^ OTHER)
        torch.default_generator.manual_seed(mixed)

    try:
        yield seed
    finally:
        GLOBAL.set_bit_generator(numpys)
        random.setstate(python)
        torch.set_rng_state(pytorch)
