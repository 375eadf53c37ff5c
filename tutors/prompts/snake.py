"""The prompt views of Snake: the whole board, in two wordings, or only what is around the head.

`FullView` and `MapView` show the board, in one of its eight rotations and reflections. `LocalView` shows what the four
cells around the head hold and where the fruit is, rotated so that the neck is behind: fewer than a hundred different
prompts, so that an answer is used again thousands of times.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.base import State
from envs.rng import splitmix64
from envs.snake import EMPTY, FRUIT, HEAD, SIGNS, Snake, signs
from tutors.prompts.base import ANSWER, LETTER_ONLY, PromptView

KINDS = (
    "your neck",
    "free",
    "wall",
    "your body",
)  # what a cell beside the head can hold; a tail that moves away is free
NECK, FREE, WALL, BODY = range(len(KINDS))
SIDES = ("Ahead", "Right", "Behind", "Left")
WAYS = ("Up", "Right", "Down", "Left")  # names of the sides without rotation
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # rows and columns of up, right, down, left
TRANSFORMS = tuple((quarter, flipped) for flipped in (False, True) for quarter in range(4))
SYMMETRY = torch.tensor(  # each move's name after a clockwise rotation, and a reflection left to right after it
    [[(move + quarter) % 4 * (-1 if flipped else 1) % 4 for move in range(4)] for quarter, flipped in TRANSFORMS]
)
DEATH, TRAP = (
    -10,
    -4,
)  # expert values, times the cells of the board, of a collision and of a move that cuts off the tail


class FullView(PromptView):
    """The whole board. A canonical position is (B, size, size) int64 of indices in SIGNS, under the name `board`.

    A key is two independent hashes of the board: sums of random numbers, one for each cell and sign.
    """

    game, name, version = "snake", "full", 1
    labels = tuple("ABCD")
    relabels = optional_symmetry = True
    symmetry = SYMMETRY

    def __init__(self, game: Snake) -> None:
        self.size = game.size
        cells = torch.arange(game.cells * len(SIGNS)).view(game.cells, len(SIGNS))
        self.hashes = torch.stack(
            [splitmix64(splitmix64(cells) + half) for half in range(1, 3)], 2
        )  # (cells, signs, 2)
        self.instructions = self.render_instructions()

    def render_instructions(self) -> str:
        up, right, down, left = self.labels
        return (
            f"This is Snake on a board of {self.size} by {self.size} cells. Your head is @, the fruit is *, an empty "
            "cell is a dot. The other cells of your body are ^ > v <, each pointing to the next one towards your "
            "head. Each turn your head moves one cell; your tail follows, except when you eat the fruit and "
            "grow. Moving off the board or into your body ends the game; into the cell that your tail leaves you "
            f"may move. Find the best move: go to the fruit, and never shut yourself in. {up} is up, {right} is right, "
            f"{down} is down, {left} is left. {LETTER_ONLY}\n\nThe board, top row first:\n"
        )

    def canonicalize(self, state: State) -> tuple[State, Tensor]:
        board = signs(state, self.size)
        images = torch.stack([rotated(board, *transform) for transform in TRANSFORMS[: len(self.symmetry)]], 1)
        transform = self._hash(images)[:, :, 0].argmin(1)
        return {"board": images[torch.arange(len(images), device=images.device), transform]}, transform

    def key(self, state: State) -> Tensor:
        return self._hash(state["board"])

    def action_mask(self, state: State) -> Tensor:
        return around(state["board"], necks(state["board"]), False).logical_not()

    def render(self, state: State) -> list[str]:
        boards = zip(state["board"].tolist(), self.action_mask(state).tolist(), strict=True)
        return [self.instructions + self.render_board(*board) for board in boards]

    def render_board(self, board: list[list[int]], action_mask: list[bool]) -> str:
        """Return one position as the end of a question."""
        drawn = "\n".join(" ".join(SIGNS[sign] for sign in row) for row in board)
        return drawn + options(action_mask, self.labels)

    def expert_values(self, state: State, depth: int) -> Tensor:
        return search(state["board"])

    def _hash(self, boards: Tensor) -> Tensor:
        """Return two hashes of each board, (…, 2) int64 for (…, size, size)."""
        cell = torch.arange(self.size**2, device=boards.device)
        return self.hashes.to(boards.device)[cell, boards.flatten(-2)].sum(-2)


class MapView(FullView):
    """The same board with its walls drawn, and each legal move named where it is offered."""

    name, is_rewording = "map", True

    def render_instructions(self) -> str:
        return (
            f"You steer a snake on a grid of {self.size} rows and {self.size} columns inside a wall of # signs. The "
            "snake goes one step at a time: up, right, down or left. On the map @ marks the snake's head and * the "
            "food; the signs ^ > v < are the rest of its body, where every sign shows the way to the piece in "
            "front of it, and dots are open ground. Food makes the snake one piece longer and is worth a point. "
            "Hitting the wall or its own body kills it, but the last piece of the body moves out of the way unless "
            f"food is eaten. Collect as much food as you can without getting trapped. {LETTER_ONLY}\n\nThe map:\n"
        )

    def render_board(self, board: list[list[int]], action_mask: list[bool]) -> str:
        wall = " ".join("#" * (self.size + 2))
        rows = [f"# {' '.join(SIGNS[sign] for sign in row)} #" for row in board]
        moves = [
            f"{label} {way.lower()}" for label, way, may in zip(self.labels, WAYS, action_mask, strict=True) if may
        ]
        return "\n".join([wall, *rows, wall, f"Options: {', '.join(moves)}", ANSWER])


class LocalView(PromptView):
    """What lies on the four sides of the head, and which of them lead towards the fruit.

    A canonical position is (B, 4) int64 under the name `sides`: ahead, right, behind, left, each 2 * its index in
    KINDS, plus 1 where the fruit is nearer there. A key is exact: three bits a side, the one behind first, so that of
    eight rotations and reflections the smallest key has the neck behind. Without symmetry they are up, right, down,
    left.
    """

    game, name, version = "snake", "local", 1
    labels = tuple("ABCD")
    relabels = optional_symmetry = True
    symmetry = SYMMETRY

    def __init__(self, game: Snake) -> None:
        self.size = game.size
        self.instructions = self.render_instructions()

    def render_instructions(self) -> str:
        names = [f"{label} is {name.lower()}" for label, name in zip(self.labels, self.names(), strict=True)]
        return (
            "This is Snake. Each turn your head moves one cell. Moving into a wall or into your body ends the game; "
            "eating the fruit makes you one cell longer. You see what lies on each side of your head, and on which "
            f"sides the fruit is. Find the best move: stay alive, and go towards the fruit. {', '.join(names)}. "
            f"{LETTER_ONLY}\n\n"
        )

    def names(self) -> tuple[str, ...]:
        """Return what the four sides are called."""
        return WAYS if len(self.symmetry) == 1 else SIDES

    def canonicalize(self, state: State) -> tuple[State, Tensor]:
        board = signs(state, self.size)
        blocked = (board < EMPTY) & ~tails(board)
        kind = torch.where(around(board, blocked, False), BODY, FREE)
        kind = torch.where(around(board, torch.zeros_like(blocked), True), WALL, kind)
        kind = torch.where(around(board, necks(board), False), NECK, kind)
        sides = 2 * kind + towards(state, self.size)
        images = sides[:, self.symmetry.argsort(1).to(sides.device)]  # (B, 8, 4)
        transform = pack(images).argmin(1)
        return {"sides": images[torch.arange(len(images), device=images.device), transform]}, transform

    def key(self, state: State) -> Tensor:
        place = pack(state["sides"])
        return torch.stack([place, torch.zeros_like(place)], 1)

    def action_mask(self, state: State) -> Tensor:
        return state["sides"] // 2 != NECK

    def render(self, state: State) -> list[str]:
        return [
            self.instructions + surroundings(sides, self.names()) + options(action_mask, self.labels)
            for sides, action_mask in zip(state["sides"].tolist(), self.action_mask(state).tolist(), strict=True)
        ]

    def expert_values(self, state: State, depth: int) -> Tensor:
        return torch.where(state["sides"] // 2 == FREE, state["sides"] % 2, DEATH)


def towards(state: State, size: int) -> Tensor:
    """Whether each move brings the head nearer to the fruit, (B, 4) bool; none does where there is no fruit."""
    down, right = state["fruit"] // size - state["row"], state["fruit"] % size - state["column"]
    there = (state["fruit"] < size**2)[:, None]
    return torch.stack([down < 0, right > 0, down > 0, right < 0], 1) & there


def pack(sides: Tensor) -> Tensor:
    """Return one number for the four sides, the one behind first. (…) int64 for (…, 4)."""
    ahead, right, behind, left = sides.unbind(-1)
    return behind << 9 | ahead << 6 | right << 3 | left


def surroundings(sides: list[int], names: tuple[str, ...]) -> str:
    """Return what is seen, a line a side."""
    seen = [f"{name}: {KINDS[side // 2]}" for name, side in zip(names, sides, strict=True)]
    fruit = [name.lower() for name, side in zip(names, sides, strict=True) if side % 2]
    return "\n".join([*seen, f"Fruit: {', '.join(fruit) or 'nowhere'}"])


def rotated(board: Tensor, quarter: int, flipped: bool) -> Tensor:
    """Return boards of signs rotated clockwise by so many quarters, then reflected; ways turn with them."""
    board = board.rot90(-quarter, (1, 2))
    way = (board + quarter) % 4
    if flipped:
        board, way = board.flip(2), (-way.flip(2)) % 4
    return torch.where(board < EMPTY, way, board)


def framed(cells: Tensor, beyond: bool = False) -> Tensor:
    """Return boards with a cell more on each side, (B, rows + 2, columns + 2) bool, where `beyond` holds.

    They are padded as numbers: what PyTorch 2.13 compiles of padded bools is no C++.
    """
    return F.pad(cells.int(), (1, 1, 1, 1), value=int(beyond)).bool()


def around(board: Tensor, cells: Tensor, beyond: bool) -> Tensor:
    """Whether the cells above, right of, below and left of the head are among `cells`. (B, 4) bool.

    `beyond` is what holds outside of the board.
    """
    padded, head = framed(cells, beyond), framed(board == HEAD)
    return torch.stack([(head & padded.roll((-down, -right), (1, 2))).flatten(1).any(1) for down, right in MOVES], 1)


def entered(board: Tensor) -> Tensor:
    """Which cells a cell of the body points to: all of the snake but its tail. Same shape, bool."""
    pointed = [framed(board == way).roll(MOVES[way], (1, 2))[:, 1:-1, 1:-1] for way in range(4)]
    return torch.stack(pointed).any(0)


def necks(board: Tensor) -> Tensor:
    """Where the cell behind the head is. Same shape, bool."""
    padded = framed(board == HEAD)
    behind = [padded.roll((-down, -right), (1, 2))[:, 1:-1, 1:-1] for down, right in MOVES]
    return torch.stack([near & (board == way) for way, near in enumerate(behind)]).any(0)


def tails(board: Tensor) -> Tensor:
    """Where the last cell of the snake is, which may be its head. Same shape, bool."""
    return (board != EMPTY) & (board != FRUIT) & ~entered(board)


def search(board: Tensor) -> Tensor:
    """Return how good each move is: near to the fruit on a way from which the tail can still be reached. (B, 4).

    Both are breadth-first searches past the body as it lies now. Where the fruit cannot be reached safely,
    the longest way to the tail is best: it gives the body time to move out of the way.
    """
    cells = board[0].numel()
    tail = tails(board)
    blocked = (board < EMPTY) & ~tail | (board == HEAD)
    to_fruit = reach(distance(board == FRUIT, blocked), board)
    to_tail = reach(distance(tail, blocked), board)
    safe = (to_tail < cells) | ((board != EMPTY) & (board != FRUIT)).flatten(1).sum(1, keepdim=True).le(2)
    value = torch.where(to_fruit < cells, -to_fruit, to_tail - 2 * cells) + torch.where(safe, 0, TRAP * cells)
    return torch.where(around(board, blocked, True) | around(board, necks(board), False), DEATH * cells, value)


def reach(distances: Tensor, board: Tensor) -> Tensor:
    """Return the distances of the four cells around the head, (B, 4); of those outside the board, its size."""
    padded = F.pad(distances, (1, 1, 1, 1), value=board[0].numel())
    head = framed(board == HEAD)
    return torch.stack([(padded.roll((-down, -right), (1, 2)) * head).sum((1, 2)) for down, right in MOVES], 1)


def distance(goal: Tensor, blocked: Tensor) -> Tensor:
    """Return how many moves each cell is from the goal, (B, size, size); the number of cells where no way leads."""
    cells = goal[0].numel()
    reached, result = goal, torch.where(goal, 0, cells)
    for step in range(1, cells):
        padded = framed(reached)
        near = padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:]
        new = near & ~blocked & ~reached
        if not new.any():
            break
        result = torch.where(new, step, result)
        reached = reached | new
    return result


def options(action_mask: list[bool], labels: tuple[str, ...]) -> str:
    """Return the end of a question."""
    letters = " ".join(label for label, may in zip(labels, action_mask, strict=True) if may)
    return f"\nOptions: {letters}\n{ANSWER}"
