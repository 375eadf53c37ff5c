"""What a study comes to: numbers for each cell, and what they say of the claims of arXiv:2509.08329."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any, Literal, NamedTuple

import torch

from experiments.spec import ALONE, Cell, Grid
from experiments.stats import (
    Points,
    area,
    evaluations,
    fall,
    improvement,
    interval,
    iqm,
    late,
    log_speedup,
    paired,
    steps_to,
    stratified,
    threshold,
)

PAPER = "override"  # the guidance of the paper
NONE = "0"  # no reuse
By = Literal["points", "clock", "trained"]  # which curve of an Outcome
COMPARABLE = 0.1  # of a baseline's way: final scores that lie closer are comparable


ABOUT_THRESHOLD = (  # columns of a table
    *("threshold", "reached", "steps_to_threshold", "seconds_to_threshold"),
    *("speedup", "speedup_low", "speedup_high", "fall"),
)


class Outcome(NamedTuple):
    """What one run came to."""

    points: Points  # its evaluations, over env steps
    clock: Points  # the same over seconds
    trained: Points  # over env steps, the mean returns of the games it trained in, with its tutor's actions in them
    seconds: float  # that it took, without those of a run that it went on with
    tutor: dict[str, Any]  # what was counted of it
    versions: dict[str, str]


class Gain(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Claim(NamedTuple):
    """A claim of the paper, what these data say of it, and the number behind that."""

    words: str
    verdict: str
    number: str


@dataclass(frozen=True)
class Findings:
    """All cells that have all their runs, as their baselines have."""

    grid: Grid
    runs: dict[Cell, list[Outcome]]

    def cells(self) -> list[Cell]:
        """Return them in the grid's order."""
        return [cell for cell in self.grid.cells() if {cell, cell.baseline()} <= self.runs.keys()]

    def tutored(self) -> list[Cell]:
        """Return those with a tutor."""
        return [cell for cell in self.cells() if cell.tutor != ALONE]

    def curves(self, cell: Cell, by: By = "points") -> list[Points]:
        """Return the evaluations of a cell's runs over env steps, or other curves of theirs."""
        return [getattr(run, by) for run in self.runs[cell]]

    def aim(self, cell: Cell, by: By = "points") -> float:
        """Return the score that counts as learned."""
        return threshold(self.curves(cell.baseline(), by))

    def way(self, cell: Cell, by: By = "points") -> tuple[float, float]:
        """Return where the baselines begin and how far they come, on average."""
        alone = self.curves(cell.baseline(), by)
        first = fmean(points[0][1] for points in alone)
        return first, fmean(late(points) for points in alone) - first

    def learns(self, cell: Cell, by: By = "points") -> bool:
        """Return whether the baselines come any further than they begin."""
        alone = self.curves(cell.baseline(), by)
        return all([*alone, *self.curves(cell, by)]) and self.way(cell, by)[1] > 0

    def arrived(self, cell: Cell) -> list[bool]:
        """Return which runs of a cell come to the threshold."""
        return [steps_to(points, self.aim(cell)) < math.inf for points in self.curves(cell)]

    def shares(self, cell: Cell) -> list[float]:
        """Return the final scores as shares of the baseline's way."""
        first, way = self.way(cell)
        return [(late(points) - first) / way for points in self.curves(cell)]

    def ahead(self, cell: Cell) -> list[float]:
        """Return the final scores less those of the baseline's runs of the same seeds, as shares of its way."""
        return [gain / self.way(cell)[1] for gain in self.gains(cell, late)]

    def gains(self, cell: Cell, of: Callable[[Points], float]) -> list[float]:
        """Return a measure of the curves less that of the baseline's runs of the same seeds."""
        pairs = zip(self.curves(cell), self.curves(cell.baseline()), strict=True)
        return [of(ours) - of(theirs) for ours, theirs in pairs]

    def speedups(self, ours: Cell, theirs: Cell, by: By = "points") -> list[float]:
        """Return the logarithm of how much sooner each run of a cell came to the threshold, by one of its curves."""
        pairs = zip(self.curves(ours, by), self.curves(theirs, by), strict=True)
        return [log_speedup(one, other, self.aim(ours, by)) for one, other in pairs]

    def spread(self, cell: Cell) -> float:
        """Return how far the final scores of the seeds lie apart: their standard deviation."""
        return pstdev(late(points) for points in self.curves(cell))

    def told(self, cell: Cell, what: str) -> float:
        """Return what the tutors of a cell's runs counted, on average."""
        return fmean(run.tutor.get(what, 0) for run in self.runs[cell])

    def no_advice(self, cell: Cell) -> float:
        """Return how many of their questions nobody answered, on average."""
        return fmean(sum(run.tutor.get("no_advice", {}).values()) for run in self.runs[cell])


