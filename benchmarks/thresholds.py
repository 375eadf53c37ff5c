"""Time to a fixed score: seconds of wall clock from the command to the first evaluation that reaches it.

Everything counts: imports, compilation, evaluations, checkpoints. Ours are commands of `train.py` with plain defaults.
On a machine that others use, the seconds of CPU say more than those of the clock.
"""

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Annotated, Any, ClassVar, NamedTuple

from annotated_types import Interval
from rich.progress import Progress
from rich.table import Table

from agents import AGENTS
from benchmarks.common import PEERS_PYTHON, ROOT, Benchmark, Row, cell, check_names, console
from benchmarks.peers import OF_TRAINING

OURS = "ours"


@dataclass(frozen=True)
class Threshold:
    """A score in a game, and how many env steps there are to reach it."""

    env: str
    score: float  # mean return of an evaluation
    total_steps: int | None = None  # None: as many as a run has by default
    env_kwargs: tuple[str, ...] = ()

    def command(self, algo: str, seed: int, run_dir: Path) -> list[str]:
        """Return our command: the defaults, but for the length of the run where the score requires a longer one."""
        flags = ["--algo", algo, "--env", self.env, "--seed", str(seed), "--progress", "json"]
        flags += ["--run-dir", str(run_dir)]
        if self.total_steps is not None:
            flags += ["--total-steps", str(self.total_steps)]
        if self.env_kwargs:
            flags += ["--env-kwargs", *self.env_kwargs]
        return [sys.executable, "train.py", *flags]

    def peer_command(self, python: str, program: str, algo: str, seed: int) -> list[str]:
        """Return another program's command."""
        settings = {
            "program": program,
            "algo": algo,
            "env": self.env,
            "options": dict(one.split("=") for one in self.env_kwargs),
            "seed": seed,
            "total_steps": self.total_steps or 300_000,
        }
        return [python, "-m", "benchmarks.peers", "thresholds", json.dumps(settings)]


SMALL_BOARD = ("size=6",)
THRESHOLDS = {
    "cartpole-475": Threshold("gym:CartPole-v1", 475),
    "blackjack-0.050": Threshold("blackjack", -0.050),
    "connect4-0.6": Threshold("connect4", 0.6, 1_000_000),
    "connect4-0.9": Threshold("connect4", 0.9, 3_000_000),
    "snake6-6": Threshold("snake", 6, 1_000_000, SMALL_BOARD),
    "snake-10": Threshold("snake", 10, 3_000_000),
    "snake-25": Threshold("snake", 25, 6_000_000),
}


class Outcome(NamedTuple):
    """What came of one run."""

    seconds: float | None  # until the score was reached; None: it was not
    best: float | None  # the highest mean return of an evaluation; None: there was no evaluation
    error: str | None  # the last line of its errors, if it failed
    was_capped: bool  # whether it was stopped when its time was over
    cpu_seconds: float  # of all its processes, until it was stopped


def seconds_to(command: list[str], score: float, cap_seconds: float) -> Outcome:
    """Run a command that prints evaluations as JSON lines until one reaches the score, and stop it then.

    Args:
        command: prints an object with a `mean_return` for each evaluation.
        score: the mean return to reach.
        cap_seconds: after which it is stopped anyway.
    """
    began, used, best, seconds = time.monotonic(), cpu_seconds_of_children(), None, None
    with TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        timer = threading.Timer(cap_seconds, process.kill)
        timer.start()
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                found = json.loads(line) if line.startswith("{") else {}
                mean_return = found.get("mean_return")
                if mean_return is None:
                    continue
                best = mean_return if best is None else max(best, mean_return)
                if mean_return >= score:
                    seconds = time.monotonic() - began
                    process.kill()
                    break
        code = process.wait()
        was_capped = seconds is None and not timer.is_alive()
        timer.cancel()
        errors.seek(0)
        text = errors.read().decode(errors="replace").strip()
    failed = seconds is None and not was_capped and code != 0
    error = (text.splitlines() or [f"exit code {code}"])[-1] if failed else None
    return Outcome(seconds, best, error, was_capped, cpu_seconds_of_children() - used)


