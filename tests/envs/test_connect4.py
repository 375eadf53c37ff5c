"""Connect Four against OpenSpiel's, step by step over whole episodes; drawn boards for every rule; every function on
bitboards against the 69 lines and cells of a plain 6 x 7 grid; and the notation against replaying it.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyspiel
import pytest
import torch
from torch import Tensor

from envs.base import State, VecEnv, select_rows
from envs.connect4 import (
    BOARD,
    Connect4,
    columns_of,
    completing,
    draw,
    drop,
    has_four,
    is_full,
    legal_columns,
    mirror,
    notation,
    planes,
    playable,
    result_of,
)
from envs.opponents import random
from envs.rng import EXPLORATION_STREAM, CounterRNG, sample_legal
from tests.helpers.connect4_boards import (
    CELLS,
    FULL_WITHOUT_A_LINE,
    LINES,
    Cell,
    bitboard,
    board,
    cell_bit,
    cells_of,
    drawn,
)

NUM_EPISODES = 10_000


def random_sets(count: int, seed: int = 0) -> Tensor:
    """Return bitboards with any cells set, from sparse to dense, reachable or not."""
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand(count, 1, generator=generator)
    chosen = torch.rand(count, 42, generator=generator) < density
    return (chosen * torch.tensor([cell_bit(*cell) for cell in CELLS])).sum(1)


def random_discs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return two sides' discs that obey gravity, with columns from empty to full; lines of four may occur."""
    generator = torch.Generator().manual_seed(seed)
    height = torch.randint(0, 7, (count, 7), generator=generator)
    floor = torch.tensor([5 - row for row, _ in CELLS])
    taken = floor < height[:, [column for _, column in CELLS]]
    ours = torch.rand(count, 42, generator=generator) < 0.5
    cells = torch.tensor([cell_bit(*cell) for cell in CELLS])
    return (taken * ours * cells).sum(1), (taken * ~ours * cells).sum(1)


def play_turn(position: str, column: int, reply: int) -> tuple[float, bool, str]:
    """Return the reward, whether the episode ended, and the board after x has dropped into `column` and o replied."""
    game = Connect4(lambda pieces, others, u: torch.full_like(pieces, reply))
    x, o = board(position)
    state, reward, terminated = game.step({"mine": x, "theirs": o}, torch.tensor([column]), torch.zeros(1, 1))
    return reward.item(), terminated.item(), drawn(state["mine"], state["theirs"])


class Episode(NamedTuple):
    """One whole episode as the env returned it, by time steps."""

    opening: int  # the column of the opponent's opening, -1 if the student moves first
    actions: list[int]
    replies: list[int]  # -1: no reply
    obs: Tensor  # (turns, 2, 6, 7)
    action_mask: Tensor  # (turns, 7)
    final_obs: Tensor  # (turns, 2, 6, 7)
    rewards: list[float]
    terminations: list[bool]


def column_of_difference(before: Tensor, after: Tensor) -> Tensor:
    """Return the column of the disc by which (N, 6, 7) planes differ, -1 where they do not."""
    added = (after - before).sum(1)
    assert ((added == 0) | (added == 1)).all()
    assert (added.sum(1) <= 1).all()
    return torch.where(added.any(1), added.argmax(1), -1)


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    """Return the first episode of each of many env copies, with random moves on both sides."""
    env = VecEnv(Connect4(random), NUM_EPISODES, seed=1)
    rng = CounterRNG(1, torch.arange(NUM_EPISODES), EXPLORATION_STREAM)
    steps, actions = [env.reset()], []
    for turn in range(21):
        actions.append(sample_legal(steps[-1].action_mask, rng.uniform(turn, 1)[:, 0]))
        steps.append(env.step(actions[-1]))
    opening = column_of_difference(torch.zeros(NUM_EPISODES, 6, 7), steps[0].obs[:, 1]).tolist()
    replies = [column_of_difference(step.obs[:, 1], after.final_obs[:, 1]) for step, after in itertools.pairwise(steps)]
    observed, action_mask, final, reward, terminated = (
        torch.stack([getattr(step, field) for step in steps], 1)
        for field in ("obs", "action_mask", "final_obs", "reward", "terminated")
    )
    actions, replies = torch.stack(actions, 1).tolist(), torch.stack(replies, 1).tolist()
    turns = terminated[:, 1:].float().argmax(1) + 1
    assert terminated[:, 1:].any(1).all()
    return [
        Episode(
            opening[row],
            actions[row][:n],
            replies[row][:n],
            observed[row, :n],
            action_mask[row, :n],
            final[row, 1 : n + 1],
            reward[row, 1 : n + 1].tolist(),
            terminated[row, 1 : n + 1].tolist(),
        )
        for row, n in enumerate(turns.tolist())
    ]


