"""CartPole against Gymnasium's, one step from each of many states; its initial states and its time limit."""

import gymnasium as gym
import numpy as np
import torch

import envs
from envs.base import VecEnv
from envs.cartpole import CartPole

NAMES = ("position", "velocity", "angle", "angular_velocity")


def test_step_equals_gymnasium_from_same_state() -> None:
    theirs = gym.make("CartPole-v1").unwrapped
    theirs.reset(seed=1)
    generator, ours, ends = np.random.default_rng(1), CartPole(), 0
    spread = np.array([2.4, 3.0, 0.25, 3.0])
    starts = generator.uniform(-spread, spread, (3000, 4)).astype(np.float32)
    actions = generator.integers(2, size=len(starts))
    state = {name: torch.from_numpy(starts[:, column].copy()) for column, name in enumerate(NAMES)}
    moved, reward, terminated = ours.step(state, torch.from_numpy(actions), torch.zeros(len(starts), 0))
    observed, _ = ours.observe(moved)
    for row, (start, action) in enumerate(zip(starts, actions, strict=True)):
        theirs.state, theirs.steps_beyond_terminated = start.astype(np.float64), None
        obs, gym_reward, gym_terminated, _, _ = theirs.step(int(action))
        np.testing.assert_allclose(observed[row].numpy(), obs, rtol=1e-5, atol=1e-6)
        assert reward[row].item() == gym_reward
        if min(abs(abs(obs[0]) - 2.4), abs(abs(obs[2]) - 12 * 2 * np.pi / 360)) > 1e-5:
            assert terminated[row].item() == gym_terminated
            ends += gym_terminated
    assert 500 < ends < 2500, "both terminated and running states occurred"


def test_reset_is_uniform_near_zero() -> None:
    obs = envs.make("envs.cartpole:CartPole", 4000, seed=1).reset().obs
    assert (obs.abs() <= 0.05).all()
    assert obs.std(0).sub(0.1 / 12**0.5).abs().max() < 0.002


def test_balanced_pole_is_truncated_after_500_steps() -> None:
    env = VecEnv(CartPole(), 64, seed=2)
    step = env.reset()
    for number in range(1, 501):
        _, speed, angle, turning = step.obs.T
        step = env.step((angle + 0.5 * turning + 0.01 * speed > 0).long())
        assert not step.terminated.any()
        assert step.truncated.all() == (number == 500)
