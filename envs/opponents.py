"""The student's opponents in Connect Four, and the search behind the strongest of them.

An opponent is a function (its discs, the other's discs, uniforms) -> column, batched over all env copies.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from envs.bitboard import popcount
from envs.connect4 import (
    BOARD,
    COLUMN,
    COLUMNS,
    STRIDE,
    Connect4,
    Opponent,
    columns_of,
    completing,
    drop,
    is_full,
    legal_columns,
    planes,
    playable,
)
from envs.registry import unknown_name_message
from envs.rng import sample_legal

Policy = Callable[[Tensor, Tensor], Tensor]  # (obs, action_mask) -> action

WIN = 1000  # the value of a line of four with the next disc; each disc until then costs 1
FULL_COLUMN = -10 * WIN  # the value of a column without room
THREAT = 4  # the value of an empty cell that would complete a line; our choice
MAX_DEPTH = 8  # discs; each makes the search seven times slower
MAX_LEAVES = 1 << 16  # positions at the bottom of a search that are held at once: 512 KiB per tensor


def random(pieces: Tensor, others: Tensor, u: Tensor) -> Tensor:
    """Choose any legal column, all equally likely."""
    return sample_legal(legal_columns(pieces | others), u)


def tactical(pieces: Tensor, others: Tensor, u: Tensor) -> Tensor:
    """Complete a line of four if possible, else block one, else choose any legal column."""
    reachable = playable(pieces | others)
    wins, blocks = completing(pieces) & reachable, completing(others) & reachable
    cells = torch.where(wins != 0, wins, torch.where(blocks != 0, blocks, reachable))
    return sample_legal(columns_of(cells), u)


class Negamax:
    """Chooses one of the best columns of a `search` of `depth`, all equally likely."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def __call__(self, pieces: Tensor, others: Tensor, u: Tensor) -> Tensor:
        values = search(pieces, others, self.depth)
        return sample_legal(values == values.amax(1, keepdim=True), u)


class SelfPlay:
    """A frozen copy of the student, which observes the board from its own side.

    With probability `epsilon` it chooses any legal column, our choice: two deterministic policies would repeat one
    episode for ever. It equals `random` until `policy` is set. The trainer starts with `epsilon` 1, and every `refresh`
    updates replaces the policy by a new copy of the student.
    """

    EPSILON = 0.05

    def __init__(self, refresh: int) -> None:
        if refresh < 1:
            raise ValueError(f"refresh is {refresh}; it must be at least 1 update")
        self.refresh = refresh
        self.policy: Policy | None = None
        self.epsilon: float | Tensor = self.EPSILON  # a 0-d tensor where a compiled step must see it change

    def __call__(self, pieces: Tensor, others: Tensor, u: Tensor) -> Tensor:
        if self.policy is None:
            return random(pieces, others, u)
        action_mask = legal_columns(pieces | others)
        random_column = sample_legal(action_mask, u / self.epsilon)
        action_mask = action_mask | ~action_mask.any(1, keepdim=True)
        return torch.where(u < self.epsilon, random_column, self.policy(planes(pieces, others), action_mask))


OPPONENTS: dict[str, Opponent] = {"random": random, "tactical": tactical}
NAMES = (*OPPONENTS, "negamax:DEPTH", "self")


REFRESH = 1000  # updates


def connect4_against(opponent: str = "tactical", refresh: int = REFRESH) -> Connect4:
    """Return Connect Four against the opponent of that name; `refresh` applies to `self` alone.

    Raises:
        ValueError: no opponent has that name, the depth is out of range, or `refresh` has no effect.
    """
    if opponent != "self" and refresh != REFRESH:
        raise ValueError(f"refresh has no effect against {opponent}: it is of opponent=self")
    kind, _, depth = opponent.partition(":")
    if kind == "negamax" and depth.isdecimal():
        if not 1 <= int(depth) <= MAX_DEPTH:
            raise ValueError(f"{opponent}: the depth of the search must be 1 to {MAX_DEPTH} discs")
        return Connect4(Negamax(int(depth)))
    if opponent == "self":
        return Connect4(SelfPlay(refresh))
    if opponent not in OPPONENTS:
        raise ValueError(unknown_name_message("opponent", opponent, NAMES))
    return Connect4(OPPONENTS[opponent])


def opponent_name(opponent: object) -> str:
    """Return what an opponent is called, as in `opponent=NAME`; empty for one that is not of here."""
    if isinstance(opponent, Negamax):
        return f"negamax:{opponent.depth}"
    if isinstance(opponent, SelfPlay):
        return "self"
    return next((name for name, one in OPPONENTS.items() if one is opponent), "")


def search(pieces: Tensor, others: Tensor, depth: int) -> Tensor:
    """Return the negamax value of every column for the side to move, looking `depth` discs ahead.

    From depth 2 on the last disc is only checked for a win, which costs a seventh of dropping it.

    Args:
        pieces, others: (N,) int64 bitboards without a line of four; `pieces` moves.
        depth: at least 1; each further disc takes seven times as long.

    Returns:
        (N, 7) int64: WIN - d for a forced win with the (d + 1)-th disc from now, d - WIN for a loss, else
        the `estimate` at the end of the best line; FULL_COLUMN for a full column.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1 disc")
    chunk = max(1, MAX_LEAVES // COLUMNS ** max(depth - 1, 1))
    parts = zip(pieces.split(chunk), others.split(chunk), strict=True)
    return torch.cat([_values_of_columns(mine, theirs, depth) for mine, theirs in parts])


def _values_of_columns(pieces: Tensor, others: Tensor, depth: int) -> Tensor:
    """Return what `search` does, without splitting into chunks."""
    reachable = playable(pieces | others)
    wins = columns_of(completing(pieces) & reachable)
    column = torch.arange(COLUMNS, device=pieces.device).expand(len(pieces), COLUMNS)
    after = drop(pieces[:, None], others[:, None], column)
    replies = _value(others[:, None].expand_as(after).reshape(-1), after.reshape(-1), depth - 1)
    values = -replies.view_as(after)
    values = torch.where(values.abs() > WIN // 2, values - values.sign(), values)
    return torch.where(columns_of(reachable), torch.where(wins, WIN, values), FULL_COLUMN)


def _value(pieces: Tensor, others: Tensor, depth: int) -> Tensor:
    """Return the value of a position for the side to move, (N,) int64; that of a full board is 0."""
    if depth > 1:
        values = _values_of_columns(pieces, others, depth).amax(1)
    else:
        values = estimate(pieces, others)
        if depth == 1:
            wins = completing(pieces) & playable(pieces | others) != 0
            values = torch.where(wins, WIN, values)
    return torch.where(is_full(pieces | others), 0, values)


def estimate(pieces: Tensor, others: Tensor) -> Tensor:
    """Estimate the value of a position for the side to move: its threats and its discs in the middle.

    A threat is an empty cell that completes a line of four.
    """
    empty = BOARD & ~(pieces | others)
    threats = popcount(completing(pieces) & empty) - popcount(completing(others) & empty)
    return THREAT * threats + middle(pieces) - middle(others)


def middle(cells: Tensor) -> Tensor:
    """Return the discs in the centre column, counted twice, plus those in its two neighbours. Same shape, int64."""
    centre = COLUMN << STRIDE * 3
    beside = COLUMN << STRIDE * 2 | COLUMN << STRIDE * 4
    return popcount(cells & (centre | beside)) + popcount(cells & centre)
