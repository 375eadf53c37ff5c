"""Standard output for a program's own events: what envs, libraries and child processes print goes to standard error."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from training.interrupts import Output

streams: list[TextIO] = []  # the one of the innermost block comes last


def emit(line: str) -> None:
    """Print a line of the program's own to standard output."""
    print(line, file=streams[-1] if streams else sys.stdout, flush=True)


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Within the block, let nothing but `emit` reach standard output.

    Raises:
        OSError: at the end of the block, where a line could not be written.
    """
    before = sys.stdout
    before.flush()
    kept = os.dup(1) if is_descriptor_1(before) else None  # a replaced one, as in a test, has no descriptor to keep
    own = Output(before if kept is None else os.fdopen(os.dup(kept), "w", encoding=before.encoding))
    if kept is not None:
        os.dup2(2, 1)
    streams.append(cast("TextIO", own))
    sys.stdout = sys.stderr
    try:
        yield
        if own.failure is not None:
            raise OSError(own.failure.errno, own.failure.strerror, "the output")
    finally:
        sys.stdout = before
        streams.pop()
        if kept is not None:
            own.stream.close()
            os.dup2(kept, 1)
            os.close(kept)


def is_descriptor_1(stream: TextIO) -> bool:
    """Return whether a stream writes to the process's standard output."""
    try:
        return stream.fileno() == 1
    except (OSError, AttributeError, ValueError):
        return False
