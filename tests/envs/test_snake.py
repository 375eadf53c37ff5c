"""Snake against a reference that keeps a list of cells, step by step over whole episodes; drawn boards for every rule;
and the fruit against equal shares of the empty cells.
"""

import itertools
import random
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from envs.base import State, VecEnv, select_rows
from envs.snake import DOWN, LEFT, RIGHT, SIGNS, UP, Snake, signs

Cell = tuple[int, int]  # (row, column), row 0 at the top

MOVES: dict[int, Cell] = {0: (-1, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1)}
DIRECTIONS = {"^": (-1, 0), ">": (0, 1), "v": (1, 0), "<": (0, -1)}
ALMOST_ONE = 1 - 2.0**-24


def moved(cell: Cell, by: Cell) -> Cell:
    return cell[0] + by[0], cell[1] + by[1]


@dataclass
class ReferenceSnake:
    """One episode, its body a list of cells."""

    size: int
    body: list[Cell]  # the head first
    fruit: Cell | None
    elapsed_steps: int = 0

    def move(self, action: int) -> str:
        """Apply an action and return what happened; the caller places a new fruit."""
        self.elapsed_steps += 1
        head = moved(self.body[0], MOVES[action])
        if not self.inside(head):
            return "wall"
        eats = head == self.fruit
        if head in (self.body if eats else self.body[:-1]):
            return "body"
        self.body = [head, *self.body] if eats else [head, *self.body[:-1]]
        if len(self.body) == self.size**2:
            self.fruit = None
            return "full"
        return "ate" if eats else "moved"

    def inside(self, cell: Cell) -> bool:
        return 0 <= cell[0] < self.size and 0 <= cell[1] < self.size

    def action_mask(self) -> list[bool]:
        """Return True for all actions but back into the neck."""
        return [len(self.body) == 1 or moved(self.body[0], by) != self.body[1] for by in MOVES.values()]

    def safe(self) -> list[int]:
        """Return the actions that do not kill, nearest to the fruit first; all actions where all kill."""
        ends = {action: moved(self.body[0], by) for action, by in MOVES.items()}
        safe = [action for action, cell in ends.items() if self.inside(cell) and cell not in self.body[:-1]]
        return sorted(safe, key=lambda action: self.far(ends[action])) or list(MOVES)

    def far(self, cell: Cell) -> int:
        assert self.fruit is not None
        return abs(cell[0] - self.fruit[0]) + abs(cell[1] - self.fruit[1])

    def marks(self) -> list[tuple[int, int, int, float]]:
        """Return the non-zero entries of the observation: (plane, row, column, value)."""
        head, tail = self.body[0], self.body[-1]
        marks = [(0, *cell, 1.0) for cell in self.body] + [(1, *head, 1.0), (2, *tail, 1.0)]
        if self.fruit is not None:
            marks.append((3, *self.fruit, 1.0))
        for next_cell, cell in itertools.pairwise(self.body):
            down, right = next_cell[0] - cell[0], next_cell[1] - cell[1]
            marks.append((4, *cell, float(down)) if down else (5, *cell, float(right)))
        return marks


def planes(snakes: list[ReferenceSnake], size: int) -> Tensor:
    """Return the observations of reference snakes, (N, 6, size, size)."""
    marks = [
        (((row * 6 + p) * size + r) * size + c, v) for row, game in enumerate(snakes) for p, r, c, v in game.marks()
    ]
    obs = torch.zeros(len(snakes) * 6 * size**2)
    obs[[place for place, _ in marks]] = torch.tensor([value for _, value in marks])
    return obs.view(len(snakes), 6, size, size)


def cells_of(plane: Tensor) -> list[Cell]:
    """Return the one cell that is set on each board (N, size, size); (-1, -1) where no cell is."""
    size = plane.shape[-1]
    assert (plane.flatten(1).sum(1) <= 1).all()
    found = torch.where(plane.flatten(1).any(1), plane.flatten(1).argmax(1), -1).tolist()
    return [divmod(place, size) if place >= 0 else (-1, -1) for place in found]


