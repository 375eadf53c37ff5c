"""How fast every stage is, beside other programs on the same machine in the same run.

`benchmark.py games` plays at random, `benchmark.py train` learns, `benchmark.py tutor` asks a tutor (questions.py),
`benchmark.py table` looks up advice (lookups.py), `benchmark.py loop` trains with a tutor and without (loops.py).

Every number is the median of several runs, each in a process of its own; the runs of different programs take turns, so
that a disturbance of the machine falls on all of them. A table is printed, and everything measured written as JSON.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Grid

import envs
from agents import AGENTS
from agents.compile import MODES
from agents.distributed import join, leave, rank
from envs.base import Env
from envs.rng import EXPLORATION, Luck, pick
from lookups import Table, show_lookups, table_rows
from loops import Loop, loop_rows, show_loops
from peers import LEARNERS, PEERS, rate
from questions import Tutor, show_questions, tutor_rows
from train import Training
from training.cli import run_program
from training.config import make_agent, make_env, tuned, versions

HERE = Path(__file__).parent
OURS = ("eager", "compile", "compile, observations")
TRAINERS = tuple(
    f"{mode}{rest}" for mode in MODES for rest in ("", ", bfloat16", ", 2 processes", ", bfloat16, 2 processes")
)
PARTS = ("act", "env", "store", "play", "learn")  # play: act, env and store where they are one function
SIZES = {  # what is trained in, and how many games at once
    "cartpole": ("envs.cartpole:CartPole", 1024),
    "blackjack": ("blackjack", 1024),
    "connect4": ("connect4", 1024),
    "snake": ("snake", 512),
}
HIDDEN = (64, 64)  # as in Stable-Baselines3
TIMED: dict[str, dict[str, Any]] = {
    "ppo": {"num_steps": 32, "update_epochs": 4, "num_minibatches": 16},
    "a2c": {"num_steps": 8},
    "dqn": {"batch_size": 512, "updates_per_step": 4},
}
OPTIONS: dict[str, dict[str, Any]] = {"connect4": {"opponent": "random"}}  # both sides at random, as in the peers

console = Console(highlight=False)


@dataclass(frozen=True)
class Games:
    """Random play, env steps a second."""

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


@dataclass(frozen=True)
class Train:
    """Training, the whole loop of acting, playing and learning: env steps a second."""

    algos: tuple[str, ...] = ("ppo", "a2c", "dqn")
    """Which students."""
    games: tuple[str, ...] = ("cartpole", "blackjack", "connect4")
    """Which games; CartPole is there because everybody's programs are timed with it."""
    programs: tuple[str, ...] = ("eager", *(one for one in TRAINERS if "compile" in one), *LEARNERS)
    """Whose: those with eager, compile or graph in their name are ours."""
    device: str = "cpu"
    """Where ours and theirs learn."""
    repeats: int = 3
    """Runs of each program; the median counts."""
    seconds: float = 5.0
    """How long a run measures, after it has warmed up."""
    peers: Path = Path(".venv-peers/bin/python")
    """A Python that has the other programs; see requirements/peers.txt."""
    out: Path = Path("results/train.json")
    """Where the JSON goes."""


def main(told: Games | Train | Tutor | Table | Loop) -> list[dict[str, Any]]:
    """Measure, print the table, write the JSON and return its rows.

    Raises:
        ValueError: a game, a student, a tutor or a program is not known.
        TutorError: the tutor cannot be had.
    """
    rows = rows_of(told)
    told.out.parent.mkdir(parents=True, exist_ok=True)
    machine = versions() | {"threads": torch.get_num_threads(), "cpu": cpu_name()}
    told.out.write_text(json.dumps({"command": " ".join(sys.argv), "machine": machine, "rows": rows}, indent=2) + "\n")
    if isinstance(told, Games):
        show_games(rows, told)
    elif isinstance(told, Tutor):
        console.print(show_questions(rows))
    elif isinstance(told, Table):
        console.print(show_lookups(rows))
    elif isinstance(told, Loop):
        console.print(show_loops(rows))
    else:
        show_training(rows)
    for error in {f"{row['program']}: {row['error']}" for row in rows if row.get("error") is not None}:
        console.print(error)
    return rows


def rows_of(told: Games | Train | Tutor | Table | Loop) -> list[dict[str, Any]]:
    """Measure, and return the rows."""
    if isinstance(told, Tutor):
        return tutor_rows(told)
    if isinstance(told, Table):
        return table_rows(told)
    if isinstance(told, Loop):
        return loop_rows(told)
    return timed(told)


def timed(told: Games | Train) -> list[dict[str, Any]]:
    """Measure every row in turn, as often as was told, and return the rows with their medians."""
    rows = game_rows(told) if isinstance(told, Games) else train_rows(told)
    with Progress(console=console, transient=True) as progress:
        for row in progress.track(rows * told.repeats, description="measuring"):
            if row["error"] is None:
                run_once(row, told)
    for row in rows:
        row["steps_per_second"] = statistics.median(row["runs"]) if row["error"] is None else None
        del row["command"]
    return rows


def game_rows(told: Games) -> list[dict[str, Any]]:
    """Return a row for each game, program and number of copies, with the command that measures it."""
    check_names("game", told.games, envs.ENVS)
    check_names("program", told.programs, (*OURS, *PEERS))
    rows = []
    for game in told.games:
        for program in told.programs:
            for copies in told.copies if program in OURS or game in PEERS[program][1] else ():
                what = [program, game, str(copies), str(told.seconds)]
                row = {"program": program, "game": game, "copies": copies, "runs": [], "error": None}
                rows.append(row | {"command": command_of("games", program in OURS, told.peers, what)})
    return rows


