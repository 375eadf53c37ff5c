"""Learning curves as a picture: `python -m experiments plot RUN…`."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure

from envs.base import Spec
from experiments.curves import (
    LineStyle,
    baseline_styles,
    draw_mean,
    draw_references,
    line_styles,
    place_labels,
    prepare,
)
from experiments.references import references
from experiments.stats import Curve, read_curve
from training.config import Config, evaluation_env, load_config
from training.resume import settings
from tutors import TutorConfig
from tutors.display import picture_text

ALONE = "no tutor"
NEVER_SHOWN = ("seed", "env", "env_kwargs", "tutoring.advice_store")
PICTURE = Path("runs/curves.png")  # runs/ is not under version control
PANEL = (8.0, 5.0)  # inches
MAX_COLUMNS = 2
MAX_LABEL_CHARS = 300  # of a line
CAPTION = (
    "Line: the student alone, the mean over runs that differ in the seed. "
    "Band: from the lowest run to the highest; of a single run, the 95 % interval of its evaluations."
)


@dataclass(frozen=True)
class PlotOptions:
    """Draw the evaluations of runs: a panel per game, a line per setting, beside random play and the tutor alone."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories."""
    out: Path = PICTURE
    """The picture: .png, .svg or .pdf."""


def plot(options: PlotOptions) -> None:
    """Draw the evaluations of runs over env steps.

    Raises:
        ValueError: there are no runs, one has no evaluation yet, or the picture cannot be written.
    """
    if not options.runs:
        raise ValueError("no runs: name at least one run directory")
    options = replace(options, runs=readable_runs(options.runs))
    games = by_game(options.runs)
    groups = {game: by_setting(run_dirs) for game, run_dirs in games.items()}
    styles = styles_of([name for group in groups.values() for name in group])
    columns = min(len(games), MAX_COLUMNS)
    rows = math.ceil(len(games) / columns)
    width, height = PANEL if len(games) == 1 else (0.85 * PANEL[0], 0.8 * PANEL[1])
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    panels = []
    for (game, group), one in zip(groups.items(), axes, strict=False):
        curves = {name: [read_evaluations(run_dir) for run_dir in several] for name, several in group.items()}
        last = max(curve[-1][0] for several in curves.values() for curve in several)
        panel = prepare(one, picture_text(game), spec_of(load_config(games[game][0])).return_unit, last)
        for name, several in curves.items():
            shown = picture_text(name, MAX_LABEL_CHARS)
            label = f"{shown} ({len(several)}\u00a0runs)" if len(several) > 1 else shown
            draw_mean(panel, several, label, styles[name], read_interval(group[name][0]))
        draw_references(panel, references_of(games[game]))
        panels.append(panel)
    for one in axes:  # a row that is not full
        one.set_axis_off()
    figure.supxlabel(CAPTION if columns > 1 else CAPTION.replace(". Band", ".\nBand"), fontsize=8, color="#444444")
    place_labels(figure, panels)
    if options.out == PICTURE:
        PICTURE.parent.mkdir(exist_ok=True)
    try:
        figure.savefig(options.out, dpi=150)
    except (OSError, ValueError) as error:
        raise ValueError(f"{options.out} cannot be written: {error}") from error
    print(f"{len(options.runs)} runs, {sum(map(len, groups.values()))} settings: {options.out}")


