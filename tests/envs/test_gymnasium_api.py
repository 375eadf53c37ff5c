"""Our games as Gymnasium envs: against Gymnasium's checker, spaces, wrappers and vector envs; against every step that
the rules make possible; and against a game whose state records its own calls.
"""

import copy
import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import ClipReward, DictInfoToList, RecordEpisodeStatistics
from torch import Tensor

from envs.base import Game, Spec, State, Step, select_rows
from envs.connect4 import notation
from envs.episode_stats import EpisodeStats
from envs.gymnasium_api import BatchedEnv, SingleEnv
from envs.rendering import DRAWINGS
from envs.rng import EXPLORATION_STREAM, CounterRNG

IDS = ("TorchBlackjack-v0", "Connect4-v0", "Snake-v0")
SMALL = {"Snake-v0": {"size": 4, "time_limit": 15}}  # random episodes soon end in every way
SHAPES = {"TorchBlackjack-v0": (29,), "Connect4-v0": (2, 6, 7), "Snake-v0": (6, 12, 12)}
ACTIONS = {"TorchBlackjack-v0": 2, "Connect4-v0": 7, "Snake-v0": 4}
N = 7

every_id = pytest.mark.parametrize("name", IDS)
every_kind = pytest.mark.parametrize("kind", ["single", "batched"])


def single(name: str, **options: Any) -> gym.Env:
    return gym.make(f"envs.gymnasium_api:{name}", **options)


def batched(name: str, num_envs: int = N, **options: Any) -> gym.vector.VectorEnv:
    return gym.make_vec(f"envs.gymnasium_api:{name}", num_envs=num_envs, **options)


class Output(NamedTuple):
    """The return values of a Gymnasium step."""

    obs: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: dict[str, Any]


def outputs(env: gym.Env, steps: int, seed: int | None = 0) -> Iterator[Output]:
    """Yield the results of random legal actions, episode after episode; only the first reset has a seed."""
    env.action_space.seed(5)
    obs, info = env.reset(seed=seed)
    yield Output(obs, 0.0, False, False, info)
    for _ in range(steps):
        now = Output(*env.step(env.action_space.sample(info["action_mask"])))
        yield now
        info = now.info
        if now.terminated or now.truncated:
            obs, info = env.reset()
            yield Output(obs, 0.0, False, False, info)


def actions_for(env: gym.vector.VectorEnv, info: dict[str, Any]) -> np.ndarray:
    """Return random legal actions for all copies."""
    return env.action_space.sample(tuple(np.asarray(info["action_mask"])))


def batched_outputs(env: gym.vector.VectorEnv, steps: int, seed: int | None = 0) -> Iterator[Output]:
    """Yield the same of a batched env, which resets itself."""
    env.action_space.seed(5)
    obs, info = env.reset(seed=seed)
    yield Output(obs, np.zeros(N), np.zeros(N, bool), np.zeros(N, bool), info)
    for _ in range(steps):
        now = Output(*env.step(actions_for(env, info)))
        yield now
        info = now.info


def as_bytes(results: Iterator[Output]) -> list[tuple[bytes, ...]]:
    """Return results in a form that can be compared."""
    return [tuple(np.asarray(part).tobytes() for part in result[:4]) for result in results]


def episodes_as_bytes(kind: str, name: str, seed: int | None, steps: int = 25) -> list[tuple[bytes, ...]]:
    if kind == "single":
        return as_bytes(outputs(single(name), steps, seed))
    return as_bytes(batched_outputs(batched(name), steps, seed))


@every_id
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_check_env_passes(name: str, render_mode: str | None) -> None:
    check_env(single(name, render_mode=render_mode).unwrapped)  # a warning is an error here


@every_id
def test_spaces_are_those_of_the_game(name: str) -> None:
    env = single(name)
    assert env.observation_space == Box(-1, 1, SHAPES[name], np.float32)
    assert env.action_space == Discrete(ACTIONS[name])


@every_id
def test_single_steps_lie_within_spaces(name: str) -> None:
    env, ends = single(name, **SMALL.get(name, {})), 0
    for obs, reward, terminated, truncated, info in outputs(env, 250):
        assert env.observation_space.contains(obs)
        assert type(reward) is float
        assert type(terminated) is type(truncated) is bool
        assert info["action_mask"].dtype == np.int8
        assert info["action_mask"].shape == (ACTIONS[name],)
        ends += terminated or truncated
    assert ends >= 8, "several episodes in a row"


