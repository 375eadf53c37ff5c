"""Where programs write if nothing else is said: under runs/, so that nothing under version control is written over."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import Command as Benchmarks
from experiments.report import ReportOptions as StudyReport
from experiments.runner import RunOptions
from experiments.search import SearchOptions
from training.config import Config
from training.resume import new_run_dir
from tutors.__main__ import ReportOptions, picture_path
from tutors.tiny.recipe import Recipe

STUDY = Path("experiments/configs/laptop.toml")
BENCHMARKS = [one.__origin__ for one in Benchmarks.__args__]  # type: ignore[attr-defined]


def under_runs(path: Path) -> bool:
    return path.parts[0] == "runs"


@pytest.mark.parametrize("kind", BENCHMARKS, ids=lambda kind: kind.name)
def test_benchmark_writes_to_runs_unless_it_is_published(kind: type) -> None:
    assert under_runs(kind().path)
    assert kind(publish=True).path == Path("results") / f"{kind.name}.json"


def test_studies_searches_runs_and_reports_write_to_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert under_runs(RunOptions(STUDY).runs_dir())
    assert under_runs(StudyReport(STUDY).report_dir())
    assert replace(StudyReport(STUDY), publish=True).report_dir() == Path("results/study/laptop")
    assert under_runs(SearchOptions().directory())
    assert under_runs(new_run_dir(Config()))
    assert under_runs(picture_path(ReportOptions()))
    assert under_runs(Recipe().out)
