"""Env against its docstrings, sentence by sentence: every registered game, and small probe games whose
every moment is known beforehand.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import envs
from envs.base import Env, Game, Spec, State, Step, rows_of, where
from envs.luck import EXPLORATION, Luck, pick

every_game = pytest.mark.parametrize("name", envs.ENVS)


def started(env: Env) -> tuple[Step, Callable[[Step], Tensor]]:
    """The first moment, and a policy that chooses a random legal action at every call."""
    luck = Luck(99, torch.arange(env.num_envs), EXPLORATION)
    calls = itertools.count()
    return env.reset(), lambda step: pick(step.legal, luck.draw(next(calls), 1)[:, 0])


def trajectory(env: Env, steps: int, first_game: int = 0) -> list[Step]:
    """What `env` shows under random legal actions that belong to the games' ids."""
    luck = Luck(99, torch.arange(first_game, first_game + env.num_envs), EXPLORATION)
    shown = [env.reset()]
    for index in range(steps):
        shown.append(env.step(pick(shown[-1].legal, luck.draw(index, 1)[:, 0])))
    return shown


def assert_same(ours: list[Step], theirs: list[Step], rows: slice = slice(None)) -> None:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for field in Step._fields:
            assert torch.equal(getattr(a, field), getattr(b, field)[rows]), f"{field} of step {index}"