def test_random_episodes_equal_open_spiel_step_by_step(episodes: list[Episode]) -> None:
    rules = pyspiel.load_game("connect_four")
    ends: Counter[str] = Counter()
    for index, episode in enumerate(episodes):
        state = rules.new_initial_state()
        student = 0
        if episode.opening >= 0:
            student = 1
            state.apply_action(episode.opening)
        boards, action_mask = [], []
        for action, reply, reward, terminated in zip(
            episode.actions, episode.replies, episode.rewards, episode.terminations, strict=True
        ):
            assert not state.is_terminal()
            assert state.current_player() == student
            boards.append(str(state))
            action_mask.append(state.legal_actions())
            state.apply_action(action)
            last = "student's"
            assert (reply >= 0) == (not state.is_terminal()), f"episode {index}"
            if reply >= 0:
                state.apply_action(reply)
                last = "opponent's"
            assert terminated == state.is_terminal(), f"episode {index}"
            assert reward == (state.returns()[student] if terminated else 0), f"episode {index}"
        ends[f"{last} {'line' if reward else 'last disc fills the board'}"] += 1
        assert action_mask == [[c for c in range(7) if row[c]] for row in episode.action_mask.tolist()], (
            f"episode {index}"
        )
        expected = planes_of([*boards, str(state)], student)
        assert torch.equal(episode.obs, expected[:-1]), f"episode {index}"
        assert torch.equal(episode.final_obs, expected[1:]), f"episode {index}"
    assert sum(ends.values()) == NUM_EPISODES
    assert ends["student's line"] > 4000
    assert ends["opponent's line"] > 4000
    assert ends["student's last disc fills the board"] >= 5
    assert ends["opponent's last disc fills the board"] >= 5


def planes_of(boards: list[str], student: int) -> Tensor:
    """Return OpenSpiel's drawings (first mover x, second mover o; top row first) as our observations."""
    cells = np.array([[[*row] for row in board.split()] for board in boards])
    planes = [cells == sign for sign in ("xo" if student == 0 else "ox")]
    return torch.from_numpy(np.stack(planes, 1)).float()


def test_random_episode_lasts_21_plies_on_average(episodes: list[Episode]) -> None:
    """RESEARCH.md, section 4: 21.3, so within half its last digit plus 5 standard errors."""
    plies = torch.tensor([r.final_obs[-1].sum().item() for r in episodes]).double()
    standard_error = plies.std().item() / NUM_EPISODES**0.5
    assert standard_error < 0.1
    assert abs(plies.mean().item() - 21.3) < 0.05 + 5 * standard_error


def test_reset_student_moves_first_in_half_of_episodes(episodes: list[Episode]) -> None:
    """5 standard deviations of 10,000 fair coins are 250."""
    assert abs(sum(episode.opening < 0 for episode in episodes) - 5000) < 250


def test_reset_opponent_opens_in_every_column_equally_often(episodes: list[Episode]) -> None:
    """About 714 of 5000 openings each; a standard deviation is 25."""
    openings = Counter(episode.opening for episode in episodes if episode.opening >= 0)
    assert sorted(openings) == list(range(7))
    assert all(abs(number - sum(openings.values()) / 7) < 125 for number in openings.values())


