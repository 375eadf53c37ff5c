"""The page of promises: every test that it names exists, and every fault has a line."""

import ast
import re
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.integration.soak import FUZZERS

PAGE = (ROOT / "docs" / "reference" / "reliability.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## The tests")[2].splitlines()
NUMBERS = re.compile(r"(?:\*\*[\w ]+\.\*\* )?(\d+(?:, \d+)*) ")  # of the promises, at the start of a row
ROWS = [line.strip("| ").split(" | ") for line in TABLE if line.startswith("| ")]


def names_in(path: Path) -> set[str]:
    """The names of a file's tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_promise_names_tests_that_exist() -> None:
    known = {name for path in (ROOT / "tests").rglob("test_*.py") for name in names_in(path)}
    assert len(ROWS) > 40
    for promise, tests, tried in ROWS[1:]:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, promise
        assert tried
        assert set(named) <= known, f"{promise}: {set(named) - known}"


def numbers_on_the_page() -> set[int]:
    found = [NUMBERS.match(promise) for promise, *_ in ROWS[1:]]
    return {int(number) for match in found if match is not None for number in match[1].split(", ")}


def test_every_promise_has_a_row() -> None:
    (count,) = re.findall(r"The (\d+) promises", PAGE)
    assert numbers_on_the_page() == set(range(1, int(count) + 1))


def test_every_test_of_a_numbered_fault_is_on_the_page() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in names_in(path):
            for number in re.findall(r"\d+", (re.match(r"test_faults?_(\d+_)(and_\d+_)?", name) or [""])[0]):
                assert int(number) in numbers_on_the_page(), f"{name}: the page has no fault {number}"


def test_tests_of_random_cases_are_on_the_page() -> None:
    for path in FUZZERS:
        assert any(f"`{name}`" in PAGE for name in names_in(ROOT / path)), path
