"""Connect Four: drop discs, line up four.

obs      (2, 6, 7) float32 in {0, 1}: plane 0 is the student's discs, plane 1 the opponent's; row 0 is the top.
action   the column to drop into, 0 at the left. A full column is illegal, and dropping into it loses.
reward   +1 for a line of four, -1 when the opponent makes one or for an illegal action, 0 otherwise and for a draw.
ends     terminated at a line of four, at an illegal action, or after 42 discs. There is no time limit.
random   reset: who moves first, then the opponent's opening, in any column. step: the opponent's reply.
source   the bitboards of John Tromp's Fhourstones benchmark.

A board is an int64 of seven columns, seven bits each, bottom bit first. The seventh bit of a column
is always 0, so that no line of four can run from the top of one column into the next.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from envs.base import Spec, State, where

ROWS, COLUMNS = 6, 7
STRIDE = ROWS + 1
COLUMN = (1 << ROWS) - 1  # the cells of the leftmost column
BOTTOM = sum(1 << STRIDE * column for column in range(COLUMNS))  # the lowest cell of every column
BOARD = BOTTOM * COLUMN
DIRECTIONS = (1, STRIDE - 1, STRIDE, STRIDE + 1)  # up, down-right, right, up-right

Opponent = Callable[[Tensor, Tensor, Tensor], Tensor]  # (its discs, the other's, uniforms (N,)) -> column (N,)


class Connect4:
    """The rules against one opponent, in the form that `VecEnv` steps."""

    spec = Spec(
        *("connect4", 1, (2, ROWS, COLUMNS), COLUMNS),
        num_reset_uniforms=2,
        num_step_uniforms=1,
        time_limit=None,
        title="Connect Four",
        return_range=(-1.0, 1.0),
        return_unit="+1 win, 0 draw, −1 loss",
    )

    def __init__(self, opponent: Opponent) -> None:
        self.opponent = opponent

    def reset(self, u: Tensor) -> State:
        empty = torch.zeros_like(u[:, 0], dtype=torch.int64)
        opening = drop(empty, empty, (u[:, 1] * COLUMNS).long())
        return {"mine": empty, "theirs": where(u[:, 0] < 0.5, opening, empty)}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        mine, theirs = state["mine"], state["theirs"]
        after = drop(mine, theirs, action)
        illegal, won = after == mine, has_four(after)
        over = illegal | won | is_full(after | theirs)
        reply = drop(theirs, after, self.opponent(theirs, after, u[:, 0]))
        reply = where(over, theirs, reply)
        lost = illegal | has_four(reply)
        reward = won.float() - lost.float()
        return {"mine": after, "theirs": reply}, reward, over | lost | is_full(after | reply)

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        mine, theirs = state["mine"], state["theirs"]
        action_mask = legal_columns(mine | theirs)
        return planes(mine, theirs), action_mask | ~action_mask.any(1, keepdim=True)


def drop(pieces: Tensor, others: Tensor, column: Tensor) -> Tensor:
    """Return `pieces` with one more disc in `column`; unchanged where that column is full. Int64, one shape."""
    bottom = torch.ones_like(column) << column * STRIDE
    carried = (pieces | others) + bottom  # the carry stops at the lowest empty bit
    return pieces | carried & (bottom * COLUMN)


def has_four(pieces: Tensor) -> Tensor:
    """Return whether four of `pieces` lie in a line. Bool of the same shape."""
    found = torch.zeros_like(pieces, dtype=torch.bool)
    for shift in DIRECTIONS:
        pairs = pieces & pieces >> shift
        found |= pairs & pairs >> 2 * shift != 0
    return found


def lines_of_four(pieces: Tensor) -> Tensor:
    """Return the cells of `pieces` that lie in a line of four. Int64 of the same shape."""
    cells = torch.zeros_like(pieces)
    for shift in DIRECTIONS:
        pairs = pieces & pieces >> shift
        starts = pairs & pairs >> 2 * shift
        cells |= starts | starts << shift | starts << 2 * shift | starts << 3 * shift
    return cells


def completing(pieces: Tensor) -> Tensor:
    """Return all cells, reachable or not, occupied or not, that make a line of four with three of `pieces`."""
    cells = torch.zeros_like(pieces)
    for shift in DIRECTIONS:
        ahead, behind = pieces >> shift, pieces << shift  # bit c: whether the cell one step on, one step back is ours
        ahead_2, behind_2 = ahead >> shift, behind << shift
        cells |= ahead & ahead_2 & (ahead_2 >> shift | behind)
        cells |= behind & behind_2 & (behind_2 << shift | ahead)
    return cells & BOARD


def playable(occupied: Tensor) -> Tensor:
    """Return the cells into which a disc can fall next; `occupied` is both sides' discs."""
    return occupied + BOTTOM & BOARD


