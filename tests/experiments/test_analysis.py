"""What a study comes to: rows, speed-ups and claims against numbers worked by hand from runs that are made up."""

import csv
import math
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import report as writeup
from experiments.analysis import Claim, Findings, Gain, Outcome, above, claims, gain_of, near, row_of, speed_of
from experiments.analysis import outcome as outcome_of
from experiments.report import beside, bounded, costs, draw, line, over_all, page, reuse, signed, speeds, table, written
from experiments.spec import ALONE, Cell, Grid
from experiments.stats import Points, interval, iqm

GRID = Grid(
    students=("dqn", "ppo"),
    games=("connect4", "blackjack"),
    tutors=("scripted:0.9", "scripted:0.6"),
    guidance=("override",),
    reuse=("0", "3"),
    seeds=(1, 2, 3),
    steps={"connect4": 100, "blackjack": 100},
)
SLOW = [0.0, 0.2, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0]  # learned at 40
FAST = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # learned at 20
NEVER = [0.0] * 8
FALLS = [0.0, 0.2, 0.4, 1.0, 0.2, 1.0, 1.0, 1.0]


def outcome(scores: list[float], seconds: float = 1.0, **told: Any) -> Outcome:
    """A run that was evaluated every 10 env steps."""
    versions = {"commit": "c0ffee", "python": "3", "torch": "2", "machine": "a loom"}
    points = [(at * 10, score) for at, score in enumerate(scores, 1)]
    clock = [(step / 10 * seconds, score) for step, score in points]
    return Outcome(points, clock, points, 3600, told, versions)


def made_up(alone: list[float], **tutored: list[float]) -> Findings:
    """A whole study: how students learn alone, and with a tutor by reuse, `r0` and `r3`, or by game."""
    runs = {}
    for cell in GRID.cells():
        scores = alone
        if cell.tutor != ALONE:
            scores = next((tutored[name] for name in (*cell, f"r{cell.reuse}") if name in tutored), alone)
        asked = {} if cell.tutor == ALONE else {"asked": 100 if cell.reuse == "0" else 40, "hits": 5, "consulted": 10}
        runs[cell] = [outcome(scores, **asked) for _ in GRID.seeds]
    return Findings(GRID, runs)


def said(found: Findings) -> dict[str, Claim]:
    return {claim.words: claim for claim in claims(found)}


def cell_of(found: Findings, *parts: str) -> Cell:
    (cell,) = [cell for cell in found.cells() if set(parts) <= set(cell)]
    return cell


def test_an_outcome_is_what_its_run_has_left_without_the_seconds_of_the_one_before(tmp_path: Path) -> None:
    rows = ["global_step,wall_seconds,tag,value", "10,1.5,eval/mean_return,0.1", "10,1.5,charts/episodic_return,0.7"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    (tmp_path / "summary.json").write_text('{"tutor": null, "wall_seconds": 9}')
    (tmp_path / "config.json").write_text('{"versions": {}, "total_steps": 10}')
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "summary.json").write_text('{"wall_seconds": 0.5}')
    whole, rest = outcome_of(tmp_path, 10), outcome_of(tmp_path, 10, tmp_path / "first")
    assert whole == ([(10, 0.1)], [(1.5, 0.1)], [(10, 0.7)], 9, {}, {})
    assert rest == whole._replace(clock=[(1, 0.1)], seconds=8.5)
    with pytest.raises(ValueError, match="is one of 10 env steps, and the study's are of 20"):
        outcome_of(tmp_path, 20)


