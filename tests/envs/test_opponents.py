"""Opponents and the search against slow definitions on a 6 x 7 grid: every line looked at for every move,
and a negamax that follows one position at a time. Opponents that learn are watched by a policy that keeps what it sees.
"""

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from envs import opponents
from envs.base import Env, VecEnv
from envs.connect4 import Connect4, Opponent, drop, has_four, is_full, legal_columns, mirror, planes
from envs.opponents import (
    FULL_COLUMN,
    OPPONENTS,
    THREAT,
    WIN,
    Negamax,
    SelfPlay,
    connect4_against,
    estimate,
    middle,
    random,
    search,
    tactical,
)
from envs.rng import EXPLORATION_STREAM, CounterRNG, sample_legal
from tests.envs.test_connect4 import CELLS, FULL_WITHOUT_A_LINE, LINES, Cell, bits, board

Grid = list[list[str]]  # six rows from the top: "m" the side to move, "t" the other, "." empty

LUCKS = torch.arange(420) / 420 + 1 / 2000  # 1 to 7 columns divide it into equal parts
LINES_THROUGH = {cell: [line for line in LINES if cell in line] for cell in CELLS}


def positions(number: int, seed: int, shortest: int = 0) -> tuple[Tensor, Tensor]:
    """Undecided positions of random play with at least `shortest` discs; the side to move, the other."""
    rng = CounterRNG(seed, torch.arange(4096), EXPLORATION_STREAM)
    mover, other = torch.zeros(2, 4096, dtype=torch.int64)
    found = []
    for ply in range(42):
        undecided = ~has_four(other) & ~is_full(mover | other)
        if ply >= shortest:
            share = rng.uniform(ply, 2)[:, 0] < 0.1
            found.append(torch.stack([mover, other])[:, undecided & share])
        column = sample_legal(legal_columns(mover | other), rng.uniform(ply, 2)[:, 1])
        after = torch.where(undecided, drop(mover, other, column), mover)
        mover, other = torch.where(undecided, other, mover), torch.where(undecided, after, other)
    both = torch.cat(found, 1)
    order = CounterRNG(seed + 1, torch.arange(both.shape[1]), EXPLORATION_STREAM).uniform(0, 1)[:, 0].argsort()
    return tuple(both[:, order[:number]])


def grid_of(mover: Tensor, other: Tensor) -> Grid:
    mine, theirs = planes(mover.view(1), other.view(1))[0].tolist()
    return [["m" if mine[r][c] else "t" if theirs[r][c] else "." for c in range(7)] for r in range(6)]


def landing(grid: Grid, column: int) -> Cell | None:
    return next(((row, column) for row in range(5, -1, -1) if grid[row][column] == "."), None)


def makes_four(grid: Grid, cell: Cell, side: str) -> bool:
    """Whether a disc of `side` in `cell` would stand in a line of four."""
    return any(all(at == cell or grid[at[0]][at[1]] == side for at in line) for line in LINES_THROUGH[cell])


def winning_columns(grid: Grid, side: str) -> set[int]:
    cells = (landing(grid, column) for column in range(7))
    return {cell[1] for cell in cells if cell and makes_four(grid, cell, side)}


def with_disc(grid: Grid, cell: Cell, side: str) -> Grid:
    return [[side if (r, c) == cell else grid[r][c] for c in range(7)] for r in range(6)]


def estimate_by_definition(grid: Grid, side: str) -> int:
    """4 points for each empty cell that completes a line; 2 for a disc in the centre, 1 beside it."""
    value = 0
    for sign, who in ((1, side), (-1, "t" if side == "m" else "m")):
        for row, column in CELLS:
            if grid[row][column] == who:
                value += sign * {2: 1, 3: 2, 4: 1}.get(column, 0)
            elif grid[row][column] == "." and makes_four(grid, (row, column), who):
                value += sign * 4
    return value


