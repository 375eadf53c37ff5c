"""Many runs of train.py.

`python -m experiments.search curve` shows how a student learns over several seeds, `python -m experiments.search
search` finds it settings, `python -m experiments.search reuse` counts the questions that reuse saves. A run is a
process of its own with one thread; `--jobs` of them go at once. Each writes a CSV whose first line is the command that
made it.
"""

import csv
import hashlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from experiments.stats import evaluations, interval, late
from training.cli import run_program
from training.config import default_config, versions
from tutors.llm.server import die_with_parent

HERE = Path(__file__).parents[1]
COMMON: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3),
    "gamma": (0.95, 0.97, 0.98, 0.99, 0.995),
}
ON_POLICY: dict[str, tuple[Any, ...]] = COMMON | {
    "num_envs": (64, 128, 256, 512),
    "ent_coef": (0.0, 0.003, 0.01, 0.03),
    "max_grad_norm": (0.5, 1.0, 5.0),
}
RANGES: dict[str, dict[str, tuple[Any, ...]]] = {  # what a search draws from, for each student
    "dqn": COMMON
    | {
        "num_envs": (64, 128, 256, 512),
        "batch_size": (128, 256, 512, 1024),
        "updates_per_step": (1, 2, 4, 8),
        "n_step": (1, 2, 3),
        "target_network_frequency": (50, 100, 200, 500),
        "exploration_fraction": (0.05, 0.1, 0.2, 0.4),
        "end_e": (0.01, 0.05),
    },
    "ppo": ON_POLICY
    | {
        "num_steps": (8, 16, 32, 64),
        "gae_lambda": (0.8, 0.9, 0.95),
        "num_minibatches": (2, 4, 8),
        "update_epochs": (2, 3, 4, 6),
        "clip_coef": (0.1, 0.2, 0.3),
    },
    "a2c": ON_POLICY | {"num_steps": (4, 8, 16), "gae_lambda": (0.9, 0.95, 1.0)},
}

console = Console(highlight=False)


@dataclass(frozen=True)
class Sweep:
    """What all have in common."""

    algo: str = "dqn"
    """The student."""
    env: str = "connect4"
    """The game."""
    flags: str = ""
    """Further flags of train.py, as one string."""
    total_steps: int = 300_000
    """Env steps of a run."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """A run each."""
    points: int = 10
    """Evaluations of the student alone on the way."""
    eval_episodes: int = 500
    """Games an evaluation plays."""
    jobs: int = 2
    """Runs at once."""
    folder: Path = Path("runs/sweep")
    """Where the runs keep things; runs that are there already are not run again."""

    def check(self) -> None:
        """Raise ValueError for what is not known."""
        default_config(self.algo, self.env)
        if not self.seeds:
            raise ValueError("a sweep wants at least one seed")


@dataclass(frozen=True)
class Curve(Sweep):
    """How the student learns: the mean of several seeds at each evaluation, with its 95 % interval."""

    out: Path | None = None
    """The CSV; results/curves/ALGO_ENV.csv if not given."""


@dataclass(frozen=True)
class Search(Sweep):
    """Settings at random, each judged by its last evaluations; the best again with all seeds."""

    trials: int = 12
    """Settings to try with the first seed; the defaults are one more."""
    finalists: int = 3
    """The best of them, which are run with the other seeds too."""
    search_seed: int = 1
    """Of the settings that are drawn."""
    out: Path | None = None
    """The CSV; results/search/ALGO_ENV.csv if not given."""


@dataclass(frozen=True)
class Reuse(Sweep):
    """Questions asked, hits and the student's score without a tutor and with the reuse budgets 0, 3 and inf."""

    tutor: str = "scripted"
    """Who is asked."""
    view: str | None = None
    """How the game is told."""
    without_symmetry: bool = False
    """Each budget also with positions told as they lie."""
    out: Path | None = None
    """The CSV; results/reuse/ALGO_ENV_VIEW.csv if not given."""


