"""How a program ends that is stopped from outside: Ctrl-C while it is imported, or a pipe that nobody reads."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO, cast


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the program at once, without a traceback, until `run_program`: importing PyTorch takes seconds."""
    signal.signal(signal.SIGINT, exit_at_once)


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """End this process; nothing is begun yet."""
    os.write(2, b"stopped\n")
    os._exit(128 + number)


class Output:
    """A standard stream. When its reader has closed the pipe, the program is stopped as by SIGTERM, once: it saves."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or stop the program."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self.stop()
            return len(text)

    def flush(self) -> None:
        """Flush, or stop the program."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self.stop()

    def stop(self) -> None:
        """Drop all further output and send this process SIGTERM."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def stopped_by_closed_pipes() -> Iterator[None]:
    """Within the block, a closed pipe at a standard stream stops the program as SIGTERM does."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", Output(one)) for one in streams)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = streams
