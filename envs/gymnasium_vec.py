"""Any Gymnasium env with a discrete action space as one of ours, so that students can be compared with others' results.

Gymnasium steps the copies one after the other on the CPU; their randomness is Gymnasium's, seeded by the run's seed
and the copy's id.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation
from torch import Tensor

from envs.base import UNKNOWN_LIMIT, Env, Spec, State, Step, initial_step


class GymnasiumVecEnv(Env):
    """N copies of the Gymnasium env `id`; the first call must be `reset`.

    Observations that are not a Box are flattened by Gymnasium's wrapper. The state is `obs` alone.

    Args:
        id: as for `gym.make`.
        num_envs: N.
        seed: of all randomness, with each copy's id.
        device: of all tensors.
        first_env_id: id of the first copy.
        options: keyword arguments of the env.

    Raises:
        ValueError: the env cannot be made, or its actions are not discrete.
    """

    is_compilable = False

    def __init__(
        self, id: str, num_envs: int, seed: int = 0, device: str = "cpu", first_env_id: int = 0, **options: Any
    ) -> None:
        super().__init__(num_envs, seed, device, first_env_id)
        self.envs = make_sync_envs(id, num_envs, options)
        actions, space = self.envs.single_action_space, self.envs.single_observation_space
        if not isinstance(actions, gym.spaces.Discrete):
            raise ValueError(f"gym:{id} has the action space {actions}; a student requires a Discrete one")
        limit = options.get("max_episode_steps", self.envs.spec.max_episode_steps if self.envs.spec else None)
        self.spec = Spec(f"gym:{id}", 0, tuple(space.shape or ()), int(actions.n), 0, 0, limit or UNKNOWN_LIMIT)
        self.game = self  # it has `spec` and `observe`, which is all that prompt views and replay buffers use
        self.first_action = int(actions.start)
        self.action_mask = torch.ones(num_envs, self.spec.num_actions, dtype=torch.bool, device=device)
        self.state = {"obs": torch.zeros(num_envs, *self.spec.obs_shape, device=device)}

    def reset(self) -> Step:
        env_ids = range(self.first_env_id, self.first_env_id + self.num_envs)
        sequences = [np.random.SeedSequence([self.seed, env_id, int(self.steps)]) for env_id in env_ids]
        seeds: Any = [int(sequence.generate_state(1)[0]) for sequence in sequences]
        obs, _ = self.envs.reset(seed=seeds)
        self.steps += 1
        self.state = {"obs": self._tensor(obs).float()}
        return initial_step(self.state["obs"], self.action_mask, self.state)

    def current(self) -> Step:
        """Reset all copies: the current state of a Gymnasium env cannot be read."""
        return self.reset()

    def step(self, action: Tensor) -> Step:
        obs, reward, terminated, truncated, info = self.envs.step(action.cpu().numpy() + self.first_action)
        final_obs = obs.copy()
        for row in np.flatnonzero(terminated | truncated):
            final_obs[row] = info["final_obs"][row]
        self.steps += 1
        self.state = {"obs": self._tensor(obs).float()}
        final_state = {"obs": self._tensor(final_obs).float()}
        return Step(
            self.state["obs"],
            self.action_mask,
            self._tensor(reward).float(),
            self._tensor(terminated),
            self._tensor(truncated & ~terminated),
            final_state["obs"],
            self.action_mask,
            self.state,
            final_state,
        )

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """Return (obs, action_mask) of a state, as `Game.observe` does."""
        num_rows = len(state["obs"])
        return state["obs"].clone(), torch.ones(num_rows, self.spec.num_actions, dtype=torch.bool, device=self.device)

    def state_dict(self) -> dict[str, object]:
        """Return the number of steps, from which the seeds of the next reset follow."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps.copy_(state["steps"])

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def make_sync_envs(id: str, num_envs: int, options: dict[str, Any]) -> gym.vector.VectorEnv:
    """Return Gymnasium's vector of envs, with observations flattened where they are not a Box."""
    try:
        with gym.make(id, **options) as env:
            is_box = isinstance(env.observation_space, gym.spaces.Box)
        return gym.make_vec(
            id,
            num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            wrappers=[] if is_box else [FlattenObservation],
            **options,
        )
    except Exception as error:  # whatever a third party's env raises
        raise ValueError(f"gym:{id} cannot be made: {error}") from error
