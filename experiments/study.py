"""A study: many runs of train.py that one file describes, and what they come to.

`python -m experiments.study run` does what is left of a grid and may be stopped at any time; `python -m
experiments.study report` writes what came out.
"""

import shlex
import sys
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments import cluster
from experiments.report import Report, report
from experiments.runner import Errand, all_of, here
from experiments.spec import FIRST, Study, read_grid
from training.cli import run_program

console = Console(highlight=False)


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
    console.print(f"{len(todo)} runs are done in {place}; next: python -m experiments.study report", soft_wrap=True)


def main(told: Run | Report) -> None:
    """Do what was asked for."""
    run(told) if isinstance(told, Run) else report(told)


if __name__ == "__main__":
    run_program(main, Run | Report, description=__doc__)
