"""How a run's time divides between its parts."""

import time
from collections.abc import Callable
from typing import Any


def untimed(section: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function as a SectionTimer does, where no clock can be read."""
    return function(*args)


class SectionTimer:
    """The seconds spent in each named section of the work.

    Args:
        wait: called after each section; one that waits for a GPU counts what the section took there, not its launch.
    """

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self.seconds: dict[str, float] = {}
        self.wait = wait

    def __call__(self, section: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function and add its time to a section."""
        began = time.perf_counter()
        result = function(*args)
        self.wait()
        self.seconds[section] = self.seconds.get(section, 0.0) + time.perf_counter() - began
        return result

    def shares(self) -> dict[str, float]:
        """Return each section's share of the time since the last call, as TensorBoard tags."""
        total = sum(self.seconds.values()) or 1.0
        shares = {f"time/{section}": seconds / total for section, seconds in self.seconds.items()}
        self.seconds.clear()
        return shares
