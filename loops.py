"""What a tutor costs the training's speed: the part of benchmark.py that trains with one.

A student trains without a tutor, with one that it waits for, and with one that it does not wait for; each with an empty
table and with one that knows all that is asked, from the store of a run of the same seed that waited. The first rounds,
in which functions are compiled, are not timed; a table that is to be empty is emptied after them.

Two ways of compiling a student round otherwise, and it soon plays other games. Where the table is to know all of them,
the student has next to no learning rate: it does all that learning costs, and stays as it is.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table as Grid

from agents import AGENTS
from envs import closest
from train import Training
from training.config import make_agent, make_env, tuned
from tutors import DEFAULT_URL, TutorConfig, open_desk
from tutors.advisor import Desk
from tutors.llm.client import Client
from tutors.llm.models import find_model
from tutors.llm.server import server_for
from tutors.store import AdviceStore, identity_of

HERE = Path(__file__).parent
WAYS = ("untutored", "wait, cold", "wait, warm", "nowait, cold", "nowait, warm")
PARTS = 4  # of a run, for each of which the hit rate is told
STILL = 1e-12  # a learning rate that changes no weight


@dataclass(frozen=True)
class Loop:
    """Training with a tutor, env steps a second."""

    algo: str = "ppo"
    """The student."""
    games: tuple[str, ...] = ("blackjack", "snake", "connect4")
    """Which games."""
    tutor: str = "scripted"
    """Who is asked: scripted, or a language model of tutors/llm/models.toml."""
    steps: int = 400_000
    """Env steps of a run that are timed."""
    num_envs: int | None = None
    """Games at once; the student's default if not given."""
    accelerate: Literal["eager", "compile", "graph"] = "compile"
    """As that of train.py."""
    device: str = "cpu"
    """Where the student learns."""
    repeats: int = 3
    """Runs of each; the median counts."""
    out: Path = Path("results/loop.json")
    """Where the JSON goes."""


def loop_rows(told: Loop) -> list[dict[str, Any]]:
    """Measure, and return a row for each game and way of training.

    Raises:
        ValueError: the student, a game or the tutor is not known.
        TutorError: the tutor cannot be had.
    """
    if told.algo not in AGENTS:
        raise ValueError(closest("student", told.algo, AGENTS))
    rows: list[dict[str, Any]] = [{"game": game, "way": way, "runs": []} for game in told.games for way in WAYS]
    with ExitStack() as stack:
        if told.tutor != "scripted":
            client = Client(DEFAULT_URL, deadline=600)
            stack.callback(client.close)
            status = stack.enter_context(Console(stderr=True).status(""))
            log = Path("runs/benchmark/vllm.log")
            stack.enter_context(server_for(find_model(told.tutor), client, True, 0, log, status.update))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for game in told.games:
            run_once(told, game, "wait, known", folder)
        for row in rows * told.repeats:
            found = run_once(told, row["game"], row["way"], folder)
            row["runs"].append(found.pop("rate"))
            row |= found
    for row in rows:
        alone = next(one["runs"] for one in rows if (one["game"], one["way"]) == (row["game"], WAYS[0]))
        row["steps_per_second"] = median(row["runs"])
        row["share"] = median(mine / theirs for mine, theirs in zip(row["runs"], alone, strict=True))
    return rows


def run_once(told: Loop, game: str, way: str, folder: str) -> dict[str, Any]:
    """Train once in a process of its own, and return what `measure` printed.

    Raises:
        ValueError: it failed.
    """
    what = (told.algo, game, told.tutor, told.accelerate, told.device, told.num_envs, told.steps, way, folder)
    code = f"import loops; loops.measure(*{what})"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{game}, {way}: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    algo: str,
    game: str,
    tutor: str,
    accelerate: Literal["eager", "compile", "graph"],
    device: str,
    num_envs: int | None,
    steps: int,
    way: str,
    folder: str,
) -> None:
    """Print one run's env steps a second, questions and hit rates as a line of JSON."""
    mode, _, state = way.partition(", ")
    place = Path(folder)
    stores = {"known": place / f"{game}.sqlite", "warm": place / f"{game}.sqlite"}
    told = TutorConfig(
        tutor="none" if mode == "untutored" else tutor,
        nowait=mode == "nowait",
        advice_store=str(stores.get(state, fresh(place))),
    )
    config = tuned(algo, game)
    config = replace(config, accelerate=accelerate, total_steps=steps, device=device, tutoring=told)
    config = replace(config, num_envs=num_envs or config.num_envs)
    if state in stores:
        config = replace(config, agent=replace(config.agent, learning_rate=STILL))
    config.check()
    if device == "cpu" and tutor != "scripted":
        torch.set_num_threads(1)  # as train.py beside a server
    env = make_env(config, device)
    with open_desk(told, env.game, config.seed, place, device) as desk, ExitStack() as stack:
        training = Training(config, env, make_agent(config, env), desk, None)
        step, stats = env.reset(), {}
        while not stats or training.updates < 3:  # DQN begins to learn only when it has seen enough
            step, stats = training.round(step)
        if desk is not None and state == "cold":
            desk.table.clear()
            desk.store = AdviceStore(fresh(place), identity_of(env.spec, desk.view, desk.tutor.identity))
            stack.callback(desk.store.close)
        seconds, began_at, rates = 0.0, training.global_step, []
        asked = count(desk)[0]
        for part in range(1, PARTS + 1):
            _, consulted, hits = count(desk)
            began = time.perf_counter()
            while training.global_step - began_at < steps * part // PARTS:
                step, _ = training.round(step)
            training.score.sums.tolist()  # waits for a GPU
            seconds += time.perf_counter() - began
            _, consulted_then, hits_then = count(desk)
            rates.append(round((hits_then - hits) / max(consulted_then - consulted, 1), 4))
        found = {"rate": (training.global_step - began_at) / seconds, "num_envs": config.num_envs}
        if desk is not None:
            found |= {"asked": count(desk)[0] - asked, "hit_rates": rates}
        print(json.dumps(found))


def fresh(place: Path) -> Path:
    """Return the path of a store that is not there yet."""
    return place / f"{len(list(place.iterdir()))}-{time.monotonic_ns()}.sqlite"


def count(desk: Desk | None) -> tuple[int, int, int]:
    """Return how many questions the tutor has had, and in how many positions advice was wanted and known."""
    if desk is None:
        return 0, 0, 0
    _, consulted, hits = desk.tally.tolist()
    return desk.tutor.stats["asked"], consulted, hits


def show_loops(rows: list[dict[str, Any]]) -> Grid:
    """Return the table: a line for each game and way of training."""
    grid = Grid(title="training, thousand env steps a second")
    for name in ("game", "way", "games at once", "steps", "of untutored", "asked", "hits, by quarters"):
        grid.add_column(
            name, justify="left" if name in ("game", "way") else "right", no_wrap=name == "hits, by quarters"
        )
    for row in rows:
        asked = f"{row['asked']:,}" if "asked" in row else ""
        rates = " ".join(f"{rate:.1%}" for rate in row.get("hit_rates", ()))
        share = f"{row['share']:.0%}"
        steps = f"{row['steps_per_second'] / 1e3:.3g}"
        grid.add_row(row["game"], row["way"], str(row["num_envs"]), steps, share, asked, rates)
    return grid
