"""A study: many runs of train.py that one file describes, and what they come to.

`study.py run` does what is left of a grid and may be stopped at any time; `study.py report` writes what came out.
"""

import multiprocessing.connection
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import train
from grid import FIRST, Job, Study
from run import Config, run_program, tuned_for
from writeup import Report, report

console = Console(highlight=False)


@dataclass(frozen=True)
class Run(Study):
    """Do the runs that are not finished."""

    jobs: int = 2
    """Runs at once, each with one thread."""
    dry_run: bool = False
    """Print the commands and stop."""


def run(told: Run) -> None:
    """Do what is left of the grid.

    Raises:
        ValueError: the grid cannot be read; or some runs failed, when all others are done.
    """
    if told.jobs < 1:
        raise ValueError(f"jobs is {told.jobs}; it must be at least 1")
    grid, place = told.part(), told.place()
    store = place / "advice.sqlite"
    todo = [(job, grid.arguments(job, place / job.name(), store)) for job in grid.jobs()]
    if told.dry_run:
        for _, arguments in todo:
            print(shlex.join(["python", "train.py", *arguments]))
        return
    left = [one for one in todo if not (place / one[0].name() / "summary.json").exists()]
    (place / "logs").mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    failed = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(place.name, total=len(todo), completed=len(todo) - len(left))
        for turn in (True, False):  # what others go on with comes first
            part = [one for one in left if (one[0].cell.guidance == FIRST) == turn]
            for job, code in all_of(part, place, told.jobs):
                progress.advance(task)
                if code:
                    failed.append(job.name())
                    log = place / "logs" / f"{job.name()}.txt"
                    progress.console.print(f"failed with exit code {code}: see {log}", soft_wrap=True)
    if failed:
        raise ValueError(f"{len(failed)} of {len(todo)} runs failed; the same command tries them again")


def all_of(todo: list[tuple[Job, list[str]]], place: Path, most: int) -> Iterator[tuple[Job, int]]:
    """Do all jobs, `most` at once, and yield each with its exit code as it ends.

    A job is a process of its own, born from one that has imported train.py once.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    births = multiprocessing.get_context("forkserver")
    births.set_forkserver_preload(["train"])
    waiting, busy = list(reversed(todo)), dict[Any, Job]()
    try:
        while waiting or busy:
            while waiting and len(busy) < most:
                job, arguments = waiting.pop()
                shutil.rmtree(place / job.name(), ignore_errors=True)  # what a study that was stopped has left
                child = births.Process(target=work, args=(arguments, place / "logs" / f"{job.name()}.txt"))
                child.start()
                busy[child] = job
            multiprocessing.connection.wait([child.sentinel for child in busy])
            for child in [child for child in busy if not child.is_alive()]:
                yield busy.pop(child), child.exitcode or 0
    finally:
        for child in busy:
            child.terminate()
        for child in busy:
            child.join()


def work(arguments: list[str], log: Path) -> None:
    """Be train.py with these flags, and write what it prints into `log`."""
    threading.Thread(target=end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["train.py", *arguments]
    run_program(train.main, Config, train.__doc__, tuned_for)


def end_with(study: Any) -> None:
    """End this process when the study is gone: one that was killed leaves no runs behind.

    The fork server, whose child this is, would tell nothing: it lives as long as its children do.
    """
    study.join()
    os._exit(1)


def main(told: Run | Report) -> None:
    """Do what was asked for."""
    run(told) if isinstance(told, Run) else report(told)


if __name__ == "__main__":
    run_program(main, Run | Report, description=__doc__)
