"""What the benchmarks share: their options, measurements in processes of their own, a server to ask."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from rich.progress import Progress
from rich.table import Table

from benchmarks.timing import nothing_to_wait_for
from envs.registry import unknown_name_message
from tutors.llm.models import Model
from tutors.llm.pool import EndpointPool
from tutors.llm.server import running_server
from tutors.terminal import TerminalConsole

ROOT = Path(__file__).parent.parent
SCRATCH = Path("runs/benchmarks")  # where results go that are not published
PEERS_PYTHON = Path(".venv-peers/bin/python")
QUERY_DEADLINE_S = 600.0

Row = dict[str, Any]

console = TerminalConsole()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A stage that is measured: its options are its fields."""

    name: ClassVar[str]

    out: Path | None = None
    """File for the JSON; runs/benchmarks/NAME.json if not given."""
    publish: bool = False
    """Write to results/NAME.json, which README.md shows."""

    def measure(self) -> Iterator[list[Row]]:
        """Yield all rows, as far as they are measured, after each measurement.

        Raises:
            ValueError: an option names what does not exist.
            TutorError: no server answers.
        """
        raise NotImplementedError

    def table(self, rows: list[Row]) -> Table:
        """Return the rows as a table to print."""
        raise NotImplementedError

    @property
    def path(self) -> Path:
        """The file for the JSON.

        Raises:
            ValueError: two are given.
        """
        if self.publish and self.out is not None:
            raise ValueError(f"--publish writes to results/{self.name}.json: leave out --out")
        return self.out or (Path("results") if self.publish else SCRATCH) / f"{self.name}.json"


class WorkerError(Exception):
    """A measurement failed; the message is the last line of its errors."""


@dataclass(frozen=True)
class Worker:
    """A measurement in a process of its own: a module that takes settings and prints one JSON object with a `rate`."""

    module: str
    settings: Mapping[str, Any]
    subcommand: tuple[str, ...] = ()
    python: str = sys.executable
    num_processes: int = 1
    is_on_stdin: bool = False  # settings too long for a command line

    @property
    def command(self) -> list[str]:
        """The command line."""
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.num_processes}"]
        settings = "-" if self.is_on_stdin else json.dumps(self.settings)
        launch = launch if self.num_processes > 1 else []
        return [self.python, *launch, "-m", self.module, *self.subcommand, settings]

    def run(self) -> Row:
        """Measure once and return what was printed.

        Raises:
            WorkerError: it printed no JSON object.
        """
        done = subprocess.run(
            self.command,
            cwd=ROOT,
            input=json.dumps(self.settings) if self.is_on_stdin else None,
            capture_output=True,
            text=True,
            check=False,
        )
        found = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not found:
            raise WorkerError((done.stderr.strip().splitlines() or ["it printed no result"])[-1])
        return json.loads(found[-1])


def peer(subcommand: str, settings: Mapping[str, Any], python: Path, is_on_stdin: bool = False) -> Worker:
    """Return a measurement of another program, in the Python at `python` or, where it does not exist, in this one."""
    interpreter = str(python) if python.exists() else sys.executable
    return Worker("benchmarks.peers", settings, (subcommand,), interpreter, is_on_stdin=is_on_stdin)


def take_turns(measurements: list[tuple[Row, Worker]], repeats: int, unit: str) -> Iterator[list[Row]]:
    """Run all workers in turn, `repeats` times, and yield the rows after each, with their medians under `unit`.

    A disturbance of the machine falls on all of them. A row whose worker failed has its error, and is not run again.
    """
    rows = [row for row, _ in measurements]
    for row in rows:
        row |= {"runs": [], "error": None, unit: None}
    with Progress(console=console, transient=True) as progress:
        for row, worker in progress.track(measurements * repeats, description="measuring"):
            if row["error"] is not None:
                continue
            try:
                found = worker.run()
            except WorkerError as error:
                row |= {"error": str(error), unit: None}
            else:
                row["runs"].append(found.pop("rate"))
                row |= found | {unit: median(row["runs"])}
            yield rows


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not known."""
    for name in names:
        if name not in known:
            raise ValueError(unknown_name_message(kind, name, list(known)))


def waiting_for(device: str) -> Callable[[], None]:
    """Return a function that returns when `device` has done all it was given."""
    return partial(torch.cuda.synchronize, device) if device.startswith("cuda") else nothing_to_wait_for


@contextmanager
def served(model: Model, url: str) -> Iterator[EndpointPool]:
    """Yield a pool of the server of `model` at `url`, which is started if nothing answers there.

    Raises:
        TutorError: no server can be had.
    """
    with ExitStack() as stack:
        pool = EndpointPool([url], QUERY_DEADLINE_S)
        stack.callback(pool.close)
        status = stack.enter_context(TerminalConsole(stderr=True).status(""))
        stack.enter_context(running_server(model, url, 0, SCRATCH / "vllm.log", status.update))
        yield pool


def cell(value: float | None, digits: str, scale: float = 1.0) -> str:
    """Return a number as a table shows it; - where there is none."""
    return "-" if value is None else format(value / scale, digits)


def gpu_name() -> str | None:
    """Return the name, memory and driver of each GPU, as nvidia-smi says them, or None where there is none."""
    if not torch.cuda.is_available():
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return torch.cuda.get_device_name()


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
