"""The consult schedule against known values, and asking by chance against a comparison for each row."""

import math

import pytest
import torch

from envs.luck import ADVISING, Luck
from tutors.asking import by_chance, consult_probability


def test_the_schedule_begins_at_p_init() -> None:
    assert consult_probability(0, 1000) == 1.0
    assert consult_probability(0, 1000, p_init=0.7, p_final=0.2) == 0.7


def test_the_schedule_has_fallen_half_way_in_the_middle() -> None:
    assert consult_probability(500, 1000) == pytest.approx(0.55)
    assert consult_probability(250, 1000, p_init=0.8, p_final=0.0) == pytest.approx(0.6)


def test_the_schedule_ends_at_p_final_and_stays_there() -> None:
    for step in (1000, 1001, 10**12):
        assert consult_probability(step, 1000) == pytest.approx(0.1, abs=1e-15)
        assert consult_probability(step, 1000, p_init=0.5, p_final=0.0) == 0.0


def test_the_last_step_before_the_end_is_not_the_end() -> None:
    assert consult_probability(999, 1000) == pytest.approx(0.1 + 0.9 / 1000)
    assert consult_probability(1, 1000) == pytest.approx(1 - 0.9 / 1000)


def test_a_schedule_of_no_steps_is_at_its_end_from_the_start() -> None:
    assert consult_probability(0, 0) == pytest.approx(0.1)
    assert consult_probability(5, 0, p_init=1.0, p_final=0.3) == pytest.approx(0.3)


def test_a_schedule_may_rise_or_stand_still() -> None:
    assert consult_probability(3, 4, p_init=0.0, p_final=1.0) == 0.75
    assert {consult_probability(step, 4, 0.3, 0.3) for step in range(9)} == {0.3}


def test_the_schedule_falls_by_equal_amounts() -> None:
    values = [consult_probability(step, 64, p_init=1.0, p_final=0.0) for step in range(65)]
    assert values == [1 - step / 64 for step in range(65)]


def test_a_row_is_asked_about_exactly_where_its_luck_is_below_the_probability() -> None:
    luck = Luck(3, torch.arange(4096), ADVISING).draw(0, 1)[:, 0]
    for probability in (0.0, 0.1, 0.5, 0.99, 1.0):
        expected = [number < probability for number in luck.tolist()]
        assert by_chance(probability, luck).tolist() == expected


def test_luck_equal_to_the_probability_is_not_below_it() -> None:
    luck = torch.tensor([0.5 - 2.0**-24, 0.5, 0.5 + 2.0**-24])
    assert by_chance(0.5, luck).tolist() == [True, False, False]


def test_probability_0_never_asks_and_1_always() -> None:
    ends = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
    assert not by_chance(0.0, ends).any()
    assert by_chance(1.0, ends).all()


def test_rows_are_asked_about_on_their_own_and_as_often_as_the_probability_says() -> None:
    rows = 20_000
    luck = Luck(0, torch.arange(rows), ADVISING).draw(0, 1)[:, 0]
    share = by_chance(0.3, luck).float().mean().item()
    assert abs(share - 0.3) < math.sqrt(math.log(2 / 1e-9) / (2 * rows)), "Hoeffding's bound at 1e-9"
