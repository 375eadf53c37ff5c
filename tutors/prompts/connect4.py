"""The prompt views of Connect Four: an ASCII board from the student's side, in two wordings.

A key is exact: bits 0-48 are the board of the student's discs plus a one above every column's top
disc, which is one number a position (Tromp's encoding). The canonical form of a position is the one with the smaller
key of the two, itself and its mirror image, so that both have one prompt.
"""

import torch
from torch import Tensor

from envs.base import State, where
from envs.connect4 import BOTTOM, COLUMNS, Connect4, draw, legal_columns, mirror
from envs.opponents import search
from tutors.prompts.base import ANSWER, LETTER_ONLY, PromptView


class Connect4View(PromptView):
    """The full board, seen by the student."""

    game, name, version = "connect4", "board", 1
    labels = tuple("ABCDEFG")
    relabels = optional_symmetry = True
    symmetry = torch.stack([torch.arange(COLUMNS), torch.arange(COLUMNS).flip(0)])

    def __init__(self, game: Connect4) -> None:
        self.instructions = self.render_instructions()

    def render_instructions(self) -> str:
        in_order = self.labels == tuple(sorted(self.labels))
        names = f"{self.labels[0]} to {self.labels[-1]}" if in_order else ", ".join(self.labels)
        return (
            "This is Connect Four. Two players take turns to drop a disc into one of seven columns, named "
            f"{names} from left to right; it falls to the lowest empty cell. The first to have four discs in "
            "a line, across, upright or diagonal, wins. Your discs are X, your opponent's are O, an empty "
            "cell is a dot. Find the best column: win if you can, block if you must, and leave your "
            f"opponent no winning reply. {LETTER_ONLY}\n\n"
            "It is your turn. The board, top row first:\n"
        )

    def canonicalize(self, state: State) -> tuple[State, Tensor]:
        if len(self.symmetry) == 1:
            return super().canonicalize(state)
        flipped = {name: mirror(cells) for name, cells in state.items()}
        is_flipped = self.key(flipped)[:, 0] < self.key(state)[:, 0]
        return {name: where(is_flipped, flipped[name], state[name]) for name in state}, is_flipped.long()

    def key(self, state: State) -> Tensor:
        place = state["mine"] + (state["mine"] | state["theirs"]) + BOTTOM
        return torch.stack([place, torch.zeros_like(place)], 1)

    def action_mask(self, state: State) -> Tensor:
        return legal_columns(state["mine"] | state["theirs"])

    def render(self, state: State) -> list[str]:
        action_mask = self.action_mask(state).tolist()
        boards = zip(state["mine"].tolist(), state["theirs"].tolist(), action_mask, strict=True)
        return [self.instructions + self.render_board(*board) for board in boards]

    def render_board(self, mine: int, theirs: int, options: list[bool]) -> str:
        """Return one position as the end of a question."""
        return position(mine, theirs, options, self.labels)

    def expert_values(self, state: State, depth: int) -> Tensor:
        return search(state["mine"], state["theirs"], depth)


class GridView(Connect4View):
    """The same board as a framed grid, with the letter of each column above it."""

    name, is_rewording = "grid", True

    def render_instructions(self) -> str:
        return (
            "You are playing Connect Four on an upright grid of 6 rows and 7 columns. You own the X discs, the "
            "other player the O discs. Whoever is to move picks a column that is not full, and the disc drops onto "
            "the pile there. Four discs of one player next to each other in a row, a column or a diagonal win the "
            "game; a full grid without such four is a tie. Think of your own fours and of those that threaten you. "
            f"Above each column stands its name. {LETTER_ONLY}\n\nThe grid, with you to move:\n"
        )

    def render_board(self, mine: int, theirs: int, options: list[bool]) -> str:
        rows = [f"|{row}|" for row in draw(mine, theirs, ".XO").splitlines()]
        grid = "\n".join([" " + " ".join(self.labels), *rows, f"+{'-' * (2 * COLUMNS - 1)}+"])
        columns = ", ".join(label for label, may in zip(self.labels, options, strict=True) if may)
        return f"{grid}\nOptions: {columns}\n{ANSWER}"


def position(mine: int, theirs: int, options: list[bool], labels: tuple[str, ...]) -> str:
    """One position as the end of a question."""
    letters = " ".join(label for label, action_mask in zip(labels, options, strict=True) if action_mask)
    return f"{draw(mine, theirs, '.XO')}\nOptions: {letters}\n{ANSWER}"
