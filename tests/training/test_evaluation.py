"""Evaluation against games whose value is known."""

import json
import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

import envs
import evaluate
from envs.base import Spec, State, Step, VecEnv
from envs.rng import QUERY_STREAM, CounterRNG
from tests.helpers.small_runs import small_config
from train import train
from training.evaluation import Result, estimate, random_policy, run_episodes, student_policy


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
        "policy": "student", "mean_return": 0.0, "stderr": None, "episodes": 1, "low": None, "high": None
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


@pytest.mark.train
def test_tutor_whose_answers_are_all_stored_is_evaluated_again(tmp_path: Path) -> None:
    """The second time the table is filled from the store, and the tutor itself answers nothing."""
    train(small_config("ppo", "blackjack", tmp_path / "run"))
    evaluation = evaluate.Evaluation(tmp_path / "run", policy="tutor", episodes=50)
    assert evaluate.evaluate(evaluation) == evaluate.evaluate(evaluation) == evaluate.evaluate(evaluation)