def copy_of(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def assert_equal_states(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@every_game
def test_a_step_has_the_shapes_and_types_of_the_spec(name: str) -> None:
    env = envs.make(name, 5)
    spec = env.spec
    assert spec.name == name
    for step in trajectory(env, 30):
        for obs in (step.obs, step.final_obs):
            assert obs.shape == (5, *spec.obs_shape)
            assert obs.dtype == torch.float32
        for legal in (step.legal, step.final_legal):
            assert legal.shape == (5, spec.num_actions)
            assert legal.dtype == torch.bool
        assert step.reward.shape == step.terminated.shape == step.truncated.shape == (5,)
        assert step.reward.dtype == torch.float32
        assert step.terminated.dtype == step.truncated.dtype == torch.bool


@every_game
def test_a_state_is_tensors_of_n_rows(name: str) -> None:
    env = envs.make(name, 5)
    trajectory(env, 3)
    assert all(len(tensor) == 5 for tensor in env.state.values())


@every_game
def test_legal_is_never_all_false(name: str) -> None:
    for step in trajectory(envs.make(name, 256), 60):
        assert step.legal.any(1).all()
        assert step.final_legal.any(1).all()


@every_game
def test_no_game_is_both_terminated_and_truncated(name: str) -> None:
    env = envs.make(name, 256)
    shown = trajectory(env, 60)
    assert not any((step.terminated & step.truncated).any() for step in shown)
    if env.spec.time_limit is None:
        assert not any(step.truncated.any() for step in shown)


@every_game
def test_random_games_come_to_an_end_and_begin_again(name: str) -> None:
    ends = sum(step.terminated.int() + step.truncated.int() for step in trajectory(envs.make(name, 16), 200))
    assert ends.min() >= 2


@every_game
def test_where_no_game_has_ended_the_final_pair_is_what_is_seen_now(name: str) -> None:
    for step in trajectory(envs.make(name, 64), 60):
        going_on = ~(step.terminated | step.truncated)
        assert torch.equal(step.obs[going_on], step.final_obs[going_on])
        assert torch.equal(step.legal[going_on], step.final_legal[going_on])


@every_game
def test_a_step_shows_the_state_that_the_env_is_in(name: str) -> None:
    env = envs.make(name, 64)
    step, act = started(env)
    for _ in range(40):
        obs, legal = env.game.look(env.state)
        assert torch.equal(step.obs, obs)
        assert torch.equal(step.legal, legal)
        step = env.step(act(step))


@every_game
def test_a_game_that_ended_starts_its_clock_again_in_the_same_step(name: str) -> None:
    env = envs.make(name, 64)
    step, act = started(env)
    expected = torch.zeros(64, dtype=torch.int64)
    for _ in range(60):
        assert torch.equal(env.clock, expected)
        step = env.step(act(step))
        expected = (expected + 1) * ~(step.terminated | step.truncated)


@every_game
def test_play_and_look_do_not_modify_their_state(name: str) -> None:
    env = envs.make(name, 64)
    step, act = started(env)
    luck = Luck(3, torch.arange(64), EXPLORATION)
    for index in range(40):
        before, action = copy_of(env.state), act(step)
        env.game.look(env.state)
        env.game.play(env.state, action, luck.draw(index, env.spec.play_luck))
        assert_equal_states(env.state, before)
        step = env.step(action)


@every_game
def test_rules_keep_nothing_between_two_calls(name: str) -> None:
    env = envs.make(name, 64)
    step, act = started(env)
    luck = Luck(3, torch.arange(64), EXPLORATION)
    for index in range(40):
        action, chance = act(step), luck.draw(index, env.spec.play_luck)
        state, reward, terminated = env.game.play(env.state, action, chance)
        again, reward_again, terminated_again = env.game.play(env.state, action, chance)
        assert_equal_states(state, again)
        assert torch.equal(reward, reward_again)
        assert torch.equal(terminated, terminated_again)
        step = env.step(action)


@every_game
def test_each_game_is_dealt_and_played_by_its_own_row(name: str) -> None:
    env = envs.make(name, 32)
    trajectory(env, 4)
    luck = Luck(3, torch.arange(32), EXPLORATION)
    dealt = env.game.deal(luck.draw(0, env.spec.deal_luck))
    action = pick(env.game.look(env.state)[1], luck.draw(1, 1)[:, 0])
    played, reward, terminated = env.game.play(env.state, action, luck.draw(2, env.spec.play_luck))
    rows = torch.tensor([30, 3, 17])
    assert_equal_states(env.game.deal(luck.draw(0, env.spec.deal_luck)[rows]), rows_of(dealt, rows))
    alone = env.game.play(rows_of(env.state, rows), action[rows], luck.draw(2, env.spec.play_luck)[rows])
    assert_equal_states(alone[0], rows_of(played, rows))
    assert torch.equal(alone[1], reward[rows])
    assert torch.equal(alone[2], terminated[rows])


@every_game
def test_the_buffers_never_move(name: str) -> None:
    env = envs.make(name, 64)

    def places() -> list[int]:
        return [tensor.data_ptr() for tensor in (*env.state.values(), env.clock, env.steps)]

    before = places()
    assert len(set(before)) == len(before)
    trajectory(env, 50)
    env.reset()
    assert places() == before


@every_game
def test_a_step_that_was_handed_out_never_changes(name: str) -> None:
    env = envs.make(name, 64)
    step, act = started(env)
    for _ in range(40):
        kept = Step(*[tensor.clone() for tensor in step])
        after = env.step(act(step))
        assert_same([step], [kept])
        step = after


@every_game
def test_a_step_does_not_modify_the_action(name: str) -> None:
    env = envs.make(name, 64)
    step, act = started(env)
    action = act(step)
    kept = action.clone()
    env.step(action)
    assert torch.equal(action, kept)


@every_game
def test_a_game_plays_the_same_for_every_number_of_games_and_in_every_shard(name: str) -> None:
    whole = trajectory(envs.make(name, 256, seed=4), 60)
    assert_same(trajectory(envs.make(name, 7, seed=4), 60), whole, slice(0, 7))
    assert_same(trajectory(envs.make(name, 1, seed=4), 60), whole, slice(0, 1))
    shard = envs.make(name, 5, seed=4, first_game=3)
    assert_same(trajectory(shard, 60, first_game=3), whole, slice(3, 8))
    last = envs.make(name, 56, seed=4, first_game=200)
    assert_same(trajectory(last, 60, first_game=200), whole, slice(200, 256))


@every_game
def test_the_same_seed_gives_the_same_games(name: str) -> None:
    assert_same(trajectory(envs.make(name, 16, seed=8), 60), trajectory(envs.make(name, 16, seed=8), 60))


@every_game
def test_another_seed_gives_other_games(name: str) -> None:
    shown = [trajectory(envs.make(name, 64, seed=seed), 20) for seed in (8, 9)]
    alike = [(a.obs == b.obs).flatten(1).all(1) for a, b in zip(*shown, strict=True)]
    assert torch.stack(alike).float().mean() < 0.5


@every_game
def test_games_of_one_run_differ(name: str) -> None:
    late = torch.stack([step.obs for step in trajectory(envs.make(name, 64), 5)], 1)
    assert len(late.flatten(1).unique(dim=0)) > 32


@every_game
def test_reset_deals_all_games_afresh_and_nothing_has_happened_yet(name: str) -> None:
    env = envs.make(name, 64)
    trajectory(env, 7)
    assert env.clock.any()
    step = env.reset()
    assert not env.clock.any()
    assert not step.reward.any()
    assert not step.terminated.any()
    assert not step.truncated.any()
    assert torch.equal(step.obs, step.final_obs)
    assert torch.equal(step.legal, step.final_legal)


@every_game
@pytest.mark.parametrize("num_envs", [0, -3])
def test_there_is_at_least_one_game(name: str, num_envs: int) -> None:
    with pytest.raises(ValueError, match=f"num_envs is {num_envs}; there must be at least one game"):
        envs.make(name, num_envs)


def test_an_unknown_env_is_answered_with_those_there_are_and_the_closest() -> None:
    with pytest.raises(ValueError, match="no env is called 'conect4'") as caught:
        envs.make("conect4", 1)
    assert all(name in str(caught.value) for name in envs.ENVS)
    assert str(caught.value).endswith("did you mean 'connect4'?")


def test_an_unknown_opponent_is_answered_with_those_there_are_and_the_closest() -> None:
    with pytest.raises(ValueError, match="no opponent is called 'tacticl'") as caught:
        envs.make("connect4", 1, opponent="tacticl")
    assert "there are random, tactical" in str(caught.value)
    assert str(caught.value).endswith("did you mean 'tactical'?")


def test_a_name_like_no_other_gets_no_guess() -> None:
    assert envs.closest("env", "zzz", ["b", "a"]) == "no env is called 'zzz'; there are a, b"


def test_make_plays_against_the_opponent_that_was_asked_for() -> None:
    for opponent in envs.OPPONENTS:
        assert envs.make("connect4", 1, opponent=opponent).game.opponent is envs.OPPONENTS[opponent]


class Count:
    """Counts up from a dealt multiple of 100. Action 1 ends the game; rewards are the number reached.

    Every call's luck is kept, to be looked at.
    """

    def __init__(self, time_limit: int | None) -> None:
        self.spec = Spec("count", 1, (1,), 2, deal_luck=2, play_luck=3, time_limit=time_limit)
        self.dealt: list[Tensor] = []
        self.played: list[Tensor] = []

    def deal(self, luck: Tensor) -> State:
        self.dealt.append(luck)
        return {"number": (luck[:, 0] * 1000).long() * 100}

    def play(self, state: State, action: Tensor, luck: Tensor) -> tuple[State, Tensor, Tensor]:
        self.played.append(luck)
        number = state["number"] + 1
        return {"number": number}, number.float(), action == 1

    def look(self, state: State) -> tuple[Tensor, Tensor]:
        odd = state["number"] % 2 == 1
        return state["number"][:, None].float(), torch.stack([~odd, odd], 1)


class Grid:
    """A state of several ranks and types. Action 1 ends the game."""

    spec = Spec("grid", 1, (2, 3), 2, deal_luck=1, play_luck=0, time_limit=None)

    def deal(self, luck: Tensor) -> State:
        n = len(luck)
        return {
            "cells": torch.zeros(n, 2, 3),
            "seen": torch.zeros(n, 4, dtype=torch.bool),
            "age": luck[:, 0] * 0,
        }

    def play(self, state: State, action: Tensor, luck: Tensor) -> tuple[State, Tensor, Tensor]:
        assert luck.shape == (len(action), 0)
        played = {"cells": state["cells"] + 1, "seen": ~state["seen"], "age": state["age"] + 1}
        return played, torch.zeros(len(action)), action == 1

    def look(self, state: State) -> tuple[Tensor, Tensor]:
        return state["cells"], torch.ones(len(state["cells"]), 2, dtype=torch.bool)


def count_env(num_envs: int, time_limit: int | None) -> tuple[Env, Count]:
    game = Count(time_limit)
    return Env(game, num_envs), game


GO_ON, END = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)


def test_the_clock_truncates_a_game_at_the_time_limit_and_not_before() -> None:
    env, _ = count_env(3, time_limit=4)
    env.reset()
    for _ in range(3):
        for passed in range(1, 5):
            step = env.step(GO_ON)
            assert not step.terminated.any()
            assert step.truncated.tolist() == [passed == 4] * 3
            assert env.clock.tolist() == [passed % 4] * 3


def test_a_game_that_ends_exactly_at_the_time_limit_is_terminated_and_not_truncated() -> None:
    env, _ = count_env(3, time_limit=2)
    env.reset()
    env.step(GO_ON)
    step = env.step(torch.tensor([0, 1, 0]))
    assert step.terminated.tolist() == [False, True, False]
    assert step.truncated.tolist() == [True, False, True]
    assert env.clock.tolist() == [0, 0, 0]


def test_a_termination_before_the_time_limit_starts_the_clock_of_that_game_only() -> None:
    env, _ = count_env(3, time_limit=3)
    env.reset()
    env.step(torch.tensor([0, 1, 0]))
    assert env.clock.tolist() == [1, 0, 1]
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
        assert env.clock.tolist() == [passed] * 3


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
    assert step.final_legal[row].tolist() == [False, True]
    assert step.obs[row].item() == int(game.dealt[-1][row, 0] * 1000) * 100
    assert step.legal[row].tolist() == [True, False]


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
    assert all(luck.shape == (3, 2) for luck in game.dealt)
    assert all(luck.shape == (3, 3) for luck in game.played)
    assert len(game.played) == 40
    luck = torch.cat([luck.flatten() for luck in game.dealt + game.played])
    assert luck.min() >= 0
    assert luck.max() < 1
    assert len(luck.unique()) == len(luck)  # 600 of 2**24 numbers: two of them meet once in 90 seeds


def test_a_state_of_several_ranks_and_types_is_dealt_by_whole_rows() -> None:
    env = Env(Grid(), 3)
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
        def play(self, state: State, action: Tensor, luck: Tensor) -> tuple[State, Tensor, Tensor]:
            result = super().play(state, action, luck)
            returned.append((result[0]["number"], result[0]["number"].clone()))
            return result

    game: Game = Watched(time_limit=3)
    env = Env(game, 3)
    env.reset()
    for _ in range(10):
        env.step(GO_ON)
    assert all(torch.equal(number, kept) for number, kept in returned)


def test_where_chooses_whole_rows() -> None:
    yes, no = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    chosen = where(torch.tensor([True, False]), yes, no)
    assert chosen[0].eq(1).all()
    assert chosen[1].eq(0).all()
    assert where(torch.tensor([True, False]), torch.tensor([1, 2]), torch.tensor([3, 4])).tolist() == [1, 4]


def test_rows_of_a_state_are_a_state() -> None:
    state = {"a": torch.arange(4), "b": torch.arange(8).view(4, 2)}
    some = rows_of(state, torch.tensor([3, 0, 3]))
    assert some["a"].tolist() == [3, 0, 3]
    assert some["b"].tolist() == [[6, 7], [0, 1], [6, 7]]
