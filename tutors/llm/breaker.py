"""A circuit breaker: stop sending requests to a server that fails, and probe now and then whether it has recovered.

Source of the idea: Nygard, Release It!, 2007, section 5.2.
"""

import time
from collections.abc import Callable

MAX_FAILURES = 5  # in a row, until the breaker opens
MIN_PROBE_INTERVAL_S = 1.0
MAX_PROBE_INTERVAL_S = 60.0


class Breaker:
    """Closed: requests are sent. Open: none is, until a probe succeeds. The interval between probes doubles."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.failures = 0  # in a row
        self.probe_interval_s = MIN_PROBE_INTERVAL_S
        self.retry_at = 0.0  # on the clock: when an open breaker should be probed

    @property
    def is_open(self) -> bool:
        """Whether no request must be sent."""
        return self.failures >= MAX_FAILURES

    @property
    def should_probe(self) -> bool:
        """Whether it is time to probe if the server has recovered."""
        return self.is_open and self.clock() >= self.retry_at

    def record_failure(self) -> None:
        """Count a request, or a probe, that failed."""
        if self.is_open:
            self.probe_interval_s = min(2 * self.probe_interval_s, MAX_PROBE_INTERVAL_S)
        self.failures += 1
        self.retry_at = self.clock() + self.probe_interval_s

    def record_success(self) -> None:
        """Take note of a reply."""
        self.failures = 0
        self.probe_interval_s = MIN_PROBE_INTERVAL_S

    def open(self) -> None:
        """Open at once, whatever the number of failures; the next probe is after the interval."""
        self.failures = max(self.failures, MAX_FAILURES - 1)
        self.record_failure()

    def pause(self, seconds: float) -> None:
        """Open at once, and do not probe before `seconds` are over: the server asked for that."""
        self.open()
        self.retry_at = max(self.retry_at, self.clock() + seconds)

    def half_open(self) -> None:
        """Take note of a probe that succeeded: requests are sent, and one more failure opens the breaker again."""
        self.failures = MAX_FAILURES - 1
