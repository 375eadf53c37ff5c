"""The results of a study: numbers for each condition, and what they say about the claims of arXiv:2509.08329."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any, Literal, NamedTuple, TypeVar

from experiments.spec import Condition, StudySpec
from experiments.stats import (
    Curve,
    auc,
    final_score,
    interval,
    iqm,
    log_speedup,
    max_drawdown,
    paired_interval,
    probability_of_improvement,
    read_curve,
    steps_to,
    stratified_interval,
    threshold,
)
from training.config_json import from_plain, read_fields

PAPER = "Toral & Lazebnik 2025, arXiv:2509.08329"
PAPER_GUIDANCE = "override"
MIN_SEEDS, MIN_EVALS = 3, 4  # of which a claim is decided
NO_REUSE = 0.0
MAX_FINAL_LOSS, MAX_HEIGHT_LOSS = 0.05, 0.03  # of a baseline's gain: what a harmless tutor may cost
COMPARABLE = 0.1  # of a baseline's gain: final scores whose difference is smaller are comparable
CurveName = Literal["by_steps", "by_seconds", "training"]  # a field of RunResult
THRESHOLD_COLUMNS = (
    *("threshold", "reached", "steps_to_threshold", "seconds_to_threshold"),
    *("speedup", "speedup_low", "speedup_high", "max_drawdown"),
)
Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

# the fields of a run's files that a report reads, with their types
SUMMARY = {"wall_seconds": float, "tutor": dict[str, Any] | None, "trust": dict[str, Any] | None}
CONFIG = {"total_steps": int, "versions": dict[str, str]}


class RunResult(NamedTuple):
    """What one run left."""

    by_steps: Curve  # its evaluations over env steps
    by_seconds: Curve  # the same over seconds
    training: Curve  # over env steps, the mean return of training episodes, with the tutor's actions in them
    seconds: float  # its duration, without that of a run from which it continued
    tutor: dict[str, Any]  # counters of the tutor
    versions: dict[str, str]
    tutor_return: float | None = None  # the mean of the tutor's probe episodes, if there were any

    def no_advice(self) -> int:
        """Return the number of questions without an answer."""
        return sum(self.tutor.get("no_advice", self.tutor.get("silent", {})).values())  # silent: until version 0.7


class NoResultsError(ValueError):
    """No condition of a study has all its runs."""


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def exceeds(self, no_effect: float) -> str:
        """Return the verdict on the claim that the number exceeds what would be no effect."""
        return "supported" if self.low > no_effect else "not supported" if self.high <= no_effect else "undecided"

    def is_within(self, margin: float) -> str:
        """Return the verdict on the claim that the number lies within a margin of 0."""
        if -margin < self.low <= self.high < margin:
            return "supported"
        return "not supported" if self.low >= margin or self.high <= -margin else "undecided"


class Claim(NamedTuple):
    """A claim of the paper, the verdict of the data, and the numbers behind it."""

    statement: str
    verdict: str
    evidence: str


@dataclass(frozen=True)
class StudyResults:
    """The conditions of which all runs are finished, their baselines' too."""

    study: StudySpec
    runs: dict[Condition, list[RunResult]]
    pretraining: list[RunResult] = field(default_factory=list)

    def conditions(self) -> list[Condition]:
        """Return the conditions in the study's order."""
        return [one for one in self.study.conditions() if {one, one.baseline()} <= self.runs.keys()]

    def tutored(self) -> list[Condition]:
        """Return the conditions with a tutor."""
        return [one for one in self.conditions() if not one.is_baseline()]

    def curves(self, condition: Condition, name: CurveName = "by_steps") -> list[Curve]:
        """Return the curves of a condition's runs."""
        return [getattr(run, name) for run in self.runs[condition]]

    def threshold(self, condition: Condition, name: CurveName = "by_steps") -> float:
        """Return the score that counts as learned."""
        return threshold(self.curves(condition.baseline(), name))

    def baseline_gain(self, condition: Condition, name: CurveName = "by_steps") -> tuple[float, float]:
        """Return the mean first evaluation of the baselines, and how far they get from there."""
        curves = self.curves(condition.baseline(), name)
        first = fmean(curve[0][1] for curve in curves)
        return first, fmean(final_score(curve) for curve in curves) - first

    def baseline_learns(self, condition: Condition, name: CurveName = "by_steps") -> bool:
        """Return whether the baselines end higher than they start."""
        curves = [*self.curves(condition.baseline(), name), *self.curves(condition, name)]
        return all(curves) and self.baseline_gain(condition, name)[1] > 0

    def is_shown_to_learn(self, condition: Condition) -> bool:
        """Return whether the interval of the baselines' gains over seeds is above 0."""
        gains = [final_score(curve) - curve[0][1] for curve in self.curves(condition.baseline())]
        return paired_interval(gains)[0] > 0

    def reached(self, condition: Condition) -> list[bool]:
        """Return which runs of a condition reach the threshold."""
        return [steps_to(curve, self.threshold(condition)) < math.inf for curve in self.curves(condition)]

    def normalized_scores(self, condition: Condition) -> list[float]:
        """Return the final scores on a scale on which the baseline starts at 0 and ends at 1."""
        first, gain = self.baseline_gain(condition)
        return [(final_score(curve) - first) / gain for curve in self.curves(condition)]

    def final_gain(self, condition: Condition) -> list[float]:
        """Return the final scores less those of the baseline's runs of the same seeds, as shares of its gain."""
        return [gain / self.baseline_gain(condition)[1] for gain in self.gains(condition, final_score)]

    def gains(self, condition: Condition, measure: Callable[[Curve], float]) -> list[float]:
        """Return a measure of the curves less that of the baseline's runs of the same seeds."""
        pairs = zip(self.curves(condition), self.curves(condition.baseline()), strict=True)
        return [measure(ours) - measure(theirs) for ours, theirs in pairs]

    def log_speedups(self, condition: Condition, reference: Condition, name: CurveName = "by_steps") -> list[float]:
        """Return, by seed, the logarithm of how many times sooner a condition reaches the threshold than another."""
        pairs = zip(self.curves(condition, name), self.curves(reference, name), strict=True)
        return [log_speedup(ours, theirs, self.threshold(condition, name)) for ours, theirs in pairs]

    def score_std(self, condition: Condition) -> float:
        """Return the standard deviation of the final scores over seeds."""
        return pstdev(final_score(curve) for curve in self.curves(condition))

    def mean_count(self, condition: Condition, counter: str) -> float:
        """Return a counter of the tutor, the mean over a condition's runs."""
        return fmean(run.tutor.get(counter, 0) for run in self.runs[condition])

    def no_advice(self, condition: Condition) -> float:
        """Return the number of questions without an answer, the mean over a condition's runs."""
        return fmean(run.no_advice() for run in self.runs[condition])


