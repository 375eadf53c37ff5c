"""Any Gymnasium env with a discrete action space as one of ours, so that students can be compared with anyone's.

Its copies are stepped one after the other on the CPU by Gymnasium itself; a game's luck is Gymnasium's, seeded by the
run's seed and the game's id.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation
from torch import Tensor

from envs.base import Env, Spec, State, Step

UNKNOWN = 1 << 62  # a limit where none is told: an env may still truncate a game by itself, so there is a clock


class GymEnv(Env):
    """N copies of the Gymnasium env `id`, in the form of `envs.base.Env`; before the first step comes `reset`.

    Observations that are not a Box are flattened as Gymnasium does it. The state that a view is given is `obs`.

    Args:
        id: as for `gym.make`.
        options: keyword arguments of the env.

    Raises:
        ValueError: there is no such env, or its actions are not discrete.
    """

    def __init__(
        self, id: str, num_envs: int, seed: int = 0, device: str = "cpu", first_env_id: int = 0, **options: Any
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; there must be at least one game")
        try:
            with gym.make(id, **options) as one:
                flat = not isinstance(one.observation_space, gym.spaces.Box)
            self.games = gym.make_vec(
                id,
                num_envs,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
                wrappers=[FlattenObservation] if flat else [],
                **options,
            )
        except Exception as error:  # whatever somebody else's env raises
            raise ValueError(f"gym:{id} cannot be made: {error}") from error
        actions, space = self.games.single_action_space, self.games.single_observation_space
        if not isinstance(actions, gym.spaces.Discrete):
            raise ValueError(f"gym:{id} has the actions {actions}; a student wants a Discrete space")
        limit = options.get("max_episode_steps", self.games.spec.max_episode_steps if self.games.spec else None)
        self.spec = Spec(f"gym:{id}", 0, tuple(space.shape or ()), int(actions.n), 0, 0, limit or UNKNOWN)
        self.game: Any = self  # what a view is asked with
        self.num_envs, self.device, self.first_action = num_envs, device, int(actions.start)
        self.seed, self.first_env_id = seed, first_env_id
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.action_mask = torch.ones(num_envs, self.spec.num_actions, dtype=torch.bool, device=device)
        self.state: State = {"obs": torch.zeros(num_envs, *self.spec.obs_shape, device=device)}

    def reset(self) -> Step:
        """Begin all games afresh; the second time they are others than the first."""
        ids = range(self.first_env_id, self.first_env_id + self.num_envs)
        seeds = [np.random.SeedSequence([self.seed, game, int(self.steps)]) for game in ids]
        each: Any = [int(one.generate_state(1)[0]) for one in seeds]
        obs, _ = self.games.reset(seed=each)
        self.steps += 1
        nothing = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return self._step(obs, obs, nothing.float(), nothing, nothing)

    def step(self, action: Tensor) -> Step:
        """Play one action (N,) int64 in every game; a game that ends begins anew at once."""
        obs, reward, terminated, truncated, info = self.games.step(action.cpu().numpy() + self.first_action)
        final = obs.copy()
        for game in np.flatnonzero(terminated | truncated):
            final[game] = info["final_obs"][game]
        self.steps += 1
        done = [self._tensor(flag) for flag in (terminated, truncated & ~terminated)]
        return self._step(obs, final, self._tensor(reward).float(), *done)

    def _step(self, obs: np.ndarray, final: np.ndarray, reward: Tensor, terminated: Tensor, truncated: Tensor) -> Step:
        seen, last = self._tensor(obs).float(), self._tensor(final).float()
        self.state = {"obs": seen}
        return Step(
            seen, self.action_mask, reward, terminated, truncated, last, self.action_mask, self.state, {"obs": last}
        )

    def current(self) -> Step:
        """Begin all games afresh: how somebody else's games stand cannot be known."""
        return self.reset()

    def state_dict(self) -> dict[str, object]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps.copy_(state["steps"])

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """Return what is seen of a state, as `envs.base.Game` does."""
        return state["obs"].clone(), torch.ones(
            len(state["obs"]), self.spec.num_actions, dtype=torch.bool, device=self.device
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)
