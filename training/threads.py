"""How many threads PyTorch takes on a CPU: all, unless one is found to be faster when a program starts.

PyTorch's threads wait for each other in loops. Beside other work that takes one of their cores, the same short run took
0.6 s with one thread and 16.5 s with two. What a run computes depends on the number in the last bits, so a run that is
resumed takes as many as before.
"""

import os
import time
from collections.abc import Callable
from statistics import median

import torch

ROUNDS = 5  # of the measurement, taking turns
STEPS = 20  # of the work, each some 100 us
SIZE = 256  # of its matrices: a dense layer, as students have


def choose_threads(work: Callable[[], object] | None = None) -> None:
    """Take one thread where all together are slower; OMP_NUM_THREADS, where it is set, decides instead.

    Args:
        work: what is timed.
    """
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    work = work or dense_layers
    seconds: dict[int, list[float]] = {1: [], most: []}
    for number in [1, most] * ROUNDS:
        torch.set_num_threads(number)
        began = time.perf_counter()
        work()
        seconds[number].append(time.perf_counter() - began)
    torch.set_num_threads(1 if median(seconds[1]) < median(seconds[most]) else most)


def dense_layers() -> None:
    """Do some of the work of a student."""
    weights = batch = torch.full((SIZE, SIZE), 1 / SIZE)
    for _ in range(STEPS):
        batch = torch.tanh(batch @ weights)


def threads_text() -> str:
    """Return how many threads were taken, as `2 threads`."""
    number = torch.get_num_threads()
    return "1 thread" if number == 1 else f"{number} threads"
