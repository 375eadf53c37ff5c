"""Opponents and the search against slow definitions on a 6 x 7 grid: every line checked for every move, and a negamax
of one position at a time. SelfPlay against a policy that records its inputs.
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
from tests.helpers.connect4_boards import CELLS, FULL_WITHOUT_A_LINE, LINES, Cell, bitboard, board

Grid = list[list[str]]  # six rows from the top: "m" the side to move, "t" the other, "." empty

UNIFORMS = torch.arange(420) / 420 + 1 / 2000  # 1 to 7 columns divide it into equal parts
LINES_THROUGH = {cell: [line for line in LINES if cell in line] for cell in CELLS}


def positions(number: int, seed: int, shortest: int = 0) -> tuple[Tensor, Tensor]:
    """Return undecided boards of random moves with at least `shortest` discs: the side to move, the other."""
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
    """Return whether a disc of `side` in `cell` would complete a line of four."""
    return any(all(at == cell or grid[at[0]][at[1]] == side for at in line) for line in LINES_THROUGH[cell])


def winning_columns(grid: Grid, side: str) -> set[int]:
    cells = (landing(grid, column) for column in range(7))
    return {cell[1] for cell in cells if cell and makes_four(grid, cell, side)}


def with_disc(grid: Grid, cell: Cell, side: str) -> Grid:
    return [[side if (r, c) == cell else grid[r][c] for c in range(7)] for r in range(6)]


def estimate_by_definition(grid: Grid, side: str) -> int:
    """Return 4 for each empty cell that completes a line, 2 for a disc in the centre column, 1 beside it."""
    value = 0
    for sign, who in ((1, side), (-1, "t" if side == "m" else "m")):
        for row, column in CELLS:
            if grid[row][column] == who:
                value += sign * {2: 1, 3: 2, 4: 1}.get(column, 0)
            elif grid[row][column] == "." and makes_four(grid, (row, column), who):
                value += sign * 4
    return value


def value_by_definition(grid: Grid, side: str, num_discs: int, depth: int) -> int:
    """Return the value for `side`, which moves next, `played` of `depth` discs after the root."""
    if all(cell != "." for row in grid for cell in row):
        return 0
    if num_discs == depth:
        return estimate_by_definition(grid, side)
    if winning_columns(grid, side):
        return 1000 - num_discs
    if num_discs == depth - 1:
        return estimate_by_definition(grid, side)
    other = "t" if side == "m" else "m"
    cells = [cell for column in range(7) if (cell := landing(grid, column))]
    return max(-value_by_definition(with_disc(grid, cell, side), other, num_discs + 1, depth) for cell in cells)


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


def choices(opponent: Opponent, mover: Tensor, other: Tensor) -> Counter[int]:
    """Return how often each column is chosen over a fine grid of uniforms; the two bitboards are (1,)."""
    return Counter(opponent(mover.expand(len(UNIFORMS)), other.expand(len(UNIFORMS)), UNIFORMS).tolist())


def equal_counts(columns: set[int]) -> dict[int, int]:
    return {column: len(UNIFORMS) // len(columns) for column in columns}


def test_random_chooses_legal_columns_equally_often() -> None:
    for mover, other in zip(*positions(150, seed=1, shortest=8), strict=True):
        grid = grid_of(mover, other)
        action_mask = {column for column in range(7) if landing(grid, column)}
        assert choices(random, mover.view(1), other.view(1)) == equal_counts(action_mask)


def test_tactical_wins_then_blocks_then_chooses_any() -> None:
    kinds: Counter[str] = Counter()
    for mover, other in zip(*positions(400, seed=2), strict=True):
        grid = grid_of(mover, other)
        wins, blocks = winning_columns(grid, "m"), winning_columns(grid, "t")
        action_mask = {column for column in range(7) if landing(grid, column)}
        kinds["win, not block" if wins and blocks else "win" if wins else "block" if blocks else "any"] += 1
        assert choices(tactical, mover.view(1), other.view(1)) == equal_counts(wins or blocks or action_mask)
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
        "win before block",
        "win on one side or the other",
        "win in a gap before block",
        "a winning cell in the air is out of reach",
    ],
)
def test_tactical_on_drawn_boards(position: str, columns: set[int]) -> None:
    """x moves."""
    x, o = board(position)
    assert choices(tactical, x, o) == equal_counts(columns)


def test_opponents_rows_are_independent() -> None:
    mover, other = positions(200, seed=3)
    rng = CounterRNG(7, torch.arange(200), EXPLORATION_STREAM).uniform(0, 1)[:, 0]
    for opponent in (*OPPONENTS.values(), Negamax(2), self_play_with(leftmost), SelfPlay(1)):
        together = opponent(mover, other, rng)
        alone = [opponent(mover[i : i + 1], other[i : i + 1], rng[i : i + 1]).item() for i in range(200)]
        assert together.tolist() == alone


def best_columns(mover: Tensor, other: Tensor, depth: int) -> set[int]:
    values = search_by_definition(grid_of(mover, other), depth)
    return {column for column in range(7) if values[column] == max(values)}


@pytest.mark.parametrize(("depth", "number"), [(1, 60), (2, 40), (3, 8)])
def test_negamax_chooses_best_columns_equally_often(depth: int, number: int) -> None:
    sizes = set()
    for mover, other in zip(*positions(number, seed=20 + depth, shortest=6), strict=True):
        best = best_columns(mover, other, depth)
        sizes.add(len(best))
        assert choices(Negamax(depth), mover.view(1), other.view(1)) == equal_counts(best)
    assert len(sizes) > 1


def test_negamax_wins_or_chooses_only_saving_column() -> None:
    kinds: Counter[str] = Counter()
    for mover, other in zip(*positions(150, seed=24), strict=True):
        grid = grid_of(mover, other)
        wins = winning_columns(grid, "m")
        cells = [cell for column in range(7) if (cell := landing(grid, column))]
        saves = {cell[1] for cell in cells if not winning_columns(with_disc(grid, cell, "m"), "t")}
        found = choices(Negamax(2), mover.view(1), other.view(1))
        if wins:
            assert found == equal_counts(wins)
        elif saves:
            assert set(found) <= saves
        kinds["win" if wins else "the only one" if len(saves) == 1 else "other"] += 1
    assert min(kinds["win"], kinds["the only one"]) >= 20


def test_negamax_searches_to_its_depth() -> None:
    """x wins with its second disc after columns 1 and 4 alike; at depth 1, column 4 is better, nearer the centre."""
    x, o = board("....... ....... ....... ....... ..oo... ..xx...")
    assert choices(Negamax(3), x, o) == equal_counts({1, 4})
    assert choices(Negamax(1), x, o) == equal_counts({4})


def returns_of(env: Env, student: Opponent) -> Tensor:
    """Return the final reward of each copy's first episode, (N,)."""
    rng = CounterRNG(5, torch.arange(env.num_envs), EXPLORATION_STREAM)
    env.reset()
    found = torch.full((env.num_envs,), torch.nan)
    for turn in range(21):
        after = env.step(student(env.state["mine"], env.state["theirs"], rng.uniform(turn, 1)[:, 0]))
        found = torch.where(found.isnan() & after.terminated, after.reward, found)
    assert not found.isnan().any()
    return found


