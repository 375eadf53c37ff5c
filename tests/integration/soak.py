"""Train for a while with a tutor whose server fails one request in five, in every way that FAULTS.md names.

`python -m tests.integration.soak --seconds 600` prints what came of it and ends with 1 if anything leaked or was
miscounted. The server is a process of its own, so that memory, files and threads are the trainer's alone. A hash of a
request's prompts decides what happens to it, so that a retry gets the same, and the server knows what failures must
come of it. On the way the run is stopped and resumed from its checkpoint, time and again. When the server is gone,
training is timed beside training without a tutor. Then the tests of random cases run with many times as many of them.
"""

import argparse
import gc
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from agents.guidance import GuidanceConfig
from envs.base import Step
from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import FIRST_ID, Handler, Server, choice
from train import Trainer
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import Config, default_config, make_agent, make_env
from tutors import TutorConfig, open_advisor
from tutors.advisor import Advisor
from tutors.base import no_advice_counts
from tutors.llm.client import MAX_TRIES
from tutors.llm.tutor import VllmTutor

DEADLINE_S = 1.0  # seconds that a step's questions may take
NUM_SAMPLES = 40  # of memory, files and threads
NUM_RESUMES = 10  # the run is stopped and resumed so often
NUM_TIMINGS = 5  # of a run whose tutor is gone, and of one without a tutor

Misbehaviour = Callable[[Handler, dict[str, Any]], None]


def raw(content: bytes) -> Misbehaviour:
    """A body that is what it is."""
    return lambda handler, body: handler.send_raw(200, content)


def status(number: int, **headers: str) -> Misbehaviour:
    """Another status, with an error as vLLM writes it."""
    return lambda handler, body: handler.reply(number, {"error": {"message": "no"}}, **headers)


def logs(**changed: object) -> Misbehaviour:
    """Answers in which the first label's log-probability is something else, or all are."""

    def misbehave(handler: Handler, body: dict[str, Any]) -> None:
        choices = honest(body)
        for one in choices:
            found = one["logprobs"]["top_logprobs"][0]
            if "every" in changed:
                found |= dict.fromkeys(found, changed["every"])
            elif "first" in changed:
                found[f"token_id:{FIRST_ID}"] = changed["first"]
            else:
                del found[f"token_id:{FIRST_ID}"]
        handler.reply(200, {"choices": choices})

    return misbehave


def choices(change: Callable[[list[dict[str, Any]]], object]) -> Misbehaviour:
    """Choices that something was done to."""
    return lambda handler, body: handler.reply(200, {"choices": change(honest(body))})


def half(handler: Handler, body: dict[str, Any]) -> None:
    """Half an answer, and the end of the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def never(handler: Handler, body: dict[str, Any]) -> None:
    """No answer, for longer than anybody waits."""
    time.sleep(3 * DEADLINE_S)
    handler.close_connection = True


def drip(handler: Handler, body: dict[str, Any]) -> None:
    """One byte after the other."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with suppress(OSError):
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(DEADLINE_S / 20)
    handler.close_connection = True


