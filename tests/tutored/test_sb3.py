"""Rewards that a tutor shapes for Stable-Baselines3, against the definition of the shaping, with the real library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

from envs import make, make_game
from envs.base import cat_states
from envs.gymnasium_vec import GymnasiumVecEnv
from tutors import TutorConfig, open_advisor

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")

from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env

from tutored.sb3 import TutoredVecEnv

BLACKJACK = "envs.gymnasium_api:TorchBlackjack-v0"
SNAKE = "envs.gymnasium_api:Snake-v0"
SCRIPTED = TutorConfig(tutor="scripted")


def test_rewards_are_the_envs_and_what_the_tutor_lends_and_takes_back(tmp_path: Path) -> None:
    """r + gamma phi' - phi by hand, over episodes that end, are cut and go on."""
    limit = {"wrapper_class": TimeLimit, "wrapper_kwargs": {"max_episode_steps": 6}}
    plain, copies = (make_vec_env(SNAKE, n_envs=3, seed=4, **limit) for _ in range(2))
    with open_advisor(SCRIPTED, make_game("snake"), 1, tmp_path, "cpu") as advisor:
        assert advisor is not None
        shaped = TutoredVecEnv(copies, advisor, gamma=0.9, strength=0.5, fade_steps=150)
        assert np.array_equal(plain.reset(), shaped.reset())
        potential, rng, ended = np.zeros(3), np.random.default_rng(0), np.zeros(2)
        for time_step in range(60):
            probs = advisor.advise(cat_states(plain.get_attr("state")), torch.ones(3, dtype=torch.bool)).probs.numpy()
            actions = rng.integers(4, size=3)
            obs, rewards, dones, infos = plain.step(actions)
            seen, lent, over, _ = shaped.step(actions)
            assert np.array_equal(obs, seen)
            assert np.array_equal(dones, over)
            strength = 0.5 * max(0.0, 1 - 3 * time_step / 150)
            cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
            after = strength * probs[np.arange(3), actions] * ~(dones & ~cut)
            np.testing.assert_allclose(lent, rewards + 0.9 * after - potential, atol=1e-6)
            potential = after * ~dones
            ended += [(dones & ~cut).sum(), cut.sum()]
    assert ended.min() > 5, "episodes of both kinds"
    assert strength == 0, "at the end there is no shaping left"


def test_a_tutor_that_no_longer_counts_is_not_asked(tmp_path: Path) -> None:
    with open_advisor(SCRIPTED, make_game("blackjack"), 1, tmp_path, "cpu") as advisor:
        assert advisor is not None
        envs = TutoredVecEnv(make_vec_env(BLACKJACK, n_envs=2, seed=1), advisor, fade_steps=20)
        envs.reset()
        for _ in range(10):
            envs.step(np.ones(2, int))
        before = advisor.counters()["positions"]
        for _ in range(10):
            envs.step(np.ones(2, int))
        assert advisor.counters()["positions"] == before == 20


@pytest.mark.train
@pytest.mark.parametrize(("algorithm", "options"), [(PPO, {"n_steps": 32}), (A2C, {}), (DQN, {"learning_starts": 50})])
def test_their_students_learn_with_our_tutor(algorithm: Callable[..., Any], options: Any, tmp_path: Path) -> None:
    with open_advisor(SCRIPTED, make_game("blackjack"), 1, tmp_path, "cpu") as advisor:
        assert advisor is not None
        envs = TutoredVecEnv(make_vec_env(BLACKJACK, n_envs=4, seed=1), advisor, fade_steps=400)
        model = algorithm("MlpPolicy", envs, device="cpu", **options).learn(256)
        assert model.num_timesteps >= 256
        assert 0 < advisor.counters()["queried"] <= 280
        assert all(info["r"] in (-1, 0, 1) for info in model.ep_info_buffer), "what is logged is the env's own return"


def test_a_gymnasium_env_with_a_view_of_ones_own_has_a_tutor(tmp_path: Path) -> None:
    game = make("gym:FrozenLake-v1", 1)
    assert isinstance(game, GymnasiumVecEnv)
    config = TutorConfig(tutor="scripted", view="tests.helpers.lake_view:LakeView")
    with open_advisor(config, game.game, 1, tmp_path, "cpu") as advisor:
        assert advisor is not None
        lake = make_vec_env("FrozenLake-v1", n_envs=2, seed=1, env_kwargs={"is_slippery": False})
        envs = TutoredVecEnv(lake, advisor, game, gamma=1.0, strength=1.0, fade_steps=10**9)
        envs.reset()
        _, rewards, _, _ = envs.step(np.array([2, 1]))  # the expert goes right
        np.testing.assert_allclose(rewards, [1, 0], atol=1e-6)


def test_actions_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with open_advisor(SCRIPTED, make_game("blackjack"), 1, tmp_path, "cpu") as advisor:
        assert advisor is not None
        with pytest.raises(ValueError, match="a Discrete one"):
            TutoredVecEnv(make_vec_env("Pendulum-v1"), advisor)