def test_grid_has_69_lines() -> None:
    assert len(LINES) == 69


def test_reset_uniforms_decide_first_mover_and_opening() -> None:
    """In any column, for any opponent."""
    for opponent in (random, lambda pieces, others, u: torch.full_like(pieces, 3)):
        u = torch.tensor([[0.0, 0.0], [0.25, 0.5], [0.499, 1 - 2**-24], [0.5, 0.0], [0.99, 0.5]])
        state = Connect4(opponent).reset(u)
        assert state["mine"].tolist() == [0] * 5
        assert state["theirs"].tolist() == [cell_bit(5, 0), cell_bit(5, 3), cell_bit(5, 6), 0, 0]


def test_step_passes_discs_after_students_move_and_uniforms_to_opponent() -> None:
    received = []

    def opponent(pieces: Tensor, others: Tensor, u: Tensor) -> Tensor:
        received.append((drawn(others, pieces), u.tolist()))
        return torch.zeros_like(pieces)

    x, o = board("....... ....... ....... ....... ....... x..o...")
    Connect4(opponent).step({"mine": x, "theirs": o}, torch.tensor([3]), torch.tensor([[0.75]]))
    assert received == [("....... ....... ....... ....... ...x... x..o...", [0.75])]


def test_step_discs_fall_onto_those_below() -> None:
    before = "....... ....... ....... ....... ...o... x..x..."
    after = "....... ....... ....... ...x... ...o... x..x..o"
    assert play_turn(before, column=3, reply=6) == (0, False, after)
    after = "....... ....... ...o... ...x... ...o... x..x..."
    assert play_turn(before, column=3, reply=3) == (0, False, after)


WINS = {  # a position, the column that completes a line, one that changes nothing
    "right, at the left edge": ("....... ....... ....... ....... ooo.... xxx....", 3, 6),
    "right, at the right edge": ("....... ....... ....... ....... ....ooo ....xxx", 3, 0),
    "right, into a gap": ("....... ....... ....... ....... ....... xx.xooo", 2, 6),
    "up": ("....... ....... ....... ..x.... ..x.o.. ..x.o..", 2, 6),
    "up, to the top": ("....... x...... x...... x...... o...... o...o.o", 0, 3),
    "up-right": ("....... ....... ....... ..xo... .xox... xooo...", 3, 0),
    "up-right, into a gap": ("....... ....... ....x.. ....o.. ..xxo.. .xooox.", 3, 0),
    "down-right": ("....... ....... ....... ...ox.. ...xox. ...ooox", 3, 0),
    "down-right, to the bottom": ("....... ....... x...... ox..... oxx.... xoo....", 3, 6),
}
SWAP = str.maketrans("xo", "ox")


@pytest.mark.parametrize("line", WINS)
def test_step_four_in_a_line_win_without_reply(line: str) -> None:
    before, column, _ = WINS[line]
    reward, over, after = play_turn(before, column, reply=column)
    assert (reward, over) == (1, True)
    assert after.count("x") == before.count("x") + 1
    assert after.count("o") == before.count("o")


@pytest.mark.parametrize("line", WINS)
def test_step_reply_can_win(line: str) -> None:
    before, column, elsewhere = WINS[line]
    reward, over, after = play_turn(before.translate(SWAP), elsewhere, reply=column)
    assert (reward, over) == (-1, True)
    assert after.count("o") == before.count("x") + 1


@pytest.mark.parametrize("line", WINS)
def test_step_three_in_a_line_do_not_win(line: str) -> None:
    before, _, elsewhere = WINS[line]
    assert play_turn(before, elsewhere, reply=elsewhere)[:2] == (0, False)


def test_line_does_not_continue_in_next_column() -> None:
    assert play_turn("x...... x...... x...... o...... o...... o......", column=1, reply=6)[:2] == (0, False)
    assert play_turn("..o.... ..o.... ..o.... ..x.... ..x.... ..x....", column=6, reply=3)[:2] == (0, False)


