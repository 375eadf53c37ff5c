"""How good a policy is: the mean return of whole episodes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents import Agent
from envs.base import Env, Step
from envs.blackjack import Blackjack
from envs.blackjack_exact import value_of_greedy
from envs.rng import CounterRNG, sample_legal
from tutors.advisor import Advisor

Policy = Callable[[Env, Step], Tensor]  # the actions (N,) to take in all env copies
EXACT_EVALUATORS: dict[type, Callable[..., float]] = {Blackjack: value_of_greedy}  # games small enough to enumerate


@dataclass(frozen=True)
class Result:
    """The mean return of a number of episodes; of 0 episodes where it was computed exactly."""

    mean_return: float
    stderr: float
    episodes: int

    def interval(self) -> tuple[float, float]:
        """Return the mean's 95 % interval, by the normal approximation."""
        return self.mean_return - 1.96 * self.stderr, self.mean_return + 1.96 * self.stderr

    def __str__(self) -> str:
        if not self.episodes:
            return f"{self.mean_return:+.6f}, exact"
        low, high = self.interval()
        return f"{self.mean_return:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}], {self.episodes:,} episodes"


def run_episodes(policy: Policy, env: Env) -> Result:
    """Run the first episode of each env copy. One per copy: short episodes cannot crowd out long ones."""
    step = env.reset()
    returns = torch.zeros(env.num_envs, device=env.device)
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    while running.any():
        step = env.step(policy(env, step))
        returns += step.reward * running
        running &= ~(step.terminated | step.truncated)
    std = returns.std().item() if env.num_envs > 1 else math.nan
    return Result(returns.mean().item(), std / math.sqrt(env.num_envs), env.num_envs)


def evaluate_student(agent: Agent, env: Env) -> Result:
    """Return how good the student alone is: exactly where the game allows that, else by running episodes."""
    game: Any = env.game
    if (exact := EXACT_EVALUATORS.get(type(game))) is not None:
        return Result(exact(game, agent.greedy, env.device), 0.0, 0)
    return run_episodes(student_policy(agent), env)


def student_policy(agent: Agent) -> Policy:
    """Return the student's policy: no advice, no exploration."""
    return lambda env, step: agent.greedy(step.obs, step.action_mask)


def tutor_policy(advisor: Advisor, rng: CounterRNG) -> Policy:
    """Return the policy that takes the tutor's best action, and a random legal one where there is no advice."""

    def policy(env: Env, step: Step) -> Tensor:
        advice = advisor.advise(env.state, torch.ones_like(step.terminated))
        return torch.where(advice.valid, advice.probs.argmax(1), random_policy(rng)(env, step))

    return policy


def random_policy(rng: CounterRNG) -> Policy:
    """Return the policy under which all legal actions are equally likely."""
    return lambda env, step: sample_legal(step.action_mask, rng.uniform(env.steps, 1)[:, 0])
