"""A study: its measures against slow definitions and numbers worked by hand, its flags and its runs as they are."""

import csv
import json
import math
import random
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from experiments import study
from experiments.spec import ALONE, Cell, Grid, Job, Study, read_grid
from experiments.stats import (
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
from experiments.study import Report, Run
from tests.helpers.paths import ROOT
from tests.helpers.programs import program
from training.config import config_from_json

TINY = """
students = ["dqn", "ppo"]
games = ["connect4"]
tutors = ["scripted:0.9"]
guidance = ["override"]
reuse = [inf]
seeds = [1, 2]
points = 3
eval_episodes = 20

[steps]
connect4 = 3_000

[flags]
connect4 = "--num-envs 100 --hidden 16 --tutor-depth 1"
dqn = "--learning-starts 500"
"""
ALONE_ONCE = TINY.replace('["scripted:0.9"]', "[]").replace("[1, 2]", "[1]")


def written(folder: Path, text: str) -> Path:
    """A grid's file."""
    (folder / "tiny.toml").write_text(text)
    return folder / "tiny.toml"


def told(path: Path, *flags: str) -> tuple[str, ...]:
    return (*flags, "--grid", str(path), "--folder", str(path.parent / "runs"))


def noise(number: int, seed: int = 1) -> list[float]:
    chance = random.Random(seed)
    return [chance.gauss(0, 1) for _ in range(number)]


@pytest.mark.parametrize(("number", "counted"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2), (11, 2), (12, 3)])
def test_late_is_the_mean_of_the_last_quarter_and_of_one_at_least(number: int, counted: int) -> None:
    values = noise(number)
    assert late(list(enumerate(values))) == pytest.approx(sum(values[number - counted :]) / counted)


def test_area_is_the_mean_height_also_between_uneven_steps() -> None:
    assert area([(0, 0.0), (10, 10.0), (40, 10.0)]) == pytest.approx((50 + 300) / 40)
    assert area([(100, -2.0), (110, 2.0), (140, -1.0)]) == pytest.approx((0 + 15) / 40), "the way begins at 100"
    assert area([(7, 3.0)]) == 3
    steps = sorted(random.Random(2).sample(range(1000), 20))
    fine = np.interp(np.arange(steps[0], steps[-1]) + 0.5, steps, noise(20))  # linear within each step: exact
    assert area(list(zip(steps, noise(20), strict=True))) == pytest.approx(fine.mean())


def test_the_threshold_is_most_of_the_way_of_the_baselines_on_average() -> None:
    up, flat = [(1, -1.0), (2, 0.0), (3, 0.0), (4, 1.0)], [(1, 0.0), (2, 9.0), (3, 9.0), (4, 0.0)]
    assert threshold([up]) == pytest.approx(0.9)
    assert threshold([up, flat]) == pytest.approx(-0.5 + 0.95 * 1)


def test_steps_to_is_the_first_evaluation_that_reached_the_aim_or_infinite() -> None:
    points = [(10, 0.0), (20, 0.5), (30, 0.2), (40, 0.9)]
    assert [steps_to(points, aim) for aim in (-1, 0.5, 0.51, 0.9, 0.91)] == [10, 20, 40, 40, math.inf]


def test_a_speedup_is_the_ratio_of_steps_and_who_never_came_counts_as_at_the_end() -> None:
    late, early = [(10, 0.0), (40, 1.0), (80, 1.0)], [(10, 0.0), (20, 1.0), (60, 0.0)]
    assert math.exp(log_speedup(early, late, 1.0)) == pytest.approx(2)
    assert log_speedup(late, early, 1.0) == pytest.approx(-log_speedup(early, late, 1.0))
    assert log_speedup(late, early, 0.0) == 0
    assert math.exp(log_speedup(early, late, 2.0)) == pytest.approx(80 / 60), (
        "neither came: the ends, whatever they are"
    )
    assert math.exp(log_speedup(late, [(10, 0.0), (50, 0.5)], 1.0)) == pytest.approx(50 / 40), "a lower bound"