def initial_snakes(obs: Tensor) -> list[ReferenceSnake]:
    """Return reference snakes from initial observations: a head, and a fruit on another cell."""
    snakes = [
        ReferenceSnake(obs.shape[-1], [h], f) for h, f in zip(cells_of(obs[:, 1]), cells_of(obs[:, 3]), strict=True)
    ]
    assert all(game.inside(game.body[0]) and game.inside(game.fruit) for game in snakes)
    assert all(game.fruit != game.body[0] for game in snakes)
    return snakes


def choose(game: ReferenceSnake, row: int, generator: random.Random) -> int:
    """Choose by the copy's number: greedy, greedy with detours, any safe action, or any action, legal or not."""
    kind = row % 4
    if kind == 0 or (kind == 1 and generator.random() < 0.7):
        return game.safe()[0]
    if kind == 3 or generator.random() < 0.1:
        return generator.randrange(4)
    return generator.choice(game.safe())


@pytest.mark.parametrize(
    ("size", "time_limit", "death_reward", "num_envs", "steps", "expected"),
    [
        (2, 5, -1.0, 500, 40, {"wall": 1500, "body": 30, "full": 1500, "time": 500, "full at the time limit": 100}),
        (3, 15, 0.0, 500, 60, {"wall": 1500, "body": 100, "full": 70, "time": 500, "full at the time limit": 5}),
        (3, 200, -0.5, 100, 100, {"wall": 500, "body": 60, "full": 80}),
        (5, 25, 0.0, 500, 60, {"wall": 700, "body": 35, "time": 300, "wall at the time limit": 5}),
        (8, 40, -0.25, 200, 120, {"wall": 300, "body": 20, "time": 200}),
        (12, 30, 0.0, 500, 60, {"wall": 200, "body": 5, "time": 400}),
        (12, 300, -2.0, 60, 320, {"wall": 120, "body": 20, "time": 5}),
    ],
)
def test_random_episodes_equal_reference_snake_step_by_step(
    size: int, time_limit: int, death_reward: float, num_envs: int, steps: int, expected: dict[str, int]
) -> None:
    env = VecEnv(Snake(size, time_limit, death_reward), num_envs, seed=size)
    generator, ends = random.Random(size), Counter[str]()
    step = env.reset()
    snakes = initial_snakes(step.obs)
    assert torch.equal(step.obs, planes(snakes, size))
    for _ in range(steps):
        actions = [choose(game, row, generator) for row, game in enumerate(snakes)]
        ends["illegal"] += sum(not game.action_mask()[action] for game, action in zip(snakes, actions, strict=True))
        step = env.step(torch.tensor(actions))
        events = [game.move(action) for game, action in zip(snakes, actions, strict=True)]
        for game, what, fruit in zip(snakes, events, cells_of(step.final_obs[:, 3]), strict=True):
            if what == "ate":
                assert game.inside(fruit)
                assert fruit not in game.body
                game.fruit = fruit
        over = [what in ("wall", "body", "full") for what in events]
        late = [game.elapsed_steps >= time_limit and not end for game, end in zip(snakes, over, strict=True)]
        rewards = {"wall": death_reward, "body": death_reward, "full": 1.0, "ate": 1.0, "moved": 0.0}
        assert step.terminated.tolist() == over
        assert step.truncated.tolist() == late
        assert step.reward.tolist() == [rewards[what] for what in events]
        assert step.final_action_mask.tolist() == [game.action_mask() for game in snakes]
        assert torch.equal(step.final_obs, planes(snakes, size))
        fresh = initial_snakes(step.obs[ended]) if (ended := step.terminated | step.truncated).any() else []
        for row, (what, end, cut) in enumerate(zip(events, over, late, strict=True)):
            if end or cut:
                ends["time" if cut else what] += 1
                ends[f"{what} at the time limit"] += end and snakes[row].elapsed_steps == time_limit
                snakes[row] = fresh.pop(0)
        assert step.action_mask.tolist() == [game.action_mask() for game in snakes]
        assert torch.equal(step.obs, planes(snakes, size))
    assert all(ends[what] >= number for what, number in expected.items()), ends
    assert ends["illegal"] > 300


