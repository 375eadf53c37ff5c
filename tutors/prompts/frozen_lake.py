"""The prompt view of Gymnasium's FrozenLake: the map in the rules, one's place on it, and what lies around.

It reads the map and the table of transitions of the env itself, so that it is that of every map and of ice that is
more or less slippery.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.base import State
from tutors.prompts.base import ANSWER, LETTER_ONLY, PromptView

WAYS = ("left", "down", "right", "up")  # Gymnasium's order of the actions
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))  # rows and columns of these
TILES = {"S": "the start", "F": "ice", "H": "a hole", "G": "the goal"}
LONGEST = 1000  # time steps; an expert looks no further ahead
PERCENT = 100  # the expert's values are in hundredths of the reward, so in percent for the reward of 1
PRECISION, DECIMALS = 1e-9, 4  # of the value iteration, and of the values that are compared: equal ones are equal


class FrozenLakeView(PromptView):
    """The map, and where one is. A canonical position is (B,) int64 under the name `field`: row * columns + column.

    A key is that number; the map is part of the instructions.
    """

    name, version = "lake", 1
    labels = tuple("ABCD")
    relabels = True

    def __init__(self, game: Any) -> None:
        lake = game.copies[0].unwrapped
        if not hasattr(lake, "P") or not hasattr(lake, "desc"):
            raise ValueError(f"{game.spec.name} has no map and no table of transitions, as FrozenLake has them")
        if any((env.unwrapped.desc != lake.desc).any() for env in game.copies):
            raise ValueError(f"the copies of {game.spec.name} have different maps: give all of them one (desc)")
        self.game = game.spec.name
        self.lake = [[tile.decode() for tile in row] for row in lake.desc]
        start = "".join(map("".join, self.lake)).index("S")
        chances = [chance for chance, *_ in lake.P[start][0]]  # of the chosen way alone, or between its two sides
        self.success_rate = chances[len(chances) // 2]
        discount = 1 - 1 / min(game.spec.time_limit, LONGEST)
        values = PERCENT * optimal_values(lake.P, discount)
        self.action_values = torch.from_numpy(values.round(DECIMALS)).float()
        self.instructions = self.render_instructions()

    def render_instructions(self) -> str:
        left, down, right, up = self.labels
        rows, columns = len(self.lake), len(self.lake[0])
        side = (1 - self.success_rate) / 2
        slips = (
            f"The ice is slippery: with a chance of {self.success_rate:.0%} you move as you choose, and with a chance "
            f"of {side:.0%} each to the one or to the other side of that way. "
        )
        lake = "\n".join(" ".join(row) for row in self.lake)
        return (
            f"This is a frozen lake of {rows} rows and {columns} columns. Row 1 is the upper one, column 1 the one on "
            "the left. Walk from the start to the goal. Moving into a hole ends the walk, and it has failed; moving "
            f"against the edge leaves you where you are. {slips if side else ''}Find the move with the best chance to "
            f"reach the goal in the end. {left} is left, {down} is down, {right} is right, {up} is up. {LETTER_ONLY}"
            f"\n\nThe map, where S is the start, F is ice, H is a hole and G is the goal:\n{lake}\n\n"
        )

    def canonicalize(self, state: State) -> tuple[State, Tensor]:
        field = state["obs"].argmax(1)
        return {"field": field}, torch.zeros_like(field)

    def key(self, state: State) -> Tensor:
        return torch.stack([state["field"], torch.zeros_like(state["field"])], 1)

    def render(self, state: State) -> list[str]:
        columns = len(self.lake[0])
        return [self.instructions + self.render_place(*divmod(field, columns)) for field in state["field"].tolist()]

    def render_place(self, row: int, column: int) -> str:
        """Return one position as the end of a question."""
        around = "\n".join(
            f"{way.capitalize()}: {self.tile(row + down, column + right)}"
            for way, (down, right) in zip(WAYS, MOVES, strict=True)
        )
        return f"You are in row {row + 1}, column {column + 1}.\n{around}\nOptions: {' '.join(self.labels)}\n{ANSWER}"

    def tile(self, row: int, column: int) -> str:
        """Return what lies in a cell of the map, or beside it."""
        if not (0 <= row < len(self.lake) and 0 <= column < len(self.lake[0])):
            return "the edge"
        return TILES[self.lake[row][column]]

    def expert_values(self, state: State, depth: int) -> Tensor:
        return self.action_values.to(state["field"].device)[state["field"]]


def optimal_values(transitions: dict[int, dict[int, list[tuple[Any, ...]]]], discount: float) -> np.ndarray:
    """Return the value of each action under the best policy, (states, actions) float64, by value iteration.

    Args:
        transitions: by state and action, what may follow: (chance, next state, reward, whether the episode ends), as
            the toy environments of Gymnasium have it under the name P.
        discount: of the next reward, below 1.

    Source: Sutton & Barto 2018, "Reinforcement Learning", section 4.4.
    """
    num_states, num_actions = len(transitions), len(transitions[0])
    rewards, follows = np.zeros((num_states, num_actions)), np.zeros((num_states, num_actions, num_states))
    for state, actions in transitions.items():
        for action, outcomes in actions.items():
            for chance, next_state, reward, is_end in outcomes:
                rewards[state, action] += chance * reward
                follows[state, action, next_state] += chance * (not is_end)
    values, before = rewards, np.full_like(rewards, np.inf)
    while np.abs(values - before).max() > PRECISION:
        values, before = rewards + discount * follows @ values.max(1), values
    return values
