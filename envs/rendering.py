"""States drawn for people, as text and as images; of several env copies, the first."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from envs.base import Spec, State
from envs.blackjack import gymnasium_obs
from envs.connect4 import COLUMNS, ROWS, draw, notation
from envs.snake import SIGNS, signs

CELL = 32  # pixels per side
BLUE, RED, YELLOW, HOLE = (28, 62, 152), (214, 48, 49), (246, 205, 60), (236, 240, 245)
TABLE, INK, CARD = (34, 102, 68), (25, 25, 25), (250, 250, 245)
GROUND, BODY, HEAD, FRUIT = (238, 236, 225), (86, 158, 78), (40, 96, 48), (206, 58, 48)


class Drawing(NamedTuple):
    """How a game is drawn, from the states of the episode so far."""

    text: Callable[[Spec, Sequence[State]], str]
    image: Callable[[Spec, Sequence[State]], np.ndarray]  # (height, width, 3) uint8


def connect4_text(spec: Spec, states: Sequence[State]) -> str:
    """Draw the board, the student's discs as x and the opponent's as o, and the moves in the style of chess's PGN."""
    return f"{draw(int(states[-1]['mine'][0]), int(states[-1]['theirs'][0]))}\n\n{notation(states)}"


def connect4_image(spec: Spec, states: Sequence[State]) -> np.ndarray:
    """Draw the board in blue, the student's discs red and the opponent's yellow."""
    rows = draw(int(states[-1]["mine"][0]), int(states[-1]["theirs"][0])).splitlines()
    colours = {".": HOLE, "x": RED, "o": YELLOW}
    image = Image.new("RGB", (COLUMNS * CELL, ROWS * CELL), BLUE)
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(rows):
        for column, sign in enumerate(line.split()):
            pen.ellipse(cell_box(row, column, 3), fill=colours[sign])
    return np.asarray(image)


def snake_text(spec: Spec, states: Sequence[State]) -> str:
    """Draw the board in signs: @ is the head, an arrow the direction at a cell of the body, * the fruit."""
    return "\n".join(" ".join(row) for row in rows_of_signs(spec, states[-1]))


def snake_image(spec: Spec, states: Sequence[State]) -> np.ndarray:
    """Draw the board with a green snake, its head dark, and a red fruit."""
    rows = rows_of_signs(spec, states[-1])
    image = Image.new("RGB", (len(rows) * CELL, len(rows) * CELL), GROUND)
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(rows):
        for column, sign in enumerate(line):
            if sign == "*":
                pen.ellipse(cell_box(row, column, 5), fill=FRUIT)
            elif sign != ".":
                pen.rectangle(cell_box(row, column, 1), fill=HEAD if sign == "@" else BODY)
    return np.asarray(image)


def rows_of_signs(spec: Spec, state: State) -> list[str]:
    """Return the first board, one sign per cell."""
    return ["".join(SIGNS[sign] for sign in row) for row in signs(state, spec.obs_shape[1])[0].tolist()]


def blackjack_text(spec: Spec, states: Sequence[State]) -> str:
    """Write the three numbers of Gymnasium's observation."""
    total, open_card, usable = gymnasium_obs(states[-1])[0].tolist()
    return f"Your sum: {total}{', an ace counts 11' if usable else ''}\nThe dealer shows: {open_card}"


def blackjack_image(spec: Spec, states: Sequence[State]) -> np.ndarray:
    """Draw the three numbers on two cards on a green table."""
    total, open_card, usable = gymnasium_obs(states[-1])[0].tolist()
    image = Image.new("RGB", (8 * CELL, 5 * CELL), TABLE)
    pen = ImageDraw.Draw(image)
    for left, title, number in ((CELL, "dealer", open_card), (5 * CELL, "ace 11" if usable else "you", total)):
        pen.rounded_rectangle((left, CELL, left + 2 * CELL, 4 * CELL), 6, fill=CARD)
        pen.text((left + CELL, 2.5 * CELL), str(number), fill=INK, font_size=CELL, anchor="mm")
        pen.text((left + CELL, 4.5 * CELL), title, fill=CARD, font_size=CELL // 2, anchor="mm")
    return np.asarray(image)


def cell_box(row: int, column: int, margin: int) -> tuple[int, int, int, int]:
    """Return the corners of a cell, `margin` pixels inside its edges."""
    top, left = row * CELL, column * CELL
    return left + margin, top + margin, left + CELL - 1 - margin, top + CELL - 1 - margin


DRAWINGS = {
    "blackjack": Drawing(blackjack_text, blackjack_image),
    "connect4": Drawing(connect4_text, connect4_image),
    "snake": Drawing(snake_text, snake_image),
}
