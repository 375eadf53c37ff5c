"""The time to a score, of programs that print evaluations, and of ours."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.thresholds import THRESHOLDS, Outcome, Thresholds, median_seconds, seconds_to
from tests.helpers.peers import without_sb3
from tests.helpers.programs import program
from train import Config
from training.config import default_config


def printing(*lines: str, then: str = "") -> list[str]:
    """Return a command that prints lines, and then does something."""
    return [sys.executable, "-c", f"import time\nfor line in {lines!r}: print(line, flush=True)\n{then}"]


def evaluation(mean_return: float) -> str:
    return json.dumps({"event": "evaluation", "mean_return": mean_return})


def test_a_program_is_stopped_at_the_first_evaluation_that_reaches_the_score() -> None:
    lines = ("no JSON", json.dumps({"event": "note"}), evaluation(0.2), evaluation(0.5), evaluation(0.9))
    found = seconds_to(printing(*lines, then="time.sleep(60)"), 0.5, 30)
    assert found.seconds is not None
    assert found.seconds < 30
    assert found == Outcome(found.seconds, 0.5, None, False, found.cpu_seconds)


def test_a_program_that_goes_on_is_stopped_at_the_cap() -> None:
    found = seconds_to(printing(evaluation(0.2), then="time.sleep(60)"), 0.5, 2.0)
    assert found == Outcome(None, found.best, None, True, found.cpu_seconds)


def test_a_program_that_ends_below_the_score_has_no_time() -> None:
    found = seconds_to(printing(evaluation(-2.0), evaluation(-3.0)), 0.5, 30)
    assert found == Outcome(None, -2.0, None, False, found.cpu_seconds)


def test_a_program_that_fails_says_why() -> None:
    found = seconds_to(printing(then="raise SystemExit('no such game')"), 0.5, 30)
    assert found == Outcome(None, None, "no such game", False, found.cpu_seconds)


def test_seconds_of_cpu_are_those_of_the_program_and_not_those_it_slept() -> None:
    work = "began = time.process_time()\nwhile time.process_time() < began + 0.5: pass\n"
    busy, idle = (seconds_to(printing(then=then), 0.5, 60).cpu_seconds for then in (work, "time.sleep(0.5)"))
    assert 0.5 <= busy < 0.5 + 5
    assert idle < 0.5


def test_the_median_counts_runs_without_a_time_as_the_longest() -> None:
    assert median_seconds([3.0, None, 1.0]) == 3.0
    assert median_seconds([None, 1.0, None]) is None


def test_the_table_says_what_was_not_reached() -> None:
    benchmark = Thresholds(cap_seconds=7)
    row = {"error": None, "seconds": None, "runs": [Outcome(None, 0.25, None, True, 3.0)._asdict()]}
    assert benchmark._median(row) == "> 7 (best 0.25)"
    assert benchmark._median(row | {"runs": [Outcome(None, None, None, False, 3.0)._asdict()]}) == "not reached"
    assert benchmark._median(row | {"seconds": 2.04}) == "2.0"
    assert benchmark._median(row | {"error": "failed"}) == "-"


@pytest.mark.parametrize("cell", THRESHOLDS)
def test_our_command_has_plain_defaults(cell: str) -> None:
    threshold = THRESHOLDS[cell]
    assert isinstance(default_config("ppo", threshold.env), Config)
    flags = threshold.command("ppo", 3, Path("somewhere"))[2:]
    given = {flag for flag in flags if flag.startswith("--")}
    assert given <= {"--algo", "--env", "--seed", "--progress", "--run-dir", "--total-steps", "--env-kwargs"}


@pytest.mark.process
@pytest.mark.train
def test_the_benchmark_times_ours_and_names_a_program_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(without_sb3(tmp_path)))
    done = program(
        "benchmarks", "thresholds", "--cells", "blackjack-0.050", "--repeats", "1", "--cap-seconds", "300",
        "--peers", str(tmp_path / "nowhere"), "--out", str(tmp_path / "thresholds.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, theirs = json.loads((tmp_path / "thresholds.json").read_text())["rows"]
    assert ours["seconds"] > 0
    assert ours["runs"][0]["best"] >= -0.050
    assert "No module named" in theirs["error"]
