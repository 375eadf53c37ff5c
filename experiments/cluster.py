"""The runs of a study on many machines that share their folders: over Ray, or as an array of Slurm."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.runner import Done, Errand
from tutors.llm.server import die_with_parent

HERE = Path(__file__).parents[1]
TRIES_AGAIN = 10  # how often a job is tried again when its node has died
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=study
#SBATCH --array={numbers}
#SBATCH --cpus-per-task=1
#SBATCH --output=/dev/null
#SBATCH --requeue
#SBATCH --signal=B:TERM@{seconds}
set -eu
mkdir -p {logs}
exec >{logs}/slurm_"$SLURM_ARRAY_TASK_ID".txt 2>&1
cd {folder}
exec {command} --only "$SLURM_ARRAY_TASK_ID"
"""
SAVES_WITHIN = 60  # seconds before the end of a task's time at which Slurm tells it to save and stop


def command(grid: Path, place: Path, *flags: str) -> list[str]:
    """Return how experiments/study.py runs anything of this study on another machine."""
    told = ["--grid", str(grid.resolve()), "--folder", str(place.resolve()), *flags]
    return [sys.executable, "-m", "experiments.study", "run", *told]


def over_ray(errands: list[Errand], words: list[str], address: str) -> Iterator[Done]:
    """Do errands as tasks of a Ray cluster, one a CPU, by the command `words`.

    An errand whose node dies is tried again on another one, where it goes on from its checkpoint.

    Raises:
        ValueError: Ray is not installed, or no cluster is there.
    """
    ray = connected(address)
    task = ray.remote(num_cpus=1, max_retries=TRIES_AGAIN)(attempt)
    waiting = {task.remote([*words, "--only", str(one.number)], str(Path.cwd())): one for one in errands}
    try:
        while waiting:
            (ended,), _ = ray.wait(list(waiting))
            errand = waiting.pop(ended)
            try:
                yield errand, ray.get(ended)
            except ray.exceptions.RayError as error:
                yield errand.failed(str(error))
    finally:
        for one in waiting:
            ray.cancel(one, force=True)
        ray.shutdown()


def connected(address: str) -> Any:
    """Return Ray, connected to the cluster at `address`."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("--ray wants Ray, which is not installed: pip install -e '.[study]'") from error
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"no Ray cluster answers at {address}: {error}") from error
    return ray


def attempt(words: list[str], folder: str) -> int:
    """Run a command in a folder, which is told to stop when this process ends, and return its exit code."""
    return subprocess.run(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
        check=False,
    ).returncode


def slurm_script(errands: list[Errand], words: list[str], place: Path) -> str:
    """Return a script for sbatch that does errands, each as the task of its number, by the command `words`."""
    return SCRIPT.format(
        numbers=",".join(str(one.number) for one in errands),
        seconds=SAVES_WITHIN,
        logs=shlex.quote(str(place.resolve() / "logs")),
        folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(words),
    )