@every_id
def test_single_obs_and_mask_equal_game_observe(name: str) -> None:
    env, masks = single(name, **SMALL.get(name, {})), set()
    for result in outputs(env, 100):
        obs, action_mask = env.unwrapped.game.observe(env.unwrapped.states[-1])
        assert np.array_equal(result.info["action_mask"], action_mask[0].numpy())
        assert np.array_equal(result.obs, obs[0].numpy())
        masks.add(result.info["action_mask"].tobytes())
    assert (len(masks) > 1) == (name != "TorchBlackjack-v0")


def test_connect4_full_column_is_masked() -> None:
    for result in outputs(single("Connect4-v0"), 120):
        top = result.obs[:, 0].sum(0)
        if not (result.terminated and top.all()):
            assert np.array_equal(result.info["action_mask"], 1 - top)


def observations(game: Game, states: State) -> set[tuple[bytes, bytes]]:
    """Return the observation and action mask of every row."""
    obs, action_mask = (part.numpy() for part in game.observe(states))
    return {(a.tobytes(), b.astype(np.int8).tobytes()) for a, b in zip(obs, action_mask, strict=True)}


def possible(game: Game, state: State, action: int, tries: int = 300) -> set[tuple[bytes, bytes, float, bool]]:
    """Return every possible outcome of an action: observation, action mask, reward, terminated."""
    rng = CounterRNG(7, torch.arange(tries), EXPLORATION_STREAM).uniform(0, game.spec.num_step_uniforms)
    before = select_rows(state, torch.zeros(tries, dtype=torch.int64))
    after, reward, terminated = game.step(before, torch.full((tries,), action), rng)
    obs, action_mask = (part.numpy() for part in game.observe(after))
    ends = zip(reward.tolist(), terminated.tolist(), strict=True)
    return {(a.tobytes(), b.astype(np.int8).tobytes(), *end) for a, b, end in zip(obs, action_mask, ends, strict=True)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("TorchBlackjack-v0", {}),
        ("TorchBlackjack-v0", {"sab": False, "natural": True}),
        ("Connect4-v0", {}),
        ("Connect4-v0", {"opponent": "random"}),
        ("Snake-v0", {"size": 4, "time_limit": 15}),
    ],
)
def test_single_step_is_possible_under_the_rules(name: str, options: dict[str, Any]) -> None:
    env = single(name, **options)
    obs, info = env.reset(seed=0)
    env.action_space.seed(6)
    game = env.unwrapped.game
    initial_obs = game.reset(
        CounterRNG(7, torch.arange(20_000), EXPLORATION_STREAM).uniform(0, game.spec.num_reset_uniforms)
    )
    initial = observations(game, initial_obs)
    for _ in range(60):
        if len(env.unwrapped.states) == 1:
            assert (obs.tobytes(), info["action_mask"].tobytes()) in initial
        before = env.unwrapped.states[-1]
        action = env.action_space.sample(info["action_mask"])
        obs, reward, terminated, truncated, info = env.step(action)
        here = (obs.tobytes(), info["action_mask"].tobytes(), reward, terminated)
        assert here in possible(game, before, action)
        if terminated or truncated:
            obs, info = env.reset()


class Recorder:
    """A game whose observation is the uniform of its reset, that of its last step, its last action and their number.

    Action 1 ends the episode, action 2 is legal after an even number of actions; the reward is the action plus 0.5.
    """

    def __init__(self, time_limit: int = 4) -> None:
        self.spec = Spec("recorder", 1, (4,), 3, num_reset_uniforms=1, num_step_uniforms=1, time_limit=time_limit)

    def reset(self, u: Tensor) -> State:
        return {"record": torch.cat([u, torch.zeros(len(u), 3)], 1)}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        initial, moves = state["record"][:, 0], state["record"][:, 3]
        return {"record": torch.stack([initial, u[:, 0], action / 4, moves + 1 / 64], 1)}, action + 0.5, action == 1

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        even = state["record"][:, 3] * 64 % 2 == 0
        return state["record"].clone(), torch.stack([torch.ones_like(even), torch.ones_like(even), even], 1)


RECORDER = f"{__name__}:Recorder"


def mask_after(moves: int) -> list[int]:
    return [1, 1, 1 - moves % 2]


