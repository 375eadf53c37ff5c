"""Texts and images of episodes that the tests generate, against boards drawn by hand.

An image is read back by the colour in the middle of every cell.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from envs import ENVS
from envs.base import Spec, State
from envs.blackjack import HIT, Blackjack
from envs.connect4 import Connect4, lines_of_four, notation
from envs.rendering import DRAWINGS, hand_of
from envs.snake import DOWN, LEFT, RIGHT, UP, Snake

PAINTS = {
    "white": (245, 245, 235),
    "blue": (30, 60, 150),
    "red": (210, 50, 50),
    "yellow": (245, 205, 60),
    "green": (85, 160, 80),
    "dark green": (35, 95, 55),
    "black": (20, 20, 20),
}
SNAKE_PAINTS = {"white": ".", "red": "*", "green": "s", "dark green": "@"}
EVERY_CARD = range(1, 11)


def paint(pixel: np.ndarray) -> str:
    """Return the nearest of the plain colours."""
    return min(PAINTS, key=lambda name: np.abs(pixel.astype(int) - PAINTS[name]).sum())


def painted(picture: np.ndarray, rows: int, columns: int, signs: dict[str, str]) -> str:
    """Return the board with the sign of the colour in the middle of every cell."""
    height, width = len(picture) // rows, picture.shape[1] // columns
    middles = itertools.product(range(height // 2, rows * height, height), range(width // 2, columns * width, width))
    found = [signs[paint(picture[place])] for place in middles]
    return "\n".join(" ".join(found[at : at + columns]) for at in range(0, rows * columns, columns))


def board(drawn: str) -> str:
    """Return a drawing without its indentation."""
    return "\n".join(line.strip() for line in drawn.strip().splitlines())


def connect4(first: str, moves: str) -> tuple[Spec, list[State]]:
    """Return an episode from its columns 0 … 6 in the order of moves; `first` is x, the student, or o, the opponent.

    The opponent's column is its uniform times 7. Where the student's move is the last one, it won.
    """
    game = Connect4(lambda pieces, others, u: (u * 7).long())
    u = [(int(column) + 0.5) / 7 for column in moves]
    opening = u.pop(0) if first == "o" else 0.5
    states = [game.reset(torch.tensor([[0.25 if first == "o" else 0.75, opening]]))]
    for mine, theirs in itertools.zip_longest(u[::2], u[1::2], fillvalue=0.5):
        state, _, _ = game.step(states[-1], torch.tensor([int(mine * 7)]), torch.tensor([[theirs]]))
        states.append(state)
    return game.spec, states


def snake(size: int, head: int, fruit: int, *moves: int | tuple[int, int]) -> tuple[Spec, list[State]]:
    """Return an episode from two cells, counted by rows from the top; an action that eats has the next fruit's cell."""
    game, cells, body = Snake(size=size), size**2, [head]
    states = [game.reset(torch.tensor([[(head + 0.5) / cells, (fruit - (fruit > head) + 0.5) / (cells - 1)]]))]
    for move in moves:
        action, fruit = move if isinstance(move, tuple) else (move, None)
        body.append(body[-1] + {UP: -size, RIGHT: 1, DOWN: size, LEFT: -1}[action])
        if fruit is None:
            body.pop(0)
        empty = [cell for cell in range(cells) if cell not in body]
        u = 0.0 if fruit is None or not empty else (empty.index(fruit) + 0.5) / len(empty)
        states.append(game.step(states[-1], torch.tensor([action]), torch.tensor([[u]]))[0])
    return game.spec, states


def blackjack(open_card: int, first: int, second: int, *drawn: int) -> tuple[Spec, list[State]]:
    """Return an episode of two cards and those drawn by hitting; three cards are one uniform."""
    game = Blackjack()

    def u(*ranks: int) -> float:
        return (sum((rank - 1) * 13**place for place, rank in enumerate(reversed(ranks))) + 0.5) / 13**3

    states = [game.reset(torch.tensor([[u(open_card, first, second)]]))]
    for card in drawn:
        states.append(game.step(states[-1], torch.tensor([HIT]), torch.tensor([[u(card, 1, 1), 0, 0, 0]]))[0])
    return game.spec, states


def text(game: tuple[Spec, Sequence[State]]) -> str:
    return DRAWINGS[game[0].name].text(*game)


def image_of(game: tuple[Spec, Sequence[State]]) -> np.ndarray:
    return DRAWINGS[game[0].name].image(*game)


def side_by_side(episodes: Sequence[tuple[Spec, Sequence[State]]]) -> tuple[Spec, list[State]]:
    """Return several episodes of one length as those of several env copies."""
    histories = [states for _, states in episodes]
    return episodes[0][0], [
        {name: torch.cat([state[name] for state in copies]) for name in copies[0]}
        for copies in zip(*histories, strict=True)
    ]


NOWHERE = -1  # the cell of the next fruit when the board is full

