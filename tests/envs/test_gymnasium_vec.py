"""GymnasiumVecEnv against single Gymnasium envs with the same seeds, and against an env whose every step is known."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.toy_text import BlackjackEnv, FrozenLakeEnv
from torch import Tensor

from agents.ppo import PPO, PPOConfig
from envs.base import Env, Step
from envs.gymnasium_vec import UNKNOWN_LIMIT, GymnasiumVecEnv
from envs.rng import EXPLORATION_STREAM, CounterRNG, sample_legal
from tests.helpers.env_steps import assert_steps_equal, map_tensors, named_tensors, reset_with_random_policy, trajectory

LIMIT = 4


class CountingEnv(gym.Env):
    """Counts up from a multiple of 100. Actions are 5, 6 and 7; 7 ends the episode. The reward is the number."""

    action_space = gym.spaces.Discrete(3, start=5)
    observation_space = gym.spaces.Box(0, 1_000_000, (1, 2), np.int32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.number, self.action = 100 * int(self.np_random.integers(1, 99)), 0
        return self.raw_obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.number, self.action = self.number + 1, int(action)
        return self.raw_obs(), float(self.number), self.action == 7, False, {"number": self.number}

    def raw_obs(self) -> np.ndarray:
        return np.array([[self.number, self.action]], np.int32)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    gym.register("Steps-v0", entry_point=CountingEnv, max_episode_steps=LIMIT)
    yield
    del gym.registry["Steps-v0"]


every_env = pytest.mark.parametrize("id", ["CartPole-v1", "Blackjack-v1", "FrozenLake-v1", "Steps-v0"])


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of seeds with which envs are reset, in order; it grows as they are."""
    used: list[int] = []

    def watch(kind: type[gym.Env]) -> None:
        reset = kind.reset

        def watched(self: gym.Env, *, seed: int | None = None, options: Any = None) -> Any:
            if seed is not None:
                used.append(seed)
            return reset(self, seed=seed, options=options)

        monkeypatch.setattr(kind, "reset", watched)

    for kind in (CartPoleEnv, BlackjackEnv, FrozenLakeEnv):
        watch(kind)
    return used


def unchanged(raw_obs: np.ndarray) -> list[float]:
    return raw_obs.tolist()


def one_hot(*sizes: int) -> Callable[[Any], list[float]]:
    """Return a function from numbers below `sizes` to their concatenated one-hot vectors."""

    def flat(raw_obs: Any) -> list[float]:
        numbers = [int(number) for number in (raw_obs if isinstance(raw_obs, tuple) else (raw_obs,))]
        return [float(at == number) for number, size in zip(numbers, sizes, strict=True) for at in range(size)]

    return flat


def random_policy(num_envs: int) -> Callable[[Step], Tensor]:
    rng, calls = CounterRNG(5, torch.arange(num_envs), EXPLORATION_STREAM), itertools.count()
    return lambda step: sample_legal(step.action_mask, rng.uniform(next(calls), 1)[:, 0])


def balancing_policy(num_envs: int) -> Callable[[Step], Tensor]:
    """Return a policy that pushes the cart towards where the pole falls, which keeps it upright."""
    weights = torch.tensor([0.02, 0.05, 1.0, 0.3])
    return lambda step: (step.obs @ weights > 0).long()


def assert_equals_single_envs(
    id: str, options: dict[str, Any], flat: Callable[[Any], list[float]], policy: Any, steps: int, seeds: list[int]
) -> list[Step]:
    """Compare every step with single envs, and return the steps."""
    env = GymnasiumVecEnv(id, 4, seed=3, **options)
    step, act = env.reset(), policy(4)
    first, returned = seeds[:4], [step]
    assert len(set(first)) == 4
    single_envs = [gym.make(id, **options) for _ in first]
    assert step.obs.tolist() == [
        flat(env_row.reset(seed=seed)[0]) for env_row, seed in zip(single_envs, first, strict=True)
    ]
    for _ in range(steps):
        action = act(step)
        step = env.step(action)
        for row, env_row in enumerate(single_envs):
            raw_obs, reward, terminated, truncated, _ = env_row.step(int(action[row]))
            assert step.final_obs[row].tolist() == flat(raw_obs)
            assert step.reward[row] == reward
            assert step.terminated[row] == terminated
            assert step.truncated[row] == (truncated and not terminated)
            assert step.obs[row].tolist() == flat(env_row.reset()[0] if terminated or truncated else raw_obs)
        returned.append(step)
    return returned