def test_fall_counts_from_where_the_aim_was_reached() -> None:
    points = [(1, 4.0), (2, 0.0), (3, 5.0), (4, 4.5), (5, 6.0), (6, 4.0), (7, 5.0)]
    assert [fall(points, aim) for aim in (4, 5, 6, 7)] == [4, 2, 2, 0]
    values = noise(60)
    for aim in (-1, 0, 1, 2):
        start = next((at for at, value in enumerate(values) if value >= aim), 60)
        worst = max((values[i] - values[j] for i in range(start, 60) for j in range(i, 60)), default=0)
        assert fall(list(enumerate(values)), aim) == worst


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7, 8, 10, 16])
def test_iqm_is_the_mean_of_what_a_quarter_cut_from_each_side_leaves(number: int) -> None:
    values = torch.tensor([noise(number, 1), noise(number, 2)], dtype=torch.float64)
    fourfold = values.repeat(1, 4).sort(1).values  # a quarter of these is a whole number of them
    assert iqm(values).tolist() == pytest.approx(fourfold[:, number : 3 * number].mean(1).tolist())
    if number % 4 == 0:
        trim_mean = pytest.importorskip("scipy.stats").trim_mean
        assert iqm(values).tolist() == pytest.approx(trim_mean(values.numpy(), 0.25, axis=1).tolist())


def test_iqm_of_five_weighs_the_second_and_the_fourth_by_three_quarters() -> None:
    assert float(iqm(torch.tensor([8.0, 100, 1, 4, 2]))) == pytest.approx((0.75 * 2 + 4 + 0.75 * 8) / 2.5)


def test_an_interval_is_as_wide_as_theory_says_and_always_the_same() -> None:
    values = noise(100)
    low, high = interval(values)
    width = 2 * 1.96 * float(np.std(values)) / 10
    assert low < fmean(values) < high
    assert high - low == pytest.approx(width, rel=0.05)
    assert fmean((low, high)) == pytest.approx(fmean(values), abs=width / 20)
    assert interval(values) == (low, high)
    assert interval([0.3] * 5) == pytest.approx((0.3, 0.3))
    assert interval([4.0, -2.0]) == (-2, 4)


def test_an_interval_is_one_of_the_statistic_that_was_asked_for() -> None:
    values = [1.0] * 15 + [100.0]
    assert interval(values, iqm) == (1, 1)
    assert interval(values)[1] > 10


@pytest.mark.parametrize("number", range(2, 11))
def test_a_difference_of_pairs_has_the_interval_of_student_s_t(number: int) -> None:
    gains = noise(number)
    stats = pytest.importorskip("scipy.stats")
    expected = stats.t.interval(0.95, number - 1, fmean(gains), stats.sem(gains))
    assert paired(gains) == pytest.approx(expected, rel=1e-3)


def test_one_pair_has_no_interval_and_many_have_one_that_is_a_little_wide() -> None:
    assert paired([3.0]) == (-math.inf, math.inf)
    gains = noise(40)
    low, high = pytest.importorskip("scipy.stats").ttest_1samp(gains, 0).confidence_interval(0.95)
    assert 1 < (paired(gains)[1] - paired(gains)[0]) / (high - low) < 1.15


def test_a_stratified_interval_draws_each_group_for_itself() -> None:
    apart = [[0.0] * 5, [10.0] * 5]
    assert stratified(apart, "ab") == (5, 5), "the groups differ, the seeds of each do not"
    assert interval([0.0] * 5 + [10.0] * 5)[1] > 7
    groups, chance = [noise(8, 1), noise(12, 2)], random.Random(3)
    means = sorted(
        fmean(value for group in groups for value in chance.choices(group, k=len(group))) for _ in range(4000)
    )
    assert stratified(groups, "ab") == pytest.approx((means[100], means[3900]), abs=0.03)
    assert stratified([noise(9)], "a", iqm) == interval(noise(9), iqm)


def test_groups_of_one_stratum_share_their_seeds() -> None:
    low, high = interval(noise(8))
    assert stratified([noise(8)] * 3, "aaa") == pytest.approx((low, high)), "no more is known than of one group"
    for strata in ("ab", "abba"):
        ends = stratified([noise(8)] * len(strata), strata)
        assert (high - low) / (ends[1] - ends[0]) == pytest.approx(math.sqrt(2), rel=0.05)
    opposite = [-value for value in noise(8)]
    assert stratified([noise(8), opposite], "aa") == pytest.approx((0, 0)), "the same seeds of both"


def test_improvement_is_the_share_of_pairs_won_and_a_tie_is_half_a_win() -> None:
    assert improvement([3.0], [1.0, 2.0]) == 1
    assert improvement([1.0, 2.0, 3.0], [2.0]) == 0.5
    assert improvement([1.0, 2.0], [2.0, 5.0, 0.0]) == pytest.approx((1 + 1.5) / 6)
    assert improvement([1.0, 1.0], [1.0]) == 0.5