def test_line_does_not_wrap_around_the_edge() -> None:
    assert play_turn("....... ....... ....... ....... o.....o xx....x", column=5, reply=3)[:2] == (0, False)
    assert play_turn("....... ....... ....... x...... o...... xx...xo", column=6, reply=3)[:2] == (0, False)


@pytest.mark.parametrize("column", range(7))
def test_step_into_full_column_loses_without_reply(column: int) -> None:
    rows = [f"{'.' * column}{sign}{'.' * (6 - column)}" for sign in "xoxoxo"]
    before = " ".join(rows)
    assert play_turn(before, column, reply=(column + 1) % 7) == (-1, True, before)


def test_step_into_full_column_beside_three_in_a_line_loses() -> None:
    before = "..xoxxx ..oxooo ..xoxxx ..oxooo ..xoxxx ..oxooo"
    assert play_turn(before, column=3, reply=0) == (-1, True, before)


def test_full_board_without_line_is_a_draw() -> None:
    x, o = board(FULL_WITHOUT_A_LINE)
    assert not any(set(line) <= cells_of(side.item()) for line in LINES for side in (x, o))
    below = FULL_WITHOUT_A_LINE.removeprefix("xxooxxo")
    assert play_turn("xxoox.o" + below, column=5, reply=5) == (0, True, FULL_WITHOUT_A_LINE)
    assert play_turn("xxoo.x." + below, column=4, reply=6) == (0, True, FULL_WITHOUT_A_LINE)
    assert play_turn("x.oo.x." + below, column=4, reply=6)[:2] == (0, False)


def test_last_disc_can_win() -> None:
    below = " ooxxoox xxooxxo ooxxoox xxooxxo ooxxoox"
    assert play_turn("xxx.oxo" + below, column=3, reply=0) == (1, True, "xxxxoxo" + below)
    assert play_turn("ooo.ox." + below, column=6, reply=3) == (-1, True, "oooooxx" + below)


def test_observe_planes_are_student_then_opponent_from_the_top() -> None:
    x, o = board("....... ....... ....... ....... ...o... x..x..o")
    obs, action_mask = Connect4(random).observe({"mine": x, "theirs": o})
    assert obs.shape == (1, 2, 6, 7)
    assert obs[0, 0].nonzero().tolist() == [[5, 0], [5, 3]]
    assert obs[0, 1].nonzero().tolist() == [[4, 3], [5, 6]]
    assert action_mask.tolist() == [[True] * 7]


def test_action_mask_is_columns_with_room_or_all_on_full_board() -> None:
    game = Connect4(random)
    top = "xxooxxo"
    below = FULL_WITHOUT_A_LINE.removeprefix(top)
    for open_columns in itertools.product([False, True], repeat=7):
        row = "".join("." if is_open else sign for is_open, sign in zip(open_columns, top, strict=True))
        x, o = board(row + below)
        assert legal_columns(x | o).tolist() == [list(open_columns)]
        action_mask = game.observe({"mine": x, "theirs": o})[1]
        assert action_mask.tolist() == [list(open_columns) if any(open_columns) else [True] * 7]


def subsets(size: int) -> Tensor:
    cells = torch.tensor([cell_bit(*cell) for cell in CELLS])
    return torch.combinations(cells, size).sum(1)


def test_has_four_of_four_cells_only_for_the_69_lines() -> None:
    fours = subsets(4)
    assert len(fours) == 111_930
    assert set(fours[has_four(fours)].tolist()) == {bitboard(set(line)) for line in LINES}


def test_has_four_of_random_boards_equals_search_of_lines() -> None:
    boards = random_sets(3000)
    lines = torch.tensor([bitboard(set(line)) for line in LINES])
    expected = (boards[:, None] & lines == lines).any(1)
    assert 500 < expected.sum() < 2500
    assert torch.equal(has_four(boards), expected)


def completing_by_definition(ours: set[Cell]) -> set[Cell]:
    """Return the cells where one more disc makes a line through it, by trying each."""
    return {cell for cell in CELLS if any(cell in line and set(line) <= ours | {cell} for line in LINES)}


