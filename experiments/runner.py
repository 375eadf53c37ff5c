"""Execute the runs of a study: on this machine, on a Ray cluster, or as a Slurm job array.

A run that was started before continues from its checkpoint. Runs whose tutor is a served model come tutor by tutor, so
that one server at a time is found or started for them.
"""

import multiprocessing.connection
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from annotated_types import Interval
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import train
from experiments import cluster
from experiments.spec import RunCommand, StudyOptions, read_study
from training.checkpoint import newest_step
from training.cli import run_program
from training.config import Config, defaults_from_flags
from training.hints import command
from training.ranges import check_ranges
from training.resume import BEGUN
from tutors import TutorConfig, connect_servers
from tutors.base import TutorError
from tutors.display import without_password
from tutors.llm.models import find_model, is_model
from tutors.llm.server import ShowStatus
from tutors.terminal import TerminalConsole

LOCK_TIMEOUT_S = 60.0  # within which a run that was asked to stop has saved and released its directory
Executor = Callable[[Sequence[RunCommand]], Iterator[tuple[RunCommand, int]]]  # yields commands with exit codes

console = TerminalConsole()


@dataclass(frozen=True)
class RunOptions(StudyOptions):
    """Execute the runs of a study that are not finished."""

    jobs: Annotated[int, Interval(ge=1, le=10**4)] = 2
    """Runs at once on this machine, each with one thread."""
    tutor_url: tuple[str, ...] = ()
    """URLs of the tutor's servers. Without any, a server is sought at http://127.0.0.1:8000, and started if absent."""
    advice_store: str | None = None
    """Advice store of all runs with --reuse inf; on one machine advice.sqlite in the output directory if not given."""
    ray: str | None = None
    """Address of a Ray cluster that executes the runs, one per CPU; auto: the cluster this machine belongs to."""
    slurm: bool = False
    """Print a script for sbatch that executes the runs, and exit."""
    only: Annotated[int, Interval(ge=0, le=10**9)] | None = None
    """Index of a single run: its line in the output of --dry-run for the whole study."""
    dry_run: bool = False
    """Print the commands and exit."""

    def commands(self) -> list[RunCommand]:
        """Return the commands of all selected runs, finished or not.

        Raises:
            ValueError: the study cannot be read, or has no such run.
        """
        study, runs_dir = self.subset(), self.runs_dir()
        store = self.advice_store
        if store is None and self.ray is None and not self.slurm and self.only is None:
            store = str(runs_dir / "advice.sqlite")  # SQLite requires all its writers on one machine
        indices = {run: index for index, run in enumerate(read_study(self.config).runs(), 1)}
        commands = []
        for run in study.runs():
            run_dir, tutor, first = runs_dir / run.name(), run.condition.tutor.name, study.pretraining(run)
            commands.append(
                RunCommand(
                    index=indices[run],
                    arguments=tuple(study.arguments(run, run_dir, store)),
                    run_dir=run_dir,
                    served_tutor=tutor if is_model(tutor) else None,
                    pretrained=None if first is None else runs_dir / first.name(),
                )
            )
        if self.only is None:
            return commands
        selected = [one for one in commands if one.index == self.only]
        if not selected:
            raise ValueError(f"the study has no run {self.only}; its last one is {len(indices)}")
        return selected

    def program(self) -> list[str]:
        """Return the command line that, with --only, executes one run of the study on another machine."""
        paths = [str(self.config.resolve()), "--output-dir", str(self.runs_dir().resolve())]
        urls = ["--tutor-url", *self.tutor_url] if self.tutor_url else []
        store = [] if self.advice_store is None else ["--advice-store", self.advice_store]
        return [sys.executable, "-m", "experiments", "run", *paths, *urls, *store]


def run(options: RunOptions) -> None:
    """Execute the runs that are not finished.

    Raises:
        ValueError: the study cannot be read; or runs failed, once all others are finished.
    """
    check_ranges(options)
    runs_dir, commands = options.runs_dir(), options.commands()
    if options.dry_run:
        for one in commands:
            arguments = map(without_password, one.with_servers(options.tutor_url).arguments)
            print(shlex.join(["python", "train.py", *arguments]))
        return
    unfinished = [one for one in commands if not one.is_finished()]
    if not options.tutor_url and (options.slurm or options.ray is not None):
        for tutor in {one.served_tutor for one in unfinished} - {None}:
            raise ValueError(f"runs on other machines start no server: --tutor-url must say where {tutor} is served")
    pretraining_dirs = {one.pretrained for one in commands}
    phases = [[one for one in unfinished if (one.run_dir in pretraining_dirs) == first] for first in (True, False)]
    if options.slurm:
        print_slurm_script(phases[0] or phases[1], len(phases[0]), options)
        return
    execute: Executor = partial(run_locally, jobs=options.jobs)
    if options.ray is not None:
        execute = partial(cluster.run_on_ray, program=options.program(), address=options.ray)
    (runs_dir / "logs").mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    failed: list[RunCommand] = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(runs_dir.name, total=len(commands), completed=len(commands) - len(unfinished))
        show = partial(progress.update, task)
        for phase in phases:
            for one, code in run_all(phase, options.tutor_url, lambda text: show(description=text), execute):
                progress.update(task, advance=1, description=runs_dir.name)
                if code and not one.is_finished():
                    failed.append(one)
                    progress.console.print(f"failed with exit code {code}: see {one.log_file()}", soft_wrap=True)
    if left := [one for one in failed if not one.is_finished()]:  # another study may have finished some meanwhile
        raise ValueError(f"{len(left)} of {len(commands)} runs failed; the same command tries them again")
    following = command("experiments", "report", *options.arguments())
    console.print(f"{len(commands)} runs are finished in {runs_dir}; next: {following}", soft_wrap=True)


