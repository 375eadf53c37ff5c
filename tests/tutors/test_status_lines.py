"""What is waited for, in a log: one line at once, then one every 30 s; other words at once."""

import io
from contextlib import redirect_stdout

import pytest

from tests.helpers.commands import tutors
from tests.helpers.scripted_server import serving
from training.console import PlainProgress
from tutors import status_lines
from tutors.llm import server
from tutors.status_lines import StatusLines


class Clock:
    """Time that passes as it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(status_lines, "time", found)
    return found


def test_a_line_is_repeated_every_30_seconds(clock: Clock) -> None:
    said: list[str] = []
    lines = StatusLines(said.append)
    for second in range(254):
        lines(f"waiting for http://127.0.0.1:8000: {second} s")
        clock.sleep(1)
    assert [int(line.split()[-2]) for line in said] == [0, 30, 60, 90, 120, 150, 180, 210, 240]


def test_other_words_are_written_at_once_and_nothing_is_not(clock: Clock) -> None:
    said: list[str] = []
    lines = StatusLines(said.append)
    for line in ("starting", "waiting: 1 s", "waiting: 2 s", "reading 3 of 4", "", "waiting: 5 s"):
        lines(line)
    assert said == ["starting", "waiting: 1 s", "reading 3 of 4", "waiting: 5 s"]


def test_plain_output_of_a_run_shows_what_it_waits_for(clock: Clock) -> None:
    with redirect_stdout(io.StringIO()) as printed:
        progress = PlainProgress()
        for second in range(40):
            progress.status(f"waiting for a server: {second} s")
            clock.sleep(1)
        progress.status("")
    assert printed.getvalue().splitlines() == ["waiting for a server: 0 s", "waiting for a server: 30 s"]


@pytest.mark.parametrize("command", ["report", "fill"])
def test_waiting_commands_print_few_lines(command: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as gone:
        url = gone.url
    monkeypatch.setattr(server, "POLL_INTERVAL_S", 0.02)
    store = ("--advice-store", f"{tmp_path}/a.sqlite")
    done = tutors(command, "--tutor", "tiny", "--tutor-url", url, "--tutor-wait", "0.6", *store)
    assert done.returncode == 2
    assert done.stderr.count("waiting for") == 1