def test_a_row_is_what_is_worked_out_by_hand() -> None:
    ours: list[Points] = [[(0, 0.0), (10, 1.0), (40, 0.5), (50, 1.0)], [(0, 0.0), (10, 0.0), (40, 2.0), (50, 2.0)]]
    theirs: list[Points] = [[(0, 0.0), (50, 1.0)], [(0, 0.0), (50, 2.0)]]
    tutors = [{"asked": 4, "hits": 6, "consulted": 10, "prompt_tokens": 7, "answer_tokens": 1},
              {"asked": 8, "hits": 3, "consulted": 40, "prompt_tokens": 5, "answer_tokens": 3,
               "no_advice": {"timeout": 3, "mass": 1}}]  # fmt: skip
    cell = Cell("g", "s", "t", "m", "3")
    runs = [Outcome(one, [(step / 5, score) for step, score in one], one, 2 + at, tutor, {})
            for at, (one, tutor) in enumerate(zip(ours, tutors, strict=True))]  # fmt: skip
    alone = [Outcome(one, one, one, 1, {}, {}) for one in theirs]
    found = Findings(GRID, {cell: runs, cell.baseline(): alone})
    areas = [(5 + 22.5 + 7.5) / 50, (0 + 30 + 20) / 50]
    numbers = {
        "seeds": 2, "final": 1.5, "final_low": 1, "final_high": 2, "area": round(fmean(areas), 4),
        "area_gain": round(fmean(areas) - 0.75, 4), "area_gain_low": round(0.1 - 12.706 * 0.1, 4),
        "area_gain_high": round(0.1 + 12.706 * 0.1, 4), "final_gain": 0, "final_gain_low": 0, "final_gain_high": 0,
        "improvement": 2 / 4, "threshold": 1.425, "reached": 1, "steps_to_threshold": math.inf,
        "seconds_to_threshold": math.inf, "speedup": round(math.sqrt(50 / 50 * 50 / 40), 4), "speedup_low": 1,
        "speedup_high": 1.25, "fall": 0, "spread": 0.5, "asked": 6, "hit_rate": 9 / 50, "tokens": 8, "seconds": 2.5,
        "no_advice": round(2 / 6, 4),
    }  # fmt: skip
    assert row_of(found, cell) == {"game": "g", "student": "s", "tutor": "t", "guidance": "m", "reuse": "3"} | numbers
    base = row_of(found, cell.baseline())
    assert [base[name] for name in ("area_gain", "improvement", "speedup", "asked", "hit_rate")] == [0, 0.5, 1, 0, 0]


def test_one_run_that_is_unlike_the_others_does_not_decide_a_row() -> None:
    cell = Cell("g", "s", "t", "m", "3")
    ours = [outcome([0.0, 1.0, 1.0, 1.0])] * 3 + [outcome([0.0, 0.0, 0.0, 8.0])]
    found = Findings(GRID, {cell: ours, cell.baseline(): [outcome([0.0, 0.0, 0.0, 1.0])] * 4})
    row = row_of(found, cell)
    assert [row[name] for name in ("final", "threshold", "reached", "steps_to_threshold")] == [1, 0.95, 4, 20]
    some = [outcome(FAST, 3.0), outcome(FAST, 3.0), outcome(FALLS, 30.0)]
    alone = [outcome([0.9 * score for score in SLOW])] * 3
    other = row_of(Findings(GRID, {cell: some, cell.baseline(): alone}), cell)
    assert [other[name] for name in ("improvement", "seconds_to_threshold", "fall")] == [1, 6, round(0.8 / 3, 4)]
    assert (row["final_low"], row["final_high"]) == interval([1, 1, 1, 8], iqm) != interval([1, 1, 1, 8])


@pytest.mark.parametrize(
    ("scores", "verdict", "number"),
    [(FAST, "supported", "2.00 [2.00, 2.00]"), (SLOW, "not supported", "1.00 [1.00, 1.00]"),
     (NEVER, "not supported", "0.50 [0.50, 0.50]")],
)  # fmt: skip
def test_tutoring_accelerates_where_tutored_students_are_sooner_there(
    scores: list[float], verdict: str, number: str
) -> None:
    claim = said(made_up(SLOW, r0=scores, r3=scores))["tutoring accelerates convergence"]
    assert (claim.verdict, claim.number) == (verdict, f"speed-up {number}, 16 cells")


