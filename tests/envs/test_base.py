"""VecEnv against the sentences of its docstrings: every registered env, with options too, and probe games whose every
step is known in advance.
"""

import pytest
import torch
from torch import Tensor

import envs
from envs.base import (
    Env,
    Game,
    Spec,
    State,
    Step,
    VecEnv,
    cat_states,
    clone_state,
    num_rows,
    select_rows,
    state_to,
    where,
    where_states,
)
from envs.rng import ENV_STREAM, EXPLORATION_STREAM, CounterRNG, sample_legal
from tests.helpers.env_steps import (
    assert_states_equal,
    assert_steps_equal,
    map_tensors,
    named_tensors,
    reset_with_random_policy,
    trajectory,
)
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
    """Return the env of a name and options as a user writes them."""
    name, *options = game.split()
    return envs.make(name, num_envs, seed, device, first_env_id, **envs.parse_options(options))


@every_game
def test_step_has_shapes_and_dtypes_of_spec(game: str) -> None:
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
def test_state_tensors_have_num_envs_rows(game: str) -> None:
    env = make(game, 5)
    trajectory(env, 3)
    assert all(len(tensor) == 5 for tensor in env.state.values())


@every_game
def test_action_mask_has_a_legal_action_in_every_row(game: str) -> None:
    for step in trajectory(make(game, 256), 60):
        assert step.action_mask.any(1).all()
        assert step.final_action_mask.any(1).all()


@every_game
def test_truncated_at_time_limit_unless_terminated(game: str) -> None:
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
def test_random_episodes_end_and_restart(game: str) -> None:
    ends = sum(step.terminated.int() + step.truncated.int() for step in trajectory(make(game, 16), 200))
    assert ends.min() >= 2


@every_game
def test_final_obs_equals_obs_where_no_episode_ended(game: str) -> None:
    for step in trajectory(make(game, 64), 60):
        going_on = ~(step.terminated | step.truncated)
        assert torch.equal(step.obs[going_on], step.final_obs[going_on])
        assert torch.equal(step.action_mask[going_on], step.final_action_mask[going_on])


@every_game
def test_step_observes_current_state(game: str) -> None:
    env = make(game, 64)
    step, act = reset_with_random_policy(env)
    for _ in range(40):
        obs, action_mask = env.game.observe(env.state)
        assert torch.equal(step.obs, obs)
        assert torch.equal(step.action_mask, action_mask)
        step = env.step(act(step))


@every_game
def test_step_states_observe_to_its_observations(game: str) -> None:
    env = make(game, 64)
    step, act = reset_with_random_policy(env)
    ends = 0
    for _ in range(60):
        for state, obs, action_mask in (
            (step.state, step.obs, step.action_mask),
            (step.final_state, step.final_obs, step.final_action_mask),
        ):
            observed, mask_of_state = env.game.observe(state)
            assert torch.equal(observed, obs)
            assert torch.equal(mask_of_state, action_mask)
        assert_states_equal(step.state, env.state)
        ended = step.terminated | step.truncated
        going_on = (~ended).nonzero()[:, 0]
        assert_states_equal(select_rows(step.state, going_on), select_rows(step.final_state, going_on))
        ends += int(ended.sum())
        step = env.step(act(step))
    assert ends > 64


@every_game
def test_final_state_is_game_step_of_previous_state(game: str) -> None:
    env = make(game, 64, seed=6)
    rng = CounterRNG(6, torch.arange(64), ENV_STREAM)
    step, act = reset_with_random_policy(env)
    for _ in range(40):
        action, u = act(step), rng.uniform(env.steps, env.spec.num_reset_uniforms + env.spec.num_step_uniforms)
        stepped, reward, terminated = env.game.step(step.state, action, u[:, env.spec.num_reset_uniforms :])
        initial = env.game.reset(u[:, : env.spec.num_reset_uniforms])
        step = env.step(action)
        assert_states_equal(step.final_state, stepped)
        assert torch.equal(step.reward, reward)
        assert torch.equal(step.terminated, terminated)
        ended = (step.terminated | step.truncated).nonzero()[:, 0]
        assert_states_equal(select_rows(step.state, ended), select_rows(initial, ended))


@every_game
def test_elapsed_steps_restart_in_step_that_ends_episode(game: str) -> None:
    env = make(game, 64)
    step, act = reset_with_random_policy(env)
    expected = torch.zeros(64, dtype=torch.int64)
    for _ in range(60):
        assert torch.equal(env.elapsed_steps, expected)
        step = env.step(act(step))
        expected = (expected + 1) * ~(step.terminated | step.truncated)


