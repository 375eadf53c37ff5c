"""The GPU path, proven and measured by one command within eight minutes: `python -m benchmarks gpu`.

Every part is a command of its own: the tests marked `gpu`, then games, advice table, loop, served tutor and training,
each through its own benchmark. Time that a part leaves over goes to the next; a part that is out of time is stopped and
keeps what it has measured, a part that fails is reported, and the rest goes on. `--device cpu --quick` runs the same
script in little, so that it cannot rot where there is no GPU.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from rich.table import Table

from benchmarks.common import ROOT, SCRATCH, Benchmark, Row, console
from benchmarks.gpu_summary import headlines
from training.config import find_device
from tutors import DEFAULT_URL
from tutors.llm.models import find_model
from tutors.llm.server import serve_command, stop

FOLDER = SCRATCH / "gpu"  # what the parts print and write
STOPS_WITHIN_S = 10.0
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # the tensors of a quick run are small, and threads wait for each other
MAX_TEST_PROCESSES = 8  # each has a CUDA context of its own
DUMMY_MODEL = "llama-8b"
LLAMA_8B = {  # the architecture of Llama 3.1 8B; its weights are random
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Part:
    """One command of Python's, and how long it may take beside what earlier parts left over."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    skipped_because: str | None = None

    @property
    def results(self) -> Path:
        """The file that the command writes; tests write none."""
        return FOLDER / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """The file that takes what the command prints."""
        return FOLDER / f"{self.name}.log"


@dataclass(frozen=True, kw_only=True)
class Gpu(Benchmark):
    """Tests and short measurements of everything that runs on a GPU, in eight minutes."""

    name: ClassVar[str] = "gpu"

    device: str = "cuda"
    """Device."""
    quick: bool = False
    """Small sizes, to see that the script works."""

    def measure(self) -> Iterator[list[Row]]:
        find_device(self.device)
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        rows: list[Row] = []
        deadline = time.monotonic()
        environ = ONE_THREAD if self.quick else {}
        for part in quick_parts(self.device) if self.quick else parts(self.device):
            deadline += part.limit_s
            rows.append(run(part, deadline - time.monotonic(), environ))
            console.print(f"  {rows[-1]['status']} after {rows[-1]['seconds']:.0f} s")
            yield rows

    def table(self, rows: list[Row]) -> Table:
        table = Table(title=f"the GPU path on {self.device}, {sum(row['seconds'] for row in rows):.0f} s")
        for name in ("part", "status", "what", "measured", "aim"):
            table.add_column(name, justify="right" if name in ("measured", "aim") else "left")
        has_aims = self.device != "cpu" and not self.quick
        for row in rows:
            first = (row["part"], row["status"])
            lines = [(line.what, line.measured, line.aim if has_aims else "") for line in headlines(row)]
            for cells in lines or [("", "", "")]:
                table.add_row(*first, *cells)
                first = ("", "")
        return table


def parts(device: str) -> list[Part]:
    """Return what proves a GPU, the most telling first; what is last may not be reached."""
    common = ("--device", device, "--repeats", "1")
    training = (*common, "--games", "cartpole", "connect4", "--seconds", "1")
    return [
        Part("tests", tests_command(), 100),
        benchmark("games", 45, *common, "--programs", "graph", "eager", "--copies", "65536", "1048576",
                  "--games", "connect4", "snake", "blackjack", "--seconds", "0.5"),
        benchmark("table", 40, *common, "--programs", "graph", "eager", "searchsorted", "--queries", "1048576",
                  "--entries", "1048576", "16777216", "--hits", "0.5", "--seconds", "0.2"),
        benchmark("loop", 60, *common, "--games", "blackjack", "--tutor", "recorded", "--compile-mode", "graph",
                  "--ways", "wait, warm", "nowait, warm", "--num-envs", "65536", "--steps", "20000000"),
        tutor_part(100),
        benchmark("training", 100, *training, "--programs", "graph", "eager", "compile", "--num-envs", "65536"),
        benchmark("training", 35, *training, "--programs", "graph", "--presets", "defaults", "small",
                  "--algos", "ppo", "--num-envs", "4096", "65536", name="training, defaults"),
    ]  # fmt: skip