def test_what_only_the_tutor_s_actions_do_is_told_apart_from_what_the_student_learns() -> None:
    found = made_up(SLOW)
    learned = [(step, 2 * score) for step, score in outcome(FAST).points]  # another threshold than the evaluations'
    runs = {cell: [run._replace(trained=learned) for run in several] for cell, several in found.runs.items()}
    runs |= {cell: found.runs[cell] for cell in GRID.cells() if cell.tutor == ALONE}
    told = said(replace(found, runs=runs))
    assert told["tutoring accelerates convergence"].verdict == "not supported"
    by_games = told["tutoring accelerates convergence, by the games of training"]
    assert by_games.verdict == "supported"
    assert by_games.number.startswith("speed-up 2.00 [2.00, 2.00]")
    silent = {cell: [run._replace(trained=[]) for run in several] for cell, several in runs.items()}
    assert "tutoring accelerates convergence, by the games of training" not in said(replace(found, runs=silent))


def test_what_hurts_some_and_helps_others_is_undecided_and_depends_on_the_game() -> None:
    found = made_up(SLOW, connect4=FAST, blackjack=[0.0] * 7 + [1.0])
    assert said(found)["tutoring accelerates convergence"].verdict == "not supported"
    assert "speed-up 1.00 [1.00, 1.00]" in said(found)["tutoring accelerates convergence"].number
    depends = said(found)["the effect depends on the game"]
    assert depends == (depends.words, "supported", "connect4 2.00 [2.00, 2.00], blackjack 0.50 [0.50, 0.50]")
    assert said(found)["the effect depends on the student"].verdict == "undecided"
    one = next(cell for cell in found.tutored() if cell.game == "blackjack")
    mixed = found.runs | {one: [outcome(FAST), outcome(SLOW), outcome(NEVER)]}
    assert said(replace(found, runs=mixed))["tutoring accelerates convergence"].verdict == "undecided"


@pytest.mark.parametrize(
    ("last", "verdict"), [(1.0, "supported"), (1.09, "supported"), (1.2, "not supported"), (0.5, "not supported")]
)
def test_final_scores_are_comparable_within_a_tenth_of_the_way(last: float, verdict: str) -> None:
    found = made_up([value - 1 for value in SLOW], r0=[-1.0] + [last - 1] * 7, r3=[-1.0] + [last - 1] * 7)
    claim = said(found)["at comparable final performance"]
    assert claim.verdict == verdict
    assert f"{last - 1:.2f} [" in claim.number


def test_final_scores_are_compared_seed_by_seed() -> None:
    runs = made_up(SLOW).runs
    several = [[0.0] + [last] * 7 for last in (0.5, 1.0, 1.5)]
    ours = {cell: [outcome(scores, asked=1) for scores in several] for cell in runs}
    found = Findings(GRID, ours)
    assert said(found)["at comparable final performance"].number.endswith(": 0.00 [0.00, 0.00]")
    last = {cell: list(reversed(told)) if cell.tutor != ALONE else told for cell, told in ours.items()}
    assert said(replace(found, runs=last))["at comparable final performance"].verdict == "undecided"


def test_cells_with_one_baseline_share_its_seeds() -> None:
    found = made_up(SLOW)
    runs = {cell: [outcome(scores) for scores in (FAST, SLOW, NEVER)] for cell in found.tutored()}
    found = replace(found, runs=found.runs | runs)
    several = [cell for cell in found.tutored() if cell[:2] == ("connect4", "dqn")]
    whole, one = (speed_of(found, cells, Cell.baseline) for cells in (several, several[:1]))
    assert whole == pytest.approx(one), "of four cells no more is known than of one"
    apart = speed_of(found, [cell for cell in found.tutored() if cell.reuse == "3"], Cell.baseline)
    assert apart.low > one.low
    assert apart.high < one.high
    assert gain_of([[0.0, 1.0, 2.0]] * 4, several) == pytest.approx(gain_of([[0.0, 1.0, 2.0]], several[:1]))


