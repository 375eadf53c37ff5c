"""How SIGINT and SIGTERM stop a run: at once where that loses nothing, else after the time step or the update."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

REPEAT_SECONDS = 0.5  # after a signal: another one is the same stop


class Interruption(KeyboardInterrupt):
    """Ends work that a signal may interrupt.

    No `except Exception` of a third party's env stops it, nor does an event loop, which passes on no other exception.
    """


class Stopped(SystemExit):
    """The program's end by a signal; a class of its own tells it from an env's `sys.exit`."""


def end_by_signal(number: int, frame: FrameType | None) -> None:
    """End the program with the exit code of a signal."""
    raise Stopped(128 + number)


class StopSignal:
    """Notes the first SIGINT or SIGTERM; a later one ends the program at once.

    What comes within half a second of the first is the same stop, told twice: Linux tells a process of its parent's
    death once for each thread of the parent, and `timeout` and a terminal signal whole groups of processes.

    Within a `with` statement of the main thread; elsewhere signals are left alone.

    Args:
        loss: returns what is lost if the program ends at once.
    """

    def __init__(self, loss: Callable[[], str] = str) -> None:
        self.loss = loss
        self.number = 0  # of the signal that came
        self.came_at = 0.0  # by the monotonic clock
        self.interrupts = False  # whether the next one ends what is being done
        self.handlers: dict[int, Any] = {}

    @contextmanager
    def interrupting(self, allowed: bool = True) -> Iterator[None]:
        """Let a signal end the block at once: for work that may take long and leaves nothing behind half-way.

        Where it is not `allowed`, a part of such a block ends first. In other threads nothing happens.

        Raises:
            Interruption: a signal came.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, self.interrupts = self.interrupts, allowed
        try:
            if allowed:
                self.check()
            yield
        finally:
            self.interrupts = before
        if before:
            self.check()

    def check(self) -> None:
        """Raise Interruption if a signal came."""
        if self.number:
            raise Interruption

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note the signal, or end the program."""
        if self.number:
            if time.monotonic() - self.came_at < REPEAT_SECONDS:
                return
            print(f"stopped at once; {self.loss()}", file=sys.stderr)
            end_by_signal(number, frame)
        self.number, self.came_at = number, time.monotonic()
        print("stopping, and saving; once more to stop at once, without", file=sys.stderr)
        if self.interrupts:
            self.interrupts = False
            raise Interruption