@pytest.mark.parametrize("time_limit", [1, 4, 5])
def test_single_episodes_equal_recorder(time_limit: int) -> None:
    env, rng = SingleEnv(RECORDER, time_limit=time_limit), np.random.default_rng(0)
    uniforms = []  # all uniforms that were used
    for _ in range(40):
        (initial, *rest), info = env.reset()
        assert rest == [0, 0, 0]
        assert info["action_mask"].tolist() == mask_after(0)
        uniforms.append(initial)
        for moves in itertools.count(1):
            action = int(rng.choice([0, 0, 0, 1, 2]))
            obs, reward, terminated, truncated, info = env.step(action)
            assert obs.tolist() == [initial, obs[1], action / 4, moves / 64]
            assert (reward, terminated) == (action + 0.5, action == 1)
            assert truncated == (moves == time_limit and action != 1)
            assert info["action_mask"].tolist() == mask_after(moves)
            uniforms.append(obs[1])
            if terminated or truncated:
                break
    assert len(set(uniforms)) >= len(uniforms) - 2  # of 570 numbers of 24 bits two are equal in one run of a hundred


@pytest.mark.parametrize("time_limit", [1, 4, 5])
def test_batched_episodes_equal_recorder(time_limit: int) -> None:
    env, rng = BatchedEnv(RECORDER, N, time_limit=time_limit), np.random.default_rng(0)
    obs, info = env.reset()
    assert not obs[:, 1:].any()
    assert info["action_mask"].tolist() == [mask_after(0)] * N
    initial, moves = obs[:, 0].tolist(), [0] * N
    uniforms = list(initial)
    ends = set()
    for _ in range(60):
        actions = rng.choice([0, 0, 0, 1, 2], N)
        obs, reward, terminated, truncated, info = env.step(actions)
        for row, action in enumerate(actions.tolist()):
            moves[row] += 1
            final = info["final_obs"][row].tolist()
            assert final == [initial[row], final[1], action / 4, moves[row] / 64]
            uniforms.append(final[1])
            assert (reward[row], terminated[row]) == (action + 0.5, action == 1)
            assert truncated[row] == (moves[row] == time_limit and action != 1)
            ended = bool(terminated[row] or truncated[row])
            assert info["_final_obs"][row] == ended
            if ended:
                initial[row], moves[row] = obs[row, 0].item(), 0
                uniforms.append(initial[row])
            assert obs[row].tolist() == ([initial[row], 0, 0, 0] if ended else final)
            assert info["action_mask"][row].tolist() == mask_after(moves[row])
            ends.add((bool(terminated[row]), bool(truncated[row])))
    assert ends == {(False, False), (True, False), (False, True)} - ({(False, False)} if time_limit == 1 else set())
    assert len(set(uniforms)) >= len(uniforms) - 2  # of 570 numbers of 24 bits two are equal in one run of a hundred


def test_batched_reset_restarts_all_copies() -> None:
    env = BatchedEnv(RECORDER, N)
    first, _ = env.reset()
    env.step(np.zeros(N, np.int64))
    again, info = env.reset()
    assert not again[:, 1:].any()
    assert info["action_mask"].tolist() == [mask_after(0)] * N
    assert not set(first[:, 0]) & set(again[:, 0])
    _, _, _, truncated, _ = env.step(np.zeros(N, np.int64))
    assert not truncated.any()


@every_kind
@every_id
def test_same_seed_gives_same_episodes_and_other_seed_others(kind: str, name: str) -> None:
    assert episodes_as_bytes(kind, name, 3) == episodes_as_bytes(kind, name, 3)
    assert episodes_as_bytes(kind, name, 3) != episodes_as_bytes(kind, name, 4)


@every_kind
@every_id
def test_reset_with_seed_restarts_random_numbers(kind: str, name: str) -> None:
    env, results = (single(name), outputs) if kind == "single" else (batched(name), batched_outputs)
    for seed in (3, 0, 3):
        assert as_bytes(results(env, 12, seed)) == episodes_as_bytes(kind, name, seed, 12)


@every_kind
@every_id
def test_reset_without_seed_differs_between_envs(kind: str, name: str) -> None:
    assert episodes_as_bytes(kind, name, None) != episodes_as_bytes(kind, name, None)


