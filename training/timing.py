"""Where a run's time goes."""

import time
from collections.abc import Callable
from typing import Any


def untimed(part: str, work: Callable[..., Any], *args: Any) -> Any:
    """Do the work, as a stopwatch does, where no clock can be read."""
    return work(*args)


def without_waiting() -> None:
    """Return at once."""


class Stopwatch:
    """How the time divides between named parts of the work.

    On a GPU a part's time is that of launching it, unless `wait` is set to what waits for the device.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.wait: Callable[[], None] = without_waiting

    def __call__(self, part: str, work: Callable[..., Any], *args: Any) -> Any:
        """Do the work and count its time as `part`'s."""
        began = time.perf_counter()
        result = work(*args)
        self.wait()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began
        return result

    def shares(self) -> dict[str, float]:
        """Return each part's share since the last call, as TensorBoard tags."""
        total = sum(self.seconds.values()) or 1.0
        shares = {f"time/{part}": seconds / total for part, seconds in self.seconds.items()}
        self.seconds.clear()
        return shares
