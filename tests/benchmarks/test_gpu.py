"""The proof of the GPU path: in little on the CPU, and that its full commands are ones that the benchmarks take."""

import json
from pathlib import Path
from typing import Any

import pytest
import tyro

from benchmarks import gpu
from benchmarks.__main__ import Command
from benchmarks.advice_table import PROGRAMS, Table
from benchmarks.common import Worker
from benchmarks.gpu import Part, parts, quick_parts, run
from benchmarks.gpu_summary import headlines
from tests.helpers.programs import program

BUDGET_S = 480


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.process
def test_quick_run_on_cpu_measures_every_part(tmp_path: Path) -> None:
    done = program("benchmarks", "gpu", "--device", "cpu", "--quick", "--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["part"]: row for row in written["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "tests": "passed",
        "games": "passed",
        "table": "passed",
        "loop": "passed",
        "tutor": "skipped",
        "training": "passed",
    }, done.stdout
    for name, count in (("tests", 1), ("games", 1), ("table", 2), ("loop", 3), ("training", 1)):
        assert len(headlines(rows[name])) == count
    assert [row["hit_rates"][-1] for row in rows["loop"]["results"]["rows"][1:]] == [1, 1]
    assert sum(rows["training"]["results"]["rows"][0]["shares"].values()) == pytest.approx(1)
    assert {"commit", "torch", "gpu", "cuda"} <= set(written["machine"])
    assert written["options"]["quick"]
    for row in written["rows"]:
        assert row["command"] in done.stdout.replace("\n", " ")


def test_failing_part_is_reported_with_its_last_line(folder: Path) -> None:
    row = run(Part("games", ("-c", "print('begun'); raise SystemExit('no card')"), 60), 60, {})
    assert (row["status"], row["reason"]) == ("failed", "no card")
    assert headlines(row)[0].what == "no card"


def test_part_whose_measurement_failed_is_reported(folder: Path) -> None:
    rows = [
        {"game": "snake", "program": "eager", "copies": 64, "steps_per_second": 2e6, "error": None},
        {"program": "graph", "steps_per_second": None, "error": "out of memory"},
    ]
    code = f"import json; json.dump({{'rows': {rows}}}, open({str(folder / 'games.json')!r}, 'w'))"
    row = run(Part("games", ("-c", code), 60), 60, {})
    assert (row["status"], row["reason"]) == ("failed", "out of memory")
    assert headlines(row)[1] == ("snake, eager, 64 copies", "2 M", "")


def test_part_out_of_time_is_interrupted(folder: Path) -> None:
    code = """
import time
print("begun", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("7 passed, 2 skipped in 3.0s")
"""
    row = run(Part("tests", ("-c", code), 2), 2, {})
    assert (row["status"], row["reason"]) == ("out of time", None)
    assert row["seconds"] < 30
    assert headlines(row) == [("tests marked gpu", "7 passed, 2 skipped", "")]


def test_limits_keep_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "serve_command", lambda model, url: ["vllm"])
    assert sum(part.limit_s for part in parts("cuda")) <= BUDGET_S
    assert not [part for part in parts("cuda") if part.skipped_because]


def test_tutor_is_skipped_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "serve_command", lambda model, url: None)
    assert [part.name for part in parts("cuda") if part.skipped_because == "vLLM is not installed"] == ["tutor"]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_commands_are_ones_that_the_benchmarks_take(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With workers that answer at once: what is named exists, and every measurement has its line."""
    monkeypatch.setattr(gpu, "serve_command", lambda model, url: ["vllm"])
    monkeypatch.setattr(Worker, "run", answer)
    for part in parts(device) + quick_parts(device):
        if part.name == "tests" or part.skipped_because is not None:
            continue
        module, package, *flags = part.command
        assert (module, package) == ("-m", "benchmarks")
        benchmark = tyro.cli(Command, args=flags, config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff))
        assert benchmark.path == part.results
        if isinstance(benchmark, Table):
            assert set(benchmark.programs) <= set(PROGRAMS)
        elif part.name == "tutor":
            assert benchmark.serve == ("--load-format=dummy",)
        else:
            *_, rows = benchmark.measure()
            row = {"part": part.name, "status": "passed", "reason": None, "results": {"rows": rows}}
            assert len(headlines(row)) == len(rows) > 0


def answer(worker: Worker) -> dict[str, Any]:
    return {"rate": 12.5e6, "shares": {"play": 0.25, "learn": 0.75}, "num_envs": 64}


def test_headline_of_captured_ppo_has_its_aim() -> None:
    row = {"algo": "ppo", "game": "cartpole", "program": "graph", "preset": "small", "num_envs": 65536,
           "steps_per_second": 12.5e6, "error": None, "shares": {"play": 0.25, "learn": 0.75}}  # fmt: skip
    part = {"part": "training", "status": "passed", "reason": None, "results": {"rows": [row]}}
    what = "ppo, cartpole, graph, small, 65,536 copies (play 25%, learn 75%)"
    assert headlines(part) == [(what, "12.5 M", "10 M")]
