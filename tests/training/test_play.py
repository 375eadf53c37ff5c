"""A person at the terminal, who types what the tests say, against players whose moves are known."""

import io
from collections.abc import Callable, Iterator

import pytest
import torch
from rich.console import Console

import envs
from envs.base import Env
from envs.rendering import DRAWINGS
from tests.helpers.connect4_players import Stacker
from training.play import advice_line, cells_of, play_in_terminal, read_action, show_board
from training.versus import student_as_opponent
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.prompts import make_view
from tutors.scripted import ScriptedTutor

COLUMNS = tuple("1234567")


class First:
    """Takes the first legal action."""

    def greedy(self, obs: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
        return action_mask.long().argmax(1)


def advisor(game: str = "connect4", **options: int) -> Advisor:
    """The advisor of a scripted tutor, on no disk."""
    view = make_view(envs.make_game(game, **options))
    return Advisor(view, ScriptedTutor(view, 1.0, 1, 0), AdviceTable(len(view.labels), 0), None)


def connect4() -> Env:
    return student_as_opponent(Stacker(), 1, 0)


def answers(*texts: str) -> Callable[[str], str]:
    """A person who types these texts, then each column in turn."""
    typed: Iterator[str] = iter([*texts, *(str(1 + turn % 7) for turn in range(60))])
    return lambda question: next(typed)


@pytest.mark.parametrize("hint", [False, True])
def test_play_asks_again_after_no_column_and_ends_with_the_outcome(
    hint: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    play_in_terminal(Stacker(), connect4(), advisor() if hint else None, answers("0", "x", "8"))
    printed = capsys.readouterr().out
    assert printed.count("enter a column that is not full") >= 3
    assert ("tutor: " in printed) == hint
    assert printed.splitlines()[-1] in ("you win", "a draw", "the student wins")


@pytest.mark.parametrize("end", ["", "q", "Q", None])
def test_play_ends_when_the_person_quits(end: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    def leave(question: str) -> str:
        if end is None:
            raise EOFError
        return end

    play_in_terminal(Stacker(), connect4(), None, leave)
    printed = capsys.readouterr().out
    assert printed.count("you are x, student o") == 1
    first = printed[: printed.index(". . .")].replace("\n", " ")
    assert "x are your discs, o the student's" in first
    assert "Enter or q leaves" in first


def test_both_moves_are_shown_and_the_four_that_win(capsys: pytest.CaptureFixture[str]) -> None:
    """The student stacks the fourth column, and nobody stops the person in the first, nor it."""
    play_in_terminal(Stacker(), connect4(), None, answers("1", "2", "1", "2", "1", "2", "1", "2"))
    printed = capsys.readouterr().out
    assert "you: 1   student: 4" in printed
    assert printed.splitlines()[-1] == "the student wins"
    last = printed[printed.rindex("you: ") :]
    assert last.count("O") == 4 == sum(line[6:7] == "O" for line in last.splitlines())
    assert "X" not in last


def test_another_game_is_another_episode(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["1", "2"] * 2
    play_in_terminal(Stacker(), connect4(), None, answers(*columns, "y", *columns, "n"))
    assert capsys.readouterr().out.count("the student wins") == 2


def test_a_terminal_has_colours_and_reversed_winners() -> None:
    console = Console(force_terminal=True, record=True, width=40, highlight=False, file=io.StringIO())
    env = connect4()
    state = {"mine": torch.tensor([0b1111]), "theirs": torch.tensor([1 << 7])}
    show_board(console, DRAWINGS["connect4"], env, [state])
    shown = console.export_text(styles=True)
    assert shown.count("\x1b[1;7;94mx") == 4
    assert shown.count("\x1b[1;33mo") == 1


@pytest.mark.parametrize("game", ["snake", "blackjack"])
def test_other_games_are_played_beside_the_student(game: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"size": 4} if game == "snake" else {}
    typed = iter(["bad", *(["u", "l"] * 8 if game == "snake" else ["h", "s"])])
    play_in_terminal(
        First(), envs.make(game, 1, 3, **options), advisor(game, **options), lambda question: next(typed, "")
    )
    printed = capsys.readouterr().out
    assert "tutor: " in printed
    assert "the student would: " in printed
    assert ", or q to quit" in printed
    assert printed.splitlines()[-1].endswith(("eaten", "you win 1", "a push", "the dealer wins"))


def test_an_action_is_named_by_its_beginning_and_must_be_legal() -> None:
    names = DRAWINGS["snake"].actions
    mask = torch.tensor([True, True, False, True])
    for typed, expected in (("u", 0), ("RIGHT", 1), ("le", 3), ("", None)):
        assert read_action(mask, names, answers(typed)) == expected
    assert read_action(mask, names, answers("d", "down", "r")) == 1, "down is illegal"
    assert read_action(torch.ones(7, dtype=torch.bool), COLUMNS, answers("12", "7")) == 6


def test_advice_begins_with_the_best_action() -> None:
    state = envs.make("connect4", 1, 0).reset().state
    assert advice_line(advisor(), state, COLUMNS).startswith("tutor: ")
    assert cells_of(0b1 | 1 << 47) == [(5, 0), (0, 6)]