def test_cartpole_equals_single_envs(seeds: list[int]) -> None:
    returned = assert_equals_single_envs("CartPole-v1", {}, unchanged, random_policy, 200, seeds)
    assert sum(step.terminated.sum() for step in returned) > 20


def test_cartpole_balanced_is_truncated_after_500_steps(seeds: list[int]) -> None:
    returned = assert_equals_single_envs("CartPole-v1", {}, unchanged, balancing_policy, 503, seeds)
    for index, step in enumerate(returned):
        assert not step.terminated.any()
        assert step.truncated.tolist() == [index == 500] * 4


@pytest.mark.parametrize("options", [{}, {"sab": False, "natural": True}], ids=str)
def test_blackjack_equals_single_envs_with_flat_obs(options: dict[str, Any], seeds: list[int]) -> None:
    returned = assert_equals_single_envs("Blackjack-v1", options, one_hot(32, 11, 2), random_policy, 150, seeds)
    rewards = {reward for step in returned for reward in step.reward.tolist()}
    assert rewards == ({-1.0, 0.0, 1.0, 1.5} if "natural" in options else {-1.0, 0.0, 1.0})


@pytest.mark.parametrize("options", [{}, {"map_name": "8x8", "is_slippery": False}], ids=str)
def test_frozen_lake_equals_single_envs_with_flat_obs(options: dict[str, Any], seeds: list[int]) -> None:
    returned = assert_equals_single_envs(
        "FrozenLake-v1", options, one_hot(64 if options else 16), random_policy, 150, seeds
    )
    assert sum(step.terminated.sum() for step in returned) > 10


def test_options_reach_the_env() -> None:
    """On the 8 x 8 map without slipping: 7 cells to the right and 7 down, around all holes."""
    env = GymnasiumVecEnv("FrozenLake-v1", 2, map_name="8x8", is_slippery=False)
    assert env.spec.obs_shape == (64,)
    assert env.reset().obs.argmax(1).tolist() == [0, 0]
    right, down = torch.tensor([2, 2]), torch.tensor([1, 1])
    cells = [1, 2, 3, 4, 5, 6, 7, 15, 23, 31, 39, 47, 55, 63]
    for index, cell in enumerate(cells):
        step = env.step(right if index < 7 else down)
        assert step.final_obs.argmax(1).tolist() == [cell, cell]
        assert step.terminated.tolist() == [cell == 63] * 2
        assert step.reward.tolist() == [float(cell == 63)] * 2
    assert step.obs.argmax(1).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("id", "shape", "actions", "time_limit"),
    [
        ("CartPole-v1", (4,), 2, 500),
        ("Blackjack-v1", (45,), 2, UNKNOWN_LIMIT),
        ("FrozenLake-v1", (16,), 4, 100),
        ("Steps-v0", (1, 2), 3, LIMIT),
    ],
)
def test_spec_equals_gymnasium_spec(id: str, shape: tuple[int], actions: int, time_limit: int) -> None:
    env = GymnasiumVecEnv(id, 2)
    assert isinstance(env, Env)
    assert env.spec.name == f"gym:{id}"
    assert (env.spec.obs_shape, env.spec.num_actions, env.spec.time_limit) == (shape, actions, time_limit)


