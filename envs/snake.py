"""Snake: eat fruit, grow, and avoid the walls and the body.

obs      (6, size, size) float32: the body including the head, the head, the tail, the fruit, each in {0, 1}; then the
         direction in which the snake continues from each cell of its body: +1 down, -1 up in one plane, +1 right,
         -1 left in the other.
action   0 goes up, 1 right, 2 down, 3 left. Turning back into the neck is illegal.
reward   +1 for a fruit, `death_reward` for a death (0 by default), 0 otherwise.
ends     terminated at a wall, at the body, and when the snake fills the board; truncated after `time_limit` steps.
         The final state of a death is the last one alive.
random   reset: the head's cell, then the fruit's. step: the next fruit's, all empty cells equally likely.
source   the conventions of Jumanji's Snake-v1, which terminates after 4,000 steps, numbers the body's cells from the
         tail instead of observing directions, and masks out every action that kills.

The snake starts with one cell, and grows by one with every fruit. The head may move into the cell that the tail
leaves. A snake of two cells that turns back, though that is illegal, therefore lives: its neck is its tail.
The body is three bitboards: the cells it occupies, and in two bits the direction from each cell to the next. The tail
follows these directions, so that a step costs the same for every length.
"""

import math

import torch
from torch import Tensor

from envs.base import Spec, State, where, where_states
from envs.bitboard import full_board, nth_set_bit, num_words, one_bit, unpack

UP, RIGHT, DOWN, LEFT = range(4)
MIN_SIZE = 3  # of a board that students play on
SIGNS = "^>v<.@*"  # a drawn cell: of the body by its direction, in the order of the actions; empty; head; fruit
EMPTY, HEAD, FRUIT = range(4, 7)