def run_once(told: Sweep, settings: dict[str, Any], seed: int, children: set[subprocess.Popen[str]]) -> Path:
    """Train once, unless that was done before, and return the run's folder; `children` holds the run at work.

    Raises:
        ValueError: the run failed; its last words are in the message.
    """
    named = "_".join(f"{name}={value}" for name, value in settings.items()) or "defaults"
    others = hashlib.sha256(f"{told.points} {told.eval_episodes} {told.flags}".encode()).hexdigest()[:8]
    group = f"{told.algo}_{told.env.replace(':', '-')}_{told.total_steps}_{others}"  # runs of other flags are others
    folder = told.folder / group / named / f"seed{seed}"
    flags = []
    for name, value in settings.items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    every = max(told.total_steps // told.points, 1)
    common = f"--algo {told.algo} --env {told.env} --total-steps {told.total_steps} --seed {seed}"
    common += f" --eval-every {every} --log-every {every} --eval-episodes {told.eval_episodes}"
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what a sweep that was stopped has left
        command = [sys.executable, "train.py", *shlex.split(common), *shlex.split(told.flags), *flags]
        child = subprocess.Popen(
            [*command, "--run-dir", str(folder.absolute())],
            cwd=HERE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )
        children.add(child)
        _, said = child.communicate()
        children.remove(child)
        if child.returncode:
            raise ValueError(f"{shlex.join(command)} failed:\n{said.strip()[-800:]}")
    return folder


def run_all(told: Sweep, jobs: list[tuple[dict[str, Any], int]]) -> list[Path]:
    """Run all jobs, `told.jobs` at once, and return their folders in the same order."""
    children: set[subprocess.Popen[str]] = set()
    with Progress(console=console, transient=True) as progress, ThreadPoolExecutor(told.jobs) as pool:
        results = pool.map(lambda job: run_once(told, *job, children), jobs)
        try:
            return list(progress.track(results, total=len(jobs), description="training"))
        except (KeyboardInterrupt, SystemExit):  # a signal: nobody waits for what is at work
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(children):
                child.terminate()
            raise


def write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    """Write a CSV that begins with the command that made it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        words = ["python", Path(sys.argv[0]).name, *sys.argv[1:]]
        file.write(f"# {shlex.join(words)} # commit {versions()['commit']}, {versions()['machine']}\n")
        csv.writer(file).writerows([header, *rows])
    print(f"written to {path}", file=sys.stderr)


def curve(told: Curve) -> None:
    """Run all seeds, and write and print the curve."""
    runs = [evaluations(folder) for folder in run_all(told, [({}, seed) for seed in told.seeds])]
    rows: list[list[Any]] = []
    for moment in zip(*runs, strict=True):
        values = [value for _, value in moment]
        low, high = interval(values)
        rows.append([moment[0][0], *(round(number, 6) for number in (fmean(values), low, high, *values))])
    header = ["global_step", "mean", "low", "high", *(f"seed{seed}" for seed in told.seeds)]
    out = told.out or Path("results/curves") / f"{told.algo}_{told.env.replace(':', '-')}.csv"
    write(out, header, rows)
    show(f"{told.algo} on {told.env}, student alone", header, rows)


def search(told: Search) -> None:
    """Try settings, run the best with all seeds, and write and print what came out, best first."""
    chance, ranges = random.Random(told.search_seed), RANGES[told.algo]
    settings: list[dict[str, Any]] = [{}]
    settings += [{name: chance.choice(values) for name, values in ranges.items()} for _ in range(told.trials)]
    first, *others = told.seeds
    scores = [[late(evaluations(folder))] for folder in run_all(told, [(one, first) for one in settings])]
    best = sorted(range(len(settings)), key=lambda at: -scores[at][0])[: told.finalists]
    jobs = [(settings[at], seed) for at in best for seed in others]
    for at, folder in zip([at for at in best for _ in others], run_all(told, jobs), strict=True):
        scores[at].append(late(evaluations(folder)))
    order = sorted(range(len(settings)), key=lambda at: (at not in best, -fmean(scores[at])))
    rows = [[round(fmean(scores[at]), 6), len(scores[at]), json.dumps(settings[at])] for at in order]
    header = ["mean", "seeds", "settings"]
    write(told.out or Path("results/search") / f"{told.algo}_{told.env.replace(':', '-')}.csv", header, rows)
    show(f"{told.algo} on {told.env}, {told.total_steps:,} steps, student alone", header, rows)


def reuse(told: Reuse) -> None:
    """Run every budget with all seeds, and write and print what was asked and what the student came to."""
    settings: list[dict[str, Any]] = [{"tutor": "none"}]
    for symmetry in (True, False) if told.without_symmetry else (True,):
        for budget in ("0", "3", "inf"):
            one = {"tutor": told.tutor, "reuse": budget}
            settings.append(
                one | ({"view": told.view} if told.view else {}) | ({} if symmetry else {"no_symmetry": True})
            )
    folders = iter(run_all(told, [(one, seed) for one in settings for seed in told.seeds]))
    rows, most = [], 0.0
    for one in settings:
        runs = [next(folders) for _ in told.seeds]
        scores = [late(evaluations(folder)) for folder in runs]
        low, high = interval(scores)
        tutors = [json.loads((folder / "summary.json").read_text())["tutor"] or {} for folder in runs]
        consulted, asked, hits = (
            fmean(tutor.get(name, 0) for tutor in tutors) for name in ("consulted", "asked", "hits")
        )
        most = most or asked  # of reuse 0
        row: list[Any] = [one.get("reuse", "no tutor"), "no" if "no_symmetry" in one else "yes", round(consulted)]
        row += [round(asked), round(asked / most, 4) if most else 0.0, round(hits / max(consulted, 1), 4)]
        rows.append([*row, *(round(number, 4) for number in (fmean(scores), low, high))])
    header = ["reuse", "symmetry", "consulted", "asked", "of_reuse_0", "hit_rate", "score", "low", "high"]
    name = "_".join(filter(None, (told.algo, told.env.replace(":", "-"), told.view)))
    write(told.out or Path("results/reuse") / f"{name}.csv", header, rows)
    show(f"{name}, {told.total_steps:,} steps, {len(told.seeds)} seeds, student alone", header, rows)


def show(title: str, header: list[str], rows: list[list[Any]]) -> None:
    """Print a table."""
    table = Table(title=title)
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    console.print(table)


def main(told: Curve | Search | Reuse) -> None:
    """Do what was asked for."""
    told.check()
    if isinstance(told, Curve):
        curve(told)
    elif isinstance(told, Reuse):
        reuse(told)
    else:
        search(told)


if __name__ == "__main__":
    run_program(main, Curve | Search | Reuse, description=__doc__)
