"""How fast every stage is: `python -m benchmarks games|training|thresholds|table|tutor|loop|gpu`.

Every number is the median of several runs, each in a process of its own where that matters; the runs of different
programs take turns, so that a disturbance of the machine falls on all of them. A table is printed, and everything
measured written as JSON: to runs/benchmarks/, or with --publish to results/, which README.md shows.
"""

if __name__ == "__main__":
    from training.interrupts import exit_on_interrupt  # before PyTorch is imported

    exit_on_interrupt()

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import subcommand

from benchmarks.advice_table import Table
from benchmarks.common import Benchmark, Row, console, cpu_name, gpu_name
from benchmarks.games import Games
from benchmarks.gpu import Gpu
from benchmarks.loop import Loop
from benchmarks.thresholds import Thresholds
from benchmarks.training import Training
from benchmarks.tutor import Tutor
from training.cli import run_program
from training.config import versions
from training.config_json import to_plain
from tutors.display import without_password

Command = (
    Annotated[Games, subcommand(Games.name)]
    | Annotated[Training, subcommand(Training.name)]
    | Annotated[Thresholds, subcommand(Thresholds.name)]
    | Annotated[Table, subcommand(Table.name)]
    | Annotated[Tutor, subcommand(Tutor.name)]
    | Annotated[Loop, subcommand(Loop.name)]
    | Annotated[Gpu, subcommand(Gpu.name)]
)


def main(benchmark: Benchmark) -> list[Row]:
    """Measure, write the JSON after every measurement, print the table, and return its rows.

    Raises:
        ValueError: an option names what does not exist.
        TutorError: no server answers.
    """
    path = benchmark.path
    machine = versions() | {
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "gpu": gpu_name(),
        "cuda": torch.version.cuda,
    }
    command = f"python -m benchmarks {shlex.join(map(without_password, sys.argv[1:]))}"
    options = to_plain(benchmark, without_password)
    rows: list[Row] = []
    for rows in benchmark.measure():
        write(path, {"command": command, "options": options, "machine": machine, "rows": rows})
    console.print(benchmark.table(rows))
    for error in dict.fromkeys(map(error_of, rows)):
        if error is not None:
            console.print(error, markup=False)
    return rows


def error_of(row: Row) -> str | None:
    """Return whose measurement failed and why, or None."""
    error = row.get("error")
    return None if error is None else f"{row.get('program') or row['way']}: {error}"


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results, whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(results, indent=2, default=str) + "\n")
    unfinished.replace(path)


if __name__ == "__main__":
    run_program(main, Command, description=__doc__)  # type: ignore[arg-type]  # a union of benchmarks
