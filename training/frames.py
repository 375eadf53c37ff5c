"""The frames of a recorded episode: position, who is who, the student's move beside the tutor's advice, result."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from envs.base import Spec, State
from envs.rendering import DRAWINGS, FRUIT, HEAD, RED, YELLOW

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # has arrows and minus signs
PAPER, INK, PALE = (255, 255, 255), (25, 25, 25), (228, 232, 238)
BAR, MOVE = (0, 114, 178), (213, 94, 0)  # Okabe & Ito's blue and vermilion: the tutor's, the student's
MARGIN, LINE, TEXT = 10, 18, 12  # pixels at scale 1: around everything, of a line of text, of its letters
MIN_WIDTH = 300  # pixels at scale 1: room for a line of text
BARS = 70  # pixels at scale 1: of a bar of 100 %


class Frame(NamedTuple):
    """What a frame shows besides the position."""

    position: int  # of the episode, from 0
    number: int  # of positions
    action: int | None  # that the student takes; None in the last position
    advice: Sequence[float] | None  # the tutor's probabilities; None: it was not asked, or had no advice
    result: str = ""  # of the episode, in the last position
    has_bars: bool = True  # whether there is room for the tutor's probabilities, in all frames of a film or in none

    def bars_height(self) -> int:
        """Return the height of the bars and of the numbers below them, in pixels at scale 1."""
        return BARS + LINE if self.has_bars else 0


def draw_frame(spec: Spec, states: Sequence[State], frame: Frame, opponent: str, scale: int) -> Image.Image:
    """Return a position as a frame of a film; all frames of a game have one size.

    Bars are the tutor's probabilities, below the columns of a board that has a column per action.
    """
    drawing = DRAWINGS[spec.name]
    drawn = Image.fromarray(drawing.image(spec, states))
    names = drawing.actions or tuple(map(str, range(spec.num_actions)))
    board = drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.LANCZOS)
    width = max(board.width, MIN_WIDTH * scale) + 2 * MARGIN * scale
    left, top = (width - board.width) // 2, (MARGIN + 2 * LINE + 6) * scale
    bars_top = top + board.height + (LINE + 4) * scale
    captions_top = bars_top + (frame.bars_height() + LINE + 4) * scale
    height = captions_top + ((2 if frame.has_bars else 1) * LINE + MARGIN) * scale
    image = Image.new("RGB", (width, height), PAPER)
    image.paste(board, (left, top))
    pen = ImageDraw.Draw(image)
    font = ImageFont.truetype(FONT, TEXT * scale)
    pen.text((MARGIN * scale, MARGIN * scale), spec.shown_title(), fill=INK, font=font)
    count = f"position {frame.position + 1} of {frame.number}"
    pen.text((width - MARGIN * scale, MARGIN * scale), count, fill=INK, font=font, anchor="ra")
    draw_players(pen, players(spec, opponent), (MARGIN * scale, (MARGIN + LINE) * scale), font)
    slot = board.width / len(names)
    for action, name in enumerate(names):
        middle = left + (action + 0.5) * slot
        draw_action(pen, frame, action, name, (middle, top + board.height + 2 * scale, slot), scale, font)
    is_last, large = frame.action is None, font.font_variant(size=1.3 * font.size)
    y = bars_top if is_last else captions_top
    for line, color in captions(frame, names):
        pen.text((MARGIN * scale, y), line, fill=color, font=large if is_last else font)
        y += LINE * scale
    return image


def players(spec: Spec, opponent: str) -> list[tuple[tuple[int, int, int], str]]:
    """Return who has which colour."""
    if spec.name == "connect4":
        return [(RED, "student"), (YELLOW, f"opponent: {opponent}" if opponent else "opponent")]
    return [(HEAD, "the snake's head"), (FRUIT, "fruit")] if spec.name == "snake" else []


def draw_players(
    pen: ImageDraw.ImageDraw,
    who: Sequence[tuple[tuple[int, int, int], str]],
    place: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write names beside discs of their colours, in one line."""
    x, y = place
    size = font.size
    for color, name in who:
        pen.ellipse((x, y + size * 0.1, x + size, y + size * 1.1), fill=color, outline=INK)
        pen.text((x + 1.5 * size, y), name, fill=INK, font=font)
        x += int(2.8 * size + pen.textlength(name, font))


def draw_action(
    pen: ImageDraw.ImageDraw,
    frame: Frame,
    action: int,
    name: str,
    place: tuple[float, int, float],
    scale: int,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Draw an action's name, the tutor's bar below it, and a mark where it is the student's."""
    middle, top, slot = place
    is_taken = action == frame.action
    pen.text((middle, top), name, fill=MOVE if is_taken else INK, font=font, anchor="ma")
    base = top + (LINE + 2) * scale
    half = min(slot * 0.32, 20 * scale)
    if frame.advice is not None:
        share = frame.advice[action]
        pen.rectangle((middle - half, base, middle + half, base + BARS * scale), fill=PALE)
        if share > 0:
            pen.rectangle((middle - half, base, middle + half, base + BARS * scale * share), fill=BAR)
        percent = f"{100 * share:.0f} %"
        small = font.font_variant(size=0.78 * font.size)
        pen.text((middle, base + (BARS + 3) * scale), percent, fill=INK, font=small, anchor="ma")
    if is_taken:
        pen.text((middle, base + frame.bars_height() * scale), "▲", fill=MOVE, font=font, anchor="ma")


def captions(frame: Frame, names: Sequence[str]) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the lines below the bars: the move made, the move advised, or the result."""
    if frame.action is None:
        return [(f"result: {frame.result}", INK)] if frame.result else []
    lines = [(f"▲ student: {names[frame.action]}", MOVE)]
    if frame.advice is not None:
        best = max(range(len(names)), key=frame.advice.__getitem__)
        same = ", the same" if best == frame.action else ""
        lines.append((f"■ tutor: {names[best]} ({100 * frame.advice[best]:.0f} %){same}", BAR))
    return lines
