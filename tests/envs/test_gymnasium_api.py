"""Our games as Gymnasium envs: against Gymnasium's own checker, spaces, wrappers and vectors; against the rules, of
which every step must be a possible one; and against a diary that a game keeps of all it is asked.
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

GAMES = ("TorchBlackjack-v0", "Connect4-v0", "Snake-v0")
SMALL = {"Snake-v0": {"size": 4, "time_limit": 15}}  # options with which random games soon end in every way
SHAPES = {"TorchBlackjack-v0": (29,), "Connect4-v0": (2, 6, 7), "Snake-v0": (6, 12, 12)}
ACTIONS = {"TorchBlackjack-v0": 2, "Connect4-v0": 7, "Snake-v0": 4}
N = 7

every_game = pytest.mark.parametrize("name", GAMES)
every_kind = pytest.mark.parametrize("kind", ["single", "batched"])


def single(name: str, **options: Any) -> gym.Env:
    return gym.make(f"envs.gymnasium_api:{name}", **options)


def batched(name: str, num_envs: int = N, **options: Any) -> gym.vector.VectorEnv:
    return gym.make_vec(f"envs.gymnasium_api:{name}", num_envs=num_envs, **options)


class Moment(NamedTuple):
    """What an env gave back."""

    obs: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: dict[str, Any]


def moments(env: gym.Env, steps: int, seed: int | None = 0) -> Iterator[Moment]:
    """Random legal play, game after game; only the first reset has a seed."""
    env.action_space.seed(5)
    obs, info = env.reset(seed=seed)
    yield Moment(obs, 0.0, False, False, info)
    for _ in range(steps):
        now = Moment(*env.step(env.action_space.sample(info["action_mask"])))
        yield now
        info = now.info
        if now.terminated or now.truncated:
            obs, info = env.reset()
            yield Moment(obs, 0.0, False, False, info)


def actions_for(env: gym.vector.VectorEnv, info: dict[str, Any]) -> np.ndarray:
    """Random legal actions for all games."""
    return env.action_space.sample(tuple(np.asarray(info["action_mask"])))


def batched_moments(env: gym.vector.VectorEnv, steps: int, seed: int | None = 0) -> Iterator[Moment]:
    """The same for a batch, which begins anew by itself."""
    env.action_space.seed(5)
    obs, info = env.reset(seed=seed)
    yield Moment(obs, np.zeros(N), np.zeros(N, bool), np.zeros(N, bool), info)
    for _ in range(steps):
        now = Moment(*env.step(actions_for(env, info)))
        yield now
        info = now.info


def telling(shown: Iterator[Moment]) -> list[tuple[bytes, ...]]:
    """What a series of games comes to, as something that can be compared."""
    return [tuple(np.asarray(part).tobytes() for part in moment[:4]) for moment in shown]


def series(kind: str, name: str, seed: int | None, steps: int = 25) -> list[tuple[bytes, ...]]:
    if kind == "single":
        return telling(moments(single(name), steps, seed))
    return telling(batched_moments(batched(name), steps, seed))


@every_game
@pytest.mark.parametrize("render_mode", [None, "ansi", "rgb_array"])
def test_gymnasiums_checker_finds_nothing(name: str, render_mode: str | None) -> None:
    check_env(single(name, render_mode=render_mode).unwrapped)  # a warning is an error here


@every_game
def test_the_spaces_are_those_of_the_game(name: str) -> None:
    env = single(name)
    assert env.observation_space == Box(-1, 1, SHAPES[name], np.float32)
    assert env.action_space == Discrete(ACTIONS[name])


@every_game
def test_hundreds_of_steps_lie_within_the_spaces(name: str) -> None:
    env, ends = single(name, **SMALL.get(name, {})), 0
    for obs, reward, terminated, truncated, info in moments(env, 250):
        assert env.observation_space.contains(obs)
        assert type(reward) is float
        assert type(terminated) is type(truncated) is bool
        assert info["action_mask"].dtype == np.int8
        assert info["action_mask"].shape == (ACTIONS[name],)
        ends += terminated or truncated
    assert ends >= 8, "several games in a row"


@every_game
def test_an_action_mask_is_what_look_says_is_legal(name: str) -> None:
    env, masks = single(name, **SMALL.get(name, {})), set()
    for moment in moments(env, 100):
        obs, action_mask = env.unwrapped.game.observe(env.unwrapped.states[-1])
        assert np.array_equal(moment.info["action_mask"], action_mask[0].numpy())
        assert np.array_equal(moment.obs, obs[0].numpy())
        masks.add(moment.info["action_mask"].tobytes())
    assert (len(masks) > 1) == (name != "TorchBlackjack-v0")


def test_a_full_column_is_masked() -> None:
    for moment in moments(single("Connect4-v0"), 120):
        top = moment.obs[:, 0].sum(0)
        if not (moment.terminated and top.all()):
            assert np.array_equal(moment.info["action_mask"], 1 - top)


def seen(game: Game, states: State) -> set[tuple[bytes, bytes]]:
    """What is seen in every row, and what is legal."""
    obs, action_mask = (part.numpy() for part in game.observe(states))
    return {(a.tobytes(), b.astype(np.int8).tobytes()) for a, b in zip(obs, action_mask, strict=True)}


def possible(game: Game, state: State, action: int, tries: int = 300) -> set[tuple[bytes, bytes, float, bool]]:
    """Everything that luck can make of an action: what is seen, what is legal, the reward, and whether it is over."""
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
def test_every_step_is_one_that_the_rules_allow(name: str, options: dict[str, Any]) -> None:
    env = single(name, **options)
    obs, info = env.reset(seed=0)
    env.action_space.seed(6)
    game = env.unwrapped.game
    deals = game.reset(CounterRNG(7, torch.arange(20_000), EXPLORATION_STREAM).uniform(0, game.spec.num_reset_uniforms))
    dealt = seen(game, deals)
    for _ in range(60):
        if len(env.unwrapped.states) == 1:
            assert (obs.tobytes(), info["action_mask"].tobytes()) in dealt
        before = env.unwrapped.states[-1]
        action = env.action_space.sample(info["action_mask"])
        obs, reward, terminated, truncated, info = env.step(action)
        here = (obs.tobytes(), info["action_mask"].tobytes(), reward, terminated)
        assert here in possible(game, before, action)
        if terminated or truncated:
            obs, info = env.reset()


class Diary:
    """A game that tells the luck of its deal, the luck of its last move, that move, and how many there were.

    Move 1 ends it, move 2 is legal after an even number of moves, and every move pays half more than its number.
    """

    def __init__(self, time_limit: int = 4) -> None:
        self.spec = Spec("diary", 1, (4,), 3, num_reset_uniforms=1, num_step_uniforms=1, time_limit=time_limit)

    def reset(self, u: Tensor) -> State:
        return {"page": torch.cat([u, torch.zeros(len(u), 3)], 1)}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        dealt, moves = state["page"][:, 0], state["page"][:, 3]
        return {"page": torch.stack([dealt, u[:, 0], action / 4, moves + 1 / 64], 1)}, action + 0.5, action == 1

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        even = state["page"][:, 3] * 64 % 2 == 0
        return state["page"].clone(), torch.stack([torch.ones_like(even), torch.ones_like(even), even], 1)


DIARY = f"{__name__}:Diary"


def mask_after(moves: int) -> list[int]:
    return [1, 1, 1 - moves % 2]


@pytest.mark.parametrize("time_limit", [1, 4, 5])
def test_a_diary_of_one_game_after_the_other(time_limit: int) -> None:
    env, rng = SingleEnv(DIARY, time_limit=time_limit), np.random.default_rng(0)
    chances = []  # all luck that was told
    for _ in range(40):
        (dealt, *rest), info = env.reset()
        assert rest == [0, 0, 0]
        assert info["action_mask"].tolist() == mask_after(0)
        chances.append(dealt)
        for moves in itertools.count(1):
            action = int(rng.choice([0, 0, 0, 1, 2]))
            obs, reward, terminated, truncated, info = env.step(action)
            assert obs.tolist() == [dealt, obs[1], action / 4, moves / 64]
            assert (reward, terminated) == (action + 0.5, action == 1)
            assert truncated == (moves == time_limit and action != 1)
            assert info["action_mask"].tolist() == mask_after(moves)
            chances.append(obs[1])
            if terminated or truncated:
                break
    assert len(set(chances)) >= len(chances) - 2  # of 570 numbers of 24 bits two are equal in one run of a hundred


@pytest.mark.parametrize("time_limit", [1, 4, 5])
def test_a_diary_of_games_side_by_side(time_limit: int) -> None:
    env, rng = BatchedEnv(DIARY, N, time_limit=time_limit), np.random.default_rng(0)
    obs, info = env.reset()
    assert not obs[:, 1:].any()
    assert info["action_mask"].tolist() == [mask_after(0)] * N
    dealt, moves = obs[:, 0].tolist(), [0] * N
    chances = list(dealt)
    ways = set()
    for _ in range(60):
        actions = rng.choice([0, 0, 0, 1, 2], N)
        obs, reward, terminated, truncated, info = env.step(actions)
        for game, action in enumerate(actions.tolist()):
            moves[game] += 1
            final = info["final_obs"][game].tolist()
            assert final == [dealt[game], final[1], action / 4, moves[game] / 64]
            chances.append(final[1])
            assert (reward[game], terminated[game]) == (action + 0.5, action == 1)
            assert truncated[game] == (moves[game] == time_limit and action != 1)
            ended = bool(terminated[game] or truncated[game])
            assert info["_final_obs"][game] == ended
            if ended:
                dealt[game], moves[game] = obs[game, 0].item(), 0
                chances.append(dealt[game])
            assert obs[game].tolist() == ([dealt[game], 0, 0, 0] if ended else final)
            assert info["action_mask"][game].tolist() == mask_after(moves[game])
            ways.add((bool(terminated[game]), bool(truncated[game])))
    assert ways == {(False, False), (True, False), (False, True)} - ({(False, False)} if time_limit == 1 else set())
    assert len(set(chances)) >= len(chances) - 2  # of 570 numbers of 24 bits two are equal in one run of a hundred


def test_a_reset_deals_all_games_of_a_batch_afresh() -> None:
    env = BatchedEnv(DIARY, N)
    first, _ = env.reset()
    env.step(np.zeros(N, np.int64))
    again, info = env.reset()
    assert not again[:, 1:].any()
    assert info["action_mask"].tolist() == [mask_after(0)] * N
    assert not set(first[:, 0]) & set(again[:, 0])
    _, _, _, truncated, _ = env.step(np.zeros(N, np.int64))
    assert not truncated.any()


@every_kind
@every_game
def test_the_same_seed_gives_the_same_series_of_games_and_another_seed_another(kind: str, name: str) -> None:
    assert series(kind, name, 3) == series(kind, name, 3)
    assert series(kind, name, 3) != series(kind, name, 4)


@every_kind
@every_game
def test_a_seed_begins_the_series_again(kind: str, name: str) -> None:
    env, shown = (single(name), moments) if kind == "single" else (batched(name), batched_moments)
    for seed in (3, 0, 3):
        assert telling(shown(env, 12, seed)) == series(kind, name, seed, 12)


@every_kind
@every_game
def test_without_a_seed_the_first_games_are_like_no_others(kind: str, name: str) -> None:
    assert series(kind, name, None) != series(kind, name, None)


@every_kind
@every_game
def test_a_reset_without_a_seed_goes_on_to_another_game_of_the_series(kind: str, name: str) -> None:
    def deals() -> list[bytes]:
        env = single(name) if kind == "single" else batched(name)
        return [env.reset(seed=3)[0].tobytes(), *(env.reset()[0].tobytes() for _ in range(11))]

    assert deals() == deals()
    assert len(set(deals())) >= (10 if kind == "batched" or name == "Snake-v0" else 4)


@every_kind
@pytest.mark.parametrize("size", [5, 6])
def test_the_size_reaches_snake(kind: str, size: int) -> None:
    env = {"single": single, "batched": batched}[kind]("Snake-v0", size=size)
    obs, _ = env.reset(seed=0)
    assert obs.shape[-3:] == (6, size, size)
    assert env.observation_space.contains(obs)


@every_kind
def test_the_death_reward_reaches_snake(kind: str) -> None:
    if kind == "single":
        env = single("Snake-v0", size=4, death_reward=-0.25)
        paid = {moment.reward for moment in moments(env, 100)}
    else:
        env = batched("Snake-v0", size=4, death_reward=-0.25)
        paid = {reward for moment in batched_moments(env, 40) for reward in moment.reward.tolist()}
    assert paid == {0.0, 1.0, -0.25}


def stacks_four(env: gym.Env, games: int) -> int:
    """How many games are won by discs in the middle column only."""
    won = 0
    env.reset(seed=0)
    for _ in range(games):
        ended, reward = False, 0.0
        for _ in range(4):
            if not ended:
                _, reward, ended, _, _ = env.step(3)
        won += reward == 1
        env.reset()
    return won


def test_the_opponent_reaches_connect4() -> None:
    assert stacks_four(single("Connect4-v0", opponent="random"), 30) > 5
    assert stacks_four(single("Connect4-v0", opponent="tactical"), 30) == 0
    assert stacks_four(single("Connect4-v0"), 30) == 0


def test_the_opponent_reaches_a_batch_of_connect4() -> None:
    paid = {}
    for opponent in ("random", "tactical"):
        env = batched("Connect4-v0", 30, opponent=opponent)
        env.reset(seed=0)
        paid[opponent] = sum(int((env.step(np.full(30, 3))[1] == 1).sum()) for _ in range(4))
    assert paid["random"] > 5
    assert paid["tactical"] == 0


@every_kind
def test_the_payment_of_naturals_reaches_blackjack(kind: str) -> None:
    paid = {}
    for natural in (False, True):
        if kind == "single":
            env = single("TorchBlackjack-v0", sab=False, natural=natural)
            env.reset(seed=0)
            hands = [(env.step(0)[1], tuple(env.reset()[1]["gymnasium_obs"])) for _ in range(150)]
            paid[natural] = {reward for reward, _ in hands}
        else:
            env = batched("TorchBlackjack-v0", 300, sab=False, natural=natural)
            env.reset(seed=0)
            paid[natural] = set(env.step(np.zeros(300, int))[1].tolist())
    assert paid == {False: {-1.0, 0.0, 1.0}, True: {-1.0, 0.0, 1.0, 1.5}}


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
def test_what_there_is_not_is_refused_with_what_there_is(
    kind: str, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        {"single": single, "batched": batched}[kind](name, **options)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("output is 'jax'; it must be 'numpy' or 'torch'")):
        batched("Snake-v0", output="jax")


def test_the_first_call_is_reset() -> None:
    with pytest.raises(AssertionError, match="the first call must be reset"):
        batched("Snake-v0").step(np.zeros(N, int))
    with pytest.raises(gym.error.ResetNeeded):
        single("Snake-v0").step(0)


def test_a_snake_is_cut_short_by_the_clock_unless_it_dies_just_then() -> None:
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


def test_snakes_of_a_batch_are_cut_short_each_by_its_own_clock() -> None:
    lengths, last, alone = np.zeros(N), [], False
    for moment in itertools.islice(batched_moments(batched("Snake-v0", size=3, time_limit=4), 40), 1, None):
        lengths += 1
        assert np.array_equal(moment.truncated, (lengths == 4) & ~moment.terminated)
        ended = moment.terminated | moment.truncated
        last += zip(lengths[ended], moment.terminated[ended], strict=True)
        alone |= bool(ended.any() and not ended.all())
        lengths[ended] = 0
    assert {(4, True), (4, False)} < set(last)
    assert alone


@every_game
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("num_envs", [1, N])
def test_a_batch_has_the_shapes_and_types_it_promises(name: str, output: str, num_envs: int) -> None:
    env = batched(name, num_envs, output=output)
    kind = np.ndarray if output == "numpy" else Tensor
    extra = {"gymnasium_obs": ("int64", (num_envs, 3))} if name == "TorchBlackjack-v0" else {}
    promised = {"action_mask": ("int8", (num_envs, ACTIONS[name])), **extra}
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
        finals = {"final_obs": obs_as, "_final_obs": ("bool", (num_envs,))}
        assert {key: of(part) for key, part in info.items()} == promised | finals


@every_game
def test_a_batch_has_the_spaces_of_gymnasiums_own_vector(name: str) -> None:
    ours, theirs = batched(name), batched(name, vectorization_mode="sync")
    assert ours.num_envs == theirs.num_envs == N
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, space) == getattr(theirs, space)


@every_game
def test_gymnasiums_own_vector_of_single_envs_plays_too(name: str) -> None:
    env = batched(name, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    _, info = env.reset(seed=0)
    assert info["action_mask"].shape == (N, ACTIONS[name])
    ends = 0
    for moment in batched_moments(env, 15):
        ends += int((moment.terminated | moment.truncated).sum())
        assert env.observation_space.contains(moment.obs)
    assert ends > 0


@every_game
def test_a_batch_says_that_it_resets_in_the_same_step(name: str) -> None:
    assert batched(name).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@every_game
def test_all_that_a_batch_shows_lies_within_the_spaces(name: str) -> None:
    env = batched(name, **SMALL.get(name, {}))
    for moment in batched_moments(env, 80):
        assert env.observation_space.contains(moment.obs)
        if "final_obs" in moment.info:
            assert env.observation_space.contains(moment.info["final_obs"])
        assert not (moment.terminated & moment.truncated).any()


@every_game
def test_a_batch_shows_what_the_env_itself_shows(name: str) -> None:
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
        shown = (obs, info["action_mask"], reward, terminated, truncated, info["final_obs"])
        for ours, theirs, field in zip(shown, step, Step._fields, strict=False):
            assert np.array_equal(ours, theirs.numpy()), field
        assert np.array_equal(info["_final_obs"], (step.terminated | step.truncated).numpy())


@every_game
def test_the_games_of_a_smaller_batch_are_the_first_of_a_larger_one(name: str) -> None:
    small, large = batched(name, 3), batched(name, 8)
    (few, info), (many, _) = small.reset(seed=3), large.reset(seed=3)
    small.action_space.seed(5)
    for _ in range(30):
        assert np.array_equal(few, many[:3])
        actions = actions_for(small, info)
        few, *_, info = small.step(actions)
        many, *_ = large.step(np.concatenate([actions, [0] * 5]))
    assert len({row.tobytes() for row in many}) > 1


@every_game
def test_numpy_and_torch_show_the_same(name: str) -> None:
    shown = [batched_moments(batched(name, output=output, **SMALL.get(name, {})), 30) for output in ("numpy", "torch")]
    for arrays, tensors in zip(*shown, strict=True):
        for ours, theirs in zip(arrays[:4], tensors[:4], strict=True):
            assert np.array_equal(ours, np.asarray(theirs))
        assert arrays.info.keys() == tensors.info.keys()
        for key in arrays.info:
            assert np.array_equal(arrays.info[key], tensors.info[key].numpy()), key


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_actions_may_be_arrays_tensors_or_lists(output: str) -> None:
    def rewards(of: Any) -> list[float]:
        env = BatchedEnv(DIARY, 3, output=output)
        env.reset(seed=0)
        return env.step(of)[1].tolist()

    for actions in (np.array([2, 0, 1]), np.array([2, 0, 1], np.int32), torch.tensor([2, 0, 1]), [2, 0, 1]):
        assert rewards(actions) == [2.5, 0.5, 1.5]


def scribble(parts: Any) -> None:
    """Write over everything that was handed out."""
    for part in parts:
        if isinstance(part, dict):
            scribble(part.values())
        elif isinstance(part, np.ndarray | Tensor):
            part[...] = 1


@every_game
@pytest.mark.parametrize("kind", ["single", "numpy", "torch"])
def test_whoever_writes_over_what_it_was_given_changes_no_game(kind: str, name: str) -> None:
    def played(spoil: bool) -> list[Any]:
        env = single(name) if kind == "single" else batched(name, output=kind)
        env.action_space.seed(5)
        shown = []
        given = env.reset(seed=3)
        for _ in range(20):
            shown.append(copy.deepcopy(given[:-1]))
            masks = np.asarray(given[-1]["action_mask"]).copy()
            if spoil:
                scribble(given)
            given = env.step(env.action_space.sample(masks if kind == "single" else tuple(masks)))
            if kind == "single" and (given[2] or given[3]):
                shown.append(copy.deepcopy(given[:-1]))
                given = env.reset()
        return [[np.asarray(part).tobytes() for part in parts] for parts in shown]

    assert played(spoil=True) == played(spoil=False)


@every_game
def test_gymnasiums_statistics_are_those_of_a_plain_count_and_of_score(name: str) -> None:
    env = RecordEpisodeStatistics(batched(name, **SMALL.get(name, {})))
    _, info = env.reset(seed=3)
    itself, score = copy.deepcopy(env.unwrapped.env), EpisodeStats(N, "cpu")
    env.action_space.seed(5)
    games: list[list[float]] = [[] for _ in range(N)]
    told: list[tuple[float, int]] = []
    for _ in range(70):
        actions = actions_for(env, info)
        score.add(itself.step(torch.from_numpy(actions)))
        _, reward, terminated, truncated, info = env.step(actions)
        for game, paid in enumerate(games):
            paid.append(float(reward[game]))
            if terminated[game] or truncated[game]:
                here = info["episode"]["r"][game], info["episode"]["l"][game]
                assert here == (sum(paid), len(paid))
                told.append(here)
                paid.clear()
    taken = score.pop()
    assert taken["episodes"] == len(told) >= 20
    assert np.allclose([taken["return"], taken["length"]], np.mean(told, axis=0))


@every_game
def test_gymnasium_can_make_a_list_of_the_info(name: str) -> None:
    env = DictInfoToList(batched(name, **SMALL.get(name, {})))
    plain = batched(name, **SMALL.get(name, {}))
    (_, listed), (_, info) = env.reset(seed=3), plain.reset(seed=3)
    ends = 0
    for _ in range(30):
        for game in range(N):
            ended = "_final_obs" in info and info["_final_obs"][game]
            ends += bool(ended)
            kept = {key for key in info if not key.startswith("_") and (key != "final_obs" or ended)}
            assert listed[game].keys() == kept
            assert all(np.array_equal(listed[game][key], info[key][game]) for key in kept)
        actions = actions_for(plain, info)
        listed, info = env.step(actions)[-1], plain.step(actions)[-1]
    assert ends > 0


def test_gymnasium_can_clip_the_rewards() -> None:
    env = ClipReward(batched("Connect4-v0", opponent="random"), -0.25, 0.5)
    paid = {reward for moment in batched_moments(env, 40) for reward in moment.reward.tolist()}
    assert paid == {0.0, 0.5, -0.25}


def numbers_in(features: np.ndarray) -> tuple[int | None, int, int]:
    """The sum, None beyond 21, the dealer's card and whether an ace is usable, out of the 29 features."""
    assert set(features.tolist()) <= {0.0, 1.0}
    total, card = np.flatnonzero(features[:18]), np.flatnonzero(features[18:28])
    assert len(card) == 1
    return (int(total.item()) + 4 if len(total) else None), int(card.item()) + 1, int(features[28])


