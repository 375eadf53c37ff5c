"""Small studies as files, the directories of their runs, and study results that are made up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.analysis import RunResult, StudyResults
from experiments.spec import Condition, StudySpec, TutorSpec, read_study

TINY = """
algos = ["ppo"]
envs = ["connect4"]
tutors = ["scripted:0.9"]
guidance = ["override"]
reuse = [inf]
seeds = [1, 2]
num_evals = 3
eval_episodes = 20

[steps]
connect4 = 3_000

[flags]
connect4 = "--num-envs 100 --hidden 16"
ppo = "--num-steps 8"

[tutor_flags]
connect4 = "--tutor-depth 1"
"""
ALONE = TINY.replace('["scripted:0.9"]', "[]").replace("[1, 2]", "[1]")  # a single run
SERVED = TINY.replace('["scripted:0.9"]', '["tiny"]').replace("inf", "3").replace("[1, 2]", "[1]")
PRETRAINED = TINY.replace('["override"]', '["modulate", "override"]') + "\n[pretrain]\nconnect4 = 1_200\n"


def write_study(folder: Path, text: str) -> Path:
    """Write a study's file."""
    (folder / "tiny.toml").write_text(text)
    return folder / "tiny.toml"


def cli(path: Path, command: str, *flags: str) -> tuple[str, ...]:
    """The command line of a study whose runs lie beside its file."""
    return ("experiments", command, str(path), "--output-dir", str(path.parent / "runs"), *flags)


def run_dirs(path: Path) -> list[Path]:
    """The directories of a study's runs."""
    return [path.parent / "runs" / run.name() for run in read_study(path).runs()]


def finish_times(path: Path) -> dict[str, int]:
    """When each finished run of a study was finished."""
    return {one.parent.name: one.stat().st_mtime_ns for one in (path.parent / "runs").glob("*/summary.json")}


STUDY = StudySpec(
    algos=("dqn", "ppo"),
    envs=("connect4", "blackjack"),
    tutors=(TutorSpec("scripted", 0.9), TutorSpec("scripted", 0.6)),
    guidance=("override",),
    reuse=(0.0, 3.0),
    seeds=(1, 2, 3),
    steps={"connect4": 100, "blackjack": 100},
)
SLOW = [0.0, 0.2, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0]  # reaches the threshold at 40
FAST = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # reaches the threshold at 20
NEVER = [0.0] * 8
FALLS = [0.0, 0.2, 0.4, 1.0, 0.2, 1.0, 1.0, 1.0]


def result(scores: list[float], seconds: float = 1.0, **counters: Any) -> RunResult:
    """A run that was evaluated every 10 env steps."""
    versions = {"commit": "c0ffee", "python": "3", "torch": "2", "machine": "a loom"}
    curve = [(at * 10, score) for at, score in enumerate(scores, 1)]
    return RunResult(curve, [(step / 10 * seconds, score) for step, score in curve], curve, 3600, counters, versions)


def made_up(alone: list[float], **tutored: list[float]) -> StudyResults:
    """A whole study: how students learn alone, and with a tutor by reuse, `r0` and `r3`, or by env or algo."""
    runs = {}
    for condition in STUDY.conditions():
        names = (condition.env, condition.algo, f"r{condition.reuse:g}")
        scores = next((tutored[name] for name in names if name in tutored), alone)
        counters = {"asked": 100 if condition.reuse == 0 else 40, "hits": 5, "consulted": 10}
        if condition.is_baseline():
            scores, counters = alone, {}
        runs[condition] = [result(scores, **counters) for _ in STUDY.seeds]
    return StudyResults(STUDY, runs)


def with_runs(results: StudyResults, runs: dict[Condition, list[RunResult]]) -> StudyResults:
    """The same study with other runs of some conditions."""
    return replace(results, runs=results.runs | runs)
