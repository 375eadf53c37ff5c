"""Learning curves as pictures: `python -m experiments plot RUN…`, and the lines that reports draw."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from experiments.stats import Curve, read_curve
from training.config import load_config
from training.resume import settings

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933", "#44aa99", "#332288")


@dataclass(frozen=True)
class PlotOptions:
    """Draw the evaluations of runs: a line per setting, the mean over its seeds with a band from lowest to highest."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories."""
    out: Path = Path("curves.png")
    """The picture: .png, .svg or .pdf."""


def plot(options: PlotOptions) -> None:
    """Draw the evaluations of runs over env steps.

    Raises:
        ValueError: there are no runs, one has no evaluation yet, or the picture cannot be written.
    """
    if not options.runs:
        raise ValueError("no runs: name at least one run directory")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    groups = by_setting(options.runs)
    for number, (name, curves) in enumerate(groups.items()):
        draw_mean(axes, curves, f"{name} ({len(curves)})", COLORS[number % len(COLORS)])
    axes.set(xlabel="env steps", ylabel="mean return, student alone")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    figure.legend(title="setting (runs)", loc="outside lower center", fontsize=8)
    try:
        figure.savefig(options.out, dpi=150)
    except (OSError, ValueError) as error:
        raise ValueError(f"{options.out} cannot be written: {error}") from error
    print(f"{len(options.runs)} runs, {len(groups)} settings: {options.out}")


def by_setting(run_dirs: Sequence[Path]) -> dict[str, list[Curve]]:
    """Return the evaluations of runs, grouped by the settings in which the runs differ apart from the seed.

    Raises:
        ValueError: one has no evaluation yet.
    """
    configs = [dict(settings(asdict(load_config(run_dir)))) for run_dir in run_dirs]
    varied = [name for name in configs[0] if name != "seed" and len({str(one.get(name)) for one in configs}) > 1]
    if "algo" in varied:  # which implies the other settings of the student
        varied = [name for name in varied if not name.startswith("agent.")]
    groups: dict[str, list[Curve]] = {}
    for run_dir, config in zip(run_dirs, configs, strict=True):
        curve = read_curve(run_dir)
        if not curve:
            raise ValueError(f"{run_dir} has no evaluation yet")
        name = ", ".join(f"{setting.rpartition('.')[2]} {config.get(setting)}" for setting in varied)
        groups.setdefault(name or "all", []).append(curve)
    return groups


def draw_mean(axes: Axes, curves: Sequence[Curve], label: str, color: str) -> None:
    """Draw the mean of curves, and a band from the lowest to the highest, over the steps that all of them have.

    Raises:
        ValueError: there are none.
    """
    scores = [dict(curve) for curve in curves]
    steps = [step for step, _ in curves[0] if all(step in known for known in scores)]
    if not steps:
        raise ValueError(f"the runs of {label} have no evaluation at the same step: their mean cannot be drawn")
    columns = [[known[step] for known in scores] for step in steps]
    bounds: list[Any] = [[pick(column) for column in columns] for pick in (min, max)]
    marker = "" if len(steps) > 1 else "o"  # a single point is no line
    axes.plot(steps, [fmean(column) for column in columns], label=label, color=color, linewidth=1.5, marker=marker)
    axes.fill_between(steps, *bounds, alpha=0.15, color=color, linewidth=0)