def cpu_seconds_of_children() -> float:
    """Return the seconds of CPU of all processes that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Thresholds(Benchmark):
    """Time to a fixed score: seconds from the command to the first evaluation that reaches it, everything included."""

    name: ClassVar[str] = "thresholds"

    cells: tuple[str, ...] = ("cartpole-475", "blackjack-0.050", "snake6-6")
    """Games and scores: also connect4-0.6, connect4-0.9, snake-10 and snake-25, which take long."""
    algos: tuple[str, ...] = ("ppo",)
    """Students."""
    programs: tuple[str, ...] = (OURS, *OF_TRAINING)
    """Programs."""
    repeats: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Runs of each program, with the seeds 1, 2, …; the median counts."""
    cap_seconds: Annotated[float, Interval(gt=0, le=1e6)] = 600.0
    """Seconds after which a run is stopped, and counts as having taken longer."""
    peers: Path = PEERS_PYTHON
    """A Python that has the other programs; see requirements/peers.txt."""

    def measure(self) -> Iterator[list[Row]]:
        check_names("cell", self.cells, THRESHOLDS)
        check_names("student", self.algos, AGENTS)
        check_names("program", self.programs, (OURS, *OF_TRAINING))
        rows: list[Row] = [
            {"program": program, "algo": algo, "cell": cell, "score": THRESHOLDS[cell].score}
            | {"cap_seconds": self.cap_seconds, "runs": [], "error": None, "seconds": None, "cpu_seconds": None}
            for cell in self.cells
            for algo in self.algos
            for program in self.programs
        ]
        with Progress(console=console, transient=True) as progress:
            turns = [(seed, row) for seed in range(1, self.repeats + 1) for row in rows]
            for seed, row in progress.track(turns, description="measuring"):
                if row["error"] is None:
                    outcome = self._run(row, seed)
                    row["error"] = outcome.error
                    row["runs"].append(outcome._asdict() | {"seed": seed})
                    row["seconds"] = median_seconds([run["seconds"] for run in row["runs"]])
                    used = [None if run["seconds"] is None else run["cpu_seconds"] for run in row["runs"]]
                    row["cpu_seconds"] = median_seconds(used)
                yield rows

    def _run(self, row: Row, seed: int) -> Outcome:
        """Run one program once."""
        threshold = THRESHOLDS[row["cell"]]
        python = str(self.peers) if self.peers.exists() else sys.executable
        with TemporaryDirectory() as folder:
            command = threshold.peer_command(python, row["program"], row["algo"], seed)
            if row["program"] == OURS:
                command = threshold.command(row["algo"], seed, Path(folder) / "run")
            return seconds_to(command, threshold.score, self.cap_seconds)

    def table(self, rows: list[Row]) -> Table:
        table = Table(title="seconds of wall clock to a score, median and range")
        for name in ("cell", "student", "program", "seconds", "range", "of CPU"):
            table.add_column(name, justify="right" if name in ("seconds", "range", "of CPU") else "left")
        for row in rows:
            times = [run["seconds"] for run in row["runs"] if run["seconds"] is not None]
            spread = f"{min(times):.1f} to {max(times):.1f}" if len(times) > 1 else ""
            used = cell(row["cpu_seconds"], ".1f")
            table.add_row(row["cell"], row["algo"], row["program"], self._median(row), spread, used)
        return table

    def _median(self, row: Row) -> str:
        """Return the median as a table shows it, or why there is none."""
        if row["error"] is not None or not row["runs"]:
            return "-"
        if row["seconds"] is not None:
            return f"{row['seconds']:.1f}"
        best = max((run["best"] for run in row["runs"] if run["best"] is not None), default=None)
        reason = f"> {self.cap_seconds:g}" if any(run["was_capped"] for run in row["runs"]) else "not reached"
        return reason if best is None else f"{reason} (best {best:.3g})"


def median_seconds(seconds: list[Any]) -> float | None:
    """Return the median, of which a run that did not reach the score took longer than all others; None: that one."""
    found = median(float("inf") if one is None else one for one in seconds)
    return None if found == float("inf") else found
