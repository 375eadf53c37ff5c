"""Students of Connect Four against each other, with policies whose outcome is known."""

from tests.helpers.connect4_players import Arbitrary, Stacker
from training.versus import match


def test_match_is_won_by_the_better_student_in_either_order() -> None:
    better, worse = Stacker(), Arbitrary()
    forth, back = match(better, worse, 300, (1, 2)), match(worse, better, 300, (1, 2))
    assert forth.episodes == 600
    assert forth.low > 0.3
    assert back.high < -0.3


def test_match_with_itself_is_even() -> None:
    result = match(Arbitrary(), Arbitrary(), 300, (1, 2))
    assert result.low < 0 < result.high
