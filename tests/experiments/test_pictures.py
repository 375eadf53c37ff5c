"""The pictures of a study, from runs that are made up."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import pictures
from experiments.analysis import StudyResults
from experiments.pictures import draw
from experiments.spec import TutorSpec
from tests.helpers.studies import FAST, NEVER, SLOW, STUDY, made_up, result, with_runs


def test_each_tutor_has_a_picture_where_guidance_methods_are_compared(tmp_path: Path) -> None:
    tutors = (TutorSpec("scripted", 0.9), TutorSpec("recorded:/my/advice"))
    study = replace(STUDY, algos=("dqn",), guidance=("override", "hint"), tutors=tutors)
    runs = {one: [result(FAST, asked=1)] * 3 for one in study.conditions()}
    names = [one.name for one in draw(StudyResults(study, runs), tmp_path)]
    assert names == ["curves_scripted-0.9.png", "curves_recorded--my-advice.png"]


def test_pictures_show_the_last_reuse_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = set()
    monkeypatch.setattr(pictures, "draw_overview", lambda *args: [])
    monkeypatch.setattr(pictures, "draw_mean", lambda panel, curves, label, style: drawn.add((label, curves[0][1][1])))
    draw(made_up(SLOW, r0=NEVER, r3=FAST), tmp_path)
    assert drawn == {("no tutor", 0.2), ("scripted:0.9", 1.0), ("scripted:0.6", 1.0)}


@pytest.mark.parametrize("num_tutors", [1, 2])
def test_probe_episodes_are_drawn_of_a_tutor_that_all_lines_have(
    num_tutors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: set[str] = set()
    monkeypatch.setattr(pictures, "draw_references", lambda panel, values: drawn.update(values))
    tutors = (TutorSpec("recorded:/my/advice"), TutorSpec("scripted", 0.6))[:num_tutors]
    study = replace(STUDY, algos=("dqn",), envs=("connect4",), tutors=tutors, reuse=(math.inf,))
    runs = {
        one: [result(FAST)._replace(tutor_return=None if one.is_baseline() else 0.5)] * 3 for one in study.conditions()
    }
    draw(StudyResults(study, runs), tmp_path)
    assert "random play" in drawn
    assert ("tutor in its probe episodes" in drawn) == (num_tutors == 1)


def test_overview_is_the_mean_over_all_students_that_learn_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are shares of what a student gains alone, seed by seed, at shares of its run."""
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(pictures, "draw_mean", lambda panel, curves, label, style: drawn.setdefault(label, curves))
    results = made_up(SLOW, r0=NEVER, r3=FAST)
    tutored = next(one for one in results.tutored() if (one.algo, one.env, one.reuse) == ("ppo", "blackjack", 3))
    slow = with_runs(results, {tutored: [result(SLOW), result(FAST), result(FAST)]})
    idle = [one for one in results.conditions() if (one.algo, one.env) == ("dqn", "blackjack")]
    three = with_runs(slow, {one: [result(NEVER)] * 3 for one in idle})
    assert [one.name for one in draw(three, tmp_path)] == ["overview.png", "curves.png"]
    assert (tmp_path / "overview.png").stat().st_size > 5_000
    assert [curve[8][0] for curves in drawn.values() for curve in curves] == pytest.approx([30.0] * 9)  # % of 80 steps
    found = {label: [curve[8][1] for curve in curves] for label, curves in drawn.items()}
    assert found["no tutor"] == pytest.approx([0.28] * 3)
    assert sorted(found) == ["no tutor", "scripted:0.6", "scripted:0.9"]
    fast = [1.0] * 3
    expected = {str(one): fast for one in STUDY.tutors} | {str(tutored.tutor): [(0.28 + 1 + 1) / 3, 1.0, 1.0]}
    for label, values in expected.items():
        assert found[label] == pytest.approx(values)
    assert {curve[-1][0] for curves in drawn.values() for curve in curves} == {100.0}


def test_a_single_student_has_no_overview(tmp_path: Path) -> None:
    study = replace(STUDY, algos=("dqn",), envs=("connect4",))
    results = StudyResults(study, {one: [result(FAST)] * 3 for one in study.conditions()})
    assert [one.name for one in draw(results, tmp_path)] == ["curves.png"]


def test_students_without_a_tutor_alone_have_no_overview(tmp_path: Path) -> None:
    study = replace(STUDY, tutors=())
    results = StudyResults(study, {one: [result(FAST)] * 3 for one in study.conditions()})
    assert [one.name for one in draw(results, tmp_path)] == ["curves.png"]
