"""The generators that a process shares, for code from elsewhere that draws from them: NumPy's, Python's and PyTorch's.

An env that draws from `np.random` or `random` is determined by no seed of its own, and its copies share what they draw
from. So before each call of a copy these generators are seeded, by the copy and the time step; after the calls they are
what they were.

That takes longer than a step of CartPole, and most envs have generators of their own. So an env's first calls are
watched: if none of them draws, its copies are no longer seeded one by one, until one does.
"""

import ctypes
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

GLOBAL: Any = np.random  # its type stubs lack two functions
OWN = np.random.MT19937(0)  # in place of the process's own; to make one takes as long as ten steps of CartPole
PYTHONS: Any = random.random.__self__  # type: ignore[attr-defined]  # the generator behind the functions of `random`
HEADER = object.__basicsize__  # bytes of a Python object before its own
MIXED = 0x9E3779B1  # odd: the seeds of 2**32 successive time steps differ
OTHER = 0x5DEECE66  # so that Python's generator does not repeat NumPy's
WATCHED_CALLS = 4096  # of an env's copies: 0.2 seconds

# The numbers of two generators, where they lie: `getstate` and `setstate` take as long as three steps of CartPole.
NUMPY_NUMBERS = (ctypes.c_char * 2500).from_address(OWN.ctypes.state_address)  # 624 words and a position
PYTHON_NUMBERS = (ctypes.c_char * (random.Random.__mro__[1].__basicsize__ - HEADER)).from_address(id(PYTHONS) + HEADER)

Seeding = Callable[[int, int], None]  # to be called before a call of a copy, with the copy's seed and the time step
# The states of `OWN`, of Python's generator with the second of a pair of normal numbers if it is not drawn yet, and of
# PyTorch's.
Generators = tuple[bytes, bytes, float | None, Tensor]


class GlobalGenerators:
    """The process's generators as one env's copies are to see them."""

    def __init__(self) -> None:
        self.calls = 0  # that were watched
        self.are_used = False  # whether a call has drawn from them
        self.expected: Generators | None = None  # what they are if the current call draws nothing
        self.unseeded: Generators | None = None  # what all calls of a time step share once none is watched

    def own(self) -> "Own":
        """Return a context that holds a function to be called before each call of a copy, or None if none need be.

        The first draw of an env that drew nothing in its first calls is determined by its seed, but not by its copy.
        """
        return Own(self)

    def begin(self) -> Seeding | None:
        """Begin a block whose draws are the env's."""
        if self.are_used or self.calls < WATCHED_CALLS:
            return self._seed
        if self.unseeded is None:
            seed_all(0)
            self.unseeded = read()
        write(self.unseeded)
        self.expected = self.unseeded
        return None

    def look(self) -> None:
        """Find out whether the last call drew something."""
        self.are_used |= self.expected is not None and not equal(read(), self.expected)
        self.expected = None

    def _seed(self, copy_seed: int, time_step: int) -> None:
        self.look()
        seed_all((copy_seed + time_step * MIXED) % (1 << 32))
        if not self.are_used:
            self.expected = read()
            self.calls += 1


class Own:
    """A block in which the process's generators are an env's; a class, as the generator of a context takes longer."""

    def __init__(self, generators: GlobalGenerators) -> None:
        self.generators = generators

    def __enter__(self) -> Seeding | None:
        self.numpys, self.before = GLOBAL.get_bit_generator(), read()
        GLOBAL.set_bit_generator(OWN)
        return self.generators.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.generators.look()
        GLOBAL.set_bit_generator(self.numpys)
        write(self.before)


def read() -> Generators:
    """Return the current states."""
    return NUMPY_NUMBERS.raw, PYTHON_NUMBERS.raw, PYTHONS.gauss_next, torch.default_generator.get_state()


def write(states: Generators) -> None:
    """Go on from earlier states."""
    NUMPY_NUMBERS.raw, PYTHON_NUMBERS.raw, PYTHONS.gauss_next, pytorch = states
    torch.default_generator.set_state(pytorch)


def equal(states: Generators, others: Generators) -> bool:
    """Return whether these are the same states."""
    return states[:3] == others[:3] and torch.equal(states[3], others[3])


def seed_all(seed: int) -> None:
    """Seed the process's generators."""
    np.random.seed(seed)
    random.seed(seed ^ OTHER)
    torch.default_generator.manual_seed(seed)
