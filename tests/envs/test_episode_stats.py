"""Score against a plain Python loop that follows one game at a time."""

import pytest
import torch
from torch import Tensor

from envs.base import Step
from envs.episode_stats import EpisodeStats


def random_steps(steps: int, games: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards in quarters (float32 sums are exact), terminations and truncations, never both; (T, N)."""
    chance = torch.Generator().manual_seed(seed)
    rewards = torch.randint(-8, 9, (steps, games), generator=chance) / 4
    how = torch.randint(0, 8, (steps, games), generator=chance)
    return rewards, how == 0, how == 1


def moment(reward: Tensor, terminated: Tensor, truncated: Tensor) -> Step:
    nothing = torch.empty(len(reward), 0)
    return Step(nothing, nothing.bool(), reward, terminated, truncated, nothing, nothing.bool(), {}, {})


def episodes_one_by_one(rewards: Tensor, ended: Tensor) -> list[tuple[int, float, int]]:
    """(step in which it ended, return, length) of every finished episode."""
    found = []
    for game in range(rewards.shape[1]):
        total, length = 0.0, 0
        for step in range(rewards.shape[0]):
            total += rewards[step, game].item()
            length += 1
            if ended[step, game]:
                found.append((step, total, length))
                total, length = 0.0, 0
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("games", [1, 6])
def test_score_equals_a_loop_over_single_games(games: int, seed: int) -> None:
    rewards, terminations, truncations = random_steps(60, games, seed)
    episodes = episodes_one_by_one(rewards, terminations | truncations)
    score = EpisodeStats(games, "cpu")
    for first, last in [(0, 25), (25, 30), (30, 60)]:
        for row in zip(rewards[first:last], terminations[first:last], truncations[first:last], strict=True):
            score.add(moment(*row))
        ended = [(total, length) for step, total, length in episodes if first <= step < last]
        taken = score.pop()
        assert taken["episodes"] == len(ended)
        if ended:
            assert taken["return"] == pytest.approx(sum(total for total, _ in ended) / len(ended), abs=1e-12)
            assert taken["length"] == pytest.approx(sum(length for _, length in ended) / len(ended), abs=1e-12)


def one_game(reward: float, terminated: bool = False, truncated: bool = False) -> Step:
    return moment(torch.tensor([reward]), torch.tensor([terminated]), torch.tensor([truncated]))


def test_without_an_end_there_are_no_episodes() -> None:
    score = EpisodeStats(1, "cpu")
    assert score.pop() == {"episodes": 0}
    score.add(one_game(1.0))
    assert score.pop() == {"episodes": 0}


def test_taking_forgets_what_was_taken() -> None:
    score = EpisodeStats(1, "cpu")
    score.add(one_game(1.0, terminated=True))
    assert score.pop() == {"episodes": 1, "return": 1.0, "length": 1.0}
    assert score.pop() == {"episodes": 0}


def test_taking_does_not_cut_the_games_in_play() -> None:
    score = EpisodeStats(1, "cpu")
    score.add(one_game(0.5))
    score.pop()
    score.add(one_game(0.25, terminated=True))
    assert score.pop() == {"episodes": 1, "return": 0.75, "length": 2.0}


def test_a_truncated_game_counts_as_an_episode() -> None:
    score = EpisodeStats(1, "cpu")
    score.add(one_game(-1.0))
    score.add(one_game(-2.0, truncated=True))
    assert score.pop() == {"episodes": 1, "return": -3.0, "length": 2.0}


def test_a_return_does_not_leak_into_the_next_game() -> None:
    score = EpisodeStats(1, "cpu")
    score.add(one_game(7.0, terminated=True))
    score.add(one_game(1.0, truncated=True))
    assert score.pop() == {"episodes": 2, "return": 4.0, "length": 1.0}


def test_what_is_taken_are_plain_numbers() -> None:
    score = EpisodeStats(1, "cpu")
    score.add(one_game(1.0, terminated=True))
    taken = score.pop()
    assert type(taken["episodes"]) is int
    assert type(taken["return"]) is float
    assert type(taken["length"]) is float


def test_adding_does_not_change_the_step() -> None:
    step = one_game(1.5, terminated=True)
    EpisodeStats(1, "cpu").add(step)
    assert step.reward.item() == 1.5
    assert step.terminated.item()