def cells_in_order(board: str) -> tuple[list[Cell], Cell | None, int]:
    """Return the body from the tail to the head, the fruit and the size of a drawn board."""
    lines = board.split()
    size = len(lines)
    assert [len(line) for line in lines] == [size] * size
    at = {(row, column): lines[row][column] for row in range(size) for column in range(size)}
    onto = {cell: moved(cell, DIRECTIONS[sign]) for cell, sign in at.items() if sign in DIRECTIONS}
    (head,) = [cell for cell, sign in at.items() if sign == "@"]
    (tail,) = {head, *onto} - set(onto.values())
    body = [tail]
    while body[-1] != head:
        body.append(onto[body[-1]])
    assert set(body) == {head, *onto}
    return body, next((cell for cell, sign in at.items() if sign == "*"), None), size


def drawn(obs: Tensor) -> list[str]:
    """Return observations (N, 6, size, size) as drawn boards; the tail is the cell to which no other leads."""
    body, head, tail, fruit, down, right = obs.unbind(1)
    ways = 4 * (down == 0) * (right == 0)
    ways = ways + 2 * (down == 1) + (right == 1) + 3 * (right == -1)
    assert ((ways == 4) == ((body == 0) | (head == 1))).all()
    codes = torch.where(head == 1, 5, torch.where(fruit == 1, 6, ways)).tolist()
    boards = [" ".join("".join("^>v<.@*"[code] for code in row) for row in board) for board in codes]
    assert cells_of(tail) == [cells_in_order(board)[0][0] for board in boards]
    return boards


def grid(cells: int) -> Tensor:
    """Return uniforms (cells + 2, 1) that select each of up to that many cells, the smallest and largest included."""
    return torch.tensor([0.0, *((k + 0.5) / cells for k in range(cells)), ALMOST_ONE])[:, None]


def with_fruit(game: Snake, state: State, fruit: Cell | None) -> State:
    """Return the row of a state in which the fruit is in that cell."""
    found = cells_of(game.observe(state)[0][:, 3])
    return select_rows(state, torch.tensor([found.index(fruit or (-1, -1))]))


def state_with(game: Snake, head: Cell, fruit: Cell) -> State:
    """Return an initial state with that head and fruit."""
    every = grid(game.size**2)
    heads = cells_of(game.observe(game.reset(every.expand(-1, 2)))[0][:, 1])
    return with_fruit(game, game.reset(torch.cat([every[heads.index(head)].expand(len(every), 1), every], 1)), fruit)


def step_with_all_uniforms(game: Snake, state: State, action: int) -> tuple[State, Tensor, Tensor]:
    """Return the results of one action in one state under every uniform."""
    u = grid(game.size**2)
    many = select_rows(state, torch.zeros(len(u), dtype=torch.int64))
    return game.step(many, torch.full((len(u),), action), u)


def position(game: Snake, board: str) -> State:
    """Return the state of a drawn board, reached by steps: from the tail on, every cell of the body had a fruit."""
    body, last_fruit, size = cells_in_order(board)
    assert size == game.size
    state = state_with(game, body[0], [*body, last_fruit][1])
    for k, cell in enumerate(body[1:], 1):
        (action,) = [action for action, by in MOVES.items() if moved(body[k - 1], by) == cell]
        after, reward, _ = step_with_all_uniforms(game, state, action)
        assert (reward == 1).all()
        state = with_fruit(game, after, [*body, last_fruit][k + 1])
    assert drawn(game.observe(state)[0]) == [" ".join(board.split())]
    return state


