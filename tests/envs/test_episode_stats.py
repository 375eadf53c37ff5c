"""EpisodeStats against a Python loop over one env copy at a time."""

import pytest
import torch
from torch import Tensor

from envs.base import Step
from envs.episode_stats import EpisodeStats


def random_steps(steps: int, num_envs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rewards in quarters (float32 sums are exact), terminations and truncations, never both; (T, N)."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(-8, 9, (steps, num_envs), generator=generator) / 4
    how = torch.randint(0, 8, (steps, num_envs), generator=generator)
    return rewards, how == 0, how == 1


def step_of(reward: Tensor, terminated: Tensor, truncated: Tensor) -> Step:
    nothing = torch.empty(len(reward), 0)
    return Step(nothing, nothing.bool(), reward, terminated, truncated, nothing, nothing.bool(), {}, {})


def episodes_one_by_one(rewards: Tensor, done: Tensor) -> list[tuple[int, float, int]]:
    """Return (step in which it ended, return, length) of every finished episode."""
    found = []
    for row in range(rewards.shape[1]):
        total, length = 0.0, 0
        for step in range(rewards.shape[0]):
            total += rewards[step, row].item()
            length += 1
            if done[step, row]:
                found.append((step, total, length))
                total, length = 0.0, 0
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_envs", [1, 6])
def test_pop_equals_loop_over_single_copies(num_envs: int, seed: int) -> None:
    rewards, terminations, truncations = random_steps(60, num_envs, seed)
    episodes = episodes_one_by_one(rewards, terminations | truncations)
    stats = EpisodeStats(num_envs, "cpu")
    for first, last in [(0, 25), (25, 30), (30, 60)]:
        for row in zip(rewards[first:last], terminations[first:last], truncations[first:last], strict=True):
            stats.add(step_of(*row))
        done = [(total, length) for step, total, length in episodes if first <= step < last]
        popped = stats.pop()
        assert popped["episodes"] == len(done)
        if done:
            assert popped["return"] == pytest.approx(sum(total for total, _ in done) / len(done), abs=1e-12)
            assert popped["length"] == pytest.approx(sum(length for _, length in done) / len(done), abs=1e-12)


def step_of_one_copy(reward: float, terminated: bool = False, truncated: bool = False) -> Step:
    return step_of(torch.tensor([reward]), torch.tensor([terminated]), torch.tensor([truncated]))


def test_pop_without_ended_episode_returns_zero_episodes() -> None:
    stats = EpisodeStats(1, "cpu")
    assert stats.pop() == {"episodes": 0}
    stats.add(step_of_one_copy(1.0))
    assert stats.pop() == {"episodes": 0}


def test_pop_clears_ended_episodes() -> None:
    stats = EpisodeStats(1, "cpu")
    stats.add(step_of_one_copy(1.0, terminated=True))
    assert stats.pop() == {"episodes": 1, "return": 1.0, "length": 1.0}
    assert stats.pop() == {"episodes": 0}


def test_pop_keeps_running_episodes() -> None:
    stats = EpisodeStats(1, "cpu")
    stats.add(step_of_one_copy(0.5))
    stats.pop()
    stats.add(step_of_one_copy(0.25, terminated=True))
    assert stats.pop() == {"episodes": 1, "return": 0.75, "length": 2.0}


def test_truncated_episode_is_counted() -> None:
    stats = EpisodeStats(1, "cpu")
    stats.add(step_of_one_copy(-1.0))
    stats.add(step_of_one_copy(-2.0, truncated=True))
    assert stats.pop() == {"episodes": 1, "return": -3.0, "length": 2.0}


def test_return_does_not_leak_into_next_episode() -> None:
    stats = EpisodeStats(1, "cpu")
    stats.add(step_of_one_copy(7.0, terminated=True))
    stats.add(step_of_one_copy(1.0, truncated=True))
    assert stats.pop() == {"episodes": 2, "return": 4.0, "length": 1.0}


def test_pop_returns_python_numbers() -> None:
    stats = EpisodeStats(1, "cpu")
    stats.add(step_of_one_copy(1.0, terminated=True))
    popped = stats.pop()
    assert type(popped["episodes"]) is int
    assert type(popped["return"]) is float
    assert type(popped["length"]) is float


def test_add_does_not_modify_step() -> None:
    step = step_of_one_copy(1.5, terminated=True)
    EpisodeStats(1, "cpu").add(step)
    assert step.reward.item() == 1.5
    assert step.terminated.item()
