"""Gymnasium envs that behave as some in the wild do (tests/helpers/odd_envs.py), as ours: one test a habit."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

import envs
from agents import AGENTS
from agents.dqn import DQN, DQNConfig
from agents.networks import NetworkConfig, uses_cnn
from envs import global_generators
from envs.base import Env, EnvError
from envs.gymnasium_spaces import ActionFormat, ObservationFormat
from tests.helpers.env_steps import assert_steps_equal, trajectory
from tests.helpers.odd_envs import Picture
from tests.helpers.small_runs import logged, small_config
from train import train
from training.evaluation import run_episodes, student_policy
from training.stop_signal import end_by_signal

KINDS = [(order, kind) for order in ("last", "first") for kind in ("uint8", "float32")]
ODD = "gym:tests.helpers.odd_envs:"


def odd(name: str, num_envs: int = 3, **options: Any) -> Env:
    """Return copies of one of the odd envs."""
    return envs.make(f"{ODD}{name}-v0", num_envs, **options)


def some_action(env: Env) -> Tensor:
    return torch.ones(env.num_envs, dtype=torch.int64)


@pytest.mark.parametrize(("order", "kind"), KINDS)
def test_picture_equals_the_other_orders_and_types(order: str, kind: str) -> None:
    """Channels first, between 0 and 1, for a network of convolutions."""
    env, plain = odd("Picture", order=order, kind=kind), Picture()
    for one, other in zip(trajectory(env, 5), trajectory(odd("Picture"), 5), strict=True):
        assert torch.equal(one.obs, other.obs)
        assert torch.equal(one.final_obs, other.final_obs)
    assert env.spec.obs_shape == (3, 36, 36)
    assert uses_cnn(NetworkConfig(), env.spec.obs_shape)
    env.copies[0] = plain
    plain.reset(seed=1)
    raw = plain.obs()
    plain.obs = lambda: raw if order == "last" else raw.transpose(2, 0, 1)
    expected = torch.from_numpy(raw.transpose(2, 0, 1)).float() / 255
    assert torch.equal(env.reset().obs[0], expected)


def test_replay_keeps_pictures_in_their_own_type() -> None:
    env = odd("Picture", 4)
    agent = DQN(DQNConfig(buffer_size=40, hidden=(8,)), env, 100, seed=1)
    ring = agent.replay.states["obs"]
    assert (ring.dtype, ring.shape) == (torch.uint8, (10, 4, 3, 36, 36))
    step, shown = env.reset(), []
    for _ in range(3):
        decision = agent.act(step.obs, step.action_mask)
        next_step = env.step(decision.action)
        agent.observe(step, decision, decision.action, next_step, next_step.reward)
        shown.append((step.obs, next_step.final_obs))
        step = next_step.as_initial()
    batch = agent.replay.sample(torch.linspace(0, 0.999, 12), 1, 0.9)
    for column, seen in zip((batch.obs, batch.next_obs), zip(*shown, strict=True), strict=True):
        assert torch.equal(column, torch.cat(seen))


@pytest.mark.parametrize(
    ("space", "shape", "scaled"),
    [
        (Box(0, 255, (210, 160, 3), np.uint8), (3, 210, 160), 255),
        (Box(0, 255, (3, 210, 160), np.uint8), (3, 210, 160), 255),
        (Box(0, 255, (84, 84), np.uint8), (1, 84, 84), 255),
        (Box(0, 255, (84, 84, 1), np.uint8), (1, 84, 84), 255),
        (Box(0, 255, (4, 84, 84, 3), np.uint8), (12, 84, 84), 255),
        (Box(0, 255, (4, 3, 84, 84), np.uint8), (12, 84, 84), 255),
        (Box(0, 65_535, (64, 64, 1), np.uint16), (1, 64, 64), 65_535),
        (Box(0, 1, (10, 10, 4), np.bool_), (4, 10, 10), 1),
        (Box(-128, 127, (10, 10, 4), np.int8), (4, 10, 10), 128),
        (Box(0, 10, (7, 7, 3), np.uint8), (3, 7, 7), 10),
        (Box(0, 1, (36, 36, 3), np.float32), (3, 36, 36), 1),
        (Box(0, 255, (36, 36, 3), np.float16), (3, 36, 36), 255),
        (Box(-np.inf, np.inf, (3, 36, 36), np.float32), (3, 36, 36), 1),
        (Box(0, 1, (7, 5, 5), np.float32), (7, 5, 5), 1),
        (Box(0, 1, (5, 5, 16), np.float32), (16, 5, 5), 1),
        (Box(0, 255, (128,), np.uint8), (128,), 255),
        (Box(-1.2, 0.6, (2,), np.float32), (2,), 1),
        (Box(-20, 20, (2, 9), np.float64), (2, 9), 1),
        (Box(-(2**31), 2**31 - 1, (4,), np.int32), (4,), 1),
        (Box(0, 1, (), np.float32), (1,), 1),
    ],
    ids=str,
)
def test_shape_type_and_bounds_of_a_space_are_used(space: Box, shape: tuple[int, ...], scaled: float) -> None:
    formed = ObservationFormat(space)
    assert formed.shape == shape
    row, obs = formed.empty(1), space.sample()
    formed.write(obs, row[0])
    assert row.dtype.itemsize <= max(min(space.dtype.itemsize, 4), 1) or space.dtype == np.uint16
    decoded = formed.decode(torch.from_numpy(row))
    assert decoded.dtype == torch.float32
    assert decoded.shape == (1, *shape)
    assert sorted(decoded.ravel().tolist()) == pytest.approx(
        sorted((obs.astype(np.float64) / scaled).ravel().tolist()), rel=1e-6
    )


def test_each_channel_of_a_stack_stays_together() -> None:
    formed = ObservationFormat(Box(0, 255, (2, 6, 7, 3), np.uint8))
    raw = np.random.default_rng(1).integers(0, 255, (2, 6, 7, 3)).astype(np.uint8)
    row = formed.empty(1)
    formed.write(raw, row[0])
    for picture, channel in itertools.product(range(2), range(3)):
        assert (row[0, 3 * picture + channel] == raw[picture, :, :, channel]).all()


@pytest.mark.train
@pytest.mark.parametrize(("order", "kind"), KINDS)
@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_student_learns_from_pictures(algo: str, order: str, kind: str) -> None:
    """Chance is 0.25."""
    agent = trained(algo, odd("Picture", 16, order=order, kind=kind, seed=1), 8000)
    result = run_episodes(student_policy(agent), odd("Picture", 500, order=order, kind=kind, seed=2))
    assert result.mean_return > 0.9


def trained(algo: str, env: Env, total_steps: int) -> Any:
    """Return a student of the default settings."""
    kind, config = AGENTS[algo]
    agent = kind(config(num_steps=16), env, total_steps, 1)
    step = env.reset()
    for _ in range(total_steps // env.num_envs // 16):
        for _ in range(16):
            decision = agent.act(step.obs, step.action_mask)
            next_step = env.step(decision.action)
            agent.observe(step, decision, decision.action, next_step, next_step.reward)
            step = next_step.as_initial()
        agent.update(step)
    return agent


def test_reused_arrays_are_copied() -> None:
    """Step 10 of a ten-step episode has its own final observation, and no Step changes later."""
    shown = trajectory(odd("Reused"), 25)
    for index, step in enumerate(shown):
        passed = index % 10
        assert step.obs.tolist() == [[passed] * 2] * 3
        assert step.final_obs.tolist() == [[10 if index and passed == 0 else passed] * 2] * 3
        assert step.action_mask.tolist() == [[passed % 2 == 1, True]] * 3
        assert torch.equal(step.state["obs"], step.obs)
        assert torch.equal(step.final_state["obs"], step.final_obs)


SOURCES = ("made", "numpy", "python", "torch", "own", "action_space", "observation_space", "all")


@pytest.mark.parametrize("source", SOURCES)
def test_every_generator_is_seeded_by_the_seed_and_the_copy(source: str) -> None:
    """Whatever the process drew before, and however many copies there are."""
    whole = trajectory(odd("Draws", 5, seed=4, source=source), 23)
    random.random(), np.random.rand(), torch.rand(3)
    assert_steps_equal(trajectory(odd("Draws", 5, seed=4, source=source), 23), whole)
    assert_steps_equal(trajectory(odd("Draws", 2, seed=4, source=source, first_env_id=3), 23, 3), whole, slice(3, 5))
    rows = torch.stack([step.obs for step in whole], 1).flatten(1)
    other = torch.stack([step.obs for step in trajectory(odd("Draws", 5, seed=5, source=source), 23)], 1).flatten(1)
    assert len(torch.cat([rows, other]).unique(dim=0)) == 10
    if source in ("numpy", "python", "torch", "own", "observation_space"):
        assert len(torch.stack([step.obs[0, 1] for step in whole]).unique()) == len(whole), "a new number in each step"


@pytest.mark.parametrize("source", ["numpy", "python", "torch"])
def test_env_that_draws_after_many_steps_is_seeded_from_then_on(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first draws are determined by the seed, the later ones by the copy, too."""
    monkeypatch.setattr(global_generators, "WATCHED_CALLS", 20)

    def play(num_envs: int) -> list[Any]:
        random.random(), np.random.rand(), torch.rand(3)
        env = odd("Draws", num_envs, seed=4, source="own")
        steps = trajectory(env, 12)
        assert not env.generators.are_used  # type: ignore[attr-defined]
        for copy in env.copies:  # type: ignore[attr-defined]
            copy.unwrapped.source = source
        steps += [env.step(some_action(env)) for _ in range(5)]
        assert env.generators.are_used  # type: ignore[attr-defined]
        return steps

    whole = play(5)
    assert_steps_equal(play(5), whole)
    assert_steps_equal(play(2)[-4:], whole[-4:], slice(0, 2))
    assert len(torch.stack([step.obs[:, 1] for step in whole[-4:]]).unique()) == 20


