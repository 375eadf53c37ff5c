"""Whether approval ranks episodes: the rank statistic by its definition, and tutors whose judgement is known."""

import json
import math
from pathlib import Path

import pytest
import torch

import envs
from tests.helpers.commands import tutors
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.approval import Approval, measure_approval, rank_auc
from tutors.prompts import make_view
from tutors.scripted import ScriptedTutor


def auc_by_definition(scores: list[float], returns: list[float]) -> float:
    """Every pair of episodes, one after the other."""
    found = [
        0.5 if scores[i] == scores[j] else float(scores[i] > scores[j])
        for i in range(len(scores)) for j in range(len(scores)) if returns[i] > returns[j]
    ]  # fmt: skip
    return sum(found) / len(found)


def test_auc_is_its_definition_with_ties() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(5, (40,), generator=generator).float()
    returns = torch.randint(-1, 2, (40,), generator=generator).float()
    found, (low, high) = rank_auc(scores, returns, 1)
    assert found == pytest.approx(auc_by_definition(scores.tolist(), returns.tolist()))
    assert low < found < high
    assert rank_auc(returns, returns, 1)[0] == 1
    assert rank_auc(-returns, returns, 1)[0] == 0
    assert rank_auc(torch.ones(40), returns, 1) == (0.5, (0.5, 0.5))


def test_interval_holds_the_true_share_in_about_95_of_100_samples() -> None:
    generator = torch.Generator().manual_seed(3)
    held = 0
    for trial in range(60):
        returns = torch.randint(2, (60,), generator=generator).float()
        low, high = rank_auc(torch.rand(60, generator=generator), returns, trial)[1]
        held += low <= 0.5 <= high
    assert 51 <= held <= 60


def test_equal_returns_say_nothing() -> None:
    found, interval = rank_auc(torch.rand(5), torch.ones(5), 1)
    assert math.isnan(found)
    assert interval == (0, 1)


def approval_of(accuracy: float) -> Approval:
    env = envs.make("connect4", 80, seed=2)
    view = make_view(env.game)
    tutor = ScriptedTutor(view, accuracy, 2, seed=1)
    return measure_approval(Advisor(view, tutor, AdviceTable(7, math.inf, 4000), None), env, seed=2)


def test_expert_ranks_good_episodes_above_bad_ones_and_a_random_tutor_does_not() -> None:
    expert, random = approval_of(1.0), approval_of(0.0)
    assert expert.episodes == random.episodes == 80
    assert expert.interval[0] > 0.6
    assert random.interval[0] < 0.5 < random.interval[1]


def test_report_shows_the_ranking_and_has_it_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutors.positions.STEPS_PER_ROUND", 5)
    flags = ("--tutor", "scripted", "--env", "blackjack", "--view", "table", "--positions", "20")
    flags += ("--approval-episodes", "64", "--picture", str(tmp_path / "a.png"))
    shown = tutors("report", *flags)
    assert shown.returncode == 0, shown.stderr
    assert "of two of 64 episodes the tutor approves more of the better one" in " ".join(shown.stdout.split())
    (found,) = json.loads(tutors("report", *flags, "--json").stdout)["reports"]
    assert found["approval_episodes"] == 64
    assert found["approval_interval"][0] <= found["approval"] <= found["approval_interval"][1]
