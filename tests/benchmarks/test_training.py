"""The timing of training: a rate for every student, and where its time goes."""

import json
from pathlib import Path

import pytest

from tests.helpers.peers import without_sb3
from tests.helpers.programs import program


@pytest.mark.process
@pytest.mark.train
def test_the_benchmark_times_training_and_says_where_the_time_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(without_sb3(tmp_path)))
    done = program(
        "benchmarks", "training", "--games", "blackjack", "--repeats", "1", "--seconds", "0.1",
        "--programs", "eager", "stable-baselines3", "--peers", str(tmp_path / "nowhere"),
        "--out", str(tmp_path / "training.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "training.json").read_text())["rows"]
    ours = [row for row in rows if row["program"] == "eager"]
    assert [row["algo"] for row in ours] == ["ppo", "a2c", "dqn"]
    for row in ours:
        assert row["steps_per_second"] > 0
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["settings"]["hidden"] == [64, 64]
    assert all("No module named" in row["error"] for row in rows if row["program"] != "eager")