@every_kind
@every_id
def test_reset_without_seed_continues_random_numbers(kind: str, name: str) -> None:
    def initial_obs() -> list[bytes]:
        env = single(name) if kind == "single" else batched(name)
        return [env.reset(seed=3)[0].tobytes(), *(env.reset()[0].tobytes() for _ in range(11))]

    assert initial_obs() == initial_obs()
    assert len(set(initial_obs())) >= (10 if kind == "batched" or name == "Snake-v0" else 4)


@every_kind
@pytest.mark.parametrize("size", [5, 6])
def test_option_size_reaches_snake(kind: str, size: int) -> None:
    env = {"single": single, "batched": batched}[kind]("Snake-v0", size=size)
    obs, _ = env.reset(seed=0)
    assert obs.shape[-3:] == (6, size, size)
    assert env.observation_space.contains(obs)


@every_kind
def test_option_death_reward_reaches_snake(kind: str) -> None:
    if kind == "single":
        env = single("Snake-v0", size=4, death_reward=-0.25)
        rewards = {result.reward for result in outputs(env, 100)}
    else:
        env = batched("Snake-v0", size=4, death_reward=-0.25)
        rewards = {reward for result in batched_outputs(env, 40) for reward in result.reward.tolist()}
    assert rewards == {0.0, 1.0, -0.25}


def stacks_four(env: gym.Env, episodes: int) -> int:
    """Return how many episodes are won by discs in the middle column alone."""
    won = 0
    env.reset(seed=0)
    for _ in range(episodes):
        ended, reward = False, 0.0
        for _ in range(4):
            if not ended:
                _, reward, ended, _, _ = env.step(3)
        won += reward == 1
        env.reset()
    return won


def test_single_option_opponent_reaches_connect4() -> None:
    assert stacks_four(single("Connect4-v0", opponent="random"), 30) > 5
    assert stacks_four(single("Connect4-v0", opponent="tactical"), 30) == 0
    assert stacks_four(single("Connect4-v0"), 30) == 0


def test_batched_option_opponent_reaches_connect4() -> None:
    rewards = {}
    for opponent in ("random", "tactical"):
        env = batched("Connect4-v0", 30, opponent=opponent)
        env.reset(seed=0)
        rewards[opponent] = sum(int((env.step(np.full(30, 3))[1] == 1).sum()) for _ in range(4))
    assert rewards["random"] > 5
    assert rewards["tactical"] == 0


@every_kind
def test_option_natural_reaches_blackjack(kind: str) -> None:
    rewards = {}
    for natural in (False, True):
        if kind == "single":
            env = single("TorchBlackjack-v0", sab=False, natural=natural)
            env.reset(seed=0)
            hands = [(env.step(0)[1], tuple(env.reset()[1]["gymnasium_obs"])) for _ in range(150)]
            rewards[natural] = {reward for reward, _ in hands}
        else:
            env = batched("TorchBlackjack-v0", 300, sab=False, natural=natural)
            env.reset(seed=0)
            rewards[natural] = set(env.step(np.zeros(300, int))[1].tolist())
    assert rewards == {False: {-1.0, 0.0, 1.0}, True: {-1.0, 0.0, 1.0, 1.5}}