def test_max_episode_steps_sets_time_limit() -> None:
    env = GymnasiumVecEnv("CartPole-v1", 2, max_episode_steps=3)
    env.reset()
    truncated = [env.step(torch.tensor([0, 1])).truncated.tolist() for _ in range(7)]
    assert truncated == [[index % 3 == 2] * 2 for index in range(7)]
    assert env.spec.time_limit == 3


def test_truncation_without_known_limit_is_bootstrapped() -> None:
    class CutsItself(CountingEnv):
        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            raw_obs, reward, terminated, _, info = super().step(action)
            return raw_obs, reward, terminated, self.number % 3 == 0, info

    gym.register("CutsItself-v0", entry_point=CutsItself)
    env = GymnasiumVecEnv("CutsItself-v0", 3)
    del gym.registry["CutsItself-v0"]
    agent = PPO(PPOConfig(num_steps=6, num_minibatches=1), env, 1000, seed=1)
    step, num_truncated = env.reset(), 0
    action = torch.zeros(3, dtype=torch.int64)
    for time in range(6):
        decision = agent.act(step.obs, step.action_mask)
        next_step = env.step(action)
        agent.observe(step, decision, action, next_step, next_step.reward)
        expected = agent.network.get_value(next_step.final_obs).detach()
        torch.testing.assert_close(agent.rollout.next_value[time], expected)
        num_truncated += int(next_step.truncated.sum())
        step = next_step.as_initial()
    assert num_truncated > 0


@every_env
def test_step_has_shapes_and_dtypes_of_spec(id: str) -> None:
    env = GymnasiumVecEnv(id, 5)
    for step in trajectory(env, 30):
        for obs in (step.obs, step.final_obs):
            assert obs.shape == (5, *env.spec.obs_shape)
            assert obs.dtype == torch.float32
        for action_mask in (step.action_mask, step.final_action_mask):
            assert action_mask.shape == (5, env.spec.num_actions)
            assert action_mask.dtype == torch.bool
            assert action_mask.all()
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == (5,)
        assert step.reward.dtype == torch.float32
        assert step.terminated.dtype == step.truncated.dtype == torch.bool


@every_env
def test_episodes_end_and_never_terminated_and_truncated(id: str) -> None:
    returned = trajectory(GymnasiumVecEnv(id, 16), 150)
    assert sum(step.terminated.int() + step.truncated.int() for step in returned).min() >= 2
    assert not any((step.terminated & step.truncated).any() for step in returned)


@every_env
def test_final_obs_equals_obs_where_no_episode_ended(id: str) -> None:
    for step in trajectory(GymnasiumVecEnv(id, 16), 60):
        going_on = ~(step.terminated | step.truncated)
        assert torch.equal(step.obs[going_on], step.final_obs[going_on])


@every_env
def test_state_is_obs(id: str) -> None:
    env = GymnasiumVecEnv(id, 8)
    step, act = reset_with_random_policy(env)
    for _ in range(40):
        assert torch.equal(env.state["obs"], step.obs)
        assert torch.equal(step.state["obs"], step.obs)
        assert torch.equal(step.final_state["obs"], step.final_obs)
        step = env.step(act(step))


@every_env
def test_observe_of_selected_rows_equals_their_obs(id: str) -> None:
    other = GymnasiumVecEnv(id, 3)
    for step in trajectory(GymnasiumVecEnv(id, 8), 30):
        for state, obs, action_mask in (
            (step.state, step.obs, step.action_mask),
            (step.final_state, step.final_obs, step.final_action_mask),
        ):
            for rows in (slice(None), slice(2, 7)):
                raw_obs, mask_of_rows = other.observe({name: tensor[rows] for name, tensor in state.items()})
                assert torch.equal(raw_obs, obs[rows])
                assert torch.equal(mask_of_rows, action_mask[rows])


