"""Each seeded bug fits the program as it is now; trying them all takes too long here: `python -m tests.mutations`."""

import ast

import pytest

from tests.helpers.paths import ROOT
from tests.mutations.bugs import BUGS, Bug
from tests.mutations.patterns import replace


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_can_be_seeded_in_one_place(bug: Bug) -> None:
    source = (ROOT / bug.file).read_text()
    assert ast.dump(ast.parse(bug.seeded(source))) != ast.dump(ast.parse(source))
    assert (ROOT / "tests" / bug.tests).is_file()


def test_bugs_are_at_least_100_and_no_two_alike() -> None:
    assert len({bug.name for bug in BUGS}) == len({bug[1:5] for bug in BUGS}) == len(BUGS) >= 100


def test_replace_ignores_formatting_comments_and_other_scopes() -> None:
    source = "def one(x):\n    return f(x +\n        1)  # so\n"
    source += "\n\nclass Two:\n    def go(self, x):\n        return f(x + 1)\n"
    found = replace(source, "one", "f(x + 1)", "g(x)")
    assert found == "def one(x):\n    return g(x)\n\nclass Two:\n\n    def go(self, x):\n        return f(x + 1)\n"
    assert replace(source, "Two.go", "x + 1", "x").endswith("return f(x)\n")


def test_replace_binds_wildcards() -> None:
    assert replace("y = a.b(c)[0] * ~d", "", "ANY * ~d", "ANY") == "y = a.b(c)[0]\n"
    assert replace("y = p - q", "", "ANY_1 - ANY_2", "ANY_2 - ANY_1") == "y = q - p\n"
    with pytest.raises(ValueError, match="matches 0 times"):
        replace("y = p - q", "", "ANY - ANY", "ANY")


def test_replace_of_statements() -> None:
    source = "def f():\n    a = 1\n    g(a)\n    h(a)\n"
    assert replace(source, "f", "g(a)\nh(a)", "h(a)\ng(a)") == "def f():\n    a = 1\n    h(a)\n    g(a)\n"
    assert replace(source, "f", "g(a)", "pass") == "def f():\n    a = 1\n    pass\n    h(a)\n"


@pytest.mark.parametrize(
    ("scope", "pattern", "message"),
    [("", "x", "matches 2 times"), ("g", "x", "there are 0 of g"), ("", "x + 2", "matches 0 times")],
)
def test_replace_that_does_not_match_once_raises(scope: str, pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace("y = x + x", scope, pattern, "z")
