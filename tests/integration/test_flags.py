"""Every number of every program has a range, which its help states and one place checks."""

import math
import re
from dataclasses import dataclass
from typing import Annotated

import pytest
from annotated_types import Interval

from tests.helpers.flag_fuzz import Program, fuzz, number_fields, programs
from tests.helpers.fuzzing import SCALE
from tests.helpers.programs import program
from training.config import Config
from training.ranges import check_ranges, describe_interval, find_interval, flag_of

PROGRAMS = programs()


@pytest.mark.parametrize("one", PROGRAMS, ids=lambda one: one.name)
def test_every_number_has_a_range_that_keeps_out_nan_and_overflow(one: Program) -> None:
    for name, hint in number_fields(one.options):
        interval = find_interval(hint)
        assert interval is not None, f"{flag_of(name)} has no range"
        assert interval.le is not None, f"{flag_of(name)} has no upper bound"
        assert interval.le == math.inf or float(interval.le) <= 1e38, "it fits into float32"  # type: ignore[arg-type]


@pytest.mark.process
@pytest.mark.parametrize("one", PROGRAMS, ids=lambda one: one.name)
def test_help_states_the_range_of_every_number(one: Program) -> None:
    command, *words = one.name.split()
    done = program(command, *words, "--help-all" if one.options is Config else "--help")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.replace("│", " ").split())
    for name, hint in number_fields(one.options):
        if flag_of(name) not in text:  # of the other students
            continue
        interval = find_interval(hint)
        assert interval is not None
        after = re.split(r" --[a-z-]+ [A-Z{[]", text.partition(f"{flag_of(name)} ")[2])[0]
        assert describe_interval(interval) in after, f"{flag_of(name)}: {after}"


def test_random_values_of_all_flags_are_taken_or_refused_by_name() -> None:
    assert not fuzz(seed=1, count=20 * SCALE)


@dataclass(frozen=True)
class Inner:
    """Numbers that may be left out, and a tuple of numbers."""

    share: Annotated[float, Interval(gt=0, lt=1)] | None = None
    sizes: tuple[Annotated[int, Interval(ge=1, le=8)], ...] = ()


@dataclass(frozen=True)
class Outer:
    """A group of options, and a number."""

    inner: Inner
    steps: Annotated[int, Interval(ge=1, le=2**31 - 1)] = 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (Outer(Inner(0.0)), "inner.share is 0.0; it must be above 0 and below 1"),
        (Outer(Inner(1.0)), "inner.share is 1.0; it must be above 0 and below 1"),
        (Outer(Inner(math.nan)), "inner.share is nan; it must be above 0 and below 1"),
        (Outer(Inner(sizes=(1, 9, 3))), "inner.sizes is 9; it must be at least 1 and at most 8"),
        (Outer(Inner(), 0), "steps is 0; it must be at least 1 and at most 2147483647"),
        (Outer(Inner(), 10**400), f"steps is 1{'0' * 39}…; it must be at least 1"),
    ],
)
def test_number_out_of_its_range_is_named(options: Outer, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^{problem.replace('.', '[.]')}"):
        check_ranges(options)
    check_ranges(Outer(Inner(0.5, (1, 8)), 2**31 - 1))


@pytest.mark.parametrize(
    "place",
    ["envs.base:Spec", "envs.base:Step", "builtins:list", "builtins:dict", "math:sqrt", "train:Trainer", "os:getcwd"],
)
@pytest.mark.parametrize("flag", ["--env", "--view"])
def test_object_that_is_something_else_is_refused(flag: str, place: str, tmp_path: object) -> None:
    done = program("train.py", flag, place, "--tutor", "scripted", "--run-dir", f"{tmp_path}/run")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert place in done.stderr
