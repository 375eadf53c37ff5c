"""Whether a tutor's approval ranks good episodes above bad ones.

Approval of an episode is the tutor's mean probability of the actions taken in it. A tutor whose approval ranks episodes
as chance does is no judge of play, however it is followed.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import Env, State, select_rows
from envs.rng import QUERY_STREAM, CounterRNG
from tutors.advisor import Advisor
from tutors.positions import mixed_actions
from tutors.prompts.base import PromptView
from tutors.report import ask

MAX_STEPS = 200  # of an episode; a longer one counts as far as it was played
NUM_RESAMPLES = 1000  # of the bootstrap


class Approval(NamedTuple):
    """How a tutor's approval ranks episodes."""

    auc: float  # share of the pairs with different returns in which the better episode has the higher approval
    interval: tuple[float, float]  # of the AUC, 95 %
    episodes: int  # with advice


class Play(NamedTuple):
    """The first episode of each of N env copies."""

    states: list[State]  # T time steps of N rows
    actions: Tensor  # (T, N) int64
    is_running: Tensor  # (T, N) bool
    returns: Tensor  # (N,) float32


def measure_approval(advisor: Advisor, env: Env, seed: int) -> Approval:
    """Play an episode in each env copy with moves of every strength, ask about all of its positions, and rank."""
    play = play_episodes(env, advisor.view, seed)
    total, steps = torch.zeros_like(play.returns), torch.zeros_like(play.returns)
    for state, actions, is_running in zip(play.states, play.actions, play.is_running, strict=True):
        rows = is_running.nonzero()[:, 0]
        if len(rows):
            advice = ask(advisor, select_rows(state, rows))
            total[rows] += advice.probs.gather(1, actions[rows, None])[:, 0] * advice.valid
            steps[rows] += advice.valid
    has_advice = steps > 0
    approval, returns = (total / steps)[has_advice], play.returns[has_advice]
    return Approval(*rank_auc(approval, returns, seed), len(returns))


def play_episodes(env: Env, view: PromptView, seed: int) -> Play:
    """Return the first episode of each env copy; in copy i of n a move is the expert's with probability i / (n - 1)."""
    rng = CounterRNG(seed, torch.arange(env.num_envs, device=env.device), QUERY_STREAM)
    skill = torch.linspace(0, 1, env.num_envs, device=env.device)
    step = env.reset()
    states: list[State] = []
    actions: list[Tensor] = []
    running: list[Tensor] = []
    is_running, returns = torch.ones_like(skill, dtype=torch.bool), torch.zeros_like(skill)
    while is_running.any() and len(states) < MAX_STEPS:
        states.append({name: rows.clone() for name, rows in step.state.items()})
        actions.append(mixed_actions(step, view, skill, rng.uniform(len(actions), 2)))
        running.append(is_running)
        step = env.step(actions[-1])
        returns = returns + step.reward * is_running
        is_running = is_running & ~(step.terminated | step.truncated)
    return Play(
        [{name: rows.cpu() for name, rows in state.items()} for state in states],
        torch.stack(actions).cpu(), torch.stack(running).cpu(), returns.cpu(),
    )  # fmt: skip


def rank_auc(scores: Tensor, returns: Tensor, seed: int) -> tuple[float, tuple[float, float]]:
    """Return the share of ordered pairs that scores (N,) put in the order of returns (N,), and its 95 % interval.

    Equal scores are half in order. The interval is that of the percentile bootstrap over episodes (Efron & Tibshirani
    1993). Without two different returns the share is nan.
    """
    better = (returns[:, None] > returns).double()
    in_order = better * ((scores[:, None] > scores).double() + 0.5 * (scores[:, None] == scores))
    if not better.any():
        return math.nan, (0.0, 1.0)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(scores), (NUM_RESAMPLES, len(scores)), generator=generator)
    weights = torch.stack([one.bincount(minlength=len(scores)) for one in drawn]).double()
    shares = (weights @ in_order * weights).sum(1) / (weights @ better * weights).sum(1)
    low, high = shares[~shares.isnan()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return (in_order.sum() / better.sum()).item(), (low, high)
