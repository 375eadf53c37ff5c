"""Sample the positions of a game that are worth asking a tutor about."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from envs.base import Env, State, Step, cat_states, num_rows, select_rows
from envs.rng import QUERY_STREAM, SAMPLING_STREAM, CounterRNG, sample_legal
from tutors.prompts.base import PromptView

NUM_ENVS = 256  # env copies that are played while positions are collected
STEPS_PER_ROUND = 100  # time steps between two counts of the different positions
OVERSAMPLING = 4  # times as many different positions as are wanted are collected before some are drawn
PLAY_DEPTH = 2  # how far the expert looks ahead while it only plays
VISITS_PER_POSITION = 100  # times as many positions are visited as are wanted, to tell frequent ones from rare ones
RANDOM_SHARE = 0.1  # of a student's actions: without exploration it would play few different episodes
MAX_ROUNDS_WITHOUT_NEW = 4  # rounds without a new position after which no more is expected

Play = Callable[[Env, PromptView, int], Iterator[State]]  # positions of play from a seed, without end


def unique_rows(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct keys (B, 2) in order, each row's place among them, and each one's first row."""
    distinct, inverse = keys.unique(dim=0, return_inverse=True)
    first = torch.full_like(distinct[:, 0], len(keys))
    first.scatter_reduce_(0, inverse, torch.arange(len(keys), device=keys.device), "amin")
    return distinct, inverse, first


def unique_positions(view: PromptView, parts: Sequence[State]) -> tuple[State, Tensor]:
    """Join states of B positions and keep the first of each prompt, in the order of their keys.

    Returns (the positions that are kept, which of these has the same prompt as each of the B, (B,) int64).
    """
    joined = cat_states(parts)
    _, inverse, first = unique_rows(view.key(view.canonicalize(joined)[0]))
    return select_rows(joined, first), inverse


def sample_positions(env: Env, view: PromptView, count: int, seed: int) -> State:
    """Return `count` positions of mixed play, as the game represents them, on the CPU; fewer if there are fewer.

    No two have the same prompt, and all different ones that were visited are equally likely to be among those
    returned: play goes on until there are OVERSAMPLING times as many as are wanted, or a round brings no new one.

    Args:
        env: the env copies; they are reset.
        view: the prompt view.
        count: number of positions, at least 1.
        seed: of the play and of the draw.
    """
    play, known = mixed_play(env, view, seed), 0
    pool: list[State] = []
    while True:
        pool = [unique_positions(view, [*pool, *itertools.islice(play, STEPS_PER_ROUND)])[0]]
        found = num_rows(pool[0])
        if found >= OVERSAMPLING * count or found == known:
            break
        known = found
    u = CounterRNG(seed, torch.arange(found, device=env.device), SAMPLING_STREAM).uniform(0, 1)[:, 0]
    return {name: rows.cpu() for name, rows in select_rows(pool[0], u.argsort(stable=True)[:count]).items()}


def mixed_play(env: Env, view: PromptView, seed: int) -> Iterator[State]:
    """Reset the envs, play without end, and yield the positions of each time step, as the game represents them.

    Half of all actions are the expert's best and half are any legal ones: in env copy i of n an action is the expert's
    with probability i / (n - 1), so that play of every strength takes part. Without an expert all are any legal ones.
    """
    rng = CounterRNG(seed, torch.arange(env.num_envs, device=env.device), QUERY_STREAM)
    skill = torch.linspace(0, 1, env.num_envs, device=env.device)
    step = env.reset()
    for turn in itertools.count():
        yield step.state
        step = env.step(mixed_actions(step, view, skill, rng.uniform(turn, 2)))


def mixed_actions(step: Step, view: PromptView, skill: Tensor, u: Tensor) -> Tensor:
    """Return an action of the expert's best with probability `skill`, (N,), and any legal one otherwise.

    Without an expert all are any legal ones. `u` is uniform, (N, 2).
    """
    candidates = step.action_mask
    if view.has_expert:
        expert = expert_actions(view, step.state) & step.action_mask & (u[:, :1] < skill[:, None])
        candidates = torch.where(expert.any(1, keepdim=True), expert, step.action_mask)
    return sample_legal(candidates, u[:, 1])


def student_play(greedy: Callable[[Tensor, Tensor], Tensor]) -> Play:
    """Return the play of `greedy(obs, action_mask)`, but for RANDOM_SHARE of the actions, which are any legal ones."""

    def play(env: Env, view: PromptView, seed: int) -> Iterator[State]:
        rng = CounterRNG(seed, torch.arange(env.num_envs, device=env.device), QUERY_STREAM)
        step = env.reset()
        while True:
            yield step.state
            u = rng.uniform(env.steps, 2)
            own = greedy(step.obs, step.action_mask)
            step = env.step(torch.where(u[:, 0] < RANDOM_SHARE, sample_legal(step.action_mask, u[:, 1]), own))

    return play


def most_visited(env: Env, view: PromptView, limit: int, play: Iterator[State]) -> State:
    """Return the positions that play visits most often, as the game represents them, the most frequent first.

    No two have the same prompt. If there are fewer than `limit`, play goes on until some rounds bring no new one.
    """
    visited, rounds_without_new, known = 0, 0, 0
    pool: list[State] = []
    visits = torch.zeros(0, dtype=torch.int64, device=env.device)
    while visited < VISITS_PER_POSITION * limit or (known < limit and rounds_without_new < MAX_ROUNDS_WITHOUT_NEW):
        state, inverse = unique_positions(view, [*pool, *itertools.islice(play, STEPS_PER_ROUND)])
        pool, found = [state], num_rows(state)
        new = torch.ones(STEPS_PER_ROUND * env.num_envs, dtype=torch.int64, device=env.device)
        visited += len(new)
        visits = torch.zeros(found, dtype=torch.int64, device=env.device).index_add_(
            0, inverse, torch.cat([visits, new])
        )
        rounds_without_new, known = (rounds_without_new + 1 if found == known else 0), found
    order = visits.argsort(descending=True, stable=True)[:limit]
    return {name: rows.cpu() for name, rows in select_rows(pool[0], order).items()}


def expert_actions(view: PromptView, state: State) -> Tensor:
    """Return which of the env's own actions a quick expert finds best, (N, A) bool."""
    canonical, transform = view.canonicalize(state)
    best = best_actions(view.expert_values(canonical, PLAY_DEPTH), view.action_mask(canonical))
    return best.gather(1, view.symmetry.to(best.device)[transform])


def best_actions(values: Tensor, action_mask: Tensor) -> Tensor:
    """Return which legal actions have the largest value of their row, (B, A) bool, for two (B, A) tensors."""
    values = values.float().masked_fill(~action_mask, -torch.inf)
    return (values == values.amax(1, keepdim=True)) & action_mask