def test_negamax_of_depth_2_beats_tactical() -> None:
    """The standard error of 400 episodes is at most 0.05."""
    against_it = returns_of(VecEnv(connect4_against("negamax:2"), 400, seed=1), tactical).mean()
    with_it = returns_of(VecEnv(connect4_against("tactical"), 400, seed=2), Negamax(2)).mean()
    assert against_it < -0.4
    assert with_it > 0.4


def leftmost(obs: Tensor, action_mask: Tensor) -> Tensor:
    """Choose the first column with room."""
    return action_mask.long().argmax(1)


def self_play_with(policy: opponents.Policy) -> SelfPlay:
    opponent = SelfPlay(refresh=1)
    opponent.policy = policy
    return opponent


class RecordingPolicy:
    """A policy of random legal columns that records its inputs."""

    def __init__(self) -> None:
        self.inputs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        self.inputs.append((obs.clone(), action_mask.clone()))
        rng = CounterRNG(11, torch.arange(len(obs)), EXPLORATION_STREAM)
        return sample_legal(action_mask, rng.uniform(len(self.inputs), 1)[:, 0])


def test_self_play_without_policy_equals_random() -> None:
    for mover, other in zip(*positions(60, seed=30, shortest=8), strict=True):
        action_mask = {column for column in range(7) if landing(grid_of(mover, other), column)}
        assert choices(SelfPlay(1000), mover.view(1), other.view(1)) == equal_counts(action_mask)


