"""Every registered view against the game that it describes, in positions of play at random and by its own values.

Words are read back by parsers of their own. Mirror images are made of the drawn board, point by point, and what one
may do there is asked of the game. The searches of Snake are held against breadth-first searches in plain Python.
"""

import functools
import itertools
import re
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import envs
from envs.base import Game, Spec, State, VecEnv, cat_states, num_rows, select_rows
from envs.blackjack_exact import optimum
from envs.connect4 import drop
from envs.rng import CounterRNG, sample_legal
from tests.helpers.paths import GOLDEN
from tests.helpers.views import EVERY_VIEW, game_of
from tutors.prompts import VIEWS, make_view, views_of
from tutors.prompts.base import PromptView
from tutors.prompts.snake import distance, search
from tutors.scripted import ScriptedTutor

POSITIONS, NUM_ENVS = 40_000, 100
DEPTH = 2
OPTIONS = {
    "connect4": {"opponent": "random"},
    "snake": {"size": 8, "death_reward": -1.0},
}  # 64 cells: two words of bits

CONNECT4 = """
. . . . . . .
. . . O . . .
. . . X . . .
. . X O . . .
. X O X . O .
O X O X . X O
"""
SNAKE = """
. . . . . . . . . . . .
. . . * . . . . . . . .
. . . . . . . . . . . .
. . . . . . . > > > v .
. . . . . . . . . . v .
. . . . . . . . . . v @
. . . . . . . . . . > ^
. . . . . . . . . . . .
. . . . . . . . . . . .
. . . . . . . . . . . .
. . . . . . . . . . . .
. . . . . . . . . . . .
"""

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # rows and columns of up, right, down, left
SIDES = ("Ahead", "Right", "Behind", "Left")
Cell = tuple[int, int]


class Played(NamedTuple):
    """Positions as they were played, many of them twice and some mirrored, and what a view makes of them."""

    view: PromptView
    game: Game
    state: State
    action_mask: Tensor
    canonical: State
    transform: Tensor
    words: list[str]


class Drawn(NamedTuple):
    """A snake as one draws it: its cells from the tail to the head, and the fruit if there is one."""

    body: list[Cell]
    fruit: Cell | None


@pytest.fixture(scope="module", params=EVERY_VIEW, ids="-".join)
def played(request: pytest.FixtureRequest) -> Played:
    return play(*request.param)