def honest(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [choice(row, body) for row in range(len(body["prompt"]))]


ALWAYS: list[tuple[str, Misbehaviour, int]] = [  # (kind of failure, what the server does, tries)
    ("not_json", raw(b"not json"), 1),
    ("not_json", raw(b""), 1),
    ("not_json", raw(b"\xff\xfe\x00"), 1),
    ("not_json", raw(b"[" * 50_000), 1),
    ("error_in_200", raw(b'{"error": {"message": "no"}}'), 1),
    ("no_answer", raw(b'{"choices": null}'), 1),
    ("no_answer", choices(lambda found: []), 1),
    ("malformed", choices(lambda found: found + found), 1),
    ("malformed", choices(lambda found: [one | {"logprobs": None} for one in found]), 1),
    ("malformed", logs(), 1),
    ("malformed", logs(first=math.nan), 1),
    ("malformed", logs(first=math.inf), 1),
    ("malformed", logs(first="-1.0"), 1),
    ("low_label_mass", logs(every=-9999.0), 1),
    ("low_label_mass", logs(every=-30.0), 1),
    ("status_307", status(307, Location="http://127.0.0.1:9/"), 1),
    ("status_500", status(500), MAX_TRIES),
    ("reset", half, MAX_TRIES),
    ("deadline", never, 1),
    ("deadline", drip, 1),
]
TOLERATED: list[Misbehaviour] = [
    choices(lambda found: found[::-1]),
    choices(lambda found: [*found, found[0] | {"index": 9999}]),
]
ONCE: list[Misbehaviour] = [status(503, Retry_After="0.1"), status(429), half]


class Saboteur:
    """Decides what each request meets with, and keeps account."""

    def __init__(self) -> None:
        self.no_advice: Counter[str] = Counter()  # rows, by the kind of failure that must come of them
        self.done: Counter[str] = Counter()  # requests
        self.met: set[str] = set()
        self.lock = threading.Lock()

    def __call__(self, handler: Handler, body: dict[str, Any]) -> bool:
        prompts = body["prompt"]
        if "Options" not in prompts[0]:
            return False  # a question without a position, by which the server is recognised
        digest = hashlib.sha256("".join(prompts).encode()).digest()
        name, chance = digest.hex(), int.from_bytes(digest[:8]) % 5000
        kinds = len(ALWAYS) + len(TOLERATED) + len(ONCE)
        with self.lock:
            first, self.met = name not in self.met, self.met | {name}
            if chance >= 1000:
                self.done["well"] += 1
                return False
            self.done["ill"] += 1
            number = chance % kinds
            if number < len(ALWAYS):
                kind, act, tries = ALWAYS[number]
                self.no_advice[kind] += len(prompts) / tries
            elif number < len(ALWAYS) + len(TOLERATED):
                act = TOLERATED[number - len(ALWAYS)]
            elif first:
                act = ONCE[number - len(ALWAYS) - len(TOLERATED)]
            else:
                return False
        act(handler, body)
        return True


def serve() -> None:
    """Serve until standard input ends, then print the account."""
    server = Server()
    saboteur = server.misbehave = Saboteur()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.url, flush=True)
    sys.stdin.read()
    print(json.dumps({"no_advice": saboteur.no_advice, "done": saboteur.done}))


@dataclass
class Account:
    """What a soak came to."""

    steps: int = 0
    rows: int = 0  # positions that the tutor was asked about
    answered: int = 0
    no_advice: dict[str, int] = field(default_factory=dict)  # as the tutor counted
    due: dict[str, float] = field(default_factory=dict)  # as the server says it must be
    requests: dict[str, int] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)  # MiB
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # steps a second, with the tutor gone, of those without a tutor

    def faults(self) -> list[str]:
        """Return what is wrong."""
        counted = {kind: count for kind, count in self.no_advice.items() if kind != "breaker"}
        early = len(self.memory) // 4
        found = {
            f"counted {counted}, due {self.due}": counted == {kind: round(count) for kind, count in self.due.items()},
            f"{self.rows} asked, {self.answered} answered": self.rows == self.answered + sum(self.no_advice.values()),
            f"memory {self.memory[early:]}": max(self.memory[early:]) < self.memory[early] + 40,
            f"files {self.files[early:]}": max(self.files[early:]) <= max(self.files[: early + 1]) + 3,
            f"threads {self.threads[early:]}": max(self.threads[early:]) <= max(self.threads[: early + 1]) + 1,
            "nothing was asked": self.rows > 0,
        }
        return [what for what, holds in found.items() if not holds]


