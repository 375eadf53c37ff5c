"""A study: many runs of train.py that one file describes, and what they come to.

`study.py run` does what is left of a grid and may be stopped at any time; `study.py report` writes what came out.
"""

import csv
import json
import multiprocessing.connection
import os
import shlex
import shutil
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import train
from envs import closest
from grid import ALONE, FIRST, Cell, Grid, Job, read_grid
from measures import Points, area, evaluations, fall, improvement, interval, iqm, late, steps_to, threshold
from run import Config, run_program, tuned_for, versions

console = Console(highlight=False)
PARTS = ("students", "games", "tutors", "guidance", "seeds")
HEADER = (
    *Cell._fields,
    *("seeds", "final", "final_low", "final_high", "area", "area_gain", "area_gain_low", "area_gain_high"),
    *("improvement", "threshold", "reached", "steps_to_threshold", "fall", "spread", "asked", "hit_rate", "seconds"),
)


@dataclass(frozen=True)
class Study:
    """What both commands must know."""

    grid: Path = Path("studies/paper.toml")
    """The file that describes the runs."""
    folder: Path | None = None
    """Where they keep things; runs/study/NAME if not given."""

    students: tuple[str, ...] | None = None
    """Of the grid, these alone; so with the next four."""
    games: tuple[str, ...] | None = None
    """These games."""
    tutors: tuple[str, ...] | None = None
    """These tutors."""
    guidance: tuple[str, ...] | None = None
    """These methods."""
    seeds: tuple[int, ...] | None = None
    """These seeds."""

    def part(self) -> Grid:
        """Return what is to be done of the grid.

        Raises:
            ValueError: it cannot be read, or has no such part.
        """
        grid = read_grid(self.grid)
        wanted = {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}
        for name, parts in wanted.items():
            known = getattr(grid, name)
            for one in parts:
                if one not in known:
                    raise ValueError(closest(f"one of the {name} of {self.grid}", str(one), map(str, known)))
        games, students = (wanted.get(name, getattr(grid, name)) for name in ("games", "students"))
        flags = {name: told for name, told in (grid.flags or {}).items() if name in (*games, *students)}
        begin = {name: steps for name, steps in (grid.begin or {}).items() if name in games}
        return replace(grid, flags=flags, begin=begin, **wanted)

    def place(self) -> Path:
        """Return the folder."""
        return self.folder or Path("runs/study") / self.grid.stem


@dataclass(frozen=True)
class Run(Study):
    """Do the runs that are not finished."""

    jobs: int = 2
    """Runs at once, each with one thread."""
    dry_run: bool = False
    """Print the commands and stop."""


@dataclass(frozen=True)
class Report(Study):
    """Write the study's table, cell by cell, as CSV."""

    out: Path | None = None
    """The CSV; results/study/NAME.csv if not given."""


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
    run_program(train.train, Config, train.__doc__, tuned_for)


def end_with(study: Any) -> None:
    """End this process when the study is gone: one that was killed leaves no runs behind.

    The fork server, whose child this is, would tell nothing: it lives as long as its children do.
    """
    study.join()
    os._exit(1)


def report(told: Report) -> None:
    """Write a row for each cell of which all runs are finished, and say how many are not."""
    grid, place = told.part(), told.place()
    found: dict[Cell, list[tuple[Points, dict[str, Any]]]] = defaultdict(list)
    for job in grid.jobs():
        folder = place / job.name()
        if (folder / "summary.json").exists():
            found[job.cell].append((evaluations(folder), json.loads((folder / "summary.json").read_text())))
    whole = {cell: runs for cell, runs in found.items() if len(runs) == len(grid.seeds)}
    shown = [cell for cell in grid.cells() if cell in whole and cell.baseline() in whole]
    rows = [row_of(cell, whole[cell], whole[cell.baseline()]) for cell in shown]
    if not rows:
        raise ValueError(f"no cell of {told.grid} has all its runs in {place}: python study.py run comes first")
    out = told.out or Path("results/study") / f"{told.grid.stem}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    seconds = sum(summary["wall_seconds"] for runs in found.values() for _, summary in runs)
    with out.open("w", newline="") as file:
        words = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
        made = f"commit {versions()['commit']}, {versions()['machine']}, {seconds / 3600:.1f} hours of runs"
        file.write(f"# {words} # {made}\n")
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)
    verdicts = Counter(verdict(row) for row in rows if row["tutor"] != ALONE)
    console.print(
        f"{out}: {len(rows)} of {len(grid.cells())} cells; {', '.join(f'{n} {v}' for v, n in verdicts.items())}"
    )


def row_of(cell: Cell, runs: list[tuple[Points, dict[str, Any]]], baselines: list[Any]) -> dict[str, Any]:
    """Return what a cell comes to beside its baseline; runs of one seed stand in the same place."""
    curves, alone = [points for points, _ in runs], [points for points, _ in baselines]
    finals, aim = [late(points) for points in curves], threshold(alone)
    gains = [area(ours) - area(theirs) for ours, theirs in zip(curves, alone, strict=True)]
    steps = [steps_to(points, aim) for points in curves]
    tutors = [summary["tutor"] or {} for _, summary in runs]
    consulted = fmean(tutor.get("consulted", 0) for tutor in tutors)
    numbers = (
        len(runs),
        float(iqm(torch.tensor(finals, dtype=torch.float64))),
        *interval(finals, iqm),
        fmean(area(points) for points in curves),
        fmean(gains),
        *interval(gains),
        improvement(finals, [late(points) for points in alone]),
        aim,
        sum(step < float("inf") for step in steps),
        median(steps),
        fmean(fall(points, aim) for points in curves),
        pstdev(finals),
        fmean(tutor.get("asked", 0) for tutor in tutors),
        fmean(tutor.get("hits", 0) for tutor in tutors) / max(consulted, 1),
        fmean(summary["wall_seconds"] for _, summary in runs),
    )
    return dict(zip(HEADER, (*cell, *(round(number, 4) for number in numbers)), strict=True))


def verdict(row: dict[str, Any]) -> str:
    """Return whether a cell's students learned more on their way than those without a tutor: by its interval."""
    if float(row["area_gain_low"]) > 0:
        return "helps"
    return "hurts" if float(row["area_gain_high"]) < 0 else "undecided"


def main(told: Run | Report) -> None:
    """Do what was asked for."""
    run(told) if isinstance(told, Run) else report(told)


if __name__ == "__main__":
    run_program(main, Run | Report, description=__doc__)
