"""The pages, tables and pictures of a report, from runs that are made up; and one from runs that are not."""

import csv
import json
import math
import re
import shutil
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from PIL import Image

from experiments.analysis import StudyResults, claims
from experiments.page import html
from experiments.report import (
    DEFINITIONS,
    HEADS,
    ReportOptions,
    bounded_speedup,
    costs,
    curve_file,
    definitions,
    differences,
    draw,
    page,
    report,
    reuse_table,
    signed,
    speedups,
    table,
    totals,
    write_curves,
)
from experiments.runner import RunOptions, run
from experiments.spec import Condition, RunSpec, StudyOptions, TutorSpec, read_study
from experiments.stats import read_curve
from tests.helpers.paths import ROOT
from tests.helpers.studies import (
    ALONE,
    FALLS,
    FAST,
    NEVER,
    SLOW,
    STUDY,
    TINY,
    made_up,
    result,
    run_dirs,
    with_runs,
    write_study,
)

PUBLISHED = sorted((ROOT / "results" / "study").glob("*/conditions.csv"))


def condition_of(results: StudyResults, **fields: object) -> Condition:
    (found,) = [one for one in results.conditions() if replace(one, **fields) == one]  # type: ignore[arg-type]
    return found


def rows_of(markdown: str) -> list[list[str]]:
    """The body of a Markdown table."""
    return [line.strip("| ").split(" | ") for line in markdown.splitlines()[2:]]


def test_a_student_that_does_not_learn_alone_has_no_threshold() -> None:
    results = made_up(SLOW, r0=FAST, r3=FAST)
    dead = [one for one in results.conditions() if one.is_baseline() and (one.algo == "dqn" or one.env == "blackjack")]
    results = with_runs(results, dict.fromkeys(dead, [result(NEVER)] * 3))
    assert "Runs without a tutor that reach the threshold: ppo 3 of 3." in speedups(results, "connect4")
    assert "| dqn | scripted:0.9 | `override` | – | – |" in speedups(results, "connect4")
    assert "Runs without a tutor that reach the threshold: none." in speedups(results, "blackjack")
    assert {row[3] for row in rows_of(totals(results))} == {"1"}
    text = page(results, "tiny", "", [], [])
    compared = text.partition("## Reuse compared with no reuse")[2].partition("##")[0]
    assert "| connect4 | ppo | 3 |" in compared
    assert "dqn" not in compared
    none = with_runs(results, {one: [result(NEVER)] * 3 for one in results.conditions()})
    assert "## Reuse compared with no reuse" not in page(none, "tiny", "", claims(none), [])


@pytest.mark.parametrize(
    ("alone", "ours", "shown"),
    [(SLOW, FAST, "2.00 ["), (SLOW, NEVER, "≤ 0.50 ["), ([0.0] * 7 + [0.9], FAST, "4.00 [")],
)
def test_a_speedup_says_what_kind_of_bound_it_is(alone: list[float], ours: list[float], shown: str) -> None:
    results = made_up(alone, r0=ours, r3=ours)
    assert bounded_speedup(results, results.tutored()[0]).startswith(shown)


def test_a_speedup_is_a_lower_bound_where_some_baselines_do_not_reach_the_threshold() -> None:
    results = made_up(SLOW, r0=FAST, r3=NEVER)
    alone = [result(FAST), result(FAST), result([0.0, 0.5] + [0.9] * 6)]
    results = with_runs(results, {one: alone for one in results.conditions() if one.is_baseline()})
    tutor = TutorSpec("scripted", 0.9)
    first, last = (
        condition_of(results, env="connect4", algo="dqn", tutor=tutor, reuse=budget) for budget in (0.0, 3.0)
    )
    assert bounded_speedup(results, first).startswith("≥ ")
    assert bounded_speedup(results, last).startswith("~ ")
    assert re.search(r"\| ≥ [^|]* \| ~ ", speedups(results, "connect4")), "in the order of the head"
    assert "reach the threshold: dqn 2 of 3, ppo 2 of 3." in speedups(results, "connect4")


def test_probability_of_improvement_is_that_of_the_tutored_student() -> None:
    results = made_up(SLOW, r0=[2 * value for value in SLOW], r3=NEVER)
    assert {(row[2], row[3]): row[7] for row in rows_of(totals(results))} == {("0", "4"): "100%", ("3", "4"): "0%"}


