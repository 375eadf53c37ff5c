"""Experiments of many runs: run a study, report it, search hyper-parameters, plot runs, push one, or see a demo."""

if __name__ == "__main__":
    from training.interrupts import exit_on_interrupt  # before PyTorch is imported

    exit_on_interrupt()

from typing import Annotated, Any

import tyro

from experiments.demo import DemoOptions, demo
from experiments.plot import PlotOptions, plot
from experiments.push import PushOptions, push
from experiments.report import ReportOptions, report
from experiments.runner import RunOptions, run
from experiments.search import SearchOptions, search
from training.cli import run_program

Command: Any = (
    Annotated[RunOptions, tyro.conf.subcommand("run")]
    | Annotated[ReportOptions, tyro.conf.subcommand("report")]
    | Annotated[SearchOptions, tyro.conf.subcommand("search")]
    | Annotated[PlotOptions, tyro.conf.subcommand("plot")]
    | Annotated[PushOptions, tyro.conf.subcommand("push")]
    | Annotated[DemoOptions, tyro.conf.subcommand("demo")]
)
RENAMED = {  # flags of versions 0.x and what replaced them
    "--grid": "the study file alone, as in `run experiments/configs/laptop.toml`",
    "--folder": "--output-dir",
    "--students": "--algos",
    "--games": "--envs",
    "--points": "--num-evals",
}


def main(options: RunOptions | ReportOptions | SearchOptions | PlotOptions | PushOptions | DemoOptions) -> None:
    """Execute the subcommand whose options were given."""
    match options:
        case RunOptions():
            run(options)
        case ReportOptions():
            report(options)
        case SearchOptions():
            search(options)
        case PlotOptions():
            plot(options)
        case PushOptions():
            push(options)
        case DemoOptions():
            demo(options)


if __name__ == "__main__":
    run_program(main, Command, description=__doc__, renamed=RENAMED)