@every_game
def test_game_step_and_observe_do_not_modify_state(game: str) -> None:
    env = make(game, 64)
    step, act = reset_with_random_policy(env)
    rng = CounterRNG(3, torch.arange(64), EXPLORATION_STREAM)
    for index in range(40):
        before, action = clone_state(env.state), act(step)
        env.game.observe(env.state)
        env.game.step(env.state, action, rng.uniform(index, env.spec.num_step_uniforms))
        assert_states_equal(env.state, before)
        step = env.step(action)


@every_game
def test_game_step_called_twice_returns_the_same(game: str) -> None:
    env = make(game, 64)
    step, act = reset_with_random_policy(env)
    rng = CounterRNG(3, torch.arange(64), EXPLORATION_STREAM)
    for index in range(40):
        action, u = act(step), rng.uniform(index, env.spec.num_step_uniforms)
        state, reward, terminated = env.game.step(env.state, action, u)
        again, reward_again, terminated_again = env.game.step(env.state, action, u)
        assert_states_equal(state, again)
        assert torch.equal(reward, reward_again)
        assert torch.equal(terminated, terminated_again)
        step = env.step(action)


@every_game
def test_game_rows_are_independent(game: str) -> None:
    env = make(game, 32)
    trajectory(env, 4)
    rng = CounterRNG(3, torch.arange(32), EXPLORATION_STREAM)
    initial = env.game.reset(rng.uniform(0, env.spec.num_reset_uniforms))
    action = sample_legal(env.game.observe(env.state)[1], rng.uniform(1, 1)[:, 0])
    stepped, reward, terminated = env.game.step(env.state, action, rng.uniform(2, env.spec.num_step_uniforms))
    rows = torch.tensor([30, 3, 17])
    assert_states_equal(env.game.reset(rng.uniform(0, env.spec.num_reset_uniforms)[rows]), select_rows(initial, rows))
    alone = env.game.step(select_rows(env.state, rows), action[rows], rng.uniform(2, env.spec.num_step_uniforms)[rows])
    assert_states_equal(alone[0], select_rows(stepped, rows))
    assert torch.equal(alone[1], reward[rows])
    assert torch.equal(alone[2], terminated[rows])


@every_game
def test_state_buffers_keep_their_addresses(game: str) -> None:
    env = make(game, 64)

    def places() -> list[int]:
        return [tensor.data_ptr() for tensor in (*env.state.values(), env.elapsed_steps, env.steps)]

    before = places()
    assert len(set(before)) == len(before)
    trajectory(env, 50)
    env.reset()
    assert places() == before


@every_game
def test_returned_step_is_not_modified_later(game: str) -> None:
    env = make(game, 64)
    step, act = reset_with_random_policy(env)
    given = []
    for _ in range(40):
        given.append((step, map_tensors(step, Tensor.clone)))
        step = env.step(act(step))
    env.reset()
    for step, kept in given:
        assert_steps_equal([step], [kept])


@every_game
def test_as_initial_keeps_current_observation_only(game: str) -> None:
    first, *later = trajectory(make(game, 64), 40)
    assert_steps_equal([first.as_initial()], [first])
    assert any((step.terminated | step.truncated).any() for step in later)
    for step in later:
        kept, alone = map_tensors(step, Tensor.clone), step.as_initial()
        for name, tensor in named_tensors(alone).items():
            assert tensor.dtype == named_tensors(step)[name].dtype
            if name in ("reward", "terminated", "truncated"):
                assert torch.equal(tensor, torch.zeros_like(named_tensors(step)[name]))
            else:
                assert torch.equal(tensor, named_tensors(step)[name.removeprefix("final_")])
        assert_steps_equal([step], [kept])


@every_game
def test_step_does_not_modify_action(game: str) -> None:
    env = make(game, 64)
    step, act = reset_with_random_policy(env)
    action = act(step)
    kept = action.clone()
    env.step(action)
    assert torch.equal(action, kept)


@every_game
def test_trajectory_is_independent_of_num_envs_and_sharding(game: str) -> None:
    whole = trajectory(make(game, 1024, seed=4), 40)
    assert_steps_equal(trajectory(make(game, 7, seed=4), 40), whole, slice(0, 7))
    assert_steps_equal(trajectory(make(game, 1, seed=4), 40), whole, slice(0, 1))
    shard = make(game, 5, seed=4, first_env_id=3)
    assert_steps_equal(trajectory(shard, 40, first_env_id=3), whole, slice(3, 8))
    last = make(game, 56, seed=4, first_env_id=968)
    assert_steps_equal(trajectory(last, 40, first_env_id=968), whole, slice(968, 1024))