def value_by_definition(grid: Grid, side: str, played: int, depth: int) -> int:
    """The value for `side`, which moves next, `played` of `depth` discs after the root."""
    if all(cell != "." for row in grid for cell in row):
        return 0
    if played == depth:
        return estimate_by_definition(grid, side)
    if winning_columns(grid, side):
        return 1000 - played
    if played == depth - 1:
        return estimate_by_definition(grid, side)
    other = "t" if side == "m" else "m"
    cells = [cell for column in range(7) if (cell := landing(grid, column))]
    return max(-value_by_definition(with_disc(grid, cell, side), other, played + 1, depth) for cell in cells)


def search_by_definition(grid: Grid, depth: int) -> list[int]:
    values = []
    for column in range(7):
        cell = landing(grid, column)
        if cell is None:
            values.append(-10_000)
        elif makes_four(grid, cell, "m"):
            values.append(1000)
        else:
            values.append(-value_by_definition(with_disc(grid, cell, "m"), "t", 1, depth))
    return values


def chosen(opponent: Opponent, mover: Tensor, other: Tensor) -> Counter[int]:
    """How often each column is chosen over a fine grid of luck; the two bitboards are (1,)."""
    return Counter(opponent(mover.expand(len(LUCKS)), other.expand(len(LUCKS)), LUCKS).tolist())


