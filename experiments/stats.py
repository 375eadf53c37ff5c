"""What runs come to: pure functions of the evaluations of a student alone, and intervals over seeds.

Intervals are those of the percentile bootstrap (Efron & Tibshirani 1993), but for `paired`. Why an interquartile mean,
stratified intervals and the probability of improvement: Agarwal et al. 2021, "Deep reinforcement learning at the edge
of the statistical precipice", arXiv:2108.13264.
"""

import csv
import math
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

Points = list[tuple[float, float]]  # (env steps or seconds, mean return of the student alone)
RESAMPLES = 10_000
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # of t, 97.5 %: 1 to 9 degrees of freedom
REACHED = 0.95  # of the way from a baseline's first evaluation to its last ones


def evaluations(folder: Path, over: str = "global_step", tag: str = "eval/mean_return") -> Points:
    """Return a run's evaluations of the student alone, or what else it logged, over env steps or `wall_seconds`."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["tag"] == tag]
    number = int if over == "global_step" else float
    return [(number(row[over]), float(row["value"])) for row in rows]


def late(points: Points) -> float:
    """Return the mean of the last quarter of a run's evaluations, at least one: one alone says little."""
    return fmean(value for _, value in points[-max(len(points) // 4, 1) :])


def area(points: Points) -> float:
    """Return the mean height of the curve, by the trapezoid rule: what a student had on average on its way."""
    if len(points) == 1:
        return points[0][1]
    total = 0.0
    for (left, low), (right, high) in pairwise(points):
        total += (right - left) * (low + high) / 2
    return total / (points[-1][0] - points[0][0])


def threshold(baselines: Sequence[Points]) -> float:
    """Return the score that counts as learned: most of the way that students without a tutor go, on average.

    The way begins at their first evaluation, since a share of a score that may be negative says nothing.
    """
    first, last = fmean(points[0][1] for points in baselines), fmean(late(points) for points in baselines)
    return first + REACHED * (last - first)


def steps_to(points: Points, aim: float) -> float:
    """Return the env steps of the first evaluation that reached `aim`, infinite if none did."""
    return next((float(step) for step, value in points if value >= aim), math.inf)


def log_speedup(ours: Points, theirs: Points, aim: float) -> float:
    """Return the logarithm of how many times sooner we reached `aim`; who never did counts as if at the end.

    So it is at least this where they never did, and at most this where we did not.
    """
    own, other = (min(steps_to(points, aim), points[-1][0]) for points in (ours, theirs))
    return math.log(other / own)


def fall(points: Points, aim: float) -> float:
    """Return how far a student fell at most below the best it had had, from where it reached `aim`; 0 if never."""
    values = [value for step, value in points if step >= steps_to(points, aim)]
    best, worst = -math.inf, 0.0
    for value in values:
        best = max(best, value)
        worst = max(worst, best - value)
    return worst


def mean(values: Tensor) -> Tensor:
    """Return the mean of the last dimension."""
    return values.mean(-1)


def iqm(values: Tensor) -> Tensor:
    """Return the mean of the last dimension's middle half: an observation on its edge counts in part."""
    ordered, number = values.sort(-1).values, values.shape[-1]
    place = torch.arange(number, dtype=values.dtype)
    inside = (place + 1).clamp(max=0.75 * number) - place.clamp(min=0.25 * number)
    return (ordered * inside.clamp(min=0)).sum(-1) / (0.5 * number)


def interval(values: Sequence[float], statistic: Callable[[Tensor], Tensor] = mean) -> tuple[float, float]:
    """Return the 95 % interval of a statistic over seeds."""
    return stratified([values], [None], statistic)


def paired(gains: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean difference between runs of the same seeds, by Student's t; of one, no bound.

    For the few seeds of one cell. A bootstrap of three goes from the lowest to the highest, and where there is no
    difference it finds one in a quarter of all cases; of five in a sixth. Of more than ten seeds this is a little wide.
    """
    if len(gains) == 1:
        return -math.inf, math.inf
    middle, reach = fmean(gains), STUDENT[min(len(gains) - 1, len(STUDENT)) - 1] * stdev(gains) / math.sqrt(len(gains))
    return middle - reach, middle + reach


def stratified(
    groups: Sequence[Sequence[float]], strata: Sequence[Hashable], statistic: Callable[[Tensor], Tensor] = mean
) -> tuple[float, float]:
    """Return the 95 % interval of a statistic of all values together.

    Seeds are drawn anew for each stratum. Groups of the same one share them, and have as many values.
    """
    generator, drawn, seeds = torch.Generator().manual_seed(1), [], dict[Hashable, Tensor]()
    for values, stratum in zip(groups, strata, strict=True):
        told = torch.tensor(values, dtype=torch.float64)
        if stratum not in seeds:
            seeds[stratum] = torch.randint(len(told), (RESAMPLES, len(told)), generator=generator)
        assert len(told) == seeds[stratum].shape[1], "groups of one stratum are of the same seeds"
        drawn.append(told[seeds[stratum]])
    low, high = statistic(torch.cat(drawn, 1)).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def improvement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the chance that one of `ours` is better than one of `theirs`; a tie counts half."""
    wins = [(one > other) + 0.5 * (one == other) for one in ours for other in theirs]
    return fmean(wins)