UNFINISHED = connect4("x", "3343")
OPPONENT_FIRST = connect4("o", "00611")
WON = connect4("x", "0101010")
LOST = connect4("x", "01016161")
ALL_DIRECTIONS = snake(4, 9, 5, (UP, 1), (UP, 2), (RIGHT, 3), (RIGHT, 7), (DOWN, 11), (DOWN, 10), (LEFT, 12))
FULL = snake(2, 0, 1, (RIGHT, 3), (DOWN, 2), (LEFT, NOWHERE))
SOFT_17 = blackjack(10, 1, 6)


def test_connect4_text_of_empty_board() -> None:
    rows = [". . . . . . ."] * 6
    assert text(connect4("x", "")) == "\n".join([*rows, "", '[First "student"]', '[Result "*"]', "", ""])


def test_connect4_text_is_board_and_moves() -> None:
    assert text(UNFINISHED) == board("""
        . . . . . . .
        . . . . . . .
        . . . . . . .
        . . . o . . .
        . . . o . . .
        . . . x x . .

        [First "student"]
        [Result "*"]

        1. d1 d2 2. e1 d3
    """)


def test_connect4_text_names_first_mover() -> None:
    assert text(OPPONENT_FIRST) == board("""
        . . . . . . .
        . . . . . . .
        . . . . . . .
        . . . . . . .
        x o . . . . .
        o x . . . . o

        [First "opponent"]
        [Result "*"]

        1. a1 a2 2. g1 b1 3. b2
    """)


def test_connect4_text_gives_result() -> None:
    assert text(WON) == board("""
        . . . . . . .
        . . . . . . .
        x . . . . . .
        x o . . . . .
        x o . . . . .
        x o . . . . .

        [First "student"]
        [Result "1-0"]

        1. a1 b1 2. a2 b2 3. a3 b3 4. a4
    """)
    assert '[Result "0-1"]' in text(LOST)


@pytest.mark.parametrize("game", [UNFINISHED, OPPONENT_FIRST, WON, LOST])
def test_connect4_text_ends_with_notation(game: tuple[Spec, list[State]]) -> None:
    assert text(game).endswith("\n\n" + notation(game[1]))


def test_connect4_image_shows_discs_and_holes() -> None:
    signs = {"white": ".", "red": "x", "yellow": "o"}
    assert painted(image_of(OPPONENT_FIRST), 6, 7, signs) == board("""
        . . . . . . .
        . . . . . . .
        . . . . . . .
        . . . . . . .
        x o . . . . .
        o x . . . . o
    """)


def test_connect4_image_is_blue_between_discs() -> None:
    drawn = image_of(LOST)
    cell = len(drawn) // 6
    corners = {paint(drawn[row, column]) for row in range(0, 6 * cell, cell) for column in range(0, 7 * cell, cell)}
    assert corners == {"blue"}
    assert paint(drawn[-1, -1]) == "blue"


def test_snake_text_shows_direction_at_every_cell() -> None:
    assert text(ALL_DIRECTIONS) == board("""
        . > > v
        . ^ . v
        . ^ @ <
        * . . .
    """)


def test_snake_text_of_one_cell() -> None:
    assert text(snake(3, 4, 2)) == ". . *\n. @ .\n. . ."
    assert text(snake(3, 4, 2, LEFT)) == ". . *\n@ . .\n. . ."


def test_snake_text_of_board_of_two_words() -> None:
    rows = [". . . . . . . ."] * 6
    assert text(snake(8, 62, 63, (RIGHT, 55))) == "\n".join([*rows, ". . . . . . . *", ". . . . . . > @"])


def test_snake_image_shows_head_body_and_fruit() -> None:
    assert painted(image_of(ALL_DIRECTIONS), 4, 4, SNAKE_PAINTS) == board("""
        . s s s
        . s . s
        . s @ s
        * . . .
    """)


def test_snake_image_grows_with_board() -> None:
    small, large = (image_of(snake(size, 0, 1)) for size in (3, 12))
    assert small.shape[0] * 4 == large.shape[0]
    assert large.shape[0] == large.shape[1]


def test_snake_that_fills_board_shows_no_fruit() -> None:
    assert text(FULL) == "> v\n@ <"
    assert painted(image_of(FULL), 2, 2, SNAKE_PAINTS) == "s s\n@ s"


def test_blackjack_text_states_three_numbers() -> None:
    assert text(SOFT_17) == "Your sum: 17, an ace counts 11\nThe dealer shows: 10"
    assert text(blackjack(1, 10, 7)) == "Your sum: 17\nThe dealer shows: 1"
    assert text(blackjack(10, 1, 6, 9)) == "Your sum: 16\nThe dealer shows: 10"
    assert text(blackjack(2, 10, 6, 9)) == "Your sum: 25\nThe dealer shows: 2"


def halves(game: tuple[Spec, Sequence[State]]) -> tuple[bytes, bytes]:
    """Return the left and the right half of an image."""
    left, right = np.split(image_of(game), 2, axis=1)
    return left.tobytes(), right.tobytes()


def test_blackjack_image_left_half_is_dealers_card() -> None:
    drawn = [halves(blackjack(card, 10, 6)) for card in EVERY_CARD]
    assert len({left for left, _ in drawn}) == len(EVERY_CARD)
    assert len({right for _, right in drawn}) == 1


