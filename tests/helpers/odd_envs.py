"""Gymnasium envs that behave as some in the wild do: `--env gym:tests.helpers.odd_envs:Endless-v0`."""

import time
from typing import Any

import gymnasium as gym
import numpy as np

Info = dict[str, Any]


class Endless(gym.Env):
    """No episode ends; each step pays 1 and may take some seconds."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        time.sleep(self.seconds)
        return np.zeros(2, np.float32), 1.0, False, False, {}


for kind in (Endless,):
    gym.register(f"{kind.__name__}-v0", kind)
