"""Programs as processes of their own: started as a terminal starts them, signalled, and gone with all they started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT

TIMEOUT_S = 120.0  # for anything to happen on a busy machine


def parents() -> dict[int, int]:
    """The parent of each process that is not a zombie."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if state != "Z":
            found[int(file.parent.name)] = int(parent)
    return found


def family(root: int) -> set[int]:
    """A process and all its descendants."""
    found, known = {root}, parents()
    while more := {one for one, parent in known.items() if parent in found} - found:
        found |= more
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, and fail if it does not come true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def default_sigint() -> Iterator[None]:
    """Processes started here react to SIGINT: those that a shell starts in the background do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m ARGUMENTS` in a process group of its own; nothing of it is left behind."""
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with default_sigint():
        process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, **quiet)
    ours = {process.pid}
    try:
        yield process
    finally:
        ours |= family(process.pid)
        for one in ours & set(parents()):
            os.kill(one, signal.SIGKILL)
        process.wait()


def stop(process: subprocess.Popen[bytes], number: int) -> int:
    """Press Ctrl-C, or send a program another signal, and return its exit code when all its processes are gone."""
    ours = family(process.pid)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    code = process.wait(TIMEOUT_S)
    until(lambda: not ours & set(parents()))
    return code