@every_game
def test_first_env_id_is_kept(game: str) -> None:
    assert make(game, 3).first_env_id == 0
    assert make(game, 3, first_env_id=7).first_env_id == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@every_game
def test_trajectory_on_cuda_equals_cpu(game: str) -> None:
    trajectories = trajectory(make(game, 4096, seed=4, device="cuda"), 40)
    assert_steps_equal(
        [map_tensors(step, Tensor.cpu) for step in trajectories], trajectory(make(game, 4096, seed=4), 40)
    )


@every_game
def test_same_seed_gives_same_trajectory(game: str) -> None:
    assert_steps_equal(trajectory(make(game, 16, seed=8), 60), trajectory(make(game, 16, seed=8), 60))


@every_game
def test_other_seed_gives_other_trajectory(game: str) -> None:
    trajectories = [trajectory(make(game, 64, seed=seed), 20) for seed in (8, 9)]
    alike = [(a.obs == b.obs).flatten(1).all(1) for a, b in zip(*trajectories, strict=True)]
    assert torch.stack(alike).float().mean() < 0.5


@every_game
def test_env_copies_differ(game: str) -> None:
    late = torch.stack([step.obs for step in trajectory(make(game, 64), 5)], 1)
    assert len(late.flatten(1).unique(dim=0)) > 32


@every_game
def test_reset_clears_elapsed_steps_reward_and_ends(game: str) -> None:
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
def test_num_envs_below_one_raises(game: str, num_envs: int) -> None:
    with pytest.raises(ValueError, match=f"num_envs is {num_envs}; an environment requires at least 1 copy"):
        make(game, num_envs)


class Count:
    """Counts up from a random multiple of 100. Action 1 ends the episode; the reward is the number reached.

    The uniforms of every call are kept.
    """

    def __init__(self, time_limit: int | None) -> None:
        self.spec = Spec("count", 1, (1,), 2, num_reset_uniforms=2, num_step_uniforms=3, time_limit=time_limit)
        self.reset_uniforms: list[Tensor] = []
        self.step_uniforms: list[Tensor] = []

    def reset(self, u: Tensor) -> State:
        self.reset_uniforms.append(u)
        return {"number": (u[:, 0] * 1000).long() * 100}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        self.step_uniforms.append(u)
        number = state["number"] + 1
        return {"number": number}, number.float(), action == 1

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        odd = state["number"] % 2 == 1
        return state["number"][:, None].float(), torch.stack([~odd, odd], 1)


class Grid:
    """A state of several ranks and dtypes. Action 1 ends the episode."""

    spec = Spec("grid", 1, (2, 3), 2, num_reset_uniforms=1, num_step_uniforms=0, time_limit=None)

    def reset(self, u: Tensor) -> State:
        n = len(u)
        return {
            "cells": torch.zeros(n, 2, 3),
            "visited": torch.zeros(n, 4, dtype=torch.bool),
            "age": u[:, 0] * 0,
        }

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        assert u.shape == (len(action), 0)
        stepped = {"cells": state["cells"] + 1, "visited": ~state["visited"], "age": state["age"] + 1}
        return stepped, torch.zeros(len(action)), action == 1

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        return state["cells"], torch.ones(len(state["cells"]), 2, dtype=torch.bool)


def count_env(num_envs: int, time_limit: int | None) -> tuple[Env, Count]:
    game = Count(time_limit)
    return VecEnv(game, num_envs), game


CONTINUE, END = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)


def test_time_limit_truncates_exactly_at_limit() -> None:
    env, _ = count_env(3, time_limit=4)
    env.reset()
    for _ in range(3):
        for passed in range(1, 5):
            step = env.step(CONTINUE)
            assert not step.terminated.any()
            assert step.truncated.tolist() == [passed == 4] * 3
            assert env.elapsed_steps.tolist() == [passed % 4] * 3


def test_termination_at_time_limit_is_not_truncation() -> None:
    env, _ = count_env(3, time_limit=2)
    env.reset()
    env.step(CONTINUE)
    step = env.step(torch.tensor([0, 1, 0]))
    assert step.terminated.tolist() == [False, True, False]
    assert step.truncated.tolist() == [True, False, True]
    assert env.elapsed_steps.tolist() == [0, 0, 0]


def test_termination_restarts_elapsed_steps_of_its_copy_only() -> None:
    env, _ = count_env(3, time_limit=3)
    env.reset()
    env.step(torch.tensor([0, 1, 0]))
    assert env.elapsed_steps.tolist() == [1, 0, 1]
    env.step(CONTINUE)
    assert env.step(CONTINUE).truncated.tolist() == [True, False, True]
    assert env.step(CONTINUE).truncated.tolist() == [False, True, False]


