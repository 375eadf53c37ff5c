"""Bitboards of one to seven words against Python sets of cells."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from envs.bitboard import CELLS_PER_WORD, full_board, nth_set_bit, num_words, one_bit, popcount, unpack

WORD = CELLS_PER_WORD
Cells = set[int]

WIDTHS = range(1, 8)
QUICK = settings(deadline=None, derandomize=True, max_examples=150)

words = st.integers(0, 2**63 - 1)


@st.composite
def boards(draw: st.DrawFn) -> tuple[int, list[Cells]]:
    """Return the number of words, and one to four boards of that many."""
    width = draw(st.sampled_from(WIDTHS))
    return width, draw(st.lists(st.sets(st.integers(0, WORD * width - 1)), min_size=1, max_size=4))


def pack(sets: list[Cells], width: int) -> Tensor:
    """Sets of cells as boards of words, CELLS_PER_WORD cells per word."""
    return torch.tensor(
        [[sum(1 << cell - WORD * w for cell in c if cell // WORD == w) for w in range(width)] for c in sets]
    )


def chosen_sets(width: int) -> list[Cells]:
    """Return no cell, all, one, all but one, the cells at the ends of words, and sets from sparse to dense."""
    generator = random.Random(width)
    cells = WORD * width
    seams = {cell for w in range(width) for cell in (WORD * w, WORD * w + 31, WORD * w + 32, WORD * (w + 1) - 1)}
    every = set(range(cells))
    one = [{cell} for cell in range(cells)]
    sets = [{cell for cell in every if generator.random() < k / 20} for k in range(1, 20)]
    return [set(), every, seams, every - seams, *one, *[every - cell for cell in one], *sets]


def test_num_words_of_56_cells_each() -> None:
    assert WORD == 56
    sizes = {1: 1, 42: 1, 55: 1, 56: 1, 57: 2, 111: 2, 112: 2, 113: 3, 144: 3, 168: 3, 169: 4, 392: 7, 393: 8}
    assert {cells: num_words(cells) for cells in sizes} == sizes


@QUICK
@given(st.lists(words, min_size=1))
def test_popcount_equals_bit_count(numbers: list[int]) -> None:
    assert popcount(torch.tensor(numbers)).tolist() == [number.bit_count() for number in numbers]


def test_popcount_of_single_bits_and_runs_equals_bit_count() -> None:
    full = 2**63 - 1
    numbers = [0, full, *[1 << k for k in range(63)], *[full ^ 1 << k for k in range(63)]]
    numbers += [(1 << high) - (1 << low) for high in range(64) for low in range(high)]
    assert popcount(torch.tensor(numbers)).tolist() == [number.bit_count() for number in numbers]


def test_popcount_keeps_shape_and_input() -> None:
    for shape in ((), (1,), (4,), (2, 3), (2, 3, 4), (0, 5)):
        given_bits = torch.full(shape, 0b1011)
        counts = popcount(given_bits)
        assert torch.equal(counts, torch.full(shape, 3))
        assert torch.equal(given_bits, torch.full(shape, 0b1011))
        assert counts.dtype == torch.int64


@pytest.mark.parametrize("width", WIDTHS)
def test_one_bit_sets_only_its_cell(width: int) -> None:
    cells = torch.arange(WORD * width + 70)
    board = one_bit(cells, width)
    assert board.shape == (len(cells), width)
    assert board.dtype == torch.int64
    assert torch.equal(board, pack([{cell} if cell < WORD * width else set() for cell in range(len(cells))], width))


@pytest.mark.parametrize("width", WIDTHS)
def test_unpack_equals_sets_of_cells(width: int) -> None:
    sets = chosen_sets(width)
    board = pack(sets, width)
    for cells in {
        1,
        2,
        WORD - 1,
        WORD,
        WORD * (width - 1) + 1,
        WORD * width - 1,
        WORD * width,
    }:
        unpacked = unpack(board, cells)
        assert unpacked.dtype == torch.bool
        assert unpacked.tolist() == [[cell in cells_of_row for cell in range(cells)] for cells_of_row in sets]


@QUICK
@given(boards())
def test_unpack_inverts_pack(drawn: tuple[int, list[Cells]]) -> None:
    width, sets = drawn
    unpacked = unpack(pack(sets, width), WORD * width)
    assert [set(row.nonzero()[:, 0].tolist()) for row in unpacked] == sets


def cells_by_nth_set_bit(sets: list[Cells], width: int) -> tuple[list[int], list[int]]:
    """Return what `nth_set_bit` finds for every n of every set, and the cells by sorting."""
    row_and_n = [(row, n) for row, cells_of_row in enumerate(sets) for n in range(len(cells_of_row))]
    rows, n = torch.tensor(row_and_n, dtype=torch.int64).view(-1, 2).unbind(1)
    found = nth_set_bit(pack(sets, width)[rows], n)
    assert found.dtype == torch.int64
    return found.tolist(), [cell for cells_of_row in sets for cell in sorted(cells_of_row)]


@pytest.mark.parametrize("width", WIDTHS)
def test_nth_set_bit_of_chosen_boards_equals_sorted_cells(width: int) -> None:
    sets = chosen_sets(width)
    ordinary, rare = sets[: 4 + WORD * width] + sets[-19:], sets[4 + WORD * width : -19]
    found, cells = cells_by_nth_set_bit(ordinary + rare[:: 9 * width], width)
    assert found == cells


@QUICK
@given(boards())
def test_nth_set_bit_of_random_boards_equals_sorted_cells(drawn: tuple[int, list[Cells]]) -> None:
    found, cells = cells_by_nth_set_bit(drawn[1], drawn[0])
    assert found == cells


@pytest.mark.parametrize("width", WIDTHS)
def test_nth_set_bit_of_empty_board_leaves_other_rows_correct(width: int) -> None:
    """Snake calls it so when the board is full."""
    last = WORD * width - 1
    board = pack([set(), {0, last}, {last}, {0}], width)
    found = nth_set_bit(board, torch.tensor([0, 1, 1, 0]))
    assert (found[1].item(), found[3].item()) == (last, 0)


def test_zero_boards_give_zero_rows() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert one_bit(none, 3).shape == (0, 3)
    assert nth_set_bit(one_bit(none, 3), none).shape == (0,)
    assert unpack(one_bit(none, 3), 144).shape == (0, 144)


@pytest.mark.parametrize("cells", [1, 4, 55, 56, 57, 112, 144, 168])
def test_full_board_sets_exactly_its_cells(cells: int) -> None:
    for width in range(num_words(cells), num_words(cells) + 2):
        assert torch.equal(full_board(cells, width, torch.device("cpu"))[None], pack([set(range(cells))], width))
