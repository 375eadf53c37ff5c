"""How many questions a second a served tutor answers: the part of benchmark.py that needs a server.

A server is sought where a run would seek it, and started if need be. Every batch asks about positions that nobody has
asked about before, so that the server's cache can know the rules and no more. The `openai` client sends questions of
the same kind one request each, as many at once as the batch holds, up to 64; it runs in the server's environment.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import envs
from envs.base import State, row_count, rows_of
from envs.rng import EXPLORATION, Luck, pick
from tutors import DEFAULT_URL
from tutors.base import View
from tutors.llm.client import Client
from tutors.llm.label_logprobs import LabelWay
from tutors.llm.models import fill, find_model
from tutors.llm.server import server_for
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view

OPENAI = "openai client"
ENOUGH = 1024  # questions that the openai client is timed with, at most
PATIENCE = 1000  # steps without a new position after which there is none


@dataclass(frozen=True)
class Tutor:
    """A served tutor, questions a second."""

    tutor: str = "tiny"
    """A language model of tutors/llm/models.toml."""
    url: str = DEFAULT_URL
    """Where it is served, or started if nothing answers there."""
    serve: tuple[str, ...] = ()
    """Further flags of a server that is started here, such as --load-format dummy."""
    env: str = "connect4"
    """The game that is asked about."""
    batches: tuple[int, ...] = (1, 16, 256, 1024)
    """Questions asked at once."""
    repeats: int = 3
    """Turns of each program; the median counts."""
    seconds: float = 3.0
    """How long a turn asks at least, one batch after the other."""
    peers: Path = Path(".venv-vllm/bin/python")
    """A Python that has the openai client."""
    out: Path = Path("results/tutor.json")
    """Where the JSON goes."""


def tutor_rows(told: Tutor) -> list[dict[str, Any]]:
    """Measure, and return a row for each program and batch.

    Raises:
        ValueError: the tutor or the game is not known, or the game has too few positions.
        TutorError: the tutor cannot be had.
    """
    model = find_model(told.tutor)
    model = replace(model, serve=(*model.serve, *told.serve))
    view = make_view(envs.make_game(told.env))
    fresh = positions(told.env, view)
    with ExitStack() as stack:
        client = Client(told.url, deadline=600)
        stack.callback(client.close)
        status = stack.enter_context(Console(stderr=True).status(""))
        stack.enter_context(server_for(model, client, True, 0, Path("runs/benchmark/vllm.log"), status.update))
        tutor = VllmTutor(view, model, [client], LabelWay(view, min_mass=0.0))
        rows = [
            {"program": program, "batch": batch, "runs": [], "error": None, "shares": [], "cached": [], "tokens": []}
            for batch in told.batches
            for program in ("ours", OPENAI)
        ]
        tutor.advise(take(fresh, max(told.batches)))  # the server has seen a batch of that size, and the rules
        for _ in range(told.repeats):
            for row in rows:
                if row["program"] == "ours":
                    ask(tutor, fresh, row, told.seconds)
                else:
                    ask_one_by_one(tutor, fresh, row, told)
    for row in rows:
        row["questions_per_second"] = median(row["runs"]) if row["runs"] else None
    return rows


def ask(tutor: VllmTutor, fresh: Iterator[State], row: dict[str, Any], seconds: float) -> None:
    """Ask in batches for so long; note questions a second, our own share of the time, and what was cached."""
    tutor.report()
    spent, ours, asked, tokens = 0.0, 0.0, 0, tutor.stats["prompt_tokens"]
    while spent < seconds:
        state = take(fresh, row["batch"])
        began, busy = time.perf_counter(), time.process_time()
        advice = tutor.advise(state)
        spent, ours = spent + time.perf_counter() - began, ours + time.process_time() - busy
        asked += row["batch"]
        assert advice.given.all(), "a silent tutor cannot be timed"
    row["runs"].append(asked / spent)
    row["shares"].append(ours / spent)
    row["tokens"].append((tutor.stats["prompt_tokens"] - tokens) / asked)
    row["cached"].append(tutor.report().get("vllm/prefix_cache_hit_rate", 0.0))


def ask_one_by_one(tutor: VllmTutor, fresh: Iterator[State], row: dict[str, Any], told: Tutor) -> None:
    """Let the openai client ask the same kind of questions, one request each."""
    line = tutor.lines[0]
    prompts = [
        fill(tutor.model.brief, words) for words in tutor.view.words(take(fresh, min(8 * row["batch"] + 8, ENOUGH)))
    ]
    ids = list(getattr(line.dialect, "ids", {}).values())
    question = {"url": told.url, "model": line.served, "ids": ids, "prompts": prompts, "at_once": row["batch"]}
    if not told.peers.exists():
        row["error"] = f"there is no {told.peers}"
        return
    done = subprocess.run(
        [str(told.peers), "peers.py", "questions"],
        input=json.dumps(question), capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    if done.returncode:
        row["error"] = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return
    row["runs"].append(json.loads(done.stdout))


def positions(env: str, view: View) -> Iterator[State]:
    """Yield positions of random play as they are told, none of them twice.

    Raises:
        ValueError: none came up any more for a long time.
    """
    games = envs.make(env, 2048, seed=7)
    luck = Luck(7, torch.arange(games.num_envs), EXPLORATION)
    step, known, since = games.reset(), set(), 0  # steps since the last new one
    while since < PATIENCE:
        state, _ = view.canonical(step.state)
        new = []
        for row, key in enumerate(map(tuple, view.key(state).tolist())):
            if key not in known:
                known.add(key)
                new.append(row)
        since += 1
        if new:
            since = 0
            yield rows_of(state, torch.tensor(new))
        step = games.step(pick(step.legal, luck.draw(games.steps, 1)[:, 0])).now()
    raise ValueError(
        f"random play of {env} comes to {len(known):,} positions and no more: "
        "fewer --batches, --repeats or --seconds ask about fewer"
    )


def take(fresh: Iterator[State], count: int) -> State:
    """Return `count` positions that were not there before."""
    parts: list[State] = []
    while sum(map(row_count, parts)) < count:
        parts.append(next(fresh))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return rows_of(joined, torch.randperm(row_count(joined), generator=torch.Generator().manual_seed(count))[:count])


def show_questions(rows: list[dict[str, Any]]) -> Table:
    """Return the table: a line a program and batch."""
    table = Table(title="a served tutor, questions a second")
    for name in ("questions at once", "program", "a second", "our share", "tokens a question", "of these cached"):
        table.add_column(name, justify="left" if name == "program" else "right")
    for row in rows:
        rate = "-" if row["questions_per_second"] is None else f"{row['questions_per_second']:,.0f}"
        shown = [(row["shares"], ".1%"), (row["tokens"], ".0f"), (row["cached"], ".0%")]
        cells = [format(median(values), digits) if values else "" for values, digits in shown]
        table.add_row(f"{row['batch']:,}", row["program"], rate, *cells)
    return table