def test_self_play_observes_own_discs_first() -> None:
    x, o = board("....... ....... ....... ....... ...o... x..x..o")
    recorder = RecordingPolicy()
    self_play_with(recorder)(o, x, torch.tensor([0.5]))
    [(obs, action_mask)] = recorder.inputs
    assert obs.dtype == torch.float32
    assert obs.shape == (1, 2, 6, 7)
    assert obs[0, 0].nonzero().tolist() == [[4, 3], [5, 6]]
    assert obs[0, 1].nonzero().tolist() == [[5, 0], [5, 3]]
    assert action_mask.tolist() == [[True] * 7]


def test_self_play_in_env_observes_board_after_students_move() -> None:
    """It observes the student's new disc, but not yet its own."""
    env = VecEnv(connect4_against("self"), 64, seed=3)
    recorder = env.game.opponent.policy = RecordingPolicy()
    rng = CounterRNG(4, torch.arange(64), EXPLORATION_STREAM)
    step = env.reset()
    moved = 0
    for turn in range(40):
        recorder.inputs.clear()
        before, action = step, sample_legal(step.action_mask, rng.uniform(turn, 1)[:, 0])
        step = env.step(action)
        [(obs, action_mask)] = recorder.inputs
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


FINE_UNIFORMS = torch.arange(84_000) / 84_000 + 1 / 200_000  # 5 % of it: 600 numbers for each of 7 columns


