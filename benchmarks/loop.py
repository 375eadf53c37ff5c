"""What a tutor costs the training: env steps a second with one and without.

A student trains without a tutor, with one that it waits for, and with one that it does not wait for; each with an empty
table and with one that knows all that is asked, from the store of a run of the same seed that waited. The first
updates, in which functions are compiled, are not timed; a table that is to be empty is emptied after them.

Two ways of compiling a student round otherwise, and it soon plays other games. Where the table is to know all of them,
the student has next to no learning rate: it does all that learning costs, and stays as it is.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Interval
from rich.table import Table

from agents import AGENTS
from agents.compile import Mode
from agents.guidance import GuidanceConfig
from benchmarks.common import Benchmark, Row, Worker, WorkerError, cell, check_names, served, take_turns, waiting_for
from train import Trainer
from training.config import Config, default_config, make_agent, make_env
from tutors import DEFAULT_URL, TutorConfig, open_advisor
from tutors.advisor import Advisor
from tutors.llm.models import find_model
from tutors.recorded import PREFIX
from tutors.store import AdviceStore, identity_of

PARTS = 4  # of a run, for each of which the hit rate is measured
WARM_UP_UPDATES = 3
FROZEN = 1e-12  # a learning rate that changes no weight


@dataclass(frozen=True)
class Way:
    """A way to train: with a tutor or not, and what its advice table knows at the start."""

    tutor: Literal["none", "wait", "nowait"]
    table: Literal["", "cold", "warm"] = ""

    @property
    def name(self) -> str:
        """What the way is called in flags and results."""
        return "untutored" if self.tutor == "none" else f"{self.tutor}, {self.table}"


UNTUTORED = Way("none")
FILLING = Way("wait", "warm")  # the run that warms the store trains as those that find it warm
WAYS = {
    way.name: way
    for way in (
        UNTUTORED,
        Way("wait", "cold"),
        Way("wait", "warm"),
        Way("nowait", "cold"),
        Way("nowait", "warm"),
    )
}


@dataclass(frozen=True)
class Loop(Benchmark):
    """Training with a tutor, env steps a second."""

    name: ClassVar[str] = "loop"

    algo: str = "ppo"
    """The student."""
    games: tuple[str, ...] = ("blackjack", "snake", "connect4")
    """Games to train in."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Ways to train; untutored is always measured."""
    tutor: str = "scripted"
    """Tutor: scripted, recorded (the scripted one's answers, from a store), or a model of tutors/llm/models.toml."""
    steps: Annotated[int, Interval(ge=1, le=10**12)] = 400_000
    """Env steps of a run that are timed."""
    num_envs: Annotated[int, Interval(ge=1, le=10**7)] | None = None
    """Copies of the game; the student's default if not given."""
    compile_mode: Mode = "compile"
    """As that of train.py."""
    device: str = "cpu"
    """Where the student learns."""
    repeats: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Runs of each; the median counts."""

    def measure(self) -> Iterator[list[Row]]:
        check_names("student", (self.algo,), AGENTS)
        check_names("way", self.ways, WAYS)
        ways = dict.fromkeys((UNTUTORED.name, *self.ways))
        with ExitStack() as stack:
            if self.tutor not in ("scripted", "recorded"):
                stack.enter_context(served(find_model(self.tutor), DEFAULT_URL))
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            if any(WAYS[name].table == "warm" for name in ways):
                for game in self.games:
                    self._fill_store(game, folder)
            measurements = [
                ({"game": game, "way": name}, self._worker(game, WAYS[name], self.tutor, folder))
                for game in self.games
                for name in ways
            ]
            for rows in take_turns(measurements, self.repeats, "steps_per_second"):
                add_shares(rows)
                yield rows

    def _fill_store(self, game: str, folder: str) -> None:
        tutor = "scripted" if self.tutor == "recorded" else self.tutor
        try:
            self._worker(game, FILLING, tutor, folder).run()
        except WorkerError as error:
            raise ValueError(f"{game}: the run that fills the store failed: {error}") from error

    def _worker(self, game: str, way: Way, tutor: str, folder: str) -> Worker:
        settings = {
            "algo": self.algo,
            "game": game,
            "tutor": tutor,
            "compile_mode": self.compile_mode,
            "device": self.device,
            "num_envs": self.num_envs,
            "steps": self.steps,
            "way": way.name,
            "folder": folder,
        }
        return Worker("benchmarks.loop", settings)

    def table(self, rows: list[Row]) -> Table:
        grid = Table(title="training, thousand env steps a second")
        for name in ("game", "way", "copies", "steps", "of untutored", "asked", "hits, by quarters"):
            is_text = name in ("game", "way")
            grid.add_column(name, justify="left" if is_text else "right", no_wrap=name == "hits, by quarters")
        for row in rows:
            asked = f"{row['asked']:,}" if "asked" in row else ""
            rates = " ".join(f"{rate:.1%}" for rate in row.get("hit_rates", ()))
            steps, share = cell(row["steps_per_second"], ".3g", 1e3), cell(row.get("share"), ".0%")
            grid.add_row(row["game"], row["way"], str(row.get("num_envs", "")), steps, share, asked, rates)
        return grid


def add_shares(rows: list[Row]) -> None:
    """Add to each row its speed as a share of the untutored one's, of the same turn."""
    alone = {row["game"]: row["runs"] for row in rows if row["way"] == UNTUTORED.name}
    for row in rows:
        if shares := [mine / theirs for mine, theirs in zip(row["runs"], alone[row["game"]], strict=False)]:
            row["share"] = median(shares)


