"""The timing of repeated work: standard library only, since the other programs' environment imports it too."""

import time
from collections.abc import Callable

CALLS_BETWEEN_WAITS = 8  # a device is given work ahead, but not without bound


def nothing_to_wait_for() -> None:
    """Return at once, as a CPU does nothing after its call has returned."""


def rate(
    work: Callable[[], object], size: int, seconds: float, wait: Callable[[], None] = nothing_to_wait_for
) -> float:
    """Return `size` times calls of `work` a second, over at least `seconds` after two calls that warm it up.

    Args:
        size: what one call counts for, such as env steps.
        wait: returns when the device has done what it was given.
    """
    work()
    work()
    wait()
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work()
        calls += 1
        if calls % CALLS_BETWEEN_WAITS == 0:
            wait()
    wait()
    return calls * size / (time.perf_counter() - began)
