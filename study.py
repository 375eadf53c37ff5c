"""A study: many runs of train.py that one file describes, and what they come to.

`study.py run` does what is left of a grid and may be stopped at any time; `study.py report` writes what came out.
"""

import csv
import json
import shlex
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import cluster
from envs import closest
from grid import ALONE, FIRST, Cell, Grid, read_grid
from jobs import Errand, all_of, here
from measures import Points, area, evaluations, fall, improvement, interval, iqm, late, steps_to, threshold
from run import run_program, versions

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
    """Runs at once on this machine, each with one thread."""
    tutor_url: tuple[str, ...] = ()
    """Where servers answer. Without it, one is sought at http://127.0.0.1:8000 and started for its tutor's runs."""
    advice_store: str | None = None
    """Of all runs with --reuse inf; advice.sqlite in the folder if not given and all runs are on this machine."""
    ray: str | None = None
    """The address of a Ray cluster that does the runs, one a CPU, or auto: the one that this machine belongs to."""
    slurm: bool = False
    """Print a script for sbatch that does the runs, and stop."""
    only: int | None = None
    """This run alone, by its line in what --dry-run prints of the whole study."""
    dry_run: bool = False
    """Print the commands and stop."""

    def errands(self) -> list[Errand]:
        """Return all runs, done or not, with their commands.

        Raises:
            ValueError: the grid cannot be read, or has no such run.
        """
        grid, place = self.part(), self.place()
        store = self.advice_store
        if store is None and self.ray is None and not self.slurm and self.only is None:
            store = str(place / "advice.sqlite")  # SQLite wants all that write to it on one machine
        numbers = {job: number for number, job in enumerate(read_grid(self.grid).jobs(), 1)}
        found = []
        for job in grid.jobs():
            folder, first = place / job.name(), grid.first(job)
            arguments = grid.arguments(job, folder, store)
            found.append(Errand(numbers[job], job, arguments, folder, first and place / first.name()))
        if self.only is None:
            return found
        alone = [one for one in found if one.number == self.only]
        if not alone:
            raise ValueError(f"the study has no run {self.only}; the last is {len(numbers)}")
        return alone

    def words(self) -> list[str]:
        """Return the command that, with --only, does one of the runs on another machine."""
        flags = ["--tutor-url", *self.tutor_url] if self.tutor_url else []
        store = [] if self.advice_store is None else ["--advice-store", self.advice_store]
        return cluster.command(self.grid, self.place(), *flags, *store)


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
    place, todo = told.place(), told.errands()
    if told.dry_run:
        for one in todo:
            print(shlex.join(["python", "train.py", *one.asking(told.tutor_url).arguments]))
        return
    left = [one for one in todo if not one.is_done()]
    if not told.tutor_url and (told.slurm or told.ray is not None):
        for tutor in {one.tutor() for one in left} - {None}:
            raise ValueError(f"runs elsewhere cannot start a server each: --tutor-url must say where {tutor} answers")
    firsts = [one for one in left if one.job.cell.guidance == FIRST]  # what others go on with
    if told.slurm:
        if not left:
            raise ValueError("no run is left to do")
        print(cluster.slurm_script(firsts or left, told.words(), place), end="")
        if firsts:
            print("these are the runs that others go on with; when they are done, ask once more", file=sys.stderr)
        return
    do = partial(here, most=told.jobs)
    if told.ray is not None:
        do = partial(cluster.over_ray, words=told.words(), address=told.ray)
    (place / "logs").mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    failed = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(place.name, total=len(todo), completed=len(todo) - len(left))
        say = partial(progress.update, task)
        for part in (firsts, [one for one in left if one.job.cell.guidance != FIRST]):
            for one, code in all_of(part, told.tutor_url, place / "logs", lambda line: say(description=line), do):
                progress.update(task, advance=1, description=place.name)
                if code:
                    failed += 1
                    progress.console.print(f"failed with exit code {code}: see {one.log()}", soft_wrap=True)
    if failed:
        raise ValueError(f"{failed} of {len(todo)} runs failed; the same command tries them again")


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