def quick_parts(device: str) -> list[Part]:
    """Return the same parts in little: eager, and none that needs a server."""
    common = ("--device", device, "--repeats", "1")
    return [
        Part("tests", tests_command(), 60),
        benchmark("games", 60, *common, "--programs", "eager", "--copies", "64", "--games", "connect4",
                  "--seconds", "0.1"),
        benchmark("table", 60, *common, "--programs", "eager", "--queries", "256", "--entries", "4096",
                  "--loads", "0.5", "--hits", "0.5", "--seconds", "0.1"),
        benchmark("loop", 60, *common, "--games", "blackjack", "--tutor", "recorded", "--compile-mode", "eager",
                  "--ways", "wait, warm", "nowait, warm", "--num-envs", "64", "--steps", "4096"),
        Part("tutor", (), 0, "a server takes longer to start than a quick run"),
        benchmark("training", 60, *common, "--games", "cartpole", "--algos", "ppo", "--programs", "eager",
                  "--num-envs", "64", "--seconds", "0.1"),
    ]  # fmt: skip


def benchmark(subcommand: str, limit_s: float, *flags: str, name: str | None = None) -> Part:
    """Return a part that runs one of the other benchmarks."""
    name = name or subcommand
    out = ("--out", str(FOLDER / f"{name}.json"))
    return Part(name, ("-m", "benchmarks", subcommand, *flags, *out), limit_s)


def tests_command() -> tuple[str, ...]:
    """Return the command that runs the tests marked `gpu`, collecting only files that have some."""
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    processes = min(MAX_TEST_PROCESSES, (os.cpu_count() or 1) // 2)
    spread = ("-n", str(processes)) if processes > 1 and find_spec("xdist") else ()
    flags = ("-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    return "-m", "pytest", *flags, *spread, *files


def tutor_part(limit_s: float) -> Part:
    """Return the part that asks a model of 8B parameters, skipped where vLLM is not installed.

    The model is served with random weights and the tokenizer of the tiny one, so that nothing is downloaded.
    """
    if serve_command(find_model("tiny"), DEFAULT_URL) is None:
        return Part("tutor", (), limit_s, "vLLM is not installed")
    return benchmark("tutor", limit_s, "--tutor", "tiny", "--tutor-model", str(FOLDER / DUMMY_MODEL),
                     "--serve=--load-format=dummy", "--batches", "256", "1024", "--repeats", "1")  # fmt: skip


def write_dummy_model(folder: Path) -> None:
    """Write the configuration of a model of 8B parameters, and a tokenizer, for vLLM's --load-format dummy."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    for file in (ROOT / "tutors" / "tiny" / "weights").glob("tokenizer*.json"):
        shutil.copy(file, folder)


def run(part: Part, limit_s: float, environ: Mapping[str, str]) -> Row:
    """Run a part within `limit_s`, with `environ` beside ours, and return how it ended and what it measured."""
    row: Row = {
        "part": part.name,
        "command": shlex.join(("python", *part.command)),
        "limit_s": round(limit_s, 1),
        "seconds": 0.0,
    }
    if part.skipped_because is not None:
        console.print(f"{part.name}: {part.skipped_because}")
        return row | {"status": "skipped", "reason": part.skipped_because, "results": None}
    console.print(f"{part.name}: {row['command']}", markup=False, soft_wrap=True)
    if part.name == "tutor":
        write_dummy_model(ROOT / FOLDER / DUMMY_MODEL)
    began = time.monotonic()
    with part.log.open("w") as log:
        child = subprocess.Popen(
            [sys.executable, *part.command],
            cwd=ROOT,
            env=os.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = "passed" if child.wait(max(limit_s, 0)) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
            interrupt(child)
        finally:
            stop(child)
    row |= {"seconds": round(time.monotonic() - began, 1), "status": status, "reason": None}
    row["results"] = json.loads(part.results.read_text()) if part.results.exists() else None
    lines = [line for line in part.log.read_text(errors="replace").splitlines() if line.strip()]
    row["last_line"] = lines[-1] if lines else ""
    errors = [one["error"] for one in (row["results"] or {}).get("rows", []) if one.get("error") is not None]
    if status == "failed" or errors:
        row |= {"status": "failed", "reason": errors[0] if errors else row["last_line"]}
        console.print(f"  {row['reason']}", markup=False)
    return row


def interrupt(child: subprocess.Popen[bytes]) -> None:
    """Interrupt a child and all that it started, and give it time to say how far it came."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(child.pid, signal.SIGINT)
        child.wait(STOPS_WITHIN_S)