def test_a_single_outlier_does_not_decide_the_totals() -> None:
    results, odd = made_up(SLOW), [9 * score for score in FAST]
    runs = {one: [result(FAST)] * 2 + [result(odd if (one.env, one.algo) == ("connect4", "dqn") else FAST)]
            for one in results.tutored()}  # fmt: skip
    assert rows_of(totals(with_runs(results, runs)))[0][6] == "1.00 [1.00, 1.00]"


def test_totals_count_seconds_beside_env_steps() -> None:
    """Half as many env steps to the threshold, each of which takes three times as long."""
    results = made_up(SLOW)
    slower = with_runs(results, {one: [result(FAST, seconds=3.0)] * 3 for one in results.tutored()})
    assert [row[4:6] for row in rows_of(totals(slower))] == [["2.00 [2.00, 2.00]", "0.67 [0.67, 0.67]"]] * 4


def test_reuse_table_has_means_over_conditions_and_shares_of_what_is_asked_without_reuse() -> None:
    results = made_up(SLOW, r0=SLOW, r3=FALLS)
    with_reuse = [one for one in results.tutored() if one.reuse == 3]
    mixed = condition_of(results, env="connect4", algo="dqn", tutor=TutorSpec("scripted", 0.9), reuse=3.0)
    apart = {mixed: [result(SLOW, asked=40), result(NEVER, asked=40), result(NEVER, asked=40)]}
    row = rows_of(reuse_table(with_runs(results, apart), with_reuse))[0]
    assert row[:4] == ["connect4", "dqn", "3", "0.79 [0.71, 1.00]"]
    assert row[6:] == ["0.236 (without: 0.000)", "40%"]
    quick = {one: [result(FALLS, 0.5)] * 3 for one in with_reuse}
    row = rows_of(reuse_table(with_runs(results, quick), with_reuse))[0]
    assert row[3:6] == ["1.00 [1.00, 1.00]", "2.00 [2.00, 2.00]", "0.80 [0.80, 0.80]"]


def test_costs_are_means_over_runs() -> None:
    results = made_up(SLOW)
    rows = rows_of(costs(results))
    assert rows[0] == ["connect4", "scripted:0.9", "0", "10", "100", "50%", "0", "0.0", "0%"]
    assert rows[1] == ["connect4", "scripted:0.9", "3", "10", "40", "50%", "0", "0.0", "0%"]
    counters = {"asked": 10, "prompt_tokens": 7, "answer_tokens": 5, "seconds": 1.5}
    counters |= {"no_advice": {"timeout": 2, "mass": 1}}
    runs = {one: [result(SLOW)._replace(tutor=counters)] * 3 for one in results.tutored()}
    assert rows_of(costs(with_runs(results, runs)))[0][-3:] == ["12", "1.5", "30%"]


def test_conditions_whose_baseline_is_not_finished_are_left_out(tmp_path: Path) -> None:
    results = made_up(SLOW, r0=FAST, r3=FAST)
    gone = next(one for one in results.conditions() if (one.env, one.algo) == ("connect4", "ppo") and one.is_baseline())
    results = replace(results, runs={one: runs for one, runs in results.runs.items() if one != gone})
    assert "| ppo |" not in speedups(results, "connect4")
    assert "| ppo |" in speedups(results, "blackjack")
    draw(results, tmp_path)


