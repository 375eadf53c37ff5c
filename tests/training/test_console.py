"""What a run shows: at a terminal against its width, elsewhere against what was logged."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.helpers.paths import ROOT
from tests.helpers.programs import SMALL, program
from training import console
from training.console import JsonProgress, LiveProgress, PlainProgress, Progress, make_progress, metrics_line
from training.evaluation import Result
from training.reserved_stdout import emit, reserved_stdout

VALUES = {"charts/SPS": 12345.6, "charts/episodic_return": -0.25, "tutor/hit_rate": 0.456, "losses/entropy": 1.5}
SUMMARY: dict[str, Any] = {
    "global_step": 1_000_000, "wall_seconds": 3725.4, "sps": 268.4,
    "eval": {"mean_return": 0.5, "stderr": 0.1, "episodes": 100, "low": 0.3, "high": 0.7},
    "tutor": {"consulted": 5000, "hits": 2000, "hit_rate": 0.4, "asked": 2500, "prompt_tokens": 100_000,
              "answer_tokens": 2500, "seconds": 61.7, "no_advice": {"timeout": 7}},
}  # fmt: skip
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown(one: Progress) -> None:
    """Everything that can be shown."""
    with one:
        one.status("waiting for http://127.0.0.1:8000: 3 s [not markup]")
        if isinstance(one, LiveProgress):
            one.bar.refresh()  # it draws four times a second
        one.note("runs/a_folder_with_a_name_that_is_longer_than_any_terminal_of_this_test_is_wide_" + 60 * "x")
        one.command(60 * "x" + "/python train.py --resume runs/NAME, which is copied")
        for step in (1000, 500_000, 1_000_000):
            one.update(step)
            one.metrics(step, VALUES)
            one.evaluation(step, Result(0.5, 0.1, 100, 0.3, 0.7))
        one.summary(SUMMARY, Path("runs/it"))


def lines_of(text: str) -> list[str]:
    """What stood in a line at some time, without colours and movements of the cursor."""
    return re.split(r"[\r\n]+", ESCAPES.sub("", text))


@pytest.mark.parametrize("width", [24, 40, 60, 80, 140])
def test_live_progress_fits_the_terminal_width(width: int) -> None:
    file = io.StringIO()
    shown(LiveProgress(1_000_000, 0, Console(file=file, force_terminal=True, width=width)))
    lines = lines_of(file.getvalue())
    assert max(len(line) for line in lines if "--resume" not in line) <= width
    assert any(line.endswith("train.py --resume runs/NAME, which is copied") for line in lines)
    bars = [line for line in lines if re.search(r"━ +1,000,000/1,000,000", line)]
    assert bars, "the bar and the total stay"
    assert all(len(re.search("━+", line)[0]) >= min(6, width - 20) for line in bars)
    if 40 <= width < 100:
        assert any(line.startswith("12,346 steps/s  return -0.25") for line in lines), "on a line of its own"
    if width >= 80:
        for words in ("student alone   +0.500", "1,000,000 in 1:02:05, 268 steps/s", "timeout 7", "102,500 tokens"):
            assert words in file.getvalue()
    if width >= 100:
        assert any("1,000,000/1,000,000 12,346 steps/s  return -0.25  hit rate 46%" in line for line in lines)
        assert any("3 s [not markup]" in line for line in lines)


def test_live_progress_of_a_resumed_run_starts_without_a_speed() -> None:
    live = LiveProgress(1000, 600, Console(file=io.StringIO()))
    (task,) = live.bar.tasks
    assert (task.percentage, task.speed) == (60, None)
    live.update(700)
    assert task.percentage == 70


def test_plain_progress_prints_metrics_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = PlainProgress()
    for now in range(5, 35, 3):
        monkeypatch.setattr(console.time, "monotonic", lambda now=now: float(now))
        lines.metrics(now, VALUES)
    assert [int(line.split()[1]) for line in capsys.readouterr().out.splitlines()] == [5, 17, 29]


def test_missing_metrics_are_left_out() -> None:
    assert metrics_line({"charts/SPS": 5.0}) == "5 steps/s"
    alone = dict(console.summary_lines(SUMMARY | {"tutor": None}, Path("runs/it")))
    assert list(alone) == ["student alone", "env steps", "run directory"]


def test_progress_without_a_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {way: type(make_progress(way, 10)) for way in ("live", "json", "quiet")}
    assert kinds == {"live": PlainProgress, "json": JsonProgress, "quiet": Progress}
    shown(Progress())
    assert capsys.readouterr() == ("", "")


@pytest.mark.process
def test_plain_progress_of_a_run(tmp_path: Path) -> None:
    tutored = ("--tutor", "scripted", "--guidance", "override")
    done = program("train.py", *SMALL, *tutored, "--run-dir", str(tmp_path / "run"))
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path / 'run'}: dqn on connect4, tutor scripted, ")
    assert not {"\x1b", "\r", "━"} & set(done.stdout)
    assert [line.split()[1] for line in lines if "  student alone " in line] == ["2,048", "4,032"]
    assert "hit rate" in done.stdout
    assert lines[-1].split() == ["run", "directory", str(tmp_path / "run")]


@pytest.mark.process
def test_json_progress_of_a_run_equals_its_log(tmp_path: Path) -> None:
    done = program("train.py", *SMALL, "--progress", "json", "--run-dir", str(tmp_path / "run"))
    assert (done.returncode, done.stderr) == (0, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["event"] for one in events if one["event"] != "metrics"] == ["note", *2 * ["evaluation"], "summary"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert events[-1] == {"event": "summary", **summary, "run_dir": str(tmp_path / "run")}
    expected = {}
    for one in events:
        event, step = one.pop("event"), one.pop("global_step", None)
        if event == "metrics":
            expected |= {(step, tag): value for tag, value in one.items()}
        elif event == "evaluation":
            assert one.pop("cut") == 0, "which is not logged"
            bounds = {(step, f"eval_interval/{tag}"): one.pop(tag) for tag in ("low", "high")}
            expected |= bounds | {(step, f"eval/{tag}"): value for tag, value in one.items()}
    with (tmp_path / "run" / "metrics.csv").open() as file:
        logged = {(int(row["global_step"]), row["tag"]): float(row["value"]) for row in csv.DictReader(file)}
    assert expected == logged


@pytest.mark.process
def test_json_of_programs_is_theirs_alone(tmp_path: Path) -> None:
    """The env prints when it is made, reset and stepped, by Python, below it and by a child."""
    env = ("--env", "gym:tests.helpers.odd_envs:Chatty-v0", "--algo", "ppo", "--num-envs", "4", "--num-steps", "8")
    flags = ("--total-steps", "64", "--eval-episodes", "2", "--hidden", "8", "--run-dir", str(tmp_path / "run"))
    done = program("train.py", *env, *flags, "--progress", "json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()][-2:] == ["evaluation", "summary"]
    again = program("evaluate.py", str(tmp_path / "run"), "--episodes", "2", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["mean_return"] == 10.0
    for what in ("made", "made by a child", "reset", "step below Python"):
        assert f"chat: {what}\n" in done.stderr
        assert f"chat: {what}\n" in again.stderr


def test_stdout_is_reserved_within_the_block_alone(capsys: pytest.CaptureFixture[str]) -> None:
    emit("before")
    with reserved_stdout():
        print("chat")
        emit("within")
    print("after")
    assert capsys.readouterr() == ("before\nwithin\nafter\n", "chat\n")


@pytest.mark.process
def test_quiet_progress_of_a_run_prints_errors_alone(tmp_path: Path) -> None:
    flags = ("--progress", "quiet", "--run-dir", str(tmp_path / "run"))
    done = program("train.py", *SMALL, *flags)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = program("train.py", *SMALL, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert "holds a run already" in done.stderr


@pytest.mark.process
def test_live_progress_of_a_run_in_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 64, 0, 0))
    command = [sys.executable, "train.py", *SMALL, "--run-dir", str(tmp_path / "run")]
    usual = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, env=usual | {"TERM": "xterm"}) as running:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
    os.close(ours)
    assert running.returncode == 0
    lines = lines_of(said.decode())
    assert max(map(len, lines)) <= 64
    assert len(set(re.findall("━ ([0-9,]+)/4,000 ", "\n".join(lines)))) > 2
    assert "env steps" in "".join(lines[-9:])


def test_hit_rate_is_shown_only_where_advice_was_wanted() -> None:
    assert "hit rate 46%" in metrics_line(VALUES)
    quiet = metrics_line(VALUES | {"tutor/hit_rate": 0.0, "tutor/consulted": 0.0})
    assert "hit rate" not in quiet
    assert quiet.endswith("no advice wanted")
    lines = dict(
        console.summary_lines(SUMMARY | {"tutor": SUMMARY["tutor"] | {"consulted": 0, "hits": 0}}, Path("runs/it"))
    )
    assert lines["advice wanted"] == "never"
