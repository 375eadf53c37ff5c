"""Random cases with fixed seeds: the same in every run, more of them by night."""

import os
from collections.abc import Iterator
from random import Random

SCALE = int(os.environ.get("FUZZ_SCALE", "1"))  # times as many cases; `make soak` sets it


def cases(name: str, count: int) -> Iterator[Random]:
    """Yield a generator for each of `count` cases, times SCALE; a case is that of its name and number alone."""
    for number in range(count * SCALE):
        yield Random(f"{name} {number}")
