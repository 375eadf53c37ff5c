"""What stands in a run's files where the disk was full for a while: whole records, and a run that goes on."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.paths import ROOT
from tests.helpers.programs import SMALL
from tests.helpers.small_runs import series, small_config
from train import Trainer, train
from training.checkpoint import complete_steps
from training.event_file import AppendedFile
from training.logger import Logger
from training.metrics_file import read_rows


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """A limit that the kernel holds, as that of a full disk: a write ends in the middle of a record."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_appended_file_holds_whole_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = AppendedFile(tmp_path / "file")
    file.write(b"1" * 60)
    with files_no_longer_than(100):
        file.write(b"2" * 60)
        file.write(b"3" * 40)
        file.write(b"4")
    file.write(b"5" * 60)
    file.close()
    assert (tmp_path / "file").read_bytes() == b"1" * 60 + b"3" * 40 + b"5" * 60
    assert caplog.text.count("cannot be written") == 1, "at most one warning a minute"


def test_log_is_readable_after_the_disk_was_full(tmp_path: Path) -> None:
    log = Logger(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    with files_no_longer_than(max(sizes) + 100):
        for step in range(200):
            log.add_scalars(step, {"a": step, "b": -step})
            log.add_action_counts(step, "c", [1, 2, 3])
    log.add_scalars(200, {"a": 20.0, "b": -20.0})
    log.close()
    found = [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("a")]
    assert found[-1] == 200
    assert len(found) < 200
    rows = read_rows(tmp_path / "metrics.csv")
    assert rows[-1][2:] == ["b", "-20.0"]
    assert len(rows) < 400


def test_event_file_purges_from_its_step_on(tmp_path: Path) -> None:
    for first, purge in ((0, None), (5, 5)):
        log = Logger(tmp_path, None if purge is None else purge - 1)
        for step in range(first, first + 10):
            log.add_scalars(step, {"a": step})
        log.close()
    assert [event.value for event in EventAccumulator(str(tmp_path)).Reload().Scalars("a")] == list(range(15))


@pytest.mark.train
@pytest.mark.parametrize("what", ["summary.json", "diverged.json", "config.json"])
def test_run_whose_last_words_cannot_be_written_says_so(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("ppo", "blackjack", tmp_path / "run", tutor="none")
    if what == "diverged.json":
        config = replace(config, agent=replace(config.agent, learning_rate=1e38, max_grad_norm=1e38))
    replaced, written = Path.replace, Path.write_text

    def refused(path: Path, target: Path) -> Any:
        if target.name == what:
            raise OSError(28, "No space left on device", str(path))
        return replaced(path, target)

    def unwritten(path: Path, *args: Any, **options: Any) -> int:
        if path.name == what:
            raise OSError(28, "No space left on device", str(path))
        return written(path, *args, **options)

    monkeypatch.setattr(Path, "replace", refused)
    monkeypatch.setattr(Path, "write_text", unwritten)
    expected = {"summary.json": ValueError, "diverged.json": ValueError, "config.json": OSError}[what]
    words = {
        "summary.json": "No space left.*is saved",
        "diverged.json": "diverged before.*losses/.* nan",
        "config.json": "No space",
    }
    with pytest.raises(expected, match=words[what]):
        train(config)
    monkeypatch.undo()
    if what == "summary.json":
        assert complete_steps(tmp_path / "run" / "checkpoints") == [2048]
        train(replace(config, run_dir=None, resume=tmp_path / "run"))
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["global_step"] == 2048


@pytest.mark.train
@pytest.mark.parametrize("where", ["report", "evaluate", "rollout_step"])
def test_any_other_failed_write_ends_with_a_checkpoint(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small_config("ppo", "blackjack", tmp_path / "run", tutor="none"), eval_every=1024)

    def full(self: Trainer, *args: Any) -> Any:
        if self.state.global_step >= 1024:
            raise OSError(28, "No space left on device")
        return before(self, *args)

    before = getattr(Trainer, where)
    monkeypatch.setattr(Trainer, where, full)
    with pytest.raises(OSError, match="No space left"):
        train(config)
    assert complete_steps(tmp_path / "run" / "checkpoints")[0] >= 1024


@pytest.mark.process
@pytest.mark.parametrize("progress", ["live", "json"])
def test_run_that_cannot_print_goes_on(progress: str, tmp_path: Path) -> None:
    """Its output goes to a full disk; then the log and the checkpoint do, too."""
    command = [sys.executable, "train.py", *SMALL, "--progress", progress]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--run-dir", str(tmp_path / "run")], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False, env=environ,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    words = " ".join(done.stderr.split())
    assert "the output cannot be written, the program goes on: No space left" in words
    assert words.endswith("error: the output: No space left on device")
    assert (tmp_path / "run" / "summary.json").exists()
    assert series(tmp_path / "run", "eval/mean_return")
    done = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "other")], cwd=ROOT, capture_output=True, text=True, check=False,
        env=environ, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "no checkpoint could be written" in done.stderr
    assert "cannot be written, training goes on" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