def test_claims_are_of_the_papers_guidance_and_of_budgets_that_end() -> None:
    grid = replace(GRID, guidance=("override", "hint"), reuse=("0", "3", "inf"))
    runs = {cell: [outcome(SLOW, asked=1)] * 3 for cell in grid.cells()}
    others = {cell: [outcome(FAST, asked=1)] * 3 for cell in runs
              if cell.tutor != ALONE and (cell.guidance == "hint" or cell.reuse == "inf")}  # fmt: skip
    told = said(Findings(grid, runs | others))
    assert told["tutoring accelerates convergence"].number == "speed-up 1.00 [1.00, 1.00], 16 cells"
    assert not [words for words in told if "reuse inf" in words]


def test_reuse_is_compared_with_no_reuse_and_not_with_the_baseline() -> None:
    same = said(made_up(SLOW, r0=FAST, r3=FAST))
    assert same["reuse 3 shortens training further, in env steps"].verdict == "not supported"
    assert "8 of 8 cells have the very same curves" in same["reuse 3 shortens training further, in env steps"].number
    assert "40% of the questions" in same["reuse 3 shortens training further, by the clock"].number
    assert same["reuse 3 makes convergence less stable"].verdict == "not supported"
    sooner = said(made_up(SLOW, r0=SLOW, r3=FAST))
    for way in ("in env steps", "by the clock"):
        assert sooner[f"reuse 3 shortens training further, {way}"].verdict == "supported"
    assert "2.00 [2.00, 2.00] times sooner" in sooner["reuse 3 shortens training further, in env steps"].number
    shaky = said(made_up(SLOW, r0=SLOW, r3=FALLS))["reuse 3 makes convergence less stable"]
    assert shaky.verdict == "supported"
    assert shaky.number.endswith("0.80 [0.80, 0.80]")


def test_a_fall_is_that_beside_no_reuse_as_a_share_of_the_way() -> None:
    shaky = made_up(SLOW, r0=FALLS, r3=FALLS)
    assert said(shaky)["reuse 3 makes convergence less stable"].number.endswith("0.00 [0.00, 0.00]")
    tenfold = [[10 * value for value in scores] for scores in (SLOW, FALLS)]
    far = said(made_up(tenfold[0], r0=tenfold[0], r3=tenfold[1]))
    assert far["reuse 3 makes convergence less stable"].number.endswith("0.80 [0.80, 0.80]")


def test_levels_whose_intervals_overlap_do_not_show_that_the_effect_depends_on_them() -> None:
    found = made_up(SLOW, r0=FAST, r3=FAST)
    few, more = ([outcome(scores) for scores in (FAST, SLOW, last)] for last in (NEVER, SLOW))
    noisy = {cell: few if cell.game == "connect4" else more for cell in found.tutored()}
    claim = said(replace(found, runs=found.runs | noisy))["the effect depends on the game"]
    assert claim.verdict == "undecided"
    assert claim.number.startswith("connect4 1.00 [")


def test_what_is_faster_by_the_clock_alone_is_told_apart() -> None:
    found = made_up(SLOW, r0=SLOW, r3=SLOW)
    quick = {cell: [outcome(SLOW, 0.5, **run.tutor) for run in runs]
             for cell, runs in found.runs.items() if cell.reuse == "3"}  # fmt: skip
    told = said(replace(found, runs=found.runs | quick))
    assert told["reuse 3 shortens training further, in env steps"].verdict == "not supported"
    assert told["reuse 3 shortens training further, by the clock"].verdict == "supported"


def test_a_student_that_does_not_learn_alone_says_nothing_of_the_claims() -> None:
    found = made_up(SLOW, r0=FAST, r3=FAST)
    dead = {cell: [outcome(NEVER)] * 3 for cell in found.cells() if cell.tutor == ALONE and cell.game == "connect4"}
    found = replace(found, runs=found.runs | dead)
    assert said(found)["tutoring accelerates convergence"].number.endswith(", 8 cells")
    assert {line.split(" | ")[3] for line in over_all(found).splitlines()[2:]} == {"2"}


