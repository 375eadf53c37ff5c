"""How many questions a second a served tutor answers.

A server is sought where a run would seek it, and started if need be. Every batch asks about positions that nobody has
asked about before, so that the server's cache can know the rules and no more. The `openai` client sends questions of
the same kind one request each, as many at once as the batch holds, up to 64; it runs in the server's environment.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from rich.table import Table

import envs
from benchmarks.common import Benchmark, Row, WorkerError, cell, peer, served
from envs.base import State, cat_states, num_rows, select_rows
from envs.rng import EXPLORATION_STREAM, CounterRNG, sample_legal
from tutors import DEFAULT_URL
from tutors.llm.label_logprobs import LabelLogprobs
from tutors.llm.models import fill_template, find_model
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view
from tutors.prompts.base import PromptView

OURS, OPENAI = "ours", "openai client"
MAX_OPENAI_PROMPTS = 1024  # that the openai client is timed with
MAX_STEPS_WITHOUT_NEWS = 1000  # after which random play is taken to know all positions


@dataclass(frozen=True)
class Tutor(Benchmark):
    """A served tutor, questions a second."""

    name: ClassVar[str] = "tutor"

    tutor: str = "tiny"
    """A language model of tutors/llm/models.toml."""
    tutor_model: str | None = None
    """Another model, as an id or a folder, served in its place and asked in its template."""
    url: str = DEFAULT_URL
    """Where it is served, or started if nothing answers there."""
    serve: tuple[str, ...] = ()
    """Further flags of a server that is started here, as --serve=--load-format --serve=dummy."""
    env: str = "connect4"
    """The game that is asked about."""
    batches: tuple[Annotated[int, Interval(ge=1, le=10**6)], ...] = (1, 16, 256, 1024)
    """Questions asked at once."""
    repeats: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Turns of each program; the median counts."""
    seconds: Annotated[float, Interval(gt=0, le=1e6)] = 3.0
    """Seconds that a turn asks at least, one batch after the other."""
    peers: Path = Path(".venv-vllm/bin/python")
    """A Python that has the openai client."""

    def measure(self) -> Iterator[list[Row]]:
        model = find_model(self.tutor, self.tutor_model)
        model = replace(model, serve=(*model.serve, *self.serve))
        view = make_view(envs.make_game(self.env))
        fresh = positions(self.env, view)
        rows: list[Row] = [
            {"program": program, "batch": batch, "runs": [], "error": None, "shares": [], "cached": [], "tokens": []}
            for batch in self.batches
            for program in (OURS, OPENAI)
        ]
        with served(model, self.url) as pool:
            tutor = VllmTutor(view, model, pool, LabelLogprobs(view, min_mass=0.0))
            tutor.advise(take(fresh, max(self.batches)))  # the server has seen a batch of that size, and the rules
            for row in rows * self.repeats:
                if row["program"] == OURS:
                    ask(tutor, fresh, row, self.seconds)
                else:
                    ask_one_by_one(tutor, fresh, row, self)
                row["questions_per_second"] = median(row["runs"]) if row["runs"] else None
                yield rows

    def table(self, rows: list[Row]) -> Table:
        table = Table(title="a served tutor, questions a second")
        for name in ("questions at once", "program", "a second", "our share", "tokens a question", "of these cached"):
            table.add_column(name, justify="left" if name == "program" else "right")
        for row in rows:
            shown = [(row["shares"], ".1%"), (row["tokens"], ".0f"), (row["cached"], ".0%")]
            cells = [format(median(values), digits) if values else "" for values, digits in shown]
            table.add_row(f"{row['batch']:,}", row["program"], cell(row.get("questions_per_second"), ",.0f"), *cells)
        return table


def ask(tutor: VllmTutor, fresh: Iterator[State], row: Row, seconds: float) -> None:
    """Ask in batches for so long; note questions a second, our own share of the time, and what was cached."""
    tutor.report()
    spent, ours, asked, tokens = 0.0, 0.0, 0, tutor.stats["prompt_tokens"]
    while spent < seconds:
        state = take(fresh, row["batch"])
        began, busy = time.perf_counter(), time.process_time()
        advice = tutor.advise(state)
        spent, ours = spent + time.perf_counter() - began, ours + time.process_time() - busy
        asked += row["batch"]
        assert advice.valid.all(), "without advice there is nothing to time"
    row["runs"].append(asked / spent)
    row["shares"].append(ours / spent)
    row["tokens"].append((tutor.stats["prompt_tokens"] - tokens) / asked)
    row["cached"].append(tutor.report().get("vllm/prefix_cache_hit_rate", 0.0))


def ask_one_by_one(tutor: VllmTutor, fresh: Iterator[State], row: Row, benchmark: Tutor) -> None:
    """Let the openai client ask the same kind of questions, one request each."""
    if not benchmark.peers.exists():
        row["error"] = f"there is no {benchmark.peers}"
        return
    served = tutor.pool.endpoints[0].served
    assert served is not None
    count = min(8 * row["batch"] + 8, MAX_OPENAI_PROMPTS)
    prompts = [fill_template(tutor.model.answer_template, words) for words in tutor.view.render(take(fresh, count))]
    ids = list(getattr(served.api, "label_ids", {}).values())
    settings = {"url": benchmark.url, "model": served.name, "ids": ids, "prompts": prompts, "at_once": row["batch"]}
    try:
        row["runs"].append(peer("questions", settings, benchmark.peers, is_on_stdin=True).run()["rate"])
    except WorkerError as error:
        row["error"] = str(error)


def positions(env: str, view: PromptView) -> Iterator[State]:
    """Yield canonical positions of random play, none of them twice.

    Raises:
        ValueError: none came up any more for a long time.
    """
    games = envs.make(env, 2048, seed=7)
    rng = CounterRNG(7, torch.arange(games.num_envs), EXPLORATION_STREAM)
    step, known, steps_without_news = games.reset(), set(), 0
    while steps_without_news < MAX_STEPS_WITHOUT_NEWS:
        state, _ = view.canonicalize(step.state)
        new = []
        for row, key in enumerate(map(tuple, view.key(state).tolist())):
            if key not in known:
                known.add(key)
                new.append(row)
        steps_without_news += 1
        if new:
            steps_without_news = 0
            yield select_rows(state, torch.tensor(new))
        step = games.step(sample_legal(step.action_mask, rng.uniform(games.steps, 1)[:, 0])).as_initial()
    raise ValueError(
        f"random play of {env} comes to {len(known):,} positions and no more: "
        "fewer --batches, --repeats or --seconds ask about fewer"
    )


def take(fresh: Iterator[State], count: int) -> State:
    """Return `count` positions that were not there before."""
    parts: list[State] = []
    while sum(map(num_rows, parts)) < count:
        parts.append(next(fresh))
    joined = cat_states(parts)
    return select_rows(joined, torch.randperm(num_rows(joined), generator=torch.Generator().manual_seed(count))[:count])