def legal_columns(occupied: Tensor) -> Tensor:
    """Return which columns have room. (N, 7) bool for (N,) bitboards; all False for a full board."""
    return columns_of(playable(occupied))


def columns_of(cells: Tensor) -> Tensor:
    """Return which columns hold at least one of `cells`. (N, 7) bool for (N,) bitboards."""
    shifts = torch.arange(COLUMNS, device=cells.device) * STRIDE
    return (cells >> shifts[:, None] & COLUMN != 0).T


def is_full(occupied: Tensor) -> Tensor:
    """Return whether no column has room."""
    return occupied == BOARD


def mirror(cells: Tensor) -> Tensor:
    """Return bitboards reflected left to right."""
    flipped = torch.zeros_like(cells)
    for column in range(COLUMNS):
        flipped |= (cells >> STRIDE * column & COLUMN) << STRIDE * (COLUMNS - 1 - column)
    return flipped


def planes(*boards: Tensor) -> Tensor:
    """Unpack bitboards (N,) into (N, boards, 6, 7) float32, row 0 at the top."""
    column = torch.arange(COLUMNS, device=boards[0].device)
    row = torch.arange(ROWS - 1, -1, -1, device=boards[0].device)
    shifts = column[None, :] * STRIDE + row[:, None]
    return (torch.stack(boards, 1)[:, :, None, None] >> shifts & 1).float()


def draw(mine: int, theirs: int, signs: str = ".xo") -> str:
    """Return one board as six lines of text; `signs` are an empty cell, a student's and an opponent's disc."""
    return "\n".join(
        " ".join(signs[(mine >> bit & 1) + 2 * (theirs >> bit & 1)] for bit in range(row, COLUMNS * STRIDE, STRIDE))
        for row in range(ROWS - 1, -1, -1)
    )


def notation(states: Sequence[State]) -> str:
    """Return the moves of the first env copy's episode, whose states were `states`, in the style of chess's PGN.

    A move is its cell, column a … g and row 1 … 6. The first tag says who moved first.
    """
    moves: list[str] = []
    first, previous = "student", (0, 0)
    for state in states:
        discs = int(state["mine"][0]), int(state["theirs"][0])
        for side in (0, 1):
            new = discs[side] & ~previous[side]
            if new and not moves:
                first = ("student", "opponent")[side]
            if new:
                column, row = divmod(new.bit_length() - 1, STRIDE)
                moves.append(f"{'abcdefg'[column]}{row + 1}")
        previous = discs
    pairs = (moves[start : start + 2] for start in range(0, len(moves), 2))
    text = " ".join(f"{number}. {' '.join(pair)}" for number, pair in enumerate(pairs, 1))
    return f'[First "{first}"]\n[Result "{result_of(previous, first)}"]\n\n{text}'


def result_of(discs: tuple[int, int], first: str) -> str:
    """Return the result as in PGN, that of the side that moved first in front: 1-0, 0-1, 1/2-1/2 or *."""
    mine, theirs = (bool(has_four(torch.tensor(side))) for side in discs)
    if mine or theirs:
        return "1-0" if mine == (first == "student") else "0-1"
    return "1/2-1/2" if discs[0] | discs[1] == BOARD else "*"