def grid_of(**others: Any) -> Grid:
    few = {"students": ("dqn", "ppo"), "games": ("connect4", "snake"), "tutors": ("llama", "scripted:0.9")}
    few |= {"guidance": ("override", "blend", "demonstrate"), "reuse": ("3", "inf"), "seeds": (5, 6)}
    return Grid(**(few | {"steps": {"connect4": 3000, "snake": 500}} | others))


def test_baselines_come_first_and_a_method_is_left_out_for_who_cannot_use_it() -> None:
    cells = grid_of().cells()
    pairs = [(game, student) for game in ("connect4", "snake") for student in ("dqn", "ppo")]
    assert cells[:4] == [Cell(*pair, ALONE, "none", "inf") for pair in pairs]
    methods = {"dqn": ("override", "demonstrate"), "ppo": ("override", "blend")}
    guided = {(*pair, tutor, method, reuse) for pair in pairs for tutor in ("llama", "scripted:0.9")
              for method in methods[pair[1]] for reuse in ("3", "inf")}  # fmt: skip
    assert set(cells[4:]) == guided
    assert len(cells) == 4 + len(guided) == 36
    assert {cell.baseline() for cell in cells} == set(cells[:4])


def test_jobs_come_seed_by_seed_and_have_names_of_their_own() -> None:
    grid = grid_of(tutors=("recorded:/tmp/advice", "scripted:0.9"))
    jobs, cells = grid.jobs(), grid.cells()
    assert jobs == [Job(cell, 5) for cell in cells] + [Job(cell, 6) for cell in cells]
    names = [job.name() for job in jobs]
    assert len(set(names)) == len(names)
    assert not any(mark in name for name in names for mark in "/: ")


@pytest.mark.parametrize(
    ("tutor", "reuse", "said"),
    [
        (ALONE, "inf", ""),
        ("llama", "3", "--tutor llama --guidance override --reuse 3"),
        ("llama", "inf", "--tutor llama --guidance override --reuse inf --advice-store '/my store'"),
        ("scripted:0.9", "3", "--tutor-accuracy 0.9 --tutor scripted --guidance override --reuse 3"),
        ("scripted", "3", "--tutor scripted --guidance override --reuse 3"),
        ("recorded:/a b", "3", "--tutor 'recorded:/a b' --guidance override --reuse 3"),
    ],
)
def test_the_flags_of_a_run_say_what_its_cell_says(tutor: str, reuse: str, said: str) -> None:
    grid = grid_of(points=4, eval_episodes=7, flags={"snake": "--env-kwargs size=6", "ppo": "--hidden 8 8"})
    job = Job(Cell("connect4", "dqn", tutor, "none" if tutor == ALONE else "override", reuse), 6)
    common = "--algo dqn --env connect4 --total-steps 3000 --seed 6 --eval-every 750 --log-every 750 --eval-episodes 7"
    arguments = grid.arguments(job, Path("/my runs/x"), Path("/my store"))
    assert arguments == [*shlex.split(f"{common} {said}"), "--run-dir", "/my runs/x"]


