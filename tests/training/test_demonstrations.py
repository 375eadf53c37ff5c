"""Episodes that Minari gives back, against the env that they were played in, played again action by action."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.base import Env, Step
from envs.rng import QUERY_STREAM, CounterRNG
from training.config import evaluation_env, make_config
from training.demonstrations import write_demonstrations
from training.evaluation import random_policy, run_episodes

NUM_EPISODES = 6


def policy(env: Env) -> Callable[[Env, Step], torch.Tensor]:
    return random_policy(CounterRNG(1, torch.arange(NUM_EPISODES), QUERY_STREAM))


@pytest.mark.parametrize("name", ["snake", "connect4", "gym:CartPole-v1"])
def test_episodes_are_read_back_as_they_were_played(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari: Any = pytest.importorskip("minari", reason="minari is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    config = make_config("ppo", name, env_kwargs=["size=5"] if name == "snake" else [])
    env, again = (evaluation_env(config, NUM_EPISODES, "cpu") for _ in range(2))
    result = write_demonstrations(policy(env), env, config, "games/random-v0", "random")
    assert result == run_episodes(policy(again), again)
    dataset = minari.load_dataset("games/random-v0")
    assert dataset.total_episodes == NUM_EPISODES
    episodes = list(dataset.iterate_episodes())
    returns = [episode.rewards.sum() for episode in episodes]
    assert np.isclose(np.mean(returns), result.mean_return)
    other = evaluation_env(config, NUM_EPISODES, "cpu")
    step = other.reset()
    for time in range(max(len(episode) for episode in episodes)):
        going = [row for row in range(NUM_EPISODES) if time < len(episodes[row])]
        action = step.action_mask.int().argmax(1)
        for row in going:
            episode = episodes[row]
            assert np.array_equal(episode.observations[time], step.obs[row].numpy())
            assert np.array_equal(episode.infos["action_mask"][time], step.action_mask[row].numpy())
            action[row] = int(episode.actions[time])
        step = other.step(action)
        for row in going:
            episode = episodes[row]
            assert episode.rewards[time] == step.reward[row]
            assert bool(episode.terminations[time]) == bool(step.terminated[row])
            assert bool(episode.truncations[time]) == bool(step.truncated[row])
            if time == len(episode) - 1:
                assert np.array_equal(episode.observations[time + 1], step.final_obs[row].numpy())
                assert episode.terminations[time] or episode.truncations[time]
    if name == "snake":
        assert dataset.recover_environment().observation_space.shape == env.spec.obs_shape
    with pytest.raises(ValueError, match="there is a dataset games/random-v0 already"):
        write_demonstrations(policy(env), env, config, "games/random-v0", "random")
    with pytest.raises(ValueError, match="--minari no name: Malformed"):
        write_demonstrations(policy(env), env, config, "no name", "random")


def test_without_minari_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    config = make_config("ppo", "snake")
    env = evaluation_env(config, 1, "cpu")
    with pytest.raises(ValueError, match=r"--minari requires minari: .*pip install -e '\.\[minari\]'"):
        write_demonstrations(policy(env), env, config, "a/b-v0", "random")
