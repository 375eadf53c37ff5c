"""The view of MiniGrid, on images that are made here, and on those of the library where it is installed."""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import envs
from envs.base import Spec, State
from envs.gymnasium_spaces import ObservationFormat
from tests.helpers.paths import GOLDEN
from tutors.prompts import make_view
from tutors.prompts import minigrid as view_module
from tutors.prompts.minigrid import COLORS, DOOR_STATES, KINDS, MiniGridView

NAME = "gym:minigrid:MiniGrid-DoorKey-8x8-v0"
SEEN = """
??????#
??#####
??#....
###.k..
#..L.~.
#...O.#
#..@..#
"""  # L is a locked door, O an open one
CODES = {"?": (0, 0, 0), ".": (1, 0, 0), "#": (2, 5, 0), "k": (5, 4, 0), "L": (4, 4, 2), "O": (4, 0, 0), "~": (9, 0, 0)}
CODES |= {"@": (5, 1, 0)}  # what is carried: a green key


def fake_game(mission: str = "find the  way", size: int = 7) -> Any:
    """What the view reads of an env of MiniGrid."""
    box = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
    space = gym.spaces.Dict({"direction": gym.spaces.Discrete(4), "image": box})
    env = SimpleNamespace(mission=mission, observation_space={"mission": SimpleNamespace(ordered_placeholders=None)})
    copies = [SimpleNamespace(unwrapped=env)]
    return SimpleNamespace(
        observations=ObservationFormat(space), copies=copies, spec=Spec(NAME, 0, (size * size * 3 + 4,), 7, 0, 0, None)
    )


def state_of(image: np.ndarray, direction: int = 0) -> State:
    """An observation as the env shows it, its columns first, as a state of one row."""
    space = fake_game(size=len(image)).observations
    row = space.empty(1)
    space.write({"direction": direction, "image": image, "mission": "go"}, row[0])
    return {"obs": torch.from_numpy(row)}


def image_of(drawing: str) -> np.ndarray:
    rows = drawing.strip().splitlines()
    return np.array([[CODES[row[column]] for row in rows] for column in range(len(rows[0]))], np.uint8)


def prompt_of(view: MiniGridView, state: State) -> str:
    return view.render(view.canonicalize(state)[0])[0]


def test_prompt_equals_golden_file() -> None:
    view = make_view(fake_game())
    golden = (GOLDEN / f"gym-MiniGrid_seen_v{view.version}.txt").read_text()
    assert prompt_of(view, state_of(image_of(SEEN))) == golden


def test_key_equal_exactly_where_prompts_are() -> None:
    """Images of any numbers that the env's may have, of which most cells are alike."""
    generator = np.random.default_rng(1)
    view = MiniGridView(fake_game(size=3))
    words, keys = [], []
    for _ in range(600):
        image = np.tile(np.array([1, 0, 0], np.uint8), (3, 3, 1))
        column, row = generator.integers(0, 3, 2)
        image[column, row] = generator.integers(0, (len(KINDS), len(COLORS), len(DOOR_STATES)))
        state = view.canonicalize(state_of(image, int(generator.integers(4))))[0]
        words += view.render(state)
        keys += [tuple(key) for key in view.key(state).tolist()]
    assert len(set(zip(words, keys, strict=True))) == len(set(words)) == len(set(keys)) > 100


def test_letters_can_be_permuted() -> None:
    view = MiniGridView(fake_game())
    other = view.relabelled(tuple("GFEDCBA"))
    assert "G is turn left" in other.instructions
    assert "A is done" in other.instructions
    assert "1 is turn left" in view.with_digits().instructions


def test_envs_that_are_not_minigrid_s_are_refused() -> None:
    with pytest.raises(ValueError, match="CartPole-v1 has other observations"):
        MiniGridView(envs.make("gym:CartPole-v1", 1).game)


def test_real_envs_are_told_as_they_are() -> None:
    """One walks, picks up and opens at random, and reads what the env itself says of the cell in front."""
    constants = pytest.importorskip("minigrid.core.constants")
    assert [constants.IDX_TO_OBJECT[index] for index in range(len(KINDS))] == list(KINDS)
    assert [constants.IDX_TO_COLOR[index] for index in range(len(COLORS))] == list(COLORS)
    assert [*constants.STATE_TO_IDX] == list(DOOR_STATES)
    env = envs.make(NAME, 4, 1)
    view = make_view(env.game)
    assert isinstance(view, MiniGridView)
    assert "Your mission: use the key to open the door and then get to the goal." in view.instructions
    step, generator, seen = env.reset(), torch.Generator().manual_seed(1), set()
    for _ in range(300):
        prompts = view.render(view.canonicalize(step.state)[0])
        for prompt, copy in zip(prompts, env.game.copies, strict=True):
            world = copy.unwrapped
            ahead, carried = world.grid.get(*world.front_pos), world.carrying
            name = "free cell" if ahead is None else ahead.type
            assert name in prompt.partition("In front of you: ")[2].partition("\n")[0]
            assert f"You carry: {'nothing' if carried is None else f'a {carried.color} {carried.type}'}\n" in prompt
            seen |= {name, carried is None}
        step = env.step(torch.randint(0, 6, (4,), generator=generator))
    assert {"free cell", "wall", "key", "door", True, False} <= seen


def test_env_with_a_mission_for_each_episode_has_no_view() -> None:
    pytest.importorskip("minigrid")
    with pytest.raises(ValueError, match="a mission of its own in each episode"):
        make_view(envs.make("gym:minigrid:MiniGrid-Fetch-5x5-N2-v0", 1).game)


def test_names_of_actions_are_those_of_the_library() -> None:
    actions = pytest.importorskip("minigrid.core.actions").Actions
    names = ["turn left", "turn right", "go forward", "pick up", "drop", "toggle", "done"]
    for action, name in zip(actions, names, strict=True):
        assert action.name in name.replace(" ", "")
    assert list(view_module.ACTIONS) == names
