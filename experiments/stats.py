"""Statistics of learning curves: what one run comes to, and intervals over seeds.

Intervals are those of the percentile bootstrap (Efron & Tibshirani 1993), but for `paired_interval`. Why an
interquartile mean, stratified intervals and the probability of improvement: Agarwal et al. 2021, "Deep reinforcement
learning at the edge of the statistical precipice", arXiv:2108.13264. SciPy is imported where it is needed: only
reports and searches require it.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.metrics_file import HEADER, read_rows

Curve = list[tuple[float, float]]  # (env steps or seconds, mean return)
Statistic = Callable[..., Any]  # of an array, along the dimension `axis`
RESAMPLES = 10_000
CONFIDENCE = 0.95
THRESHOLD_SHARE = 0.95  # of the gain of a baseline, from its first evaluation to its final score


def read_curve(run_dir: Path, x: str = "global_step", tag: str = "eval/mean_return") -> Curve:
    """Return what a run logged under a tag, over `global_step` or `wall_seconds`; by default its evaluations.

    Raises:
        ValueError: there is no metrics.csv.
    """
    path = run_dir / "metrics.csv"
    try:
        rows = [dict(zip(HEADER, row, strict=True)) for row in read_rows(path)]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    number = int if x == "global_step" else float
    return [(number(row[x]), float(row["value"])) for row in rows if row["tag"] == tag]


def final_score(curve: Curve) -> float:
    """Return the mean of the last quarter of the evaluations, at least one: a single evaluation is noisy."""
    return fmean(value for _, value in curve[-max(len(curve) // 4, 1) :])


def auc(curve: Curve) -> float:
    """Return the area under the curve, by the trapezoid rule, divided by its length: the mean score."""
    if len(curve) == 1:
        return curve[0][1]
    area = sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(curve))
    return area / (curve[-1][0] - curve[0][0])


def threshold(baselines: Sequence[Curve]) -> float:
    """Return the score that counts as learned: most of the way from the baselines' first evaluation to their last.

    It is a share of their gain and not of their score, which may be negative.
    """
    first, last = fmean(curve[0][1] for curve in baselines), fmean(final_score(curve) for curve in baselines)
    return first + THRESHOLD_SHARE * (last - first)


def steps_to(curve: Curve, threshold: float) -> float:
    """Return the env steps of the first evaluation that reached the threshold, infinite if none did."""
    return next((float(step) for step, value in curve if value >= threshold), math.inf)


def log_speedup(curve: Curve, reference: Curve, threshold: float) -> float:
    """Return the logarithm of how many times sooner a curve reaches the threshold than a reference.

    A curve that never does counts as if it did at its end. So this is a lower bound where the reference never reaches
    the threshold, and an upper bound where the curve does not.
    """
    ours, theirs = (min(steps_to(one, threshold), one[-1][0]) for one in (curve, reference))
    return math.log(theirs / ours)


def max_drawdown(curve: Curve, threshold: float) -> float:
    """Return the largest fall below the best score so far, from where the threshold was reached; 0 if never."""
    best, worst = -math.inf, 0.0
    for step, value in curve:
        if step >= steps_to(curve, threshold):
            best = max(best, value)
            worst = max(worst, best - value)
    return worst


def iqm(values: ArrayLike, axis: int = -1) -> Any:
    """Return the interquartile mean: that of the middle half; an observation on its edge counts in part."""
    ordered = np.sort(np.moveaxis(np.asarray(values, dtype=np.float64), axis, -1), axis=-1)
    number = ordered.shape[-1]
    position = np.arange(number)
    weights = np.minimum(position + 1, 0.75 * number) - np.maximum(position, 0.25 * number)
    return (ordered * weights.clip(min=0)).sum(-1) / (0.5 * number)


def interval(values: Sequence[float], statistic: Statistic = np.mean) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a statistic over seeds."""
    return stratified_interval([values], [None], statistic)


def paired_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean difference between runs of the same seeds, by Student's t; of one, no bound.

    For the few seeds of one condition. A bootstrap of three goes from the lowest to the highest, and where there is no
    difference it finds one in a quarter of all cases; of five in a sixth.
    """
    from scipy import stats

    number = len(differences)
    if number == 1:
        return -math.inf, math.inf
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, number - 1)) * stdev(differences) / math.sqrt(number)
    return fmean(differences) - margin, fmean(differences) + margin


def stratified_interval(
    groups: Sequence[Sequence[float]], strata: Sequence[Hashable], statistic: Statistic = np.mean
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a statistic of all values together.

    Seeds are resampled for each stratum. The groups of a stratum share them, and have a value for each.
    """
    from scipy import stats

    arrays = [np.asarray(values, dtype=np.float64) for values in groups]
    numbers: dict[Hashable, int] = {}
    for values, stratum in zip(arrays, strata, strict=True):
        assert numbers.setdefault(stratum, len(values)) == len(values), "groups of a stratum have the same seeds"

    def of_resamples(*seeds: NDArray[Any], axis: int = -1) -> Any:
        drawn = dict(zip(numbers, seeds, strict=True))
        resampled = [values[drawn[stratum]] for values, stratum in zip(arrays, strata, strict=True)]
        return statistic(np.concatenate(resampled, axis=-1), axis=axis)

    seeds = [np.arange(number) for number in numbers.values()]
    if max(numbers.values()) == 1:  # nothing to resample
        only = float(of_resamples(*seeds))
        return only, only
    found = stats.bootstrap(
        seeds,
        of_resamples,
        n_resamples=RESAMPLES,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(1),
    ).confidence_interval
    return float(found.low), float(found.high)


def probability_of_improvement(scores: Sequence[float], references: Sequence[float]) -> float:
    """Return the probability that one of `scores` is higher than one of `references`; a tie counts half."""
    return fmean((one > other) + 0.5 * (one == other) for one in scores for other in references)
