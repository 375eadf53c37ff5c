"""States drawn for people, as text and as images; of several env copies, the first."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from envs.base import Spec, State
from envs.blackjack import MAX_SUM, gymnasium_obs
from envs.connect4 import COLUMNS, ROWS, draw, lines_of_four, notation
from envs.snake import SIGNS, signs

CELL = 32  # pixels per side
UNIT = 20  # pixels: a third of the width of a playing card
BLUE, RED, YELLOW, HOLE = (28, 62, 152), (214, 48, 49), (246, 205, 60), (236, 240, 245)
TABLE, INK, CARD, HIDDEN = (34, 102, 68), (25, 25, 25), (250, 250, 245), (120, 140, 175)
GROUND, BODY, HEAD, FRUIT = (238, 236, 225), (86, 158, 78), (40, 96, 48), (206, 58, 48)


class Drawing(NamedTuple):
    """How a game is drawn, from the states of the episode so far."""

    text: Callable[[Spec, Sequence[State]], str]
    image: Callable[[Spec, Sequence[State]], np.ndarray]  # (height, width, 3) uint8
    actions: tuple[str, ...] = ()  # what people call them; empty: their numbers
    outcome: Callable[[float], str] = "return {:+g}".format  # what an episode's return means


def register_drawing(game: Any) -> None:
    """Let a game of your own draw itself: `render(states)` is an image, `render_text(states)`, if there, a text."""
    DRAWINGS[game.spec.name] = Drawing(
        lambda spec, states: getattr(game, "render_text", state_text)(states),
        lambda spec, states: game.render(states),
        tuple(getattr(game, "action_names", ())),
    )


def state_text(states: Sequence[State]) -> str:
    """Write the last state of the first env copy, a tensor a line."""
    return "\n".join(f"{name}: {tensor[0].tolist()}" for name, tensor in states[-1].items())


def connect4_text(spec: Spec, states: Sequence[State]) -> str:
    """Draw the board, the student's discs as x and the opponent's as o, and the moves in the style of chess's PGN."""
    return f"{draw(int(states[-1]['mine'][0]), int(states[-1]['theirs'][0]))}\n\n{notation(states)}"


def connect4_image(spec: Spec, states: Sequence[State]) -> np.ndarray:
    """Draw the board in blue, the student's discs red and the opponent's yellow, those of a line of four ringed."""
    mine, theirs = (int(lines_of_four(states[-1][side][:1])[0]) for side in ("mine", "theirs"))
    winning = draw(mine, theirs).splitlines()
    rows = draw(int(states[-1]["mine"][0]), int(states[-1]["theirs"][0])).splitlines()
    colours = {".": HOLE, "x": RED, "o": YELLOW}
    image = Image.new("RGB", (COLUMNS * CELL, ROWS * CELL), BLUE)
    pen = ImageDraw.Draw(image)
    for row, line in enumerate(rows):
        for column, sign in enumerate(line.split()):
            is_winning = winning[row].split()[column] != "."
            pen.ellipse(cell_box(row, column, 3), fill=colours[sign], outline=INK, width=4 if is_winning else 0)
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
    """Draw both hands as cards on a green table: the dealer's open card and a hidden one, and the student's.

    A state has a hand's sum, not its cards. What is drawn later is the difference of two sums; of the first two cards
    one is known where it is an ace, and else they are a pair with the sum of both.
    """
    total, open_card, usable = gymnasium_obs(states[-1])[0].tolist()
    image = Image.new("RGB", (16 * UNIT, 10 * UNIT), TABLE)
    pen = ImageDraw.Draw(image)
    shown = "soft " if usable else "bust, " if total > MAX_SUM else ""
    draw_hand(pen, 0, [card_name(open_card), ""], f"dealer shows {card_name(open_card)}")
    draw_hand(pen, 8 * UNIT, hand_of(states), f"student: {shown}{total}")
    return np.asarray(image)


def hand_of(states: Sequence[State]) -> list[str]:
    """Return the names of the student's cards, the first two as one where they are not known apart."""
    first = max((at for at, state in enumerate(states) if int(state["cards"][0]) == 2), default=len(states) - 1)
    sums, aces = ([int(state[name][0]) for state in states[first:]] for name in ("sum", "aces"))
    hand = ["A", card_name(sums[0] - 1)] if aces[0] else [f"{sums[0]} 2"]
    if int(states[first]["cards"][0]) > 2:
        hand = [f"{sums[0]} {int(states[first]['cards'][0])}"]
    return [*hand, *(card_name(after - before) for before, after in pairwise(sums) if after > before)]


def card_name(card: int) -> str:
    """Return what is written on a card of 1 to 10."""
    return "A" if card == 1 else str(card)


def draw_hand(pen: ImageDraw.ImageDraw, left: int, cards: Sequence[str], title: str) -> None:
    """Draw a hand in a half of the table, its title below; a card without a name lies on its face."""
    pen.text((left + 4 * UNIT, 9 * UNIT), title, fill=CARD, font_size=0.8 * UNIT, anchor="mm")
    width, height = 3 * UNIT, 5.5 * UNIT
    step = min(width + 0.4 * UNIT, (7 * UNIT - width) / max(len(cards) - 1, 1))
    start = left + 4 * UNIT - (width + step * (len(cards) - 1)) / 2
    for at, name in enumerate(cards):
        x, top = start + at * step, 1.6 * UNIT
        number, _, rest = name.partition(" ")
        if rest:  # cards of which the sum is known
            pen.rounded_rectangle((x - 5, top - 5, x - 5 + width, top - 5 + height), 6, fill=CARD, outline=INK)
        fill = CARD if name else HIDDEN
        pen.rounded_rectangle((x, top, x + width, top + height), 6, fill=fill, outline=INK)
        pen.text((x + 5, top + 5), number, fill=INK, font_size=0.9 * UNIT, anchor="lt")
        if rest:
            pen.text((x + width / 2, top + height - 8), f"{rest} cards", fill=INK, font_size=0.6 * UNIT, anchor="ms")


def cell_box(row: int, column: int, margin: int) -> tuple[int, int, int, int]:
    """Return the corners of a cell, `margin` pixels inside its edges."""
    top, left = row * CELL, column * CELL
    return left + margin, top + margin, left + CELL - 1 - margin, top + CELL - 1 - margin


def connect4_outcome(value: float) -> str:
    """Return who won."""
    return "a draw" if value == 0 else "the student wins" if value > 0 else "the opponent wins"


def snake_outcome(value: float) -> str:
    """Return how much was eaten."""
    return f"{value:g} fruit{'' if value == 1 else 's'} eaten"


def blackjack_outcome(value: float) -> str:
    """Return who won."""
    return "a push" if value == 0 else f"the student wins {value:g}" if value > 0 else "the dealer wins"


DRAWINGS = {
    "blackjack": Drawing(blackjack_text, blackjack_image, ("stick", "hit"), blackjack_outcome),
    "connect4": Drawing(connect4_text, connect4_image, tuple("1234567"), connect4_outcome),
    "snake": Drawing(snake_text, snake_image, ("up", "right", "down", "left"), snake_outcome),
}