class Reader(HTMLParser):
    """What a browser shows: tags by name, with their attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_page_contains_all_that_it_shows(tmp_path: Path) -> None:
    results = made_up(SLOW, r0=FAST, r3=FAST)
    pictures = draw(results, tmp_path)
    text = page(results, "tiny", "python -m experiments report", claims(results), pictures)
    reader = Reader()
    reader.feed(html(text, pictures, HEADS))
    images = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == len(pictures) == 2
    for image in images:
        kind, data = (image or "").split(",")
        assert kind == "data:image/png;base64"
        assert Image.open(BytesIO(b64decode(data))).width > 500
    links = [attributes["href"] or "" for tag, attributes in reader.tags if tag == "a"]
    assert len(links) > 10
    ids = {f"#{attributes['id']}" for _, attributes in reader.tags if "id" in attributes}
    assert set(links) <= ids, "heads lead to definitions, and nothing leads elsewhere"
    assert not [one for one in reader.tags if {"href", "src"} & one[1].keys() and one[0] not in ("img", "a")]
    assert [tag for tag, _ in reader.tags].count("table") == len(re.findall(r"^\| ---", text, re.MULTILINE)) == 7
    for claim in claims(results):
        assert all(words in reader.text for words in claim)
    assert "c0ffee, Python 3, PyTorch 2, a loom, 60 runs, 60.0 hours in all" in reader.text


def test_every_term_of_a_table_is_defined_once() -> None:
    assert set(HEADS.values()) <= set(DEFINITIONS)
    lines = definitions().splitlines()
    assert len(lines) == len(DEFINITIONS)
    assert all(line.startswith(f"- **{term}**: ") for line, term in zip(lines, DEFINITIONS, strict=True))


@pytest.mark.process
@pytest.mark.parametrize("width", [360, 1200])
def test_tables_scroll_and_the_page_does_not(width: int, tmp_path: Path) -> None:
    """In a browser, at the width of a phone and of a desk."""
    browsing = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    results = made_up(SLOW, r0=FAST, r3=FAST)
    pictures = draw(results, tmp_path)
    text = page(results, "tiny", "python -m experiments report " + 30 * "--long-flag ", claims(results), pictures)
    (tmp_path / "report.html").write_text(html(text, pictures, HEADS))
    with browsing.sync_playwright() as machine:
        browser = machine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = browser.new_page(
            viewport={"width": width, "height": 800}, device_scale_factor=1, is_mobile=width < 500
        )
        window.goto((tmp_path / "report.html").as_uri())
        assert window.evaluate("document.documentElement.scrollWidth") <= width
        boxes = window.eval_on_selector_all(".scroll", "all => all.map(one => [one.clientWidth, one.scrollWidth])")
        assert all(inside <= width for inside, _ in boxes)
        assert any(whole > inside for inside, whole in boxes) == (width < 500)
        window.click("th a >> nth=0")
        assert window.eval_on_selector_all("li:target", "all => all.length") == 1
        browser.close()


def test_picture_of_the_readme_is_of_a_study_whose_curves_are_published() -> None:
    picture = re.search(r"!\[[^]]*\]\((results/study/(\w+)/overview\.png)\)", (ROOT / "README.md").read_text())
    assert picture is not None
    path, name = ROOT / picture[1], picture[2]
    study = read_study(ROOT / "experiments" / "configs" / f"{name}.toml")
    files = {curve_file(one) for one in study.conditions()}
    assert files == {one.name for one in (path.parent / "curves").iterdir()}
    assert path.is_file()
    for one in (path.parent / "curves").iterdir():
        assert len(one.read_text().splitlines()) > 2 + study.num_evals / 2, f"{one} has no curve"


def test_curves_are_written_where_probes_shifted_the_evaluations(tmp_path: Path) -> None:
    study = replace(STUDY, algos=("dqn",), envs=("connect4",), seeds=(1, 2))
    condition = study.conditions()[0]
    first, second = result([0.0, 0.4, 0.8]), result([0.0, 0.4, 0.8])
    shifted = [(step + 5, score) for step, score in second.by_steps]
    results = StudyResults(study, {condition: [first, second._replace(by_steps=shifted)]})
    write_curves(tmp_path / "curves.csv", "made up", condition, results)
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()[1:]))
    assert [(row["global_step"], row["seed1"], row["seed2"]) for row in rows] == [
        ("20", "0.4", "0.2"),
        ("30", "0.8", "0.6"),
    ]


def test_markdown_table_has_a_cell_for_each_value() -> None:
    lines = table(("a", "b"), [(1, "x"), (2, "y")]).splitlines()
    assert list(csv.reader(lines, delimiter="|"))[2:] == [["", " 1 ", " x ", ""], ["", " 2 ", " y ", ""]]


def test_guidance_methods_are_compared_with_the_same_student_alone_seed_by_seed() -> None:
    guidance = ("override", "shape")
    study = replace(STUDY, envs=("connect4",), guidance=guidance, reuse=(math.inf,), steps={"connect4": 100})
    base = [[0.0, at / 10, at / 10, 0.5 + at / 10] for at in range(3)]
    gains = {"override": (0.1, 0.2, 0.6), "shape": (0.1, 0.2, 0.3)}
    runs = {}
    for condition in study.conditions():
        more = gains.get(condition.guidance, (0, 0, 0)) if condition.tutor.accuracy == 0.6 else (0, 0, 0)
        runs[condition] = [result([score + gain for score in one]) for one, gain in zip(base, more, strict=True)]
    results = StudyResults(study, runs)
    heading, shown, other, final = differences(results, "connect4")
    assert (heading, other) == ("### connect4: AUC", "### connect4: final score")
    assert shown == final, "the whole curve is raised"
    assert shown.splitlines()[0] == "| student | guidance | scripted:0.9 | scripted:0.6 |"
    margin = 4.3027 * math.sqrt(0.07) / math.sqrt(3)
    difference = f"+0.30 [{0.3 - margin:+.2f}, {0.3 + margin:+.2f}]"
    for student in study.algos:
        assert f"| {student} | `override` | +0.00 [+0.00, +0.00] | {difference} |" in shown
        assert f"| {student} | `shape` | +0.00 [+0.00, +0.00] | +0.20 [-0.05, +0.45] |" in shown
    assert "## Difference from the same student alone" in page(results, "x", "y", [], [])
    assert "## Difference from the same student alone" not in page(made_up(SLOW), "x", "y", [], [])


def test_differences_are_bold_where_the_interval_excludes_0() -> None:
    assert signed(-0.5, -0.74, -0.26) == "**-0.50 [-0.74, -0.26]**"
    assert signed(0.5, 0.1, 1) == "**+0.50 [+0.10, +1.00]**"
    assert signed(0.2, -0.1, 0.5) == "+0.20 [-0.10, +0.50]"


def write_run(run_dir: Path, scores: list[float]) -> None:
    """Write the directory of a run with these evaluations."""
    run_dir.mkdir(parents=True)
    lines = ["global_step,wall_seconds,tag,value"]
    for at, score in enumerate(scores, 1):
        lines += [f"{at * 10},{at},eval/mean_return,{score}", f"{at * 10},{at},eval/stderr,9"]
    (run_dir / "metrics.csv").write_text("\n".join(lines))
    (run_dir / "summary.json").write_text(json.dumps({"tutor": None, "wall_seconds": 900}))
    versions = {"commit": "c0ffee", "python": "3", "torch": "2", "machine": "a loom"}
    (run_dir / "config.json").write_text(json.dumps({"versions": versions, "total_steps": 3000}))


def csv_rows(path: Path) -> list[dict[str, str]]:
    comment, *lines = path.read_text().splitlines()
    assert comment.startswith("# python -m experiments report ")
    assert " # commit " in comment
    return list(csv.DictReader(lines))


def test_report_goes_to_runs_unless_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_study(tmp_path, TINY.replace('["ppo"]', '["dqn", "ppo"]'))
    missing = r"no condition has all its runs in runs/study/tiny; .* -m experiments run .*tiny.toml$"
    with pytest.raises(ValueError, match=missing):
        report(ReportOptions(path))
    runs = read_study(path).runs()
    for at, one in enumerate(runs[:-1]):
        if one.condition != runs[0].condition or one.seed == 1:
            write_run(Path("runs/study/tiny") / one.name(), [0.0, float(at)])
    for options, out in (
        (ReportOptions(path), Path("runs/study/tiny/report")),
        (ReportOptions(path, publish=True), Path("results/study/tiny")),
        (ReportOptions(path, out=Path("elsewhere")), Path("elsewhere")),
    ):
        report(options)
        assert f"{out}: 1 of 4 conditions;" in capsys.readouterr().out, "dqn's baseline is not finished"
        (row,) = csv_rows(out / "conditions.csv")
        found = (row["algo"], row["tutor"], float(row["final_score"]), float(row["auc"]))
        assert found == ("ppo", "none", 3, 1.5)
        made = (out / "conditions.csv").read_text().splitlines()[0]
        assert made.endswith("# commit c0ffee, Python 3, PyTorch 2, a loom, 2 runs, 0.5 hours in all")
    with pytest.raises(ValueError, match="leave out --out"):
        report(ReportOptions(path, out=Path("elsewhere"), publish=True))


def test_curves_are_written_as_csv_and_a_study_without_tutors_has_final_scores(tmp_path: Path) -> None:
    path = write_study(tmp_path, ALONE.replace("[1]", "[1, 2]"))
    for run_dir, scores in zip(run_dirs(path), ([0.0, 1.0, 4.0], [2.0, 3.0, 2.0]), strict=True):
        write_run(run_dir, scores)
    report(ReportOptions(path, tmp_path / "runs"))
    rows = csv_rows(tmp_path / "runs" / "report" / "curves" / "ppo_connect4.csv")
    assert [list(map(float, row.values())) for row in rows] == [
        [10, 1, 0, 2, 0, 2], [20, 2, 1, 3, 1, 3], [30, 3, 2, 4, 4, 2]]  # fmt: skip
    assert list(rows[0]) == ["global_step", "mean", "low", "high", "seed1", "seed2"]
    text = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert "| connect4 | ppo | 3.00 [2.00, 4.00] | 1.000 | 2 |" in text
    assert "Speed-ups" not in text


@pytest.mark.process
@pytest.mark.train
def test_report_is_what_the_runs_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, TINY)
    run(RunOptions(path, tmp_path / "runs"))
    report(ReportOptions(path, tmp_path / "runs"))
    assert "2 of 2 conditions" in capsys.readouterr().out.replace("\n", " ")
    rows = csv_rows(tmp_path / "runs" / "report" / "conditions.csv")
    assert len(rows) == 2
    for row in rows:
        names = {name: row[name] for name in ("env", "algo", "guidance", "variant")}
        condition = Condition(**names, tutor=TutorSpec.parse(row["tutor"]), reuse=float(row["reuse"]))
        ours, theirs, ends = [], [], []
        for seed in (1, 2):
            run_dir = tmp_path / "runs" / RunSpec(condition, seed).name()
            ours.append(np.array(read_curve(run_dir)))
            theirs.append(np.array(read_curve(run_dir.with_name(RunSpec(condition.baseline(), seed).name()))))
            ends.append(json.loads((run_dir / "summary.json").read_text()))
        lasts, areas, others = [one[-1, 1] for one in ours], [area(one) for one in ours], [area(one) for one in theirs]
        tutors = [end["tutor"] or {"asked": 0, "hits": 0, "consulted": 1} for end in ends]
        expected = {"seeds": 2, "final_score": fmean(lasts), "final_score_low": min(lasts),
                    "final_score_high": max(lasts), "auc": fmean(areas), "auc_gain": fmean(areas) - fmean(others),
                    "asked": fmean(tutor["asked"] for tutor in tutors), "score_std": abs(lasts[0] - lasts[1]) / 2,
                    "hit_rate": sum(t["hits"] for t in tutors) / sum(t["consulted"] for t in tutors),
                    "seconds": fmean(end["wall_seconds"] for end in ends)}  # fmt: skip
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, abs=1e-4)
        first, last = (fmean(one[at, 1] for one in theirs) for at in (0, -1))
        limit = 0.05 * first + 0.95 * last if last > first else math.nan
        assert float(row["threshold"] or "nan") == pytest.approx(limit, abs=1e-4, nan_ok=True)
        assert (float(row["asked"]) > 100) == (row["tutor"] != "none")


def area(curve: np.ndarray) -> float:
    return float(np.trapezoid(curve[:, 1], curve[:, 0]) / np.ptp(curve[:, 0]))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_published_tables_have_the_conditions_of_their_study(path: Path) -> None:
    """A published table may have a part of the conditions: not all of a study was run."""
    study = StudyOptions(ROOT / "experiments" / "configs" / f"{path.parent.name}.toml").subset()
    known = {tuple(one.columns().values()) for one in study.conditions()}
    rows = list(csv.DictReader(path.read_text().splitlines()[1:]))
    names = ("env", "algo", "tutor", "guidance", "reuse", "variant")
    assert {tuple(row[name] for name in names) for row in rows} <= known
    assert len(rows) > 2


def test_page_says_whose_claims_they_are() -> None:
    results = made_up(SLOW, r0=FAST, r3=FAST)
    text = page(results, "tiny", "", claims(results), [])
    assert "## Claims of the paper, beside these runs" in text
    assert "Toral & Lazebnik 2025, arXiv:2509.08329" in text
    assert "| undecided |" in text
    assert "| supported |" not in text
