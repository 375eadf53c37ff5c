"""The runs of a study on several machines that share a file system: as tasks of Ray, or as a Slurm job array."""

import logging
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.spec import RunCommand
from training.hints import install_command
from tutors.llm.server import die_with_parent

MAX_RETRIES = 10  # of a Ray task whose node died
SIGTERM_LEAD_S = 60  # seconds before a Slurm task's time limit at which it is told to save and stop
SLURM_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=study
#SBATCH --array={indices}
#SBATCH --cpus-per-task=1
#SBATCH --output=/dev/null
#SBATCH --requeue
#SBATCH --signal=B:TERM@{lead}
set -eu
mkdir -p {logs}
exec >{logs}/slurm_"$SLURM_ARRAY_TASK_ID".txt 2>&1
cd {directory}
exec {program} --only "$SLURM_ARRAY_TASK_ID"
"""


def run_on_ray(
    commands: Sequence[RunCommand], program: Sequence[str], address: str
) -> Iterator[tuple[RunCommand, int]]:
    """Execute commands as tasks of a Ray cluster, one per CPU, and yield each with its exit code.

    A run whose node dies is retried on another node, where it continues from its checkpoint.

    Args:
        program: executes one command of the study, given its index by --only.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = connect(address)
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(execute)
    pending = {task.remote([*program, "--only", str(one.index)], str(Path.cwd())): one for one in commands}
    try:
        while pending:
            (finished,), _ = ray.wait(list(pending))
            command = pending.pop(finished)
            try:
                yield command, ray.get(finished)
            except ray.exceptions.RayError as error:
                yield command, command.log_failure(str(error))
    finally:
        for one in pending:
            ray.cancel(one, force=True)
        ray.shutdown()


def connect(address: str) -> Any:
    """Return the module ray, connected to the cluster at `address`.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"--ray requires Ray: {install_command('-e', '.[study]')}") from error
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"no Ray cluster can be reached at {address}: {error}") from error
    return ray


def execute(arguments: list[str], directory: str) -> int:
    """Run a program in a directory and return its exit code; it is terminated when this process ends."""
    return subprocess.run(
        arguments,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
        check=False,
    ).returncode


def slurm_script(commands: Sequence[RunCommand], program: Sequence[str], runs_dir: Path) -> str:
    """Return a script for sbatch whose array tasks execute the commands, each by its index."""
    return SLURM_SCRIPT.format(
        indices=",".join(str(one.index) for one in commands),
        lead=SIGTERM_LEAD_S,
        logs=shlex.quote(str(runs_dir.resolve() / "logs")),
        directory=shlex.quote(str(Path.cwd())),
        program=shlex.join(program),
    )
