"""Results of a study: rows, speed-ups and claims against numbers worked out by hand from runs that are made up."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from experiments.analysis import (
    Claim,
    Estimate,
    RunResult,
    StudyResults,
    claims,
    group_by,
    mean_estimate,
    read_results,
    read_run,
    speedup,
    stated_claims,
    summarize,
    worth,
)
from experiments.report import worths
from experiments.spec import Condition, RunSpec, TutorSpec
from experiments.stats import Curve, interval, iqm
from tests.helpers.studies import FALLS, FAST, NEVER, SLOW, STUDY, made_up, result, with_runs

ACCELERATES = "tutoring accelerates convergence"
ACCELERATES_TRAINING = "tutoring accelerates convergence, by the episodes of training"
SOMEONE = Condition("an env", "an algo", TutorSpec("a tutor"), "a method", 3)


def by_statement(results: StudyResults) -> dict[str, Claim]:
    return {claim.statement: claim for claim in stated_claims(results)}


def write_run(run_dir: Path, **summary: object) -> None:
    run_dir.mkdir(parents=True)
    rows = ["global_step,wall_seconds,tag,value", "10,1.5,eval/mean_return,0.1", "10,1.5,charts/episodic_return,0.7"]
    (run_dir / "metrics.csv").write_text("\n".join(rows))
    (run_dir / "summary.json").write_text(json.dumps({"tutor": None, "wall_seconds": 9} | summary))
    (run_dir / "config.json").write_text('{"versions": {}, "total_steps": 10}')


def test_read_run_leaves_out_the_seconds_of_pretraining(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    write_run(tmp_path / "first", wall_seconds=0.5)
    whole, rest = read_run(tmp_path / "run", 10), read_run(tmp_path / "run", 10, tmp_path / "first")
    assert whole == ([(10, 0.1)], [(1.5, 0.1)], [(10, 0.7)], 9, {}, {}, None)
    assert rest == whole._replace(by_seconds=[(1, 0.1)], seconds=8.5)
    with pytest.raises(ValueError, match=r"has 10 env steps, those of the study have 20.*another --output-dir"):
        read_run(tmp_path / "run", 20)


@pytest.mark.parametrize("key", ["no_advice", "silent"])  # silent: until version 0.7
def test_read_run_counts_questions_without_an_answer(key: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tutor={"asked": 9, key: {"timeout": 2, "mass": 1}})
    assert read_run(tmp_path / "run", 10).no_advice() == 3


def test_read_results_has_the_conditions_whose_runs_are_finished(tmp_path: Path) -> None:
    study = replace(STUDY, steps={"connect4": 10, "blackjack": 10})
    with pytest.raises(ValueError, match="no condition has all its runs"):
        read_results(study, tmp_path)
    whole, baseline = study.conditions()[-1], study.conditions()[-1].baseline()
    partly = study.conditions()[0]
    for seed in study.seeds:
        for condition in (whole, baseline, partly):
            if condition != partly or seed != 3:
                write_run(tmp_path / RunSpec(condition, seed).name())
    assert read_results(study, tmp_path).conditions() == [baseline, whole]


def test_summarize_gives_what_is_worked_out_by_hand() -> None:
    ours: list[Curve] = [[(0, 0.0), (10, 1.0), (40, 0.5), (50, 1.0)], [(0, 0.0), (10, 0.0), (40, 2.0), (50, 2.0)]]
    theirs: list[Curve] = [[(0, 0.0), (50, 1.0)], [(0, 0.0), (50, 2.0)]]
    tutors = [{"asked": 4, "hits": 6, "consulted": 10, "prompt_tokens": 7, "answer_tokens": 1},
              {"asked": 8, "hits": 3, "consulted": 40, "prompt_tokens": 5, "answer_tokens": 3,
               "no_advice": {"timeout": 3, "mass": 1}}]  # fmt: skip
    runs = [RunResult(one, [(step / 5, score) for step, score in one], one, 2 + at, tutor, {})
            for at, (one, tutor) in enumerate(zip(ours, tutors, strict=True))]  # fmt: skip
    alone = [RunResult(one, one, one, 1, {}, {}) for one in theirs]
    results = StudyResults(STUDY, {SOMEONE: runs, SOMEONE.baseline(): alone})
    areas = [(5 + 22.5 + 7.5) / 50, (0 + 30 + 20) / 50]
    numbers = {
        "seeds": 2, "final_score": 1.5, "final_score_low": 1, "final_score_high": 2, "auc": round(fmean(areas), 4),
        "auc_gain": round(fmean(areas) - 0.75, 4), "auc_gain_low": round(0.1 - 12.7062 * 0.1, 4),
        "auc_gain_high": round(0.1 + 12.7062 * 0.1, 4), "final_gain": 0, "final_gain_low": 0, "final_gain_high": 0,
        "probability_of_improvement": 2 / 4, "threshold": 1.425, "reached": 1, "steps_to_threshold": math.inf,
        "seconds_to_threshold": math.inf, "speedup": round(math.sqrt(50 / 50 * 50 / 40), 4), "speedup_low": 1,
        "speedup_high": 1.25, "max_drawdown": 0, "score_std": 0.5, "consulted": 25, "asked": 6, "hit_rate": 9 / 50,
        "tokens": 8, "seconds": 2.5, "no_advice": round(2 / 6, 4),
    }  # fmt: skip
    names = {"env": "an env", "algo": "an algo", "tutor": "a tutor", "guidance": "a method"}
    assert summarize(results, SOMEONE) == names | {"reuse": "3", "variant": ""} | numbers
    base = summarize(results, SOMEONE.baseline())
    columns = ("auc_gain", "probability_of_improvement", "speedup", "asked", "hit_rate")
    assert [base[name] for name in columns] == [0, 0.5, 1, 0, 0]


def test_a_single_outlier_does_not_decide_a_row() -> None:
    ours = [result([0.0, 1.0, 1.0, 1.0])] * 3 + [result([0.0, 0.0, 0.0, 8.0])]
    baseline = [result([0.0, 0.0, 0.0, 1.0])] * 4
    row = summarize(StudyResults(STUDY, {SOMEONE: ours, SOMEONE.baseline(): baseline}), SOMEONE)
    assert [row[name] for name in ("final_score", "threshold", "reached", "steps_to_threshold")] == [1, 0.95, 4, 20]
    assert (row["final_score_low"], row["final_score_high"]) == interval([1, 1, 1, 8], iqm) != interval([1, 1, 1, 8])
    some = [result(FAST, 3.0), result(FAST, 3.0), result(FALLS, 30.0)]
    baseline = [result([0.9 * score for score in SLOW])] * 3
    row = summarize(StudyResults(STUDY, {SOMEONE: some, SOMEONE.baseline(): baseline}), SOMEONE)
    columns = ("probability_of_improvement", "seconds_to_threshold", "max_drawdown")
    assert [row[name] for name in columns] == [1, 6, round(0.8 / 3, 4)]


def test_threshold_columns_are_empty_where_the_baseline_does_not_improve() -> None:
    results = StudyResults(STUDY, {SOMEONE: [result(FAST)] * 2, SOMEONE.baseline(): [result(NEVER)] * 2})
    row = summarize(results, SOMEONE)
    assert row["final_score"] == 1
    assert {name for name, value in row.items() if value is None} == {
        "threshold", "reached", "steps_to_threshold", "seconds_to_threshold", "speedup", "speedup_low", "speedup_high",
        "max_drawdown"}  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "verdict", "number"),
    [(FAST, "supported", "2.00 [2.00, 2.00]"), (SLOW, "not supported", "1.00 [1.00, 1.00]"),
     (NEVER, "not supported", "0.50 [0.50, 0.50]")],
)  # fmt: skip
def test_tutoring_accelerates_if_tutored_students_reach_the_threshold_sooner(
    scores: list[float], verdict: str, number: str
) -> None:
    claim = by_statement(made_up(SLOW, r0=scores, r3=scores))[ACCELERATES]
    assert (claim.verdict, claim.evidence) == (verdict, f"speed-up {number}, 16 conditions")


def test_episodes_of_training_are_a_claim_of_their_own() -> None:
    results = made_up(SLOW)
    learned = [(step, 2 * score) for step, score in result(FAST).by_steps]  # another threshold than the evaluations'
    tutored = {one: [run._replace(training=learned) for run in results.runs[one]] for one in results.tutored()}
    found = by_statement(with_runs(results, tutored))
    assert found[ACCELERATES].verdict == "not supported"
    assert found[ACCELERATES_TRAINING].verdict == "supported"
    assert found[ACCELERATES_TRAINING].evidence.startswith("speed-up 2.00 [2.00, 2.00]")
    unlogged = {one: [run._replace(training=[]) for run in runs] for one, runs in results.runs.items()}
    assert ACCELERATES_TRAINING not in by_statement(with_runs(results, unlogged))


def test_an_effect_that_differs_by_env_depends_on_the_env() -> None:
    results = made_up(SLOW, connect4=FAST, blackjack=[0.0] * 7 + [1.0])
    assert by_statement(results)[ACCELERATES].verdict == "not supported"
    assert "speed-up 1.00 [1.00, 1.00]" in by_statement(results)[ACCELERATES].evidence
    depends = by_statement(results)["the effect depends on the env"]
    assert depends == (depends.statement, "supported", "connect4 2.00 [2.00, 2.00], blackjack 0.50 [0.50, 0.50]")
    assert by_statement(results)["the effect depends on the student"].verdict == "undecided"
    one = next(one for one in results.tutored() if one.env == "blackjack")
    mixed = with_runs(results, {one: [result(FAST), result(SLOW), result(NEVER)]})
    assert by_statement(mixed)[ACCELERATES].verdict == "undecided"


@pytest.mark.parametrize(
    ("last", "verdict"), [(1.0, "supported"), (1.09, "supported"), (1.2, "not supported"), (0.5, "not supported")]
)
def test_final_scores_are_comparable_within_a_tenth_of_the_baseline_gain(last: float, verdict: str) -> None:
    scores = [-1.0] + [last - 1] * 7
    results = made_up([value - 1 for value in SLOW], r0=scores, r3=scores)
    claim = by_statement(results)["at comparable final performance"]
    assert claim.verdict == verdict
    assert f"{last - 1:.2f} [" in claim.evidence


def test_final_scores_are_compared_seed_by_seed() -> None:
    results = made_up(SLOW)
    by_seed = [result([0.0] + [last] * 7, asked=1) for last in (0.5, 1.0, 1.5)]
    same = with_runs(results, dict.fromkeys(results.runs, by_seed))
    assert by_statement(same)["at comparable final performance"].evidence.endswith(": 0.00 [0.00, 0.00]")
    reversed_ = with_runs(same, dict.fromkeys(results.tutored(), by_seed[::-1]))
    assert by_statement(reversed_)["at comparable final performance"].verdict == "undecided"


def test_conditions_with_one_baseline_share_its_seeds() -> None:
    results = made_up(SLOW)
    noisy = with_runs(results, {one: [result(scores) for scores in (FAST, SLOW, NEVER)] for one in results.tutored()})
    several = [one for one in noisy.tutored() if (one.env, one.algo) == ("connect4", "dqn")]
    whole, one = (speedup(noisy, conditions, Condition.baseline) for conditions in (several, several[:1]))
    assert whole == pytest.approx(one), "of four conditions no more is known than of one"
    apart = speedup(noisy, [one for one in noisy.tutored() if one.reuse == 3], Condition.baseline)
    assert apart.low > one.low
    assert apart.high < one.high
    values = [0.0, 1.0, 2.0]
    assert mean_estimate([values] * 4, several) == pytest.approx(mean_estimate([values], several[:1]))


def test_claims_are_about_the_papers_guidance_and_finite_reuse_budgets() -> None:
    study = replace(STUDY, guidance=("override", "hint"), reuse=(0.0, 3.0, math.inf))
    runs = {one: [result(SLOW, asked=1)] * 3 for one in study.conditions()}
    others = {one: [result(FAST, asked=1)] * 3 for one in runs
              if not one.is_baseline() and (one.guidance == "hint" or one.reuse == math.inf)}  # fmt: skip
    found = by_statement(StudyResults(study, runs | others))
    assert found[ACCELERATES].evidence == "speed-up 1.00 [1.00, 1.00], 16 conditions"
    assert not [statement for statement in found if "reuse inf" in statement]


def test_reuse_is_compared_with_no_reuse() -> None:
    same = by_statement(made_up(SLOW, r0=FAST, r3=FAST))
    steps, clock = (f"reuse 3 shortens training further, {way}" for way in ("in env steps", "by the clock"))
    assert same[steps].verdict == "undecided"
    assert "8 of 8 conditions have identical curves" in same[steps].evidence
    assert "40% of the questions" in same[clock].evidence
    assert same["reuse 3 makes convergence less stable"].verdict == "undecided"
    sooner = by_statement(made_up(SLOW, r0=SLOW, r3=FAST))
    assert (sooner[steps].verdict, sooner[clock].verdict) == ("supported", "supported")
    assert "speed-up 2.00 [2.00, 2.00] in env steps" in sooner[steps].evidence
    unstable = by_statement(made_up(SLOW, r0=SLOW, r3=FALLS))["reuse 3 makes convergence less stable"]
    assert unstable.verdict == "supported"
    assert unstable.evidence.endswith("0.80 [0.80, 0.80]")


def test_drawdown_is_a_share_of_the_baseline_gain() -> None:
    both = by_statement(made_up(SLOW, r0=FALLS, r3=FALLS))
    assert both["reuse 3 makes convergence less stable"].evidence.endswith("0.00 [0.00, 0.00]")
    slow, falls = ([10 * value for value in scores] for scores in (SLOW, FALLS))
    tenfold = by_statement(made_up(slow, r0=slow, r3=falls))
    assert tenfold["reuse 3 makes convergence less stable"].evidence.endswith("0.80 [0.80, 0.80]")


def test_levels_with_overlapping_intervals_do_not_differ() -> None:
    results = made_up(SLOW, r0=FAST, r3=FAST)
    few, more = ([result(scores) for scores in (FAST, SLOW, last)] for last in (NEVER, SLOW))
    noisy = with_runs(results, {one: few if one.env == "connect4" else more for one in results.tutored()})
    claim = by_statement(noisy)["the effect depends on the env"]
    assert claim.verdict == "undecided"
    assert claim.evidence.startswith("connect4 1.00 [")


def test_reuse_may_be_faster_by_the_clock_alone() -> None:
    results = made_up(SLOW, r0=SLOW, r3=SLOW)
    quick = {one: [result(SLOW, 0.5, **run.tutor) for run in runs] for one, runs in results.runs.items()
             if one.reuse == 3}  # fmt: skip
    found = by_statement(with_runs(results, quick))
    assert found["reuse 3 shortens training further, in env steps"].verdict == "undecided"
    assert found["reuse 3 shortens training further, by the clock"].verdict == "supported"


def test_students_that_do_not_learn_alone_are_left_out_of_the_claims() -> None:
    results = made_up(SLOW, r0=FAST, r3=FAST)
    dead = {one: [result(NEVER)] * 3 for one in results.conditions() if one.is_baseline() and one.env == "connect4"}
    assert by_statement(with_runs(results, dead))[ACCELERATES].evidence.endswith(", 8 conditions")


def test_a_single_seed_supports_no_claim() -> None:
    study = replace(STUDY, seeds=(1,))
    runs = {one: [result(SLOW if one.is_baseline() else FAST, asked=1)] for one in study.conditions()}
    assert claims(StudyResults(study, runs)) == []
    twice = StudyResults(replace(study, seeds=(1, 2)), {one: 2 * found for one, found in runs.items()})
    assert len(claims(twice)) == 9


def varied(results: StudyResults, by: float = 0.01) -> StudyResults:
    """The same study with runs that differ from seed to seed."""

    def shift(curve: Curve, seed: int) -> Curve:
        return [(step, score + by * seed * at) for at, (step, score) in enumerate(curve)]

    return replace(
        results,
        runs={
            one: [run._replace(by_steps=shift(run.by_steps, seed)) for seed, run in enumerate(runs)]
            for one, runs in results.runs.items()
        },
    )


def few_evaluations(results: StudyResults) -> StudyResults:
    """The same study with three evaluations a run."""
    runs = {one: [run._replace(by_steps=run.by_steps[1:4]) for run in found] for one, found in results.runs.items()}
    return replace(results, runs=runs)


def two_seeds(results: StudyResults) -> StudyResults:
    """The same study with two of its seeds."""
    runs = {one: found[:2] for one, found in results.runs.items()}
    return replace(results, study=replace(results.study, seeds=(1, 2)), runs=runs)


def noise(results: StudyResults) -> StudyResults:
    """The same study with baselines of which one gains and two lose."""
    curves = [[0.0] * 5 + [at] * 3 for at in (9.0, -1.0, -2.0)]
    return with_runs(
        results, {one: [result(curve) for curve in curves] for one in results.conditions() if one.is_baseline()}
    )


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (made_up(SLOW, r0=SLOW, r3=SLOW), "runs of different seeds are equal"),
        (made_up(SLOW, r0=FAST, r3=FAST), "runs of different seeds are equal"),
        (varied(made_up(SLOW, r0=SLOW, r3=SLOW)), "tutored runs equal those without a tutor"),
        (two_seeds(varied(made_up(SLOW, r0=FAST, r3=FAST))), "2 seeds decide nothing: at least 3 are required"),
        (few_evaluations(varied(made_up(SLOW, r0=FAST, r3=FAST))), "runs of 3 evaluations decide nothing: at least 4"),
        (noise(varied(made_up(SLOW, r0=FAST, r3=FAST))), "not shown to learn in so few env steps"),
    ],
)
def test_equal_few_and_short_runs_decide_nothing(results: StudyResults, reason: str) -> None:
    found = claims(results)
    assert found
    assert {claim.verdict for claim in found} == {"undecided"}
    assert all(reason in claim.evidence for claim in found)


def test_runs_that_differ_are_decided_on() -> None:
    verdicts = {claim.statement: claim.verdict for claim in claims(varied(made_up(SLOW, r0=FAST, r3=FAST)))}
    assert verdicts[ACCELERATES] == "supported"
    worse = {claim.statement: claim.verdict for claim in claims(varied(made_up(SLOW, r0=NEVER, r3=NEVER)))}
    assert worse[ACCELERATES] == "not supported"


def test_verdicts_require_an_interval_on_one_side() -> None:
    assert [Estimate(0, *ends).exceeds(1) for ends in ((1.1, 2), (1, 2), (0.5, 1.5), (0.5, 1), (1, 1))] == [
        "supported", "undecided", "undecided", "not supported", "not supported"]  # fmt: skip
    bounds = ((-0.05, 0.05), (-0.05, 0.2), (0.1, 0.2), (-0.3, -0.1), (-1, 1))
    assert [Estimate(0, *ends).is_within(0.1) for ends in bounds] == [
        "supported", "undecided", "not supported", "not supported", "undecided"]  # fmt: skip


def test_conditions_require_their_baseline() -> None:
    results = made_up(SLOW, r0=FAST, r3=FAST)
    gone = next(one for one in results.conditions() if one.is_baseline())
    rest = replace(results, runs={one: runs for one, runs in results.runs.items() if one != gone})
    assert len(rest.conditions()) == len(STUDY.conditions()) - 5, "neither the baseline nor what it is compared with"


def test_group_by_keeps_the_order_of_first_appearance() -> None:
    groups = group_by([3, 1, 4, 1, 5], lambda number: number % 2 == 1)
    assert list(groups.items()) == [(True, [3, 1, 1, 5]), (False, [4])]


def test_worth_is_in_shares_of_what_the_student_alone_gains() -> None:
    results = made_up(SLOW, r0=FAST, r3=NEVER)
    for condition in results.tutored():
        found = worth(results, condition)
        if condition.reuse == 0:
            assert found.final == (0, 0, 0)
            assert found.height == pytest.approx(1.4 / 7)
            assert found.speedup == pytest.approx(2)
            assert found.is_harmless
        else:
            assert found.final == (-1, -1, -1)
            assert found.height == pytest.approx(-5.1 / 7)
            assert not found.is_harmless


def test_a_tutor_is_not_harmless_if_it_costs_height_alone() -> None:
    late = [0.0, 0.0, 0.2, 1.0, 1.0, 1.0, 1.0, 1.0]  # 0.4 of 7 lower than SLOW: 6 %
    results = made_up(SLOW, r0=late, r3=SLOW)
    verdicts = {one.reuse: worth(results, one).is_harmless for one in results.tutored()}
    assert verdicts == {0: False, 3: True}


def test_worths_count_the_harmless_conditions() -> None:
    text = worths(made_up(SLOW, r0=FAST, r3=NEVER))
    rows = [line for line in text.splitlines() if line.startswith("| connect4") or line.startswith("| blackjack")]
    harmless = [row for row in rows if row.endswith("| yes |")]
    assert 0 < len(harmless) < len(rows)
    assert f"so in {len(harmless)} of {len(rows)} conditions" in text
    assert all("| 2.0 | yes |" in row for row in harmless)
