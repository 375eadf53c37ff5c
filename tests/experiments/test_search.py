"""Sweeps: whose runs are used again, and what a signal leaves of those at work."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.search import Curve, run_all
from tests.experiments.test_runner import stop, until
from tests.helpers.paths import ROOT


def test_a_run_is_used_again_where_all_flags_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Child:
        """A run that is done at once."""

        returncode = 0

        def __init__(self, command: list[str], **rest: Any) -> None:
            done.append(Path(command[-1]))
            done[-1].mkdir(parents=True)
            (done[-1] / "summary.json").touch()

        def communicate(self) -> tuple[str, str]:
            return "", ""

    done: list[Path] = []
    monkeypatch.setattr(subprocess, "Popen", Child)
    told = Curve(folder=tmp_path, jobs=1)
    jobs: list[tuple[dict[str, Any], int]] = [({}, 1), ({}, 2), ({"gamma": 0.9}, 1)]
    others = [{"flags": "--hidden 8"}, {"points": 5}, {"eval_episodes": 20}, {"total_steps": 1000}, {"env": "snake"}]
    for number, other in enumerate([{}, *others], 1):
        for _ in range(2):
            folders = run_all(replace(told, **other), jobs)
            assert len(set(done)) == len(done) == 3 * number
            assert folders == done[-3:]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_stopped_leaves_no_run_behind(number: int, code: int, tmp_path: Path) -> None:
    words = ["curve", "--algo", "ppo", "--total-steps", "100000000", "--points", "10000", "--eval-episodes", "10"]
    words += ["--seeds", "1", "2", "--jobs", "1", "--folder", str(tmp_path)]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    at_work = subprocess.Popen([sys.executable, "-m", "experiments.search", *words], cwd=ROOT, **quiet)
    until(lambda: len(list(tmp_path.glob("*/defaults/seed1/metrics.csv"))) == 1)
    assert stop(at_work, number) == code
    assert not list(tmp_path.glob("*/defaults/seed2"))
