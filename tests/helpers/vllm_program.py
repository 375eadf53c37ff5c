"""A program that plays `vllm`: it serves as the scripted server does, in a process of its own."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tutors.llm import server

PROGRAM = """\
#!{python}
import os, sys, threading
sys.path.insert(0, {root!r})
from tests.helpers.scripted_server import serving
print("loading", flush=True)
if {broken}:
    sys.exit("OSError: no weights for " + sys.argv[2])
with serving(int(sys.argv[sys.argv.index("--port") + 1])) as server:
    open({pid!r}, "w").write(str(os.getpid()))
    threading.Event().wait()
"""


def install_vllm(folder: Path, monkeypatch: pytest.MonkeyPatch, broken: bool) -> Path:
    """Put a `vllm` on the PATH that serves from a script; return where it writes its process id."""
    program, pid = folder / "vllm", folder / "pid"
    text = PROGRAM.format(python=sys.executable, root=str(ROOT), broken=broken, pid=str(pid))
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(server, "REPOSITORY", folder)
    return pid


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Wait until a condition holds; whether it does in time."""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        if condition():
            return True
        time.sleep(0.05)
    return False