def test_completing_equals_trying_every_cell() -> None:
    boards = random_sets(1500, seed=2)
    for ours, found in zip(boards.tolist(), completing(boards).tolist(), strict=True):
        assert found == bitboard(completing_by_definition(cells_of(ours)))


def test_completing_of_three_cells_is_fourth_of_their_line() -> None:
    expected: dict[int, set[Cell]] = {}
    for line in LINES:
        for cell in line:
            expected.setdefault(bitboard(set(line) - {cell}), set()).add(cell)
    threes = subsets(3)
    for three, found in zip(threes.tolist(), completing(threes).tolist(), strict=True):
        assert found == bitboard(expected.get(three, set()))


def test_drop_fills_lowest_empty_cell() -> None:
    ours, others = random_discs(500)
    for column in range(7):
        dropped = drop(ours, others, torch.full_like(ours, column))
        for mine, theirs, after in zip(ours.tolist(), others.tolist(), dropped.tolist(), strict=True):
            room = [row for row in range(6) if (row, column) not in cells_of(mine | theirs)]
            assert after == (mine | cell_bit(max(room), column) if room else mine)


def test_playable_equals_lowest_empty_cells() -> None:
    ours, others = random_discs(500, seed=3)
    for taken, found in zip((ours | others).tolist(), playable(ours | others).tolist(), strict=True):
        empty = [cell for cell in CELLS if not taken & cell_bit(*cell)]
        assert cells_of(found) == {
            (row, column) for row, column in empty if row == max(r for r, c in empty if c == column)
        }


def test_columns_of_equals_columns_of_set_cells() -> None:
    boards = torch.cat([random_sets(300), torch.tensor([0, BOARD]), subsets(1)])
    for cells, found in zip(boards.tolist(), columns_of(boards).tolist(), strict=True):
        assert found == [any(c == column for _, c in cells_of(cells)) for column in range(7)]


def test_is_full_only_with_all_42_cells() -> None:
    every = bitboard(set(CELLS))
    assert every == BOARD
    almost = torch.tensor([every & ~cell_bit(*cell) for cell in CELLS])
    assert is_full(torch.tensor([every, 0])).tolist() == [True, False]
    assert not is_full(almost).any()


def test_mirror_swaps_left_and_right() -> None:
    boards = torch.cat([random_sets(200), subsets(1)])
    for cells, found in zip(boards.tolist(), mirror(boards).tolist(), strict=True):
        assert found == bitboard({(row, 6 - column) for row, column in cells_of(cells)})


def test_planes_equal_set_cells() -> None:
    boards = [random_sets(50, seed) for seed in range(3)]
    unpacked = planes(*boards)
    assert unpacked.shape == (50, 3, 6, 7)
    assert unpacked.dtype == torch.float32
    for index, plane in itertools.product(range(50), range(3)):
        expected = [[float(bool(boards[plane][index] & cell_bit(r, c))) for c in range(7)] for r in range(6)]
        assert unpacked[index, plane].tolist() == expected


def test_draw_six_lines_from_the_top() -> None:
    position = "....... ....... o...... x...... o..x... xo.xo.o"
    x, o = board(position)
    lines = draw(x.item(), o.item()).split("\n")
    assert lines == [" ".join(row) for row in position.split()]


def test_draw_with_other_signs() -> None:
    x, o = board("....... ....... ....... ....... ....... xo.....")
    assert draw(x.item(), o.item(), "-12").split("\n")[5] == "1 2 - - - - -"


def test_draw_shows_every_cell() -> None:
    ours, others = random_discs(50, seed=5)
    for x, o in zip(ours, others, strict=True):
        assert draw(x.item(), o.item()).replace(" ", "").replace("\n", " ") == drawn(x, o)


class FinishedEpisode(NamedTuple):
    """One episode from its initial state to its end."""

    states: list[State]  # of one row each
    first: str  # student or opponent
    won: float  # the last reward: 1 by the student, -1 by the opponent, 0 for a draw


