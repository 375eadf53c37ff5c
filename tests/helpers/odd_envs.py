"""Gymnasium envs that behave as some in the wild do: `--env gym:tests.helpers.odd_envs:Endless-v0`."""

import os
import random
import subprocess
import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Text

Info = dict[str, Any]
Shown = tuple[Any, float, bool, bool, Info]


class Odd(gym.Env):
    """An env that says nothing, of which the others differ in one thing each. Episodes end after ten steps."""

    observation_space: gym.Space = Box(-1, 1, (2,), np.float32)
    action_space: gym.Space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Info]:
        super().reset(seed=seed)
        self.passed = 0
        return self.obs(), self.info()

    def step(self, action: Any) -> Any:
        self.passed += 1
        return self.obs(), 1.0, False, self.passed == 10, self.info()

    def obs(self) -> Any:
        return np.zeros(2, np.float32)

    def info(self) -> Info:
        return {}


class Endless(Odd):
    """No episode ends; each step pays 1 and may take some seconds."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def step(self, action: int) -> Shown:
        time.sleep(self.seconds)
        return np.zeros(2, np.float32), 1.0, False, False, {}


class Picture(Odd):
    """A picture with a bright corner, which the action names: one step an episode, and 1 for the right corner."""

    action_space = Discrete(4)

    def __init__(self, order: str = "last", kind: str = "uint8", size: int = 36) -> None:
        self.order, self.kind, self.size = order, np.dtype(kind), size
        shape = (size, size, 3) if order == "last" else (3, size, size)
        self.observation_space = Box(0, 255, shape, self.kind)

    def obs(self) -> np.ndarray:
        self.corner = int(self.np_random.integers(4))
        picture = self.np_random.integers(0, 100, (self.size, self.size, 3))
        half = self.size // 4
        rows = slice(0, half) if self.corner < 2 else slice(-half, None)
        columns = slice(0, half) if self.corner % 2 == 0 else slice(-half, None)
        picture[rows, columns] += 150
        return (picture if self.order == "last" else picture.transpose(2, 0, 1)).astype(self.kind)

    def step(self, action: int) -> Shown:
        reward = float(action == self.corner)
        return self.obs(), reward, True, False, {}


class Reused(Odd):
    """Fills one observation, one mask and one info anew in each step; the observation counts the steps."""

    observation_space = Box(0, 50, (2,), np.float32)

    def __init__(self) -> None:
        self.shown, self.told = np.zeros(2, np.float32), {"action_mask": np.ones(2, np.int8)}

    def obs(self) -> np.ndarray:
        self.shown[:] = self.passed
        return self.shown

    def info(self) -> Info:
        self.told["action_mask"][:] = (self.passed % 2, 1)
        return self.told


class Draws(Odd):
    """Its observations are drawn from generators that no seed of its own determines, from the first one on."""

    observation_space = Box(-np.inf, np.inf, (8,), np.float64)

    def __init__(self, source: str = "all") -> None:
        self.source = source
        self.offset = np.random.rand() if source in ("made", "all") else 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Info]:
        self.passed = 0  # and the seed is ignored
        return self.obs(), {}

    def obs(self) -> np.ndarray:
        draws = {
            "made": lambda: self.offset,
            "numpy": lambda: np.random.rand(),
            "python": lambda: random.random(),
            "torch": lambda: float(torch.rand(())),
            "own": lambda: self.np_random.random(),
            "action_space": lambda: float(self.action_space.sample()),
            "observation_space": lambda: self.observation_space.sample()[0],
        }
        values = [draw() for name, draw in draws.items() if self.source in (name, "all")]
        return np.array([self.passed, *values, *[0.0] * (7 - len(values))])


class Strict(Odd):
    """Raises where an action is illegal: legal are those from the number of steps on, modulo 4."""

    action_space = Discrete(4)

    def __init__(self, source: str = "info") -> None:
        self.source = source
        if source == "obs":
            self.observation_space = Dict({"observation": Box(0, 10, (1,)), "action_mask": Box(0, 1, (4,), np.int8)})
        else:
            self.observation_space = Box(0, 10, (1,))
        if source == "method":
            self.action_masks = self.mask
        elif source == "attribute":
            self.action_masks = np.ones(4, bool)

    def mask(self) -> np.ndarray:
        mask = (np.arange(4) >= self.passed % 4).astype(np.int8)
        return mask if self.passed < 10 else np.zeros(4, np.int8)

    def obs(self) -> Any:
        if self.source == "attribute":
            self.action_masks = self.mask()
        seen = np.array([self.passed], np.float32)
        return {"observation": seen, "action_mask": self.mask()} if self.source == "obs" else seen

    def info(self) -> Info:
        return {"action_mask": self.mask()} if self.source == "info" else {}

    def step(self, action: int) -> Any:
        if not self.mask()[action]:
            raise ValueError(f"{action} is illegal")
        return super().step(action)


class Joint(Odd):
    """Two actions at once, of 2 and 3 values from 5 on; the pair (1, 5) is illegal. It pays 1 for (0, 7)."""

    action_space = MultiDiscrete([2, 3], start=[0, 5])
    observation_space = Dict({"place": Discrete(3), "seen": Box(-1, 1, (2, 2)), "flags": gym.spaces.MultiBinary(2)})

    def obs(self) -> Any:
        return {"place": self.passed % 3, "seen": np.full((2, 2), 0.5, np.float32), "flags": np.array([1, 0], np.int8)}

    def info(self) -> Info:
        return {"action_mask": np.array([1, 1, 1, 0, 1, 1])}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action)
        assert action.tolist() != [1, 5]
        self.passed += 1
        reward = np.array([float(action.tolist() == [0, 7])])
        action[:] = 0  # the action is the env's own
        return self.obs(), reward, np.array(False), np.array([self.passed == 10]), self.info()


class Faulty(Odd):
    """Does something wrong in its third step."""

    observation_space: gym.Space = Box(-1, 1, (2,), np.float64)

    def __init__(self, fault: str = "nan") -> None:
        self.fault = fault

    def info(self) -> Info:
        masks = {
            "no_action": [0, 0],
            "short_mask": [1],
            "long_mask": [1] * 3,
            "odd_mask": [2, 1],
            "nan_mask": [np.nan, 1],
        }
        return {"action_mask": np.array(masks[self.fault])} if self.passed == 3 and self.fault in masks else {}

    def step(self, action: int) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.passed != 3:
            return obs, reward, terminated, truncated, info
        if self.fault == "raises":
            raise KeyError("left")
        if self.fault == "exits":
            sys.exit(3)
        if self.fault == "memory":
            raise MemoryError
        if self.fault == "old_api":
            return obs, reward, terminated, info
        wrong = {"nan": np.nan, "inf": np.inf, "huge": 1e300}
        if self.fault in wrong:
            obs = np.array([0, wrong[self.fault]])
        if self.fault.startswith("reward_"):
            reward = {**wrong, "0d": np.array(np.nan)}.get(self.fault.removeprefix("reward_"), "high")
        obs = {"shape": np.zeros(3), "type": "north", "nothing": None, "infs": np.array([np.inf, -np.inf])}.get(
            self.fault, obs
        )
        terminated = {"terminated": "no", "terminated_nan": np.nan, "terminated_2": 2}.get(self.fault, terminated)
        return obs, reward, terminated, truncated, info


class Late(Odd):
    """Raises an error in the 20th step of an episode that ends after 30."""

    def step(self, action: int) -> Shown:
        self.passed += 1
        if self.passed == 20:
            raise ValueError("no such corridor")
        return self.obs(), 1.0, False, self.passed == 30, {}


class Chatty(Odd):
    """Prints whatever it does, in three ways."""

    def __init__(self) -> None:
        self.say("made")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Info]:
        self.say("reset")
        return super().reset(seed=seed)

    def step(self, action: int) -> Shown:
        self.say("step")
        return super().step(action)

    def say(self, what: str) -> None:
        print(f"chat: {what}", flush=True)
        os.write(1, f"chat: {what} below Python\n".encode())
        if what == "made":
            subprocess.run(["echo", "chat: made by a child"], check=True)


class FaultyReset(Odd):
    """Its second reset returns an observation alone."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        shown = super().reset(seed=seed, options=options)
        self.resets += 1
        return shown if self.resets < 2 else shown[0]


class Floats(Odd):
    """Declares bytes and returns fractions of 1."""

    observation_space = Box(0, 255, (2,), np.uint8)

    def obs(self) -> np.ndarray:
        return np.array([0.5, 0.25])


class Moving(Odd):
    """Shows a Dict, and its actions begin with 5."""

    observation_space = Dict({"position": Discrete(3), "speed": Box(-1, 1, (2,))})
    action_space = Discrete(2, start=5)

    def obs(self) -> Any:
        return {"position": self.passed % 3, "speed": np.zeros(2, np.float32)}


class Mission(Odd):
    """Has a text in its observations, as MiniGrid's envs have."""

    observation_space = Dict({"seen": Box(-1, 1, (2,)), "log": gym.spaces.Sequence(Text(5))})


class Unmade(Odd):
    """Raises an error without words when it is made."""

    def __init__(self) -> None:
        raise NotImplementedError


for kind in (
    Endless,
    Picture,
    Reused,
    Draws,
    Strict,
    Joint,
    Faulty,
    Late,
    Chatty,
    FaultyReset,
    Floats,
    Mission,
    Moving,
    Unmade,
):
    gym.register(f"{kind.__name__}-v0", kind)
