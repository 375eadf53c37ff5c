"""The runs of a study on this machine: begun or gone on with, and a server for those whose tutor is a served model."""

import multiprocessing.connection
import os
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

import train
from experiments.spec import Job
from training.checkpoint import newest_step
from training.cli import run_program
from training.config import Config, defaults_from_flags
from tutors import TutorConfig, connect_servers
from tutors.base import TutorError
from tutors.llm.models import find_model, known_models
from tutors.llm.server import ShowStatus

LEAVES_WITHIN = 60.0  # seconds in which a run that was told to stop has saved and is gone


class Errand(NamedTuple):
    """A job, and what train.py is told for it."""

    number: int  # of the job in the whole grid, from 1
    job: Job
    arguments: list[str]
    folder: Path
    first: Path | None  # the folder of the run that it goes on with

    def log(self) -> Path:
        """Return the file for what it prints."""
        return self.folder.parent / "logs" / f"{self.folder.name}.txt"

    def tutor(self) -> str | None:
        """Return the tutor if it is a served model."""
        return self.job.cell.tutor if self.job.cell.tutor in known_models() else None

    def is_done(self) -> bool:
        """Return whether nothing is left to do."""
        return (self.folder / "summary.json").exists()

    def failed(self, why: str) -> tuple["Errand", int]:
        """Return it as one that could not be done, and write why into its log."""
        with self.log().open("a") as file:
            file.write(f"error: {why}\n")
        return self, 2

    def asking(self, urls: Sequence[str]) -> "Errand":
        """Return it with a tutor, if it has a served one, that answers at `urls`."""
        if not urls or self.tutor() is None:
            return self
        return self._replace(arguments=[*self.arguments, "--tutor-url", *urls])


Done = tuple[Errand, int]  # an errand, as it ends, with its exit code
Way = Callable[[list[Errand]], Iterator[Done]]  # of doing errands


def all_of(errands: list[Errand], urls: tuple[str, ...], logs: Path, say: ShowStatus, do: Way) -> Iterator[Done]:
    """Do all errands, those of one served tutor after those of another.

    A tutor's servers are those at `urls`, or one is found here or started for as long as its errands last. One that
    cannot be had fails them: their logs say why.
    """
    parts = defaultdict[str | None, list[Errand]](list)
    for one in errands:
        if one.first is None or (one.first / "summary.json").exists():
            parts[one.tutor()].append(one)
        else:
            yield one.failed(f"it goes on with {one.first}, which is not done")
    for tutor, part in parts.items():
        with ExitStack() as stack:
            found: list[str] = []
            if tutor is not None:
                told = TutorConfig(tutor, tutor_url=urls)
                try:
                    pool = connect_servers(told, find_model(tutor), logs / f"vllm_{tutor}.txt", say, stack)
                    found = [client.url for client in pool.clients]
                except TutorError as error:
                    yield from [one.failed(str(error)) for one in part]
                    continue
            yield from do([one.asking(found) for one in part])


def here(errands: list[Errand], most: int) -> Iterator[Done]:
    """Do errands, `most` at once.

    An errand is a process of its own, born from one that has imported train.py once.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    births = multiprocessing.get_context("forkserver")
    births.set_forkserver_preload(["train"])
    waiting, busy = list(reversed(errands)), dict[Any, Errand]()
    try:
        while waiting or busy:
            while waiting and len(busy) < most:
                errand = waiting.pop()
                child = births.Process(target=work, args=(errand,))
                child.start()
                busy[child] = errand
            multiprocessing.connection.wait([child.sentinel for child in busy])
            for child in [child for child in busy if not child.is_alive()]:
                yield busy.pop(child), child.exitcode or 0
    finally:
        for child in busy:
            child.terminate()
        for child in busy:
            child.join()


def work(errand: Errand) -> None:
    """Be train.py with an errand's flags, and add what it prints to the errand's log."""
    os.setsid()  # Ctrl-C reaches the study alone, which tells us once: a second signal would not let us save
    threading.Thread(target=end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    with errand.log().open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    flags = begun(errand.folder)
    if errand.is_done():  # meanwhile, by another study
        return
    sys.argv = ["train.py", *errand.arguments, *flags]
    run_program(train.train, Config, train.__doc__, defaults_from_flags)


def end_with(study: Any) -> None:
    """End this process when the study is gone: one that was killed leaves no runs behind.

    The fork server, whose child this is, would tell nothing: it lives as long as its children do.
    """
    study.join()
    os._exit(1)


def begun(folder: Path) -> list[str]:
    """Return the flag with which a run goes on from its checkpoint; what has none, and is not done, is removed.

    Other flags are given, too: train.py refuses to go on with a run that began with others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(folder / ".lock", timeout=LEAVES_WITHIN):  # what is still there, train.py tells
        try:
            newest_step(folder / "checkpoints")
        except ValueError:
            if not (folder / "summary.json").exists():
                shutil.rmtree(folder)
    return ["--resume", str(folder)] if folder.exists() else []
