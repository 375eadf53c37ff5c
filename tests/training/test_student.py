"""A student outside of its run, against the agent inside it and against Stable-Baselines3's own evaluation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from envs.registry import make
from tests.helpers.small_runs import small_config
from train import train
from training.config import Config, make_agent, make_config, make_env
from training.student import Student, load
from tutored.run import train as train_student
from tutors import TutorConfig


def untrained(env: str, algo: str = "ppo", **options: Any) -> Student:
    config = make_config(algo, env, num_envs=4, hidden=[16], **options)
    return Student(make_agent(config, make_env(config, "cpu")), make_env(config, "cpu"), config)


def test_one_observation_is_a_batch_of_one() -> None:
    student = untrained("connect4")
    step = student.env.reset()
    obs, mask = step.obs.numpy(), step.action_mask.numpy()
    batch, memory = student.predict(obs, action_mask=mask)
    assert memory is None
    assert batch.tolist() == student.agent.greedy(step.obs, step.action_mask).tolist()
    for row in range(4):
        action, _ = student.predict(obs[row], action_mask=mask[row])
        assert action.shape == ()
        assert action == batch[row]


def test_what_is_illegal_is_not_predicted() -> None:
    student = untrained("connect4")
    obs = student.env.reset().obs.numpy()
    best, _ = student.predict(obs)
    mask = np.ones((4, 7), np.int8)
    mask[np.arange(4), best] = 0
    for deterministic in (True, False):
        actions, _ = student.predict(obs, action_mask=mask, deterministic=deterministic)
        assert not (actions == best).any()


@pytest.mark.parametrize("algo", ["dqn", "ppo", "a2c"])
def test_a_sample_is_not_always_the_best_action(algo: str) -> None:
    student = untrained("snake", algo)
    obs = student.env.reset().obs[0].numpy()
    best, _ = student.predict(obs)
    found = {int(student.predict(obs, deterministic=False)[0]) for _ in range(50)}
    assert found - {int(best)}


@pytest.mark.parametrize(("obs", "mask"), [((3, 6, 7), None), ((2, 6), None), ((2, 6, 7), (2, 7))])
def test_other_shapes_are_refused(obs: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match="observation"):
        untrained("connect4").predict(np.zeros(obs), action_mask=None if mask is None else np.ones(mask))


def test_gymnasium_observations_are_read_as_the_env_shows_them() -> None:
    space = gym.spaces.Dict({"position": gym.spaces.Discrete(3), "speed": gym.spaces.Box(-1, 1, (2,))})
    student = untrained("gym:tests.helpers.odd_envs:Moving-v0")
    one = {"position": 2, "speed": np.array([0.5, -0.5], np.float32)}
    batch = {"position": np.array([2, 0]), "speed": np.array([[0.5, -0.5], [0, 0]], np.float32)}
    assert student.env.spec.obs_shape == gym.spaces.flatten_space(space).shape
    env: Any = student.env
    flat = torch.from_numpy(gym.spaces.flatten(space, one))
    assert env.observe(env.positions([one]))[0][0].equal(flat)
    first, both = student.predict(one)[0], student.predict(batch)[0]
    assert both.shape == (2,)
    assert both[0] == first
    assert set(both.tolist()) <= {5, 6}, "the env's actions begin with 5"
    legal, _ = student.predict(batch, action_mask=[[1, 0], [0, 1]])
    assert legal.tolist() == [5, 6]
    with pytest.raises(ValueError, match="the observation is of shape"):
        student.predict({"position": 2, "speed": np.zeros(3)})


@pytest.mark.train
def test_a_run_is_loaded_as_it_was_trained(tmp_path: Path) -> None:
    config = small_config("ppo", "blackjack", tmp_path / "run")
    student = train_student(config)
    again = load(str(tmp_path / "run"))
    step = make("blackjack", 64, seed=3).reset()
    expected = student.agent.greedy(step.obs, step.action_mask)
    assert again.predict(step.obs.numpy(), action_mask=step.action_mask.numpy())[0].tolist() == expected.tolist()
    assert again.evaluate() == student.evaluate()
    with pytest.raises(ValueError, match="no run directory"):
        load(tmp_path)


@pytest.mark.train
def test_a_run_without_a_folder_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(small_config("a2c", "blackjack", tmp_path, tutor="none"), run_dir=None, total_steps=512)
    student = train_student(config)
    (folder,) = (tmp_path / "runs").iterdir()
    assert load(folder).evaluate() == student.evaluate()


def test_options_are_named_as_flags_and_checked() -> None:
    config = make_config("dqn", "snake", env_kwargs=["size=6"], tutor="scripted", guidance="margin", buffer_size=5000)
    assert config.tutoring == TutorConfig(tutor="scripted")
    assert (config.guiding.guidance, config.env_kwargs) == ("margin", ("size=6",))
    assert getattr(config.agent, "buffer_size", None) == 5000
    assert make_config("ppo", "connect4", run_dir="runs/x").run_dir == Path("runs/x")
    for options, message in (
        ({"learning_rat": 0.1}, "did you mean 'learning_rate'"),
        ({"buffer_size": 5000}, "no option is called 'buffer_size'"),
        ({"total_steps": "many"}, "total_steps is 'many'; it must be of type"),
        ({"num_envs": 0}, "num.envs"),
        ({"agent": {}}, "no option is called 'agent'"),
        ({"tutor": "nobody at all"}, "nobody at all"),
    ):
        with pytest.raises(ValueError, match=message):
            make_config("ppo", "connect4", **options)


@pytest.mark.train
def test_stable_baselines3_evaluates_it_as_one_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    config: Config = small_config("ppo", "blackjack", tmp_path / "run", tutor="none")
    train(config)
    student: Any = load(tmp_path / "run")
    envs = make_vec_env("envs.gymnasium_api:TorchBlackjack-v0", n_envs=8, seed=1)
    mean, std = evaluate_policy(student, envs, n_eval_episodes=400)
    assert abs(mean - student.evaluate().mean_return) < 4 * std / 400**0.5
