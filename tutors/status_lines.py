"""What a program waits for, in lines for a file or a pipe."""

import re
import time
from collections.abc import Callable

SECONDS_BETWEEN = 30.0  # of lines that differ in their numbers alone


class StatusLines:
    """Writes what is waited for, and writes it again, with new numbers, at most every 30 seconds.

    Args:
        write: writes one line.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write
        self.words = ""  # of the last line
        self.written_at = 0.0

    def __call__(self, line: str) -> None:
        words, now = re.sub(r"\d+", "", line), time.monotonic()
        if line and (words != self.words or now - self.written_at >= SECONDS_BETWEEN):
            self.words, self.written_at = words, now
            self.write(line)