def test_time_limit_of_one_truncates_every_step() -> None:
    env, _ = count_env(3, time_limit=1)
    env.reset()
    for _ in range(3):
        assert env.step(CONTINUE).truncated.all()


def test_no_time_limit_never_truncates() -> None:
    env, _ = count_env(3, time_limit=None)
    env.reset()
    for passed in range(1, 200):
        assert not env.step(CONTINUE).truncated.any()
        assert env.elapsed_steps.tolist() == [passed] * 3


def test_reset_restarts_elapsed_steps() -> None:
    env, _ = count_env(3, time_limit=2)
    env.reset()
    env.step(CONTINUE)
    env.reset()
    assert not env.step(CONTINUE).truncated.any()


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_autoreset_keeps_final_obs_and_returns_new_obs(how: str) -> None:
    env, game = count_env(3, time_limit=3)
    first = env.reset()
    for _ in range(2):
        env.step(CONTINUE)
    step = env.step(torch.tensor([0, 1, 0])) if how == "terminated" else env.step(CONTINUE)
    row = 1 if how == "terminated" else 2
    assert getattr(step, how)[row]
    assert step.final_obs[row].item() == first.obs[row].item() + 3
    assert step.reward[row].item() == first.obs[row].item() + 3
    assert step.final_action_mask[row].tolist() == [False, True]
    assert step.obs[row].item() == int(game.reset_uniforms[-1][row, 0] * 1000) * 100
    assert step.action_mask[row].tolist() == [True, False]


def test_running_episode_is_not_reset() -> None:
    env, _ = count_env(3, time_limit=None)
    first = env.reset()
    step = env.step(torch.tensor([0, 1, 0]))
    assert step.obs[[0, 2]].tolist() == (first.obs[[0, 2]] + 1).tolist()
    assert step.obs[1].item() % 100 == 0


def test_reset_returns_its_own_initial_state() -> None:
    env, game = count_env(3, time_limit=None)
    for _ in range(3):
        step = env.reset()
        assert step.obs[:, 0].tolist() == ((game.reset_uniforms[-1][:, 0] * 1000).long() * 100).tolist()


def test_no_uniform_is_used_twice() -> None:
    env, game = count_env(3, time_limit=5)
    env.reset()
    for index in range(40):
        env.step(END if index % 7 == 0 else CONTINUE)
    env.reset()
    assert all(u.shape == (3, 2) for u in game.reset_uniforms)
    assert all(u.shape == (3, 3) for u in game.step_uniforms)
    assert len(game.step_uniforms) == 40
    u = torch.cat([u.flatten() for u in game.reset_uniforms + game.step_uniforms])
    assert u.min() >= 0
    assert u.max() < 1
    assert len(u.unique()) == len(u)  # 600 of 2**24 numbers: two of them meet once in 90 seeds


def test_autoreset_replaces_whole_rows_of_any_rank_and_dtype() -> None:
    env = VecEnv(Grid(), 3)
    env.reset()
    env.step(CONTINUE)
    step = env.step(torch.tensor([0, 1, 0]))
    assert env.state["cells"].tolist() == [[[2.0] * 3] * 2, [[0.0] * 3] * 2, [[2.0] * 3] * 2]
    assert env.state["age"].tolist() == [2, 0, 2]
    assert not env.state["visited"].any()
    assert step.final_obs[1].tolist() == [[2.0] * 3] * 2
    env.step(CONTINUE)
    assert env.state["visited"].tolist() == [[True] * 4] * 3
    assert env.state["visited"].dtype == torch.bool


def test_step_does_not_write_into_tensors_of_game() -> None:
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
        env.step(CONTINUE)
    assert all(torch.equal(number, kept) for number, kept in returned)


class Still:
    """A constant state: `step` returns the tensors that it was given. Truncated after three steps."""

    spec = Spec("still", 1, (1,), 2, num_reset_uniforms=1, num_step_uniforms=0, time_limit=3)

    def reset(self, u: Tensor) -> State:
        return {"uniform": u[:, 0] * 1, "again": u[:, 0] * 2}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        return state, torch.zeros(len(action)), torch.zeros_like(action, dtype=torch.bool)

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        return state["uniform"][:, None] * 1, torch.ones(len(state["uniform"]), 2, dtype=torch.bool)


