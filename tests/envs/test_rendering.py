"""Texts and pictures of games that are played here by the rules, against boards drawn by hand.

A picture is read back by the colour in the middle of every cell.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from envs import ENVS
from envs.base import Spec, State
from envs.blackjack import HIT, Blackjack
from envs.connect4 import Connect4, notation
from envs.rendering import DRAWINGS
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
    """Which of the plain paints comes nearest."""
    return min(PAINTS, key=lambda name: np.abs(pixel.astype(int) - PAINTS[name]).sum())


def painted(picture: np.ndarray, rows: int, columns: int, signs: dict[str, str]) -> str:
    """The paint in the middle of every cell, drawn as its sign."""
    height, width = len(picture) // rows, picture.shape[1] // columns
    middles = itertools.product(range(height // 2, rows * height, height), range(width // 2, columns * width, width))
    found = [signs[paint(picture[place])] for place in middles]
    return "\n".join(" ".join(found[at : at + columns]) for at in range(0, rows * columns, columns))


def board(drawn: str) -> str:
    """A drawing in a test without what indents it."""
    return "\n".join(line.strip() for line in drawn.strip().splitlines())


def connect4(first: str, moves: str) -> tuple[Spec, list[State]]:
    """A game by its columns 0 … 6 in the order of play; `first` is x, the student, or o, the opponent.

    The opponent drops where its luck tells it to. Where the student's move is the last one, it won.
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
    """A game from two cells, counted by rows from the top. A move that eats comes with the cell of the next fruit."""
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
    """A hand of two cards and those that were drawn then; three cards are one number of luck."""
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


def side_by_side(games: Sequence[tuple[Spec, Sequence[State]]]) -> tuple[Spec, list[State]]:
    """Several games of one length as the copies of one."""
    histories = [states for _, states in games]
    return games[0][0], [
        {name: torch.cat([state[name] for state in copies]) for name in copies[0]}
        for copies in zip(*histories, strict=True)
    ]


NOWHERE = -1  # there lies the next fruit when the board is full

UNDER_WAY = connect4("x", "3343")
OPPONENT_BEGAN = connect4("o", "00611")
WON = connect4("x", "0101010")
LOST = connect4("x", "01016161")
ALL_WAYS = snake(4, 9, 5, (UP, 1), (UP, 2), (RIGHT, 3), (RIGHT, 7), (DOWN, 11), (DOWN, 10), (LEFT, 12))
FULL = snake(2, 0, 1, (RIGHT, 3), (DOWN, 2), (LEFT, NOWHERE))
SOFT_17 = blackjack(10, 1, 6)


def test_an_empty_board_and_no_moves() -> None:
    rows = [". . . . . . ."] * 6
    assert text(connect4("x", "")) == "\n".join([*rows, "", '[First "student"]', '[Result "*"]', "", ""])


