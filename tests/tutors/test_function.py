"""A function as a tutor: what it is asked, what becomes of its answers, and whose answers the store finds again."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

import envs
from tutors import TutorConfig, open_advisor
from tutors.base import TutorError
from tutors.function import FunctionTutor, is_function_name, version_of
from tutors.prompts import make_view
from tutors.registry import check_tutor

SOURCE = """
calls = []

def advise(prompts, action_mask):
    calls.append((prompts, action_mask))
    return action_mask.float()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a user starts from, with a module of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mine_of_test", None)


def state_of(num_envs: int) -> dict[str, torch.Tensor]:
    """Positions of Connect Four with a full column in the last one."""
    mine = torch.zeros(num_envs, dtype=torch.int64)
    mine[-1], theirs = 0b010101, torch.zeros_like(mine)
    theirs[-1] = 0b101010
    return {"mine": mine, "theirs": theirs}


def tutor(function: Any) -> FunctionTutor:
    """A tutor that asks `function`, in the place of the one of its module."""
    found = FunctionTutor(make_view(envs.make_game("connect4")), "mine_of_test:advise")
    found.function = function
    return found


def test_function_gets_prompts_and_mask_and_its_rows_are_normalised(folder: Path) -> None:
    asked = FunctionTutor(make_view(envs.make_game("connect4")), "mine_of_test:advise")
    advice = asked.advise(state_of(3))
    ((prompts, action_mask),) = sys.modules["mine_of_test"].calls
    assert len(prompts) == 3
    assert all("Answer:" in prompt for prompt in prompts)
    assert action_mask.tolist() == [[True] * 7] * 2 + [[False] + [True] * 6]
    torch.testing.assert_close(advice.probs[2], torch.tensor([0.0] + [1 / 6] * 6))
    assert advice.valid.all()
    assert (asked.stats["asked"], asked.identity["tutor"]) == (3, "mine_of_test:advise")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ([0.0] * 7, "no_opinion"),
        ([1.0] + [0.0] * 6, "no_opinion"),  # all of it illegal
        ([0.0, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0], "invalid"),
        ([0.0, float("nan"), 1.0, 0.0, 0.0, 0.0, 0.0], "invalid"),
        ([0.0, float("inf"), 1.0, 0.0, 0.0, 0.0, 0.0], "invalid"),
    ],
)
def test_row_that_is_no_distribution_is_no_advice(row: list[float], kind: str, folder: Path) -> None:
    asked = tutor(lambda prompts, action_mask: [[1.0] * 7, row])
    advice = asked.advise(state_of(2))
    assert advice.valid.tolist() == [True, False]
    assert not advice.probs[1].any()
    assert advice.probs.isfinite().all()
    assert asked.stats[f"no_advice/{kind}"] == 1


def test_illegal_actions_get_no_probability_and_cost_label_mass(folder: Path) -> None:
    advice = tutor(lambda prompts, action_mask: [[3.0, 1.0, 0, 0, 0, 0, 0]] * 2).advise(state_of(2))
    assert advice.probs.tolist() == [[0.75, 0.25, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert advice.label_mass.tolist() == [1.0, 0.25]


def fails(prompts: Any, action_mask: Any) -> Any:
    raise KeyError("column")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (fails, "KeyError: 'column'"),
        (lambda prompts, action_mask: [[1.0] * 6], r"it returned \(1, 6\) numbers for an action mask of \(1, 7\)"),
        (lambda prompts, action_mask: None, "failed"),
        (lambda prompts, action_mask: "middle", "failed"),
    ],
)
def test_first_call_that_fails_ends_the_run_and_a_later_one_is_no_advice(
    function: Any, said: str, folder: Path
) -> None:
    asked = tutor(function)
    with pytest.raises(TutorError, match=f"--tutor mine_of_test:advise failed.*|.*{said}"):
        asked.advise(state_of(1))
    advice = asked.advise(state_of(1))
    assert not advice.valid.any()
    assert asked.stats["no_advice/function"] == 1


def test_store_keeps_answers_apart_by_the_functions_version(folder: Path) -> None:
    """The same file finds its answers again; an edited one, or another `version`, is asked anew."""
    game = envs.make_game("connect4")

    def asked() -> int:
        sys.modules.pop("mine_of_test", None)
        config = TutorConfig("mine_of_test:advise", advice_store=str(folder / "store"))
        with open_advisor(config, game, 1, folder, "cpu") as advisor:
            assert advisor is not None
            advisor.advise(state_of(4), torch.ones(4, dtype=torch.bool))
            return int(advisor.counters().get("asked", 0))

    file = folder / "mine_of_test.py"
    assert asked() == 2
    assert asked() == 0
    file.write_text(SOURCE + "# edited\n")
    assert asked() == 2
    file.write_text(SOURCE + "advise.version = 7\n")
    assert asked() == 2
    file.write_text("# a comment\n" + SOURCE + "advise.version = 7\n")
    assert asked() == 0


def test_version_of_any_callable_is_found() -> None:
    class Asker:
        version = 3

        def __call__(self, prompts: Any, action_mask: Any) -> Any:
            return action_mask

    assert version_of(Asker()) == "3"
    assert isinstance(fails, FunctionType)
    assert len(version_of(fails)) == 16
    assert version_of(print) == "1"


def test_names_of_functions() -> None:
    names = ("mine:advise", "my.pack:advise", "recorded:runs/x.sqlite", "scripted:0.6", "tiny", "a b:c", ":c", "a:")
    assert [is_function_name(name) for name in names] == [True, True, False, False, False, False, False, False]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere_at_all:advise", "No module named 'nowhere_at_all'"),
        ("mine_of_test:advice", "has no attribute 'advice'"),
        ("mine_of_test:calls", "is no function but list"),
    ],
)
def test_unknown_function_is_refused(name: str, said: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=said):
        check_tutor(TutorConfig(name))
