"""Programs that are stopped from outside: interrupted while they are imported, or with nobody to read their output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.programs import SMALL
from training.checkpoint import newest_step

pytestmark = pytest.mark.process
PROGRAMS = ("train.py", "evaluate.py", "-m experiments", "-m tutors", "-m tutors.tiny", "-m benchmarks")
INTERRUPTING_TORCH = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(20)"


@pytest.mark.parametrize("name", PROGRAMS)
def test_interrupt_during_imports_is_no_traceback(name: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(INTERRUPTING_TORCH)
    done = subprocess.run(
        [sys.executable, *name.split(), "--help"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


def piped(command: str, reader: str) -> tuple[int, str, str]:
    """Run a program into a pipe, and return its exit code, what the reader printed, and the errors of both."""
    both = f'set -o pipefail; {sys.executable} {command} | {reader}; echo "code ${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", both], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    out, _, code = done.stdout.rpartition("code ")
    return int(code), out, done.stderr


def test_run_into_a_closed_pipe_is_saved(tmp_path: Path) -> None:
    flags = [*SMALL, "--total-steps", "1000000", "--run-dir", str(tmp_path / "run"), "--log-every", "64"]
    code, out, errors = piped(f"train.py {' '.join(flags)}", "grep -m1 ^step")  # which leaves in mid-run
    assert code == 143
    assert out.startswith("step")
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
    assert 0 < newest_step(tmp_path / "run" / "checkpoints") < 1_000_000


@pytest.mark.parametrize("command", ["train.py --help-all", "-m tutors store info STORE", "-m experiments --help"])
def test_other_output_into_a_closed_pipe_ends_quietly(command: str) -> None:
    store = ROOT / "tests/golden/v0.7.0/advice.sqlite"
    code, _, errors = piped(command.replace("STORE", str(store)), "true")
    assert (code, errors) == (143, "")