def outcomes(board: str, action: int, death_reward: float = -1.0) -> set[tuple[float, bool, str]]:
    """Return every possible (reward, terminated, board) after an action on a drawn board."""
    game = Snake(len(board.split()), death_reward=death_reward)
    after, reward, terminated = step_with_all_uniforms(game, position(game, board), action)
    return set(zip(reward.tolist(), terminated.tolist(), drawn(game.observe(after)[0]), strict=True))


def fruit_anywhere(board: str) -> list[str]:
    """Return the drawn board with a fruit on each of its empty cells in turn."""
    return [board[:k] + "*" + board[k + 1 :] for k, sign in enumerate(board) if sign == "."]


def action_mask(board: str) -> list[int]:
    game = Snake(len(board.split()))
    return game.observe(position(game, board))[1][0].nonzero()[:, 0].tolist()


def test_actions_are_up_right_down_left() -> None:
    assert (UP, RIGHT, DOWN, LEFT) == (0, 1, 2, 3)
    board = "*.. .@. ..."
    assert outcomes(board, UP) == {(0, False, "*@. ... ...")}
    assert outcomes(board, RIGHT) == {(0, False, "*.. ..@ ...")}
    assert outcomes(board, DOWN) == {(0, False, "*.. ... .@.")}
    assert outcomes(board, LEFT) == {(0, False, "*.. @.. ...")}


def test_body_follows_head() -> None:
    assert outcomes("*... .v.. .>>@ ....", UP) == {(0, False, "*... ...@ .>>^ ....")}
    assert outcomes("*... ...@ .>>^ ....", LEFT) == {(0, False, "*... ..@< ..>^ ....")}
    assert outcomes("*... ..v< ..@^ ....", LEFT) == {(0, False, "*... ..v< .@<. ....")}


def test_fruit_pays_1_and_keeps_tail() -> None:
    for before, action, after in [
        ("... .@* ...", RIGHT, "... .>@ ..."),
        ("... *@. ...", LEFT, "... @<. ..."),
        ("*.. @<. ...", UP, "@.. ^<. ..."),
        (">v. .v. *@.", LEFT, ">v. .v. @<."),
    ]:
        assert outcomes(before, action) == {(1, False, board) for board in fruit_anywhere(after)}


def test_head_may_enter_cell_that_tail_leaves() -> None:
    assert outcomes(">v. @<. ..*", UP) == {(0, False, "@v. ^<. ..*")}
    assert outcomes("*>v .@< ...", UP) == {(0, False, "*@v .^< ...")}
    assert outcomes(">>v ^*v @<<", UP) == {(0, False, ">>v @*v ^<<")}


def test_head_dies_in_any_other_cell_of_body() -> None:
    for board, action in [
        (">>v .@< *..", UP),  # one cell before the tail
        (">>>v ..@< .*.. ....", UP),
        (">v.. ^@.. ^..* ....", LEFT),
    ]:
        assert outcomes(board, action) == {(-1, True, board)}


def test_turning_back_lives_with_two_cells_and_dies_with_three() -> None:
    assert outcomes(">@. ... ..*", LEFT) == {(0, False, "@<. ... ..*")}
    assert outcomes("..* .@. .^.", DOWN) == {(0, False, "..* .v. .@.")}
    assert outcomes(">>@ ... ..*", LEFT) == {(-1, True, ">>@ ... ..*")}
    assert outcomes("v.. v.. @.*", UP) == {(-1, True, "v.. v.. @.*")}


