"""What a run prints: a progress bar, plain lines, JSON, or only errors."""

import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Column, Table
from rich.text import Text

from training.evaluation import Result
from training.reserved_stdout import emit
from tutors.display import printable_lines
from tutors.status_lines import StatusLines
from tutors.terminal import TerminalConsole

Mode = Literal["live", "json", "quiet"]
SECONDS_BETWEEN_LINES = 10.0  # at least, of training: a log is for reading
STEPS = "{task.completed:,}/{task.total:,}"
WIDE, TIMED = 100, 38  # columns of a terminal: for all in one line, for the time that is left


class Progress:
    """Prints nothing; its subclasses print, within a `with` statement, so that an error finds a clean screen."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *raised: object) -> None:
        """Remove the progress bar."""

    def status(self, line: str) -> None:
        """Show what the run waits for; the next status replaces it."""

    def note(self, line: str) -> None:
        """Print a line."""

    def command(self, line: str) -> None:
        """Print a line that is to be copied, so it is not wrapped."""
        self.note(line)

    def update(self, global_step: int) -> None:
        """Show how many env steps are done."""

    def metrics(self, global_step: int, values: Mapping[str, float]) -> None:
        """Show logged values, by tag."""

    def evaluation(self, global_step: int, result: Result) -> None:
        """Show an evaluation of the student alone."""

    def summary(self, summary: Mapping[str, Any], run_dir: Path) -> None:
        """Show the summary of the run."""


QUIET = Progress()


class PlainProgress(Progress):
    """Prints plain lines, for a file."""

    printed_at = -SECONDS_BETWEEN_LINES

    def __init__(self) -> None:
        self.waiting = StatusLines(self.note)

    def status(self, line: str) -> None:
        self.waiting(line)

    def note(self, line: str) -> None:
        print(printable_lines(line), flush=True)

    def metrics(self, global_step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self.printed_at >= SECONDS_BETWEEN_LINES:
            self.printed_at = now
            self.note(f"step {global_step:>9,}  {metrics_line(values)}")

    def evaluation(self, global_step: int, result: Result) -> None:
        self.note(f"step {global_step:>9,}  student alone {result}")

    def summary(self, summary: Mapping[str, Any], run_dir: Path) -> None:
        for name, text in summary_lines(summary, run_dir):
            self.note(f"{name:<14} {text}")


class FittingBar(ProgressBar):
    """A progress bar of which the bar and the total stay at any width; where it is narrow, the rest has a line."""

    def __init__(self, terminal: Console) -> None:
        self.terminal = terminal  # the base class draws in its constructor
        super().__init__(console=terminal, expand=True, transient=True, refresh_per_second=4)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield what is shown now: the terminal may have changed its width."""
        width = self.terminal.width
        columns: list[ProgressColumn] = [BarColumn(None), TextColumn(STEPS, table_column=Column(no_wrap=True))]
        if width >= WIDE:
            columns.append(TextColumn("{task.description}", markup=False))
        if width >= TIMED:
            columns.append(TimeRemainingColumn())
        self.columns = tuple(columns)
        yield self.make_tasks_table(self.tasks)
        if width < WIDE:
            yield from (
                Text(task.description, no_wrap=True, overflow="ellipsis") for task in self.tasks if task.description
            )


class LiveProgress(PlainProgress):
    """Shows a progress bar, lines above it, and a table at the end: for a person at a terminal.

    Args:
        total_steps: env steps of the run.
        begun: env steps that were done before.
        console: where it is shown; the terminal if not given.
    """

    def __init__(self, total_steps: int, begun: int = 0, console: Console | None = None) -> None:
        self.console = console or TerminalConsole()
        self.bar = FittingBar(self.console)
        self.task = self.bar.add_task("", total=total_steps, completed=begun)

    def __enter__(self) -> "LiveProgress":
        self.bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.bar.stop()

    def status(self, line: str) -> None:
        self.bar.update(self.task, description=printable_lines(line))

    def note(self, line: str) -> None:
        self.console.print(printable_lines(line), markup=False)

    def command(self, line: str) -> None:
        self.console.print(printable_lines(line), markup=False, soft_wrap=True)

    def update(self, global_step: int) -> None:
        self.bar.update(self.task, completed=global_step)

    def metrics(self, global_step: int, values: Mapping[str, float]) -> None:
        self.status(metrics_line(values))

    def summary(self, summary: Mapping[str, Any], run_dir: Path) -> None:
        table = Table(box=box.SIMPLE_HEAD, show_header=False)
        for name, text in summary_lines(summary, run_dir):
            table.add_row(name, Text(printable_lines(text)))
        self.console.print(table)