@every_kind
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Snake-v0", {"sise": 6}, "no option of snake is called 'sise'.*did you mean 'size'"),
        ("TorchBlackjack-v0", {"size": 6}, "no option of blackjack is called 'size'; there are natural, sab"),
        ("Snake-v0", {"size": "large"}, "snake: size must be of type int"),
        ("Connect4-v0", {"opponent": "randm"}, "no opponent is called 'randm'.*did you mean 'random'"),
        ("Snake-v0", {"game": "snale"}, "no env is called 'snale'; there are .*did you mean 'snake'"),
    ],
)
def test_unknown_option_raises_with_known_ones(kind: str, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        {"single": single, "batched": batched}[kind](name, **options)


def test_unknown_output_raises() -> None:
    with pytest.raises(ValueError, match=re.escape("output is 'jax'; it must be 'numpy' or 'torch'")):
        batched("Snake-v0", output="jax")


def test_step_before_reset_raises() -> None:
    with pytest.raises(AssertionError, match="the first call must be reset"):
        batched("Snake-v0").step(np.zeros(N, int))
    with pytest.raises(gym.error.ResetNeeded):
        single("Snake-v0").step(0)


def test_single_snake_is_truncated_at_limit_unless_dead() -> None:
    env, length, last = single("Snake-v0", size=3, time_limit=4), 0, []
    env.action_space.seed(1)
    _, info = env.reset(seed=0)
    for _ in range(120):
        _, _, terminated, truncated, info = env.step(env.action_space.sample(info["action_mask"]))
        length += 1
        assert truncated == (length == 4 and not terminated)
        if terminated or truncated:
            last.append((length, terminated))
            length, (_, info) = 0, env.reset()
    assert {(4, True), (4, False)} < set(last)


def test_batched_snakes_are_truncated_by_own_elapsed_steps() -> None:
    lengths, last, alone = np.zeros(N), [], False
    for result in itertools.islice(batched_outputs(batched("Snake-v0", size=3, time_limit=4), 40), 1, None):
        lengths += 1
        assert np.array_equal(result.truncated, (lengths == 4) & ~result.terminated)
        ended = result.terminated | result.truncated
        last += zip(lengths[ended], result.terminated[ended], strict=True)
        alone |= bool(ended.any() and not ended.all())
        lengths[ended] = 0
    assert {(4, True), (4, False)} < set(last)
    assert alone


@every_id
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("num_envs", [1, N])
def test_batched_outputs_have_documented_shapes_and_dtypes(name: str, output: str, num_envs: int) -> None:
    env = batched(name, num_envs, output=output)
    kind = np.ndarray if output == "numpy" else Tensor
    extra = {"gymnasium_obs": ("int64", (num_envs, 3))} if name == "TorchBlackjack-v0" else {}
    promised = {"action_mask": ("int8", (num_envs, ACTIONS[name])), **extra}
    promised |= {f"_{key}": ("bool", (num_envs,)) for key in promised}
    obs_as = ("float32", (num_envs, *SHAPES[name]))

    def of(part: Any) -> tuple[str, tuple[int, ...]]:
        assert isinstance(part, kind)
        return str(part.dtype).removeprefix("torch."), tuple(part.shape)

    obs, info = env.reset(seed=0)
    assert of(obs) == obs_as
    assert {key: of(part) for key, part in info.items()} == promised
    for _ in range(3):
        obs, reward, terminated, truncated, info = env.step(actions_for(env, info))
        assert of(obs) == obs_as
        assert of(reward) == ("float32", (num_envs,))
        assert of(terminated) == of(truncated) == ("bool", (num_envs,))
        final_info = info.pop("final_info")
        assert {key: of(part) for key, part in final_info.items()} == promised
        finals = {"final_obs": obs_as, "_final_obs": ("bool", (num_envs,)), "_final_info": ("bool", (num_envs,))}
        assert {key: of(part) for key, part in info.items()} == promised | finals


@every_id
def test_batched_spaces_equal_sync_vector_env(name: str) -> None:
    ours, theirs = batched(name), batched(name, vectorization_mode="sync")
    assert ours.num_envs == theirs.num_envs == N
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, space) == getattr(theirs, space)