def snake(size: int = 12, time_limit: int = 4000, death_reward: float = 0.0) -> "Snake":
    """Return Snake as students play it.

    Raises:
        ValueError: there is nothing to learn on a board of so few cells, or death would pay.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}; Snake requires a board of at least {MIN_SIZE} x {MIN_SIZE}")
    if not -math.inf < death_reward <= 0:
        raise ValueError(f"death_reward is {death_reward}; it must be 0, or a negative number")
    return Snake(size, time_limit, death_reward)


class Snake:
    """The rules, in the form that `VecEnv` steps.

    Args:
        size: rows and columns of the board, at least 2.
        time_limit: steps after which an episode is truncated.
        death_reward: reward of moving into a wall or the body.
    """

    def __init__(self, size: int = 12, time_limit: int = 4000, death_reward: float = 0.0) -> None:
        if size < 2:
            raise ValueError(f"size is {size}; Snake requires a board of at least 2 x 2")
        if time_limit < 1:
            raise ValueError(f"time_limit is {time_limit}; it must be at least 1 step")
        self.size = size
        self.cells = size**2
        self.words = num_words(self.cells)
        self.death_reward = death_reward
        obs_shape = (6, size, size)
        self.spec = Spec(
            *("snake", 1, obs_shape, 4),
            num_reset_uniforms=2,
            num_step_uniforms=1,
            time_limit=time_limit,
            title=f"Snake {size} x {size}",
            return_range=(min(death_reward, 0.0), self.cells - 1 + max(death_reward, 0.0)),
            return_unit="fruits" if death_reward == 0 else f"fruits, {death_reward:+g} for a death",
        )

    def reset(self, u: Tensor) -> State:
        head = (u[:, 0] * self.cells).long()
        fruit = (u[:, 1] * (self.cells - 1)).long()
        body = one_bit(head, self.words)
        return {
            "row": head // self.size,
            "column": head % self.size,
            "tail": head,
            "heading": torch.zeros_like(head),
            "length": torch.ones_like(head),
            "fruit": fruit + (fruit >= head),
            "body": body,
            "vertical": torch.zeros_like(body),  # the cells whose direction is up or down
            "increasing": torch.zeros_like(body),  # the cells whose direction is right or down
        }

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        row, column = neighbour(state["row"], state["column"], action)
        crashed = (row < 0) | (row >= self.size) | (column < 0) | (column >= self.size)
        cell = row * self.size + column
        eaten = (cell == state["fruit"]) & ~crashed
        head = one_bit(cell, self.words)
        neck = one_bit(state["row"] * self.size + state["column"], self.words)
        vertical = where(is_vertical(action), state["vertical"] | neck, state["vertical"] & ~neck)
        increasing = where(is_increasing(action), state["increasing"] | neck, state["increasing"] & ~neck)
        tail = one_bit(state["tail"], self.words)
        remaining = where(eaten, state["body"], state["body"] & ~tail)  # the tail stays where a fruit is eaten
        dead = crashed | (remaining & head != 0).any(1)
        body = remaining | head
        length = state["length"] + eaten
        num_empty = self.cells - length
        empty = ~body & full_board(self.cells, self.words, body.device)
        fruit = nth_set_bit(empty, (u[:, 0] * num_empty).long())
        after = {
            "row": row,
            "column": column,
            "tail": torch.where(eaten, state["tail"], self._next_cell(state["tail"], tail, vertical, increasing)),
            "heading": action,
            "length": length,
            "fruit": torch.where(eaten, torch.where(num_empty > 0, fruit, self.cells), state["fruit"]),
            "body": body,
            "vertical": vertical,
            "increasing": increasing,
        }
        after = where_states(dead, state, after)
        reward = torch.where(dead, self.death_reward, eaten.float())
        return after, reward, dead | (num_empty == 0)

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        body, vertical, increasing = (unpack(state[name], self.cells) for name in ("body", "vertical", "increasing"))
        cell = torch.arange(self.cells, device=body.device)
        occupied = (state["row"] * self.size + state["column"], state["tail"], state["fruit"])
        head, tail, fruit = (index[:, None] == cell for index in occupied)
        direction = (body & ~head) * torch.where(increasing, 1.0, -1.0)
        planes = torch.stack([body, head, tail, fruit, direction * vertical, direction * ~vertical], 1)
        return planes.unflatten(2, (self.size, self.size)), legal_moves(state)

    def _next_cell(self, cell: Tensor, board: Tensor, vertical: Tensor, increasing: Tensor) -> Tensor:
        """Return the cell to which the direction at `cell` (N,) leads; `board` has only that cell's bit set."""
        distance = torch.where((vertical & board != 0).any(1), self.size, 1)
        return torch.where((increasing & board != 0).any(1), cell + distance, cell - distance)


def neighbour(row: Tensor, column: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and column to which `action` leads."""
    distance = torch.where(is_increasing(action), 1, -1)
    return row + distance * is_vertical(action), column + distance * ~is_vertical(action)


def is_vertical(action: Tensor) -> Tensor:
    """Return whether an action goes up or down."""
    return action % 2 == 0


def is_increasing(action: Tensor) -> Tensor:
    """Return whether an action goes right or down, to a higher column or row."""
    return (action == RIGHT) | (action == DOWN)


def legal_moves(state: State) -> Tensor:
    """Return which actions do not turn back into the neck. (N, 4) bool."""
    action = torch.arange(4, device=state["heading"].device)
    return (action != (state["heading"][:, None] + 2) % 4) | (state["length"] == 1)[:, None]


def signs(state: State, size: int) -> Tensor:
    """Return the boards as indices into SIGNS, (N, size, size) int64."""
    body, vertical, increasing = (unpack(state[name], size**2) for name in ("body", "vertical", "increasing"))
    direction = torch.where(vertical, torch.where(increasing, DOWN, UP), torch.where(increasing, RIGHT, LEFT))
    cell = torch.arange(size**2, device=body.device)
    board = torch.where(body, direction, EMPTY)
    board = torch.where(cell == state["fruit"][:, None], FRUIT, board)
    return torch.where(cell == (state["row"] * size + state["column"])[:, None], HEAD, board).unflatten(1, (size, size))
