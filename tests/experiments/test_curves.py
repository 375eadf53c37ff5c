"""Lines, bands and labels of learning curves, beside what a reader must be able to tell apart."""

import itertools

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments.curves import (
    COLORS,
    LineStyle,
    Panel,
    draw_mean,
    draw_references,
    ink,
    line_styles,
    place_labels,
    prepare,
    shown,
    spread,
)
from experiments.stats import Curve

DARK = LineStyle("#000000")


def panel_of(*curves: tuple[str, Curve], unit: str = "") -> tuple[Figure, Panel]:
    """A panel with these curves, and its figure."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    panel = prepare(figure.subplots(), "Snake", unit, 40_000)
    for label, curve in curves:
        draw_mean(panel, [curve], label, DARK)
    return figure, panel


def band(panel: Panel) -> set[tuple[float, float]]:
    """The corners of the first band."""
    return {tuple(corner) for corner in panel.axes.collections[0].get_paths()[0].vertices.tolist()}


def test_a_line_is_the_mean_over_the_steps_that_all_runs_have() -> None:
    curves: list[Curve] = [[(10, 0.0), (20, 1.0), (40, 5.0)], [(5, 9.0), (10, 2.0), (40, 7.0), (50, 9.0)]]
    _, panel = panel_of()
    draw_mean(panel, curves, "alone", DARK)
    assert panel.axes.lines[0].get_xydata().tolist() == [[10, 1], [40, 6]]
    assert band(panel) == {(10, 0), (10, 2), (40, 5), (40, 7)}
    with pytest.raises(ValueError, match="the runs of alone have no evaluation at the same step"):
        draw_mean(panel, [[(10, 0.0)], [(5, 0.0)]], "alone", DARK)


def test_runs_whose_probes_shifted_their_evaluations_have_a_mean_nevertheless() -> None:
    _, panel = panel_of()
    draw_mean(panel, [[(10, 0.0), (20, 1.0), (30, 2.0)], [(5, 0.0), (15, 1.0), (25, 2.0)]], "tutored", DARK)
    assert panel.axes.lines[0].get_xydata().tolist() == [[10, 0.25], [20, 1.25]]


def test_a_single_run_has_the_band_of_its_evaluations() -> None:
    _, panel = panel_of()
    draw_mean(panel, [[(10, 0.0), (20, 1.0)]], "alone", DARK, ([(10, -1.0), (20, 0.5)], [(10, 1.0), (20, 1.5)]))
    assert band(panel) == {(10, -1), (10, 1), (20, 0.5), (20, 1.5)}


def test_a_single_evaluation_is_a_whole_point_with_its_interval() -> None:
    _, panel = panel_of()
    draw_mean(panel, [[(40_000, 0.5)]], "alone", DARK, ([(40_000, 0.25)], [(40_000, 0.75)]))
    (line,) = panel.axes.lines
    assert line.get_marker() == "o"
    (interval,) = panel.axes.collections
    assert interval.get_segments()[0].tolist() == [[40_000, 0.25], [40_000, 0.75]]
    assert not line.get_clip_on(), "it lies at the end of the axis"
    assert not interval.get_clip_on()


def test_labels_at_the_lines_ends_are_not_cut_and_do_not_overlap() -> None:
    names = ["a setting of a very long name that does not fit into one line", *"bcdef"]
    figure, panel = panel_of(*((name, [(0, 0.0), (40_000, 5 + at / 100)]) for at, name in enumerate(names)))
    draw_references(panel, {"random play": 0.1, "tutor alone": 5.1, "best possible": 143.0})
    place_labels(figure, [panel])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in panel.axes.texts]  # without the lines that lead to them
    assert len(boxes) == len(names) + 3
    for box in boxes:
        assert panel.axes.bbox.x1 < box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    for one, other in itertools.combinations(boxes, 2):
        assert one.y1 <= other.y0 + 1 or other.y1 <= one.y0 + 1


def test_a_reference_far_away_is_named_and_does_not_flatten_the_curves() -> None:
    _, panel = panel_of(("alone", [(0, 1.0), (40_000, 5.0)]))
    draw_references(panel, {"random play": 0.1, "best possible": 143.0, "worst": -30.0})
    low, high = panel.axes.get_ylim()
    assert -1 < low < 0.1
    assert 5 < high < 6
    assert [label.text for label in panel.labels[1:]] == ["random play 0.10", "↑ best possible 143", "↓ worst −30"]


def test_axes_have_units_and_thousands_separators() -> None:
    figure, panel = panel_of(("alone", [(0, 0.0), (40_000, 5.0)]), unit="fruits")
    figure.draw_without_rendering()
    assert panel.axes.get_ylabel() == "mean return\n(fruits)"
    assert "20,000" in [text.get_text() for text in panel.axes.get_xticklabels()]


def test_lines_can_be_told_apart_without_colours_and_labels_are_dark_enough() -> None:
    styles = [*line_styles(map(str, range(12))).values()]
    assert len({(one.color, str(one.dashes)) for one in styles}) == 12
    for first, second in itertools.pairwise(styles):
        assert first.dashes != second.dashes
    for color in COLORS:
        assert contrast(ink(color), to_rgb("white")) > 4.5, "WCAG AA"


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The contrast ratio of two colours, as WCAG 2.2 defines it."""

    def luminance(color: tuple[float, ...]) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_labels_stay_where_there_is_room_and_share_what_there_is_not() -> None:
    assert spread([0, 50, 100], [10, 10, 10]) == [0, 50, 100]
    assert spread([100, 0], [10, 10]) == [100, 0]
    assert spread([50, 50], [10, 10]) == pytest.approx([45, 55])
    assert spread([50, 50, 56], [10, 20, 10]) == pytest.approx([37, 52, 67])


@pytest.mark.parametrize(
    ("value", "text"), [(-0.934, "−0.93"), (143.0, "143"), (-0.0433, "−0.043"), (1234.5, "1,234.50")]
)
def test_returns_are_shown_as_people_read_them(value: float, text: str) -> None:
    assert shown(value) == text