def measure_loop(
    algo: str,
    game: str,
    tutor: str,
    compile_mode: Mode,
    device: str,
    num_envs: int | None,
    steps: int,
    way: str,
    folder: str,
) -> Row:
    """Return one run's env steps a second, questions and hit rates."""
    config = config_for(WAYS[way], algo, game, tutor, Path(folder))
    config = replace(config, compile_mode=compile_mode, total_steps=steps, device=device)
    config = replace(config, num_envs=num_envs or config.num_envs)
    config.check()
    env = make_env(config, device)
    with ExitStack() as stack:
        advisor = stack.enter_context(open_advisor(config.tutoring, env.game, config.seed, Path(folder), device))
        if device == "cpu" and advisor is not None and advisor.tutor.shares_cpu:
            torch.set_num_threads(1)  # as train.py beside a server
        trainer = Trainer(config, env, make_agent(config, env), advisor, None)
        step = env.reset()
        stats: dict[str, torch.Tensor] = {}
        while not stats or trainer.state.updates < WARM_UP_UPDATES:  # DQN learns after learning_starts
            step, stats = trainer.update(step)
        if advisor is not None and WAYS[way].table == "cold":
            advisor.table.clear()
            advisor.store = AdviceStore(
                new_store(Path(folder)), identity_of(env.spec, advisor.view, advisor.tutor.identity)
            )
            stack.callback(advisor.store.close)
        wait, start, hit_rates, seconds = waiting_for(device), trainer.state.global_step, [], 0.0
        asked = counts(advisor)[0]
        for part in range(1, PARTS + 1):
            _, consulted, hits = counts(advisor)
            wait()
            began = time.perf_counter()
            while trainer.state.global_step - start < steps * part // PARTS:
                step, _ = trainer.update(step)
            wait()
            seconds += time.perf_counter() - began
            _, consulted_then, hits_then = counts(advisor)
            hit_rates.append(round((hits_then - hits) / max(consulted_then - consulted, 1), 4))
        found: Row = {"rate": (trainer.state.global_step - start) / seconds, "num_envs": config.num_envs}
        if advisor is not None:
            found |= {"asked": counts(advisor)[0] - asked, "hit_rates": hit_rates}
        return found


def config_for(way: Way, algo: str, game: str, tutor: str, folder: Path) -> Config:
    """Return a run that trains in this way; one that warms a store, or finds it warm, does not change its student."""
    config = default_config(algo, game)
    if way.tutor == "none":
        return replace(config, tutoring=TutorConfig(tutor="none"))
    warm = folder / f"{game}.sqlite"
    name = f"{PREFIX}{warm}" if tutor == "recorded" else tutor
    if way.table == "warm":
        config = replace(config, agent=replace(config.agent, learning_rate=FROZEN))
    store = str(warm if way.table == "warm" else new_store(folder))
    tutoring = TutorConfig(tutor=name, async_tutor=way.tutor == "nowait", advice_store=store)
    return replace(config, tutoring=tutoring, guiding=GuidanceConfig("override"))  # which wants advice to the end


def new_store(folder: Path) -> Path:
    """Return the path of a store that does not exist yet."""
    return folder / f"{len(list(folder.iterdir()))}-{time.monotonic_ns()}.sqlite"


def counts(advisor: Advisor | None) -> tuple[int, int, int]:
    """Return how many questions the tutor has had, and in how many positions advice was wanted and known."""
    if advisor is None:
        return 0, 0, 0
    _, consulted, hits = advisor.lookups.tolist()
    return advisor.tutor.stats["asked"], consulted, hits


if __name__ == "__main__":
    print(json.dumps(measure_loop(**json.loads(sys.argv[1]))))