def print_slurm_script(commands: Sequence[RunCommand], pretraining: int, options: RunOptions) -> None:
    """Print a script for sbatch; if runs of pretraining are unfinished, it executes those alone.

    Raises:
        ValueError: no run is unfinished, or the script would hold a password.
    """
    if any(without_password(word) != word for word in options.program()):
        raise ValueError(
            "a Slurm script would show the password in a URL: leave it out; TUTOR_API_KEY and PGPASSWORD can hold it"
        )
    if not commands:
        raise ValueError("all runs are finished")
    print(cluster.slurm_script(commands, options.program(), options.runs_dir()), end="")
    if pretraining:
        print("these runs pretrain students; once they are finished, repeat the command for the rest", file=sys.stderr)


def run_all(
    commands: Sequence[RunCommand], urls: tuple[str, ...], show: ShowStatus, execute: Executor
) -> Iterator[tuple[RunCommand, int]]:
    """Execute commands, tutor by tutor, and yield each with its exit code.

    The servers of a tutor are those at `urls`, or one that is found here or started for as long as its runs last. If
    no server can be had, the runs of that tutor fail, and their logs say why.
    """
    by_tutor: dict[str | None, list[RunCommand]] = {}
    for one in commands:
        if one.pretrained is None or (one.pretrained / "summary.json").exists():
            by_tutor.setdefault(one.served_tutor, []).append(one)
        else:
            yield one, one.log_failure(f"it continues {one.pretrained}, which is not finished")
    for tutor, group in by_tutor.items():
        with ExitStack() as stack:
            found: list[str] = []
            if tutor is not None:
                log = group[0].log_file().with_name(f"vllm_{tutor}.txt")
                try:
                    pool = connect_servers(
                        TutorConfig(tutor, tutor_url=urls), replace(find_model(tutor), is_named=True), log, show, stack
                    )
                except TutorError as error:
                    yield from [(one, one.log_failure(str(error))) for one in group]
                    continue
                found = [client.url for client in pool.clients]
            yield from execute([one.with_servers(found) for one in group])


class LocalPool:
    """Processes of this machine that execute runs, each forked from one that has imported train.py."""

    def __init__(self, jobs: int) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        self.jobs = jobs
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["train"])
        self.running: dict[Any, RunCommand] = {}  # by process

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask what is running to save and stop, and wait for it."""
        if self.running:
            message = f"waiting for {len(self.running)} runs to save; once more to stop at once, which loses what they"
            print(f"{message} learned since their last checkpoints", file=sys.stderr)
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.join()

    def has_room(self) -> bool:
        """Return whether another run may start."""
        return len(self.running) < self.jobs

    def start(self, command: RunCommand) -> None:
        """Start a run."""
        command.log_file().parent.mkdir(parents=True, exist_ok=True)
        process = self.context.Process(target=run_train, args=(command,))
        process.start()
        self.running[process] = command

    def wait(self) -> list[tuple[RunCommand, int]]:
        """Wait until runs end, and return them with their exit codes."""
        multiprocessing.connection.wait([process.sentinel for process in self.running])
        ended = [process for process in self.running if not process.is_alive()]
        return [(self.running.pop(process), process.exitcode or 0) for process in ended]


def run_locally(commands: Sequence[RunCommand], jobs: int) -> Iterator[tuple[RunCommand, int]]:
    """Execute commands on this machine, `jobs` at once, and yield each with its exit code."""
    waiting = list(reversed(commands))
    with LocalPool(jobs) as pool:
        while waiting or pool.running:
            while waiting and pool.has_room():
                one = waiting.pop()
                try:
                    pool.start(one)
                except (OSError, EOFError) as error:  # the fork server was killed; the next start makes another
                    yield one, one.log_failure(f"its process could not be started: {type(error).__name__}")
            if pool.running:
                yield from pool.wait()


def run_train(command: RunCommand) -> None:
    """Run train.py in this process, appending what it prints to the run's log."""
    os.setsid()  # Ctrl-C reaches the parent alone, which then sends one SIGTERM: a second signal would prevent saving
    threading.Thread(target=exit_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    with command.log_file().open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    resume = resume_arguments(command.run_dir)
    if command.is_finished():  # meanwhile, by another process
        return
    sys.argv = ["train.py", *command.arguments, *resume]
    run_program(train.train, Config, train.__doc__, defaults_from_flags)


def exit_with(parent: Any) -> None:
    """End this process when its parent has ended, also by SIGKILL, so that no run is left behind.

    The fork server, of which this process is a child, would not notice: it lives as long as its children do.
    """
    parent.join()
    os._exit(1)


def resume_arguments(run_dir: Path) -> list[str]:
    """Return the arguments with which a run continues from its checkpoint; none if it starts from scratch.

    In a directory without a checkpoint, of a run that is not finished, what the run had begun is removed. Everything
    else stays: answers of a tutor were paid for. The run's other arguments are given along with these: train.py
    refuses to resume with other settings.
    """
    if not run_dir.exists():
        return []
    with suppress(Timeout), FileLock(run_dir / ".lock", timeout=LOCK_TIMEOUT_S):  # train.py reports who holds it
        try:
            newest_step(run_dir / "checkpoints")
        except ValueError:
            if not (run_dir / "summary.json").exists():
                shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
                for pattern in BEGUN:
                    for path in run_dir.glob(pattern):
                        path.unlink()
                return []
    return ["--resume", str(run_dir)]
