"""Env against its docstrings, sentence by sentence: every registered game, with its options too, and small probe games
whose every moment is known beforehand. Games are made by what a user writes.
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import envs
from envs import opponents
from envs.base import Env, Game, Spec, State, Step, VecEnv, num_rows, select_rows, where
from envs.blackjack import Blackjack
from envs.connect4 import Connect4
from envs.gymnasium_vec import GymnasiumVecEnv
from envs.rng import ENV_STREAM, EXPLORATION_STREAM, CounterRNG, sample_legal
from envs.snake import Snake
from tests.helpers.probes import Echo, Walk

every_game = pytest.mark.parametrize(
    "game",
    [
        *envs.ENVS,
        "blackjack sab=false natural=true",
        "connect4 opponent=self",
        "snake size=3 time_limit=7 death_reward=-1",
    ],
)


def make(game: str, num_envs: int, seed: int = 0, first_env_id: int = 0, device: str = "cpu") -> Env:
    """Make a game from its name and options."""
    name, *options = game.split()
    return envs.make(name, num_envs, seed, device, first_env_id, **envs.parse_options(options))


def started(env: Env) -> tuple[Step, Callable[[Step], Tensor]]:
    """The first moment, and a policy that chooses a random legal action at every call."""
    rng = CounterRNG(99, torch.arange(env.num_envs), EXPLORATION_STREAM)
    calls = itertools.count()
    return env.reset(), lambda step: sample_legal(step.action_mask, rng.uniform(next(calls), 1)[:, 0])


def trajectory(env: Env, steps: int, first_env_id: int = 0) -> list[Step]:
    """What `env` shows under random legal actions that belong to the games' ids."""
    rng = CounterRNG(99, torch.arange(first_env_id, first_env_id + env.num_envs, device=env.device), EXPLORATION_STREAM)
    shown = [env.reset()]
    for index in range(steps):
        shown.append(env.step(sample_legal(shown[-1].action_mask, rng.uniform(index, 1)[:, 0])))
    return shown


def each(step: Step, change: Callable[[Tensor], Tensor]) -> Step:
    """A step whose every tensor is changed, those of its two states too."""
    return Step(
        *(
            {name: change(tensor) for name, tensor in field.items()} if isinstance(field, dict) else change(field)
            for field in step
        )
    )


def parts(step: Step) -> dict[str, Tensor]:
    """Every tensor of a step by its name; those of the states are called "state board" and alike."""
    named = {name: field for name, field in step._asdict().items() if isinstance(field, Tensor)}
    for name in ("state", "final_state"):
        named |= {f"{name} {part}": tensor for part, tensor in getattr(step, name).items()}
    return named


def assert_same(ours: list[Step], theirs: list[Step], rows: slice = slice(None)) -> None:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        expected = parts(b)
        assert parts(a).keys() == expected.keys()
        for name, tensor in parts(a).items():
            assert torch.equal(tensor, expected[name][rows]), f"{name} of step {index}"