@pytest.mark.parametrize("game", [Still(), Echo(), Walk(), Count(4), Grid()], ids=lambda game: game.spec.name)
def test_step_states_survive_game_that_returns_its_inputs(game: Game) -> None:
    env = VecEnv(game, 3, seed=1)
    given = [env.reset()]
    kept = [map_tensors(given[0], Tensor.clone)]
    for index in range(12):
        given.append(env.step(torch.tensor([index % 2, 0, index % 3 == 0]).long()))
        kept.append(map_tensors(given[-1], Tensor.clone))
    env.reset()
    assert_steps_equal(given, kept)
    assert any(step.terminated.any() or step.truncated.any() for step in given)
    for name in game.reset(torch.zeros(3, game.spec.num_reset_uniforms)):
        buffers = {tensor.data_ptr() for tensor in env.state.values()}
        assert not buffers & {state[name].data_ptr() for step in given for state in (step.state, step.final_state)}


def test_autoreset_keeps_final_state_and_returns_new_state() -> None:
    env, game = count_env(3, time_limit=None)
    first = env.reset().state["number"]
    step = env.step(torch.tensor([0, 1, 0]))
    assert step.final_state["number"].tolist() == (first + 1).tolist()
    fresh = int(game.reset_uniforms[-1][1, 0] * 1000) * 100
    assert step.state["number"].tolist() == [first[0] + 1, fresh, first[2] + 1]
    assert step.as_initial().final_state["number"].tolist() == step.state["number"].tolist()


def test_where_selects_whole_rows() -> None:
    yes, no = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    chosen = where(torch.tensor([True, False]), yes, no)
    assert chosen[0].eq(1).all()
    assert chosen[1].eq(0).all()
    assert where(torch.tensor([True, False]), torch.tensor([1, 2]), torch.tensor([3, 4])).tolist() == [1, 4]


def test_select_rows_returns_rows_of_every_tensor() -> None:
    state = {"a": torch.arange(4), "b": torch.arange(8).view(4, 2)}
    some = select_rows(state, torch.tensor([3, 0, 3]))
    assert some["a"].tolist() == [3, 0, 3]
    assert some["b"].tolist() == [[6, 7], [0, 1], [6, 7]]


def test_num_rows_counts_rows() -> None:
    assert num_rows({"a": torch.arange(4), "b": torch.arange(8).view(4, 2)}) == 4
    assert num_rows(make("snake", 9).state) == 9


def test_cat_states_joins_rows_in_order() -> None:
    states = [{"a": torch.arange(2), "b": torch.zeros(2, 3)}, {"a": torch.arange(5, 8), "b": torch.ones(3, 3)}]
    joined = cat_states(states)
    assert joined["a"].tolist() == [0, 1, 5, 6, 7]
    assert joined["b"].sum(1).tolist() == [0, 0, 3, 3, 3]
    assert_states_equal(cat_states(states[:1]), states[0])


def test_where_states_selects_whole_rows() -> None:
    yes = {"a": torch.tensor([1, 2]), "b": torch.ones(2, 3)}
    no = {"a": torch.tensor([3, 4]), "b": torch.zeros(2, 3)}
    selected = where_states(torch.tensor([False, True]), yes, no)
    assert selected["a"].tolist() == [3, 2]
    assert selected["b"].tolist() == [[0.0] * 3, [1.0] * 3]


def test_clone_state_shares_no_memory() -> None:
    state = {"a": torch.arange(4)}
    copy = clone_state(state)
    state["a"] += 1
    assert copy["a"].tolist() == [0, 1, 2, 3]


def test_state_to_moves_every_tensor() -> None:
    state = {"a": torch.arange(4), "b": torch.ones(4, 2)}
    assert_states_equal(state_to(state, "cpu"), state)
    assert {tensor.device.type for tensor in state_to(state, "meta").values()} == {"meta"}


def test_vec_env_is_compilable() -> None:
    assert make("snake", 2).is_compilable


@pytest.mark.compile
@pytest.mark.parametrize("name", envs.ENVS)
def test_compiled_step_equals_eager(name: str) -> None:
    eager, compiled = (envs.make(name, 37, seed=5) for _ in range(2))
    step = torch.compile(compiled.step)
    rng = CounterRNG(99, torch.arange(37), EXPLORATION_STREAM)
    action_mask = eager.reset().action_mask
    compiled.reset()
    trajectories: list[tuple[Step, Step]] = []
    for index in range(60):
        action = sample_legal(action_mask, rng.uniform(index, 1)[:, 0])
        trajectories.append((step(action), eager.step(action)))
        found, expected = trajectories[-1]
        assert_steps_equal([found], [expected])
        assert_states_equal(compiled.state, eager.state)
        action_mask = expected.action_mask
    for found, expected in trajectories:
        assert_steps_equal([found], [expected])