def test_env_that_draws_from_its_own_generators_is_not_seeded_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(global_generators, "WATCHED_CALLS", 50)
    seeds, seed_all = [], global_generators.seed_all

    def seeded(seed: int) -> None:
        seeds.append(seed)
        seed_all(seed)

    monkeypatch.setattr(global_generators, "seed_all", seeded)
    env = envs.make("gym:CartPole-v1", 8)
    trajectory(env, 200)
    assert len(seeds) < 200


@pytest.mark.train
def test_runs_of_one_seed_in_an_env_that_draws_anywhere_are_equal(tmp_path: Path) -> None:
    for name in ("one", "other"):
        config = small_config("ppo", f"{ODD}Draws-v0", tmp_path / name, tutor="none")
        train(replace(config, num_envs=8, total_steps=512, eval_every=256))
        random.random(), np.random.rand(), torch.rand(3)
    assert logged(tmp_path / "one") == logged(tmp_path / "other")


def test_generators_of_the_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an env that draws from them, watched or not, and by one that does not."""

    def draw() -> tuple[float, ...]:
        return np.random.rand(), random.random(), random.gauss(0, 1), float(torch.rand(()))

    def drawn(*calls: Callable[[], Any]) -> list[tuple[float, ...]]:
        np.random.seed(1), random.seed(1), torch.manual_seed(1)
        return [draw() for call in calls if call() or True]

    expected = drawn(*[lambda: None] * 4)
    for source, watched in itertools.product(("all", "own"), (4096, 0)):
        monkeypatch.setattr(global_generators, "WATCHED_CALLS", watched)
        env = odd("Draws", source=source)
        take = partial(env.step, some_action(env))
        assert drawn(partial(odd, "Draws", source=source), env.reset, take, take) == expected


@pytest.mark.parametrize("source", ["info", "method", "attribute", "obs"])
@pytest.mark.parametrize("algo", AGENTS)
def test_env_that_raises_on_an_illegal_action_is_trained_in(source: str, algo: str) -> None:
    env = odd("Strict", 4, source=source)
    step = env.reset()
    assert step.obs.shape == (4, 1)
    kind, config = AGENTS[algo]
    agent = kind(config(hidden=(8,)), env, 1000, 1)
    for index in range(1, 45):
        decision = agent.act(step.obs, step.action_mask)
        next_step = env.step(decision.action)
        agent.observe(step, decision, decision.action, next_step, next_step.reward) if algo == "dqn" else None
        legal = [action >= index % 10 % 4 for action in range(4)]
        assert next_step.action_mask.tolist() == [legal] * 4
        assert next_step.final_action_mask.tolist() == [[True] * 4 if index % 10 == 0 else legal] * 4
        step = next_step.as_initial()
    if algo == "dqn":
        batch = agent.replay.sample(torch.linspace(0, 0.999, 160), 1, 0.9)
        for obs, mask in ((batch.obs, batch.action_mask), (batch.next_obs, batch.next_action_mask)):
            passed = obs[:, 0].long()
            expected = (torch.arange(4) >= passed[:, None] % 4) | (passed == 10)[:, None]
            assert torch.equal(mask, expected)


@pytest.mark.parametrize("game", ["Connect4", "Snake", "TorchBlackjack"])
def test_masks_of_our_games_through_gymnasium_equal_ours(game: str) -> None:
    name = {"TorchBlackjack": "blackjack"}.get(game, game.lower())
    ours = envs.make_game(name)
    env = envs.make(f"gym:envs.gymnasium_api:{game}-v0", 4, seed=2)
    step = env.reset()
    for _ in range(60):
        inner = [copy.unwrapped for copy in env.copies]
        expected = torch.cat([ours.observe(one.states[-1])[1] for one in inner])
        assert torch.equal(step.action_mask, expected)
        step = env.step(step.action_mask.long().argmax(1))


def test_several_actions_and_parts_of_observations_become_one() -> None:
    env = odd("Joint")
    assert env.spec.num_actions == 6
    assert env.spec.obs_shape == (9,)
    step = env.reset()
    assert step.action_mask.tolist() == [[True, True, True, False, True, True]] * 3
    assert step.obs[0].tolist() == [1, 0, 1, 0, 0, 0.5, 0.5, 0.5, 0.5], "the parts in the order of their names"
    for index in range(1, 11):
        step = env.step(torch.tensor([0, 2, 5]))
        assert step.reward.tolist() == [0, 1, 0]
        assert step.truncated.tolist() == [index == 10] * 3
    assert not step.terminated.any()


@pytest.mark.parametrize(
    ("space", "number"),
    [
        (gym.spaces.Discrete(3, start=-1), 3),
        (gym.spaces.MultiDiscrete([[2, 3], [4, 1]]), 24),
        (gym.spaces.MultiDiscrete([64, 64]), 4096),
        (gym.spaces.MultiBinary(5), 32),
    ],
)
def test_each_number_is_an_action_of_its_own(space: Any, number: int) -> None:
    form = ActionFormat(space)
    assert form.number == number
    actions = form.take(list(range(number)))
    assert all(space.contains(action) for action in actions)
    assert len({str(np.asarray(action).tolist()) for action in actions}) == number


def test_masks_of_several_actions_are_joined() -> None:
    form = ActionFormat(gym.spaces.MultiDiscrete([2, 3]))
    expected = [True, False, True, False, False, False]
    assert form.mask(np.array([1, 0, 1, 0, 1])).tolist() == expected
    assert form.mask((np.array([1, 0], np.int8), np.array([1, 0, 1], np.int8))).tolist() == expected


FAULTS = {
    "nan": "the observation holds values that are not finite",
    "inf": "the observation holds values that are not finite",
    "huge": "the observation holds values that are not finite",
    "infs": "the observation holds values that are not finite",
    "reward_0d": "the reward is nan; it must be finite",
    "reward_nan": "the reward is nan; it must be finite",
    "reward_inf": "the reward is inf; it must be finite",
    "reward_huge": "the reward is 1e[+]300; it must be finite",
    "reward_high": "the reward is 'high'; it must be a single number",
    "shape": r"the observation is of shape \(3,\)",
    "type": "step raised ValueError: the observation is of shape",
    "nothing": "step raised ValueError: the observation is of shape",
    "terminated": "terminated is 'no'",
    "terminated_nan": "terminated is nan; it must be a truth value",
    "terminated_2": "terminated is 2; it must be a truth value",
    "exits": "step raised SystemExit: 3 at .*odd_envs.py, line",
    "raises": "step raised KeyError: 'left' at .*odd_envs.py, line",
    "old_api": r"step must return \(observation, reward, terminated, truncated, info\)",
    "no_action": "the action mask leaves no legal action",
    "short_mask": "the action mask has 1 entries; there are 2 actions [(]",
    "long_mask": "the action mask has 3 entries; there are 2 actions [(]",
    "nan_mask": "the action mask holds more than 0 and 1 [(]",
    "odd_mask": "the action mask holds more than 0 and 1",
}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_an_env_name_it_the_copy_and_the_time_step(fault: str) -> None:
    env = odd("Faulty", first_env_id=6, fault=fault)
    env.reset()
    for _ in range(2):
        env.step(some_action(env))
    with pytest.raises(EnvError, match=f"^{ODD}Faulty-v0: .*{FAULTS[fault]}.*copy 6, time step 3"):
        env.step(some_action(env))


def test_signal_that_ends_the_program_in_an_env_is_not_its_fault() -> None:
    env = odd("Draws")
    env.reset()
    env.copies[0].unwrapped.obs = partial(end_by_signal, 15, None)  # type: ignore[attr-defined]
    with pytest.raises(SystemExit, match="143"):
        env.step(some_action(env))


def test_memory_that_runs_out_in_an_env_is_not_its_fault() -> None:
    env = odd("Faulty", fault="memory")
    env.reset()
    env.step(some_action(env)), env.step(some_action(env))
    with pytest.raises(MemoryError):
        env.step(some_action(env))


def test_fault_in_a_later_reset_is_named() -> None:
    env = odd("FaultyReset")
    env.reset()
    for _ in range(9):
        env.step(some_action(env))
    with pytest.raises(EnvError, match=r"reset must return \(observation, info\) \(copy 0, time step 0"):
        env.step(some_action(env))


def test_values_that_a_type_cannot_hold_are_refused() -> None:
    with pytest.raises(EnvError, match="has values that are not of the type that the space says, uint8"):
        odd("Floats").reset()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Mission", "whose size is not fixed; a student requires one that is"),
        ("Unmade", "cannot be made: NotImplementedError at .*odd_envs.py, line"),
    ],
)
def test_env_that_cannot_be_used_is_refused_when_it_is_made(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{ODD}{name}-v0 .*{said}"):
        odd(name)


def test_too_many_joint_actions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"has 8,192 joint actions, .* 4,096 at most"):
        ActionFormat(gym.spaces.MultiBinary(13))


def test_gymnasium_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_here.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        'gymnasium.register("Here-v0", CartPoleEnv, max_episode_steps=5)\n'
    )
    monkeypatch.setattr("sys.path", ["", *(path for path in __import__("sys").path if path)][1:])
    monkeypatch.chdir(tmp_path)
    assert envs.make("gym:found_here:Here-v0", 2).spec.time_limit == 5


class Words(gym.Space[str]):
    """Words of a kind that Gymnasium does not know, as MiniGrid's missions are."""

    def sample(self, *args: Any, **kwargs: Any) -> str:
        return "go there"


def test_words_that_gymnasium_cannot_flatten_are_left_out_of_a_dict() -> None:
    pair = gym.spaces.Box(-1, 1, (2,))
    found = ObservationFormat(gym.spaces.Dict({"mission": Words(), "seen": pair}))
    assert found.shape == (2,)
    row = found.empty(1)[0]
    found.write({"mission": "go there", "seen": np.array([0.5, -0.5], np.float32)}, row)
    assert row.tolist() == [0.5, -0.5]
    batch = {"mission": ("go", "there"), "seen": np.zeros((2, 2), np.float32)}
    assert [one["seen"].tolist() for one in found.split(batch)[0]] == [[0, 0], [0, 0]]
    assert ObservationFormat(gym.spaces.Dict({"name": gym.spaces.Text(5), "seen": pair})).shape[0] > 2, "these it can"
    with pytest.raises(ValueError, match="cannot be flattened"):
        ObservationFormat(gym.spaces.Dict({"mission": Words()}))
