"""The timing of random play: our games beside others, and who is not installed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.common import Row
from benchmarks.games import Games
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


def test_two_places_for_the_results_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    class Unmeasured(Games):
        def measure(self) -> Iterator[list[Row]]:
            raise AssertionError("it measures")

    with pytest.raises(ValueError, match=r"--publish writes to results/games\.json: leave out --out"):
        main(Unmeasured(out=tmp_path / "games.json", publish=True))
    assert Games(publish=True).path == Path("results/games.json")
    assert Games(out=tmp_path / "games.json").path == tmp_path / "games.json"