def copy_of(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def assert_equal_states(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@every_game
def test_a_step_has_the_shapes_and_types_of_the_spec(game: str) -> None:
    env = make(game, 5)
    spec = env.spec
    assert spec.name == game.split()[0]
    for step in trajectory(env, 30):
        for obs in (step.obs, step.final_obs):
            assert obs.shape == (5, *spec.obs_shape)
            assert obs.dtype == torch.float32
        for action_mask in (step.action_mask, step.final_action_mask):
            assert action_mask.shape == (5, spec.num_actions)
            assert action_mask.dtype == torch.bool
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == (5,)
        assert step.reward.dtype == torch.float32
        assert step.terminated.dtype == step.truncated.dtype == torch.bool


@every_game
def test_a_state_is_tensors_of_n_rows(game: str) -> None:
    env = make(game, 5)
    trajectory(env, 3)
    assert all(len(tensor) == 5 for tensor in env.state.values())


@every_game
def test_legal_is_never_all_false(game: str) -> None:
    for step in trajectory(make(game, 256), 60):
        assert step.action_mask.any(1).all()
        assert step.final_action_mask.any(1).all()


@every_game
def test_a_game_is_truncated_when_its_time_is_up_unless_it_terminates(game: str) -> None:
    env = make(game, 256)
    limit = env.spec.time_limit
    age, truncated = torch.zeros(256, dtype=torch.int64), 0
    for step in trajectory(env, 60)[1:]:
        age += 1
        assert torch.equal(step.truncated, ~step.terminated & (age == limit if limit else age < 0))
        age *= ~(step.terminated | step.truncated)
        truncated += int(step.truncated.sum())
    assert (truncated > 100) == (limit is not None and limit < 60)


@every_game
def test_random_games_come_to_an_end_and_begin_again(game: str) -> None:
    ends = sum(step.terminated.int() + step.truncated.int() for step in trajectory(make(game, 16), 200))
    assert ends.min() >= 2


@every_game
def test_where_no_game_has_ended_the_final_pair_is_what_is_seen_now(game: str) -> None:
    for step in trajectory(make(game, 64), 60):
        going_on = ~(step.terminated | step.truncated)
        assert torch.equal(step.obs[going_on], step.final_obs[going_on])
        assert torch.equal(step.action_mask[going_on], step.final_action_mask[going_on])


@every_game
def test_a_step_shows_the_state_that_the_env_is_in(game: str) -> None:
    env = make(game, 64)
    step, act = started(env)
    for _ in range(40):
        obs, action_mask = env.game.observe(env.state)
        assert torch.equal(step.obs, obs)
        assert torch.equal(step.action_mask, action_mask)
        step = env.step(act(step))


@every_game
def test_a_step_holds_the_states_that_it_shows(game: str) -> None:
    env = make(game, 64)
    step, act = started(env)
    ends = 0
    for _ in range(60):
        for state, obs, action_mask in (
            (step.state, step.obs, step.action_mask),
            (step.final_state, step.final_obs, step.final_action_mask),
        ):
            seen, may = env.game.observe(state)
            assert torch.equal(seen, obs)
            assert torch.equal(may, action_mask)
        assert_equal_states(step.state, env.state)
        ended = step.terminated | step.truncated
        going_on = (~ended).nonzero()[:, 0]
        assert_equal_states(select_rows(step.state, going_on), select_rows(step.final_state, going_on))
        ends += int(ended.sum())
        step = env.step(act(step))
    assert ends > 64


@every_game
def test_the_final_state_is_what_the_rules_make_of_the_state_before(game: str) -> None:
    env = make(game, 64, seed=6)
    rng = CounterRNG(6, torch.arange(64), ENV_STREAM)
    step, act = started(env)
    for _ in range(40):
        action, chance = act(step), rng.uniform(env.steps, env.spec.num_reset_uniforms + env.spec.num_step_uniforms)
        played, reward, terminated = env.game.step(step.state, action, chance[:, env.spec.num_reset_uniforms :])
        dealt = env.game.reset(chance[:, : env.spec.num_reset_uniforms])
        step = env.step(action)
        assert_equal_states(step.final_state, played)
        assert torch.equal(step.reward, reward)
        assert torch.equal(step.terminated, terminated)
        ended = (step.terminated | step.truncated).nonzero()[:, 0]
        assert_equal_states(select_rows(step.state, ended), select_rows(dealt, ended))


@every_game
def test_a_game_that_ended_starts_its_clock_again_in_the_same_step(game: str) -> None:
    env = make(game, 64)
    step, act = started(env)
    expected = torch.zeros(64, dtype=torch.int64)
    for _ in range(60):
        assert torch.equal(env.elapsed_steps, expected)
        step = env.step(act(step))
        expected = (expected + 1) * ~(step.terminated | step.truncated)


@every_game
def test_play_and_look_do_not_modify_their_state(game: str) -> None:
    env = make(game, 64)
    step, act = started(env)
    rng = CounterRNG(3, torch.arange(64), EXPLORATION_STREAM)
    for index in range(40):
        before, action = copy_of(env.state), act(step)
        env.game.observe(env.state)
        env.game.step(env.state, action, rng.uniform(index, env.spec.num_step_uniforms))
        assert_equal_states(env.state, before)
        step = env.step(action)


@every_game
def test_rules_keep_nothing_between_two_calls(game: str) -> None:
    env = make(game, 64)
    step, act = started(env)
    rng = CounterRNG(3, torch.arange(64), EXPLORATION_STREAM)
    for index in range(40):
        action, chance = act(step), rng.uniform(index, env.spec.num_step_uniforms)
        state, reward, terminated = env.game.step(env.state, action, chance)
        again, reward_again, terminated_again = env.game.step(env.state, action, chance)
        assert_equal_states(state, again)
        assert torch.equal(reward, reward_again)
        assert torch.equal(terminated, terminated_again)
        step = env.step(action)


@every_game
def test_each_game_is_dealt_and_played_by_its_own_row(game: str) -> None:
    env = make(game, 32)
    trajectory(env, 4)
    rng = CounterRNG(3, torch.arange(32), EXPLORATION_STREAM)
    dealt = env.game.reset(rng.uniform(0, env.spec.num_reset_uniforms))
    action = sample_legal(env.game.observe(env.state)[1], rng.uniform(1, 1)[:, 0])
    played, reward, terminated = env.game.step(env.state, action, rng.uniform(2, env.spec.num_step_uniforms))
    rows = torch.tensor([30, 3, 17])
    assert_equal_states(env.game.reset(rng.uniform(0, env.spec.num_reset_uniforms)[rows]), select_rows(dealt, rows))
    alone = env.game.step(select_rows(env.state, rows), action[rows], rng.uniform(2, env.spec.num_step_uniforms)[rows])
    assert_equal_states(alone[0], select_rows(played, rows))
    assert torch.equal(alone[1], reward[rows])
    assert torch.equal(alone[2], terminated[rows])


@every_game
def test_the_buffers_never_move(game: str) -> None:
    env = make(game, 64)

    def places() -> list[int]:
        return [tensor.data_ptr() for tensor in (*env.state.values(), env.elapsed_steps, env.steps)]

    before = places()
    assert len(set(before)) == len(before)
    trajectory(env, 50)
    env.reset()
    assert places() == before


@every_game
def test_a_step_that_was_handed_out_never_changes(game: str) -> None:
    env = make(game, 64)
    step, act = started(env)
    given = []
    for _ in range(40):
        given.append((step, each(step, Tensor.clone)))
        step = env.step(act(step))
    env.reset()
    for step, kept in given:
        assert_same([step], [kept])


@every_game
def test_the_moment_alone_is_what_the_next_action_needs_as_if_it_were_the_first(game: str) -> None:
    first, *later = trajectory(make(game, 64), 40)
    assert_same([first.as_initial()], [first])
    assert any((step.terminated | step.truncated).any() for step in later)
    for step in later:
        kept, alone = each(step, Tensor.clone), step.as_initial()
        for name, tensor in parts(alone).items():
            assert tensor.dtype == parts(step)[name].dtype
            if name in ("reward", "terminated", "truncated"):
                assert torch.equal(tensor, torch.zeros_like(parts(step)[name]))
            else:
                assert torch.equal(tensor, parts(step)[name.removeprefix("final_")])
        assert_same([step], [kept])


@every_game
def test_a_step_does_not_modify_the_action(game: str) -> None:
    env = make(game, 64)
    step, act = started(env)
    action = act(step)
    kept = action.clone()
    env.step(action)
    assert torch.equal(action, kept)


@every_game
def test_a_game_plays_the_same_for_every_number_of_games_and_in_every_shard(game: str) -> None:
    whole = trajectory(make(game, 4096, seed=4), 40)
    assert_same(trajectory(make(game, 7, seed=4), 40), whole, slice(0, 7))
    assert_same(trajectory(make(game, 1, seed=4), 40), whole, slice(0, 1))
    shard = make(game, 5, seed=4, first_env_id=3)
    assert_same(trajectory(shard, 40, first_env_id=3), whole, slice(3, 8))
    last = make(game, 56, seed=4, first_env_id=4040)
    assert_same(trajectory(last, 40, first_env_id=4040), whole, slice(4040, 4096))


@every_game
def test_an_env_says_which_is_its_first_game(game: str) -> None:
    assert make(game, 3).first_env_id == 0
    assert make(game, 3, first_env_id=7).first_env_id == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@every_game
def test_a_game_plays_the_same_on_cuda_as_on_the_cpu(game: str) -> None:
    shown = trajectory(make(game, 4096, seed=4, device="cuda"), 40)
    assert_same([each(step, Tensor.cpu) for step in shown], trajectory(make(game, 4096, seed=4), 40))


@every_game
def test_the_same_seed_gives_the_same_games(game: str) -> None:
    assert_same(trajectory(make(game, 16, seed=8), 60), trajectory(make(game, 16, seed=8), 60))


@every_game
def test_another_seed_gives_other_games(game: str) -> None:
    shown = [trajectory(make(game, 64, seed=seed), 20) for seed in (8, 9)]
    alike = [(a.obs == b.obs).flatten(1).all(1) for a, b in zip(*shown, strict=True)]
    assert torch.stack(alike).float().mean() < 0.5


@every_game
def test_games_of_one_run_differ(game: str) -> None:
    late = torch.stack([step.obs for step in trajectory(make(game, 64), 5)], 1)
    assert len(late.flatten(1).unique(dim=0)) > 32


@every_game
def test_reset_deals_all_games_afresh_and_nothing_has_happened_yet(game: str) -> None:
    env = make(game, 64)
    trajectory(env, 7)
    assert env.elapsed_steps.any()
    step = env.reset()
    assert not env.elapsed_steps.any()
    assert not step.reward.any()
    assert not step.terminated.any()
    assert not step.truncated.any()
    assert torch.equal(step.obs, step.final_obs)
    assert torch.equal(step.action_mask, step.final_action_mask)


@every_game
@pytest.mark.parametrize("num_envs", [0, -3])
def test_there_is_at_least_one_game(game: str, num_envs: int) -> None:
    with pytest.raises(ValueError, match=f"num_envs is {num_envs}; an environment requires at least 1 copy"):
        make(game, num_envs)


def test_an_unknown_env_is_answered_with_those_there_are_and_the_closest() -> None:
    for make_it in (lambda: envs.make("conect4", 1), lambda: envs.make_game("conect4")):
        with pytest.raises(ValueError, match="no env is called 'conect4'") as caught:
            make_it()
        assert all(name in str(caught.value) for name in (*envs.ENVS, "gym:ID", "module:Class"))
        assert str(caught.value).endswith("did you mean 'connect4'?")


def test_an_unknown_opponent_is_answered_with_those_there_are_and_the_closest() -> None:
    with pytest.raises(ValueError, match="no opponent is called 'tacticl'") as caught:
        envs.make("connect4", 1, opponent="tacticl")
    assert all(name in str(caught.value) for name in ("random", "tactical", "negamax:DEPTH", "self"))
    assert str(caught.value).endswith("did you mean 'tactical'?")


def test_the_games_go_by_their_names() -> None:
    kinds = {"blackjack": Blackjack, "connect4": Connect4, "snake": Snake}
    assert list(envs.ENVS) == list(kinds)
    for name, kind in kinds.items():
        assert isinstance(envs.make_game(name), kind)
        assert isinstance(envs.make(name, 1).game, kind)


def test_options_reach_the_game() -> None:
    assert envs.make_game("connect4").opponent is opponents.tactical
    assert envs.make("connect4", 1, opponent="random").game.opponent is opponents.random
    assert envs.make("connect4", 1, opponent="negamax:3").game.opponent.depth == 3
    assert envs.make("connect4", 1, opponent="self", refresh=9).game.opponent.refresh == 9
    snake = envs.make("snake", 1, size=5, time_limit=17, death_reward=-1)
    assert snake.spec.obs_shape[1:] == (5, 5)
    assert snake.spec.time_limit == 17
    assert snake.game.death_reward == -1
    assert envs.make_game("snake", size=4).spec.obs_shape[1:] == (4, 4)
    hand = envs.make_game("blackjack", sab=False, natural=True)
    assert (hand.sab, hand.natural) == (False, True)


@pytest.mark.parametrize(
    ("game", "option", "there_are"),
    [
        ("snake", "sise", "death_reward, size, time_limit; did you mean 'size'"),
        ("connect4", "oponent", "opponent, refresh; did you mean 'opponent'"),
        ("blackjack", "opponent", "natural, sab"),
        ("snake", "opponent", "death_reward, size, time_limit"),
    ],
)
def test_an_unknown_option_is_answered_with_those_of_the_game(game: str, option: str, there_are: str) -> None:
    for make_it in (envs.make_game, lambda name, **options: envs.make(name, 1, **options)):
        with pytest.raises(ValueError, match=f"no option of {game} is called '{option}'; there are {there_are}"):
            make_it(game, **{option: 1})


@pytest.mark.parametrize(
    ("game", "option", "value"),
    [
        ("snake", "size", "eight"),
        ("snake", "size", 6.5),
        ("snake", "death_reward", "much"),
        ("blackjack", "sab", 1),
        ("blackjack", "natural", "yes"),
        ("connect4", "opponent", 2),
        ("connect4", "refresh", "often"),
    ],
)
def test_an_option_of_another_kind_is_refused(game: str, option: str, value: Any) -> None:
    for make_it in (envs.make_game, lambda name, **options: envs.make(name, 1, **options)):
        with pytest.raises(ValueError, match=f"{game}: {option} must be of type .*, not {value!r}"):
            make_it(game, **{option: value})


OWN_GAME = """
import torch
from envs.base import Spec, VecEnv


class Coin:
    spec = Spec("coin", 1, (1,), 2, num_reset_uniforms=1, num_step_uniforms=1, time_limit=None)

    def __init__(self, pays: float = 1.0, sides: int = 2) -> None:
        self.pays, self.sides = pays, sides

    def reset(self, u):
        return {"side": (u[:, 0] * self.sides).long()}

    def step(self, state, action, u):
        won = state["side"] == action
        return state, won * self.pays, torch.ones_like(won)

    def observe(self, state):
        return state["side"][:, None].float(), torch.ones(len(state["side"]), 2, dtype=torch.bool)


def heavy(pays: float = 8.0):
    return Coin(pays)


class Bare(Coin):
    def __init__(self) -> None:
        super().__init__()
"""


@pytest.fixture
def own_games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the folder one is in, which no other test has imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    module = f"own_games_{next(UNIQUE)}"
    (tmp_path / f"{module}.py").write_text(OWN_GAME)
    return module


UNIQUE = itertools.count()


def test_a_game_of_ones_own_is_played_from_a_file_in_the_folder_one_is_in(own_games: str) -> None:
    env = envs.make(f"{own_games}:Coin", 40, seed=3, pays=2.5)
    step = env.reset()
    assert set(step.obs.flatten().tolist()) == {0.0, 1.0}
    after = env.step(torch.zeros(40, dtype=torch.int64))
    assert torch.equal(after.reward, 2.5 * (step.obs[:, 0] == 0))
    assert after.terminated.all()
    assert torch.equal(after.final_obs, step.obs)
    assert not torch.equal(after.obs, step.obs)


def test_a_game_of_ones_own_has_a_seed_and_shards(own_games: str) -> None:
    whole = trajectory(envs.make(f"{own_games}:Coin", 20, seed=3), 10)
    shard = envs.make(f"{own_games}:Coin", 5, seed=3, first_env_id=15)
    assert_same(trajectory(shard, 10, first_env_id=15), whole, slice(15, 20))


def test_a_game_of_ones_own_is_made_by_a_class_or_a_function(own_games: str) -> None:
    assert envs.make_game(f"{own_games}:Coin", pays=3).pays == 3
    assert envs.make_game(f"{own_games}:heavy").pays == 8.0
    assert envs.make_game(f"{own_games}:Bare").pays == 1.0


def test_a_game_of_ones_own_has_its_own_options_and_no_others(own_games: str) -> None:
    with pytest.raises(ValueError, match=f"no option of {own_games}:Coin is called 'pay'; .*did you mean 'pays'"):
        envs.make_game(f"{own_games}:Coin", pay=3)
    with pytest.raises(ValueError, match=f"{own_games}:Coin: sides must be of type int, not 'two'"):
        envs.make(f"{own_games}:Coin", 1, sides="two")
    with pytest.raises(ValueError, match=f"{own_games}:Bare has no options"):
        envs.make_game(f"{own_games}:Bare", pays=3)


def test_a_game_that_is_not_where_it_is_said_to_be_is_refused(own_games: str) -> None:
    for place in (f"{own_games}:Dice", "env_no_such_module:Coin", f"{own_games}:"):
        with pytest.raises(ValueError, match=f"cannot load '{place}'"):
            envs.make(place, 1)
        with pytest.raises(ValueError, match=f"cannot load '{place}'"):
            envs.make_game(place)


def test_what_is_no_game_is_refused() -> None:
    with pytest.raises(ValueError, match="math:pi"):
        envs.make_game("math:pi")


def test_a_gymnasium_env_goes_by_its_id() -> None:
    """With seed, first game and options as they were given."""
    made = envs.make("gym:FrozenLake-v1", 3, 4, "cpu", 2, map_name="8x8")
    assert isinstance(made, GymnasiumVecEnv)
    assert made.spec.name == "gym:FrozenLake-v1"
    assert made.spec.obs_shape == (64,)
    alone = GymnasiumVecEnv("FrozenLake-v1", 3, seed=4, first_env_id=2, map_name="8x8")
    assert_same(trajectory(made, 30), trajectory(alone, 30))
    others = envs.make("gym:FrozenLake-v1", 3, 5, first_env_id=2, map_name="8x8")
    later, later_alone = trajectory(others, 30)[-1], trajectory(alone, 30)[-1]
    assert not torch.equal(later.obs, later_alone.obs)


def test_a_gymnasium_env_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gym:CartPol-v1 cannot be made: .*CartPole"):
        envs.make("gym:CartPol-v1", 1)
    with pytest.raises(ValueError, match=r"gym:CartPole-v1 cannot be made: .*sise"):
        envs.make("gym:CartPole-v1", 1, sise=3)


class Count:
    """Counts up from a dealt multiple of 100. Action 1 ends the game; rewards are the number reached.

    Every call's luck is kept, to be looked at.
    """

    def __init__(self, time_limit: int | None) -> None:
        self.spec = Spec("count", 1, (1,), 2, num_reset_uniforms=2, num_step_uniforms=3, time_limit=time_limit)
        self.dealt: list[Tensor] = []
        self.played: list[Tensor] = []

    def reset(self, u: Tensor) -> State:
        self.dealt.append(u)
        return {"number": (u[:, 0] * 1000).long() * 100}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        self.played.append(u)
        number = state["number"] + 1
        return {"number": number}, number.float(), action == 1

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        odd = state["number"] % 2 == 1
        return state["number"][:, None].float(), torch.stack([~odd, odd], 1)


class Grid:
    """A state of several ranks and types. Action 1 ends the game."""

    spec = Spec("grid", 1, (2, 3), 2, num_reset_uniforms=1, num_step_uniforms=0, time_limit=None)

    def reset(self, u: Tensor) -> State:
        n = len(u)
        return {
            "cells": torch.zeros(n, 2, 3),
            "seen": torch.zeros(n, 4, dtype=torch.bool),
            "age": u[:, 0] * 0,
        }

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        assert u.shape == (len(action), 0)
        played = {"cells": state["cells"] + 1, "seen": ~state["seen"], "age": state["age"] + 1}
        return played, torch.zeros(len(action)), action == 1

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        return state["cells"], torch.ones(len(state["cells"]), 2, dtype=torch.bool)


def count_env(num_envs: int, time_limit: int | None) -> tuple[Env, Count]:
    game = Count(time_limit)
    return VecEnv(game, num_envs), game


GO_ON, END = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)


def test_the_clock_truncates_a_game_at_the_time_limit_and_not_before() -> None:
    env, _ = count_env(3, time_limit=4)
    env.reset()
    for _ in range(3):
        for passed in range(1, 5):
            step = env.step(GO_ON)
            assert not step.terminated.any()
            assert step.truncated.tolist() == [passed == 4] * 3
            assert env.elapsed_steps.tolist() == [passed % 4] * 3


def test_a_game_that_ends_exactly_at_the_time_limit_is_terminated_and_not_truncated() -> None:
    env, _ = count_env(3, time_limit=2)
    env.reset()
    env.step(GO_ON)
    step = env.step(torch.tensor([0, 1, 0]))
    assert step.terminated.tolist() == [False, True, False]
    assert step.truncated.tolist() == [True, False, True]
    assert env.elapsed_steps.tolist() == [0, 0, 0]


def test_a_termination_before_the_time_limit_starts_the_clock_of_that_game_only() -> None:
    env, _ = count_env(3, time_limit=3)
    env.reset()
    env.step(torch.tensor([0, 1, 0]))
    assert env.elapsed_steps.tolist() == [1, 0, 1]
    env.step(GO_ON)
    assert env.step(GO_ON).truncated.tolist() == [True, False, True]
    assert env.step(GO_ON).truncated.tolist() == [False, True, False]


def test_a_time_limit_of_one_truncates_every_step() -> None:
    env, _ = count_env(3, time_limit=1)
    env.reset()
    for _ in range(3):
        assert env.step(GO_ON).truncated.all()


def test_without_a_time_limit_no_game_is_truncated() -> None:
    env, _ = count_env(3, time_limit=None)
    env.reset()
    for passed in range(1, 200):
        assert not env.step(GO_ON).truncated.any()
        assert env.elapsed_steps.tolist() == [passed] * 3


def test_reset_starts_the_clock_again() -> None:
    env, _ = count_env(3, time_limit=2)
    env.reset()
    env.step(GO_ON)
    env.reset()
    assert not env.step(GO_ON).truncated.any()


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_an_ended_game_shows_its_last_position_as_final_and_a_fresh_deal_as_now(how: str) -> None:
    env, game = count_env(3, time_limit=3)
    first = env.reset()
    for _ in range(2):
        env.step(GO_ON)
    step = env.step(torch.tensor([0, 1, 0])) if how == "terminated" else env.step(GO_ON)
    row = 1 if how == "terminated" else 2
    assert getattr(step, how)[row]
    assert step.final_obs[row].item() == first.obs[row].item() + 3
    assert step.reward[row].item() == first.obs[row].item() + 3
    assert step.final_action_mask[row].tolist() == [False, True]
    assert step.obs[row].item() == int(game.dealt[-1][row, 0] * 1000) * 100
    assert step.action_mask[row].tolist() == [True, False]


def test_a_game_that_goes_on_is_not_dealt() -> None:
    env, _ = count_env(3, time_limit=None)
    first = env.reset()
    step = env.step(torch.tensor([0, 1, 0]))
    assert step.obs[[0, 2]].tolist() == (first.obs[[0, 2]] + 1).tolist()
    assert step.obs[1].item() % 100 == 0


def test_the_first_games_are_those_that_reset_shows() -> None:
    env, game = count_env(3, time_limit=None)
    for _ in range(3):
        step = env.reset()
        assert step.obs[:, 0].tolist() == ((game.dealt[-1][:, 0] * 1000).long() * 100).tolist()


def test_no_number_of_luck_is_handed_out_twice() -> None:
    env, game = count_env(3, time_limit=5)
    env.reset()
    for index in range(40):
        env.step(END if index % 7 == 0 else GO_ON)
    env.reset()
    assert all(u.shape == (3, 2) for u in game.dealt)
    assert all(u.shape == (3, 3) for u in game.played)
    assert len(game.played) == 40
    u = torch.cat([u.flatten() for u in game.dealt + game.played])
    assert u.min() >= 0
    assert u.max() < 1
    assert len(u.unique()) == len(u)  # 600 of 2**24 numbers: two of them meet once in 90 seeds


def test_a_state_of_several_ranks_and_types_is_dealt_by_whole_rows() -> None:
    env = VecEnv(Grid(), 3)
    env.reset()
    env.step(GO_ON)
    step = env.step(torch.tensor([0, 1, 0]))
    assert env.state["cells"].tolist() == [[[2.0] * 3] * 2, [[0.0] * 3] * 2, [[2.0] * 3] * 2]
    assert env.state["age"].tolist() == [2, 0, 2]
    assert not env.state["seen"].any()
    assert step.final_obs[1].tolist() == [[2.0] * 3] * 2
    env.step(GO_ON)
    assert env.state["seen"].tolist() == [[True] * 4] * 3
    assert env.state["seen"].dtype == torch.bool


def test_a_step_does_not_write_into_what_the_game_returned() -> None:
    returned = []

    class Watched(Count):
        def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
            result = super().step(state, action, u)
            returned.append((result[0]["number"], result[0]["number"].clone()))
            return result

    game: Game = Watched(time_limit=3)
    env = VecEnv(game, 3)
    env.reset()
    for _ in range(10):
        env.step(GO_ON)
    assert all(torch.equal(number, kept) for number, kept in returned)


class Still:
    """Nothing ever changes: `step` hands on the very tensors that it was given. The clock cuts it into threes."""

    spec = Spec("still", 1, (1,), 2, num_reset_uniforms=1, num_step_uniforms=0, time_limit=3)

    def reset(self, u: Tensor) -> State:
        return {"dealt": u[:, 0] * 1, "again": u[:, 0] * 2}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        return state, torch.zeros(len(action)), torch.zeros_like(action, dtype=torch.bool)

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        return state["dealt"][:, None] * 1, torch.ones(len(state["dealt"]), 2, dtype=torch.bool)


@pytest.mark.parametrize("game", [Still(), Echo(), Walk(), Count(4), Grid()], ids=lambda game: game.spec.name)
def test_a_step_keeps_its_states_though_a_game_hands_on_the_very_tensors_it_was_given(game: Game) -> None:
    env = VecEnv(game, 3, seed=1)
    given = [env.reset()]
    kept = [each(given[0], Tensor.clone)]
    for index in range(12):
        given.append(env.step(torch.tensor([index % 2, 0, index % 3 == 0]).long()))
        kept.append(each(given[-1], Tensor.clone))
    env.reset()
    assert_same(given, kept)
    assert any(step.terminated.any() or step.truncated.any() for step in given)
    for name in game.reset(torch.zeros(3, game.spec.num_reset_uniforms)):
        buffers = {tensor.data_ptr() for tensor in env.state.values()}
        assert not buffers & {state[name].data_ptr() for step in given for state in (step.state, step.final_state)}


def test_the_last_position_is_in_the_final_state_and_the_fresh_deal_in_the_state() -> None:
    env, game = count_env(3, time_limit=None)
    first = env.reset().state["number"]
    step = env.step(torch.tensor([0, 1, 0]))
    assert step.final_state["number"].tolist() == (first + 1).tolist()
    fresh = int(game.dealt[-1][1, 0] * 1000) * 100
    assert step.state["number"].tolist() == [first[0] + 1, fresh, first[2] + 1]
    assert step.as_initial().final_state["number"].tolist() == step.state["number"].tolist()


def test_where_chooses_whole_rows() -> None:
    yes, no = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    chosen = where(torch.tensor([True, False]), yes, no)
    assert chosen[0].eq(1).all()
    assert chosen[1].eq(0).all()
    assert where(torch.tensor([True, False]), torch.tensor([1, 2]), torch.tensor([3, 4])).tolist() == [1, 4]


def test_rows_of_a_state_are_a_state() -> None:
    state = {"a": torch.arange(4), "b": torch.arange(8).view(4, 2)}
    some = select_rows(state, torch.tensor([3, 0, 3]))
    assert some["a"].tolist() == [3, 0, 3]
    assert some["b"].tolist() == [[6, 7], [0, 1], [6, 7]]


def test_a_state_has_as_many_rows_as_games() -> None:
    assert num_rows({"a": torch.arange(4), "b": torch.arange(8).view(4, 2)}) == 4
    assert num_rows(make("snake", 9).state) == 9


@pytest.mark.parametrize("name", envs.ENVS)
def test_a_compiled_step_plays_as_an_eager_one(name: str) -> None:
    eager, compiled = (envs.make(name, 37, seed=5) for _ in range(2))
    step = torch.compile(compiled.step)
    rng = CounterRNG(99, torch.arange(37), EXPLORATION_STREAM)
    action_mask = eager.reset().action_mask
    compiled.reset()
    shown: list[tuple[Step, Step]] = []
    for index in range(60):
        action = sample_legal(action_mask, rng.uniform(index, 1)[:, 0])
        shown.append((step(action), eager.step(action)))
        found, expected = shown[-1]
        assert_same([found], [expected])
        assert_equal_states(compiled.state, eager.state)
        action_mask = expected.action_mask
    for found, expected in shown:
        assert_same([found], [expected])