def test_action_mask_forbids_only_the_neck() -> None:
    assert action_mask("... .@. ..*") == [UP, RIGHT, DOWN, LEFT]
    assert action_mask("@.. ... ..*") == [UP, RIGHT, DOWN, LEFT]  # a wall is allowed
    assert action_mask("... >@. ..*") == [UP, RIGHT, DOWN]
    assert action_mask("... .@< ..*") == [UP, DOWN, LEFT]
    assert action_mask(".v. .@. ..*") == [RIGHT, DOWN, LEFT]
    assert action_mask("... .@. *^.") == [UP, RIGHT, LEFT]
    assert action_mask(">>v .@< *..") == [UP, DOWN, LEFT]  # so is the body


def test_snake_of_one_cell_may_turn_back() -> None:
    game = Snake(3)
    state, _, _ = game.step(position(game, "*.. .@. ..."), torch.tensor([RIGHT]), torch.zeros(1, 1))
    assert game.observe(state)[1].tolist() == [[True] * 4]
    state, _, terminated = game.step(state, torch.tensor([LEFT]), torch.zeros(1, 1))
    assert not terminated.item()
    assert drawn(game.observe(state)[0]) == ["*.. .@. ..."]


@pytest.mark.parametrize("size", [2, 3, 8, 12])
def test_every_wall_kills_without_wrapping(size: int) -> None:
    """A fruit lies where the neighbouring row or the other side would be, and must not be eaten."""
    last = size - 1
    walls = [
        ((0, last), RIGHT, (1, 0)),
        ((1, 0), LEFT, (0, last)),
        ((0, 0), LEFT, (0, last)),
        ((last, last), RIGHT, (last, 0)),
        ((0, 1), UP, (last, 1)),
        ((0, 0), UP, (last, 0)),
        ((last, 1), DOWN, (0, 1)),
        ((last, last), DOWN, (0, last)),
    ]
    game = Snake(size, death_reward=-0.5)
    for head, action, fruit in walls:
        before = state_with(game, head, fruit)
        after, reward, terminated = step_with_all_uniforms(game, before, action)
        assert terminated.all()
        assert (reward == -0.5).all()
        obs, moves = game.observe(after)
        assert (obs == game.observe(before)[0]).all()
        assert (moves == game.observe(before)[1]).all()


def test_final_state_of_death_is_last_one_alive() -> None:
    board = "*.>v ..^@ .>^. ...."
    for death_reward in (0.0, -1.0, 0.25):
        assert outcomes(board, RIGHT, death_reward) == {(death_reward, True, board)}
    game = Snake(4)
    before = position(game, board)
    after, _, _ = game.step(before, torch.tensor([RIGHT]), torch.zeros(1, 1))
    assert torch.equal(game.observe(after)[1], game.observe(before)[1])


def test_death_reward_defaults_to_zero() -> None:
    game = Snake(3)
    _, reward, terminated = game.step(position(game, "@.. ... ..*"), torch.tensor([UP]), torch.zeros(1, 1))
    assert (reward.tolist(), terminated.tolist()) == ([0.0], [True])
    assert reward.dtype == torch.float32


def test_filling_board_terminates_without_fruit() -> None:
    assert outcomes(">v *@", LEFT) == {(1, True, ">v @<")}
    assert outcomes(">>v v<< >@*", RIGHT) == {(1, True, ">>v v<< >>@")}
    assert outcomes(">>v ^*v ^@<", UP) == {(1, True, ">>v ^@v ^^<")}


def cycle(size: int) -> list[Cell]:
    """Return a closed path over all cells of a board of even size."""
    rows = [[(row, column) for column in range(1, size)][:: -1 if row % 2 else 1] for row in range(size)]
    return [*itertools.chain(*rows), *((row, 0) for row in range(size - 1, -1, -1))]


def serpentine(size: int) -> list[Cell]:
    """Return a path over all cells of a board, row by row."""
    return [cell for row in range(size) for cell in [(row, c) for c in range(size)][:: -1 if row % 2 else 1]]


