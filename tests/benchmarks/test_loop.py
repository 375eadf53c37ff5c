"""What a tutor costs: that the runs are what their names say."""

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.loop import WAYS, Loop


@pytest.mark.process
@pytest.mark.train
def test_a_warm_table_knows_all_and_a_cold_one_asks_once(tmp_path: Path) -> None:
    loop = Loop(games=("blackjack",), steps=6000, compile_mode="eager", repeats=2, out=tmp_path / "loop.json")
    rows = {row["way"]: row for row in main(loop)}
    assert list(rows) == list(WAYS)
    assert all(len(row["runs"]) == 2 and row["steps_per_second"] > 0 for row in rows.values())
    assert rows["untutored"]["share"] == 1
    assert "asked" not in rows["untutored"]
    for way in ("wait, cold", "nowait, cold"):
        assert 100 < rows[way]["asked"] <= 280, "each hand once at most"
        assert rows[way]["hit_rates"][0] < rows[way]["hit_rates"][-1] <= 1
    for way in ("wait, warm", "nowait, warm"):
        assert rows[way]["asked"] == 0
        assert min(rows[way]["hit_rates"]) > 0.99
    assert len(rows["wait, cold"]["hit_rates"]) == 4
    assert (tmp_path / "loop.json").exists()


def test_a_student_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        main(Loop(algo="ppoo"))
