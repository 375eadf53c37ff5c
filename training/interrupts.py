"""How a program ends that is stopped from outside: Ctrl-C while it is imported, or output that goes nowhere."""

import logging
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
    """A standard stream. When its reader has closed the pipe, the program is stopped as by SIGTERM, once: it saves.

    Where it cannot be written for another reason, as on a full disk, the program goes on without it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None  # why output was lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or stop the program."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self.stop()
        except OSError as error:
            self.lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or stop the program."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self.stop()
        except OSError as error:
            self.lose(error)

    def stop(self) -> None:
        """Drop all further output and send this process SIGTERM."""
        self.drop()
        signal.raise_signal(signal.SIGTERM)

    def lose(self, error: OSError) -> None:
        """Drop all further output and say so."""
        self.drop()
        self.failure = error
        logging.getLogger(__name__).warning("the output cannot be written, the program goes on: %s", error.strerror)

    def drop(self) -> None:
        """Let what the stream still holds, and all further output, go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)


@contextmanager
def stopped_by_closed_pipes() -> Iterator[None]:
    """Within the block, a closed pipe at a standard stream stops the program as SIGTERM does.

    Raises:
        OSError: at the end of the block, where standard output was lost for another reason.
    """
    streams = sys.stdout, sys.stderr
    output = Output(sys.stdout)
    sys.stdout, sys.stderr = (cast("TextIO", one) for one in (output, Output(sys.stderr)))
    try:
        try:
            yield
        finally:
            output.flush()
        if output.failure is not None:
            raise OSError(output.failure.errno, output.failure.strerror, "the output")
    finally:
        sys.stdout, sys.stderr = streams
