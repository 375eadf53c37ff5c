"""Evaluation against games whose value is known."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import envs
import evaluate
from envs.base import Spec, State, Step, VecEnv
from envs.rng import QUERY_STREAM, CounterRNG
from tests.helpers.small_runs import small_config
from train import train
from training.evaluation import Result, random_policy, run_episodes, student_policy


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
    assert result == Result(2.0, pytest.approx(math.sqrt(2.5 / 5)), 5)


def test_the_interval_holds_the_mean_and_is_as_wide_as_it_should() -> None:
    assert Result(0.5, 0.1, 100).interval() == pytest.approx((0.304, 0.696))


def test_what_one_game_cannot_tell_is_null(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        evaluate, "evaluate", lambda evaluation: run_episodes(lambda env, step: step.action_mask.long().argmax(1), env)
    )
    env = VecEnv(LongAndShort(), 1)
    evaluate.main(evaluate.Evaluation(Path("run"), json=True))
    assert capsys.readouterr().out == '{"policy": "student", "mean_return": 0.0, "stderr": null, "episodes": 1}\n'


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