def test_raw_numbers_are_those_of_the_features() -> None:
    seen = set()
    for moment in moments(single("TorchBlackjack-v0"), 300):
        total, card, usable = moment.info["gymnasium_obs"].tolist()
        assert numbers_in(moment.obs) == (total if total <= 21 else None, card, usable)
        assert total <= 21 or (moment.terminated and moment.reward == -1)
        seen.add((total, usable))
    assert {total for total, _ in seen} > set(range(5, 26))
    assert {usable for _, usable in seen} == {0, 1}


def test_raw_numbers_of_a_batch_are_those_of_the_features() -> None:
    bust = 0
    for moment in batched_moments(batched("TorchBlackjack-v0"), 100):
        for features, raw in zip(moment.obs, moment.info["gymnasium_obs"].tolist(), strict=True):
            assert numbers_in(features) == tuple(raw)
        for features in moment.info.get("final_obs", ()):
            bust += numbers_in(features)[0] is None
    assert bust > 0


@every_game
def test_without_a_render_mode_nothing_is_drawn(name: str) -> None:
    env = single(name)
    env.reset(seed=0)
    assert env.unwrapped.render_mode is None
    assert env.unwrapped.render() is None


@every_game
def test_a_drawing_is_of_the_game_as_it_stands(name: str) -> None:
    text, picture = (single(name, render_mode=mode) for mode in ("ansi", "rgb_array"))
    drawing = DRAWINGS[text.unwrapped.game.spec.name]
    seen = set()
    for one, other in zip(moments(text, 25), moments(picture, 25), strict=True):
        assert np.array_equal(one.obs, other.obs)
        game, states = text.unwrapped.game, text.unwrapped.states
        assert text.render() == drawing.text(game.spec, states)
        pixels = picture.render()
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, drawing.image(game.spec, states))
        seen.add(pixels.tobytes())
    assert len(seen) > 10


