"""Commands of `python -m tutors`, called in this process, since a new one takes seconds to start."""

import io
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest

from tutors.__main__ import main


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def tutors(*args: str) -> Done:
    """Run `python -m tutors` with these arguments."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        patch.setattr(sys, "argv", ["tutors", *args])
        patch.setattr(signal, "signal", lambda *_: None)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        for stream in streams:
            stream.flush()
    return Done(code, *(stream.buffer.getvalue().decode() for stream in streams))