def read_results(study: StudySpec, runs_dir: Path) -> StudyResults:
    """Return the results of a study from the runs that are finished in its directory.

    Raises:
        NoResultsError: no condition has all its runs and those of its baseline.
        ValueError: a run is of another study.
    """
    runs: dict[Condition, list[RunResult]] = {}
    pretraining = []
    for run in study.runs():
        run_dir, first = runs_dir / run.name(), study.pretraining(run)
        if (run_dir / "summary.json").exists():
            found = read_run(run_dir, study.total_steps(run), None if first is None else runs_dir / first.name())
            if run.is_pretraining:
                pretraining.append(found)
            else:
                runs.setdefault(run.condition, []).append(found)
    complete = {one: found for one, found in runs.items() if len(found) == len(study.seeds)}
    results = StudyResults(study, complete, pretraining)
    if not results.conditions():
        raise NoResultsError(f"no condition has all its runs in {runs_dir}")
    return results


def read_run(run_dir: Path, steps: int, pretrained: Path | None = None) -> RunResult:
    """Return what a run of so many env steps left, without the duration of the run from which it continued.

    Raises:
        ValueError: it is a run of more or fewer env steps, or one of its files is damaged.
    """
    summary, config = read_fields(run_dir / "summary.json", SUMMARY), read_fields(run_dir / "config.json", CONFIG)
    if config["total_steps"] != steps:
        raise ValueError(
            f"the run in {run_dir} has {config['total_steps']:,} env steps, those of the study have {steps:,}: "
            "a study that was changed requires another --output-dir"
        )
    before = read_fields(pretrained / "summary.json", SUMMARY)["wall_seconds"] if pretrained else 0
    return RunResult(
        by_steps=read_curve(run_dir),
        by_seconds=[(seconds - before, score) for seconds, score in read_curve(run_dir, "wall_seconds")],
        training=read_curve(run_dir, tag="charts/episodic_return"),
        seconds=summary["wall_seconds"] - before,
        tutor=check_counters(summary["tutor"] or {}),
        versions=config["versions"],
        tutor_return=from_plain(float | None, (summary["trust"] or {}).get("tutor_return"), "trust.tutor_return"),
    )