def test_a_student_that_does_not_learn_alone_has_no_threshold(tmp_path: Path) -> None:
    found = made_up(SLOW, r0=FAST, r3=FAST)
    dead = {cell: [outcome(NEVER)] * 3 for cell in found.cells() if cell.tutor == ALONE and cell.student == "dqn"}
    dead |= {cell: [outcome(NEVER)] * 3 for cell in found.cells() if cell.tutor == ALONE and cell.game == "blackjack"}
    found = replace(found, runs=found.runs | dead)
    assert "Alone, these come to the threshold: ppo 3 of 3." in speeds(found, "connect4")
    assert "| dqn | scripted:0.9 | `override` | – | – |" in speeds(found, "connect4")
    assert "Alone, these come to the threshold: none." in speeds(found, "blackjack")
    for student, number in (("dqn", None), ("ppo", 2)):
        row = row_of(found, cell_of(found, "connect4", student, "scripted:0.9", "3"))
        assert row["speedup"] == row["speedup_low"] == number
        assert [row[name] is None for name in ("threshold", "reached", "steps_to_threshold", "fall")] == [
            not number
        ] * 4
        assert row["final"] == 1
    text = written(found, "tiny", "", [], draw(found, tmp_path))
    beside = text.partition("## Reuse beside no reuse")[2].partition("##")[0]
    assert "| connect4 | ppo | 3 |" in beside
    assert "dqn" not in beside
    none = replace(found, runs=found.runs | {cell: [outcome(NEVER)] * 3 for cell in found.cells()})
    assert "## Reuse beside no reuse" not in written(none, "tiny", "", claims(none), [])


def test_one_seed_says_nothing_of_the_claims() -> None:
    grid = replace(GRID, seeds=(1,))
    runs = {cell: [outcome(SLOW if cell.tutor == ALONE else FAST, asked=1)] for cell in grid.cells()}
    assert claims(Findings(grid, runs)) == []
    assert len(claims(Findings(replace(grid, seeds=(1, 2)), {cell: 2 * one for cell, one in runs.items()}))) == 9


def test_verdicts_want_an_interval_on_one_side() -> None:
    assert [above(Gain(0, *ends), 1) for ends in ((1.1, 2), (1, 2), (0.5, 1.5), (0.5, 1), (1, 1))] == [
        "supported", "undecided", "undecided", "not supported", "not supported"]  # fmt: skip
    assert [near(Gain(0, *ends), 0.1) for ends in ((-0.05, 0.05), (-0.05, 0.2), (0.1, 0.2), (-0.3, -0.1), (-1, 1))] == [
        "supported", "undecided", "not supported", "not supported", "undecided"]  # fmt: skip


@pytest.mark.parametrize(
    ("alone", "ours", "shown"),
    [(SLOW, FAST, "2.00 ["), (SLOW, NEVER, "≤ 0.50 ["), ([0.0] * 7 + [0.9], FAST, "4.00 [")],
)  # fmt: skip
def test_a_speedup_says_what_kind_of_bound_it_is(alone: list[float], ours: list[float], shown: str) -> None:
    found = made_up(alone, r0=ours, r3=ours)
    assert bounded(found, found.tutored()[0]).startswith(shown)


def test_where_baselines_do_not_all_arrive_a_speedup_is_a_lower_bound() -> None:
    found = made_up(SLOW, r0=FAST, r3=NEVER)
    alone = {cell: [outcome(FAST), outcome(FAST), outcome([0.0, 0.5] + [0.9] * 6)]
             for cell in found.cells() if cell.tutor == ALONE}  # fmt: skip
    found = replace(found, runs=found.runs | alone)
    first, last = (cell_of(found, "connect4", "dqn", "scripted:0.9", budget) for budget in ("0", "3"))
    assert bounded(found, first).startswith("≥ ")
    assert bounded(found, last).startswith("~ ")
    assert re.search(r"\| ≥ [^|]* \| ~ ", speeds(found, "connect4")), "in the head's order"
    assert "Alone, these come to the threshold: dqn 2 of 3, ppo 2 of 3." in speeds(found, "connect4")


