"""Snake: eat fruit, grow, and run into nothing.

obs      (6, size, size) float32: the body (the head with it), the head, the tail, the fruit, each in {0, 1}; then which
         way the snake goes on from each cell of its body: +1 down, -1 up in one plane, +1 right, -1 left in the other.
action   0 goes up, 1 right, 2 down, 3 left. Turning back into the neck is illegal.
reward   +1 for a fruit, `death_reward` for a death (0), 0 otherwise.
ends     terminated in a wall, in the body, and when the snake fills the board; truncated after `time_limit` steps.
         The position of a death is the last one alive.
luck     deal: the head's cell, then the fruit's. play: the next fruit's, all empty cells equally likely.

The snake begins with one cell, and grows by one with every fruit. The head may follow into the cell that the tail
leaves. A snake of two cells that turns back all the same therefore lives: its neck is its tail.
The body is three boards of bits: which cells it holds, and in two bits the way on from each. So the tail finds its way
by itself, and a step costs the same for every length.
Source: the conventions of Jumanji's Snake-v1, which terminates after 4,000 steps, numbers the body's cells from the
tail instead of telling the way on, and masks out all that kills.
"""

import torch
from torch import Tensor

from envs.base import Spec, State, where
from envs.bitboard import bit, full, nth, unpack, words_for

UP, RIGHT, DOWN, LEFT = range(4)
SIGNS = "^>v<.@*"  # a drawn cell: of the body by its way on, in the order of the moves; empty; the head; the fruit
EMPTY, HEAD, FRUIT = range(4, 7)


class Snake:
    """The rules, in the form that `Env` plays.

    Args:
        size: rows and columns of the board, at least 2.
        time_limit: steps after which a game is cut short.
        death_reward: for running into a wall or the body.
    """

    def __init__(self, size: int = 12, time_limit: int = 4000, death_reward: float = 0.0) -> None:
        if size < 2:
            raise ValueError(f"size is {size}; a snake needs a board of at least 2 x 2")
        if time_limit < 1:
            raise ValueError(f"time_limit is {time_limit}; a game takes at least 1 step")
        self.size, self.cells, self.words, self.death_reward = size, size**2, words_for(size**2), death_reward
        self.spec = Spec(
            "snake", 1, (6, size, size), 4, num_reset_uniforms=2, num_step_uniforms=1, time_limit=time_limit
        )

    def reset(self, u: Tensor) -> State:
        head = (u[:, 0] * self.cells).long()
        fruit = (u[:, 1] * (self.cells - 1)).long()
        body = bit(head, self.words)
        return {
            "row": head // self.size,
            "column": head % self.size,
            "tail": head,
            "heading": torch.zeros_like(head),
            "length": torch.ones_like(head),
            "fruit": fruit + (fruit >= head),
            "body": body,
            "upright": torch.zeros_like(body),  # where the way on is up or down
            "forward": torch.zeros_like(body),  # where it is right or down
        }

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        row, column = neighbour(state["row"], state["column"], action)
        crashed = (row < 0) | (row >= self.size) | (column < 0) | (column >= self.size)
        cell = row * self.size + column
        eaten = (cell == state["fruit"]) & ~crashed
        head = bit(cell, self.words)
        neck = bit(state["row"] * self.size + state["column"], self.words)
        upright = where(is_upright(action), state["upright"] | neck, state["upright"] & ~neck)
        forward = where(is_forward(action), state["forward"] | neck, state["forward"] & ~neck)
        end = bit(state["tail"], self.words)
        left = where(eaten, state["body"], state["body"] & ~end)  # what of the body stays where it is
        dead = crashed | (left & head != 0).any(1)
        body, length = left | head, state["length"] + eaten
        room = self.cells - length
        fruit = nth(~body & full(self.cells, self.words, body.device), (u[:, 0] * room).long())
        after = {
            "row": row,
            "column": column,
            "tail": torch.where(eaten, state["tail"], self._step(state["tail"], end, upright, forward)),
            "heading": action,
            "length": length,
            "fruit": torch.where(eaten, torch.where(room > 0, fruit, self.cells), state["fruit"]),
            "body": body,
            "upright": upright,
            "forward": forward,
        }
        after = {name: where(dead, state[name], after[name]) for name in after}
        reward = torch.where(dead, self.death_reward, eaten.float())
        return after, reward, dead | (room == 0)

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        body, upright, forward = (unpack(state[name], self.cells) for name in ("body", "upright", "forward"))
        cell = torch.arange(self.cells, device=body.device)
        places = (state["row"] * self.size + state["column"], state["tail"], state["fruit"])
        head, tail, fruit = (place[:, None] == cell for place in places)
        way = (body & ~head) * torch.where(forward, 1.0, -1.0)
        planes = torch.stack([body, head, tail, fruit, way * upright, way * ~upright], 1)
        return planes.unflatten(2, (self.size, self.size)), legal_moves(state)

    def _step(self, cell: Tensor, here: Tensor, upright: Tensor, forward: Tensor) -> Tensor:
        """Return the cell that the way on leads to from `cell` (N,), whose bit is `here`."""
        by = torch.where((upright & here != 0).any(1), self.size, 1)
        return torch.where((forward & here != 0).any(1), cell + by, cell - by)


def neighbour(row: Tensor, column: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and column where `action` leads."""
    by = torch.where(is_forward(action), 1, -1)
    return row + by * is_upright(action), column + by * ~is_upright(action)


def is_upright(action: Tensor) -> Tensor:
    """Whether a move goes up or down."""
    return action % 2 == 0


def is_forward(action: Tensor) -> Tensor:
    """Whether a move goes right or down."""
    return (action == RIGHT) | (action == DOWN)


def legal_moves(state: State) -> Tensor:
    """Which moves do not turn back into the neck. (N, 4) bool."""
    move = torch.arange(4, device=state["heading"].device)
    return (move != (state["heading"][:, None] + 2) % 4) | (state["length"] == 1)[:, None]


def signs(state: State, size: int) -> Tensor:
    """Return boards to be drawn, as places in SIGNS, (N, size, size) int64."""
    body, upright, forward = (unpack(state[name], size**2) for name in ("body", "upright", "forward"))
    way = torch.where(upright, torch.where(forward, DOWN, UP), torch.where(forward, RIGHT, LEFT))
    cell = torch.arange(size**2, device=body.device)
    board = torch.where(body, way, EMPTY)
    board = torch.where(cell == state["fruit"][:, None], FRUIT, board)
    return torch.where(cell == (state["row"] * size + state["column"])[:, None], HEAD, board).unflatten(1, (size, size))
