"""Boards of Connect Four as drawings and as sets of cells on a plain 6 x 7 grid."""

import itertools

import torch
from torch import Tensor

Cell = tuple[int, int]  # (row, column), row 0 at the top

CELLS = list(itertools.product(range(6), range(7)))
LINES = [
    line
    for (row, column), (down, right) in itertools.product(CELLS, [(0, 1), (1, 0), (1, 1), (1, -1)])
    if set(line := [(row + k * down, column + k * right) for k in range(4)]) <= set(CELLS)
]
FULL_WITHOUT_A_LINE = "xxooxxo ooxxoox xxooxxo ooxxoox xxooxxo ooxxoox"


def cell_bit(row: int, column: int) -> int:
    """Return the bitboard of one cell: seven bits per column, bottom first."""
    return 1 << 7 * column + 5 - row


def bitboard(cells: set[Cell]) -> int:
    return sum(cell_bit(*cell) for cell in cells)


def board(drawn: str) -> tuple[Tensor, Tensor]:
    """Return a drawn board, six rows from the top, as bitboards of x and of o; (1,) each."""
    rows = drawn.split()
    assert [len(row) for row in rows] == [7] * 6
    return tuple(torch.tensor([bitboard({cell for cell in CELLS if rows[cell[0]][cell[1]] == sign})]) for sign in "xo")


def drawn(x: Tensor, o: Tensor) -> str:
    """Return the drawing of two bitboards, the inverse of `board`."""
    sign = {(0, 0): ".", (1, 0): "x", (0, 1): "o"}
    at = [[sign[bool(x & cell_bit(r, c)), bool(o & cell_bit(r, c))] for c in range(7)] for r in range(6)]
    return " ".join("".join(row) for row in at)


def cells_of(value: int) -> set[Cell]:
    return {cell for cell in CELLS if value & cell_bit(*cell)}