@every_env
def test_state_before_reset_has_final_shape_and_dtype(id: str) -> None:
    env = GymnasiumVecEnv(id, 5)
    before = {name: (tensor.shape, tensor.dtype) for name, tensor in env.state.items()}
    obs, action_mask = env.observe(env.state)
    assert not obs.any()
    assert action_mask.all()
    for step in trajectory(env, 6):
        for state in (step.state, step.final_state, env.state):
            assert {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} == before


@every_env
def test_as_initial_keeps_current_observation_only(id: str) -> None:
    for step in trajectory(GymnasiumVecEnv(id, 8), 30):
        alone = named_tensors(step.as_initial())
        for name, tensor in alone.items():
            expected = named_tensors(step)[name.removeprefix("final_")]
            is_cleared = name in ("reward", "terminated", "truncated")
            assert torch.equal(tensor, torch.zeros_like(expected) if is_cleared else expected)


def test_gymnasium_vec_env_is_not_compilable() -> None:
    assert not GymnasiumVecEnv("CartPole-v1", 2).is_compilable


def test_first_env_id_is_kept() -> None:
    assert GymnasiumVecEnv("CartPole-v1", 2).first_env_id == 0
    assert GymnasiumVecEnv("CartPole-v1", 2, first_env_id=6).first_env_id == 6


@every_env
def test_returned_step_is_not_modified_later(id: str) -> None:
    env = GymnasiumVecEnv(id, 8)
    step, act = reset_with_random_policy(env)
    given = []
    for _ in range(40):
        given.append((step, map_tensors(step, Tensor.clone)))
        step = env.step(act(step))
    env.reset()
    for step, kept in given:
        assert_steps_equal([step], [kept])


@every_env
def test_step_does_not_modify_action(id: str) -> None:
    env = GymnasiumVecEnv(id, 8)
    step, act = reset_with_random_policy(env)
    action = act(step)
    kept = action.clone()
    env.step(action)
    assert torch.equal(action, kept)


@every_env
def test_trajectory_is_independent_of_num_envs_and_sharding(id: str) -> None:
    whole = trajectory(GymnasiumVecEnv(id, 10, seed=4), 50)
    assert_steps_equal(trajectory(GymnasiumVecEnv(id, 7, seed=4), 50), whole, slice(0, 7))
    assert_steps_equal(trajectory(GymnasiumVecEnv(id, 1, seed=4), 50), whole, slice(0, 1))
    assert_steps_equal(
        trajectory(GymnasiumVecEnv(id, 5, seed=4, first_env_id=3), 50, first_env_id=3), whole, slice(3, 8)
    )
    assert_steps_equal(trajectory(GymnasiumVecEnv(id, 2, 4, "cpu", 8), 50, first_env_id=8), whole, slice(8, 10))


@every_env
def test_seeds_and_env_copies_differ(id: str) -> None:
    """A row is one copy's observations in 40 steps. FrozenLake starts in one cell, but slips differently."""
    returned = [
        torch.stack([step.obs for step in trajectory(GymnasiumVecEnv(id, 8, seed), 40)], 1).flatten(1)
        for seed in (8, 9)
    ]
    assert len(torch.cat(returned).unique(dim=0)) == 16


def test_gymnasium_seeds_are_distinct(seeds: list[int]) -> None:
    """Over two runs, over the copies of one run, and over the resets of one copy."""
    for seed in (3, 4):
        env = GymnasiumVecEnv("CartPole-v1", 20, seed)
        for _ in range(5):
            env.reset()
            env.step(torch.zeros(20, dtype=torch.int64))
    assert len(seeds) == 200
    assert len(set(seeds)) == 200


def test_reset_again_starts_other_episodes() -> None:
    env = GymnasiumVecEnv("CartPole-v1", 6, seed=2)
    firsts = [env.reset(), env.reset()]
    trajectory(env, 7)
    firsts.append(env.reset())
    for a, b in itertools.combinations(firsts, 2):
        assert not (a.obs == b.obs).all(1).any()
    for step in firsts:
        assert torch.equal(step.obs, step.final_obs)
        assert not step.reward.any()
        assert not step.terminated.any()
        assert not step.truncated.any()