@pytest.mark.parametrize(("size", "room"), [(2, 3), (3, 0), (5, 0), (6, 30), (8, 24), (11, 0), (12, 20)])
def test_snake_fills_boards_of_several_sizes(size: int, room: int) -> None:
    """The fruit lies one cell ahead, and anywhere once `room` cells are empty; each step runs under all uniforms."""
    game, generator = Snake(size), random.Random(size)
    path = serpentine(size) if size % 2 else cycle(size)
    reference, state = ReferenceSnake(size, [path[0]], path[1]), state_with(game, path[0], path[1])
    for k in itertools.count(1):
        (action,) = [a for a, by in MOVES.items() if moved(reference.body[0], by) == path[k % size**2]]
        what = reference.move(action)
        state, reward, terminated = step_with_all_uniforms(game, state, action)
        assert (reward == (what in ("ate", "full"))).all()
        assert (terminated == (what == "full")).all()
        if what == "full":
            break
        fruits = set(cells_of(game.observe(state)[0][:, 3]))
        if what == "ate":
            empty = sorted(set(path) - set(reference.body))
            assert fruits == set(empty)
            reference.fruit = generator.choice(empty) if len(empty) <= room else path[k + 1]
        else:
            assert fruits == {reference.fruit}
        state = with_fruit(game, state, reference.fruit)
        obs, moves = game.observe(state)
        assert torch.equal(obs, planes([reference], size))
        assert moves.tolist() == [reference.action_mask()]
    assert torch.equal(game.observe(select_rows(state, torch.tensor([0])))[0], planes([reference], size))
    assert not game.observe(state)[0][:, 3].any()
    assert k >= size**2 - 1 + 5 * (room > 3)


def test_filling_board_at_time_limit_is_not_truncation() -> None:
    """A snake that eats in each of its first three steps fills the 2 x 2 board at the time limit."""
    env = VecEnv(Snake(2, time_limit=3), 300, seed=1)
    snakes = initial_snakes(env.reset().obs)
    for _ in range(3):
        step = env.step(torch.tensor([game.safe()[0] for game in snakes]))
        for game, fruit in zip(snakes, cells_of(step.final_obs[:, 3]), strict=True):
            if game.move(game.safe()[0]) == "ate":
                game.fruit = fruit
    full = torch.tensor([len(game.body) == 4 for game in snakes])
    assert 30 < full.sum() < 270
    assert torch.equal(step.terminated, full)
    assert torch.equal(step.truncated, ~full)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_reset_heads_and_fruits_are_equally_likely(size: int) -> None:
    cells = size**2
    heads, fruits = ((torch.arange(n) + 0.5) / n for n in (cells, cells - 1))
    state = Snake(size).reset(torch.cartesian_prod(heads, fruits))
    obs, _ = Snake(size).observe(state)
    counts = Counter(zip(cells_of(obs[:, 1]), cells_of(obs[:, 3]), strict=True))
    assert counts == dict.fromkeys(itertools.permutations(serpentine(size), 2), 1)
    assert torch.equal(obs[:, 0], obs[:, 1])
    assert torch.equal(obs[:, 2], obs[:, 1])
    assert not obs[:, 4:].any()


@pytest.mark.parametrize("board", ["... .@* ...", ">v. *@. ...", "v<< v.^ >@*", ">@ .*"])
def test_next_fruit_is_equally_likely_on_empty_cells(board: str) -> None:
    game = Snake(len(board.split()))
    body, fruit, size = cells_in_order(board)
    (action,) = [action for action, by in MOVES.items() if moved(body[-1], by) == fruit]
    empty = set(serpentine(size)) - {*body, fruit}
    u = (torch.arange(50 * len(empty)) + 0.5)[:, None] / (50 * len(empty))
    many = select_rows(position(game, board), torch.zeros(len(u), dtype=torch.int64))
    after, _, _ = game.step(many, torch.full((len(u),), action), u)
    assert Counter(cells_of(game.observe(after)[0][:, 3])) == dict.fromkeys(empty, 50)


