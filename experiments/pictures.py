"""The pictures of a study: a panel for each student of each env, and an overview of all."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from experiments.analysis import StudyResults, group_by
from experiments.curves import (
    LineStyle,
    baseline_styles,
    draw_mean,
    draw_references,
    line_styles,
    place_labels,
    prepare,
    value_at,
)
from experiments.plot import ALONE, has_tutor, spec_of
from experiments.references import references
from experiments.spec import Condition, RunSpec, StudySpec
from training.cli import parse
from training.config import Config, defaults_from_flags
from tutors.display import MAX_NAME_CHARS, picture_text

PANEL = (4.8, 3.0)  # inches, of a picture's charts
OVERVIEW = (8.0, 4.2)  # inches
DPI = 110
NUM_SHARES = 41  # points of a line of the overview
NO_FILE_NAME = re.compile(r"[^\w.=+-]")  # a character that is in no picture's name


def draw(results: StudyResults, out: Path) -> list[Path]:
    """Draw the learning curves, and return the pictures: the overview first, where there are several students.

    Lines are tutors, with the last reuse budget; where there are several guidance methods lines are those, and each
    tutor has a picture of its own.
    """
    study = results.study
    tutored = [one for one in results.tutored() if one.reuse == study.reuse[-1]]
    has_methods = len(study.guidance) > 1
    if has_methods:
        styles = line_styles(study.guidance)
        labels = {one: one.guidance for one in tutored}
        pictures = {
            f"curves_{NO_FILE_NAME.sub('-', str(tutor))[:MAX_NAME_CHARS]}.png": group
            for tutor, group in group_by(tutored, lambda one: one.tutor).items()
        }
    else:
        styles = line_styles(map(str, study.tutors))
        labels = {one: str(one.tutor) for one in tutored}
        pictures = {"curves.png": tutored}
    styles |= baseline_styles([ALONE])
    baselines = {one: ALONE for one in results.conditions() if one.is_baseline()}
    overview: list[Path] = []
    if tutored and len(pictures) == 1:
        overview = draw_overview(results, out / "overview.png", baselines | labels, styles)
    for name, group in pictures.items():
        draw_picture(results, out / name, baselines | {one: labels[one] for one in group}, styles)
    return [*overview, *(out / name for name in pictures)]


def draw_overview(
    results: StudyResults, path: Path, labels: dict[Condition, str], styles: dict[str, LineStyle]
) -> list[Path]:
    """Draw the mean over all students that learn alone, a line for each label, and return the picture.

    Scores are normalized by the baseline's gain, and env steps by the run's length. Bands go from the lowest to the
    highest seed. Nothing is drawn where fewer than two students have all the lines.
    """
    cells = [
        group
        for group in group_by(labels, lambda one: (one.env, one.algo)).values()
        if results.baseline_learns(group[0]) and {labels[one] for one in group} == set(labels.values())
    ]
    if len(cells) < 2:
        return []
    first = max(curve[0][0] / curve[-1][0] for cell in cells for one in cell for curve in results.curves(one))
    shares = np.linspace(first, 1, NUM_SHARES)

    def normalized(condition: Condition, seed: int) -> list[float]:
        start, gain = results.baseline_gain(condition)
        curve = results.curves(condition)[seed]
        return [(value_at(curve, share * curve[-1][0]) - start) / gain for share in shares]

    figure = Figure(figsize=OVERVIEW, layout="constrained")
    panel = prepare(figure.subplots(), f"{len(cells)} students, the mean over all", "", 100)
    panel.axes.set_xlabel("share of the run's env steps, %", fontsize=9)
    panel.axes.set_ylabel("score: at 0 the student begins,\nat 1 it ends if it learns alone", fontsize=9)
    for label, group in group_by([one for cell in cells for one in cell], labels.__getitem__).items():
        curves = []
        for seed in range(len(results.study.seeds)):
            columns = zip(*(normalized(one, seed) for one in group), strict=True)
            curves.append(list(zip(100 * shares, map(fmean, columns), strict=True)))
        draw_mean(panel, curves, picture_text(label), styles[label])
    place_labels(figure, [panel])
    figure.savefig(path, dpi=DPI)
    return [path]


def draw_picture(results: StudyResults, path: Path, labels: dict[Condition, str], styles: dict[str, LineStyle]) -> None:
    """Draw the curves of conditions, a panel for each student of each env, beside what they are to be compared with."""
    study = results.study
    rows, columns = len(study.envs), len(study.algos)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = []
    for env, row in zip(study.envs, grid, strict=True):
        config = config_of(study, compared_condition([one for one in labels if one.env == env]))
        probed = probe_returns(results, labels, env) if has_tutor(config) else ()  # without: the tutors differ
        spec, compared = spec_of(config), references(config, probed)
        for algo, axes in zip(study.algos, row, strict=True):
            shown = {one: label for one, label in labels.items() if (one.env, one.algo) == (env, algo)}
            if not shown:
                axes.set_axis_off()
                continue
            last = max(curve[-1][0] for one in shown for curve in results.curves(one))
            panel = prepare(axes, f"{algo.upper()}, {picture_text(spec.shown_title())}", spec.return_unit, last)
            for condition, label in shown.items():
                draw_mean(panel, results.curves(condition), picture_text(label), styles[label])
            draw_references(panel, compared)
            panels.append(panel)
    place_labels(figure, panels)
    figure.savefig(path, dpi=DPI)


def compared_condition(conditions: Sequence[Condition]) -> Condition:
    """Return the condition whose tutor a picture's students of an env are compared with; one without if it shows two.

    Where nothing of an env is drawn, that does not matter either.
    """
    tutored = [one for one in conditions if not one.is_baseline()]
    return tutored[0] if len({one.tutor for one in tutored}) == 1 else conditions[0].baseline()


def probe_returns(results: StudyResults, conditions: Iterable[Condition], env: str) -> list[float]:
    """Return what the probe episodes of a tutor came to in the runs of an env."""
    returns = [run.tutor_return for one in conditions if one.env == env for run in results.runs[one]]
    return [one for one in returns if one is not None]


def config_of(study: StudySpec, condition: Condition) -> Config:
    """Return the settings of a condition's runs."""
    arguments = study.arguments(RunSpec(condition, study.seeds[0]), Path("run"), None)
    if "--resume" in arguments:  # whose settings are not those of this run
        at = arguments.index("--resume")
        del arguments[at : at + 2]
    return parse(arguments, Config, defaults=defaults_from_flags)
