"""Learning curves as lines with a band, labelled where they end, beside reference lines."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from experiments.stats import Curve

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008, but black and yellow
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
WIDTHS = (2.4, 1.9, 1.9, 1.6)  # points: those that are drawn later are thinner
BASELINE_COLOR, REFERENCE_COLOR = "#333333", "#6e6e6e"
INK_SHARE = 0.6  # of a colour's brightness that is left in text: pale colours are no ink
LABEL_SIZE = 8.5  # points
LABEL_WIDTH = 26  # characters of a line of a label
LINE_HEIGHT = 1.25  # of a line of a label, of its size
LABEL_X = 1.03  # where labels begin, of a panel's width
REACH = 0.8  # of the curves' height: how far from them a reference line may lie to be drawn


class LineStyle(NamedTuple):
    """What distinguishes a line from the others, for those who see no colours, too."""

    color: str
    dashes: Any = "-"
    width: float = 1.8  # points
    is_on_top: bool = False


class EndLabel(NamedTuple):
    """What is written beside the end of a line."""

    x: float
    y: float
    text: str
    color: Any


@dataclass
class Panel:
    """One chart: its axes, and the labels that are placed when all is drawn."""

    axes: Axes
    labels: list[EndLabel] = field(default_factory=list)
    heights: list[float] = field(default_factory=list)  # of all that is drawn but reference lines


def line_styles(names: Iterable[str]) -> dict[str, LineStyle]:
    """Return a style for each name: lines that lie on each other show through the gaps of the later ones."""
    return {
        name: LineStyle(COLORS[at % len(COLORS)], DASHES[at % len(DASHES)], WIDTHS[at % len(DASHES)])
        for at, name in enumerate(names)
    }


def baseline_styles(names: Iterable[str]) -> dict[str, LineStyle]:
    """Return a style for each line of a student without a tutor: dark dots or dashes over all other lines."""
    dashes = DASHES[2:] + DASHES[1:2]
    return {name: LineStyle(BASELINE_COLOR, dashes[at % 3], 1.6, is_on_top=True) for at, name in enumerate(names)}


def prepare(axes: Axes, title: str, unit: str, last_step: float) -> Panel:
    """Return an empty panel of env steps and mean returns."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("env steps", fontsize=9)
    axes.set_ylabel(f"mean return\n({unit})" if unit else "mean return", fontsize=9)
    axes.set_xlim(0, last_step)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    return Panel(axes)


def draw_mean(
    panel: Panel,
    curves: Sequence[Curve],
    label: str,
    style: LineStyle,
    interval: tuple[Curve, Curve] | None = None,
) -> None:
    """Draw the mean of curves, and a band from the lowest to the highest, over the steps of `common_points`.

    Args:
        interval: of a single curve, the bounds of each evaluation, which are its band.

    Raises:
        ValueError: there are no such steps.
    """
    steps, columns = common_points(curves, label)
    bounds: list[Any] = [[pick(column) for column in columns] for pick in (min, max)]
    if len(curves) == 1 and interval is not None and all(interval):
        bounds = [[dict(side)[step] for step in steps] for side in interval]
    means = [fmean(column) for column in columns]
    is_point = len(steps) == 1  # which has no line and no band, and lies at the end of the axis
    order = 2.5 if style.is_on_top else 2
    panel.axes.plot(
        *(steps, means),
        color=style.color,
        linestyle=style.dashes,
        linewidth=style.width,
        marker="o" if is_point else "",
        zorder=order,
        clip_on=not is_point,
    )
    if is_point:
        panel.axes.vlines(steps, *bounds, color=style.color, clip_on=False)
    else:
        panel.axes.fill_between(steps, *bounds, alpha=0.15, color=style.color, linewidth=0)
    panel.labels.append(EndLabel(steps[-1], means[-1], label, ink(style.color)))
    panel.heights += [*bounds[0], *bounds[1]]


def common_points(curves: Sequence[Curve], label: str) -> tuple[list[float], list[list[float]]]:
    """Return the steps that all curves have, and the scores of all at each.

    A tutor's probes take env steps, so that runs of other seeds may be evaluated at other steps. Where no two steps are
    common, they are those of the first curve, between the others' first and last, which are interpolated.

    Raises:
        ValueError: there are none.
    """
    scores = [dict(curve) for curve in curves]
    steps = [step for step, _ in curves[0] if all(step in known for known in scores)]
    if len(steps) < min(2, len(curves[0])):
        first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
        steps = [step for step, _ in curves[0] if first <= step <= last] or steps
    if not steps:
        raise ValueError(f"the runs of {label} have no evaluation at the same step: their mean cannot be drawn")
    return steps, [[value_at(curve, step) for curve in curves] for step in steps]


