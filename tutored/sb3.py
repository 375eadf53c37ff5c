"""A tutor for a model of Stable-Baselines3: a vector env whose rewards the tutor's advice shapes.

The student is SB3's own, and nothing of its algorithm changes. Its rewards become r + gamma * phi' - phi, as in
`agents/guidance/shape.py`: what the tutor would have done too is rewarded at once, and paid back a step later.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from agents.guidance.shape import Shape
from envs.base import State, cat_states, initial_step
from envs.gymnasium_vec import GymnasiumVecEnv
from tutors.advisor import Advisor


class TutoredVecEnv(VecEnvWrapper):
    """Copies of an env whose rewards are shaped by advice, which falls to nothing while the model learns.

    All copies' positions of a step are one request to the tutor; what the advice table knows is not asked again.
    Returns that a Monitor inside the copies records are those of the env itself.

    Args:
        venv: copies of a game of ours, such as envs.gymnasium_api:Connect4-v0, or of a Gymnasium env.
        advisor: of that game, as `open_advisor` yields it.
        game: None for a game of ours; for another one an env gym:ID as `make_env` returns it.
        gamma: the model's discount.
        strength: what the tutor's certain approval is worth as a reward, at first.
        fade_steps: env steps, of all copies together, in which that falls to 0.
    """

    def __init__(
        self,
        venv: VecEnv,
        advisor: Advisor,
        game: GymnasiumVecEnv | None = None,
        gamma: float = 0.99,
        strength: float = 0.2,
        fade_steps: int = 100_000,
    ) -> None:
        super().__init__(venv)
        if not isinstance(venv.action_space, gym.spaces.Discrete):
            raise ValueError(f"the action space is {venv.action_space}; advice is about those of a Discrete one")
        self.first_action = int(venv.action_space.start)
        self.advisor = advisor
        self.game = game
        self.strength = strength
        self.fade_steps = fade_steps
        self.env_steps = 0
        self.shape = Shape(True, "cpu", venv.num_envs, gamma)
        self.shape.strength.fill_(strength)
        self.probs = torch.zeros(venv.num_envs, int(venv.action_space.n))  # the tutor's, of the positions shown

    def reset(self) -> Any:
        """Start a new episode in every copy."""
        obs = self.venv.reset()
        self.shape.potential.zero_()
        self._ask(obs)
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = torch.as_tensor(actions, dtype=torch.int64) - self.first_action
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """Return what the copies return, with shaped rewards."""
        obs, rewards, dones, infos = self.venv.step_wait()
        truncated = torch.tensor([info.get("TimeLimit.truncated", False) for info in infos])
        none = torch.zeros(self.num_envs, 0)
        next_step = initial_step(none, none.bool(), {})._replace(
            reward=torch.from_numpy(rewards), terminated=torch.from_numpy(dones) & ~truncated, truncated=truncated
        )
        shaped, _ = self.shape.reward(next_step, self.actions, self.probs)
        self.env_steps += self.num_envs
        self.shape.strength.fill_(self.strength * max(0.0, 1 - self.env_steps / self.fade_steps))
        self._ask(obs)
        return obs, shaped.numpy(), dones, infos

    def _ask(self, obs: Any) -> None:
        """Ask the tutor about the positions that the copies show, as long as its advice counts."""
        wanted = (self.shape.strength > 0).expand(self.num_envs)
        if wanted[0]:
            self.probs = self.advisor.advise(self._positions(obs), wanted).probs
        else:
            self.probs = torch.zeros_like(self.probs)

    def _positions(self, obs: Any) -> State:
        """Return the state of each copy, as the advisor's prompt view reads it."""
        if self.game is None:
            return cat_states(self.venv.get_attr("state"))
        masks = self.venv.env_method("action_masks") if self.game.has_mask_method else None
        return self.game.positions(self.game.observations.split(obs)[0], masks)
