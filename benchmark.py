"""How fast every stage is, beside other programs on the same machine in the same run: `python benchmark.py games`.

Every number is the median of several runs, each in a process of its own; the runs of different programs take turns, so
that a disturbance of the machine falls on all of them. A table is printed, and everything measured written as JSON.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import envs
from envs.base import Env
from envs.luck import EXPLORATION, Luck, pick
from peers import PEERS, rate
from run import run_program, versions

HERE = Path(__file__).parent
OURS = ("eager", "compile", "compile, observations")
OPTIONS: dict[str, dict[str, Any]] = {"connect4": {"opponent": "random"}}  # both sides at random, as in the peers

console = Console(highlight=False)


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    stage: Annotated[Literal["games"], tyro.conf.Positional]
    """games: random play, env steps a second."""
    games: tuple[str, ...] = ("blackjack", "snake", "connect4")
    """Which games."""
    copies: tuple[int, ...] = (1024, 8192, 65536)
    """How many at once."""
    programs: tuple[str, ...] = (*OURS, *PEERS)
    """Whose: eager, compile and "compile, observations" are ours."""
    repeats: int = 3
    """Runs of each program; the median counts."""
    seconds: float = 2.0
    """How long a run measures, after it has warmed up."""
    peers: Path = Path(".venv-peers/bin/python")
    """A Python that has the other programs; see requirements/peers.txt."""
    out: Path = Path("results/games.json")
    """Where the JSON goes."""


def benchmark(told: Benchmark) -> list[dict[str, Any]]:
    """Measure, print the table, write the JSON and return its rows.

    Raises:
        ValueError: a game or a program is not known.
    """
    for kind, names, known in (("game", told.games, envs.ENVS), ("program", told.programs, (*OURS, *PEERS))):
        for name in names:
            if name not in known:
                raise ValueError(envs.closest(kind, name, known))
    rows = [
        {"program": program, "game": game, "copies": copies, "runs": [], "error": None}
        for game in told.games
        for program in told.programs
        if program in OURS or game in PEERS[program][1]
        for copies in told.copies
    ]
    with Progress(console=console, transient=True) as progress:
        for row in progress.track(rows * told.repeats, description="measuring"):
            if row["error"] is None:
                run_once(row, told)
    for row in rows:
        row["steps_per_second"] = statistics.median(row["runs"]) if row["error"] is None else None
    told.out.parent.mkdir(parents=True, exist_ok=True)
    machine = versions() | {"threads": torch.get_num_threads(), "cpu": cpu_name()}
    told.out.write_text(json.dumps({"command": " ".join(sys.argv), "machine": machine, "rows": rows}, indent=2) + "\n")
    show(rows, told)
    return rows


def run_once(row: dict[str, Any], told: Benchmark) -> None:
    """Measure one row once, in a process of its own."""
    what = [row["program"], row["game"], str(row["copies"]), str(told.seconds)]
    if row["program"] in OURS:
        command = [sys.executable, "-c", f"import benchmark; benchmark.ours(*{what})"]
    else:
        command = [str(told.peers if told.peers.exists() else sys.executable), "peers.py", *what]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    try:
        row["runs"].append(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, json.JSONDecodeError):
        row["error"] = (done.stderr.strip().splitlines() or ["no answer"])[-1]


def ours(program: str, game: str, copies: str, seconds: str) -> None:
    """Print the steps a second of random play in our own game, as a line of JSON."""
    env = envs.make(game, int(copies), **OPTIONS.get(game, {}))
    luck = Luck(1, torch.arange(env.num_envs), EXPLORATION)
    go = random_play(env, luck, observe=program == "compile, observations")
    if program.startswith("compile"):
        go = torch.compile(go)
    env.reset()
    print(json.dumps(rate(go, env.num_envs, float(seconds))))


def random_play(env: Env, luck: Luck, observe: bool) -> Any:
    """Return a function that plays one random legal step of all games and counts what it brings.

    With `observe` it also returns what there is to be seen. A compiler drops what nobody asks for, as that of the peers
    in JAX does; without one the observations are made in any case.
    """
    total = torch.zeros(2)

    def go() -> Any:
        legal = env.game.look(env.state)[1]
        step = env.step(pick(legal, luck.draw(env.steps, 1)[:, 0]))
        ended = (step.terminated | step.truncated).float()
        total.add_(torch.stack([step.reward.sum(), ended.sum()]))
        return (step.obs, step.final_obs) if observe else None

    return go


def show(rows: list[dict[str, Any]], told: Benchmark) -> None:
    """Print the table: a line a program, a column a number of copies."""
    table = Table(title="random play, million env steps a second")
    table.add_column("game")
    table.add_column("program")
    for copies in told.copies:
        table.add_column(f"{copies:,}", justify="right")
    for game in told.games:
        for program in dict.fromkeys(row["program"] for row in rows if row["game"] == game):
            found = {row["copies"]: row for row in rows if (row["game"], row["program"]) == (game, program)}
            cells = [
                f"{found[copies]['steps_per_second'] / 1e6:.3g}" if found[copies]["error"] is None else "-"
                for copies in told.copies
            ]
            table.add_row(game, f"ours, {program}" if program in OURS else program, *cells)
    console.print(table)
    for error in {f"{row['program']}: {row['error']}" for row in rows if row["error"] is not None}:
        console.print(error)


def cpu_name() -> str:
    """Return what the machine calls its processor."""
    lines = info.read_text().splitlines() if (info := Path("/proc/cpuinfo")).exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    run_program(benchmark, Benchmark, description=__doc__)