def check_counters(tutor: dict[str, Any]) -> dict[str, Any]:
    """Return what a summary says of a tutor.

    Raises:
        ValueError: a counter is no number.
    """
    kinds = {"no_advice": dict[str, float], "silent": dict[str, float], "name": str}
    for name, value in tutor.items():
        if name != "audit":
            from_plain(kinds.get(name, float), value, f"tutor.{name}")
    return tutor


def summarize(results: StudyResults, condition: Condition) -> dict[str, Any]:
    """Return the numbers of a condition, compared with its baseline.

    Columns that depend on the threshold are None where the baselines do not improve: there is no threshold.
    """
    curves, baseline = results.curves(condition), results.curves(condition.baseline())
    scores = [final_score(curve) for curve in curves]
    final_gains, auc_gains = results.gains(condition, final_score), results.gains(condition, auc)
    limit = results.threshold(condition)
    consulted, asked = results.mean_count(condition, "consulted"), results.mean_count(condition, "asked")
    numbers = {
        "seeds": len(curves),
        "final_score": float(iqm(scores)),
        **columns("final_score", interval(scores, iqm)),
        "final_gain": fmean(final_gains),
        **columns("final_gain", paired_interval(final_gains)),
        "auc": fmean(auc(curve) for curve in curves),
        "auc_gain": fmean(auc_gains),
        **columns("auc_gain", paired_interval(auc_gains)),
        "probability_of_improvement": probability_of_improvement(scores, [final_score(curve) for curve in baseline]),
        "threshold": limit,
        "reached": sum(results.reached(condition)),
        "steps_to_threshold": median(steps_to(curve, limit) for curve in curves),
        "seconds_to_threshold": median(steps_to(run.by_seconds, limit) for run in results.runs[condition]),
        "speedup": (faster := speedup(results, [condition], Condition.baseline)).value,
        **columns("speedup", faster[1:]),
        "max_drawdown": fmean(max_drawdown(curve, limit) for curve in curves),
        "score_std": results.score_std(condition),
        "consulted": consulted,
        "asked": asked,
        "hit_rate": results.mean_count(condition, "hits") / max(consulted, 1),
        "no_advice": results.no_advice(condition) / max(asked, 1),
        "tokens": results.mean_count(condition, "prompt_tokens") + results.mean_count(condition, "answer_tokens"),
        "seconds": fmean(run.seconds for run in results.runs[condition]),
    }
    rounded: dict[str, Any] = {name: round(number, 4) for name, number in numbers.items()}
    if not results.baseline_learns(condition):
        rounded |= dict.fromkeys(THRESHOLD_COLUMNS)
    return condition.columns() | rounded


class Worth(NamedTuple):
    """What a tutor was worth to a student, in shares of what the student alone gains."""

    final: Estimate  # the final score less that of the student alone
    height: float  # the mean of the learning curve less that of the student alone
    speedup: float  # how many times sooner the threshold was reached, the median over seeds
    is_harmless: bool


