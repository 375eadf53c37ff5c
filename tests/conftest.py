"""One thread for all tests, and the files that take longest first where several workers share them.

Threads on a busy machine wait for each other, and the tests' tensors are small.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported, here and in the programs that tests start

SECONDS = {"serve": 30.0, "compile": 5.0, "process": 4.0, "train": 3.0}  # of a test with this mark, about
SECONDS_UNMARKED = 0.1


@pytest.hookimpl(trylast=True)  # when the tests that `-m` leaves out are gone
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the files by their estimated time, longest first, so that short ones fill the end: in xdist's workers."""
    if not hasattr(config, "workerinput"):
        return
    seconds: Counter[Path] = Counter()
    for item in items:
        marks = [mark.name for mark in item.iter_markers() if mark.name in SECONDS]
        seconds[item.path] += max((SECONDS[mark] for mark in marks), default=SECONDS_UNMARKED)
    items.sort(key=lambda item: -seconds[item.path])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say that kinds of tests were left out, if some were."""
    if config.option.markexpr:
        terminalreporter.write_line(f"ran only tests that are {config.option.markexpr!r}; `make test` runs all")
