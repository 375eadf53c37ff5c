"""Statistics of curves against slow definitions, numbers worked out by hand, and SciPy's own tests."""

import math
import random
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

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
    steps_to,
    stratified_interval,
    threshold,
)


def noise(number: int, seed: int = 1) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(0, 1) for _ in range(number)]


@pytest.mark.parametrize(("number", "counted"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2), (11, 2), (12, 3)])
def test_final_score_is_the_mean_of_the_last_quarter_and_of_one_at_least(number: int, counted: int) -> None:
    values = noise(number)
    assert final_score(list(enumerate(values))) == pytest.approx(sum(values[number - counted :]) / counted)


def test_auc_is_the_mean_height_also_between_uneven_steps() -> None:
    assert auc([(0, 0.0), (10, 10.0), (40, 10.0)]) == pytest.approx((50 + 300) / 40)
    assert auc([(100, -2.0), (110, 2.0), (140, -1.0)]) == pytest.approx((0 + 15) / 40), "the curve begins at 100"
    assert auc([(7, 3.0)]) == 3
    steps = sorted(random.Random(2).sample(range(1000), 20))
    fine = np.interp(np.arange(steps[0], steps[-1]) + 0.5, steps, noise(20))  # linear within each step: exact
    assert auc(list(zip(steps, noise(20), strict=True))) == pytest.approx(fine.mean())


def test_threshold_is_95_percent_of_the_baselines_mean_gain() -> None:
    up: Curve = [(1, -1.0), (2, 0.0), (3, 0.0), (4, 1.0)]
    flat: Curve = [(1, 0.0), (2, 9.0), (3, 9.0), (4, 0.0)]
    assert threshold([up]) == pytest.approx(0.9)
    assert threshold([up, flat]) == pytest.approx(-0.5 + 0.95 * 1)


def test_steps_to_is_the_first_evaluation_at_the_threshold_or_infinite() -> None:
    curve: Curve = [(10, 0.0), (20, 0.5), (30, 0.2), (40, 0.9)]
    assert [steps_to(curve, limit) for limit in (-1, 0.5, 0.51, 0.9, 0.91)] == [10, 20, 40, 40, math.inf]


def test_log_speedup_is_the_ratio_of_steps_where_never_counts_as_at_the_end() -> None:
    slow: Curve = [(10, 0.0), (40, 1.0), (80, 1.0)]
    fast: Curve = [(10, 0.0), (20, 1.0), (60, 0.0)]
    assert math.exp(log_speedup(fast, slow, 1.0)) == pytest.approx(2)
    assert log_speedup(slow, fast, 1.0) == pytest.approx(-log_speedup(fast, slow, 1.0))
    assert log_speedup(slow, fast, 0.0) == 0
    assert math.exp(log_speedup(fast, slow, 2.0)) == pytest.approx(80 / 60), "neither reaches it: the ends"
    assert math.exp(log_speedup(slow, [(10, 0.0), (50, 0.5)], 1.0)) == pytest.approx(50 / 40), "a lower bound"


def test_max_drawdown_counts_from_where_the_threshold_was_reached() -> None:
    curve: Curve = [(1, 4.0), (2, 0.0), (3, 5.0), (4, 4.5), (5, 6.0), (6, 4.0), (7, 5.0)]
    assert [max_drawdown(curve, limit) for limit in (4, 5, 6, 7)] == [4, 2, 2, 0]
    values = noise(60)
    for limit in (-1, 0, 1, 2):
        start = next((at for at, value in enumerate(values) if value >= limit), 60)
        worst = max((values[i] - values[j] for i in range(start, 60) for j in range(i, 60)), default=0)
        assert max_drawdown(list(enumerate(values)), limit) == worst


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7, 8, 10, 16])
def test_iqm_is_the_mean_without_a_quarter_on_each_side(number: int) -> None:
    values = np.array([noise(number, 1), noise(number, 2)])
    fourfold = np.sort(np.tile(values, 4), axis=1)  # a quarter of these is a whole number of them
    assert iqm(values) == pytest.approx(fourfold[:, number : 3 * number].mean(1))
    assert iqm(values.T, axis=0) == pytest.approx(iqm(values))
    if number % 4 == 0:
        assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=1))


def test_iqm_of_five_weighs_the_second_and_the_fourth_by_three_quarters() -> None:
    assert iqm([8.0, 100, 1, 4, 2]) == pytest.approx((0.75 * 2 + 4 + 0.75 * 8) / 2.5)


def test_interval_is_as_wide_as_theory_says_and_reproducible() -> None:
    values = noise(100)
    low, high = interval(values)
    width = 2 * 1.96 * float(np.std(values)) / 10
    assert low < fmean(values) < high
    assert high - low == pytest.approx(width, rel=0.05)
    assert fmean((low, high)) == pytest.approx(fmean(values), abs=width / 20)
    assert interval(values) == (low, high)
    assert interval([0.3] * 5) == pytest.approx((0.3, 0.3))
    assert interval([4.0, -2.0]) == (-2, 4)
    assert interval([4.0]) == (4, 4)


def test_interval_is_one_of_the_statistic() -> None:
    values = [1.0] * 15 + [100.0]
    assert interval(values, iqm) == (1, 1)
    assert interval(values)[1] > 10


@pytest.mark.parametrize("number", [2, 3, 5, 10, 40])
def test_paired_interval_is_that_of_the_t_test(number: int) -> None:
    differences = noise(number)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert paired_interval(differences) == pytest.approx((expected.low, expected.high))


def test_paired_interval_of_one_pair_is_unbounded_and_of_equal_differences_empty() -> None:
    assert paired_interval([3.0]) == (-math.inf, math.inf)
    assert paired_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_stratified_interval_resamples_each_stratum_for_itself() -> None:
    apart = [[0.0] * 5, [10.0] * 5]
    assert stratified_interval(apart, "ab") == (5, 5), "the groups differ, the seeds of each do not"
    assert interval([0.0] * 5 + [10.0] * 5)[1] > 7
    groups, generator = [noise(8, 1), noise(12, 2)], random.Random(3)
    means = sorted(
        fmean(value for group in groups for value in generator.choices(group, k=len(group))) for _ in range(4000)
    )
    assert stratified_interval(groups, "ab") == pytest.approx((means[100], means[3900]), abs=0.03)
    assert stratified_interval([noise(9)], "a", iqm) == interval(noise(9), iqm)


def test_groups_of_a_stratum_share_their_seeds() -> None:
    low, high = interval(noise(8))
    assert stratified_interval([noise(8)] * 3, "aaa") == pytest.approx((low, high)), (
        "no more is known than of one group"
    )
    for strata in ("ab", "abba"):
        ends = stratified_interval([noise(8)] * len(strata), strata)
        assert (high - low) / (ends[1] - ends[0]) == pytest.approx(math.sqrt(2), rel=0.05)
    opposite = [-value for value in noise(8)]
    assert stratified_interval([noise(8), opposite], "aa") == pytest.approx((0, 0)), "the same seeds of both"
    with pytest.raises(AssertionError, match="have the same seeds"):
        stratified_interval([noise(8), noise(7)], "aa")


def test_probability_of_improvement_is_the_share_of_pairs_won_and_a_tie_is_half_a_win() -> None:
    assert probability_of_improvement([3.0], [1.0, 2.0]) == 1
    assert probability_of_improvement([1.0, 2.0, 3.0], [2.0]) == 0.5
    assert probability_of_improvement([1.0, 2.0], [2.0, 5.0, 0.0]) == pytest.approx((1 + 1.5) / 6)
    assert probability_of_improvement([1.0, 1.0], [1.0]) == 0.5