@pytest.fixture(scope="module")
def ended() -> dict[tuple[str, float], list[FinishedEpisode]]:
    """Return random episodes by first mover and winner."""
    number, game = 4000, Connect4(random)
    rng = CounterRNG(6, torch.arange(number), EXPLORATION_STREAM)
    states, rewards, ends = [game.reset(rng.uniform(0, 2))], [], []
    for turn in range(1, 22):
        numbers = rng.uniform(turn, 2)
        action = sample_legal(game.observe(states[-1])[1], numbers[:, 0])
        state, reward, terminated = game.step(states[-1], action, numbers[:, 1:])
        states.append(state)
        rewards.append(reward)
        ends.append(terminated)
    lasts = torch.stack(ends).int().argmax(0).tolist()
    kinds: dict[tuple[str, float], list[FinishedEpisode]] = {}
    for index, last in enumerate(lasts):
        first = "opponent" if states[0]["theirs"][index] else "student"
        won = rewards[last][index].item()
        if len(kinds.setdefault((first, won), [])) < 25:
            rows = torch.tensor([index])
            kinds[first, won].append(
                FinishedEpisode([select_rows(state, rows) for state in states[: last + 2]], first, won)
            )
    return kinds


class ParsedNotation(NamedTuple):
    """The content of a notation."""

    first: str
    result: str
    moves: list[str]
    board: str  # as `drawn`: the student's discs are x
    line: str  # the sign that has four in a line, if one has


def parse_notation(text: str) -> ParsedNotation:
    """Replay a notation on a grid of signs; a disc must lie on the lowest empty cell of its column."""
    first_tag, result_tag, gap, movetext = text.split("\n")
    first = re.fullmatch(r'\[First "(student|opponent)"]', first_tag)[1]
    result = re.fullmatch(r'\[Result "(1-0|0-1|1/2-1/2|\*)"]', result_tag)[1]
    assert gap == ""
    words = movetext.split(" ") if movetext else []
    assert words[::3] == [f"{number + 1}." for number in range(len(words[::3]))]
    moves = [word for index, word in enumerate(words) if index % 3]
    assert not words or not words[-1].endswith(".")
    grid = [["."] * 7 for _ in range(6)]
    for sign, move in zip(itertools.cycle("xo" if first == "student" else "ox"), moves, strict=False):
        column, row = "abcdefg".index(move[0]), 6 - int(move[1:])
        assert row == max(r for r in range(6) if grid[r][column] == ".")
        grid[row][column] = sign
    fours = {sign for sign in "xo" for line in LINES if all(grid[r][c] == sign for r, c in line)}
    assert len(fours) <= 1
    return ParsedNotation(first, result, moves, " ".join("".join(row) for row in grid), "".join(fours))


RESULTS = {  # (first mover, last reward): as in PGN, the first mover's points first
    ("student", 1.0): "1-0",
    ("student", -1.0): "0-1",
    ("student", 0.0): "1/2-1/2",
    ("opponent", 1.0): "0-1",
    ("opponent", -1.0): "1-0",
    ("opponent", 0.0): "1/2-1/2",
}


def drawing_of(state: State) -> str:
    return drawn(state["mine"][0], state["theirs"][0])


@pytest.mark.parametrize("kind", RESULTS, ids=str)
def test_notation_of_whole_episode_replays_to_same_board_and_result(
    kind: tuple[str, float], ended: dict[tuple[str, float], list[FinishedEpisode]]
) -> None:
    assert len(ended[kind]) >= 2
    for game in ended[kind]:
        parsed = parse_notation(notation(game.states))
        assert parsed.first == game.first
        assert parsed.result == RESULTS[kind]
        assert parsed.board == drawing_of(game.states[-1])
        assert parsed.line == {1.0: "x", -1.0: "o", 0.0: ""}[game.won]


