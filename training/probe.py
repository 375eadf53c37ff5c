"""Probe episodes: what the tutor alone, and the student alone, come to in envs of their own.

A probe's env steps are those of the run. What the tutor did in it is kept, to pretrain the student on it.
"""

from collections.abc import Callable, Sequence
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


class Result(NamedTuple):
    """What came of some episodes."""

    returns: Returns
    steps: int  # env steps
    advised: int  # env steps in which advice was followed


def confident(advice: Tensor, least: Tensor) -> Tensor:
    """Return advice (N, A) whose largest probability is at least `least`, 0-d or (N,), and zeros in place of others."""
    return advice * (advice.amax(1) >= least)[:, None]


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
        self.copies = num_envs * world_size()
        seed, first = config.seed + PROBE_SEED, rank() * num_envs
        if isinstance(env, VecEnv):
            self.env: Env = VecEnv(env.game, num_envs, seed, env.device, first, env.spec.time_limit)
        else:
            options = envs.parse_options(config.env_kwargs)
            self.env = envs.make(config.env, num_envs, seed, env.device, first, **options)
        ids = torch.arange(first, first + num_envs, device=env.device)
        self.rng = CounterRNG(config.seed, ids, PROBE_STREAM)

    @torch.no_grad()
    def play(
        self, agent: Agent, advise: Advise | None, confidences: Sequence[float] = (0.0,), copies: int = MAX_COPIES
    ) -> tuple[list[Result], Demonstrations]:
        """Play one episode in each of the first copies.

        Args:
            agent: the student, who acts where there is no advice.
            advise: returns advice about the copies that play on. None: the student plays alone.
            confidences: shared out between the copies in turn; a copy takes no advice below its own.
            copies: how many play, of all ranks.

        Returns:
            what came of it at each confidence, on all ranks; this rank's demonstrations.
        """
        env, spec = self.env, self.env.spec
        ids = env.first_env_id + torch.arange(env.num_envs, device=env.device)
        group = ids % len(confidences)
        least = torch.tensor(confidences, device=env.device)[group]
        step = env.reset()
        plays = running = ids < copies
        returns = torch.zeros(env.num_envs, device=env.device)
        record: list[Demonstrations] = []
        counts = torch.zeros(env.num_envs, 2, dtype=torch.float64, device=env.device)  # env steps, and advised ones
        for _ in range(self.horizon):
            own = agent.explore(step.obs, step.action_mask, self.rng.uniform(env.steps, spec.num_actions + 1))
            advice = torch.zeros(step.action_mask.shape, device=env.device)
            if advise is not None:
                advice = confident(advise(step, running), least)
            has_advice = advice.sum(1) > 0
            action = torch.where(has_advice, advice.argmax(1), own)
            next_step = env.step(action)
            returns += next_step.reward * running
            done = next_step.terminated | next_step.truncated
            rows = running.nonzero()[:, 0]
            record.append(Demonstrations(step.obs, step.action_mask, advice).rows(rows))
            counts += torch.stack([running, has_advice & running], 1)
            running = running & ~done
            step = next_step
            if not running.any():
                break
        columns = torch.cat([torch.stack([plays, returns, returns * returns], 1).double(), counts], 1)
        sums = torch.zeros(len(confidences), columns.shape[1], dtype=torch.float64, device=env.device)
        results = [
            Result(Returns(*row[:3]), int(row[3]), int(row[4]))
            for row in all_reduce_sum(sums.index_add(0, group, columns)).tolist()
        ]
        return results, Demonstrations(*map(torch.cat, zip(*record, strict=True)))

    def state_dict(self) -> dict[str, object]:
        """Return what the next probe's episodes depend on."""
        return {"steps": self.env.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        self.env.steps.copy_(state["steps"])
