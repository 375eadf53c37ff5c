"""Our programs as a user calls them, born from one process that has imported PyTorch: most of a small run is that."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.helpers.paths import ROOT

BIRTHS = multiprocessing.get_context("forkserver")
BIRTHS.set_forkserver_preload(
    ["train", "evaluate", *(f"experiments.{name}" for name in ("demo", "plot", "report", "runner", "search"))]
)
# flags of a run of some seconds
SMALL = ("--total-steps", "4000", "--num-envs", "64", "--eval-every", "2000", "--eval-episodes", "64",
         "--log-every", "640", "--learning-starts", "640", "--hidden", "32")  # fmt: skip
SECONDS = 240.0  # that a program may take


def program(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Call one of our programs, and return what it printed and its exit code."""
    with TemporaryDirectory() as folder:
        printed = [Path(folder) / "out", Path(folder) / "err"]
        child = BIRTHS.Process(target=be, args=([name, *flags], dict(os.environ), printed))
        child.start()
        child.join(SECONDS)
        child.kill()
        child.join()
        assert child.exitcode is not None
        return subprocess.CompletedProcess([name, *flags], child.exitcode, *[file.read_text() for file in printed])


def be(words: list[str], environ: dict[str, str], printed: list[Path]) -> None:
    """Be a program: its words, its surroundings, and files for what it prints."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environ)
    for stream, file in enumerate(printed, start=1):
        with file.open("w") as opened:
            os.dup2(opened.fileno(), stream)
    sys.argv = words
    if words[0].endswith(".py"):
        runpy.run_path(words[0], run_name="__main__")
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