def test_the_text_of_connect4_has_the_discs_that_are_observed_and_the_moves_of_this_game_only() -> None:
    env = single("Connect4-v0", render_mode="ansi")
    for moment in moments(env, 80):
        drawn = env.render()
        cells = np.array([line.split() for line in drawn.splitlines()[:6]])
        assert np.array_equal(cells == "x", moment.obs[0] == 1)
        assert np.array_equal(cells == "o", moment.obs[1] == 1)
        assert (cells[moment.obs.sum(0) == 0] == ".").all()
        assert len(re.findall(r"\b[a-g][1-6]\b", drawn)) == moment.obs.sum()
        assert drawn.endswith(notation(env.unwrapped.states))


def test_the_text_of_snake_has_what_is_observed() -> None:
    env = single("Snake-v0", render_mode="ansi", **SMALL["Snake-v0"])
    lengths = set()
    for moment in moments(env, 120):
        cells = np.array([line.split() for line in env.render().splitlines()])
        body, head, _, fruit, down, right = moment.obs
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


def test_the_text_of_blackjack_has_the_raw_numbers() -> None:
    env = single("TorchBlackjack-v0", render_mode="ansi")
    for moment in moments(env, 60):
        drawn = env.render()
        total, card, usable = moment.info["gymnasium_obs"].tolist()
        assert re.findall(r"\d+", drawn) == [str(total), *["11"] * usable, str(card)]
