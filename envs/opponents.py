"""Who the student plays in Connect Four, and the search behind the strongest of them.

An opponent is a function (its discs, the other's discs, luck) -> column. It moves at once in all games.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from envs.bitboard import count
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
from envs.registry import closest
from envs.rng import sample_legal

Policy = Callable[[Tensor, Tensor], Tensor]  # (obs, legal) -> action

WIN = 1000  # the value of a line of four with the next disc; each disc until then costs 1
FULL = -10 * WIN  # the value of a column without room
THREAT = 4  # the value of an empty cell that would complete a line; our choice
MOST = 8  # discs that an opponent looks ahead; each makes it seven times slower
LEAVES = 1 << 16  # positions at the bottom of a search that are held at once: 512 KiB a tensor


def random(pieces: Tensor, others: Tensor, u: Tensor) -> Tensor:
    """Drop anywhere, all legal columns equally likely."""
    return sample_legal(legal_columns(pieces | others), u)


def tactical(pieces: Tensor, others: Tensor, u: Tensor) -> Tensor:
    """Win if it can, block if it must, else drop anywhere."""
    reachable = playable(pieces | others)
    wins, blocks = completing(pieces) & reachable, completing(others) & reachable
    choice = torch.where(wins != 0, wins, torch.where(blocks != 0, blocks, reachable))
    return sample_legal(columns_of(choice), u)


class Negamax:
    """Plays one of the best columns of a `search` of `depth`, all equally likely."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def __call__(self, pieces: Tensor, others: Tensor, u: Tensor) -> Tensor:
        values = search(pieces, others, self.depth)
        return sample_legal(values == values.amax(1, keepdim=True), u)


class SelfPlay:
    """A frozen copy of the student, which sees the board from its own side.

    It now and then drops anywhere, as our choice: two copies that never err would play one game for ever. It plays like
    `random` until it is given a policy. Whoever trains the student lets it err always at first, and makes the policy a
    new copy of the student every `refresh` updates.
    """

    ERRS = 0.05

    def __init__(self, refresh: int) -> None:
        if refresh < 1:
            raise ValueError(f"refresh is {refresh}; an opponent is refreshed after at least 1 update")
        self.refresh = refresh
        self.policy: Policy | None = None
        self.errs: float | Tensor = self.ERRS  # how often it drops anywhere

    def __call__(self, pieces: Tensor, others: Tensor, u: Tensor) -> Tensor:
        if self.policy is None:
            return random(pieces, others, u)
        action_mask = legal_columns(pieces | others)
        anywhere = sample_legal(action_mask, u / self.errs)
        action_mask = action_mask | ~action_mask.any(1, keepdim=True)
        return torch.where(u < self.errs, anywhere, self.policy(planes(pieces, others), action_mask))


OPPONENTS: dict[str, Opponent] = {"random": random, "tactical": tactical}
NAMES = (*OPPONENTS, "negamax:DEPTH", "self")


def connect4_against(opponent: str = "tactical", refresh: int = 1000) -> Connect4:
    """Return Connect Four against the opponent of that name; `refresh` is of the one called self.

    Raises:
        ValueError: there is none.
    """
    kind, _, depth = opponent.partition(":")
    if kind == "negamax" and depth.isdecimal():
        if not 1 <= int(depth) <= MOST:
            raise ValueError(f"{opponent}: a search looks 1 to {MOST} discs ahead")
        return Connect4(Negamax(int(depth)))
    if opponent == "self":
        return Connect4(SelfPlay(refresh))
    if opponent not in OPPONENTS:
        raise ValueError(closest("opponent", opponent, NAMES))
    return Connect4(OPPONENTS[opponent])


def search(pieces: Tensor, others: Tensor, depth: int) -> Tensor:
    """Return the negamax value of every column for the side to move, looking `depth` discs ahead.

    From depth 2 on the last disc is only asked whether it wins, which costs a seventh of playing it.

    Args:
        pieces, others: (N,) int64 bitboards without a line of four; `pieces` moves.
        depth: at least 1. Time grows sevenfold with each.

    Returns:
        (N, 7) int64: WIN - d for a forced win with the (d + 1)-th disc from now, d - WIN for a loss, else
        the `estimate` at the end of the best line; FULL for a full column.
    """
    if depth < 1:
        raise ValueError(f"a search looks at least 1 disc ahead, not {depth}")
    chunk = max(1, LEAVES // COLUMNS ** max(depth - 1, 1))
    parts = zip(pieces.split(chunk), others.split(chunk), strict=True)
    return torch.cat([_values_of_columns(mine, theirs, depth) for mine, theirs in parts])


def _values_of_columns(pieces: Tensor, others: Tensor, depth: int) -> Tensor:
    """`search` without splitting into chunks."""
    reachable = playable(pieces | others)
    wins = columns_of(completing(pieces) & reachable)
    column = torch.arange(COLUMNS, device=pieces.device).expand(len(pieces), COLUMNS)
    after = drop(pieces[:, None], others[:, None], column)
    replies = _value(others[:, None].expand_as(after).reshape(-1), after.reshape(-1), depth - 1)
    values = -replies.view_as(after)
    values = torch.where(values.abs() > WIN // 2, values - values.sign(), values)
    return torch.where(columns_of(reachable), torch.where(wins, WIN, values), FULL)


def _value(pieces: Tensor, others: Tensor, depth: int) -> Tensor:
    """The value of a position for the side to move, (N,) int64; a full board is worth 0."""
    if depth > 1:
        values = _values_of_columns(pieces, others, depth).amax(1)
    else:
        values = estimate(pieces, others)
        if depth == 1:
            wins = completing(pieces) & playable(pieces | others) != 0
            values = torch.where(wins, WIN, values)
    return torch.where(is_full(pieces | others), 0, values)


def estimate(pieces: Tensor, others: Tensor) -> Tensor:
    """Guess the value of a quiet position for the side to move: its threats and its discs in the middle.

    A threat is an empty cell that completes a line of four.
    """
    empty = BOARD & ~(pieces | others)
    threats = count(completing(pieces) & empty) - count(completing(others) & empty)
    return THREAT * threats + middle(pieces) - middle(others)


def middle(cells: Tensor) -> Tensor:
    """Discs in the centre column, counted twice, plus discs in its two neighbours. Same shape, int64."""
    centre = COLUMN << STRIDE * 3
    beside = COLUMN << STRIDE * 2 | COLUMN << STRIDE * 4
    return count(cells & (centre | beside)) + count(cells & centre)