def readable_runs(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Return those that are directories of runs with an evaluation; say what is none, as `runs/*` names all there is.

    Raises:
        ValueError: none is.
    """
    found, problems = [], []
    for path in paths:
        try:
            load_config(path)
            read_evaluations(path)
        except ValueError as error:
            problems.append(str(error))
        else:
            found.append(path)
    if not found:
        raise ValueError(f"no run to draw: {problems[0]}")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return tuple(found)


def by_game(run_dirs: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the runs by their game's title, with its options where games of one title differ in them."""
    games: dict[tuple[str, tuple[str, ...]], list[Path]] = {}
    for run_dir in run_dirs:
        config = load_config(run_dir)
        games.setdefault((config.env, config.env_kwargs), []).append(run_dir)
    titles = {game: spec_of(load_config(several[0])).shown_title() for game, several in games.items()}
    found = {}
    for game, several in games.items():
        is_alone = [*titles.values()].count(titles[game]) == 1
        found[titles[game] if is_alone else f"{titles[game]}, {' '.join(game[1]) or 'default options'}"] = several
    return found


def spec_of(config: Config) -> Spec:
    """Return what is known of a run's game: where it can no longer be made, its name."""
    try:
        return evaluation_env(config, 1, "cpu").spec
    except ValueError:
        return Spec(config.env, 0, (), 0, 0, 0, None)


def by_setting(run_dirs: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the runs of a game by the settings in which they differ apart from the seed."""
    configs = [load_config(run_dir) for run_dir in run_dirs]
    shown = [dict(line_settings(config)) for config in configs]
    names = list(dict.fromkeys(name for one in shown for name in one))
    tutored = [one for one in shown if one["tutor"] != "none"]
    varied = []
    for name in names:
        compared = tutored if any(name in one for one in tutored) and not all(name in one for one in shown) else shown
        if len({one.get(name) for one in compared}) > 1:
            varied.append(name)
    varied = varied or ["algo", "tutor"]
    if "algo" in varied:  # which implies the other settings of the student
        varied = [name for name in varied if not name.startswith("agent.")]
    groups: dict[str, list[Path]] = {}
    for run_dir, one in zip(run_dirs, shown, strict=True):
        parts = [shown_setting(name, one[name]) for name in varied if name in one]
        groups.setdefault(", ".join(parts), []).append(run_dir)
    return groups


def styles_of(names: Sequence[str]) -> dict[str, LineStyle]:
    """Return a style for each line: colours for those with a tutor, where there are such, dark ones for the others."""
    alone = [name for name in dict.fromkeys(names) if ALONE in name]
    tutored = [name for name in dict.fromkeys(names) if ALONE not in name]
    return line_styles(tutored) | baseline_styles(alone) if tutored else line_styles(alone)


def read_evaluations(run_dir: Path) -> Curve:
    """Return the evaluations of a run.

    Raises:
        ValueError: there are none yet.
    """
    curve = read_curve(run_dir) if (run_dir / "metrics.csv").exists() else []
    if not curve:
        raise ValueError(f"{run_dir} has no evaluation yet")
    return curve


def read_interval(run_dir: Path) -> tuple[Curve, Curve]:
    """Return the bounds of a run's evaluations; empty for a run of a version that did not log them."""
    low, high = (read_curve(run_dir, tag=f"eval_interval/{side}") for side in ("low", "high"))
    return low, high


def references_of(run_dirs: Sequence[Path]) -> dict[str, float]:
    """Return what the students of a game are to be compared with; their tutor, where they have the same one."""
    configs = [load_config(run_dir) for run_dir in run_dirs]
    tutored = {run_dir: config for run_dir, config in zip(run_dirs, configs, strict=True) if has_tutor(config)}
    tutors = {(one.tutoring.tutor, one.tutoring.tutor_accuracy, one.tutoring.tutor_depth) for one in tutored.values()}
    if len(tutors) != 1:
        return references(replace(configs[0], tutoring=TutorConfig()))
    summaries = [one / "summary.json" for one in tutored if (one / "summary.json").exists()]
    trusts = [json.loads(one.read_text()).get("trust") or {} for one in summaries]
    probed = [one["tutor_return"] for one in trusts if one.get("tutor_return") is not None]
    return references(next(iter(tutored.values())), probed)


def has_tutor(config: Config) -> bool:
    """Return whether a run has a tutor."""
    return config.tutoring.tutor != "none"


def line_settings(config: Config) -> dict[str, str]:
    """Return the settings of a run that may tell its line from others, by name; of a tutor only if there is one."""
    values = {name: value for name, value in settings(asdict(config)) if name not in NEVER_SHOWN}
    tutor = values.pop("tutoring.tutor")
    if tutor == "none":
        values = {name: value for name, value in values.items() if not name.startswith(("tutoring.", "guiding."))}
    elif tutor == "scripted":
        tutor = f"{tutor}:{values.pop('tutoring.tutor_accuracy'):g}"
    first = {"algo": values.pop("algo"), "tutor": tutor}
    return {name: str(value) for name, value in (first | values).items()}


def shown_setting(name: str, value: str) -> str:
    """Return a setting as people read it."""
    if name == "algo":
        return value.upper()
    if name == "tutor" and value == "none":
        return ALONE
    name = name.rpartition(".")[2].replace("_", " ")
    return f"{name} {int(value):,}" if value.isdecimal() else f"{name} {value}"
