"""A study's report, as Markdown and as one page of HTML with its pictures in it, and the table that it comes from."""

import base64
import csv
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import markdown
import torch
from matplotlib.figure import Figure
from rich.console import Console

from experiments.analysis import (
    NONE,
    Claim,
    Findings,
    Gain,
    baselines,
    claims,
    falls_of,
    findings,
    row_of,
    speed_of,
    unused,
)
from experiments.spec import ALONE, FIRST, Cell, Study
from experiments.stats import REACHED, Points, area, improvement, iqm, late, paired, stratified

console = Console(highlight=False)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933", "#44aa99", "#332288")
DEFINITIONS = f"""\
A **cell** is a game, a student, a tutor, what is done with its advice, and a reuse budget; its runs differ in the
seed. Its **baseline** is the same student without a tutor; what is compared is paired by seed. All scores are those
of the greedy student alone, without advice, in games of its own. The **final** score is the mean of the last quarter
of a run's evaluations. The **threshold** lies where {REACHED:.0%} of the baseline's way is done, from its first
evaluation to its final score, means over seeds; where a baseline gets no better there is none. A **speed-up** is the
baseline's env steps to the threshold over the cell's, the geometric mean over seeds. A run that never comes to it
counts as if it did at its end: so the number is a lower bound where baselines did not (≥), an upper bound where the
cell's runs did not (≤), and neither where both did not (~). **By the games of training** it is worked out in the
same way from their mean returns, in which a tutored student's actions are partly its tutor's. The **area** is the
mean height of a curve. A **fall** is the longest way down from the best score so far, once the threshold was
reached; the **spread** is the standard deviation of the final scores over seeds. Scores of several games are put
together as shares of the baseline's way: 0 is where it begins, 1 where it ends. The **chance to be better** is that
of a run's final score against one of the baseline's. **No advice** is the share of questions that
the tutor did not answer. Brackets hold 95 % intervals of the bootstrap over seeds (10,000 resamples): seeds are
drawn anew for each student of each game, together for all cells that share its baseline. Such intervals of one cell's
few seeds are too narrow: where nothing differs, those of three seeds leave 0 out in a quarter of all cases, those of
five in a sixth. What stands **beside the same student alone** is the mean difference between runs of the same seeds,
with an interval by Student's t, in bold where that leaves out 0. IQM is the interquartile mean (Agarwal et al. 2021,
arXiv:2108.13264)."""
STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.85rem; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: 0.2rem 0.7rem; text-align: left; vertical-align: top }
code { background: #f3f3f3; padding: 0 0.2rem; overflow-wrap: anywhere }
img { max-width: 100% }
h2 { margin-top: 2.5rem }"""


@dataclass(frozen=True)
class Report(Study):
    """Write what came out: cells.csv, report.md and report.html, and its pictures."""

    out: Path | None = None
    """The folder for it; results/study/NAME if not given."""


def report(told: Report) -> None:
    """Write a table and a report of all cells of which all runs are finished, and say how many are not.

    Raises:
        ValueError: there is no such cell.
    """
    grid, place = told.part(), told.place()
    found = findings(grid, place)
    out = told.out or Path("results/study") / told.grid.stem
    out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    rows = [row_of(found, cell) for cell in found.cells()]
    with (out / "cells.csv").open("w", newline="") as file:
        file.write(f"# {command} # {made(found)}\n")
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    pictures, said = draw(found, out), claims(found)
    text = written(found, told.grid.stem, command, said, pictures)
    (out / "report.md").write_text(text)
    (out / "report.html").write_text(page(text, pictures))
    console.print(f"{out}: {len(rows)} of {len(grid.cells())} cells; open {out / 'report.html'}", soft_wrap=True)
    for claim in said:
        console.print(f"{claim.verdict}: {claim.words}: {claim.number}", soft_wrap=True)


def made(found: Findings) -> str:
    """Return where the runs of the tables come from: their commits, their machine and how long they took."""
    cells = {*found.cells(), *(cell for cell in found.runs if cell.guidance == FIRST)}
    runs = [run for cell in cells for run in found.runs[cell]]
    commits, pythons, torches, machines = (
        ", ".join(sorted({run.versions[part] for run in runs})) for part in ("commit", "python", "torch", "machine")
    )
    hours = sum(run.seconds for run in runs) / 3600
    origin = f"commit {commits}, Python {pythons}, PyTorch {torches}, {machines}"
    return f"{origin}, {len(runs)} runs, {hours:.1f} hours in all"


def written(found: Findings, name: str, command: str, said: Sequence[Claim], pictures: Sequence[Path]) -> str:
    """Return the report as Markdown."""
    cells, grid = found.cells(), found.grid
    steps = ", ".join(f"{game} {grid.steps[game]:,}" for game in grid.games)
    parts = [
        f"# The study {name}",
        f"Made by `{command}`: {made(found)}. {len(cells)} of {len(grid.cells())} cells; "
        f"seeds: {', '.join(map(str, grid.seeds))}; env steps: {steps}.",
    ]
    if said:
        parts += ["## What these data say of the paper's claims", table(("claim", "these data", "by"), said)]
    parts += ["## How the students learn", *(f"![{one.stem}]({one.name})" for one in pictures)]
    lines = f"Lines are means over seeds, with reuse {grid.reuse[-1]}; bands go from the lowest to the highest."
    parts.append(lines)
    if len(grid.guidance) > 1:
        parts += ["## Beside the same student alone", *(part for game in grid.games for part in beside(found, game))]
    parts.append("## Speed-ups")
    parts += [part for game in grid.games if (part := speeds(found, game))]
    parts += ["## Over all games and students", over_all(found)]
    learning = [cell for cell in found.tutored() if found.learns(cell)]
    if pairs := [cell for cell in learning if cell.reuse != NONE and unused(cell) in found.runs]:
        parts += ["## Reuse beside no reuse", reuse(found, pairs)]
    parts += ["## What the questions cost, a run", costs(found), "## What the words mean", DEFINITIONS]
    return "\n\n".join(parts) + "\n"


def page(text: str, pictures: Sequence[Path]) -> str:
    """Return the report as one page of HTML."""
    title = text.splitlines()[0].removeprefix("# ")
    for one in pictures:
        text = text.replace(f"]({one.name})", f"](data:image/png;base64,{base64.b64encode(one.read_bytes()).decode()})")
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>\n{STYLE}\n</style>\n'
    return f"{head}{markdown.markdown(text, extensions=['tables'])}\n</html>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def beside(found: Findings, game: str) -> list[str]:
    """Return what each method of guidance changes for the students of a game, a column for each tutor, as Markdown."""
    cells = [cell for cell in found.tutored() if cell.game == game and cell.reuse == found.grid.reuse[-1]]
    tutors = [tutor for tutor in found.grid.tutors if any(cell.tutor == tutor for cell in cells)]
    parts = []
    for words, measure in (("Area", area), ("Final score", late)):
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for cell in cells:
            gains = found.gains(cell, measure)
            rows.setdefault((cell.student, f"`{cell.guidance}`"), {})[cell.tutor] = signed(fmean(gains), *paired(gains))
        lines = [[*name, *(row.get(tutor, "") for tutor in tutors)] for name, row in rows.items()]
        parts += [f"### {game}: {words.lower()}", table(("student", "guidance", *tutors), lines)] if lines else []
    return parts


def signed(gain: float, low: float, high: float) -> str:
    """Return a difference and its interval, in bold where that leaves out 0."""
    told = f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{told}**" if low > 0 or high < 0 else told


def speeds(found: Findings, game: str) -> str:
    """Return how much sooner tutored students of a game come to the threshold; nothing where there are none."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for cell in found.tutored():
        if cell.game == game:
            rows.setdefault((cell.student, cell.tutor, f"`{cell.guidance}`"), {})[cell.reuse] = bounded(found, cell)
    alone = [cell for cell in found.cells() if cell.game == game and cell.tutor == ALONE and found.learns(cell)]
    times = [f"{cell.student} {sum(found.arrived(cell))} of {len(found.grid.seeds)}" for cell in alone]
    said = f"### {game}\n\nAlone, these come to the threshold: {', '.join(times) or 'none'}."
    head = ("student", "tutor", "guidance", *(f"reuse {budget}" for budget in found.grid.reuse))
    lines = [[*name, *(row.get(budget, "") for budget in found.grid.reuse)] for name, row in rows.items()]
    return f"{said}\n\n{table(head, lines)}" if lines else ""


def bounded(found: Findings, cell: Cell) -> str:
    """Return a cell's speed-up, and what kind of bound it is; a dash where the student alone gets no better."""
    if not found.learns(cell):
        return "–"
    ours, alone = (all(found.arrived(one)) for one in (cell, cell.baseline()))
    sign = {(True, True): "", (True, False): "≥ ", (False, True): "≤ ", (False, False): "~ "}[ours, alone]
    return f"{sign}{speed_of(found, [cell], Cell.baseline)}"


def over_all(found: Findings) -> str:
    """Return what each tutor, guidance and reuse budget comes to over all games and students that learn alone."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in found.tutored():
        if found.learns(cell):
            groups.setdefault((cell.tutor, f"`{cell.guidance}`", cell.reuse), []).append(cell)
    head = ("tutor", "guidance", "reuse", "cells", "speed-up", "IQM of final scores, shares", "chance to be better")
    rows = []
    for name, cells in groups.items():
        shares = [found.shares(cell) for cell in cells]
        values = torch.tensor([share for several in shares for share in several], dtype=torch.float64)
        better = fmean(improvement(found.shares(cell), found.shares(cell.baseline())) for cell in cells)
        middle = Gain(float(iqm(values)), *stratified(shares, baselines(cells), iqm))
        rows.append((*name, len(cells), speed_of(found, cells, Cell.baseline), middle, f"{better:.0%}"))
    return table(head, rows)


def reuse(found: Findings, cells: Sequence[Cell]) -> str:
    """Return, for each student of each game, what a reuse budget does beside none."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.game, cell.student, cell.reuse), []).append(cell)
    head = ("game", "student", "reuse", "sooner, steps", "sooner, seconds", "fall, difference", "spread", "questions")
    rows = []
    for name, several in groups.items():
        both = (several, [unused(cell) for cell in several])
        spreads = [fmean(found.spread(cell) for cell in group) for group in both]
        asked = [sum(found.told(cell, "asked") for cell in group) for group in both]
        times = [speed_of(found, several, unused), speed_of(found, several, unused, "clock")]
        spread, share = f"{spreads[0]:.3f} (without: {spreads[1]:.3f})", f"{asked[0] / max(asked[1], 1):.0%}"
        rows.append((*name, *times, falls_of(found, several, unused), spread, share))
    return table(head, rows)


def costs(found: Findings) -> str:
    """Return what the tutors of each game were asked and said nothing to, the mean over students and seeds."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in found.tutored():
        groups.setdefault((cell.game, cell.tutor, cell.reuse), []).append(cell)
    parts = ("consulted", "asked", "hits", "prompt_tokens", "answer_tokens", "seconds")
    rows = []
    for name, cells in groups.items():
        consulted, asked, hits, *tokens, seconds = (fmean(found.told(cell, part) for cell in cells) for part in parts)
        counts = (f"{consulted:,.0f}", f"{asked:,.0f}", f"{hits / max(consulted, 1):.0%}", f"{sum(tokens):,.0f}")
        no_advice = fmean(found.no_advice(cell) for cell in cells) / max(asked, 1)
        rows.append((*name, *counts, f"{seconds:.1f}", f"{no_advice:.0%}"))
    head = ("advice wanted", "questions", "answered by the table", "tokens", "seconds", "no advice")
    return table(("game", "tutor", "reuse", *head), rows)


def draw(found: Findings, folder: Path) -> list[Path]:
    """Draw how the students learn, a panel for each student of each game, and return the pictures.

    Lines are tutors, of the last reuse budget; where there are several methods of guidance they are these, and each
    tutor has a picture of its own.
    """
    grid, cells = found.grid, found.cells()
    tutored = [cell for cell in found.tutored() if cell.reuse == grid.reuse[-1]]
    by_method = len(grid.guidance) > 1
    paths = []
    for tutor in dict.fromkeys(cell.tutor for cell in tutored) if by_method else [None]:
        shown = [cell for cell in cells if cell.tutor == ALONE or (cell in tutored and tutor in (None, cell.tutor))]
        wide = 3.4 * max(len(grid.students), 2)
        figure = Figure(figsize=(wide, 2.5 * len(grid.games) + 0.8), layout="constrained")
        panels = figure.subplots(len(grid.games), len(grid.students), squeeze=False)
        names = grid.guidance if by_method else grid.tutors
        for cell in shown:
            name = cell.guidance if by_method else cell.tutor
            color = "#555555" if cell.tutor == ALONE else COLORS[names.index(name) % len(COLORS)]
            label = "alone" if cell.tutor == ALONE else name
            axes = panels[grid.games.index(cell.game)][grid.students.index(cell.student)]
            line(axes, found.curves(cell), label, color)
            axes.set_title(f"{cell.student}, {cell.game}", fontsize=10)
            axes.tick_params(labelsize=8)
        known = {}
        for axes in panels.flat:
            handles, labels = axes.get_legend_handles_labels()
            known |= dict(zip(labels, handles, strict=True))
        figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=round(wide / 1.7), fontsize=9)
        for axes in panels[-1]:
            axes.set_xlabel("env steps", fontsize=9)
        figure.supylabel("mean return, student alone", fontsize=9)
        paths.append(
            folder / ("curves.png" if tutor is None else f"curves_{tutor.replace(':', '-').replace('/', '-')}.png")
        )
        figure.savefig(paths[-1], dpi=90)
    return paths


def line(axes: Any, curves: Sequence[Points], label: str, color: str | None = None) -> None:
    """Draw the mean of some curves, and a band from the lowest to the highest, over the steps that all of them have.

    Raises:
        ValueError: there are none.
    """
    scores = [dict(points) for points in curves]
    steps = [step for step, _ in curves[0] if all(step in known for known in scores)]
    if not steps:
        raise ValueError(f"the runs of {label} have no evaluation at the same step: their mean cannot be drawn")
    columns = [[known[step] for known in scores] for step in steps]
    marker = "" if len(steps) > 1 else "o"  # one point alone is no line
    middle = [fmean(column) for column in columns]
    (drawn,) = axes.plot(steps, middle, label=label, color=color, linewidth=1.5, marker=marker)
    low, high = ([pick(column) for column in columns] for pick in (min, max))
    axes.fill_between(steps, low, high, alpha=0.15, color=drawn.get_color(), linewidth=0)