def test_the_chance_to_be_better_is_that_of_the_tutored_student() -> None:
    found = made_up(SLOW, r0=[2 * value for value in SLOW], r3=NEVER)
    chances = {tuple(line.split(" | ")[2:4]): line.split(" | ")[6] for line in over_all(found).splitlines()[2:]}
    assert chances == {("0", "4"): "100% |", ("3", "4"): "0% |"}


def test_over_all_students_one_that_is_unlike_the_others_does_not_decide() -> None:
    found, odd = made_up(SLOW), [9 * score for score in FAST]
    runs = {cell: [outcome(FAST)] * 2 + [outcome(odd if cell[:2] == ("connect4", "dqn") else FAST)]
            for cell in found.tutored()}  # fmt: skip
    assert over_all(replace(found, runs=found.runs | runs)).splitlines()[2].split(" | ")[5] == "1.00 [1.00, 1.00]"


def test_costs_and_reuse_are_means_over_runs_and_shares_of_what_no_reuse_asks() -> None:
    found = made_up(SLOW, r0=SLOW, r3=FALLS)
    rows = [line.strip("| ").split(" | ") for line in costs(found).splitlines()[2:]]
    assert rows[0] == ["connect4", "scripted:0.9", "0", "10", "100", "50%", "0", "0.0", "0%"]
    assert rows[1] == ["connect4", "scripted:0.9", "3", "10", "40", "50%", "0", "0.0", "0%"]
    mixed = cell_of(found, "connect4", "dqn", "scripted:0.9", "3")
    spread = {mixed: [outcome(SLOW, asked=40), outcome(NEVER, asked=40), outcome(NEVER, asked=40)]}
    lines = reuse(replace(found, runs=found.runs | spread), [cell for cell in found.tutored() if cell.reuse == "3"])
    assert lines.splitlines()[2].startswith("| connect4 | dqn | 3 | 0.79 [0.71, 1.00] |")
    assert lines.splitlines()[2].endswith("| 0.236 (without: 0.000) | 40% |")
    quick = {cell: [outcome(FALLS, 0.5)] * 3 for cell in found.runs if cell.reuse == "3"}
    lines = reuse(replace(found, runs=found.runs | quick), list(quick))
    assert lines.splitlines()[2].split(" | ")[3:6] == ["1.00 [1.00, 1.00]", "2.00 [2.00, 2.00]", "0.80 [0.80, 0.80]"]
    told = {"asked": 10, "prompt_tokens": 7, "answer_tokens": 5, "seconds": 1.5, "no_advice": {"timeout": 2, "mass": 1}}
    runs = {cell: [outcome(SLOW)._replace(tutor=told)] * 3 for cell in found.tutored()}
    assert costs(replace(found, runs=found.runs | runs)).splitlines()[2].endswith("| 12 | 1.5 | 30% |")


def test_a_cell_without_all_its_runs_is_not_told(tmp_path: Path) -> None:
    found = made_up(SLOW, r0=FAST, r3=FAST)
    gone = cell_of(found, "connect4", "ppo", ALONE)
    found = replace(found, runs={cell: runs for cell, runs in found.runs.items() if cell != gone})
    assert len(found.cells()) == len(GRID.cells()) - 5, "neither the baseline nor what it is compared with"
    assert "| ppo |" not in speeds(found, "connect4")
    assert "| ppo |" in speeds(found, "blackjack")
    draw(found, tmp_path)


