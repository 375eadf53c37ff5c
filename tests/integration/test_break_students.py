"""The bugs of break_students.py and break_guidance.py against the source: breaking it takes too long for here."""

import pytest

from tests.mutations import break_guidance
from tests.mutations.break_students import BUGS, ROOT, Bug

ALL = BUGS + break_guidance.BUGS


@pytest.mark.parametrize("bug", ALL, ids=lambda bug: bug.name)
def test_a_bug_can_be_seeded_in_one_place(bug: Bug) -> None:
    assert (ROOT / bug.file).read_text().count(bug.right) == 1
    assert bug.right != bug.wrong
    assert (ROOT / "tests" / bug.tests).is_file()


def test_there_are_at_least_25_and_no_two_alike() -> None:
    assert len({(bug.file, bug.right, bug.wrong) for bug in ALL}) == len(ALL) >= 25
