"""Probe episodes: what the tutor alone, and the student alone, come to in envs of their own.

A probe's env steps are those of the run. What the tutor did in it is kept, to pretrain the student on it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import envs
from agents import Agent
from agents.distributed import all_reduce_sum, rank, world_size
from agents.guidance.trust import Returns
from envs.base import Env, Step, VecEnv
from envs.rng import PROBE_STREAM, CounterRNG
from training.config import Config

PROBE_SEED = 2_000_003  # added to a run's seed: probe episodes are never those of training
MAX_COPIES = 64  # episodes of one probe, all ranks together
MAX_HORIZON = 500  # time steps
MIN_HORIZON = 16  # time steps: rather fewer copies than shorter episodes

Advise = Callable[[Step, Tensor], Tensor]  # advice (N, A) about the copies that play on, (N,) bool


class Demonstrations(NamedTuple):
    """What the tutor advised in B positions of its own play."""

    obs: Tensor  # (B, *obs_shape) float32
    action_mask: Tensor  # (B, A) bool
    advice: Tensor  # (B, A) float32, zeros where there was none

    def rows(self, rows: Tensor | slice) -> "Demonstrations":
        """Return some rows, (K,) int64 or a slice."""
        return Demonstrations(*(column[rows] for column in self))

    def plus(self, other: "Demonstrations") -> "Demonstrations":
        """Return the rows of both."""
        return Demonstrations(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


class Probe:
    """Plays whole episodes, at most `horizon` time steps of each.

    Args:
        config: the run's options.
        env: the env in which the student learns; a probe plays the same game.
        max_steps: env steps that one probe may take, all ranks together.
    """

    def __init__(self, config: Config, env: Env, max_steps: int) -> None:
        copies = max(min(MAX_COPIES, max_steps // MIN_HORIZON), 1)
        self.horizon = min(max(max_steps // copies, 1), MAX_HORIZON)
        num_envs = max(copies // world_size(), 1)
        seed, first = config.seed + PROBE_SEED, rank() * num_envs
        if isinstance(env, VecEnv):
            self.env: Env = VecEnv(env.game, num_envs, seed, env.device, first, env.spec.time_limit)
        else:
            options = envs.parse_options(config.env_kwargs)
            self.env = envs.make(config.env, num_envs, seed, env.device, first, **options)
        ids = torch.arange(first, first + num_envs, device=env.device)
        self.rng = CounterRNG(config.seed, ids, PROBE_STREAM)

    @torch.no_grad()
    def play(self, agent: Agent, advise: Advise | None) -> tuple[Returns, int, int, Demonstrations]:
        """Play one episode in each copy.

        Args:
            agent: the student, who acts where there is no advice.
            advise: returns advice about the copies that play on. None: the student plays alone.

        Returns:
            the returns, the env steps and how many of them were advised, of all ranks; this rank's demonstrations.
        """
        env, spec = self.env, self.env.spec
        step = env.reset()
        running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        returns = torch.zeros(env.num_envs, device=env.device)
        record: list[Demonstrations] = []
        counts = torch.zeros(2, dtype=torch.float64, device=env.device)  # env steps, and those that were advised
        for _ in range(self.horizon):
            own = agent.explore(step.obs, step.action_mask, self.rng.uniform(env.steps, spec.num_actions + 1))
            advice = torch.zeros(step.action_mask.shape, device=env.device)
            if advise is not None:
                advice = advise(step, running)
            has_advice = advice.sum(1) > 0
            action = torch.where(has_advice, advice.argmax(1), own)
            next_step = env.step(action)
            returns += next_step.reward * running
            done = next_step.terminated | next_step.truncated
            rows = running.nonzero()[:, 0]
            record.append(Demonstrations(step.obs, step.action_mask, advice).rows(rows))
            counts += torch.stack([running.sum(), (has_advice & running).sum()])
            running = running & ~done
            step = next_step
            if not running.any():
                break
        sums = torch.stack([torch.ones_like(returns), returns, returns * returns]).double().sum(1)
        count, total, square, steps, advised = all_reduce_sum(torch.cat([sums, counts])).tolist()
        demonstrations = Demonstrations(*map(torch.cat, zip(*record, strict=True)))
        return Returns(count, total, square), int(steps), int(advised), demonstrations

    def state_dict(self) -> dict[str, object]:
        """Return what the next probe's episodes depend on."""
        return {"steps": self.env.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        self.env.steps.copy_(state["steps"])
