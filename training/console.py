"""What a run shows while it goes on: one line that moves, plain lines, JSON, or nothing but errors."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from training.evaluation import Result

Way = Literal["live", "json", "quiet"]
EVERY = 10.0  # seconds between two plain lines of training, at least: a log is for reading
STEPS = "{task.completed:,}/{task.total:,}"


class Progress:
    """Shows nothing; its kinds show something, within a `with` statement, so that an error finds a clean screen."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *raised: object) -> None:
        """End what moves."""

    def say(self, line: str) -> None:
        """Say what is waited for; the next word takes its place."""

    def tell(self, line: str) -> None:
        """Say something that stays."""

    def at(self, global_step: int) -> None:
        """Say how far the run has come."""

    def report(self, global_step: int, values: Mapping[str, float]) -> None:
        """Show what was logged, by tag."""

    def evaluation(self, global_step: int, result: Result) -> None:
        """Show how good the student is alone."""

    def end(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Show what the run came to."""


QUIET = Progress()


class Lines(Progress):
    """Plain lines, for a file."""

    told_at = -EVERY

    def tell(self, line: str) -> None:
        print(line, flush=True)

    def report(self, global_step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self.told_at >= EVERY:
            self.told_at = now
            self.tell(f"step {global_step:>9,}  {in_short(values)}")

    def evaluation(self, global_step: int, result: Result) -> None:
        self.tell(f"step {global_step:>9,}  student alone {result}")

    def end(self, summary: Mapping[str, Any], folder: Path) -> None:
        for name, said in account(summary, folder):
            self.tell(f"{name:<14} {said}")


class Live(Lines):
    """One line that moves, above it what stays, and a table at the end: for a person at a terminal.

    Args:
        total_steps: how far the run goes.
        begun: the env step from which it goes on.
        console: where it is shown.
    """

    def __init__(self, total_steps: int, begun: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        columns = (BarColumn(None), TextColumn(STEPS), TextColumn("{task.description}", markup=False))
        self.bar = Bar(
            *columns, TimeRemainingColumn(), console=self.console, expand=True, transient=True, refresh_per_second=4
        )
        self.task = self.bar.add_task("", total=total_steps, completed=begun)

    def __enter__(self) -> "Live":
        self.bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        self.bar.update(self.task, description=line)

    def tell(self, line: str) -> None:
        self.console.print(line, markup=False)

    def at(self, global_step: int) -> None:
        self.bar.update(self.task, completed=global_step)

    def report(self, global_step: int, values: Mapping[str, float]) -> None:
        self.say(in_short(values))

    def end(self, summary: Mapping[str, Any], folder: Path) -> None:
        table = Table(box=box.SIMPLE_HEAD, show_header=False)
        for name, said in account(summary, folder):
            table.add_row(name, said)
        self.console.print(table)


class Json(Progress):
    """A JSON object a line, for a program: its `event` says what it is, and the last one is the summary."""

    def tell(self, line: str) -> None:
        self.write("note", {"text": line})

    def report(self, global_step: int, values: Mapping[str, float]) -> None:
        self.write("report", {"global_step": global_step, **values})

    def evaluation(self, global_step: int, result: Result) -> None:
        self.write("evaluation", {"global_step": global_step, **asdict(result)})

    def end(self, summary: Mapping[str, Any], folder: Path) -> None:
        self.write("summary", {**summary, "folder": str(folder)})

    def write(self, event: str, told: Mapping[str, Any]) -> None:
        """Print one object."""
        print(json.dumps({"event": event, **told}), flush=True)


def progress_for(way: Way, total_steps: int, begun: int = 0) -> Progress:
    """Return what was asked for: the line that moves becomes plain lines where no terminal is."""
    if way == "json":
        return Json()
    if way == "quiet":
        return QUIET
    return Live(total_steps, begun) if sys.stdout.isatty() else Lines()


def in_short(values: Mapping[str, float]) -> str:
    """Return the numbers that a person looks at first."""
    said = [f"{values['charts/SPS']:,.0f} steps/s"]
    if "charts/episodic_return" in values:
        said.append(f"return {values['charts/episodic_return']:+.2f}")
    if "tutor/hit_rate" in values:
        said.append(f"hit rate {values['tutor/hit_rate']:.0%}")
    return "  ".join(said)


def account(summary: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Return what a run came to, as lines of (what, how much)."""
    took = timedelta(seconds=round(summary["wall_seconds"]))
    lines = [
        ("student alone", str(Result(**summary["eval"]))),
        ("env steps", f"{summary['global_step']:,} in {took}, {summary['sps']:,.0f} a second"),
    ]
    tutor = summary["tutor"]
    if tutor is not None:
        known = f"the table knew {tutor['hits']:,} ({tutor['hit_rate']:.0%})"
        tokens = tutor["prompt_tokens"] + tutor["answer_tokens"]
        lines += [
            ("advice wanted", f"{tutor['consulted']:,} times; {known}"),
            ("tutor asked", f"{tutor['asked']:,} questions, {tokens:,} tokens, {tutor['seconds']:,.0f} s"),
        ]
        if tutor["no_advice"]:
            lines.append(("no advice", ", ".join(f"{kind} {count:,}" for kind, count in tutor["no_advice"].items())))
    return [*lines, ("kept in", str(folder))]