class JsonProgress(Progress):
    """Prints a JSON object per line, for a program: `event` is its kind, and the last one is the summary."""

    def note(self, line: str) -> None:
        self.write("note", {"text": line})

    def metrics(self, global_step: int, values: Mapping[str, float]) -> None:
        self.write("metrics", {"global_step": global_step, **values})

    def evaluation(self, global_step: int, result: Result) -> None:
        self.write("evaluation", {"global_step": global_step, **asdict(result)})

    def summary(self, summary: Mapping[str, Any], run_dir: Path) -> None:
        self.write("summary", {**summary, "run_dir": str(run_dir)})

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Print one object."""
        emit(json.dumps({"event": event, **values}))


def make_progress(mode: Mode, total_steps: int, begun: int = 0) -> Progress:
    """Return the console of a mode; outside a terminal the progress bar becomes plain lines."""
    if mode == "json":
        return JsonProgress()
    if mode == "quiet":
        return QUIET
    return LiveProgress(total_steps, begun) if sys.stdout.isatty() else PlainProgress()


def metrics_line(values: Mapping[str, float]) -> str:
    """Return the values that a person looks at first."""
    parts = [f"{values['charts/SPS']:,.0f} steps/s"]
    if "charts/episodic_return" in values:
        parts.append(f"return {values['charts/episodic_return']:+.2f}")
    if "tutor/trust" in values:
        parts.append(f"trust {values['tutor/trust']:.2f}")
    if "tutor/hit_rate" in values:
        is_wanted = values.get("tutor/consulted", 1) > 0
        parts.append(f"hit rate {values['tutor/hit_rate']:.0%}" if is_wanted else "no advice wanted")
    return "  ".join(parts)


def summary_lines(summary: Mapping[str, Any], run_dir: Path) -> list[tuple[str, str]]:
    """Return the summary of a run as (name, text)."""
    took = timedelta(seconds=round(summary["wall_seconds"]))
    lines = [
        ("student alone", str(Result(**summary["eval"]))),
        ("env steps", f"{summary['global_step']:,} in {took}, {summary['sps']:,.0f} steps/s"),
    ]
    tutor = summary["tutor"]
    if tutor is not None:
        hits = f"the table answered {tutor['hits']:,} ({tutor['hit_rate']:.0%})"
        tokens = tutor["prompt_tokens"] + tutor["answer_tokens"]
        lines += [
            ("advice wanted", f"{tutor['consulted']:,} times; {hits}" if tutor["consulted"] else "never"),
            ("tutor queries", f"{tutor['asked']:,}, {tokens:,} tokens, {tutor['seconds']:,.0f} s"),
        ]
        if tutor["no_advice"]:
            lines.append(("no advice", ", ".join(f"{kind} {count:,}" for kind, count in tutor["no_advice"].items())))
    if (trust := summary.get("trust")) is not None:
        lines.append(("worth of advice", worth_of_advice(trust)))
    return [*lines, ("run directory", str(run_dir))]


def worth_of_advice(trust: Mapping[str, Any]) -> str:
    """Return in one sentence what the tutor was found to be worth."""
    if trust["tutor_return"] is None or trust["baseline_return"] is None:
        return "there was no evidence of what the tutor is worth, so its advice had no effect"
    played = f"in probe episodes the tutor came to {trust['tutor_return']:+.2f}, the student, at its lowest, to "
    played += f"{trust['baseline_return']:+.2f}"
    if trust["counted_from"] is None:
        return f"{played}: not shown to be better than the student, so its advice had no effect"
    return f"{played}: its advice counted from env step {trust['counted_from']:,} to {trust['counted_until']:,}"