@every_id
def test_sync_vector_env_of_single_envs_runs(name: str) -> None:
    env = batched(name, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    _, info = env.reset(seed=0)
    assert info["action_mask"].shape == (N, ACTIONS[name])
    ends = 0
    for result in batched_outputs(env, 15):
        ends += int((result.terminated | result.truncated).sum())
        assert env.observation_space.contains(result.obs)
    assert ends > 0


@every_id
def test_batched_metadata_says_same_step_autoreset(name: str) -> None:
    assert batched(name).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def rows_of(env: gym.vector.VectorEnv) -> np.ndarray:
    """Return what each copy's state is, as rows of numbers."""
    inner = env.unwrapped.env
    return np.concatenate(
        [part.numpy().reshape(N, -1) for part in [*inner.state.values(), inner.elapsed_steps]], axis=1
    )


@every_id
def test_reset_mask_resets_its_copies_alone(name: str) -> None:
    """As Gymnasium's SyncVectorEnv does; the time limit of a copy begins anew with it."""
    env = batched(name, **SMALL.get(name, {}))
    _, info = env.reset(seed=1)
    for _ in range(5):
        info = env.step(actions_for(env, info))[-1]
    before, mask = rows_of(env), np.arange(N) % 2 == 0
    obs, info = env.reset(options={"reset_mask": mask})
    after = rows_of(env)
    assert (after[~mask] == before[~mask]).all()
    assert not (after[mask, -1]).any(), "no time step of the new episodes has passed"
    game = env.unwrapped.env.game
    expected, action_mask = game.observe(env.unwrapped.env.state)
    assert np.array_equal(obs, expected.numpy())
    assert np.array_equal(info["action_mask"], action_mask.numpy())
    assert (after[mask] != before[mask]).any()


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize(
    "mask", [[True] * N, np.ones(N, int), np.ones(N - 1, bool), np.zeros(N, bool), np.ones((N, 1), bool), None]
)
def test_reset_mask_of_another_kind_is_refused(mask: Any, output: str) -> None:
    env = batched("Snake-v0", output=output)
    env.reset(seed=1)
    with pytest.raises(ValueError, match=r"reset_mask is .*; it must be an array of 7 booleans, at least one"):
        env.unwrapped.reset(options={"reset_mask": mask})


def test_what_is_not_supported_of_the_contract_is_refused() -> None:
    env = batched("Snake-v0").unwrapped
    for seed, options in ((3, {"reset_mask": np.ones(N, bool)}), ([1] * N, None)):
        with pytest.raises(ValueError, match=r"seed is .*; it must be one whole number"):
            env.reset(seed=seed, options=options)
    with pytest.raises(ValueError, match=r"reset has no option 'level'; there are reset_mask"):
        env.reset(options={"level": 3})
    with pytest.raises(ValueError, match=r"reset has no option 'level'; there are none"):
        SingleEnv("snake").reset(options={"level": 3})
    for mode in ("rgb_array", "human", "cinema"):
        with pytest.raises(ValueError, match=f"render_mode is '{mode}'; a batch is not drawn"):
            BatchedEnv("snake", N, render_mode=mode)
    assert env.metadata["render_modes"] == []


@every_id
def test_single_env_does_not_play_on_after_its_end(name: str) -> None:
    env = single(name, **SMALL.get(name, {})).unwrapped
    with pytest.raises(gym.error.ResetNeeded, match="call reset before step"):
        env.step(0)
    ends = 0
    for seed in range(8):
        _, info = env.reset(seed=seed)
        over = False
        while not over:
            _, _, terminated, truncated, info = env.step(int(info["action_mask"].argmax()))
            over = terminated or truncated
        ends += 1
        with pytest.raises(gym.error.ResetNeeded, match="call reset before step"):
            env.step(0)
    assert ends == 8


@every_id
def test_batched_steps_lie_within_spaces(name: str) -> None:
    env = batched(name, **SMALL.get(name, {}))
    for result in batched_outputs(env, 80):
        assert env.observation_space.contains(result.obs)
        if "final_obs" in result.info:
            assert env.observation_space.contains(result.info["final_obs"])
        assert not (result.terminated & result.truncated).any()


@every_id
def test_batched_step_equals_vec_env(name: str) -> None:
    env = batched(name, **SMALL.get(name, {}))
    obs, info = env.reset(seed=3)
    itself = copy.deepcopy(env.unwrapped.env)
    env.action_space.seed(5)
    assert np.array_equal(obs, itself.game.observe(itself.state)[0].numpy())
    assert np.array_equal(info["action_mask"], itself.game.observe(itself.state)[1].numpy())
    for _ in range(50):
        actions = actions_for(env, info)
        step = itself.step(torch.from_numpy(actions))
        obs, reward, terminated, truncated, info = env.step(actions)
        final_mask = info["final_info"]["action_mask"]
        results = (obs, info["action_mask"], reward, terminated, truncated, info["final_obs"], final_mask)
        for ours, theirs, field in zip(results, step, Step._fields, strict=False):
            assert np.array_equal(ours, theirs.numpy()), field
        assert np.array_equal(info["_final_obs"], (step.terminated | step.truncated).numpy())


@every_id
def test_batched_copies_are_independent_of_num_envs(name: str) -> None:
    small, large = batched(name, 3), batched(name, 8)
    (few, info), (many, _) = small.reset(seed=3), large.reset(seed=3)
    small.action_space.seed(5)
    for _ in range(30):
        assert np.array_equal(few, many[:3])
        actions = actions_for(small, info)
        few, *_, info = small.step(actions)
        many, *_ = large.step(np.concatenate([actions, [0] * 5]))
    assert len({row.tobytes() for row in many}) > 1


@every_id
def test_batched_numpy_output_equals_torch(name: str) -> None:
    results = [
        batched_outputs(batched(name, output=output, **SMALL.get(name, {})), 30) for output in ("numpy", "torch")
    ]
    for arrays, tensors in zip(*results, strict=True):
        for ours, theirs in zip(arrays[:4], tensors[:4], strict=True):
            assert np.array_equal(ours, np.asarray(theirs))
        assert arrays.info.keys() == tensors.info.keys()
        flat, flat_tensors = (
            one.info | {f"final {key}": part for key, part in one.info.pop("final_info", {}).items()}
            for one in (arrays, tensors)
        )
        assert flat.keys() == flat_tensors.keys()
        for key in flat:
            assert np.array_equal(flat[key], flat_tensors[key].numpy()), key


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_batched_step_accepts_arrays_tensors_and_lists(output: str) -> None:
    def rewards(of: Any) -> list[float]:
        env = BatchedEnv(RECORDER, 3, output=output)
        env.reset(seed=0)
        return env.step(of)[1].tolist()

    for actions in (np.array([2, 0, 1]), np.array([2, 0, 1], np.int32), torch.tensor([2, 0, 1]), [2, 0, 1]):
        assert rewards(actions) == [2.5, 0.5, 1.5]


def overwrite(parts: Any) -> None:
    """Overwrite every array and tensor."""
    for part in parts:
        if isinstance(part, dict):
            overwrite(part.values())
        elif isinstance(part, np.ndarray | Tensor):
            part[...] = 1


@every_id
@pytest.mark.parametrize("kind", ["single", "numpy", "torch"])
def test_writing_into_outputs_does_not_change_episodes(kind: str, name: str) -> None:
    def results_as_bytes(spoil: bool) -> list[Any]:
        env = single(name) if kind == "single" else batched(name, output=kind)
        env.action_space.seed(5)
        results = []
        outputs_given = env.reset(seed=3)
        for _ in range(20):
            results.append(copy.deepcopy(outputs_given[:-1]))
            masks = np.asarray(outputs_given[-1]["action_mask"]).copy()
            if spoil:
                overwrite(outputs_given)
            outputs_given = env.step(env.action_space.sample(masks if kind == "single" else tuple(masks)))
            if kind == "single" and (outputs_given[2] or outputs_given[3]):
                results.append(copy.deepcopy(outputs_given[:-1]))
                outputs_given = env.reset()
        return [[np.asarray(part).tobytes() for part in parts] for parts in results]

    assert results_as_bytes(spoil=True) == results_as_bytes(spoil=False)


@every_id
def test_record_episode_statistics_equals_episode_stats(name: str) -> None:
    env = RecordEpisodeStatistics(batched(name, **SMALL.get(name, {})))
    _, info = env.reset(seed=3)
    itself, score = copy.deepcopy(env.unwrapped.env), EpisodeStats(N, "cpu")
    env.action_space.seed(5)
    rewards_of: list[list[float]] = [[] for _ in range(N)]
    recorded: list[tuple[float, int]] = []
    for _ in range(70):
        actions = actions_for(env, info)
        score.add(itself.step(torch.from_numpy(actions)))
        _, reward, terminated, truncated, info = env.step(actions)
        for row, rewards in enumerate(rewards_of):
            rewards.append(float(reward[row]))
            if terminated[row] or truncated[row]:
                here = info["episode"]["r"][row], info["episode"]["l"][row]
                assert here == (sum(rewards), len(rewards))
                recorded.append(here)
                rewards.clear()
    taken = score.pop()
    assert taken["episodes"] == len(recorded) >= 20
    assert np.allclose([taken["return"], taken["length"]], np.mean(recorded, axis=0))


@every_id
def test_dict_info_to_list_wrapper_works(name: str) -> None:
    env = DictInfoToList(batched(name, **SMALL.get(name, {})))
    plain = batched(name, **SMALL.get(name, {}))
    (_, listed), (_, info) = env.reset(seed=3), plain.reset(seed=3)
    ends = 0
    for _ in range(30):
        for row in range(N):
            ended = "_final_obs" in info and info["_final_obs"][row]
            ends += bool(ended)
            kept = {key for key in info if not key.startswith("_") and (not key.startswith("final_") or ended)}
            assert listed[row].keys() == kept
            assert all(np.array_equal(listed[row][key], info[key][row]) for key in kept - {"final_info"})
            if ended:
                final = info["final_info"]["action_mask"][row]
                assert np.array_equal(listed[row]["final_info"]["action_mask"], final)
        actions = actions_for(plain, info)
        listed, info = env.step(actions)[-1], plain.step(actions)[-1]
    assert ends > 0


def test_clip_reward_wrapper_works() -> None:
    env = ClipReward(batched("Connect4-v0", opponent="random"), -0.25, 0.5)
    rewards = {reward for result in batched_outputs(env, 40) for reward in result.reward.tolist()}
    assert rewards == {0.0, 0.5, -0.25}


def numbers_in(features: np.ndarray) -> tuple[int | None, int, int]:
    """Return the sum (None beyond 21), the dealer's card and whether an ace is usable from the 29 features."""
    assert set(features.tolist()) <= {0.0, 1.0}
    total, card = np.flatnonzero(features[:18]), np.flatnonzero(features[18:28])
    assert len(card) == 1
    return (int(total.item()) + 4 if len(total) else None), int(card.item()) + 1, int(features[28])


def test_single_gymnasium_obs_equals_obs() -> None:
    observations = set()
    for result in outputs(single("TorchBlackjack-v0"), 300):
        total, card, usable = result.info["gymnasium_obs"].tolist()
        assert numbers_in(result.obs) == (total if total <= 21 else None, card, usable)
        assert total <= 21 or (result.terminated and result.reward == -1)
        observations.add((total, usable))
    assert {total for total, _ in observations} > set(range(5, 26))
    assert {usable for _, usable in observations} == {0, 1}


def test_batched_gymnasium_obs_equals_obs() -> None:
    bust = 0
    for result in batched_outputs(batched("TorchBlackjack-v0"), 100):
        for features, raw in zip(result.obs, result.info["gymnasium_obs"].tolist(), strict=True):
            assert numbers_in(features) == tuple(raw)
        for features in result.info.get("final_obs", ()):
            bust += numbers_in(features)[0] is None
    assert bust > 0


@every_id
def test_render_without_mode_returns_none(name: str) -> None:
    env = single(name)
    env.reset(seed=0)
    assert env.unwrapped.render_mode is None
    assert env.unwrapped.render() is None


@every_id
def test_render_draws_current_state(name: str) -> None:
    text, picture = (single(name, render_mode=mode) for mode in ("ansi", "rgb_array"))
    drawing = DRAWINGS[text.unwrapped.game.spec.name]
    observations = set()
    for one, other in zip(outputs(text, 25), outputs(picture, 25), strict=True):
        assert np.array_equal(one.obs, other.obs)
        game, states = text.unwrapped.game, text.unwrapped.states
        assert text.render() == drawing.text(game.spec, states)
        pixels = picture.render()
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, drawing.image(game.spec, states))
        observations.add(pixels.tobytes())
    assert len(observations) > 10