@pytest.mark.parametrize("kind", RESULTS, ids=str)
def test_notation_of_unfinished_episode_has_no_result(
    kind: tuple[str, float], ended: dict[tuple[str, float], list[FinishedEpisode]]
) -> None:
    for game in ended[kind][:8]:
        whole = parse_notation(notation(game.states)).moves
        for length in range(1, len(game.states)):
            parsed = parse_notation(notation(game.states[:length]))
            assert parsed.moves == whole[: len(parsed.moves)]
            assert parsed.board == drawing_of(game.states[length - 1])
            assert parsed.result == "*"
            assert parsed.first == (game.first if parsed.moves else "student")


def test_notation_of_several_copies_is_of_the_first(ended: dict[tuple[str, float], list[FinishedEpisode]]) -> None:
    game, other = ended["student", 1.0][0], ended["opponent", -1.0][0]
    together = [
        {name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(game.states, other.states, strict=False)
    ]
    assert notation(together) == notation(game.states[: len(together)])


def test_notation_equals_written_example() -> None:
    positions = [
        "....... ....... ....... ....... ....... ...o...",
        "....... ....... ....... ....... ...x... o..o...",
        "....... ....... ....... ....... o..x... o..o..x",
        "....... ....... ....... o...... o..x... o..o.xx",
        "....... ....... o...... o...... o..x..x o..o.xx",
    ]
    states = [dict(zip(("mine", "theirs"), board(position), strict=True)) for position in positions]
    assert notation(states) == '[First "opponent"]\n[Result "1-0"]\n\n1. d1 d2 2. a1 g1 3. a2 f1 4. a3 g2 5. a4'
    assert notation(states[:1]) == '[First "opponent"]\n[Result "*"]\n\n1. d1'


def test_notation_without_moves_is_tags_only() -> None:
    nothing = torch.zeros(1, dtype=torch.int64)
    for states in ([], [{"mine": nothing, "theirs": nothing}]):
        assert notation(states) == '[First "student"]\n[Result "*"]\n\n'


def test_notation_omits_drop_into_full_column() -> None:
    game = Connect4(lambda pieces, others, u: torch.zeros_like(pieces))
    states = [game.reset(torch.tensor([[0.9, 0.0]]))]
    for _ in range(4):
        states.append(game.step(states[-1], torch.tensor([0]), torch.zeros(1, 1))[0])
    assert parse_notation(notation(states)).moves == ["a1", "a2", "a3", "a4", "a5", "a6"]


@pytest.mark.parametrize(
    ("position", "first", "result"),
    [
        ("....... ....... ....... ....... ooo.... xxxx...", "student", "1-0"),
        ("....... ....... ....... ....... oooo... xxxox..", "student", "0-1"),
        ("....... ....... ....... ....... ooo.... xxxx..o", "opponent", "0-1"),
        ("....... ....... ....... ....... oooo... xxxoxx.", "opponent", "1-0"),
        ("....... ....... ....... ....... ooo.... xxx....", "student", "*"),
        ("....... ....... ....... ....... ....... .......", "opponent", "*"),
        (FULL_WITHOUT_A_LINE, "student", "1/2-1/2"),
        (FULL_WITHOUT_A_LINE, "opponent", "1/2-1/2"),
        ("." + FULL_WITHOUT_A_LINE[1:], "student", "*"),
        (FULL_WITHOUT_A_LINE.replace("xxooxxo", "xxxxoxo", 1), "student", "1-0"),
        (FULL_WITHOUT_A_LINE.replace("xxooxxo", "xoooooo", 1), "student", "0-1"),
    ],
)
def test_result_of_drawn_boards(position: str, first: str, result: str) -> None:
    """The last two are full boards whose last disc made a line."""
    x, o = board(position)
    assert result_of((x.item(), o.item()), first) == result


@pytest.mark.parametrize("function", [has_four, completing, playable, is_full, mirror])
def test_bitboard_functions_accept_any_shape(function: Callable[[Tensor], Tensor]) -> None:
    boards = random_sets(12)
    assert torch.equal(function(boards.view(3, 4)), function(boards).view(3, 4))