def test_flags_may_be_of_a_game_of_a_student_and_of_both() -> None:
    flags = {"snake": "--env-kwargs 'size=6' time_limit=9", "ppo": "--hidden 8", "dqn snake": "--gamma 1"}
    grid = grid_of(flags=flags)
    ends = {job.cell[:2]: grid.arguments(job, Path("x"), Path("y"))[14:-2] for job in grid.jobs()[:4]}
    game, student = ["--env-kwargs", "size=6", "time_limit=9"], ["--hidden", "8"]
    assert list(ends.values()) == [[], student, [*game, "--gamma", "1"], game + student]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("points = 3", "points = ", "cannot be read"),
        ("points = 3", "point = 3", "no setting of a study is called 'point'; there are.*mean 'points'"),
        ("seeds = [1, 2]\n", "", "says nothing about seeds"),
        ('["dqn", "ppo"]', '["dqm"]', "mean 'dqn'"),
        ('games = ["connect4"]', 'games = ["conect4"]', "mean 'connect4'"),
        ('"override"', '"overide"', "no guidance is called 'overide'.*mean 'override'"),
        ("dqn = ", "pqo = ", r"no game or student in \[flags\] is called 'pqo'.*mean 'ppo'"),
        ("dqn = ", '"dqn snake" = ', r"no game or student in \[flags\] is called 'dqn snake'.*mean 'dqn connect4'"),
        ("3_000", "2", r"\[steps\] gives connect4 fewer steps"),
        ("connect4 = 3_000", "snake = 3_000", r"\[steps\] gives connect4 fewer steps"),
        ("[1, 2]", "[]", "at least one seed"),
        ("points = 3", "points = 0", "at least one seed, one evaluation"),
        ("episodes = 20", "episodes = 0", "one game in it"),
        ("[1, 2]", "[1, 1]", "names something twice"),
        ('"scripted:0.9"', '"scripted:0.9", "scripted-0.9"', "names something twice"),
        ("3_000", '"many"', "of the wrong type"),
        ('"--learning-starts 500"', "500", "of the wrong type"),
        ('"--learning-starts 500"', '"\'"', "No closing quotation"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_before_its_first_run(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    assert TINY.count(old) == 1
    with pytest.raises(ValueError, match=said):
        read_grid(written(tmp_path, TINY.replace(old, new)))


def test_a_study_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.toml cannot be read"):
        read_grid(tmp_path / "gone.toml")
    with pytest.raises(ValueError, match="jobs is 0"):
        study.run(Run(written(tmp_path, TINY), tmp_path / "runs", jobs=0))


def test_the_studies_of_this_house_can_be_read_and_one_is_the_papers() -> None:
    grids = {path.name: read_grid(path) for path in (ROOT / "studies").glob("*.toml")}
    assert len(grids["guidance.toml"].cells()) > 100
    cells = grids["paper.toml"].cells()
    paper = {(game, student, tutor, "override", reuse) for game in ("blackjack", "snake", "connect4")
             for student in ("dqn", "ppo", "a2c") for tutor in ("llama", "vicuna", "deepseek")
             for reuse in ("0", "3", "inf")}  # fmt: skip
    assert set(cells[9:]) == paper
    assert len(cells) == 9 + 54 + 27
    assert all(cell == cell.baseline() for cell in cells[:9])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a study of which all runs are finished."""
    path = written(tmp_path_factory.mktemp("study"), TINY)
    ended = program("experiments.study", *told(path, "run"))
    assert ended.returncode == 0, ended.stderr
    return path


def summaries(path: Path) -> dict[str, int]:
    """When each finished run of a study was finished."""
    return {one.parent.name: one.stat().st_mtime_ns for one in (path.parent / "runs").glob("*/summary.json")}


def rows_of(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# python ")
    assert " # commit " in lines[0]
    return list(csv.DictReader(lines[1:]))


def test_a_study_does_all_its_runs_as_told(done: Path) -> None:
    assert set(summaries(done)) == {job.name() for job in read_grid(done).jobs()}
    assert len(summaries(done)) == 8
    for job in read_grid(done).jobs():
        config = config_from_json((done.parent / "runs" / job.name() / "config.json").read_text())
        assert (config.algo, config.seed) == (job.cell.student, job.seed)
        assert (config.num_envs, config.agent.hidden) == (100, (16,))
        assert config.tutoring.tutor == job.cell.tutor.split(":")[0]
        assert config.tutoring.tutor_accuracy == (1 if job.cell.tutor == ALONE else 0.9)
        assert "step" in (done.parent / "runs" / "logs" / f"{job.name()}.txt").read_text()
    assert (done.parent / "runs" / "advice.sqlite").is_file()


def test_the_report_is_what_the_runs_say(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study.report(Report(done, done.parent / "runs", out=done.parent / "out"))
    assert "4 of 4 cells" in capsys.readouterr().out
    rows = rows_of(done.parent / "out" / "cells.csv")
    assert len(rows) == 4
    for row in rows:
        curves, alone, ends = [], [], []
        for seed in (1, 2):
            cell = Cell(*(row[part] for part in Cell._fields))
            folder = done.parent / "runs" / Job(cell, seed).name()
            curves.append(curve(folder))
            alone.append(curve(folder.parent / Job(cell.baseline(), seed).name()))
            ends.append(json.loads((folder / "summary.json").read_text()))
        lasts, areas = ([measure(one) for one in curves] for measure in (lambda one: one[-1, 1], height))
        gains = [ours - height(theirs) for ours, theirs in zip(areas, alone, strict=True)]
        first, last = (fmean(one[at, 1] for one in alone) for at in (0, -1))
        tutors = [end["tutor"] or {"asked": 0, "hits": 0, "consulted": 1} for end in ends]
        expected = {"seeds": 2, "final": fmean(lasts), "final_low": min(lasts), "final_high": max(lasts),
                    "area": fmean(areas), "area_gain": fmean(gains), "area_gain_low": min(gains),
                    "area_gain_high": max(gains),
                    "asked": fmean(tutor["asked"] for tutor in tutors), "spread": abs(lasts[0] - lasts[1]) / 2,
                    "hit_rate": sum(t["hits"] for t in tutors) / sum(t["consulted"] for t in tutors),
                    "seconds": fmean(end["wall_seconds"] for end in ends)}  # fmt: skip
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, abs=1e-4)
        reached = 0.05 * first + 0.95 * last if last > first else math.nan
        assert float(row["threshold"] or "nan") == pytest.approx(reached, abs=1e-4, nan_ok=True)
        assert (float(row["asked"]) > 100) == (row["tutor"] != ALONE)


def curve(folder: Path) -> np.ndarray:
    """A run's evaluations, each (step, mean return)."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["tag"] == "eval/mean_return"]
    return np.array([[float(row["global_step"]), float(row["value"])] for row in rows])


def height(points: np.ndarray) -> float:
    return float(np.trapezoid(points[:, 1], points[:, 0]) / np.ptp(points[:, 0]))


def test_a_dry_run_prints_the_commands_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = read_grid(written(tmp_path, TINY))
    study.run(Run(tmp_path / "tiny.toml", tmp_path / "runs", dry_run=True))
    lines = capsys.readouterr().out.splitlines()
    for job, line in zip(grid.jobs(), lines, strict=True):
        folder = tmp_path / "runs" / job.name()
        assert shlex.split(line) == [
            "python",
            "train.py",
            *grid.arguments(job, folder, tmp_path / "runs/advice.sqlite"),
        ]
        assert ("--learning-starts 500" in line) == (job.cell.student == "dqn")
    assert not (tmp_path / "runs").exists()


def test_only_what_is_not_finished_is_tried_again_and_what_fails_is_told(done: Path, tmp_path: Path) -> None:
    path = written(tmp_path, TINY.replace("500", "few"))
    shutil.copytree(done.parent / "runs", tmp_path / "runs")
    before = summaries(path)
    study.run(Run(path, tmp_path / "runs"))
    assert summaries(path) == before
    failing, unfinished = "connect4_dqn_none_none_inf_seed1", "connect4_ppo_scripted-0.9_override_inf_seed2"
    for name in (failing, unfinished):
        (tmp_path / "runs" / name / "summary.json").unlink()
    shutil.rmtree(tmp_path / "runs" / unfinished / "checkpoints")
    ended = program("experiments.study", *told(path, "run"))
    assert ended.returncode == 2
    assert ended.stderr == "error: 1 of 8 runs failed; the same command tries them again\n"
    assert "failed with exit code 2" in ended.stdout
    assert "8/8" in ended.stdout
    assert "few" in (tmp_path / "runs" / "logs" / f"{failing}.txt").read_text()
    after = summaries(path)
    assert before.keys() - after.keys() == {failing}
    assert {name for name, when in after.items() if before[name] != when} == {unfinished}


def invented(folder: Path, values: list[float]) -> None:
    """A run that scored these, as its folder shows it."""
    folder.mkdir(parents=True)
    lines = []
    for at, value in enumerate(values, 1):
        lines += [f"{at * 10},{at},eval/mean_return,{value}", f"{at * 10},{at},eval/stderr,9"]
    (folder / "metrics.csv").write_text("\n".join(["global_step,wall_seconds,tag,value", *lines]))
    (folder / "summary.json").write_text(json.dumps({"tutor": None, "wall_seconds": 900}))
    told = {"commit": "c0ffee", "python": "3", "torch": "2", "machine": "a loom"}
    (folder / "config.json").write_text(json.dumps({"versions": told, "total_steps": 3000}))


def test_the_report_leaves_out_what_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, TINY)
    with pytest.raises(ValueError, match=r"no cell has all its runs in runs/study/tiny: .* comes first"):
        study.report(Report(path))
    jobs = read_grid(path).jobs()
    assert Study(path).place() == Path("runs/study/tiny")
    for at, job in enumerate(jobs[:-1]):
        if job.cell != jobs[0].cell or job.seed == 1:
            invented(Path("runs/study/tiny") / job.name(), [0.0, float(at)])
    study.report(Report(path))
    assert "results/study/tiny: 1 of 4 cells;" in capsys.readouterr().out, "dqn's baseline is not whole"
    (row,) = rows_of(Path("results/study/tiny/cells.csv"))
    assert (row["student"], row["tutor"], float(row["final"]), float(row["area"])) == ("ppo", ALONE, 3, 1.5)
    made = Path("results/study/tiny/cells.csv").read_text().splitlines()[0]
    assert made.endswith("# commit c0ffee, Python 3, PyTorch 2, a loom, 2 runs, 0.5 hours in all")
    written(tmp_path, TINY.replace("3_000", "4_000"))
    with pytest.raises(
        ValueError, match=r"is one of 3,000 env steps, and the study's are of 4,000: .*another --folder"
    ):
        study.report(Report(path))


BEGUN = TINY.replace('["override"]', '["modulate", "override"]') + "\n[begin]\nconnect4 = 1_200\n"


def test_runs_may_go_on_with_one_that_began_before_them(tmp_path: Path) -> None:
    grid = read_grid(written(tmp_path, BEGUN))
    jobs = grid.jobs()
    firsts, others = jobs[:4], jobs[4:]
    assert {(job.cell.guidance, job.cell.tutor) for job in firsts} == {("first", "none")}
    assert [job.cell for job in others] == grid.cells() * 2
    assert not {job.cell for job in firsts} & set(grid.cells()), "what others go on with is not compared"
    for job in jobs:
        words = grid.arguments(job, tmp_path / job.name(), tmp_path / "store")
        steps, every = (int(words[words.index(name) + 1]) for name in ("--total-steps", "--eval-every"))
        assert (steps, every) == (1200 if job in firsts else 3000, 600)
        if job in others:
            begun = Path(words[words.index("--resume") + 1])
            (first,) = (one for one in firsts if one.name() == begun.name)
            assert (first.seed, first.cell.student) == (job.seed, job.cell.student)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TINY.replace('"override"', '"modulate"'), r"modulate goes on with a student: \[begin\] says"),
        (f"{TINY}\n[begin]\nconnect4 = 3_000\n", "fewer steps than theirs"),
        (f"{TINY}\n[begin]\nsnake = 10\n", "games of the study"),
    ],
)
def test_a_beginning_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_grid(written(tmp_path, text))