def soak(seconds: float, folder: Path) -> Account:
    """Train for so long, and return what came of it."""
    command = [sys.executable, "-c", "from tests.integration.soak import serve; serve()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdin is not None
    assert child.stdout is not None
    tutoring = TutorConfig(tutor="tiny", tutor_url=(child.stdout.readline().strip(),), tutor_deadline=DEADLINE_S)
    config = replace(
        default_config("dqn", "connect4"), num_envs=64, tutoring=tutoring, device="cpu", total_steps=1 << 30
    )
    config = replace(config, agent=replace(config.agent, hidden=(32,), buffer_size=2000, learning_starts=500))
    account, end = Account(), time.monotonic()
    for part in range(NUM_RESUMES):
        end += seconds / NUM_RESUMES
        gc.collect()  # a trainer holds itself in cycles
        with resumed_run(config, folder, account.steps) as (trainer, step):
            assert isinstance(trainer.advisor, Advisor)
            tutor = trainer.advisor.tutor
            assert isinstance(tutor, VllmTutor)
            breaker = tutor.pool.endpoints[0].breaker
            due = time.monotonic()
            while time.monotonic() < end:
                breaker.record_success()  # it has tests of its own: here it would hide the others' work
                step, _ = trainer.update(step)
                if time.monotonic() >= due:
                    due += seconds / NUM_SAMPLES
                    sample(account)
            save_checkpoint(folder / "checkpoints", trainer.state.global_step, trainer.state.state_dict())
            account.steps, counts = trainer.state.global_step, trainer.advisor.counts
            account.rows, account.answered = counts["queried"], counts["answered"]
            account.no_advice = no_advice_counts(tutor.stats)
            if part == NUM_RESUMES - 1:
                child.stdin.close()
                served = json.loads(child.stdout.read())
                child.wait()
                child.stdout.close()
                account.shares = shares(config, trainer.advisor, seconds / 60)
    account.due, account.requests = served["no_advice"], served["done"]
    return account


@contextmanager
def resumed_run(config: Config, folder: Path, global_step: int) -> Iterator[tuple[Trainer, Step]]:
    """A run that begins, or is resumed from its checkpoint at `global_step`, and its current step."""
    env = make_env(config, "cpu")
    with open_advisor(config.tutoring, env.game, 1, folder, "cpu") as advisor:
        trainer = Trainer(config, env, make_agent(config, env), advisor)
        if global_step:
            trainer.state.load_state_dict(load_checkpoint(folder / "checkpoints", "cpu"))
            assert trainer.state.global_step == global_step
        yield trainer, env.current() if global_step else env.reset()


def shares(config: Config, advisor: Advisor, seconds: float) -> list[float]:
    """Return the speeds of a run whose tutor is gone as shares of those of one without a tutor; they take turns."""
    config = replace(default_config("dqn", "connect4"), tutoring=config.tutoring, device="cpu", total_steps=1 << 30)
    config = replace(config, guiding=GuidanceConfig("override"))
    runs, found = {}, []
    for one in (None, advisor):
        env = make_env(config, "cpu")
        runs[Trainer(config, env, make_agent(config, env), one)] = env.reset()
    for _ in range(NUM_TIMINGS + 1):
        speeds = []
        for run in runs:
            before, began = run.state.global_step, time.monotonic()
            while time.monotonic() < began + seconds:
                runs[run], _ = run.update(runs[run])
            speeds.append((run.state.global_step - before) / (time.monotonic() - began))
        found.append(round(speeds[1] / speeds[0], 3))
    return found[1:]  # in the first turn the breaker opens


def sample(account: Account) -> None:
    """Note how much of everything this process holds."""
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    account.memory.append(round(int(words["VmRSS"].split()[0]) / 1024, 1))
    account.files.append(len(list(Path("/proc/self/fd").iterdir())))
    account.threads.append(int(words["Threads"]))


FUZZERS = (  # tests of random cases that FUZZ_SCALE multiplies
    "tests/tutors/llm/test_random_bodies.py",
    "tests/tutors/llm/test_api.py",
    "tests/tutors/store/test_damaged_rows.py",
    "tests/tutors/llm/test_server_metrics.py",
    "tests/training/test_metrics_file.py",
    "tests/training/test_config.py",
    "tests/integration/test_flags.py",
    "tests/integration/test_damaged_runs.py",
)


def fuzz(scale: int) -> bool:
    """Run the tests of random cases with so many times the cases, and return whether all hold."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "random or thousand or any",
        *FUZZERS,
    ]
    return not subprocess.run(command, cwd=ROOT, env=os.environ | {"FUZZ_SCALE": str(scale)}, check=False).returncode


def main() -> None:
    """Soak for a given time and print the account, then try many random cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--fuzz-scale", type=int, default=20, help="times as many random cases as in the tests")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        account = soak(options.seconds, Path(folder))
    print(account)
    print(f"with the tutor gone, {median(account.shares):.0%} of the steps a second of a student without a tutor")
    faults = account.faults()
    print("\n".join(faults) or "nothing leaked, nothing was miscounted")
    sys.exit(bool(faults) or not fuzz(options.fuzz_scale))


if __name__ == "__main__":
    main()
