"""How good a player is: the returns of whole games."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agents import Agent
from envs.base import Env, Step
from envs.blackjack import Blackjack
from envs.blackjack_exact import value_of_greedy
from envs.rng import CounterRNG, sample_legal
from tutors.advisor import Advisor

Policy = Callable[[Env, Step], Tensor]  # the actions (N,) to take in the games as they stand


@dataclass(frozen=True)
class Result:
    """The mean return of a number of games; of none where it could be worked out without playing."""

    mean_return: float
    stderr: float
    episodes: int

    def interval(self) -> tuple[float, float]:
        """The mean's 95 % interval, by the normal approximation."""
        return self.mean_return - 1.96 * self.stderr, self.mean_return + 1.96 * self.stderr

    def __str__(self) -> str:
        if not self.episodes:
            return f"{self.mean_return:+.6f}, exactly"
        low, high = self.interval()
        return f"{self.mean_return:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}], {self.episodes:,} games"


def play(policy: Policy, env: Env) -> Result:
    """Play each copy's first game to its end. One game a copy: many short games cannot crowd out long ones."""
    step = env.reset()
    returns = torch.zeros(env.num_envs, device=env.device)
    playing = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    while playing.any():
        step = env.step(policy(env, step))
        returns += step.reward * playing
        playing &= ~(step.terminated | step.truncated)
    spread = returns.std().item() if env.num_envs > 1 else math.nan
    return Result(returns.mean().item(), spread / math.sqrt(env.num_envs), env.num_envs)


def student(agent: Agent) -> Policy:
    """The student alone: no advice, no exploration."""
    return lambda env, step: agent.greedy(step.obs, step.action_mask)


def judge(agent: Agent, env: Env) -> Result:
    """Return how good the student is alone: by playing, or exactly where the game is Blackjack."""
    if isinstance(env.game, Blackjack):
        return Result(value_of_greedy(env.game, agent.greedy, env.device), 0.0, 0)
    return play(student(agent), env)


def tutor_alone(desk: Advisor, rng: CounterRNG) -> Policy:
    """The tutor's best action everywhere; a random legal one where there is no advice."""

    def policy(env: Env, step: Step) -> Tensor:
        advice = desk.advise(env.state, torch.ones_like(step.terminated))
        return torch.where(advice.valid, advice.probs.argmax(1), random_play(rng)(env, step))

    return policy


def random_play(rng: CounterRNG) -> Policy:
    """All legal actions equally likely."""
    return lambda env, step: sample_legal(step.action_mask, rng.uniform(env.steps, 1)[:, 0])