def test_a_study_of_runs_that_go_on(tmp_path: Path) -> None:
    path = written(
        tmp_path, BEGUN.replace('["dqn", "ppo"]', '["ppo"]').replace("dqn =", "ppo =").replace("[1, 2]", "[1]")
    )
    path.write_text(path.read_text().replace("--learning-starts 500", ""))
    done = program("experiments.study", *told(path, "run"))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert program("experiments.study", *told(path, "report", "--out", str(out))).returncode == 0
    rows = rows_of(out / "cells.csv")
    assert [row["guidance"] for row in rows] == ["none", "modulate", "override"]
    for folder in (tmp_path / "runs").glob("connect4_ppo_*"):
        first = "_first_" in folder.name
        assert json.loads((folder / "summary.json").read_text())["global_step"] >= (1200 if first else 3000)
        assert min(step for step, _ in evaluations(folder)) > (0 if first else 1200)
    walls = {
        folder.parent.name.split("_")[3]: json.loads(folder.read_text())["wall_seconds"]
        for folder in (tmp_path / "runs").glob("connect4_ppo_*/summary.json")
    }
    assert walls["none"] > walls["first"]
    for row in rows:
        assert float(row["seconds"]) == pytest.approx(walls[row["guidance"]] - walls["first"], abs=1e-3)
    assert ", 4 runs, " in (out / "report.md").read_text(), "with what they went on with"


def test_a_part_of_a_study_may_be_done_alone(tmp_path: Path) -> None:
    whole = Run(grid=ROOT / "studies" / "guidance.toml")
    part = replace(whole, games=("connect4",), students=("dqn",), tutors=("scripted:1",), seeds=(2, 3)).part()
    assert {job.cell.game for job in part.jobs()} == {"connect4"}
    assert {job.seed for job in part.jobs()} == {2, 3}
    assert set(part.cells()) < set(whole.part().cells())
    assert part.arguments(part.jobs()[0], tmp_path, tmp_path) == whole.part().arguments(
        part.jobs()[0], tmp_path, tmp_path
    )
    with pytest.raises(ValueError, match=r"no one of the tutors of .* is called 'scripted:2'; .* did you mean"):
        replace(whole, tutors=("scripted:2",)).part()
    with pytest.raises(ValueError, match=r"no one of the seeds of .* is called '9'"):
        replace(whole, seeds=(9,)).part()
