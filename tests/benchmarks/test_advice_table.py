"""The timing of the table: that it times what it says, on a small one."""

from pathlib import Path

import pytest
import torch

from benchmarks.advice_table import Table, filled, put, queries

ENTRIES = 1 << 12


@pytest.mark.parametrize("load", [0.5, 0.95])
def test_a_table_is_filled_as_far_as_is_said_and_knows_its_keys(load: float) -> None:
    table, keys = filled(ENTRIES, load, "cpu")
    assert float(table.load()) == pytest.approx(load, abs=0.01)
    assert table.get(keys, torch.ones(len(keys), dtype=torch.bool)).valid.all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_that_share_of_the_queries_is_there(share: float) -> None:
    table, keys = filled(ENTRIES, 0.8, "cpu")
    asked = queries(keys, 4000, share)
    assert table.get(asked, torch.ones(4000, dtype=torch.bool)).valid.float().mean() == pytest.approx(share, abs=0.04)


def test_what_is_put_is_there() -> None:
    table, _ = filled(ENTRIES, 0.5, "cpu")
    keys = torch.arange(40).view(20, 2)
    put(table, keys)
    assert table.get(keys, torch.ones(20, dtype=torch.bool)).valid.all()


def test_a_row_has_a_rate_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    benchmark = Table(
        queries=(64, 256), entries=(ENTRIES,), loads=(0.5,), hits=(0.0, 1.0), repeats=1, seconds=0.01,
        peers=Path("nowhere"),
    )  # fmt: skip
    *_, rows = benchmark.measure()
    assert [(row["queries"], row["hits"], row["found"]) for row in rows] == [
        (64, 0, 0),
        (64, 1, 1),
        (256, 0, 0),
        (256, 1, 1),
    ]
    assert all(rate > 0 for row in rows for rate in row["per_second"].values())
    assert all(list(row["per_second"]) == ["eager", "compile", "searchsorted", "dict"] for row in rows)
    assert [row.get("inserts_per_second", 0) > 0 for row in rows] == [True, False, True, False]
    assert benchmark.table(rows).row_count == 4
