"""The list of bugs of break_students.py against the source that it breaks; breaking it takes too long for here."""

import pytest

from tests.break_students import BUGS, ROOT, Bug


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_seeded_in_one_place(bug: Bug) -> None:
    assert (ROOT / bug.file).read_text().count(bug.right) == 1
    assert bug.right != bug.wrong
    assert (ROOT / "tests" / f"test_{bug.tests}.py").is_file()


def test_there_are_at_least_25_and_no_two_alike() -> None:
    assert len({(bug.file, bug.right, bug.wrong) for bug in BUGS}) == len(BUGS) >= 25
