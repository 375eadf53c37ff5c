"""Random play in our games and in other programs': env steps a second."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from rich.table import Table

import envs
from agents.compile import compile_function
from benchmarks.common import PEERS_PYTHON, Benchmark, Row, Worker, cell, check_names, peer, take_turns, waiting_for
from benchmarks.peers import PEERS
from benchmarks.timing import rate
from envs.base import Env
from envs.rng import EXPLORATION_STREAM, CounterRNG, sample_legal

ENV_KWARGS: dict[str, dict[str, Any]] = {"connect4": {"opponent": "random"}}  # both sides at random, as in the peers


@dataclass(frozen=True)
class Variant:
    """A way to run our games."""

    mode: str  # eager, compile or graph
    observations: bool = False  # returned too: a compiler drops what nobody asks for, as that of the peers in JAX does

    @property
    def name(self) -> str:
        """What the variant is called in flags and results."""
        return f"{self.mode}, observations" if self.observations else self.mode


VARIANTS = {one.name: one for one in (Variant("eager"), Variant("compile"), Variant("compile", True), Variant("graph"))}
HOST_VARIANTS = tuple(name for name, variant in VARIANTS.items() if variant.mode != "graph")


@dataclass(frozen=True)
class Games(Benchmark):
    """Random play, env steps a second."""

    name: ClassVar[str] = "games"

    games: tuple[str, ...] = ("blackjack", "snake", "connect4")
    """Games to play."""
    copies: tuple[Annotated[int, Interval(ge=1, le=10**7)], ...] = (1024, 8192, 65536)
    """Copies of a game in one batch."""
    programs: tuple[str, ...] = (*HOST_VARIANTS, *PEERS)
    """Programs: eager, compile, "compile, observations" and, on CUDA, graph are ours."""
    device: str = "cpu"
    """Device of our games."""
    repeats: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Runs of each program; the median counts."""
    seconds: Annotated[float, Interval(gt=0, le=1e6)] = 2.0
    """Seconds that a run measures, after it has warmed up."""
    peers: Path = PEERS_PYTHON
    """A Python that has the other programs; see requirements/peers.txt."""

    def measure(self) -> Iterator[list[Row]]:
        check_names("game", self.games, envs.ENVS)
        check_names("program", self.programs, (*VARIANTS, *PEERS))
        measurements = [
            ({"program": program, "game": game, "copies": copies}, self._worker(program, game, copies))
            for game in self.games
            for program in self.programs
            for copies in self.copies
            if program in VARIANTS or game in PEERS[program][1]
        ]
        yield from take_turns(measurements, self.repeats, "steps_per_second")

    def _worker(self, program: str, game: str, copies: int) -> Worker:
        settings = {"program": program, "game": game, "copies": copies, "seconds": self.seconds}
        if program in VARIANTS:
            return Worker("benchmarks.games", settings | {"device": self.device})
        return peer("games", settings, self.peers)

    def table(self, rows: list[Row]) -> Table:
        table = Table(title="random play, million env steps a second")
        table.add_column("game")
        table.add_column("program")
        for copies in self.copies:
            table.add_column(f"{copies:,}", justify="right")
        for game, program in dict.fromkeys((row["game"], row["program"]) for row in rows):
            rates = {
                row["copies"]: row["steps_per_second"]
                for row in rows
                if (row["game"], row["program"]) == (game, program)
            }
            cells = [cell(rates.get(copies), ".3g", 1e6) for copies in self.copies]
            table.add_row(game, f"ours, {program}" if program in VARIANTS else program, *cells)
        return table


def measure_random_play(program: str, game: str, copies: int, seconds: float, device: str) -> Row:
    """Return the rate of random play in one of our games."""
    variant = VARIANTS[program]
    env = envs.make(game, copies, device=device, **ENV_KWARGS.get(game, {}))
    rng = CounterRNG(1, torch.arange(env.num_envs, device=device), EXPLORATION_STREAM)
    play = compile_function(random_play(env, rng, variant.observations), variant.mode)
    env.reset()
    return {"rate": rate(play, env.num_envs, seconds, waiting_for(device))}


def random_play(env: Env, rng: CounterRNG, observations: bool) -> Callable[[], Any]:
    """Return a function that plays one random legal step of all copies and counts what it brings.

    It returns the observations if asked for; an env that is not compiled makes them in any case.
    """
    total = torch.zeros(2, device=env.device)

    def play() -> Any:
        action_mask = env.game.observe(env.state)[1]
        step = env.step(sample_legal(action_mask, rng.uniform(env.steps, 1)[:, 0]))
        ended = (step.terminated | step.truncated).float()
        total.add_(torch.stack([step.reward.sum(), ended.sum()]))
        return (step.obs, step.final_obs) if observations else None

    return play


if __name__ == "__main__":
    print(json.dumps(measure_random_play(**json.loads(sys.argv[1]))))
