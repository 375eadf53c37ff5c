"""A tutor's report as two tables and a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tutors.display import picture_text
from tutors.report import NUM_BINS, TutorReport
from tutors.tune import Tuning

INK, TUTOR, EXPERT = "#303030", "#56b4e9", "#d55e00"  # Okabe & Ito's sky blue and vermilion
SIDE = (5.6, 4.0)  # inches, one of a view's two charts


def measures_table(reports: Sequence[TutorReport], tutor: str) -> Table:
    """Return the measures, a row a view, in 80 columns; below them, how many positions got no advice and why."""
    no_advice = [f"{one.game} {one.view}: {n:,} {kind}" for one in reports for kind, n in one.no_advice.items()]
    caption = f"no advice, positions: {', '.join(no_advice)}" if no_advice else None
    title = f"{tutor}, beside an expert, in positions of mixed play"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("view", "answered", "agrees", "chance", "ECE", "entropy", "mass", "cost (tokens)"):
        table.add_column(name, justify="left" if name == "view" else "right", no_wrap=True)
    for one in reports:
        low, high = one.interval
        cost = [
            f"{one.prompts:,} prompts",
            f"{one.prompt_tokens:,} in",
            f"{one.answer_tokens:,} out",
            f"{number(one.seconds_per_1000, 1)} s / 1,000",
        ]
        table.add_row(
            f"{one.game}\n{one.view}",
            f"{one.answered:,}\nof {one.positions:,}" + (f"\n{one.stored:,} stored" if one.stored else ""),
            f"{percent(one.agreement)}\n{100 * low:.1f}–{100 * high:.1f}",
            percent(one.chance),
            number(one.calibration_error, 3),
            f"{number(one.entropy, 2)}\n{percent(one.entropy_share)}",
            number(one.label_mass, 3),
            "\n".join(cost),
            end_section=True,
        )
    return table


def letters_table(reports: Sequence[TutorReport]) -> Table:
    """Return each letter's bias with its 95 % interval, a row a letter: a game may have any number of actions."""
    table = Table(
        title="bias by letter: probability advised minus the expert's, %",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("letter")
    for one in reports:
        table.add_column(f"{one.game}\n{one.view}", justify="right")
    for letter in sorted({letter for one in reports for letter in one.letters}):
        biases = [one.letters.get(letter) if one.answered else None for one in reports]
        table.add_row(letter, *("" if bias is None else interval_of(bias) for bias in biases))
    return table


def approval_lines(reports: Sequence[TutorReport]) -> list[str]:
    """Return how each view's approval ranks episodes, where that was measured."""
    return [
        f"{one.game} {one.view}: of two of {one.approval_episodes:,} episodes the tutor approves more of the better "
        f"one in {percent(one.approval)} (95 % interval {100 * one.approval_interval[0]:.1f} to "
        f"{100 * one.approval_interval[1]:.1f}); by chance in 50.0 %."
        for one in reports
        if one.approval_episodes
    ]


def tuning_table(tuning: Tuning, flags: Sequence[str], tutor: str) -> Table:
    """Return all ways of asking, the best first, in 80 columns; `flags` are those of each."""
    table = Table(title=f"{tutor}, asked in {len(flags)} ways", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("flags", "positions", "agrees", "chance", "ECE", "bias", "a question"):
        table.add_column(name, justify="left" if name == "flags" else "right", no_wrap=name != "flags")
    for way, (_, one) in zip(flags, tuning.outcomes, strict=True):
        low, high = one.interval
        no_advice = one.positions - one.answered
        letter, bias = max(one.letters.items(), key=lambda item: item[1]["bias"])
        tokens = (one.prompt_tokens + one.answer_tokens) / max(one.positions - one.stored, 1)
        table.add_row(
            way,
            f"{one.positions:,}" + (f"\n{no_advice:,} without" if no_advice else ""),
            f"{percent(one.agreement)}\n{100 * low:.0f}–{100 * high:.0f}",
            percent(one.chance),
            number(one.calibration_error, 2),
            f"{letter} {100 * bias['bias']:+.0f}" if one.answered else "–",
            f"{tokens:,.0f} tokens\n{number(one.seconds_per_1000 / 1000, 3)} s",
        )
    return table


def tuning_verdict(tuning: Tuning) -> str:
    """Return whether the best way of asking is better than chance."""
    one, count = tuning.verdict, len(tuning.outcomes)
    low, high = (f"{100 * bound:.1f}" for bound in one.interval)
    if not one.answered:
        return f"None of {count} ways of asking is better than chance: the model gives no advice."
    found = (
        f"of {one.positions:,} positions that had no part in its choice, it answers {one.answered:,} and agrees with "
        f"the expert in {percent(one.agreement)} (95 % interval {low} to {high}). A random legal action agrees in "
        f"{percent(one.chance)}, as often as the model with probability {one.p_value:.2g}; the same letter whatever "
        f"the position in up to {percent(one.constant)}."
    )
    if tuning.is_better_than_chance:
        return f"The best of {count} ways of asking is the first: {found}"
    return f"None of {count} ways of asking is better than chance. The first is the best: {found}"


def interval_of(bias: Mapping[str, float]) -> str:
    """Return a letter's bias and the half width of its interval, in points of a percent."""
    return f"{100 * bias['bias']:+.1f} ±{100 * bias['within']:.1f}"


def percent(share: float) -> str:
    """Return a share as it is read; a dash for nan."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def number(value: float, digits: int) -> str:
    """Return a number as it is read; a dash for nan."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def draw(reports: Sequence[TutorReport], tutor: str, path: Path) -> None:
    """Write a PNG with two charts a view: the reliability curve with its bins' counts, and the bias by letter.

    Raises:
        ValueError: it cannot be written.
    """
    width, height = SIDE
    figure = Figure((2 * width, height * len(reports)), layout="constrained")
    figure.suptitle(picture_text(tutor))
    for (left, right), one in zip(figure.subplots(len(reports), 2, squeeze=False), reports, strict=True):
        draw_curve(left, one)
        draw_letters(right, one)
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise ValueError(f"the picture {path} cannot be written: {error.strerror}") from error


def draw_curve(axes: Axes, one: TutorReport) -> None:
    """Draw a bar a bin, as high as the share of its answers that agree, and how many answers there are above it."""
    places = [(place + 0.5) / NUM_BINS for place in range(NUM_BINS)]
    heights = one.curve["agreement"]
    axes.bar(places, [0 if math.isnan(height) else height for height in heights], 0.9 / NUM_BINS, color=TUTOR)
    axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="as often right as it is sure")
    if one.answered:
        chance = f"a random legal action: {percent(one.chance)} of positions"
        axes.axhline(one.chance, color=EXPERT, linewidth=1.5, label=chance)
    for place, height, count in zip(places, heights, one.curve["count"], strict=True):
        if count:
            behind = {"facecolor": "white", "linewidth": 0, "pad": 0.5}
            axes.text(place, height + 0.025, f"{count:,.0f}", ha="center", color=INK, fontsize=8, bbox=behind)
    axes.set(xlim=(0, 1), ylim=(0, 1.1), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_xlabel("tutor's probability of the action that it advises")
    axes.set_ylabel("agree with the expert,\n% of the bar's answers")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    low, high = (f"{100 * bound:.1f}" for bound in one.interval)
    agreed = f"{percent(one.agreement)} of {one.answered:,} answers agree, 95 % interval {low} to {high}"
    calibration = f"ECE {number(one.calibration_error, 3)}; above each bar: its number of answers"
    axes.set_title(f"{picture_text(f'{one.game} {one.view}')}: {agreed}\n{calibration}", fontsize=9, loc="left")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, -0.2), fontsize=8, frameon=False)


def draw_letters(axes: Axes, one: TutorReport) -> None:
    """Draw a bar a letter, as long as its bias, with the 95 % interval."""
    letters = list(one.letters)
    if one.answered:
        bias, within = ([one.letters[letter][name] for letter in letters] for name in ("bias", "within"))
        axes.bar(letters, bias, color=TUTOR, yerr=within, ecolor=INK, capsize=3)
    axes.axhline(0, color=INK, linewidth=1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.set_ylabel("tutor's mean probability less the\nexpert's, percentage points")
    axes.set_xlabel("letter of the action in the prompt")
    title = f"bias by letter, mean of {one.answered:,} answers\nlines: 95 % intervals; 0: no letter is preferred"
    axes.set_title(title, fontsize=9, loc="left")
