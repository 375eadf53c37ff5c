"""A circuit breaker: stop asking a server that fails, and look now and then whether it is back.

Source of the idea: Nygard, Release It!, 2007, section 5.2.
"""

import time
from collections.abc import Callable

OPENS_AFTER = 5  # failures in a row
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between two looks


class Breaker:
    """Closed: questions go out. Open: none do, until a look at the server finds it well."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.failures = 0
        self.wait = FIRST_WAIT
        self.look_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether questions must not go out."""
        return self.failures >= OPENS_AFTER

    @property
    def wants_a_look(self) -> bool:
        """Whether it is time to see if the server is back."""
        return self.is_open and self.clock() >= self.look_at

    def failed(self) -> None:
        """Take note of a question, or of a look, that failed."""
        if self.is_open:
            self.wait = min(2 * self.wait, LONGEST_WAIT)
        self.failures += 1
        self.look_at = self.clock() + self.wait

    def worked(self) -> None:
        """Take note of an answer."""
        self.failures, self.wait = 0, FIRST_WAIT

    def recovered(self) -> None:
        """Take note of a look that found the server well: one more failure opens the breaker again."""
        self.failures = OPENS_AFTER - 1