def test_reset_again_equals_other_env_of_same_seed() -> None:
    one, other = GymnasiumVecEnv("CartPole-v1", 3, seed=2), GymnasiumVecEnv("CartPole-v1", 3, seed=2)
    assert_steps_equal(trajectory(one, 30), trajectory(other, 30))
    assert_steps_equal(trajectory(one, 30), trajectory(other, 30))


def test_actions_are_offset_by_start_of_space() -> None:
    env = GymnasiumVecEnv("Steps-v0", 3)
    env.reset()
    step = env.step(torch.tensor([0, 1, 2]))
    assert step.final_obs[:, 0, 1].tolist() == [5, 6, 7]
    assert step.terminated.tolist() == [False, False, True]


def test_autoreset_keeps_final_obs_and_returns_new_obs() -> None:
    env = GymnasiumVecEnv("Steps-v0", 3)
    first = env.reset().obs[:, 0, 0]
    assert (first % 100 == 0).all()
    step = env.step(torch.tensor([0, 2, 1]))
    assert step.final_obs[:, 0, 0].tolist() == (first + 1).tolist()
    assert step.reward.tolist() == (first + 1).tolist()
    assert step.obs[[0, 2], 0, 0].tolist() == (first[[0, 2]] + 1).tolist()
    assert step.obs[1, 0, 0] % 100 == 0
    assert step.obs[1, 0, 1] == 0
    fresh = step.obs[1, 0, 0]
    assert env.step(torch.tensor([0, 0, 0])).obs[1, 0, 0] == fresh + 1


def test_time_limit_truncates_running_episodes_only() -> None:
    """Copy 0 continues, copy 1 ends exactly at the limit, copy 2 one step before it."""
    env = GymnasiumVecEnv("Steps-v0", 3)
    env.reset()
    ends = []
    for passed in range(1, LIMIT + 1):
        step = env.step(torch.tensor([0, 2 if passed == LIMIT else 0, 2 if passed == LIMIT - 1 else 0]))
        ends.append((step.terminated.tolist(), step.truncated.tolist()))
    nothing = [False, False, False]
    assert ends == [
        (nothing, nothing),
        (nothing, nothing),
        ([False, False, True], nothing),
        ([False, True, False], [True, False, False]),
    ]
    assert (step.final_obs[:2, 0, 0] % 100).tolist() == [LIMIT, LIMIT]
    assert (step.obs[:2, 0, 0] % 100).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("id", "reason"),
    [
        ("CartPol-v1", "CartPole"),
        ("CartPole-v99", "v99"),
        ("no env at all", "no env at all"),
        ("", "ID"),
        ("no_such_module:Env-v0", "no_such_module"),
    ],
)
def test_unknown_env_raises_with_reason(id: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"gym:{id} cannot be made: .*{reason}"):
        GymnasiumVecEnv(id, 1)


def test_continuous_action_space_raises() -> None:
    with pytest.raises(
        ValueError, match=r"gym:Pendulum-v1 has the action space Box.*; a student requires a Discrete one"
    ):
        GymnasiumVecEnv("Pendulum-v1", 1)


@pytest.mark.parametrize("id", ["CartPole-v1", "Blackjack-v1", "Steps-v0"])
def test_unknown_option_raises(id: str) -> None:
    with pytest.raises(ValueError, match=f"gym:{id} cannot be made: .*sise"):
        GymnasiumVecEnv(id, 1, sise=3)


@pytest.mark.parametrize("num_envs", [0, -3])
def test_num_envs_below_one_raises(num_envs: int) -> None:
    with pytest.raises(ValueError, match=f"num_envs is {num_envs}; an environment requires at least 1 copy"):
        GymnasiumVecEnv("CartPole-v1", num_envs)
