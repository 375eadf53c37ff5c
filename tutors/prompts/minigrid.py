"""The prompt view of MiniGrid: the mission, a map of what one sees, and the things on it in words.

What is seen is the image of the observation: a square in front of the student, who stands in the middle of its last
row and looks up. The compass is left out, so that a room is the same question from all sides. There is no expert.
"""

import math
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from envs.base import State
from envs.rng import splitmix64
from tutors.prompts.base import ANSWER, LETTER_ONLY, PromptView

KINDS = ("unseen", "empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava", "agent")  # of the env
UNSEEN, EMPTY, WALL, FLOOR, DOOR, KEY, BALL, BOX, GOAL, LAVA, AGENT = range(len(KINDS))
COLORS = ("red", "green", "blue", "purple", "yellow", "grey")
DOOR_STATES = ("open", "closed", "locked")
SIGNS = "?.#.dkobg~a"  # by kind; in small letters, since the options are large ones
NUM_DIRECTIONS = 4  # the observation begins with the one-hot direction, after which comes the image
ACTIONS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle", "done")  # in the env's order


class MiniGridView(PromptView):
    """What is seen. A canonical position is (B, size, size) int64 under the name `seen`: rows from the top.

    A cell is its kind, plus 16 times its colour where things of its kind have different ones, plus 256 times the state
    of a door. A free one is empty whether it has a floor or not. The student's own cell holds what it carries. A key is
    two independent hashes of all cells, as that of Snake's full view.
    """

    name, version = "seen", 1
    labels = tuple("ABCDEFG")
    relabels = True

    def __init__(self, game: Any) -> None:
        space, env = game.observations.space, game.copies[0].unwrapped
        if not isinstance(space, gym.spaces.Dict) or set(space) != {"direction", "image"}:
            raise ValueError(f"{game.spec.name} has other observations than an env of MiniGrid without a wrapper")
        if game.spec.num_actions != len(ACTIONS):
            raise ValueError(
                f"{game.spec.name} has {game.spec.num_actions} actions; the view seen names {len(ACTIONS)}"
            )
        if env.observation_space["mission"].ordered_placeholders is not None:
            raise ValueError(f"{game.spec.name} has a mission of its own in each episode, and no student reads it")
        self.game = game.spec.name
        self.mission = " ".join(env.mission.split())
        self.size = math.isqrt((game.spec.obs_shape[0] - NUM_DIRECTIONS) // 3)
        self.instructions = self.render_instructions()

    def render_instructions(self) -> str:
        named = ", ".join(f"{label} is {action}" for label, action in zip(self.labels, ACTIONS, strict=True))
        return (
            f"You walk through rooms, one step or one turn at a time. Your mission: {self.mission}. You see what is "
            f"before you, as a map of {self.size} rows of {self.size} cells: you stand in the middle of the last row, "
            "at the @, and look up. On the map # is a wall, . is free, ? cannot be seen, ~ is lava, which ends "
            "everything, and a small letter is a thing: d a door, k a key, o a ball, b a box, g the goal. Picking up "
            "takes the thing in the cell in front of you, dropping puts it there, and toggle opens a door or a box "
            "there; a locked door requires the key of its colour. You can carry one thing. Find the best next step of "
            f"the mission. {named}. {LETTER_ONLY}\n\n"
        )

    def canonicalize(self, state: State) -> tuple[State, Tensor]:
        image = state["obs"][:, NUM_DIRECTIONS:].long().view(-1, self.size, self.size, 3).transpose(1, 2)
        kind, color, door = image.unbind(3)
        kind = torch.where(kind == FLOOR, EMPTY, kind)
        own = kind[:, -1, self.size // 2]
        kind[:, -1, self.size // 2] = torch.where((own >= KEY) & (own <= BOX), own, EMPTY)
        seen = kind + 16 * torch.where((kind >= DOOR) & (kind <= BOX), color, 0)
        seen = seen + 256 * torch.where(kind == DOOR, door, 0)
        return {"seen": seen}, torch.zeros_like(seen[:, 0, 0])

    def key(self, state: State) -> Tensor:
        cells = state["seen"].flatten(1)
        cells = cells + 4096 * torch.arange(cells.shape[1], device=cells.device)
        return torch.stack([splitmix64(splitmix64(cells) + half).sum(1) for half in (1, 2)], 1)

    def render(self, state: State) -> list[str]:
        return [self.instructions + self.render_view(rows) for rows in state["seen"].tolist()]

    def render_view(self, rows: list[list[int]]) -> str:
        """Return one position as the end of a question."""
        me, drawn, things = self.size // 2, [], []
        for up, row in enumerate(reversed(rows)):
            for column, cell in enumerate(row):
                if (up or column != me) and cell % 16 not in (UNSEEN, EMPTY, WALL, LAVA):
                    things.append(f"{describe(cell)}, {place(up, column - me)}")
            drawn.append([SIGNS[cell % 16] for cell in row])
        carried = rows[-1][me]
        drawn[0][me] = "@"
        return "\n".join(
            [
                *(" ".join(row) for row in reversed(drawn)),
                f"In front of you: {describe(rows[-2][me])}",
                f"You see: {'; '.join(things) or 'no thing'}",
                f"You carry: {'nothing' if carried == EMPTY else describe(carried)}",
                f"Options: {' '.join(self.labels)}",
                ANSWER,
            ]
        )


def describe(cell: int) -> str:
    """Return what a cell holds."""
    kind, color, door = cell % 16, COLORS[cell // 16 % 16], DOOR_STATES[cell // 256]
    if kind == DOOR:
        return f"{'an' if door == 'open' else 'a'} {door} {color} door"
    if DOOR < kind <= BOX:
        return f"a {color} {KINDS[kind]}"
    return {UNSEEN: "what you cannot see", WALL: "a wall", GOAL: "the goal", LAVA: "lava", AGENT: "another one"}.get(
        kind, "a free cell"
    )


def place(up: int, right: int) -> str:
    """Return where a cell is, as seen by the student."""
    ahead = f"{up} ahead" if up else ""
    side = f"{abs(right)} to the {'right' if right > 0 else 'left'}" if right else ""
    return " and ".join(filter(None, (ahead, side)))
