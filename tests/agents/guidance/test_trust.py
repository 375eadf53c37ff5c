"""Trust: the gate's arithmetic, and returns summed up to a horizon."""

import math

import numpy
import pytest
import torch

from agents.guidance.trust import ALPHA, MIN_NUMBER, RECENT, RHO, WINDOW, ReturnMonitor, Returns, Trust
from envs.base import Step


def returns_of(values: list[float]) -> Returns:
    return Returns(len(values), sum(values), sum(value * value for value in values))


def spread(mean: float, count: int = 200, std: float = 0.5) -> Returns:
    """Return `count` returns of that mean, half of them above it and half below."""
    return returns_of([mean - std, mean + std] * (count // 2))


def test_returns_mean_and_radius_are_those_of_the_formula() -> None:
    values = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5] * 3
    returns = returns_of(values)
    assert returns.mean == pytest.approx(numpy.mean(values))
    n, std = len(values), numpy.std(values, ddof=1)
    inner = 2 * (n * RHO**2 + 1) / (n**2 * RHO**2) * math.log(math.sqrt(n * RHO**2 + 1) / ALPHA)
    assert returns.radius == pytest.approx(std * math.sqrt(inner))
    assert returns.stderr == pytest.approx(std / math.sqrt(n))
    assert returns_of([1.0] * (MIN_NUMBER - 1)).radius == Returns().radius == math.inf
    assert returns_of([1.0] * MIN_NUMBER).radius == 0
    assert math.isnan(Returns().mean)


def test_returns_radius_bounds_the_mean_at_all_times() -> None:
    generator = numpy.random.default_rng(1)
    missed = 0
    for _ in range(400):
        values = generator.choice([-1.0, 1.0], 300)
        counts = range(20, 301, 10)
        missed += any(abs(values[:n].mean()) > returns_of(values[:n].tolist()).radius for n in counts)
    assert missed / 400 < ALPHA  # asymptotically at most ALPHA, however often one looks


def make_trust(student: float, tutor: float, count: int = 200) -> Trust:
    trust = Trust()
    trust.observe_student(spread(student, count))
    trust.observe_tutor(spread(tutor, count))
    return trust


def test_trust_is_0_until_the_tutor_is_surely_better() -> None:
    assert make_trust(0.0, 0.1).update() == 0
    assert make_trust(0.0, 0.1).is_undecided
    assert not make_trust(0.0, -0.1).is_undecided  # if it is better at all, then by little
    assert make_trust(0.0, 1.0).update() == 1
    assert not make_trust(0.0, 1.0).is_undecided
    assert make_trust(0.0, -1.0).update() == 0
    assert not make_trust(0.0, -1.0).is_undecided
    assert make_trust(0.0, 1.0, count=4).update() == 0
    assert Trust().update() == 0


def test_trust_falls_as_the_student_comes_nearer_and_ends_at_the_tutor() -> None:
    trust = make_trust(-1.0, 1.0)
    found = [trust.update()]
    for student in (-0.5, 0.0, 0.9, 1.1, 2.0):
        for _ in range(5):  # until the earlier episodes are no longer in the window
            trust.observe_student(spread(student))
        found.append(trust.update())
    assert found == pytest.approx([1.0, 0.75, 0.5, 0.05, 0.0, 0.0])
    assert not trust.is_open


def test_trust_in_a_tutor_little_better_than_an_untrained_student_is_small() -> None:
    """By as many standard deviations of its returns as it is better, at most 1."""
    for lead, expected in ((0.1, 0.2), (0.25, 0.5), (0.5, 1.0), (0.75, 1.0)):
        assert make_trust(0.0, lead, count=2000).update() == pytest.approx(expected, abs=1e-3)


def test_trust_stays_open_where_the_gap_is_small_but_not_gone() -> None:
    trust = make_trust(-1.0, 0.0)
    assert trust.update() == 1
    for _ in range(5):
        trust.observe_student(spread(-0.05))
    assert trust.is_undecided
    assert trust.update() == pytest.approx(0.05)


def test_trust_after_a_changed_tutor_forgets_the_earlier_episodes() -> None:
    trust = make_trust(0.0, 1.0)
    assert trust.update() == 1
    trust.observe_tutor(spread(0.98), changed=3.0)
    assert trust.tutor.number == 400
    trust.observe_tutor(spread(-1.0), changed=3.0)
    assert trust.tutor.number == 200
    assert trust.update() == 0


def test_trust_after_a_silent_probe_is_shut() -> None:
    trust = make_trust(0.0, 1.0)
    assert trust.update() == 1
    trust.observe_tutor(Returns())
    assert trust.update() == 0


def test_trust_student_window_keeps_the_newest_episodes() -> None:
    trust = Trust()
    for student in range(10):
        trust.observe_student(spread(float(student), WINDOW // 2))
    assert trust.student_returns.number == WINDOW
    assert trust.student_returns.mean == pytest.approx(8.5)
    assert trust.baseline == pytest.approx(0.0)
    trust.observe_student(Returns())
    assert trust.student_returns.number == WINDOW


def test_trust_state_dict_restores_everything() -> None:
    trust, other = make_trust(0.0, 1.0), Trust()
    trust.update()
    other.load_state_dict(trust.state_dict())
    trust.observe_student(spread(0.5))
    other.observe_student(spread(0.5))
    assert other.update() == trust.update() > 0


def step_of(reward: list[float], terminated: list[bool], truncated: list[bool]) -> Step:
    unused = torch.zeros(len(reward))
    ends = (torch.tensor(terminated), torch.tensor(truncated))
    return Step(unused, unused, torch.tensor(reward), *ends, unused, unused, {}, {})


def test_return_monitor_sums_whole_episodes_up_to_the_horizon_where_the_student_is_alone() -> None:
    monitor = ReturnMonitor(torch.tensor([True, True, True, False]), horizon=3)
    monitor.time.fill_(3)
    no = [False] * 4
    for time in range(1, 6):
        ends = [time == 2, time == 3, False, time == 2]
        monitor.add(step_of([float(time)] * 4, ends, no))
    # copy 0: 1 + 2, then 3 + 4 + 5 (cut off at the horizon); copy 1: 1 + 2 + 3; copy 2: 1 + 2 + 3, cut off
    assert monitor.sums.tolist() == [4, 3 + 12 + 6 + 6, 9 + 144 + 36 + 36]
    monitor.add(step_of([100.0] * 4, no, [True] * 4))
    # copy 0 and copy 2 were counted at the horizon; copy 1: 4 + 5 + 100
    assert monitor.sums.tolist()[:2] == [5, 27 + 109]


def test_return_monitor_state_dict_restores_a_half_played_episode() -> None:
    monitors = [ReturnMonitor(torch.ones(1, dtype=torch.bool), horizon=5) for _ in range(2)]
    monitors[0].time.fill_(5)
    monitors[0].add(step_of([2.0], [False], [False]))
    monitors[1].load_state_dict({name: value.clone() for name, value in monitors[0].state_dict().items()})
    for monitor in monitors:
        monitor.add(step_of([3.0], [True], [False]))
    assert monitors[0].sums.tolist() == monitors[1].sums.tolist() == [1, 5, 25]


def test_return_monitor_counts_first_episodes_together_when_all_are_complete() -> None:
    """Those that end while others go on are the short ones; so are the second episodes that end so early."""
    monitor = ReturnMonitor(torch.ones(2, dtype=torch.bool), horizon=3)
    for _ in range(2):  # the first copy's episodes last one time step, the second's goes on
        monitor.add(step_of([1.0, 1.0], [True, False], [False, False]))
        assert monitor.read() == Returns()
    monitor.add(step_of([1.0, 1.0], [True, False], [False, False]))
    assert monitor.read() == Returns(2, 1 + 3, 1 + 9)
    assert monitor.read() == Returns()
    monitor.add(step_of([1.0, 1.0], [True, False], [False, False]))
    assert monitor.read() == Returns(1, 1, 1)


def test_what_is_left_to_learn_is_measured_by_the_newest_episodes() -> None:
    """Those before them still count for the bounds, as long as WINDOW asks for them."""
    trust = Trust()
    trust.observe_tutor(spread(3.0, WINDOW))
    trust.observe_student(spread(0.0, WINDOW))
    assert trust.update() == pytest.approx(1)
    trust.observe_student(spread(1.0, RECENT - 2))
    assert trust.recent_returns.mean < 1
    trust.observe_student(spread(1.0, 2))
    assert (trust.recent_returns.number, trust.recent_returns.mean) == (RECENT, pytest.approx(1))
    assert trust.student_returns.number == WINDOW + RECENT
    assert trust.update() == pytest.approx(2 / 3)
