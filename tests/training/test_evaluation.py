"""Evaluation against games whose value is known."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import envs
import evaluate
from envs.base import Env, Spec, State, Step, VecEnv
from envs.rng import QUERY_STREAM, CounterRNG
from tests.helpers.small_runs import small_config
from train import train
from training.episode_review import collect_episodes
from training.evaluation import (
    MAX_TIME_STEPS,
    Policy,
    Result,
    equal_rows,
    estimate,
    first_episodes,
    random_policy,
    run_episodes,
    student_policy,
    warn_of_cut,
)


class LongAndShort:
    """Game i of the first deal lasts i + 1 steps and pays i; whatever is dealt later pays 1,000 at once."""

    spec = Spec("probe", 1, (1,), 2, num_reset_uniforms=1, num_step_uniforms=0, time_limit=None)
    resets = 0

    def reset(self, u: Tensor) -> State:
        self.resets += 1  # the constructor resets, then `reset` does
        length = torch.arange(len(u)) if self.resets == 2 else torch.full((len(u),), -1)
        return {"length": length, "left": length.clone()}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        over = state["left"] <= 0
        reward = torch.where(state["length"] < 0, 1000.0, state["length"].float()) * over
        return {"length": state["length"], "left": state["left"] - 1}, reward, over

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        return state["left"][:, None].float(), torch.ones(len(state["left"]), 2, dtype=torch.bool)


def test_each_copy_counts_its_first_game_only() -> None:
    result = run_episodes(lambda env, step: torch.zeros(5, dtype=torch.int64), VecEnv(LongAndShort(), 5))
    assert (result.mean_return, result.episodes) == (2.0, 5)
    assert result.stderr == pytest.approx(math.sqrt(2.5 / 5))
    assert 0 <= result.low < 2 < result.high <= 4


def binary(wins: int, number: int) -> Result:
    """What games come to that are won or lost."""
    return estimate(torch.tensor([1.0] * wins + [-1.0] * (number - wins)), (-1.0, 1.0))


@pytest.mark.parametrize(("wins", "number"), [(0, 10), (3, 10), (10, 10), (500, 500), (1, 1)])
def test_the_interval_of_games_won_or_lost_is_the_known_one_of_a_share(wins: int, number: int) -> None:
    """Beside SciPy's Wilson interval."""
    result = binary(wins, number)
    known = stats.binomtest(wins, number).proportion_ci(method="wilson")
    assert (result.low, result.high) == pytest.approx((2 * known.low - 1, 2 * known.high - 1), abs=1e-4)


@pytest.mark.parametrize(("lowest", "highest"), [(-1.0, 1.0), (0.0, 35.0), (-5.0, 1e6)])
@pytest.mark.parametrize("number", [1, 2, 7, 500])
def test_no_interval_leaves_the_range_of_returns(lowest: float, highest: float, number: int) -> None:
    chance = torch.Generator().manual_seed(number)
    for power in (0.01, 1.0, 30.0):
        share = torch.rand(number, generator=chance) ** power
        for one in (share, share.round(), share * 0, share * 0 + 1, share * 0 + 0.5):
            result = estimate(lowest + (highest - lowest) * one, (lowest, highest))
            near = 1e-6 * (highest - lowest)
            assert lowest - near <= result.low <= result.mean_return + near
            assert result.mean_return - near <= result.high <= highest + near
            assert result.high > result.low, "nothing is known for certain"


def test_the_interval_far_from_the_range_s_ends_is_the_mean_and_196_standard_errors() -> None:
    returns = 10 + torch.randn(400, generator=torch.Generator().manual_seed(1))
    result = estimate(returns, (0.0, 35.0))
    assert result.low == pytest.approx(result.mean_return - 1.96 * result.stderr, abs=0.003)
    assert result.high == pytest.approx(result.mean_return + 1.96 * result.stderr, abs=0.003)


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.99])
def test_the_interval_holds_the_true_mean_19_times_in_20(truth: float) -> None:
    """Of 100 games of which a tenth of those not won are drawn; where nearly all are won, too."""
    draws, lost = 0.1 * (1 - truth), 0.9 * (1 - truth)
    mean, chance, held = truth - lost, torch.Generator().manual_seed(1), 0
    for _ in range(400):
        u = torch.rand(100, generator=chance)
        result = estimate((u < truth).float() - (u > truth + draws).float(), (-1.0, 1.0))
        held += result.low <= mean <= result.high
    assert held >= 0.92 * 400