def evenly(columns: set[int]) -> dict[int, int]:
    return {column: len(LUCKS) // len(columns) for column in columns}


def test_random_chooses_every_column_with_room_equally_often() -> None:
    for mover, other in zip(*positions(150, seed=1, shortest=8), strict=True):
        grid = grid_of(mover, other)
        action_mask = {column for column in range(7) if landing(grid, column)}
        assert chosen(random, mover.view(1), other.view(1)) == evenly(action_mask)


def test_tactical_wins_if_it_can_blocks_if_it_must_else_chooses_any_column_equally_often() -> None:
    kinds: Counter[str] = Counter()
    for mover, other in zip(*positions(400, seed=2), strict=True):
        grid = grid_of(mover, other)
        wins, blocks = winning_columns(grid, "m"), winning_columns(grid, "t")
        action_mask = {column for column in range(7) if landing(grid, column)}
        kinds["win, not block" if wins and blocks else "win" if wins else "block" if blocks else "any"] += 1
        assert chosen(tactical, mover.view(1), other.view(1)) == evenly(wins or blocks or action_mask)
    assert min(kinds[kind] for kind in ("win, not block", "win", "block", "any")) >= 10


@pytest.mark.parametrize(
    ("position", "columns"),
    [
        ("....... ....... ....... ....... ....... .......", {0, 1, 2, 3, 4, 5, 6}),
        ("....... ....... ....... ....... ....... .ooo...", {0, 4}),
        ("....... ....... ....... ....... xx..... xxx.ooo", {3}),
        ("....... ....... ....... x.....o x.....o x.....o", {0}),
        ("....... ....... ....... ....... ....... .xxx...", {0, 4}),
        ("....... ....... ....... ......o ......o x.xx..o", {1}),
        ("....... ....... ....... ....... .xxx... .oxo...", {0, 1, 2, 3, 4, 5, 6}),
    ],
    ids=[
        "an empty board",
        "block on one side or the other",
        "one cell wins and blocks",
        "rather win than block",
        "win on one side or the other",
        "rather win in a gap than block",
        "a winning cell in the air is out of reach",
    ],
)
def test_tactical_on_drawn_boards(position: str, columns: set[int]) -> None:
    """x moves."""
    x, o = board(position)
    assert chosen(tactical, x, o) == evenly(columns)


def test_opponents_choose_for_each_game_by_its_own_board_and_luck() -> None:
    mover, other = positions(200, seed=3)
    rng = CounterRNG(7, torch.arange(200), EXPLORATION_STREAM).uniform(0, 1)[:, 0]
    for opponent in (*OPPONENTS.values(), Negamax(2), taught(leftmost), SelfPlay(1)):
        together = opponent(mover, other, rng)
        alone = [opponent(mover[i : i + 1], other[i : i + 1], rng[i : i + 1]).item() for i in range(200)]
        assert together.tolist() == alone


def best_columns(mover: Tensor, other: Tensor, depth: int) -> set[int]:
    values = search_by_definition(grid_of(mover, other), depth)
    return {column for column in range(7) if values[column] == max(values)}


@pytest.mark.parametrize(("depth", "number"), [(1, 60), (2, 40), (3, 8)])
def test_negamax_chooses_every_best_column_equally_often(depth: int, number: int) -> None:
    sizes = set()
    for mover, other in zip(*positions(number, seed=20 + depth, shortest=6), strict=True):
        best = best_columns(mover, other, depth)
        sizes.add(len(best))
        assert chosen(Negamax(depth), mover.view(1), other.view(1)) == evenly(best)
    assert len(sizes) > 1


def test_negamax_wins_if_it_can_else_plays_the_only_column_that_saves_it() -> None:
    kinds: Counter[str] = Counter()
    for mover, other in zip(*positions(150, seed=24), strict=True):
        grid = grid_of(mover, other)
        wins = winning_columns(grid, "m")
        cells = [cell for column in range(7) if (cell := landing(grid, column))]
        saves = {cell[1] for cell in cells if not winning_columns(with_disc(grid, cell, "m"), "t")}
        found = chosen(Negamax(2), mover.view(1), other.view(1))
        if wins:
            assert found == evenly(wins)
        elif saves:
            assert set(found) <= saves
        kinds["win" if wins else "the only one" if len(saves) == 1 else "other"] += 1
    assert min(kinds["win"], kinds["the only one"]) >= 20


def test_negamax_sees_as_far_as_its_depth() -> None:
    """x wins with its second disc after b or e alike; one disc ahead, e is better for being near the middle."""
    x, o = board("....... ....... ....... ....... ..oo... ..xx...")
    assert chosen(Negamax(3), x, o) == evenly({1, 4})
    assert chosen(Negamax(1), x, o) == evenly({4})


def returns_of(env: Env, student: Opponent) -> Tensor:
    """The reward with which the first game of each copy ended, (N,)."""
    rng = CounterRNG(5, torch.arange(env.num_envs), EXPLORATION_STREAM)
    env.reset()
    found = torch.full((env.num_envs,), torch.nan)
    for turn in range(21):
        after = env.step(student(env.state["mine"], env.state["theirs"], rng.uniform(turn, 1)[:, 0]))
        found = torch.where(found.isnan() & after.terminated, after.reward, found)
    assert not found.isnan().any()
    return found


def test_negamax_of_depth_2_beats_tactical_on_either_side() -> None:
    """A standard error of 400 games is at most 0.05."""
    against_it = returns_of(VecEnv(connect4_against("negamax:2"), 400, seed=1), tactical).mean()
    with_it = returns_of(VecEnv(connect4_against("tactical"), 400, seed=2), Negamax(2)).mean()
    assert against_it < -0.4
    assert with_it > 0.4


def leftmost(obs: Tensor, action_mask: Tensor) -> Tensor:
    """A policy: the first column with room."""
    return action_mask.long().argmax(1)


def taught(policy: opponents.Policy) -> SelfPlay:
    opponent = SelfPlay(refresh=1)
    opponent.policy = policy
    return opponent


class Watched:
    """A policy that drops anywhere and keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[Tensor, Tensor]] = []

    def __call__(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        self.shown.append((obs.clone(), action_mask.clone()))
        rng = CounterRNG(11, torch.arange(len(obs)), EXPLORATION_STREAM)
        return sample_legal(action_mask, rng.uniform(len(self.shown), 1)[:, 0])


def test_a_copy_of_the_student_plays_at_random_before_it_has_a_policy() -> None:
    for mover, other in zip(*positions(60, seed=30, shortest=8), strict=True):
        action_mask = {column for column in range(7) if landing(grid_of(mover, other), column)}
        assert chosen(SelfPlay(1000), mover.view(1), other.view(1)) == evenly(action_mask)


def test_a_copy_of_the_student_sees_its_own_discs_first() -> None:
    x, o = board("....... ....... ....... ....... ...o... x..x..o")
    watched = Watched()
    taught(watched)(o, x, torch.tensor([0.5]))
    [(obs, action_mask)] = watched.shown
    assert obs.dtype == torch.float32
    assert obs.shape == (1, 2, 6, 7)
    assert obs[0, 0].nonzero().tolist() == [[4, 3], [5, 6]]
    assert obs[0, 1].nonzero().tolist() == [[5, 0], [5, 3]]
    assert action_mask.tolist() == [[True] * 7]


def test_in_play_the_copy_sees_what_the_student_left_with_the_sides_exchanged() -> None:
    """The position in which it moves has the student's new discs, but not yet its own."""
    env = VecEnv(connect4_against("self"), 64, seed=3)
    watched = env.game.opponent.policy = Watched()
    rng = CounterRNG(4, torch.arange(64), EXPLORATION_STREAM)
    step = env.reset()
    moved = 0
    for turn in range(40):
        watched.shown.clear()
        before, action = step, sample_legal(step.action_mask, rng.uniform(turn, 1)[:, 0])
        step = env.step(action)
        [(obs, action_mask)] = watched.shown
        mine, theirs = before.obs.unbind(1)
        assert torch.equal(obs[:, 0], theirs)
        assert torch.equal(obs[:, 1], step.final_obs[:, 0])
        assert ((obs[:, 1] - mine).flatten(1).sum(1) == 1).all()
        room = (obs.sum(1) == 0).any(1)
        assert torch.equal(action_mask, room | ~room.any(1, keepdim=True))
        added = (step.final_obs[:, 1] - obs[:, 0]).flatten(1).sum(1)
        assert torch.equal(added[~step.terminated], torch.ones(int((~step.terminated).sum())))
        moved += int(added.sum())
    assert moved > 2000


FINE = torch.arange(84_000) / 84_000 + 1 / 200_000  # 5 % of it: 600 numbers for each of 7 columns


@pytest.mark.parametrize("position", ["....... " * 6, "x.o.o.. o.x.x.. x.o.o.. o.x.x.. x.o.o.. oxxxooo"])
def test_one_move_in_20_of_the_copy_is_any_legal_column(position: str) -> None:
    """The policy wants the middle in the first position, and the second column in the other."""
    x, o = board(position)
    action_mask = legal_columns(x | o)[0].nonzero()[:, 0].tolist()
    wanted = 3 if len(action_mask) == 7 else action_mask[0]
    opponent = taught(lambda obs, action_mask: torch.full((len(obs),), wanted))
    found = Counter(opponent(x.expand(len(FINE)), o.expand(len(FINE)), FINE).tolist())
    share = len(FINE) // 20 / len(action_mask)
    assert sorted(found) == action_mask
    for column in action_mask:
        expected = share + (len(FINE) * 19 // 20 if column == wanted else 0)
        assert abs(found[column] - expected) <= 2


def test_the_copy_follows_its_policy_row_by_row_where_it_does_not_err() -> None:
    empty = torch.zeros(700, dtype=torch.int64)
    columns = torch.arange(700) % 7
    u = 0.051 + 0.949 * torch.arange(700) / 700
    assert torch.equal(taught(lambda obs, action_mask: columns)(empty, empty, u), columns)


def test_a_full_board_reaches_the_policy_with_every_column_legal() -> None:
    x, o = board(FULL_WITHOUT_A_LINE)
    almost = board("." + FULL_WITHOUT_A_LINE[1:])
    watched = Watched()
    column = taught(watched)(torch.cat([x, almost[0]]), torch.cat([o, almost[1]]), torch.tensor([0.5, 0.5]))
    [(_, action_mask)] = watched.shown
    assert action_mask.tolist() == [[True] * 7, [True] + [False] * 6]
    assert column[1] == 0


def test_a_new_policy_takes_the_place_of_the_old_one() -> None:
    empty = torch.zeros(3, dtype=torch.int64)
    opponent = taught(leftmost)
    assert opponent(empty, empty, torch.full((3,), 0.5)).tolist() == [0] * 3
    opponent.policy = lambda obs, action_mask: torch.full((len(obs),), 6)
    assert opponent(empty, empty, torch.full((3,), 0.5)).tolist() == [6] * 3


@pytest.mark.parametrize("refresh", [0, -5])
def test_a_copy_is_refreshed_after_at_least_one_update(refresh: int) -> None:
    with pytest.raises(ValueError, match=f"refresh is {refresh}; .* at least 1 update"):
        SelfPlay(refresh)
    with pytest.raises(ValueError, match=f"refresh is {refresh}; .* at least 1 update"):
        connect4_against("self", refresh=refresh)


def test_the_opponents_go_by_their_names() -> None:
    assert OPPONENTS["random"] is random
    assert OPPONENTS["tactical"] is tactical
    assert connect4_against("random").opponent is random
    assert connect4_against("tactical").opponent is tactical
    assert connect4_against().opponent is tactical


def test_every_game_against_oneself_has_an_opponent_of_its_own() -> None:
    one, other = (connect4_against("self", refresh=number).opponent for number in (7, 8))
    assert isinstance(one, SelfPlay)
    assert (one.refresh, other.refresh) == (7, 8)
    one.policy = leftmost
    assert other.policy is None


@pytest.mark.parametrize("depth", range(1, 9))
def test_a_search_of_1_to_8_discs_goes_by_its_name(depth: int) -> None:
    """With four cells left it is one search for all depths from 4 on, and cheap."""
    game = connect4_against(f"negamax:{depth}")
    assert isinstance(game, Connect4)
    assert isinstance(game.opponent, Negamax)
    assert game.opponent.depth == depth
    x, o = board("xx.o.x. ooxxoox xxooxxo ooxxoox xxooxxo ooxxoox")
    assert game.opponent(x, o, torch.zeros(1)).item() in best_columns(x, o, depth)


@pytest.mark.parametrize("name", ["negamax:0", "negamax:9", "negamax:100"])
def test_a_search_of_no_or_of_more_than_8_discs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .* 1 to 8 discs"):
        connect4_against(name)


@pytest.mark.parametrize("name", ["negamax:x", "negamax", "negamax:", "negamax:-1", "negamax:2.5", "negamax:²"])
def test_a_search_without_a_number_is_answered_with_how_it_is_written(name: str) -> None:
    with pytest.raises(ValueError, match="no opponent is called") as caught:
        connect4_against(name)
    assert repr(name) in str(caught.value)
    assert str(caught.value).endswith("did you mean 'negamax:DEPTH'?")


@pytest.mark.parametrize("name", ["tactical:2", "random:1", "self:3", "Self", ""])
def test_an_opponent_that_there_is_not_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=f"no opponent is called '{name}'") as caught:
        connect4_against(name)
    assert "there are negamax:DEPTH, random, self, tactical" in str(caught.value)


def test_middle_counts_centre_discs_twice_and_their_neighbours_once() -> None:
    cells = torch.tensor([bits({cell}) for cell in CELLS])
    assert middle(cells).tolist() == [{2: 1, 3: 2, 4: 1}.get(column, 0) for _, column in CELLS]
    assert middle(cells.sum(0, keepdim=True)).tolist() == [6 + 12 + 6]


def test_estimate_weighs_threats_and_the_middle() -> None:
    assert THREAT == 4
    mover, other = positions(300, seed=4)
    expected = [estimate_by_definition(grid_of(m, o), "m") for m, o in zip(mover, other, strict=True)]
    assert estimate(mover, other).tolist() == expected
    assert estimate(other, mover).tolist() == [-value for value in expected]
    assert len(set(expected)) > 20


def searched_positions() -> tuple[Tensor, Tensor]:
    """Some of every length, some with full columns, some with only a few cells left."""
    parts = [positions(16, seed=15), positions(14, seed=16, shortest=24), positions(10, seed=17, shortest=37)]
    return tuple(torch.cat(side) for side in zip(*parts, strict=True))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_search_equals_a_negamax_that_follows_one_position_at_a_time(depth: int) -> None:
    mover, other = searched_positions()
    discs = planes(mover | other).sum((1, 2, 3))
    assert (~legal_columns(mover | other)).any(1).sum() >= 10
    assert (discs >= 42 - depth).any()
    found = search(mover, other, depth)
    assert found.dtype == torch.int64
    assert found.shape == (len(mover), 7)
    for index, (m, o) in enumerate(zip(mover, other, strict=True)):
        grid = grid_of(m, o)
        assert found[index].tolist() == search_by_definition(grid, depth), "\n".join(map("".join, grid))


def test_the_searched_positions_hold_wins_losses_and_quiet_ends() -> None:
    assert (WIN, FULL_COLUMN) == (1000, -10_000)
    found = set(search(*searched_positions(), 4).flatten().tolist())
    assert {WIN, WIN - 2, 1 - WIN, 3 - WIN, FULL_COLUMN, 0} <= found


OPEN_TWO = "....... ....... ....... ....... ..oo... ..xx..."


def test_a_win_with_the_next_disc_is_worth_most_and_each_disc_until_then_costs_1() -> None:
    x, o = board(OPEN_TWO)
    for depth in (3, 4):
        values = search(x, o, depth)[0]
        assert values[1] == values[4] == WIN - 2
    x, o = board("....... ....... ....... ....... ..ooo.. ..xxx..")
    for depth in (1, 2, 3, 4):
        values = search(x, o, depth)[0]
        assert values[1] == values[5] == WIN


def test_a_win_beyond_the_depth_is_not_seen() -> None:
    assert search(*board(OPEN_TWO), 2).abs().max() < WIN // 2


def test_a_loss_is_worth_as_much_to_the_other_side() -> None:
    open_three = board("....... ....... ....... ....... ....... .xxx.oo")[::-1]
    for depth in (2, 3, 4):
        assert search(*open_three, depth).tolist() == [[1 - WIN] * 7]
    open_two = board("....... ....... ....... ....... ....... ..xx...")[::-1]
    values = search(*open_two, 4)[0]
    assert values[[0, 6]].tolist() == [3 - WIN] * 2
    assert (values[[1, 4]].abs() < WIN // 2).all()


def test_the_last_disc_into_a_full_board_is_worth_nothing() -> None:
    x, o = board(FULL_WITHOUT_A_LINE.replace("xxooxxo", "xxoox.o", 1))
    for depth in (1, 2, 3, 4):
        assert search(x, o, depth).tolist() == [[FULL_COLUMN] * 5 + [0] + [FULL_COLUMN]]


def test_on_the_empty_board_the_centre_is_best_and_columns_are_symmetric() -> None:
    empty = torch.zeros(1, dtype=torch.int64)
    values = search(empty, empty, 4)[0]
    assert torch.equal(values, values.flip(0))
    assert values.argmax() == 3
    assert (values[3] > values[[0, 1, 2, 4, 5, 6]]).all()


def test_a_mirrored_position_has_mirrored_values() -> None:
    mover, other = searched_positions()
    for depth in (1, 2, 3):
        assert torch.equal(search(mirror(mover), mirror(other), depth), search(mover, other, depth).flip(1))


@pytest.mark.parametrize(("depth", "leaves"), list(itertools.product([1, 2, 3], [1, 7, 60, 400])))
def test_splitting_into_chunks_changes_nothing(depth: int, leaves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mover, other = searched_positions()
    whole = search(mover, other, depth)
    monkeypatch.setattr(opponents, "MAX_LEAVES", leaves)
    assert torch.equal(search(mover, other, depth), whole)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_search_holds_no_more_positions_at_once_than_it_promises(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def watched(mine: Tensor, theirs: Tensor) -> Tensor:
        held.append(len(mine))
        return estimate(mine, theirs)

    monkeypatch.setattr(opponents, "estimate", watched)
    monkeypatch.setattr(opponents, "MAX_LEAVES", 2 * 7**3 + 1)
    mover, other = positions(300, seed=8)
    search(mover, other, depth)
    assert max(held) in range(7**3, 2 * 7**3 + 1)


@pytest.mark.parametrize("depth", [0, -1])
def test_a_search_looks_at_least_one_disc_ahead(depth: int) -> None:
    x, o = board(OPEN_TWO)
    with pytest.raises(ValueError, match=f"depth is {depth}; it must be at least 1 disc"):
        search(x, o, depth)


def test_search_does_not_modify_its_positions() -> None:
    mover, other = searched_positions()
    kept = mover.clone(), other.clone()
    search(mover, other, 2)
    assert torch.equal(mover, kept[0])
    assert torch.equal(other, kept[1])