@pytest.mark.parametrize("position", ["....... " * 6, "x.o.o.. o.x.x.. x.o.o.. o.x.x.. x.o.o.. oxxxooo"])
def test_self_play_chooses_any_legal_column_with_epsilon(position: str) -> None:
    """The policy chooses the centre of the first board, and the first legal column of the other."""
    x, o = board(position)
    action_mask = legal_columns(x | o)[0].nonzero()[:, 0].tolist()
    chosen = 3 if len(action_mask) == 7 else action_mask[0]
    opponent = self_play_with(lambda obs, action_mask: torch.full((len(obs),), chosen))
    found = Counter(opponent(x.expand(len(FINE_UNIFORMS)), o.expand(len(FINE_UNIFORMS)), FINE_UNIFORMS).tolist())
    share = len(FINE_UNIFORMS) // 20 / len(action_mask)
    assert sorted(found) == action_mask
    for column in action_mask:
        expected = share + (len(FINE_UNIFORMS) * 19 // 20 if column == chosen else 0)
        assert abs(found[column] - expected) <= 2


def test_self_play_above_epsilon_follows_policy() -> None:
    empty = torch.zeros(700, dtype=torch.int64)
    columns = torch.arange(700) % 7
    u = 0.051 + 0.949 * torch.arange(700) / 700
    assert torch.equal(self_play_with(lambda obs, action_mask: columns)(empty, empty, u), columns)


def test_self_play_full_board_has_every_column_legal() -> None:
    x, o = board(FULL_WITHOUT_A_LINE)
    almost = board("." + FULL_WITHOUT_A_LINE[1:])
    recorder = RecordingPolicy()
    column = self_play_with(recorder)(torch.cat([x, almost[0]]), torch.cat([o, almost[1]]), torch.tensor([0.5, 0.5]))
    [(_, action_mask)] = recorder.inputs
    assert action_mask.tolist() == [[True] * 7, [True] + [False] * 6]
    assert column[1] == 0


def test_self_play_policy_can_be_replaced() -> None:
    empty = torch.zeros(3, dtype=torch.int64)
    opponent = self_play_with(leftmost)
    assert opponent(empty, empty, torch.full((3,), 0.5)).tolist() == [0] * 3
    opponent.policy = lambda obs, action_mask: torch.full((len(obs),), 6)
    assert opponent(empty, empty, torch.full((3,), 0.5)).tolist() == [6] * 3


@pytest.mark.parametrize("refresh", [0, -5])
def test_self_play_refresh_below_one_raises(refresh: int) -> None:
    with pytest.raises(ValueError, match=f"refresh is {refresh}; .* at least 1 update"):
        SelfPlay(refresh)
    with pytest.raises(ValueError, match=f"refresh is {refresh}; .* at least 1 update"):
        connect4_against("self", refresh=refresh)


def test_connect4_against_names_opponents() -> None:
    assert OPPONENTS["random"] is random
    assert OPPONENTS["tactical"] is tactical
    assert connect4_against("random").opponent is random
    assert connect4_against("tactical").opponent is tactical
    assert connect4_against().opponent is tactical


def test_connect4_against_self_makes_separate_opponents() -> None:
    one, other = (connect4_against("self", refresh=number).opponent for number in (7, 8))
    assert isinstance(one, SelfPlay)
    assert (one.refresh, other.refresh) == (7, 8)
    one.policy = leftmost
    assert other.policy is None


@pytest.mark.parametrize("depth", range(1, 9))
def test_connect4_against_negamax_depths_1_to_8(depth: int) -> None:
    """With four empty cells, all depths from 4 on are one cheap search."""
    game = connect4_against(f"negamax:{depth}")
    assert isinstance(game, Connect4)
    assert isinstance(game.opponent, Negamax)
    assert game.opponent.depth == depth
    x, o = board("xx.o.x. ooxxoox xxooxxo ooxxoox xxooxxo ooxxoox")
    assert game.opponent(x, o, torch.zeros(1)).item() in best_columns(x, o, depth)


@pytest.mark.parametrize("name", ["negamax:0", "negamax:9", "negamax:100"])
def test_connect4_against_negamax_depth_out_of_range_raises(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .* 1 to 8 discs"):
        connect4_against(name)


@pytest.mark.parametrize("name", ["negamax:x", "negamax", "negamax:", "negamax:-1", "negamax:2.5", "negamax:²"])
def test_connect4_against_negamax_without_number_raises_with_form(name: str) -> None:
    with pytest.raises(ValueError, match="no opponent is called") as caught:
        connect4_against(name)
    assert repr(name) in str(caught.value)
    assert str(caught.value).endswith("did you mean 'negamax:DEPTH'?")


@pytest.mark.parametrize("name", ["tactical:2", "random:1", "self:3", "Self", ""])
def test_connect4_against_unknown_name_raises_with_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"no opponent is called '{name}'") as caught:
        connect4_against(name)
    assert "there are negamax:DEPTH, random, self, tactical" in str(caught.value)


def test_middle_counts_centre_twice_and_neighbours_once() -> None:
    cells = torch.tensor([bitboard({cell}) for cell in CELLS])
    assert middle(cells).tolist() == [{2: 1, 3: 2, 4: 1}.get(column, 0) for _, column in CELLS]
    assert middle(cells.sum(0, keepdim=True)).tolist() == [6 + 12 + 6]


def test_estimate_equals_definition() -> None:
    assert THREAT == 4
    mover, other = positions(300, seed=4)
    expected = [estimate_by_definition(grid_of(m, o), "m") for m, o in zip(mover, other, strict=True)]
    assert estimate(mover, other).tolist() == expected
    assert estimate(other, mover).tolist() == [-value for value in expected]
    assert len(set(expected)) > 20


def searched_positions() -> tuple[Tensor, Tensor]:
    """Return boards of every number of discs, some with full columns, some with only a few empty cells."""
    parts = [positions(16, seed=15), positions(14, seed=16, shortest=24), positions(10, seed=17, shortest=37)]
    return tuple(torch.cat(side) for side in zip(*parts, strict=True))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_search_equals_negamax_of_single_positions(depth: int) -> None:
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


def test_searched_positions_include_wins_losses_and_draws() -> None:
    assert (WIN, FULL_COLUMN) == (1000, -10_000)
    found = set(search(*searched_positions(), 4).flatten().tolist())
    assert {WIN, WIN - 2, 1 - WIN, 3 - WIN, FULL_COLUMN, 0} <= found


OPEN_TWO = "....... ....... ....... ....... ..oo... ..xx..."


def test_search_value_of_win_decreases_with_discs() -> None:
    x, o = board(OPEN_TWO)
    for depth in (3, 4):
        values = search(x, o, depth)[0]
        assert values[1] == values[4] == WIN - 2
    x, o = board("....... ....... ....... ....... ..ooo.. ..xxx..")
    for depth in (1, 2, 3, 4):
        values = search(x, o, depth)[0]
        assert values[1] == values[5] == WIN


def test_search_does_not_find_win_beyond_depth() -> None:
    assert search(*board(OPEN_TWO), 2).abs().max() < WIN // 2


def test_search_value_of_loss_is_minus_value_of_win() -> None:
    open_three = board("....... ....... ....... ....... ....... .xxx.oo")[::-1]
    for depth in (2, 3, 4):
        assert search(*open_three, depth).tolist() == [[1 - WIN] * 7]
    open_two = board("....... ....... ....... ....... ....... ..xx...")[::-1]
    values = search(*open_two, 4)[0]
    assert values[[0, 6]].tolist() == [3 - WIN] * 2
    assert (values[[1, 4]].abs() < WIN // 2).all()


def test_search_value_of_full_board_is_zero() -> None:
    x, o = board(FULL_WITHOUT_A_LINE.replace("xxooxxo", "xxoox.o", 1))
    for depth in (1, 2, 3, 4):
        assert search(x, o, depth).tolist() == [[FULL_COLUMN] * 5 + [0] + [FULL_COLUMN]]


def test_search_of_empty_board_prefers_centre_symmetrically() -> None:
    empty = torch.zeros(1, dtype=torch.int64)
    values = search(empty, empty, 4)[0]
    assert torch.equal(values, values.flip(0))
    assert values.argmax() == 3
    assert (values[3] > values[[0, 1, 2, 4, 5, 6]]).all()


def test_search_of_mirrored_board_is_mirrored() -> None:
    mover, other = searched_positions()
    for depth in (1, 2, 3):
        assert torch.equal(search(mirror(mover), mirror(other), depth), search(mover, other, depth).flip(1))


@pytest.mark.parametrize(("depth", "leaves"), list(itertools.product([1, 2, 3], [1, 7, 60, 400])))
def test_search_in_chunks_equals_whole(depth: int, leaves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mover, other = searched_positions()
    whole = search(mover, other, depth)
    monkeypatch.setattr(opponents, "MAX_LEAVES", leaves)
    assert torch.equal(search(mover, other, depth), whole)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_search_holds_at_most_max_leaves(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def recorder(mine: Tensor, theirs: Tensor) -> Tensor:
        held.append(len(mine))
        return estimate(mine, theirs)

    monkeypatch.setattr(opponents, "estimate", recorder)
    monkeypatch.setattr(opponents, "MAX_LEAVES", 2 * 7**3 + 1)
    mover, other = positions(300, seed=8)
    search(mover, other, depth)
    assert max(held) in range(7**3, 2 * 7**3 + 1)


@pytest.mark.parametrize("depth", [0, -1])
def test_search_depth_below_one_raises(depth: int) -> None:
    x, o = board(OPEN_TWO)
    with pytest.raises(ValueError, match=f"depth is {depth}; it must be at least 1 disc"):
        search(x, o, depth)


def test_search_does_not_modify_boards() -> None:
    mover, other = searched_positions()
    kept = mover.clone(), other.clone()
    search(mover, other, 2)
    assert torch.equal(mover, kept[0])
    assert torch.equal(other, kept[1])