def test_vec_env_heads_and_fruits_are_uniform() -> None:
    """9 cells, 8,000 copies: by Hoeffding's inequality a share is off by 0.03 once in 10**6."""
    obs = VecEnv(Snake(3), 8000, seed=3).reset().obs
    for plane in (1, 3):
        shares = obs[:, plane].flatten(1).mean(0)
        assert ((shares - 1 / 9).abs() < 0.03).all()


@pytest.mark.parametrize("size", range(2, 30))
def test_reset_at_extreme_uniforms_is_in_range(size: int) -> None:
    u = torch.tensor([*itertools.product([0.0, 2.0**-24, 0.5, ALMOST_ONE], repeat=2)])
    obs, _ = Snake(size).observe(Snake(size).reset(u))
    assert torch.equal(obs, planes(initial_snakes(obs), size))


def test_body_across_two_words_moves() -> None:
    """Of 8 x 8 cells the last one is in the second word; of 12 x 12 cells words end after cells 55 and 111."""
    above = " ".join(["........"] * 6)
    assert outcomes(f"{above} *....... .....>@.", RIGHT) == {(0, False, f"{above} *....... ......>@")}
    assert outcomes(f"{above} *....... ......>@", UP) == {(0, False, f"{above} *......@ .......^")}
    assert outcomes(f"{above} *......v ......@<", LEFT) == {(0, False, f"{above} *....... .....@<<")}
    assert outcomes(f"{above} ........ .....>@*", RIGHT) == {
        (1, False, board) for board in fruit_anywhere(f"{above} ........ .....>>@")
    }
    rows = ["............"] * 12

    def board(**changed: str) -> str:
        return " ".join(changed.get(f"row{k}", row) for k, row in enumerate(rows))

    assert outcomes(board(row5=">>@.........", row11="...........*"), RIGHT) == {
        (0, False, board(row5=".>>@........", row11="...........*"))
    }
    assert outcomes(board(row9="....>>>v....", row10="*....@<<...."), UP) == {
        (-1, True, board(row9="....>>>v....", row10="*....@<<...."))
    }
    assert outcomes(board(row9="*....>>v....", row10=".....@<<...."), UP) == {
        (0, False, board(row9="*....@>v....", row10=".....^<<...."))
    }


def test_signs_equal_observation() -> None:
    assert SIGNS == "^>v<.@*"
    env, generator = VecEnv(Snake(5), 200, seed=4), random.Random(4)
    step = env.reset()
    for _ in range(40):
        boards = [
            " ".join("".join(SIGNS[code] for code in row) for row in board) for board in signs(env.state, 5).tolist()
        ]
        assert boards == drawn(step.obs)
        snakes = [ReferenceSnake(5, body[::-1], fruit) for body, fruit, _ in map(cells_in_order, boards)]
        step = env.step(
            torch.tensor([game.safe()[generator.random() < 0.2 and len(game.safe()) > 1] for game in snakes])
        )
    assert max(len(game.body) for game in snakes) > 8


def test_spec_of_options() -> None:
    spec = Snake().spec
    assert (spec.obs_shape, spec.num_actions, spec.time_limit) == ((6, 12, 12), 4, 4000)
    assert (Snake(5).spec.obs_shape, Snake(5, time_limit=7).spec.time_limit) == ((6, 5, 5), 7)
    assert (spec.num_reset_uniforms, spec.num_step_uniforms) == (2, 1)


@pytest.mark.parametrize("size", [1, 0, -3])
def test_size_below_two_raises(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}; .* at least 2 x 2"):
        Snake(size)


@pytest.mark.parametrize("time_limit", [0, -1])
def test_time_limit_below_one_raises(time_limit: int) -> None:
    with pytest.raises(ValueError, match=f"time_limit is {time_limit}; .* at least 1 step"):
        Snake(time_limit=time_limit)


def test_smallest_size_and_time_limit_are_accepted() -> None:
    assert Snake(2, time_limit=1).spec.time_limit == 1