def test_where_the_range_is_unknown_returns_that_occurred_bound_the_interval() -> None:
    result = estimate(torch.tensor([499.0] + [500.0] * 40), None)
    assert 499 < result.low < result.mean_return < result.high <= 500
    alone = estimate(torch.tensor([3.0]), None)
    assert math.isnan(alone.low)
    assert str(alone) == "+3.000, 1 episode"
    assert binary(500, 500).high == pytest.approx(1)
    assert str(binary(500, 500)) == "+1.000, 95 % interval [+0.985, +1.000], 500 episodes"


def test_every_registered_game_knows_the_range_of_its_returns() -> None:
    for name, options, expected in (
        ("connect4", {}, (-1, 1)),
        ("blackjack", {}, (-1, 1)),
        ("blackjack", {"sab": False, "natural": True}, (-1, 1.5)),
        ("snake", {"size": 6}, (0, 35)),
        ("snake", {"size": 6, "death_reward": -1.0}, (-1, 35)),
        ("envs.cartpole:CartPole", {}, (1, 500)),
    ):
        assert envs.make_game(name, **options).spec.return_range == expected
    assert all(envs.make_game(name).spec.return_range is not None for name in envs.registry.ENVS)


def test_what_one_game_cannot_tell_is_null(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        evaluate, "evaluate", lambda evaluation: run_episodes(lambda env, step: step.action_mask.long().argmax(1), env)
    )
    env = VecEnv(LongAndShort(), 1)
    evaluate.main(evaluate.Evaluation(Path("run"), json=True))
    printed = json.loads(capsys.readouterr().out)
    assert printed == {
        "policy": "student", "mean_return": 0.0, "stderr": None, "episodes": 1, "low": None, "high": None, "cut": 0
    }  # fmt: skip


def test_the_student_plays_greedily_where_it_is_legal() -> None:
    class Fixed:
        def greedy(self, obs: Tensor, action_mask: Tensor) -> Tensor:
            return action_mask.long().argmax(1)

    env = envs.make("connect4", 8, seed=1)
    step: Step = env.reset()
    assert student_policy(Fixed())(env, step).tolist() == [0] * 8


def test_random_play_scores_as_a_fair_game_against_itself() -> None:
    games = 4000
    env = envs.make("connect4", games, seed=3, opponent="random")
    result = run_episodes(random_policy(CounterRNG(3, torch.arange(games), QUERY_STREAM)), env)
    assert abs(result.mean_return) < 4 * result.stderr
    assert result.stderr == pytest.approx(1 / math.sqrt(games), rel=0.02)


class Endless(LongAndShort):
    """Each step pays 1, and no episode ends."""

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        no = torch.zeros(len(action), dtype=torch.bool)
        return state, torch.ones(len(action)), no


ENDLESS = (f"{__name__}:Endless", "gym:tests.helpers.odd_envs:Endless-v0", "gym:CliffWalking-v1")


def first_action(env: Env, step: Step) -> Tensor:
    """Return actions that lead nowhere: up, in CliffWalking."""
    return torch.zeros(env.num_envs, dtype=torch.int64)


def in_blocks(env: Env, step: Step) -> Tensor:
    """Go round in the block of 2 x 2 cells in which the head is: a circle without end, until the snake is too long."""
    row, column = step.state["row"] % 2, step.state["column"] % 2
    return torch.tensor([[1, 2], [0, 3]])[row, column]


def by_mixing(env: Env, step: Step) -> Tensor:
    """Take a legal action that depends on the head and the fruit alone: some snakes circle, some die."""
    seen = step.state["row"] * 5 + step.state["column"] * 3 + step.state["fruit"]
    return torch.where(step.action_mask, (seen[:, None] + torch.arange(4) * 7) % 11, -1).argmax(1)


def played(policy: Policy, env: Env, only_returns: bool) -> tuple[dict[int, float], int]:
    """Return the return of each copy's first episode, and the env steps taken."""
    returns: dict[int, float] = {}
    env_steps = 0
    for one in first_episodes(policy, env, only_returns):
        env_steps += env.num_envs
        for copy, reward in zip(one.copies.tolist(), (one.next_step.reward * one.running).tolist(), strict=True):
            returns[copy] = returns.get(copy, 0) + reward
    return returns, env_steps


@pytest.mark.parametrize(("policy", "num_envs"), [(in_blocks, 3), (by_mixing, 300)])
def test_snakes_that_go_in_circles_are_not_played_to_their_time_limit(policy: Policy, num_envs: int) -> None:
    options = {"size": 6, "time_limit": 400, "seed": 4}
    whole, all_steps = played(policy, envs.make("snake", num_envs, **options), only_returns=False)
    short, steps = played(policy, envs.make("snake", num_envs, **options), only_returns=True)
    assert short == whole
    assert sum(whole.values()) > 0
    assert steps < 0.4 * all_steps