def value_at(curve: Curve, step: float) -> float:
    """Return the score at a step, between two evaluations on the line through both."""
    return float(np.interp(step, [at for at, _ in curve], [score for _, score in curve]))


def draw_references(panel: Panel, references: Mapping[str, float]) -> None:
    """Draw a dotted line for each value; one far away is named at the edge, where it would flatten the curves."""
    if not panel.heights:
        return
    axes, low, high = panel.axes, min(panel.heights), max(panel.heights)
    reach = REACH * (high - low or 1.0)
    near = {name: value for name, value in references.items() if low - reach <= value <= high + reach}
    low, high = min([low, *near.values()]), max([high, *near.values()])
    margin = 0.05 * (high - low or 1.0)
    axes.set_ylim(low - margin, high + margin)
    right = axes.get_xlim()[1]
    for name, value in references.items():
        text = f"{name} {shown(value)}"
        if name in near:
            axes.axhline(value, color=REFERENCE_COLOR, linestyle=":", linewidth=1.2)
            panel.labels.append(EndLabel(right, value, text, REFERENCE_COLOR))
        else:
            arrow, edge = ("↑", high + margin) if value > high else ("↓", low - margin)
            panel.labels.append(EndLabel(right, edge, f"{arrow} {text}", REFERENCE_COLOR))


def shown(value: float) -> str:
    """Return a mean return as people read it."""
    text = f"{value:,.0f}" if value == round(value) else f"{value:,.2f}" if abs(value) >= 0.1 else f"{value:,.3f}"
    return text.replace("-", "−")


def ink(color: str) -> tuple[float, ...]:
    """Return a colour dark enough for text."""
    return tuple(INK_SHARE * part for part in to_rgb(color))


def place_labels(figure: Figure, panels: Sequence[Panel]) -> None:
    """Write each line's label beside its end, none over another; the layout makes room for them."""
    texts = [[write_label(panel.axes, label) for label in panel.labels] for panel in panels]
    figure.draw_without_rendering()  # only then is it known how high the panels are
    for panel, written in zip(panels, texts, strict=True):
        height = panel.axes.bbox.height * 72 / figure.dpi  # points
        to_axes = panel.axes.transData + panel.axes.transAxes.inverted()
        ends = [height * to_axes.transform((label.x, label.y))[1] for label in panel.labels]
        heights = [LABEL_SIZE * LINE_HEIGHT * (1 + text.get_text().count("\n")) for text in written]
        for text, middle in zip(written, spread(ends, heights), strict=True):
            text.set_position((LABEL_X, middle / height))


def write_label(axes: Axes, label: EndLabel) -> Annotation:
    """Write a label on the right of a panel, with a thin line from the end of what it names."""
    is_beyond = label.text.startswith(("↑", "↓"))
    leader = {"arrowstyle": "-", "color": label.color, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1}
    return axes.annotate(
        textwrap.fill(label.text, LABEL_WIDTH),
        (label.x, label.y),
        xytext=(LABEL_X, 0.5),
        textcoords="axes fraction",
        color=label.color,
        fontsize=LABEL_SIZE,
        va="center",
        linespacing=1.0,
        annotation_clip=False,
        arrowprops=None if is_beyond else leader,
    )


def spread(middles: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Return where things of these heights lie that want these middles, none over another, moved as little as may be.

    Things that touch move together, around the mean of what they want (pool adjacent violators).
    """
    groups: list[list[int]] = []

    def centre(group: Sequence[int]) -> float:
        """Return the middle of a group whose members lie on each other, lowest first."""
        offsets, total = [], 0.0
        for one in group:
            offsets.append(total + heights[one] / 2)
            total += heights[one]
        return fmean(middles[one] - offset for one, offset in zip(group, offsets, strict=True)) + total / 2

    def size(group: Sequence[int]) -> float:
        return sum(heights[one] for one in group)

    for one in sorted(range(len(middles)), key=middles.__getitem__):
        groups.append([one])
        while len(groups) > 1 and centre(groups[-1]) - centre(groups[-2]) < (size(groups[-1]) + size(groups[-2])) / 2:
            last = groups.pop()
            groups[-1] = groups[-1] + last
    found = [0.0] * len(middles)
    for group in groups:
        bottom = centre(group) - size(group) / 2
        for one in group:
            found[one] = bottom + heights[one] / 2
            bottom += heights[one]
    return found
