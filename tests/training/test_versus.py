"""Students of Connect Four against each other and against a person, with policies whose outcome is known."""

from collections.abc import Callable, Iterator

import pytest
import torch

import envs
from envs.rng import sample_legal
from training.versus import match, play_in_terminal
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.prompts import make_view
from tutors.scripted import ScriptedTutor


class Stacker:
    """Drops into one column until it is full: often enough nobody stops it."""

    def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        return torch.where(action_mask[:, 3], 3, action_mask.long().argmax(1))


class Arbitrary:
    """Drops anywhere, as the discs lie."""

    def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(obs[0].numel(), device=obs.device).sin()
        return sample_legal(action_mask, (obs.flatten(1) * weights).sum(1) * 7.7 % 1)


def test_match_is_won_by_the_better_student_in_either_order() -> None:
    better, worse = Stacker(), Arbitrary()
    forth, back = match(better, worse, 300, (1, 2)), match(worse, better, 300, (1, 2))
    assert forth.episodes == 600
    assert forth.low > 0.3
    assert back.high < -0.3


def test_match_with_itself_is_even() -> None:
    result = match(Arbitrary(), Arbitrary(), 300, (1, 2))
    assert result.low < 0 < result.high


def advisor() -> Advisor:
    """The advisor of a scripted tutor, on no disk."""
    view = make_view(envs.make_game("connect4"))
    return Advisor(view, ScriptedTutor(view, 1.0, 1, 0), AdviceTable(7, 0), None)


def answers(*texts: str) -> Callable[[str], str]:
    """A person who types these texts, then each column in turn."""
    typed: Iterator[str] = iter([*texts, *(str(1 + turn % 7) for turn in range(60))])
    return lambda question: next(typed)


@pytest.mark.parametrize("hint", [False, True])
def test_play_asks_again_after_no_column_and_ends_with_the_outcome(
    hint: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    play_in_terminal(Stacker(), 0, advisor() if hint else None, answers("0", "x", "8"))
    printed = capsys.readouterr().out
    assert printed.count("enter a column that is not full") >= 3
    assert ("tutor: " in printed) == hint
    assert printed.splitlines()[-1] in ("you win", "a draw", "the student wins")


@pytest.mark.parametrize("end", ["", "q", None])
def test_play_ends_when_the_person_quits(end: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    def leave(question: str) -> str:
        if end is None:
            raise EOFError
        return end

    play_in_terminal(Stacker(), 0, None, leave)
    assert capsys.readouterr().out.count("you are x") == 1
