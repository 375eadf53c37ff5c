"""Training without a tutor, ours and other programs': env steps a second of acting, playing and learning together."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from rich.table import Table

from agents import AGENTS
from agents.compile import MODES, Mode
from agents.distributed import init, rank, shutdown
from benchmarks.common import PEERS_PYTHON, Benchmark, Row, Worker, cell, check_names, peer, take_turns, waiting_for
from benchmarks.peers import LEARNERS
from benchmarks.timing import rate
from train import Trainer
from training.config import Config, default_config, make_agent, make_env

SECTIONS = ("act", "env", "store", "play", "learn")  # play: act, env and store where they are one function
ENVS = {  # the env of each game and its copies
    "cartpole": ("envs.cartpole:CartPole", 1024),
    "blackjack": ("blackjack", 1024),
    "connect4": ("connect4", 1024),
    "snake": ("snake", 512),
}
SMALL = {"hidden": (64, 64), "network": "mlp"}  # as in Stable-Baselines3
SMALL_OF: dict[str, dict[str, Any]] = {
    "ppo": SMALL | {"num_steps": 32, "update_epochs": 4, "num_minibatches": 16},
    "a2c": SMALL | {"num_steps": 8},
    "dqn": SMALL | {"batch_size": 512, "updates_per_step": 4},
}
STEPS_BETWEEN_CLOCKS = 32  # of all copies, at least


@dataclass(frozen=True)
class Variant:
    """A way to run our training."""

    mode: Mode
    bfloat16: bool = False
    num_processes: int = 1

    @property
    def name(self) -> str:
        """What the variant is called in flags and results."""
        words: list[str] = [self.mode]
        if self.bfloat16:
            words.append("bfloat16")
        if self.num_processes > 1:
            words.append(f"{self.num_processes} processes")
        return ", ".join(words)


VARIANTS = {
    one.name: one
    for one in (
        Variant(mode, bfloat16, num_processes)
        for mode in MODES
        for num_processes in (1, 2)
        for bfloat16 in (False, True)
    )
}
COMPILED = tuple(name for name, variant in VARIANTS.items() if variant.mode == "compile")


@dataclass(frozen=True)
class Training(Benchmark):
    """Training, the whole loop of acting, playing and learning: env steps a second."""

    name: ClassVar[str] = "training"

    algos: tuple[str, ...] = ("ppo", "a2c", "dqn")
    """Students."""
    games: tuple[str, ...] = ("cartpole", "blackjack", "connect4")
    """Games; CartPole is there because everybody's programs are timed with it."""
    programs: tuple[str, ...] = ("eager", *COMPILED, *LEARNERS)
    """Programs: those with eager, compile or graph in their name are ours."""
    presets: tuple[str, ...] = ("small",)
    """small: two layers of 64 units, of PPO 4 epochs; defaults: those of the student in that game."""
    num_envs: tuple[Annotated[int, Interval(ge=1, le=10**7)], ...] = ()
    """Copies of our games; 1024, of snake 512, if not given."""
    device: str = "cpu"
    """Where ours and theirs learn."""
    repeats: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Runs of each program; the median counts."""
    seconds: Annotated[float, Interval(gt=0, le=1e6)] = 5.0
    """Seconds that a run measures, after it has warmed up."""
    peers: Path = PEERS_PYTHON
    """A Python that has the other programs; see requirements/peers.txt."""

    def measure(self) -> Iterator[list[Row]]:
        check_names("student", self.algos, AGENTS)
        check_names("game", self.games, ENVS)
        check_names("program", self.programs, (*VARIANTS, *LEARNERS))
        check_names("preset", self.presets, ("small", "defaults"))
        yield from take_turns(list(self._measurements()), self.repeats, "steps_per_second")

    def _measurements(self) -> Iterator[tuple[Row, Worker]]:
        """Yield what is measured; what leads the flags comes first, should time run out."""
        for program in self.programs:
            for game in self.games:
                for algo in self.algos:
                    row = {"program": program, "algo": algo, "game": game}
                    common = row | {"device": self.device, "seconds": self.seconds}
                    if program in LEARNERS:
                        if game in LEARNERS[program]:
                            yield row, peer("training", common, self.peers)
                        continue
                    for preset in self.presets:
                        for num_envs in self.num_envs or (ENVS[game][1],):
                            ours = {"preset": preset, "num_envs": num_envs}
                            processes = VARIANTS[program].num_processes
                            yield row | ours, Worker("benchmarks.training", common | ours, num_processes=processes)

    def table(self, rows: list[Row]) -> Table:
        table = Table(title="training, thousand env steps a second")
        for name in ("game", "student", "program", "preset", "copies", "steps", *SECTIONS):
            table.add_column(name, justify="left" if name in ("game", "student", "program", "preset") else "right")
        for row in sorted(rows, key=lambda row: (self.games.index(row["game"]), self.algos.index(row["algo"]))):
            shares = [f"{row['shares'][name]:.0%}" if name in row.get("shares", {}) else "" for name in SECTIONS]
            copies = str(row.get("settings", row).get("num_envs", ""))
            steps = cell(row["steps_per_second"], ".3g", 1e3)
            table.add_row(row["game"], row["algo"], row["program"], row.get("preset", ""), copies, steps, *shares)
        return table


def measure_training(
    program: str, algo: str, game: str, preset: str, num_envs: int, device: str, seconds: float
) -> Row:
    """Return the rate of our training, where the time goes and the student's settings."""
    device = init(device)
    config = config_for(VARIANTS[program], algo, ENVS[game][0], preset, num_envs, device)
    env = make_env(config, device)
    trainer = Trainer(config, env, make_agent(config, env), None, None)
    horizon = trainer.agent.steps_per_update
    updates = max(1, STEPS_BETWEEN_CLOCKS // horizon)
    step = env.reset()
    stats: dict[str, torch.Tensor] = {}
    while not stats:  # DQN begins to learn only when it has seen enough
        step, stats = trainer.update(step)

    def train() -> None:
        nonlocal step
        for _ in range(updates):
            step, _ = trainer.update(step)

    train()
    trainer.timer.shares()
    found = rate(train, updates * horizon * config.num_envs, seconds, waiting_for(device))
    if device.startswith("cuda"):  # a section's time was that of its launch: measure one round that waits for each
        trainer.timer.wait = waiting_for(device)
        trainer.timer.shares()
        train()
    shares = {name.removeprefix("time/"): share for name, share in trainer.timer.shares().items()}
    return {"rate": found, "shares": shares, "settings": asdict(config.agent) | {"num_envs": config.num_envs}}


def config_for(variant: Variant, algo: str, env: str, preset: str, num_envs: int, device: str) -> Config:
    """Return a run without an end."""
    config = default_config(algo, env)
    config = replace(config, device=device, compile_mode=variant.mode, total_steps=1 << 40, num_envs=num_envs)
    settings = SMALL_OF[algo] if preset == "small" else {}
    config = replace(config, agent=replace(config.agent, **settings, bfloat16=variant.bfloat16))
    config.check()
    return config


def main() -> None:
    """Measure, in one of the ranks that torchrun started or alone, and print the result once."""
    found = measure_training(**json.loads(sys.argv[1]))
    if rank() == 0:
        print(json.dumps(found))
    shutdown()


if __name__ == "__main__":
    main()
