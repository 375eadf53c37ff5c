"""A trained student outside of its run: observations in, actions out."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import Agent
from envs.base import Env
from envs.gymnasium_vec import GymnasiumVecEnv
from training.checkpoint import check_fit, load_checkpoint
from training.config import Config, evaluation_env, find_device, load_config, make_agent, make_env
from training.evaluation import Result, evaluate_student
from training.hub import local_run


class Student:
    """A trained student, without a tutor.

    Args:
        agent: the student itself.
        env: one copy of what it was trained in.
        config: of its run.
    """

    def __init__(self, agent: Agent, env: Env, config: Config) -> None:
        self.agent = agent
        self.env = env
        self.config = config
        self.generator = torch.Generator(env.device).manual_seed(config.seed)

    def predict(
        self,
        obs: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_mask: Any = None,
    ) -> tuple[np.ndarray, Any]:
        """Return (actions, `state`) as a model of Stable-Baselines3 does, for one observation or a batch of them.

        Args:
            obs: as the env shows it: of a Gymnasium env (gym:ID) as that env itself, of ours as (…) or (N, …).
            state: returned as it is, since students have no memory.
            episode_start: not used, for the same reason.
            deterministic: the best actions; else a sample of the policy, or DQN's with its exploration.
            action_mask: (A,) or (N, A), which actions are legal; None: as `obs` says, or all.

        Raises:
            ValueError: an observation or a mask has another shape than the env's.
        """
        rows, masks, is_single = self._rows(obs, action_mask)
        if deterministic:
            chosen = self.agent.greedy(rows, masks)
        else:
            shape = (len(rows), self.env.spec.num_actions + 1)
            u = torch.rand(shape, generator=self.generator, device=self.env.device)
            chosen = self.agent.explore(rows, masks, u)
        actions = chosen.cpu().numpy()
        if isinstance(self.env, GymnasiumVecEnv):
            actions = np.stack(self.env.actions.take(actions.tolist()))
        return (actions[0] if is_single else actions), state

    def evaluate(self, episodes: int = 1000) -> Result:
        """Return how good the student is, as `evaluate.py` measures it."""
        return evaluate_student(self.agent, evaluation_env(self.config, episodes, self.env.device))

    def _rows(self, obs: Any, action_mask: Any) -> tuple[Tensor, Tensor, bool]:
        """Return observations (N, *obs_shape), masks (N, A), and whether it was one observation alone."""
        spec, device = self.env.spec, self.env.device
        if isinstance(self.env, GymnasiumVecEnv):
            raws, is_single = self.env.observations.split(obs)
            raw_masks = [action_mask] if is_single and action_mask is not None else action_mask
            return *self.env.observe(self.env.positions(raws, raw_masks)), is_single
        rows = torch.as_tensor(obs, dtype=torch.float32, device=device)
        if is_single := rows.shape == spec.obs_shape:
            rows = rows[None]
        if rows.shape[1:] != spec.obs_shape:
            raise ValueError(f"the observation is of shape {tuple(rows.shape)}; {spec.name} has {spec.obs_shape}")
        if action_mask is None:
            legal = torch.ones(len(rows), spec.num_actions, dtype=torch.bool, device=device)
        else:
            legal = torch.as_tensor(action_mask, device=device).bool().reshape(-1, spec.num_actions)
        if len(legal) != len(rows):
            raise ValueError(f"there are {len(legal)} action masks for {len(rows)} observations")
        return rows, legal, is_single


def load(run_dir: Path | str, device: str = "cpu") -> Student:
    """Return the student of the newest checkpoint of a run, a run directory or `hub:NAME`.

    Raises:
        ValueError: there is no run, or its checkpoint is damaged or of another version.
    """
    run_dir, device = local_run(run_dir), find_device(device)
    config = load_config(run_dir)
    return Student(load_agent(run_dir, config, device), evaluation_env(config, 1, device), config)


def load_agent(run_dir: Path, config: Config, device: str) -> Agent:
    """Return the agent of a run's newest checkpoint.

    Raises:
        ValueError: there is none that fits the config.
    """
    agent = make_agent(config, make_env(config, device))
    state = load_checkpoint(run_dir / "checkpoints", device)
    with check_fit(run_dir):
        agent.load_state_dict(state["agent"])
    return agent
