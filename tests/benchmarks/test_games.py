"""The timing of random play: our games beside others, and who is not installed."""

import json
from pathlib import Path

import pytest

from tests.helpers.programs import program


@pytest.mark.process
def test_the_benchmark_measures_us_and_says_who_is_not_here(tmp_path: Path) -> None:
    done = program(
        "benchmarks", "games", "--games", "blackjack", "--copies", "64", "--repeats", "1", "--seconds", "0.1",
        "--programs", "eager", "gymnasium", "envpool",
        "--peers", str(tmp_path / "nowhere"), "--out", str(tmp_path / "games.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "games.json").read_text())
    rows = {row["program"]: row for row in written["rows"]}
    assert written["machine"]["commit"]
    assert rows["eager"]["steps_per_second"] > 0
    assert rows["gymnasium"]["steps_per_second"] > 0
    assert rows["envpool"]["steps_per_second"] is None
    assert "No module named 'envpool'" in rows["envpool"]["error"]
    assert "No module named 'envpool'" in " ".join(done.stdout.split())