def test_blackjack_image_right_half_is_students_sum() -> None:
    hands = [(2, 2), *[(10, card) for card in EVERY_CARD[1:]], (10, 10, 5)]  # none with an ace
    drawn = [halves(blackjack(4, *hand)) for hand in hands]
    assert len({right for _, right in drawn}) == len(hands)
    assert len({left for left, _ in drawn}) == 1


def test_blackjack_image_shows_usable_ace() -> None:
    soft, hard = halves(SOFT_17), halves(blackjack(10, 10, 7))
    assert soft[0] == hard[0]
    assert soft[1] != hard[1]


def test_blackjack_image_is_cards_on_a_green_table() -> None:
    drawn = image_of(SOFT_17)
    height, width = drawn.shape[:2]
    assert {paint(drawn[at]) for at in ((0, 0), (-1, -1), (height // 2, width // 2))} == {"dark green"}
    row = [paint(pixel) for pixel in drawn[height // 2]]
    cards = [color for color, _ in itertools.groupby(row) if color == "white"]
    assert len(cards) == 3, "the dealer's open one, and the student's two"


def test_blackjack_hand_is_what_was_drawn() -> None:
    assert hand_of(SOFT_17[1]) == ["A", "6"]
    assert hand_of(blackjack(4, 10, 6, 5, 1)[1]) == ["16 2", "5", "A"]
    assert hand_of(blackjack(4, 1, 10)[1]) == ["A", "10"]
    assert hand_of(blackjack(4, 10, 6, 5)[1][-1:]) == ["21 3"], "without what was before"
    assert hand_of([*blackjack(4, 2, 3, 5)[1], *SOFT_17[1]]) == ["A", "6"], "the last hand alone"


@pytest.mark.parametrize("name", DRAWINGS)
def test_actions_have_names_and_returns_a_meaning(name: str) -> None:
    drawing, spec = DRAWINGS[name], EPISODES[name][0][0]
    assert len(set(drawing.actions)) == spec.num_actions
    assert drawing.outcome(1.0) != drawing.outcome(0.0)


def test_a_line_of_four_is_ringed() -> None:
    """Every disc of it, and no other: black at the edge of the disc."""
    for game, side in ((WON, "mine"), (LOST, "theirs")):
        drawn = image_of(game)
        cell = len(drawn) // 6
        ringed = {
            (5 - row) + 7 * column
            for row, column in itertools.product(range(6), range(7))
            if paint(drawn[row * cell + cell // 2, column * cell + 4]) == "black"
        }
        state = game[1][-1]
        four = int(lines_of_four(state[side])[0])
        assert ringed == {bit for bit in range(49) if four >> bit & 1}
        assert len(ringed) == 4
    assert not lines_of_four(UNFINISHED[1][-1]["mine"])


EPISODES = {
    "connect4": (UNFINISHED, connect4("x", "0123")),
    "snake": (
        ALL_DIRECTIONS,
        snake(4, 0, 1, (RIGHT, 2), (RIGHT, 3), (RIGHT, 7), (DOWN, 6), (LEFT, 5), (LEFT, 4), (LEFT, 15)),
    ),
    "blackjack": (SOFT_17, blackjack(2, 2, 2)),
}


def test_drawings_exist_for_every_env() -> None:
    assert set(DRAWINGS) == set(ENVS) == set(EPISODES)


@pytest.mark.parametrize("name", EPISODES)
def test_drawing_of_several_copies_is_of_the_first(name: str) -> None:
    first, second = EPISODES[name]
    both = side_by_side([first, second])
    assert text(both) == text(first) != text(second)
    assert np.array_equal(image_of(both), image_of(first))
    assert not np.array_equal(image_of(both), image_of(second))


@pytest.mark.parametrize("name", EPISODES)
def test_drawing_is_of_last_state(name: str) -> None:
    first, second = EPISODES[name]
    assert np.array_equal(image_of((first[0], [*second[1], *first[1]])), image_of(first))
    assert text((first[0], [*second[1], *first[1]])).splitlines()[:2] == text(first).splitlines()[:2]


@pytest.mark.parametrize("name", EPISODES)
def test_image_is_height_by_width_by_three_uint8(name: str) -> None:
    drawn = image_of(EPISODES[name][0])
    assert drawn.dtype == np.uint8
    assert drawn.ndim == 3
    assert drawn.shape[2] == 3
    proportions = {"connect4": (6, 7), "snake": (4, 4), "blackjack": (5, 8)}[name]
    assert drawn.shape[0] * proportions[1] == drawn.shape[1] * proportions[0]


@pytest.mark.parametrize("name", EPISODES)
def test_drawing_does_not_modify_states(name: str) -> None:
    spec, states = EPISODES[name][0]
    before = [{key: tensor.clone() for key, tensor in state.items()} for state in states]
    text((spec, states))
    image_of((spec, states))
    for state, kept in zip(states, before, strict=True):
        assert all(state[key].equal(kept[key]) for key in kept)