@functools.cache
def play(game_name: str, name: str) -> Played:
    """One game in four is played at random, one by the view's values, the others by a mixture."""
    env, rng = envs.make(game_name, NUM_ENVS, 3, **OPTIONS.get(game_name, {})), CounterRNG(4, torch.arange(NUM_ENVS), 9)
    game = env.game
    view = make_view(game, name)
    erring = torch.tensor([1.0, 0.3, 0.05, 0.0])[torch.arange(NUM_ENVS) % 4]
    seen = []
    step = env.reset()
    for number in range(POSITIONS // NUM_ENVS):
        state = {key: tensor.clone() for key, tensor in env.state.items()}
        canonical, transform = view.canonicalize(state)
        seen.append((state, canonical, {"transform": transform, "action_mask": step.action_mask}))
        chance = rng.uniform(number, 2)
        best = best_of(view.expert_values(canonical, DEPTH).gather(1, view.symmetry[transform]), step.action_mask)
        allowed = torch.where((chance[:, 0] < erring)[:, None], step.action_mask, best)
        step = env.step(sample_legal(allowed, chance[:, 1]))
    state, canonical, others = (joined(part) for part in zip(*seen, strict=True))
    words = [sys.intern(question) for question in view.render(canonical)]  # many are equal: each is kept once
    return Played(view, game, state, others["action_mask"], canonical, others["transform"], words)


def joined(states: tuple[State, ...]) -> State:
    return cat_states(states)


def best_of(values: Tensor, action_mask: Tensor) -> Tensor:
    """Which legal actions are worth the most. (B, A) bool."""
    values = values.double().masked_fill(~action_mask, -torch.inf)
    return values == values.amax(1, keepdim=True)


def every(played: Played, nth: int) -> tuple[State, State, Tensor, list[str]]:
    """Every nth position, n odd and no multiple of 5, so of all env copies: (state, canonical, transform, words)."""
    rows = torch.arange(0, num_rows(played.state), nth)
    return (
        select_rows(played.state, rows),
        select_rows(played.canonical, rows),
        played.transform[rows],
        played.words[::nth],
    )


def keys_of(view: PromptView, canonical: State) -> list[tuple[int, ...]]:
    return [tuple(key) for key in view.key(canonical).tolist()]


def assert_one_key_a_question(words: list[str], keys: list[tuple[int, ...]]) -> None:
    assert len(set(zip(words, keys, strict=True))) == len(set(words)) == len(set(keys))


def images(game: Game, state: State) -> list[tuple[State, list[int]]]:
    """All positions that are one and the same to a player, and what each action is called there; first as it is."""
    return IMAGES.get(game.spec.name, unchanged)(game, state)


def unchanged(game: Game, state: State) -> list[tuple[State, list[int]]]:
    return [(state, list(range(game.spec.num_actions)))]


def seen_in_a_mirror(game: Game, state: State) -> list[tuple[State, list[int]]]:
    return [*unchanged(game, state), (mirrored(state), [6, 5, 4, 3, 2, 1, 0])]


def all_sides_up(game: Game, state: State) -> list[tuple[State, list[int]]]:
    """Every snake on a sheet of paper that is turned by quarters, from both of its sides."""
    snakes = drawn(game, state)
    turns = list(itertools.product((False, True), range(4)))
    return [(build(game, [image(snake, game.size, *turn) for snake in snakes]), renamed(*turn)) for turn in turns]


IMAGES: dict[str, Callable[[Game, State], list[tuple[State, list[int]]]]] = {
    "connect4": seen_in_a_mirror,
    "snake": all_sides_up,
}


def point(cell: Cell, size: int, flipped: bool, quarters: int) -> Cell:
    """Where a point of the sheet comes to lie."""
    row, column = cell
    for _ in range(quarters):
        row, column = column, size - 1 - row
    return (row, size - 1 - column) if flipped else (row, column)


def image(snake: Drawn, size: int, flipped: bool, quarters: int) -> Drawn:
    body = [point(cell, size, flipped, quarters) for cell in snake.body]
    return Drawn(body, snake.fruit and point(snake.fruit, size, flipped, quarters))


def renamed(flipped: bool, quarters: int) -> list[int]:
    """What each move is called on the turned sheet: the way from its middle to where the neighbour comes to lie."""
    ends = [point((1 + down, 1 + right), 3, flipped, quarters) for down, right in MOVES]
    return [MOVES.index((row - 1, column - 1)) for row, column in ends]


def drawn(game: Game, state: State) -> list[Drawn]:
    """The snakes as the game shows them: from the tail on, along the ways of the obs."""
    snakes = []
    for obs in game.observe(state)[0].int().tolist():
        _, head, tail, fruit = ({cell_at(index, game.size) for index in ones(plane)} for plane in obs[:4])
        body = list(tail)
        while body[-1] not in head:
            row, column = body[-1]
            body.append((row + obs[4][row][column], column + obs[5][row][column]))
        snakes.append(Drawn(body, next(iter(fruit), None)))
    return snakes


def ones(plane: list[list[int]]) -> list[int]:
    return [index for index, value in enumerate(itertools.chain(*plane)) if value]


def cell_at(index: int, size: int) -> Cell:
    return divmod(index, size)


def build(game: Game, snakes: list[Drawn]) -> State:
    """Play every snake as drawn: reset to the cell of its tail, it finds a fruit on each cell of its way."""
    size = game.size
    path = torch.full((len(snakes), max(len(snake.body) for snake in snakes)), -1)
    for row, snake in enumerate(snakes):
        path[row, : len(snake.body)] = torch.tensor([r * size + c for r, c in snake.body])
    state = game.reset(torch.stack([(path[:, 0] + 0.5) / size**2, torch.zeros(len(snakes))], 1))
    ways = {down * size + right: move for move, (down, right) in enumerate(MOVES)}
    for before, cell in itertools.pairwise(path.unbind(1)):
        going = cell >= 0
        move = torch.tensor([ways.get(way, 0) for way in (cell - before).tolist()])
        after, _, _ = game.step(state | {"fruit": cell.clamp(min=0)}, move, torch.zeros(len(snakes), 1))
        state = {
            name: torch.where(going.view(-1, *[1] * (tensor.ndim - 1)), after[name], tensor)
            for name, tensor in state.items()
        }
    fruit = [size**2 if snake.fruit is None else snake.fruit[0] * size + snake.fruit[1] for snake in snakes]
    return state | {"fruit": torch.tensor(fruit)}


def read(text: str) -> Drawn:
    """The snake on a board of signs; all of its cells must lie on its way."""
    signs = {
        (row, column): sign
        for row, line in enumerate(text.strip().splitlines())
        for column, sign in enumerate(line.split())
    }
    leads = {
        (row, column): (row + down, column + right)
        for (row, column), sign in signs.items()
        if sign in "^>v<"
        for down, right in [MOVES["^>v<".index(sign)]]
    }
    snake = {cell for cell, sign in signs.items() if sign not in ".*"}
    (tail,) = snake - set(leads.values())
    body = [tail]
    while signs[body[-1]] != "@":
        body.append(leads[body[-1]])
    assert set(body) == snake
    assert len(body) == len(snake)
    fruit = [cell for cell, sign in signs.items() if sign == "*"]
    assert len(fruit) <= 1
    return Drawn(body, fruit[0] if fruit else None)


def board_in(view: PromptView, words: str) -> str:
    """The drawn board in a question."""
    return words.removeprefix(view.instructions).split("\nOptions:")[0]


def from_drawing(drawing: str) -> State:
    """A board of X (the student), O and dots as a state of one row."""
    rows = [line.split() for line in drawing.strip().splitlines()]
    mine = theirs = 0
    for height, row in enumerate(reversed(rows)):
        for column, sign in enumerate(row):
            mine |= (sign == "X") << 7 * column + height
            theirs |= (sign == "O") << 7 * column + height
    return {"mine": torch.tensor([mine]), "theirs": torch.tensor([theirs])}


def mirrored(state: State) -> State:
    """Every position's mirror image: column by column from the other side."""
    flipped = {name: torch.zeros_like(cells) for name, cells in state.items()}
    for name, cells in state.items():
        for column in range(7):
            flipped[name] += (cells >> 7 * column) % 128 << 7 * (6 - column)
    return flipped


def hand(game: Game, cards: list[int], open_card: int) -> State:
    """A hand of Blackjack as it is reset and drawn, of one row. Three cards are one uniform."""
    first, second, *others = cards
    state = game.reset(three_cards(open_card, first, second)[:, None])
    for card in others:
        u = three_cards(card, 1, 1).expand(1, game.spec.num_step_uniforms)
        state, _, _ = game.step(state, torch.tensor([1]), u)
    return state


def three_cards(*cards: int) -> Tensor:
    first, second, third = (card - 1 for card in cards)
    return torch.tensor([(first * 169 + second * 13 + third + 0.5) / 13**3])


def golden_state(game: Game) -> State:
    """The position of the golden prompts."""
    if game.spec.name.startswith("gym:"):
        return {"obs": torch.nn.functional.one_hot(torch.tensor([18]), 64).float()}
    if game.spec.name == "snake":
        return build(game, [read(SNAKE)])
    return hand(game, [1, 7], 10) if game.spec.name == "blackjack" else from_drawing(CONNECT4)


def test_key_equal_exactly_where_prompts_are(played: Played) -> None:
    assert len(played.words) == POSITIONS
    assert_one_key_a_question(played.words, keys_of(played.view, played.canonical))
    assert 10 < len(set(played.words)) < POSITIONS * 0.8, "many positions, and many of them twice"


def test_key_shape_and_dtype(played: Played) -> None:
    key = played.view.key(played.canonical)
    assert key.shape == (POSITIONS, 2)
    assert key.dtype == torch.int64


def test_prompt_of_a_position_is_the_same_in_any_batch(played: Played) -> None:
    state, _, transform, words = every(played, 997)
    for row in range(len(words)):
        canonical, alone = played.view.canonicalize(select_rows(state, torch.tensor([row])))
        assert played.view.render(canonical) == [words[row]]
        assert alone == transform[row]


def test_view_modifies_no_position(played: Played) -> None:
    state, canonical, _, _ = every(played, 101)
    before = [{name: tensor.clone() for name, tensor in positions.items()} for positions in (state, canonical)]
    played.view.canonicalize(state)
    for method in (played.view.key, played.view.action_mask, played.view.render):
        method(canonical)
    played.view.expert_values(canonical, DEPTH)
    for now, then in zip((state, canonical), before, strict=True):
        assert all(now[name].equal(then[name]) for name in then)


def test_view_has_the_names_it_is_registered_under(played: Played) -> None:
    view = played.view
    assert type(view) is views_of(view.game)[view.name]
    assert view.game == played.game.spec.name


def test_view_has_one_label_per_action(played: Played) -> None:
    assert "".join(played.view.labels) == "ABCDEFGHIJ"[: played.game.spec.num_actions]


def test_view_moves_to_a_device_with_all_tensors(played: Played) -> None:
    moved, before = played.view.to("meta"), dict(vars(played.view))
    tensors = [value for value in (*vars(moved).values(), moved.symmetry) if isinstance(value, Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert type(moved) is type(played.view)
    assert vars(played.view) == before
    assert played.view.symmetry.device.type == "cpu", "what it was made of stays"


def test_symmetry_is_a_permutation_of_actions(played: Played) -> None:
    symmetry = played.view.symmetry
    assert symmetry.dtype == torch.int64
    assert (symmetry.sort(1).values == torch.arange(played.game.spec.num_actions)).all()
    assert played.transform.dtype == torch.int64
    assert played.transform.unique().tolist() == list(range(len(symmetry))), "each is used"
    assert len(symmetry) == len(images(played.game, select_rows(played.state, torch.arange(1))))


def test_images_of_a_position_have_one_prompt(played: Played) -> None:
    state, canonical, _, words = every(played, 229)
    key = played.view.key(canonical)
    for seen, _ in images(played.game, state):
        again, _ = played.view.canonicalize(seen)
        assert played.view.key(again).equal(key)
        assert played.view.render(again) == words


def test_images_of_a_position_have_the_same_advice(played: Played) -> None:
    """Where a canonical position is its own mirror image, two names are as good: there only the values must agree."""
    view = played.view
    state, _, _, _ = every(played, 229)
    tutor = ScriptedTutor(view, 0.5, DEPTH)
    names, transforms, all_values, all_advice = [], [], [], []
    for seen, names_there in images(played.game, state):
        canonical, transform = view.canonicalize(seen)
        name = view.symmetry[transform][:, names_there]  # what the canonical position calls each action of `state`
        names.append(name)
        transforms.append(transform)
        all_values.append(view.expert_values(canonical, DEPTH).gather(1, name))
        all_advice.append(tutor.advise(canonical).probs.gather(1, name))
    ways = torch.stack(transforms).sort(0).values
    lopsided = (ways[1:] != ways[:-1]).all(0)
    assert lopsided.sum() > len(lopsided) / 8
    for name, values, advice in zip(names, all_values, all_advice, strict=True):
        assert values.equal(all_values[0])
        assert name[lopsided].equal(names[0][lopsided])
        assert advice[lopsided].equal(all_advice[0][lopsided])


def test_symmetry_maps_legal_actions_to_legal_ones(played: Played) -> None:
    action_mask = played.view.action_mask(played.canonical)
    assert action_mask.dtype == torch.bool
    assert action_mask.gather(1, played.view.symmetry[played.transform]).equal(played.action_mask)


def test_prompt_has_rules_position_and_legal_options(played: Played) -> None:
    view = played.view
    _, canonical, _, words = every(played, 11)
    for question, action_mask in zip(words, view.action_mask(canonical).tolist(), strict=True):
        assert question.startswith(view.instructions)
        assert len(question) > len(view.instructions) + 20
        options, ask = question.splitlines()[-2:]
        assert options.startswith("Options: ")
        assert re.findall(r"\b[A-Z]\b", options) == [
            label for label, may in zip(view.labels, action_mask, strict=True) if may
        ]
        assert ask == "Answer:"


@pytest.mark.parametrize(("game_name", "name"), EVERY_VIEW)
def test_prompt_equals_golden_file(game_name: str, name: str) -> None:
    """A changed prompt is a changed experiment: raise the view's version and draw a new golden file."""
    game = game_of(game_name)
    view = make_view(game, name)
    canonical, _ = view.canonicalize(golden_state(game))
    golden = (GOLDEN / golden_name(view)).read_text()
    assert view.render(canonical) == [golden]


def test_golden_files_are_those_of_the_views() -> None:
    views = [make_view(game_of(game), name) for game, name in EVERY_VIEW]
    files = {path.name for path in GOLDEN.glob("*.txt")}
    assert {golden_name(view) for view in views} == {name for name in files if "MiniGrid" not in name}


def golden_name(view: PromptView) -> str:
    return f"{view.game.replace(':', '-')}_{view.name}_v{view.version}.txt"


def test_expert_values_depend_on_the_prompt_alone(played: Played) -> None:
    """Each position by itself or in another batch is worth what the first one with its words was."""
    _, canonical, _, words = every(played, 7)
    values = played.view.expert_values(canonical, DEPTH)
    assert values.shape == (len(words), played.game.spec.num_actions)
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    again = torch.empty_like(values)
    again[order] = torch.cat(
        [played.view.expert_values(select_rows(canonical, part), DEPTH) for part in order.split(1000)]
    )
    first: dict[str, list[float]] = {}
    for question, one, other in zip(words, values.tolist(), again.tolist(), strict=True):
        assert one == other == first.setdefault(question, one)


def test_expert_values_are_highest_for_a_legal_action(played: Played) -> None:
    _, canonical, _, _ = every(played, 11)
    values, action_mask = played.view.expert_values(canonical, DEPTH).double(), played.view.action_mask(canonical)
    best = values.masked_fill(~action_mask, -torch.inf).amax(1)
    assert best.equal(values.amax(1))


OWN_GAMES = [(game, name) for game, name in EVERY_VIEW if game in envs.ENVS]


@pytest.mark.parametrize("played", OWN_GAMES, indirect=True, ids="-".join)
def test_expert_avoids_immediate_losses(played: Played) -> None:
    """Asked of the game itself, against the default opponent, with 64 uniforms."""
    state, canonical, transform, _ = every(played, 53)
    options = {name: value for name, value in OPTIONS.get(played.view.game, {}).items() if name != "opponent"}
    game = envs.make_game(played.view.game, **options)
    action_mask = played.view.action_mask(canonical).gather(1, played.view.symmetry[transform])
    lost = torch.stack([surely_lost(game, state, action) for action in range(action_mask.shape[1])], 1)
    torn = (lost & action_mask).any(1) & (~lost & action_mask).any(1)
    assert torn.sum() > 50 or played.view.game == "blackjack", "no single card surely loses"
    best = best_of(played.view.expert_values(canonical, DEPTH).gather(1, played.view.symmetry[transform]), action_mask)
    assert not (best & lost)[torn].any()


def surely_lost(game: Game, state: State, action: int) -> Tensor:
    """Where the game is lost in this move, whatever the uniforms. (B,) bool."""
    rows = num_rows(state)
    lost = torch.ones(rows, dtype=torch.bool)
    for chance in CounterRNG(8, torch.arange(64), 9).uniform(0, game.spec.num_step_uniforms):
        _, reward, terminated = game.step(state, torch.full((rows,), action), chance.expand(rows, -1))
        lost &= terminated & (reward < 0)
    return lost


@pytest.fixture(scope="module")
def connect4() -> Played:
    return play("connect4", "board")


def test_connect4_keys_equal_exactly_where_prompts_are_before_canonicalization(connect4: Played) -> None:
    view = connect4.view
    state, _, _, canonical_words = every(connect4, 3)
    both = joined((state, mirrored(state)))
    words = view.render(both)
    assert_one_key_a_question(words, keys_of(view, both))
    assert len(set(words)) > 1.5 * len(set(canonical_words))


def test_connect4_key_has_49_bits_and_an_empty_second_half(connect4: Played) -> None:
    for positions in (connect4.state, connect4.canonical):
        key = connect4.view.key(positions)
        assert (key[:, 0] >= 0).all()
        assert (key[:, 0] < 2**49).all()
        assert (key[:, 1] == 0).all()


def test_connect4_key_is_largest_for_a_board_full_of_own_discs(connect4: Played) -> None:
    full = from_drawing("\n".join(["X X X X X X X"] * 6))
    assert connect4.view.key(full).tolist() == [[2**49 - 1, 0]]


def test_connect4_canonicalize_is_idempotent(connect4: Played) -> None:
    again, transform = connect4.view.canonicalize(connect4.canonical)
    assert all(again[name].equal(connect4.canonical[name]) for name in again)
    assert not transform.any()


def test_connect4_canonical_board_is_the_board_or_its_mirror_image(connect4: Played) -> None:
    picture, transform = mirrored(connect4.state), connect4.transform
    assert 0.2 < transform.float().mean() < 0.8
    for name, discs in connect4.state.items():
        assert connect4.canonical[name].equal(torch.where(transform == 1, picture[name], discs))


def dropped(state: State, column: Tensor) -> State:
    return {"mine": drop(state["mine"], state["theirs"], column), "theirs": state["theirs"]}


def test_connect4_symmetry_commutes_with_dropping_a_disc(connect4: Played) -> None:
    view, transform = connect4.view, connect4.transform
    assert view.symmetry.shape == (2, 7)
    for action in range(7):
        here = dropped(connect4.state, torch.full_like(transform, action))
        there = dropped(connect4.canonical, view.symmetry[transform, action])
        assert view.key(view.canonicalize(here)[0]).equal(view.key(view.canonicalize(there)[0]))


def test_connect4_symmetry_maps_a_drawn_board_and_its_columns(connect4: Played) -> None:
    view = connect4.view
    left = from_drawing(CONNECT4)
    right = mirrored(left)
    assert {int(view.canonicalize(side)[1]) for side in (left, right)} == {0, 1}
    for side, two_crosses in ((left, 1), (right, 5)):  # the only column of two Xs and nothing else
        canonical, transform = view.canonicalize(side)
        column = view.symmetry[transform, two_crosses].item()
        board = board_in(view, view.render(canonical)[0]).splitlines()
        assert [line.split()[column] for line in board] == list("....XX")


def test_connect4_prompt_parses_back_to_the_position(connect4: Played) -> None:
    _, canonical, _, words = every(connect4, 97)
    for row, question in enumerate(words):
        board = board_in(connect4.view, question)
        back = from_drawing(board)
        assert back["mine"] == canonical["mine"][row]
        assert back["theirs"] == canonical["theirs"][row]
        top = board.splitlines()[0].split()
        open_columns = [label for label, sign in zip("ABCDEFG", top, strict=True) if sign == "."]
        assert f"\nOptions: {' '.join(open_columns)}\n" in question


def test_connect4_values_are_those_of_the_student_s_moves(connect4: Played) -> None:
    state = from_drawing("""
        . . . . . . .
        . . . . . . .
        . . . . . . .
        . . . . . . O
        . . . . . . O
        X X X . . . O
    """)
    values = connect4.view.expert_values(state, 2)[0]
    assert values.argmax() == 3, "four in a line beats stopping the opponent's"
    swapped = {"mine": state["theirs"], "theirs": state["mine"]}
    assert connect4.view.expert_values(swapped, 2)[0].argmax() == 6


def test_connect4_values_look_ahead_by_the_given_depth(connect4: Played) -> None:
    """X to move loses with the disc after its own anywhere but at D, and wins with D one disc later still."""
    open_three = from_drawing("""
        . . . . . . .
        . . . . . . .
        . . . . . . .
        . . . . . . .
        . . O . O . .
        . . X X . O .
    """)
    assert (connect4.view.expert_values(open_three, 2).abs() < 500).all(), "no line of four within two discs"
    assert (connect4.view.expert_values(open_three, 3) > 500).any(), "three in a line, open on both sides"


def every_hand(game: Game, view: PromptView) -> tuple[State, list[tuple[int, int, int]]]:
    """All 280 hands that one plays on from, canonical, and as numbers: the sum, the dealer's card, a usable ace."""
    hands = [(total, card, ace) for ace in (0, 1) for card in range(1, 11) for total in range(12 if ace else 4, 22)]
    states = [hand(game, cards_of(total, ace), card) for total, card, ace in hands]
    return view.canonicalize(joined(tuple(states)))[0], hands


def cards_of(total: int, ace: int) -> list[int]:
    """Some cards of that sum, with a usable ace or with none."""
    if ace:
        return [1, total - 11]
    return [2, total - 2] if total <= 12 else [10, total - 10] if total <= 20 else [10, 9, 2]


def test_blackjack_prompt_parses_back_to_the_hand() -> None:
    game = envs.make_game("blackjack")
    view = make_view(game)
    canonical, hands = every_hand(game, view)
    pattern = r"Your sum: (\d+), (with|without) an ace that counts 11\nThe dealer shows an? (ace|\d+)\n"
    for question, (total, card, ace) in zip(view.render(canonical), hands, strict=True):
        found = re.match(pattern, question.removeprefix(view.instructions))
        assert found is not None
        assert found.groups() == (str(total), "with" if ace else "without", "ace" if card == 1 else str(card))
        assert "\nOptions: A stick, B hit\n" in question


def test_blackjack_key_bits() -> None:
    game = envs.make_game("blackjack")
    view = make_view(game)
    canonical, hands = every_hand(game, view)
    assert keys_of(view, canonical) == [(total + 32 * card + 512 * ace, 0) for total, card, ace in hands]


def test_blackjack_prompt_leaves_out_an_ace_that_counts_1() -> None:
    game = envs.make_game("blackjack")
    view = make_view(game)
    with_ace, without = (view.canonicalize(hand(game, cards, 7))[0] for cards in ([1, 5, 10], [10, 6]))
    assert view.render(with_ace) == view.render(without)


@pytest.mark.parametrize("options", [{}, {"sab": False}, {"sab": False, "natural": True}], ids=str)
def test_blackjack_values_are_hundredths_of_the_optimum(options: dict[str, bool]) -> None:
    game = envs.make_game("blackjack", **options)
    view = make_view(game)
    canonical, hands = every_hand(game, view)
    best = optimum(game)
    for (stick, hit), place in zip(view.expert_values(canonical, 1).tolist(), hands, strict=True):
        assert stick == pytest.approx(100 * best.stick[place].item(), abs=1e-4)
        assert hit == pytest.approx(100 * best.hit[place].item(), abs=1e-4)


@pytest.mark.parametrize(
    ("total", "card", "ace", "better"),
    [(20, 10, 0, "stick"), (11, 6, 0, "hit"), (16, 10, 0, "hit"), (16, 6, 0, "stick"), (17, 6, 1, "hit")],
)
def test_blackjack_values_follow_basic_strategy(total: int, card: int, ace: int, better: str) -> None:
    game = envs.make_game("blackjack")
    view = make_view(game)
    canonical, _ = view.canonicalize(hand(game, cards_of(total, ace), card))
    options = view.render(canonical)[0].splitlines()[-2]
    label = view.labels[view.expert_values(canonical, 1).argmax().item()]
    assert f"{label} {better}" in options


def test_blackjack_rules_state_what_a_natural_pays() -> None:
    games = [{}, {"sab": False}, {"sab": False, "natural": True}]
    sab, plain, natural = (make_view(envs.make_game("blackjack", **options)).instructions for options in games)
    assert "beats every other 21" in sab
    assert "one and a half times" in natural
    assert "first two cards" not in plain
    assert make_view(envs.make_game("blackjack", sab=True, natural=True)).instructions == sab, (
        "sab goes first, as in the game"
    )


@pytest.fixture(scope="module")
def full() -> Played:
    return play("snake", "full")


@pytest.fixture(scope="module")
def local() -> Played:
    return play("snake", "local")


def test_snake_helpers_build_the_drawn_board(full: Played) -> None:
    """The tools of this file against each other: what a game shows, and the game played from it."""
    state, _, _, _ = every(full, 101)
    snakes = drawn(full.game, state)
    assert max(len(snake.body) for snake in snakes) > 20
    again = build(full.game, snakes)
    for ours, theirs in zip(full.game.observe(again), full.game.observe(state), strict=True):
        assert ours.equal(theirs)


def test_snake_prompt_parses_back_to_an_image_of_the_position(full: Played) -> None:
    state, _, transform, words = every(full, 31)
    turns = {tuple(renamed(*turn)): turn for turn in itertools.product((False, True), range(4))}
    for snake, names, question in zip(
        drawn(full.game, state), full.view.symmetry[transform].tolist(), words, strict=True
    ):
        assert read(board_in(full.view, question)) == image(snake, full.game.size, *turns[tuple(names)])


def test_snake_canonicalize_is_idempotent(full: Played) -> None:
    _, canonical, _, words = every(full, 101)
    again, _ = full.view.canonicalize(build(full.game, [read(board_in(full.view, question)) for question in words]))
    assert full.view.key(again).equal(full.view.key(canonical))
    assert full.view.render(again) == words


def test_snake_symmetry_commutes_with_a_step(full: Played) -> None:
    state, _, transform, words = every(full, 101)
    canonical = build(full.game, [read(board_in(full.view, question)) for question in words])
    u = torch.zeros(len(words), 1)
    for action in range(4):
        names = full.view.symmetry[transform, action]
        here, reward, dead = full.game.step(state, torch.full_like(names, action), u)
        there, reward_there, dead_there = full.game.step(canonical, names, u)
        assert reward.equal(reward_there)
        assert dead.equal(dead_there)
        same = reward == 0  # a new fruit lies elsewhere, as it is drawn by cells
        assert (same & ~dead).sum() > 100
        keys = [full.view.key(full.view.canonicalize(after)[0]) for after in (here, there)]
        assert keys[0][same].equal(keys[1][same])


def test_snake_keys_equal_exactly_where_prompts_are_on_a_small_board() -> None:
    """3 x 3 cells: most sets of cells are the body of several snakes, and most snakes are seen often."""
    game = envs.make_game("snake", size=3)
    view, env, rng = make_view(game, "full"), VecEnv(game, 300, seed=5), CounterRNG(6, torch.arange(300), 9)
    step, seen = env.reset(), []
    for number in range(50):
        canonical, transform = view.canonicalize(env.state)
        seen.append(canonical)
        best = best_of(view.expert_values(canonical, 1).gather(1, view.symmetry[transform]), step.action_mask)
        chance = rng.uniform(number, 2)
        step = env.step(sample_legal(torch.where(chance[:, :1] < 0.3, step.action_mask, best), chance[:, 1]))
    canonical = joined(tuple(seen))
    words = view.render(canonical)
    assert_one_key_a_question(words, keys_of(view, canonical))
    snakes = [read(board_in(view, question)) for question in set(words)]
    assert len({(frozenset(body), body[-1], fruit) for body, fruit in snakes}) < len(snakes)


def steps_from(goals: list[Cell], size: int, closed: set[Cell]) -> dict[Cell, int]:
    """How many moves each cell is from the nearest goal, by a queue; cells without a way are missing."""
    found, queue = dict.fromkeys(goals, 0), deque(goals)
    while queue:
        row, column = queue.popleft()
        for down, right in MOVES:
            cell = (row + down, column + right)
            if min(cell) >= 0 and max(cell) < size and cell not in closed and cell not in found:
                found[cell] = found[row, column] + 1
                queue.append(cell)
    return found


@pytest.mark.parametrize("size", [2, 5, 12])
def test_distance_equals_breadth_first_search(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    boards = 150
    blocked = torch.rand(boards, size, size, generator=generator) < torch.rand(boards, 1, 1, generator=generator)
    goal = torch.rand(boards, size, size, generator=generator) < 1.5 / size**2
    result = distance(goal, blocked).tolist()
    for row in range(boards):
        closed = {cell_at(index, size) for index in ones(blocked[row].tolist())}
        found = steps_from([cell_at(index, size) for index in ones(goal[row].tolist())], size, closed)
        for cell in itertools.product(range(size), range(size)):
            assert result[row][cell[0]][cell[1]] == found.get(cell, size**2)


def test_distance_follows_the_longest_path() -> None:
    """A corridor that winds through the whole board."""
    size = 9
    blocked = torch.zeros(1, size, size, dtype=torch.bool)
    for row in range(1, size, 2):
        blocked[0, row] = True
        blocked[0, row, size - 1 if row % 4 == 1 else 0] = False
    goal = torch.zeros_like(blocked)
    goal[0, 0, 0] = True
    assert distance(goal, blocked)[0, size - 1, size - 1] == 5 * size + 4 - 1


def promise(snake: Drawn, size: int) -> list[tuple[int, ...]]:
    """How good each move is, as numbers of which the first that differs decides.

    Alive; with a way to the tail; with a way to the fruit; near to it, or else far from the tail. A cell of the body
    is in the way, the tail is not. Nothing is said of the way back into the neck.
    """
    body, fruit = snake
    closed = set(body[1:]) | {body[-1]}
    to_fruit = {} if fruit is None else steps_from([fruit], size, closed)
    to_tail = steps_from([body[0]], size, closed)
    promises: list[tuple[int, ...]] = []
    for down, right in MOVES:
        cell = (body[-1][0] + down, body[-1][1] + right)
        if cell in body[-2:-1]:
            promises.append(())
            continue
        if min(cell) < 0 or max(cell) >= size or cell in closed:
            promises.append((0, 0, 0, 0))
            continue
        safe = len(body) <= 2 or cell in to_tail
        far = to_tail.get(cell, size**2)
        promises.append((1, int(safe), 1, -to_fruit[cell]) if cell in to_fruit else (1, int(safe), 0, far))
    return promises


def assert_ranked(values: list[float], promises: list[tuple[int, ...]]) -> None:
    """Every move that promises more is worth more, and one that promises the same is worth the same.

    The way back into the neck is not ranked.
    """
    for one, other in itertools.combinations([move for move in range(4) if promises[move]], 2):
        better, worse = promises[one] > promises[other], promises[one] < promises[other]
        assert (values[one] > values[other], values[one] < values[other]) == (better, worse), (values, promises)


def test_snake_search_ranks_moves_as_breadth_first_search(full: Played) -> None:
    _, canonical, _, words = every(full, 131)
    snakes = [read(board_in(full.view, question)) for question in words]
    assert full.view.expert_values(canonical, DEPTH).equal(search(canonical["board"]))
    kinds = set()
    for values, snake in zip(search(canonical["board"]).tolist(), snakes, strict=True):
        promises = promise(snake, full.game.size)
        kinds |= {one[:3] for one in promises}
        assert_ranked(values, promises)
    assert {(0, 0, 0), (1, 0, 1), (1, 1, 1)} <= kinds, "death, a trap with the fruit, and the way to it"


FRUIT_IN_A_TRAP = """
* . @ .
> > ^ .
^ . . .
. . . .
"""
NO_WAY_BUT_A_TRAP = """
. . @ v <
> > ^ v .
^ < < < .
. . . . .
. . . * .
"""  # the tail is at the top right, and the neck below the head
FRUIT_BEHIND_THE_BODY = """
* > @ .
> ^ . .
^ . . .
. . . .
"""  # the way to the tail is longer to the right than down


@pytest.mark.parametrize("size", [5, 12, 16, 24])
@pytest.mark.parametrize(
    ("drawing", "best"), [(FRUIT_IN_A_TRAP, "right"), (NO_WAY_BUT_A_TRAP, "left"), (FRUIT_BEHIND_THE_BODY, "right")]
)
def test_snake_values_prefer_the_surviving_move(drawing: str, best: str, size: int) -> None:
    game = envs.make_game("snake", size=size)
    view, snake = make_view(game, "full"), read(drawing)
    canonical, transform = view.canonicalize(build(game, [snake]))
    values = view.expert_values(canonical, DEPTH).gather(1, view.symmetry[transform])[0]
    assert ["up", "right", "down", "left"][values.argmax()] == best
    assert_ranked(values.tolist(), promise(snake, size))


def around(snake: Drawn, size: int) -> list[tuple[str, bool]]:
    """What lies above, right of, below and left of the head, and whether the fruit is nearer there."""
    (row, column), seen = snake.body[-1], []
    for down, right in MOVES:
        cell = (row + down, column + right)
        if len(snake.body) > 1 and cell == snake.body[-2]:
            kind = "your neck"
        elif not (0 <= cell[0] < size and 0 <= cell[1] < size):
            kind = "wall"
        else:
            kind = "your body" if cell in snake.body[1:] else "free"
        fruit_row, fruit_column = snake.fruit
        now = abs(fruit_row - row) + abs(fruit_column - column)
        then = abs(fruit_row - cell[0]) + abs(fruit_column - cell[1])
        seen.append((kind, then < now))
    return seen


def test_snake_local_prompt_describes_the_drawn_board(local: Played) -> None:
    state, _, transform, words = every(local, 31)
    kinds = set()
    for snake, names, question in zip(
        drawn(local.game, state), local.view.symmetry[transform].tolist(), words, strict=True
    ):
        *sides, fruit, _, _ = question.removeprefix(local.view.instructions).splitlines()
        shown = dict(line.split(": ") for line in sides)
        assert list(shown) == list(SIDES)
        towards = fruit.removeprefix("Fruit: ").split(", ")
        for (kind, nearer), name in zip(around(snake, local.game.size), names, strict=True):
            kinds.add(kind)
            assert shown[SIDES[name]] == kind
            assert (SIDES[name].lower() in towards) == nearer
        assert (shown["Behind"] == "your neck") == (len(snake.body) > 1), "it looks where it goes"
    assert kinds == {"your neck", "wall", "free", "your body"}


def test_snake_local_prompt_calls_a_moving_tail_free(local: Played) -> None:
    view, game = local.view, local.game
    ring = build(game, [read("> v\n^ @\n. *" + "\n." * 5 + " ." * 6)])
    canonical, transform = view.canonicalize(ring)
    tail = view.symmetry[transform[0], 3].item()
    assert f"{SIDES[tail]}: free\n" in view.render(canonical)[0]
    _, _, dead = game.step(ring, torch.tensor([3]), torch.zeros(1, 1))
    assert not dead


def test_snake_local_prompt_without_fruit(local: Played) -> None:
    canonical, _ = local.view.canonicalize(build(local.game, [Drawn([(3, 3), (3, 4)], None)]))
    assert "\nFruit: nowhere\n" in local.view.render(canonical)[0]


def test_snake_local_view_has_few_prompts(local: Played) -> None:
    assert len(set(local.words)) < 300
    key = local.view.key(local.canonical)
    assert (key[:, 0] >= 0).all()
    assert (key[:, 0] < 2**12).all()
    assert (key[:, 1] == 0).all()


def test_snake_rules_name_the_size_only_in_the_full_view() -> None:
    small, large = (envs.make_game("snake", size=size) for size in (6, 12))
    assert "6 by 6" in make_view(small, "full").instructions
    assert "12 by 12" in make_view(large, "full").instructions
    assert make_view(small, "local").instructions == make_view(large, "local").instructions


@pytest.mark.parametrize(("name", "size", "steps", "floor"), [("full", 6, 200, 18), ("local", 12, 250, 10)])
def test_snake_values_alone_collect_many_fruits(name: str, size: int, steps: int, floor: float) -> None:
    """The mean over the first game of each of 40 snakes, as far as these steps go, with ties broken at random."""
    game = envs.make_game("snake", size=size)
    view, env, rng = make_view(game, name), VecEnv(game, 40, seed=1), CounterRNG(2, torch.arange(40), 9)
    step, alive, fruits = env.reset(), torch.ones(40, dtype=torch.bool), torch.zeros(40)
    for number in range(steps):
        canonical, transform = view.canonicalize(env.state)
        best = best_of(view.expert_values(canonical, DEPTH).gather(1, view.symmetry[transform]), step.action_mask)
        step = env.step(sample_legal(best, rng.uniform(number, 1)[:, 0]))
        fruits += step.reward * alive
        alive &= ~(step.terminated | step.truncated)
    assert fruits.mean() > floor


def test_make_view_takes_the_first_view_by_default() -> None:
    game = envs.make_game("snake")
    assert make_view(game).name == next(iter(VIEWS["snake"])) == "local"
    assert make_view(game, "full").name == "full"


def test_make_view_suggests_the_closest_name() -> None:
    with pytest.raises(ValueError, match=r"snake.*'fulll'.*full, local.*did you mean 'full'\?"):
        make_view(envs.make_game("snake"), "fulll")
    with pytest.raises(ValueError, match=r"connect4.*'local'.*there are board"):
        make_view(envs.make_game("connect4"), "local")


class Chess:
    """A game that nobody put into words."""

    spec = Spec("chess", 1, (1,), 1, 0, 0, None)


def test_make_view_of_a_game_without_views_raises() -> None:
    for name in (None, "board"):
        with pytest.raises(ValueError, match=r"chess has no prompt view.*module:Class"):
            make_view(Chess(), name)


def test_make_view_imports_a_class_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chess_in_words.py").write_text(
        "from tutors.prompts.connect4 import Connect4View\n"
        "class OwnView(Connect4View):\n"
        "    def __init__(self, game):\n        super().__init__(game)\n        self.of = game\n"
        "class Shown:\n    def __init__(self, game):\n        pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    game = Chess()
    view = make_view(game, "chess_in_words:OwnView")
    assert type(view).__name__ == "OwnView"
    assert view.of is game
    with pytest.raises(ValueError, match="chess_in_words:Shown makes Shown, which has no name"):
        make_view(game, "chess_in_words:Shown")
    with pytest.raises(ValueError, match="chess_in_words:Shows"):
        make_view(game, "chess_in_words:Shows")
    with pytest.raises(ValueError, match="nowhere_to_be_found:PromptView"):
        make_view(game, "nowhere_to_be_found:PromptView")