def findings(grid: Grid, place: Path) -> Findings:
    """Return what the runs of a grid came to, of which a study has left those that are finished in `place`.

    Raises:
        ValueError: there is no cell of which all runs are finished, and those of its baseline; or a run is another
            study's.
    """
    runs: dict[Cell, list[Outcome]] = defaultdict(list)
    for job in grid.jobs():
        if (place / job.name() / "summary.json").exists():
            first = grid.first(job)
            runs[job.cell].append(outcome(place / job.name(), grid.steps_of(job), first and place / first.name()))
    found = Findings(grid, {cell: several for cell, several in runs.items() if len(several) == len(grid.seeds)})
    if not found.cells():
        raise ValueError(f"no cell has all its runs in {place}: python -m experiments.study run comes first")
    return found


def outcome(folder: Path, steps: int, first: Path | None = None) -> Outcome:
    """Return what the run of so many env steps in a folder came to, which went on with that in the folder `first`.

    Raises:
        ValueError: it is one of more or fewer steps.
    """
    summary, config = (json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "config"))
    if config["total_steps"] != steps:
        raise ValueError(
            f"the run in {folder} is one of {config['total_steps']:,} env steps, and the study's are of {steps:,}: "
            "a study that was changed wants another --folder"
        )
    before = json.loads((first / "summary.json").read_text())["wall_seconds"] if first else 0
    return Outcome(
        points=evaluations(folder),
        clock=[(seconds - before, score) for seconds, score in evaluations(folder, "wall_seconds")],
        trained=evaluations(folder, tag="charts/episodic_return"),
        seconds=summary["wall_seconds"] - before,
        tutor=summary["tutor"] or {},
        versions=config["versions"],
    )


def row_of(found: Findings, cell: Cell) -> dict[str, Any]:
    """Return what a cell comes to beside its baseline.

    What is about the threshold is None where the baselines get no better: they have none.
    """
    curves, alone, aim = found.curves(cell), found.curves(cell.baseline()), found.aim(cell)
    finals = [late(points) for points in curves]
    ahead, gains = found.gains(cell, late), found.gains(cell, area)
    speed = speed_of(found, [cell], Cell.baseline)
    consulted = found.told(cell, "consulted")
    numbers = {
        "seeds": len(curves),
        "final": float(iqm(torch.tensor(finals, dtype=torch.float64))),
        **dict(zip(("final_low", "final_high"), interval(finals, iqm), strict=True)),
        "final_gain": fmean(ahead),
        **dict(zip(("final_gain_low", "final_gain_high"), paired(ahead), strict=True)),
        "area": fmean(area(points) for points in curves),
        "area_gain": fmean(gains),
        **dict(zip(("area_gain_low", "area_gain_high"), paired(gains), strict=True)),
        "improvement": improvement(finals, [late(points) for points in alone]),
        "threshold": aim,
        "reached": sum(found.arrived(cell)),
        "steps_to_threshold": median(steps_to(points, aim) for points in curves),
        "seconds_to_threshold": median(steps_to(run.clock, aim) for run in found.runs[cell]),
        **dict(zip(("speedup", "speedup_low", "speedup_high"), speed, strict=True)),
        "fall": fmean(fall(points, aim) for points in curves),
        "spread": found.spread(cell),
        "asked": found.told(cell, "asked"),
        "hit_rate": found.told(cell, "hits") / max(consulted, 1),
        "no_advice": found.no_advice(cell) / max(found.told(cell, "asked"), 1),
        "tokens": found.told(cell, "prompt_tokens") + found.told(cell, "answer_tokens"),
        "seconds": fmean(run.seconds for run in found.runs[cell]),
    }
    learns, rounded = found.learns(cell), {name: round(number, 4) for name, number in numbers.items()}
    return cell._asdict() | rounded | ({} if learns else dict.fromkeys(ABOUT_THRESHOLD))


def speed_of(found: Findings, cells: Sequence[Cell], other: Callable[[Cell], Cell], by: By = "points") -> Gain:
    """Return how much sooner some cells came to the threshold than others, the geometric mean over all their runs."""
    groups = [found.speedups(cell, other(cell), by) for cell in cells]
    middle = fmean(value for values in groups for value in values)
    return Gain(*(math.exp(value) for value in (middle, *stratified(groups, baselines(cells)))))


def baselines(cells: Sequence[Cell]) -> list[Cell]:
    """Return the strata of some cells: those with the same baseline are compared with the same runs of it."""
    return [cell.baseline() for cell in cells]