def test_render_connect4_text_equals_obs_and_moves_of_episode() -> None:
    env = single("Connect4-v0", render_mode="ansi")
    for result in outputs(env, 80):
        drawn = env.render()
        cells = np.array([line.split() for line in drawn.splitlines()[:6]])
        assert np.array_equal(cells == "x", result.obs[0] == 1)
        assert np.array_equal(cells == "o", result.obs[1] == 1)
        assert (cells[result.obs.sum(0) == 0] == ".").all()
        assert len(re.findall(r"\b[a-g][1-6]\b", drawn)) == result.obs.sum()
        assert drawn.endswith(notation(env.unwrapped.states))


def test_render_snake_text_equals_obs() -> None:
    env = single("Snake-v0", render_mode="ansi", **SMALL["Snake-v0"])
    lengths = set()
    for result in outputs(env, 120):
        cells = np.array([line.split() for line in env.render().splitlines()])
        body, head, _, fruit, down, right = result.obs
        for sign, where in {
            "@": head == 1,
            "*": fruit == 1,
            "v": down == 1,
            "^": down == -1,
            ">": right == 1,
            "<": right == -1,
            ".": (body == 0) & (fruit == 0),
        }.items():
            assert np.array_equal(cells == sign, where), sign
        lengths.add(body.sum())
    assert len(lengths) >= 2


def test_render_blackjack_text_equals_gymnasium_obs() -> None:
    env = single("TorchBlackjack-v0", render_mode="ansi")
    for result in outputs(env, 60):
        drawn = env.render()
        total, card, usable = result.info["gymnasium_obs"].tolist()
        assert re.findall(r"\d+", drawn) == [str(total), *["11"] * usable, str(card)]