def test_a_connect4_text_is_the_board_and_the_moves() -> None:
    assert text(UNDER_WAY) == board("""
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


def test_a_connect4_text_says_when_the_opponent_began() -> None:
    assert text(OPPONENT_BEGAN) == board("""
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


def test_a_connect4_text_ends_with_who_won() -> None:
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


@pytest.mark.parametrize("game", [UNDER_WAY, OPPONENT_BEGAN, WON, LOST])
def test_a_connect4_text_ends_with_the_notation(game: tuple[Spec, list[State]]) -> None:
    assert text(game).endswith("\n\n" + notation(game[1]))


def test_a_connect4_picture_has_red_and_yellow_discs_and_holes() -> None:
    signs = {"white": ".", "red": "x", "yellow": "o"}
    assert painted(image_of(OPPONENT_BEGAN), 6, 7, signs) == board("""
        . . . . . . .
        . . . . . . .
        . . . . . . .
        . . . . . . .
        x o . . . . .
        o x . . . . o
    """)


def test_between_the_discs_the_board_is_blue() -> None:
    drawn = image_of(LOST)
    cell = len(drawn) // 6
    corners = {paint(drawn[row, column]) for row in range(0, 6 * cell, cell) for column in range(0, 7 * cell, cell)}
    assert corners == {"blue"}
    assert paint(drawn[-1, -1]) == "blue"


def test_a_snake_is_drawn_with_the_way_on_from_every_cell() -> None:
    assert text(ALL_WAYS) == board("""
        . > > v
        . ^ . v
        . ^ @ <
        * . . .
    """)


def test_a_snake_of_one_cell_leaves_nothing_behind() -> None:
    assert text(snake(3, 4, 2)) == ". . *\n. @ .\n. . ."
    assert text(snake(3, 4, 2, LEFT)) == ". . *\n@ . .\n. . ."


def test_a_board_of_more_cells_than_a_word_has_bits() -> None:
    rows = [". . . . . . . ."] * 6
    assert text(snake(8, 62, 63, (RIGHT, 55))) == "\n".join([*rows, ". . . . . . . *", ". . . . . . > @"])


def test_a_snake_picture_has_a_dark_head_a_green_body_and_a_red_fruit() -> None:
    assert painted(image_of(ALL_WAYS), 4, 4, SNAKE_PAINTS) == board("""
        . s s s
        . s . s
        . s @ s
        * . . .
    """)


def test_a_snake_picture_grows_with_the_board() -> None:
    small, large = (image_of(snake(size, 0, 1)) for size in (3, 12))
    assert small.shape[0] * 4 == large.shape[0]
    assert large.shape[0] == large.shape[1]


def test_a_snake_that_fills_the_board_leaves_no_fruit() -> None:
    assert text(FULL) == "> v\n@ <"
    assert painted(image_of(FULL), 2, 2, SNAKE_PAINTS) == "s s\n@ s"


def test_a_blackjack_text_has_the_three_numbers() -> None:
    assert text(SOFT_17) == "Your sum: 17, an ace counts 11\nThe dealer shows: 10"
    assert text(blackjack(1, 10, 7)) == "Your sum: 17\nThe dealer shows: 1"
    assert text(blackjack(10, 1, 6, 9)) == "Your sum: 16\nThe dealer shows: 10"
    assert text(blackjack(2, 10, 6, 9)) == "Your sum: 25\nThe dealer shows: 2"


def halves(game: tuple[Spec, Sequence[State]]) -> tuple[bytes, bytes]:
    """The left half of a picture, and the right one."""
    left, right = np.split(image_of(game), 2, axis=1)
    return left.tobytes(), right.tobytes()


def test_the_dealers_card_is_on_the_left_and_no_two_are_alike() -> None:
    drawn = [halves(blackjack(card, 10, 6)) for card in EVERY_CARD]
    assert len({left for left, _ in drawn}) == len(EVERY_CARD)
    assert len({right for _, right in drawn}) == 1


def test_the_students_sum_is_on_the_right_and_no_two_are_alike() -> None:
    hands = [(2, 2), *[(10, card) for card in EVERY_CARD[1:]], (10, 10, 5)]  # none with an ace
    drawn = [halves(blackjack(4, *hand)) for hand in hands]
    assert len({right for _, right in drawn}) == len(hands)
    assert len({left for left, _ in drawn}) == 1


def test_a_picture_tells_an_ace_that_counts_11() -> None:
    soft, hard = halves(SOFT_17), halves(blackjack(10, 10, 7))
    assert soft[0] == hard[0]
    assert soft[1] != hard[1]


def ink(half: np.ndarray) -> np.ndarray:
    """What of half a picture is written on its card, (height, width) bool, without what is empty on both sides."""
    black = (half.astype(int).sum(2) < 240)[len(half) // 5 : len(half) * 4 // 5]
    return black[:, np.flatnonzero(black.any(0)).min() : np.flatnonzero(black.any(0)).max() + 1]


def test_both_cards_write_their_numbers_alike() -> None:
    left, right = np.split(image_of(blackjack(10, 6, 4)), 2, axis=1)
    assert np.array_equal(ink(left), ink(right))


def test_two_white_cards_lie_on_green_felt_with_their_numbers_in_black() -> None:
    drawn = image_of(SOFT_17)
    height, width = drawn.shape[:2]
    paints = [paint(drawn[height * 3 // 10, at]) for at in (0, width // 4, width // 2, width * 3 // 4, width - 1)]
    assert paints == ["dark green", "white", "dark green", "white", "dark green"]
    assert "black" in {paint(pixel) for pixel in drawn[height // 2]}


GAMES = {
    "connect4": (UNDER_WAY, connect4("x", "0123")),
    "snake": (
        ALL_WAYS,
        snake(4, 0, 1, (RIGHT, 2), (RIGHT, 3), (RIGHT, 7), (DOWN, 6), (LEFT, 5), (LEFT, 4), (LEFT, 15)),
    ),
    "blackjack": (SOFT_17, blackjack(2, 2, 2)),
}


def test_every_game_can_be_drawn() -> None:
    assert set(DRAWINGS) == set(ENVS) == set(GAMES)


@pytest.mark.parametrize("name", GAMES)
def test_of_several_copies_the_first_is_drawn(name: str) -> None:
    first, second = GAMES[name]
    both = side_by_side([first, second])
    assert text(both) == text(first) != text(second)
    assert np.array_equal(image_of(both), image_of(first))
    assert not np.array_equal(image_of(both), image_of(second))


@pytest.mark.parametrize("name", GAMES)
def test_the_last_of_the_positions_is_drawn(name: str) -> None:
    first, second = GAMES[name]
    assert np.array_equal(image_of((first[0], [*second[1], *first[1]])), image_of(first))
    assert text((first[0], [*second[1], *first[1]])).splitlines()[:2] == text(first).splitlines()[:2]


@pytest.mark.parametrize("name", GAMES)
def test_a_picture_is_height_by_width_by_three_colours(name: str) -> None:
    drawn = image_of(GAMES[name][0])
    assert drawn.dtype == np.uint8
    assert drawn.ndim == 3
    assert drawn.shape[2] == 3
    proportions = {"connect4": (6, 7), "snake": (4, 4), "blackjack": (5, 8)}[name]
    assert drawn.shape[0] * proportions[1] == drawn.shape[1] * proportions[0]


@pytest.mark.parametrize("name", GAMES)
def test_drawing_changes_no_position(name: str) -> None:
    spec, states = GAMES[name][0]
    before = [{key: tensor.clone() for key, tensor in state.items()} for state in states]
    text((spec, states))
    image_of((spec, states))
    for state, kept in zip(states, before, strict=True):
        assert all(state[key].equal(kept[key]) for key in kept)