def train_rows(told: Train) -> list[dict[str, Any]]:
    """Return a row for each student, game and program, with the command that measures it."""
    check_names("student", told.algos, AGENTS)
    check_names("game", told.games, SIZES)
    check_names("program", told.programs, (*TRAINERS, *LEARNERS))
    rows = []
    for game in told.games:
        for algo in told.algos:
            for program in told.programs:
                if program in LEARNERS and game not in LEARNERS[program]:
                    continue
                what = [program, algo, game, told.device, str(told.seconds)]
                row = {"program": program, "algo": algo, "game": game, "runs": [], "error": None}
                rows.append(row | {"command": command_of("training", program in TRAINERS, told.peers, what)})
    return rows


def check_names(kind: str, names: tuple[str, ...], known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not known."""
    for name in names:
        if name not in known:
            raise ValueError(envs.closest(kind, name, list(known)))


def command_of(stage: str, is_ours: bool, peers: Path, what: list[str]) -> list[str]:
    """Return the command that prints one measurement as a line of JSON."""
    if not is_ours:
        return [str(peers if peers.exists() else sys.executable), "peers.py", stage, *what]
    code = ["-c", f"import benchmark; benchmark.our_{stage}(*{what})"]
    if "processes" not in what[0]:
        return [sys.executable, *code]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    return [sys.executable, *launch, sys.executable, *code]


def run_once(row: dict[str, Any], told: Games | Train) -> None:
    """Measure one row once, in a process of its own."""
    done = subprocess.run(row["command"], cwd=HERE, capture_output=True, text=True, check=False)
    try:
        found = json.loads([line for line in done.stdout.splitlines() if line[:1] in "{0123456789"][-1])
    except (IndexError, json.JSONDecodeError):
        row["error"] = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return
    if isinstance(found, dict):
        row |= {name: value for name, value in found.items() if name != "rate"}
        found = found["rate"]
    row["runs"].append(found)


def our_games(program: str, game: str, copies: str, seconds: str) -> None:
    """Print the steps a second of random play in our own game, as a line of JSON."""
    env = envs.make(game, int(copies), **OPTIONS.get(game, {}))
    luck = Luck(1, torch.arange(env.num_envs), EXPLORATION)
    go = random_play(env, luck, observe=program == "compile, observations")
    if program.startswith("compile"):
        go = torch.compile(go)
    env.reset()
    print(json.dumps(rate(go, env.num_envs, float(seconds))))


def our_training(program: str, algo: str, game: str, device: str, seconds: str) -> None:
    """Print the steps a second of training, where the time goes and with what settings, as a line of JSON."""
    device = join(device)
    mode = next(one for one in MODES if program.startswith(one))
    config = replace(
        tuned(algo, SIZES[game][0]), device=device, accelerate=mode, total_steps=1 << 40, num_envs=SIZES[game][1]
    )
    settings = TIMED[algo] | {"hidden": HIDDEN, "network": "mlp", "bfloat16": "bfloat16" in program}
    config = replace(config, agent=replace(config.agent, **settings))
    config.check()
    env = make_env(config, device)
    training = Training(config, env, make_agent(config, env), None, None)
    rounds = max(1, 32 // training.agent.horizon)
    held, stats = [env.reset()], {}
    while not stats:  # DQN begins to learn only when it has seen enough
        held[0], stats = training.round(held[0])

    def go() -> None:
        for _ in range(rounds):
            held[0], _ = training.round(held[0])
        training.score.sums.tolist()  # waits for a GPU

    go()
    training.watch.shares()
    found = rate(go, rounds * training.agent.horizon * config.num_envs, float(seconds))
    shares = {name.removeprefix("time/"): share for name, share in training.watch.shares().items()}
    told = asdict(config.agent) | {"num_envs": config.num_envs}
    if rank() == 0:
        print(json.dumps({"rate": found, "shares": shares, "settings": told}))
    leave()


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


def show_games(rows: list[dict[str, Any]], told: Games) -> None:
    """Print the table: a line a program, a column a number of copies."""
    table = Grid(title="random play, million env steps a second")
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


def show_training(rows: list[dict[str, Any]]) -> None:
    """Print the table: a line a program, and where the time goes."""
    table = Grid(title="training, thousand env steps a second")
    for name in ("game", "student", "program", "games at once", "steps"):
        table.add_column(name, justify="right" if name == "steps" else "left")
    for part in PARTS:
        table.add_column(part, justify="right")
    for row in rows:
        steps = "-" if row["steps_per_second"] is None else f"{row['steps_per_second'] / 1e3:.3g}"
        shares = [f"{row['shares'][part]:.0%}" if part in row.get("shares", {}) else "" for part in PARTS]
        at_once = str(row.get("settings", {}).get("num_envs", ""))
        table.add_row(row["game"], row["algo"], row["program"], at_once, steps, *shares)
    console.print(table)


def cpu_name() -> str:
    """Return what the machine calls its processor."""
    lines = info.read_text().splitlines() if (info := Path("/proc/cpuinfo")).exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    run_program(main, Games | Train | Tutor | Table | Loop, description=__doc__)
