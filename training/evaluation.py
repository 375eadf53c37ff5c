"""How good a policy is: the mean return of whole episodes.

Where an env sets no limit to its episodes, some may never end: they are cut after MAX_TIME_STEPS.
Of the student alone only those time steps are played that can change a return: a copy whose episode is over is left
out, and so is a snake that goes in circles, which would go on for its 4,000 time steps and eat nothing.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents import Agent
from envs.base import UNKNOWN_LIMIT, Env, State, Step, VecEnv, initial_step, num_rows, select_rows
from envs.blackjack import Blackjack
from envs.blackjack_exact import value_of_greedy
from envs.opponents import opponent_name
from envs.rng import CounterRNG, sample_legal
from envs.snake import Snake
from tutors.advisor import Advisor
from tutors.report import wilson

MAX_TIME_STEPS = 1000  # of an episode for which no limit is known
MIN_COPIES = 64  # that are worth leaving out of a step: fewer cost as much as none
# Games without chance between two rewards, whose states tell the rewards so far: if a student without exploration comes
# back to a state, it has had no reward since, and does for ever what it did. A circle is looked for in so many time
# steps; one that takes longer, or began later, is found in the next ones.
CIRCLES: dict[type, int] = {Snake: 128}
Policy = Callable[[Env, Step], Tensor]  # the actions (N,) to take in all env copies
EXACT_EVALUATORS: dict[type, Callable[..., float]] = {Blackjack: value_of_greedy}  # games small enough to enumerate


@dataclass(frozen=True)
class Result:
    """The mean return of a number of episodes; of 0 episodes where it was computed exactly."""

    mean_return: float
    stderr: float
    episodes: int
    low: float  # of the mean's 95 % interval; nan where one episode says nothing
    high: float
    cut: int = 0  # of those episodes: they did not end within MAX_TIME_STEPS

    def scalars(self) -> dict[str, float]:
        """Return what is logged, by tag."""
        values = {f"eval/{name}": getattr(self, name) for name in ("mean_return", "stderr", "episodes")}
        if self.cut:
            values["eval/cut"] = self.cut
        return values | {f"eval_interval/{name}": getattr(self, name) for name in ("low", "high")}

    def __str__(self) -> str:
        if not self.episodes:
            return f"{self.mean_return:+.6f}, exact"
        counted = f"{self.episodes:,} episode{'s' * (self.episodes != 1)}"
        if self.cut:
            counted += f", {self.cut:,} of them cut after {MAX_TIME_STEPS:,} time steps"
        if math.isnan(self.low):
            return f"{self.mean_return:+.3f}, {counted}"
        return f"{self.mean_return:+.3f}, 95 % interval [{self.low:+.3f}, {self.high:+.3f}], {counted}"


def estimate(returns: Tensor, return_range: tuple[float, float] | None) -> Result:
    """Return the mean of the returns of some episodes, (N,), with its interval.

    Args:
        return_range: the lowest and the highest return; None: those that occurred take their place.
    """
    number, mean = len(returns), returns.mean().item()
    stderr = returns.std().item() / math.sqrt(number) if number > 1 else math.nan
    if return_range is None and number > 1:
        return_range = (returns.min().item(), returns.max().item())
    return Result(mean, stderr, number, *mean_interval(mean, stderr, number, return_range))


def mean_interval(
    mean: float, stderr: float, number: int, return_range: tuple[float, float] | None
) -> tuple[float, float]:
    """Return the 95 % interval of a mean of `number` returns, which does not leave their range; nan without a range.

    It is Wilson's, of the mean's place in the range, for an effective number of returns: as many more as their variance
    is smaller than that of returns at the two ends of the range alone (Kish 1965, "Survey Sampling", section 8.2). So
    it is Wilson's own where an episode is won or lost, and has a width even where all were won. Where all returns
    are the same within the range, their variance is unknown; it counts as if one in `number` lay at an end.
    """
    if return_range is None:
        return math.nan, math.nan
    lowest, highest = return_range
    width = highest - lowest
    if width == 0:
        return mean, mean
    share = min(max((mean - lowest) / width, 0.0), 1.0)
    largest = share * (1 - share)  # the variance of returns at the two ends alone
    effective = float(number)
    if largest > 0 and number > 1:
        variance = (number - 1) * (stderr / width) ** 2
        effective *= largest / max(min(variance, largest), largest / number)
    low, high = wilson(share * effective, effective)
    return lowest + width * low, lowest + width * high


class Transition(NamedTuple):
    """One time step of N env copies, each in its first episode or past it."""

    step: Step
    action: Tensor  # (N,) int64
    next_step: Step
    running: Tensor  # (N,) bool: the first episode was not over before
    over: Tensor  # (N,) bool: it is over now
    cut: Tensor  # (N,) bool: it is over although it has not ended
    copies: Tensor  # (N,) int64: which of all env copies these are


def first_episodes(policy: Policy, env: Env, only_returns: bool = False) -> Iterator[Transition]:
    """Play the first episode of each env copy, to its end or for MAX_TIME_STEPS where no limit is known.

    Args:
        policy: whose episodes they are.
        env: the copies.
        only_returns: whether to leave out what changes no return; for a policy that looks at the step alone, without
            chance. It may leave out copies, and the env has fewer of them afterwards.
    """
    limit = env.spec.time_limit
    max_steps = MAX_TIME_STEPS if limit in (None, UNKNOWN_LIMIT) else limit
    circle = CIRCLES.get(type(env.game)) if only_returns else None
    step = env.reset()
    seen = step.state
    running = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    copies = torch.arange(env.num_envs, device=env.device)
    for time_step in itertools.count(1):
        action = policy(env, step)
        next_step = env.step(action)
        ended = next_step.terminated | next_step.truncated
        cut = running & ~ended if time_step == max_steps else torch.zeros_like(ended)
        over = running & (ended | cut)
        if circle is not None:
            over |= running & equal_rows(next_step.state, seen)
            seen = next_step.state if time_step % circle == 0 else seen
        yield Transition(step, action, next_step, running, over, cut, copies)
        step, running = next_step, running & ~over
        left = int(running.sum())
        if time_step == max_steps or not left:
            break
        if only_returns and isinstance(env, VecEnv) and MIN_COPIES <= env.num_envs >= 2 * left:
            kept = running.nonzero()[:, 0]
            env.keep_rows(kept)
            step = initial_step(step.obs[kept], step.action_mask[kept], select_rows(step.state, kept))
            running, copies, seen = running[kept], copies[kept], select_rows(seen, kept)
    if cut.any():
        warn_of_cut(env.spec.name)


def equal_rows(one: State, other: State) -> Tensor:
    """Return which rows of two states are equal, (N,) bool."""
    return torch.stack([(one[name] == other[name]).view(num_rows(one), -1).all(1) for name in one]).all(0)


@cache
def warn_of_cut(env: str) -> None:
    """Warn, once, that episodes of an env were cut."""
    logging.getLogger(__name__).warning(
        f"{env} sets no limit to its episodes: those that went on after {MAX_TIME_STEPS:,} time steps were cut. "
        "--env-kwargs max_episode_steps=N sets one"
    )


def describe_game(env: Env) -> str:
    """Return what is played, against whom, and what a return counts."""
    spec, opponent = env.spec, opponent_name(getattr(env.game, "opponent", None))
    against = f" against {opponent}" if opponent else ""
    return f"{spec.shown_title()}{against}" + (f"; return: {spec.return_unit}" if spec.return_unit else "")


def run_episodes(
    policy: Policy, env: Env, only_returns: bool = False, record: Callable[[Transition], None] | None = None
) -> Result:
    """Run the first episode of each env copy. One per copy: short episodes cannot crowd out long ones.

    Args:
        policy, env, only_returns: as in `first_episodes`.
        record: called with each time step.
    """
    returns = torch.zeros(env.num_envs, device=env.device)
    cut = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
    for transition in first_episodes(policy, env, only_returns):
        returns.index_add_(0, transition.copies, transition.next_step.reward * transition.running)
        cut = transition.cut
        if record is not None:
            record(transition)
    return replace(estimate(returns, env.spec.return_range), cut=int(cut.sum()))


def evaluate_student(agent: Agent, env: Env) -> Result:
    """Return how good the student alone is: exactly where the game allows that, else by running episodes."""
    game: Any = env.game
    if (exact := EXACT_EVALUATORS.get(type(game))) is not None:
        value = exact(game, agent.greedy, env.device)
        return Result(value, 0.0, 0, value, value)
    return run_episodes(student_policy(agent), env, only_returns=True)


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