def worth(results: StudyResults, condition: Condition) -> Worth:
    """Return what a condition's tutor was worth; its baseline must learn."""
    gain = results.baseline_gain(condition)[1]
    final = results.final_gain(condition)
    estimate = Estimate(fmean(final), *paired_interval(final))
    height = fmean(results.gains(condition, auc)) / gain
    faster = math.exp(median(results.log_speedups(condition, condition.baseline())))
    return Worth(estimate, height, faster, estimate.low > -MAX_FINAL_LOSS and height > -MAX_HEIGHT_LOSS)


def columns(name: str, bounds: Sequence[float]) -> dict[str, float]:
    """Return the bounds of an interval as columns of a table."""
    return dict(zip((f"{name}_low", f"{name}_high"), bounds, strict=True))


def group_by(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Return the items by key, in the order of their first appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def baselines(conditions: Sequence[Condition]) -> list[Condition]:
    """Return the strata of some conditions: those with the same baseline are compared with the same runs of it."""
    return [condition.baseline() for condition in conditions]


def without_reuse(condition: Condition) -> Condition:
    """Return the condition that differs in reuse alone, and has none."""
    return replace(condition, reuse=NO_REUSE)


def mean_estimate(groups: Sequence[Sequence[float]], conditions: Sequence[Condition]) -> Estimate:
    """Return the mean of all values, a group for each condition."""
    middle = fmean(value for values in groups for value in values)
    return Estimate(middle, *stratified_interval(groups, baselines(conditions)))


def speedup(
    results: StudyResults,
    conditions: Sequence[Condition],
    reference: Callable[[Condition], Condition],
    name: CurveName = "by_steps",
) -> Estimate:
    """Return how many times sooner conditions reach the threshold than others, the geometric mean over all runs."""
    groups = [results.log_speedups(condition, reference(condition), name) for condition in conditions]
    return Estimate(*(math.exp(value) for value in mean_estimate(groups, conditions)))


def drawdown_difference(
    results: StudyResults, conditions: Sequence[Condition], reference: Callable[[Condition], Condition]
) -> Estimate:
    """Return the maximum drawdown of conditions less that of others, as a share of the baseline's gain."""
    groups = []
    for condition in conditions:
        limit, (_, gain) = results.threshold(condition), results.baseline_gain(condition)
        ours, theirs = (
            [max_drawdown(curve, limit) for curve in results.curves(one)] for one in (condition, reference(condition))
        )
        groups.append([(one - other) / gain for one, other in zip(ours, theirs, strict=True)])
    return mean_estimate(groups, conditions)


def question_share(results: StudyResults, conditions: Sequence[Condition]) -> float:
    """Return the questions of conditions as a share of those without reuse."""
    asked, without = (
        sum(results.mean_count(one, "asked") for one in group)
        for group in (conditions, [without_reuse(one) for one in conditions])
    )
    return asked / max(without, 1)


def claims(results: StudyResults) -> list[Claim]:
    """Return the paper's claims with verdicts; all undecided where the runs are too few, too short or equal."""
    reason = insufficiency(results)
    if reason is None:
        return stated_claims(results)
    return [Claim(one.statement, "undecided", f"{one.evidence}; {reason}") for one in stated_claims(results)]


def insufficiency(results: StudyResults) -> str | None:
    """Return why the runs of a study decide nothing; None if they may."""
    conditions = as_published(results)
    runs = [results.curves(one) for one in {*conditions, *(one.baseline() for one in conditions)}]
    if (seeds := len(results.study.seeds)) < MIN_SEEDS:
        return f"{seeds} seeds decide nothing: at least {MIN_SEEDS} are required"
    if runs and (evaluations := min(len(curve) for curves in runs for curve in curves)) < MIN_EVALS:
        return f"runs of {evaluations} evaluations decide nothing: at least {MIN_EVALS} are required"
    if all(curve == curves[0] for curves in runs for curve in curves):
        return "runs of different seeds are equal, which decides nothing"
    if all(results.curves(one) == results.curves(one.baseline()) for one in conditions):
        return "tutored runs equal those without a tutor, which decides nothing"
    if not any(results.is_shown_to_learn(one) for one in conditions):
        return "the students without a tutor are not shown to learn in so few env steps, which decides nothing"
    return None


def as_published(results: StudyResults) -> list[Condition]:
    """Return the conditions that do as the paper did, whose students learn alone."""
    conditions = [one for one in results.tutored() if one.guidance == PAPER_GUIDANCE and results.baseline_learns(one)]
    budgets = [budget for budget in results.study.reuse if NO_REUSE <= budget < math.inf]
    return [one for one in conditions if one.reuse in budgets] or conditions


def stated_claims(results: StudyResults) -> list[Claim]:
    """Return the paper's claims with what the conditions that do as it did say of them; none of a single seed."""
    conditions = [one for one in results.tutored() if one.guidance == PAPER_GUIDANCE and results.baseline_learns(one)]
    budgets = [budget for budget in results.study.reuse if NO_REUSE < budget < math.inf]
    published = as_published(results)
    if not published or len(results.study.seeds) == 1:
        return []
    faster = speedup(results, published, Condition.baseline)
    found = [
        Claim(
            "tutoring accelerates convergence",
            faster.exceeds(1),
            f"speed-up {faster}, {len(published)} conditions",
        )
    ]
    if trained := [one for one in published if results.baseline_learns(one, "training")]:
        faster = speedup(results, trained, Condition.baseline, "training")
        found.append(
            Claim(
                "tutoring accelerates convergence, by the episodes of training",
                faster.exceeds(1),
                f"speed-up {faster}, with the tutor's actions in them",
            )
        )
    final = mean_estimate([results.final_gain(one) for one in published], published)
    found.append(
        Claim(
            "at comparable final performance",
            final.is_within(COMPARABLE),
            f"final score less the baseline's, as a share of its gain: {final}",
        )
    )
    for budget in budgets:
        if pairs := [one for one in conditions if one.reuse == budget and without_reuse(one) in results.runs]:
            found += reuse_claims(results, pairs, budget)
    for factor in ("env", "algo", "tutor"):
        levels = group_by(published, lambda one: str(getattr(one, factor)))  # noqa: B023
        if len(levels) > 1:
            by_level = {level: speedup(results, group, Condition.baseline) for level, group in levels.items()}
            differ = max(one.low for one in by_level.values()) > min(one.high for one in by_level.values())
            evidence = ", ".join(f"{level} {one}" for level, one in by_level.items())
            name = "student" if factor == "algo" else factor
            found.append(Claim(f"the effect depends on the {name}", "supported" if differ else "undecided", evidence))
    return found


def reuse_claims(results: StudyResults, conditions: Sequence[Condition], budget: float) -> list[Claim]:
    """Return the claims about a reuse budget, compared with no reuse by seed."""
    steps = speedup(results, conditions, without_reuse)
    seconds = speedup(results, conditions, without_reuse, "by_seconds")
    drawdown = drawdown_difference(results, conditions, without_reuse)
    identical = sum(results.curves(one) == results.curves(without_reuse(one)) for one in conditions)
    return [
        Claim(
            f"reuse {budget:g} shortens training further, in env steps",
            steps.exceeds(1) if identical < len(conditions) else "undecided",
            f"speed-up {steps} in env steps; {identical} of {len(conditions)} conditions have identical curves",
        ),
        Claim(
            f"reuse {budget:g} shortens training further, by the clock",
            seconds.exceeds(1),
            f"speed-up {seconds} in seconds, {question_share(results, conditions):.0%} of the questions",
        ),
        Claim(
            f"reuse {budget:g} makes convergence less stable",
            drawdown.exceeds(0) if identical < len(conditions) else "undecided",
            f"maximum drawdown less that without reuse, as a share of the baseline's gain: {drawdown}",
        ),
    ]
