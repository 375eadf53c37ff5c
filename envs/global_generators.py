"""The generators that a process shares, for code from elsewhere that draws from them: NumPy's, Python's and PyTorch's.

An env that draws from `np.random` or `random` is determined by no seed of its own, and its copies share what they draw
from. So before each call of a copy these generators are seeded, by the copy and the time step; after the calls they are
what they were.

That takes longer than a step of CartPole, and most envs have generators of their own. So an env's first calls are
watched: if none of them draws, its copies are no longer seeded one by one, until one does.
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
WATCHED_CALLS = 4096  # of an env's copies: 0.2 seconds
PYTHON_STATE = random.Random(0).getstate()
PYTORCH_STATE = torch.Generator().manual_seed(0).get_state()

Draws = tuple[float, float, int]


class GlobalGenerators:
    """The process's generators as one env's copies are to see them."""

    def __init__(self) -> None:
        self.calls = 0  # that were watched
        self.are_used = False  # whether a call has drawn from them
        self.expected: Draws | None = None  # what is drawn next if the current call draws nothing

    @contextmanager
    def own(self) -> Iterator[Callable[[int, int], None]]:
        """Yield a function to be called before each call of a copy, within the block, with its seed and time step.

        The first draw of an env that drew nothing in its first calls is determined by its seed, but not by its copy.
        """
        numpys, python, pytorch = GLOBAL.get_bit_generator(), random.getstate(), torch.get_rng_state()
        GLOBAL.set_bit_generator(OWN)
        try:
            if self.are_used or self.calls < WATCHED_CALLS:
                yield self._seed
            else:
                np.random.seed(0)
                random.setstate(PYTHON_STATE)
                torch.set_rng_state(PYTORCH_STATE)
                self.expected = UNTOUCHED
                yield nothing
            self._look()
        finally:
            GLOBAL.set_bit_generator(numpys)
            random.setstate(python)
            torch.set_rng_state(pytorch)

    def _seed(self, copy_seed: int, time_step: int) -> None:
        mixed = (copy_seed + time_step * MIXED) % (1 << 32)
        self._look()
        if not self.are_used:
            seed_all(mixed)
            self.expected = draw()
            self.calls += 1
        seed_all(mixed)

    def _look(self) -> None:
        """Find out whether the last call drew something."""
        self.are_used |= self.expected is not None and draw() != self.expected
        self.expected = None


def nothing(copy_seed: int, time_step: int) -> None:
    """Seed nothing: these generators are not drawn from."""


def seed_all(seed: int) -> None:
    """Seed the process's generators."""
    np.random.seed(seed)
    random.seed(seed ^ OTHER)
    torch.default_generator.manual_seed(seed)


def draw() -> Draws:
    """Draw from each of the process's generators."""
    return np.random.random(), random.random(), int(torch.empty((), dtype=torch.int64).random_())


UNTOUCHED: Draws = (  # what is drawn first after the states above
    *(np.random.RandomState(0).random_sample(), random.Random(0).random()),
    int(torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(0))),
)