class Reader(HTMLParser):
    """What a browser would meet: tags by name, with their attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_holds_all_that_it_shows(tmp_path: Path) -> None:
    found = made_up(SLOW, r0=FAST, r3=FAST)
    pictures = draw(found, tmp_path)
    text = written(found, "tiny", "python -m experiments.study report", claims(found), pictures)
    reader = Reader()
    reader.feed(page(text, pictures))
    images = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == len(pictures) == 1
    for image in images:
        kind, data = (image or "").split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(BytesIO(b64decode(data))).width > 500
    assert not [one for one in reader.tags if {"href", "src"} & one[1].keys() and one[0] != "img"], (
        "nothing from elsewhere"
    )
    assert [tag for tag, _ in reader.tags].count("table") == len(re.findall(r"^\| ---", text, re.MULTILINE)) == 6
    for claim in claims(found):
        assert all(words in reader.words for words in claim)
    assert "c0ffee, Python 3, PyTorch 2, a loom, 60 runs, 60.0 hours in all" in reader.words


def test_each_tutor_has_a_picture_where_methods_are_compared(tmp_path: Path) -> None:
    grid = replace(GRID, guidance=("override", "hint"), tutors=("scripted:0.9", "recorded:/my/advice"))
    runs = {cell: [outcome(FAST, asked=1)] * 3 for cell in grid.cells()}
    names = [one.name for one in draw(Findings(grid, runs), tmp_path)]
    assert names == ["curves_scripted-0.9.png", "curves_recorded--my-advice.png"]


def test_lines_are_of_the_last_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = set()
    monkeypatch.setattr(writeup, "line", lambda axes, curves, label, color: drawn.add((label, curves[0][1][1])))
    draw(made_up(SLOW, r0=NEVER, r3=FAST), tmp_path)
    assert drawn == {("alone", 0.2), ("scripted:0.9", 1.0), ("scripted:0.6", 1.0)}


def test_a_line_is_the_mean_over_the_steps_that_all_runs_have() -> None:
    curves: list[Points] = [[(10, 0.0), (20, 1.0), (40, 5.0)], [(5, 9.0), (10, 2.0), (40, 7.0), (50, 9.0)]]
    axes = Figure().subplots()
    line(axes, curves, "alone")
    assert axes.lines[0].get_xydata().tolist() == [[10, 1], [40, 6]]
    corners = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(10, 0), (10, 2), (40, 5), (40, 7)}
    with pytest.raises(ValueError, match="the runs of alone have no evaluation at the same step"):
        line(axes, [[(10, 0.0)], [(5, 0.0)]], "alone")


def test_a_table_has_a_cell_for_each_value() -> None:
    lines = table(("a", "b"), [(1, "x"), (2, "y")]).splitlines()
    assert list(csv.reader(lines, delimiter="|"))[2:] == [["", " 1 ", " x ", ""], ["", " 2 ", " y ", ""]]


def test_methods_of_guidance_stand_beside_the_same_student_alone_seed_by_seed() -> None:
    grid = replace(GRID, games=("connect4",), guidance=("override", "shape"), reuse=("inf",), steps={"connect4": 100})
    base = [[0.0, at / 10, at / 10, 0.5 + at / 10] for at in range(3)]
    gains = {"override": (0.1, 0.2, 0.6), "shape": (0.1, 0.2, 0.3)}
    runs = {}
    for cell in grid.cells():
        more = gains.get(cell.guidance, (0, 0, 0)) if cell.tutor == "scripted:0.6" else (0, 0, 0)
        runs[cell] = [outcome([score + gain for score in scores]) for scores, gain in zip(base, more, strict=True)]
    found = Findings(grid, runs)
    heading, shown, other, final = beside(found, "connect4")
    assert (heading, other) == ("### connect4: area", "### connect4: final score")
    assert shown == final, "the whole curve is raised"
    assert shown.splitlines()[0] == "| student | guidance | scripted:0.9 | scripted:0.6 |"
    reach = 4.303 * math.sqrt(0.07) / math.sqrt(3)
    spread = f"+0.30 [{0.3 - reach:+.2f}, {0.3 + reach:+.2f}]"
    for student in grid.students:
        assert f"| {student} | `override` | +0.00 [+0.00, +0.00] | {spread} |" in shown
        assert f"| {student} | `shape` | +0.00 [+0.00, +0.00] | +0.20 [-0.05, +0.45] |" in shown
    assert "**-0.50 [-0.74, -0.26]**" in (signed(-0.5, -0.74, -0.26), signed(0.5, 0.1, 1))
    assert signed(0.5, 0.1, 1).startswith("**")
    assert "## Beside the same student alone" in written(found, "x", "y", [], [])
    assert "## Beside the same student alone" not in written(made_up(SLOW), "x", "y", [], [])
