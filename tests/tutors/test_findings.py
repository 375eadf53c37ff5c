"""The table of findings against a dictionary, on real positions and their mirror images."""

import torch

from envs.base import select_rows
from envs.connect4 import mirror
from tests.helpers.advisors import VIEW, states
from tests.helpers.host_reads import NoHostReads
from tutors.findings import FindingsTable
from tutors.positions import unique_positions


def filled_table() -> tuple[FindingsTable, dict[tuple[int, ...], list[float]]]:
    """A table of forty positions, and the same as a dictionary."""
    state, _ = unique_positions(VIEW, states(8))
    positions, _ = VIEW.canonicalize(select_rows(state, torch.arange(0, 160, 4)))
    keys = VIEW.key(positions)
    values = torch.rand(40, 7, generator=torch.manual_seed(1)) * 2 - 1
    table = FindingsTable(VIEW, "analyst", "cpu")
    table.fill(keys, values)
    return table, dict(zip(map(tuple, keys.tolist()), values.tolist(), strict=True))


def test_lookup_is_that_of_a_dictionary_in_the_env_s_own_actions() -> None:
    table, known = filled_table()
    hits = 0
    for state in states(8):
        other = {name: mirror(cells) for name, cells in state.items()}
        ours, mirrored = table.lookup(state), table.lookup(other)
        positions, transform = VIEW.canonicalize(state)
        for row, key in enumerate(map(tuple, VIEW.key(positions).tolist())):
            expected = known.get(key, [0.0] * 7)
            assert ours[row].tolist() == (expected[::-1] if transform[row] else expected)
            hits += key in known
        is_own_mirror_image = (state["mine"] == other["mine"]) & (state["theirs"] == other["theirs"])
        assert mirrored[~is_own_mirror_image].equal(ours.flip(1)[~is_own_mirror_image])
    counters = table.counters()
    assert (counters["positions"], counters["hits"]) == (2 * 8 * 64, 2 * hits)
    assert hits > 40


def test_empty_table_finds_nothing() -> None:
    table = FindingsTable(VIEW, "analyst", "cpu")
    assert not table.lookup(states(1)[0]).any()
    assert table.counters()["hits"] == 0


def test_lookup_reads_nothing_back() -> None:
    table, _ = filled_table()
    (state,) = states(1)
    with NoHostReads():
        table.lookup(state)


def test_loaded_table_is_the_saved_one() -> None:
    table, _ = filled_table()
    table.stats["asked"] = 8
    other = FindingsTable(VIEW, "analyst", "cpu")
    other.load_state_dict(table.state_dict())
    assert other.counters() == table.counters()
    state = states(8)[7]
    assert other.lookup(state).equal(table.lookup(state))