def test_copies_whose_episode_is_over_are_left_out() -> None:
    """Game i lasts i + 1 steps: half are left out after 64, another quarter after 96."""
    returns, steps = played(first_action, VecEnv(LongAndShort(), 128), only_returns=True)
    assert returns == {copy: copy for copy in range(128)}
    assert steps == 64 * 128 + 32 * 64 + 32 * 32


def test_games_with_chance_are_never_taken_to_go_in_circles() -> None:
    """The walls aside, nothing in this game tells two time steps apart, and the next one may end it."""

    class Lottery(LongAndShort):
        def reset(self, u: Tensor) -> State:
            return {"same": torch.zeros(len(u))}

        def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
            won = u[:, 0] < 0.1
            return state, won.float(), won

        def observe(self, state: State) -> tuple[Tensor, Tensor]:
            return state["same"][:, None], torch.ones(len(state["same"]), 2, dtype=torch.bool)

        spec = replace(LongAndShort.spec, num_step_uniforms=1)

    returns, _ = played(first_action, VecEnv(Lottery(), 100), only_returns=True)
    assert set(returns.values()) == {1.0}


def test_equal_rows_compares_every_part_of_a_state() -> None:
    one = {"a": torch.tensor([1, 2, 3]), "b": torch.tensor([[1, 1], [2, 2], [3, 3]])}
    other = {"a": torch.tensor([1, 0, 3]), "b": torch.tensor([[1, 1], [2, 2], [3, 4]])}
    assert equal_rows(one, other).tolist() == [True, False, False]


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_episodes_are_cut_and_the_option_is_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_cut.cache_clear()
    result = run_episodes(first_action, envs.make(name, 3))
    assert (abs(result.mean_return), result.episodes, result.cut) == (MAX_TIME_STEPS, 3, 3)
    assert "3 of them cut after 1,000 time steps" in str(result)
    assert result.scalars()["eval/cut"] == 3
    assert "--env-kwargs max_episode_steps=N" in caplog.text


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("limit", [1, 7, MAX_TIME_STEPS + 5])
def test_max_episode_steps_sets_the_limit_of_any_env(name: str, limit: int, caplog: pytest.LogCaptureFixture) -> None:
    env = envs.make(name, 2, max_episode_steps=limit)
    assert env.spec.time_limit == limit
    result = run_episodes(first_action, env)
    assert (abs(result.mean_return), result.cut) == (limit, 0)
    assert "eval/cut" not in result.scalars()
    assert not caplog.text


def test_max_episode_steps_truncates_before_the_games_own_limit() -> None:
    assert run_episodes(first_action, envs.make("envs.cartpole:CartPole", 4, max_episode_steps=3)).mean_return == 3


@pytest.mark.parametrize("name", [*ENDLESS, "snake"])
@pytest.mark.parametrize("limit", [0, -1, 2.5, "ten", True])
def test_impossible_max_episode_steps_is_refused(name: str, limit: Any) -> None:
    with pytest.raises(ValueError, match=r"max_episode_steps is .*; it must be a whole number, at least 1"):
        envs.make(name, 2, max_episode_steps=limit)


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_episodes_are_reviewed_as_far_as_they_went(name: str) -> None:
    """Their last steps are there, and their returns are those of all steps."""
    env = envs.make(name, 3)
    agent = SimpleNamespace(greedy=lambda obs, action_mask: torch.zeros(len(obs), dtype=torch.int64))
    identity = SimpleNamespace(
        canonicalize=lambda state: (state, torch.zeros(len(next(iter(state.values()))), dtype=torch.int64)),
        symmetry=torch.arange(env.spec.num_actions)[None],
    )
    episodes = collect_episodes(agent, env, identity, 1)
    assert [len(one.actions) + one.num_earlier_steps for one in episodes] == [MAX_TIME_STEPS] * 3
    assert all(abs(one.episodic_return) >= MAX_TIME_STEPS for one in episodes)


@pytest.mark.train
def test_tutor_whose_answers_are_all_stored_is_evaluated_again(tmp_path: Path) -> None:
    """The second time the table is filled from the store, and the tutor itself answers nothing."""
    train(small_config("ppo", "blackjack", tmp_path / "run"))
    evaluation = evaluate.Evaluation(tmp_path / "run", policy="tutor", episodes=50)
    assert evaluate.evaluate(evaluation) == evaluate.evaluate(evaluation) == evaluate.evaluate(evaluation)