def gain_of(groups: Sequence[Sequence[float]], cells: Sequence[Cell]) -> Gain:
    """Return the mean of all values, which are those of some cells' runs."""
    return Gain(fmean(value for values in groups for value in values), *stratified(groups, baselines(cells)))


def claims(found: Findings) -> list[Claim]:
    """Return the paper's claims, and what the cells that do as the paper did say of them: nothing, with one seed."""
    cells = [cell for cell in found.tutored() if cell.guidance == PAPER and found.learns(cell)]
    budgets = [budget for budget in found.grid.reuse if budget not in (NONE, "inf")]
    published = [cell for cell in cells if cell.reuse in (NONE, *budgets)] or cells
    if not published or len(found.grid.seeds) == 1:
        return []
    speed = speed_of(found, published, Cell.baseline)
    finals = gain_of([found.ahead(cell) for cell in published], published)
    said = [
        Claim("tutoring accelerates convergence", above(speed, 1), f"speed-up {speed}, {len(published)} cells"),
        Claim(
            "at comparable final performance",
            near(finals, COMPARABLE),
            f"final score less the baseline's, as a share of its way: {finals}",
        ),
    ]
    if played := [cell for cell in published if found.learns(cell, "trained")]:
        speed = speed_of(found, played, Cell.baseline, "trained")
        words = "tutoring accelerates convergence, by the games of training"
        said.insert(1, Claim(words, above(speed, 1), f"speed-up {speed}, with the tutor's actions in them"))
    for budget in budgets:
        if pairs := [cell for cell in cells if cell.reuse == budget and unused(cell) in found.runs]:
            said += reuse_claims(found, pairs, budget)
    for part in ("game", "student", "tutor"):
        levels: dict[str, list[Cell]] = defaultdict(list)
        for cell in published:
            levels[getattr(cell, part)].append(cell)
        if len(levels) > 1:
            speeds = {name: speed_of(found, several, Cell.baseline) for name, several in levels.items()}
            apart = max(one.low for one in speeds.values()) > min(one.high for one in speeds.values())
            number = ", ".join(f"{name} {one}" for name, one in speeds.items())
            said.append(Claim(f"the effect depends on the {part}", "supported" if apart else "undecided", number))
    return said


def reuse_claims(found: Findings, cells: Sequence[Cell], budget: str) -> list[Claim]:
    """Return what a reuse budget does beside none, paired by seed."""
    without = [unused(cell) for cell in cells]
    steps, seconds = speed_of(found, cells, unused), speed_of(found, cells, unused, "clock")
    falls = falls_of(found, cells, unused)
    asked = [sum(found.told(cell, "asked") for cell in several) for several in (cells, without)]
    same = sum(found.curves(cell) == found.curves(other) for cell, other in zip(cells, without, strict=True))
    number = f"{steps} times sooner in env steps; {same} of {len(cells)} cells have the very same curves"
    wall = f"{seconds} times sooner in seconds, {asked[0] / max(asked[1], 1):.0%} of the questions"
    return [
        Claim(f"reuse {budget} shortens training further, in env steps", above(steps, 1), number),
        Claim(f"reuse {budget} shortens training further, by the clock", above(seconds, 1), wall),
        Claim(
            f"reuse {budget} makes convergence less stable",
            above(falls, 0),
            f"fall after the threshold less that without reuse, as a share of the baseline's way: {falls}",
        ),
    ]


def falls_of(found: Findings, cells: Sequence[Cell], other: Callable[[Cell], Cell]) -> Gain:
    """Return how much further students of some cells fall than those of others, as a share of the baseline's way."""
    groups = []
    for cell in cells:
        aim, (_, way) = found.aim(cell), found.way(cell)
        ours, theirs = ([fall(points, aim) for points in found.curves(one)] for one in (cell, other(cell)))
        groups.append([(one - two) / way for one, two in zip(ours, theirs, strict=True)])
    return gain_of(groups, cells)


def unused(cell: Cell) -> Cell:
    """Return the cell that differs in reuse alone, and has none."""
    return cell._replace(reuse=NONE)


def above(gain: Gain, nothing: float) -> str:
    """Return whether a number's interval lies above what would be no effect."""
    return "supported" if gain.low > nothing else "not supported" if gain.high <= nothing else "undecided"


def near(gain: Gain, margin: float) -> str:
    """Return whether a number's interval lies within a margin of 0."""
    apart = gain.low >= margin or gain.high <= -margin
    return "supported" if -margin < gain.low <= gain.high < margin else "not supported" if apart else "undecided"
