"""A run: what it was told, and how programs end."""

import argparse
import json
import math
import os
import platform
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

import envs
from agents import AGENTS, A2CConfig, Agent, DQNConfig, PPOConfig
from agents.distributed import rank, world_size
from agents.guidance import GuidanceConfig
from envs.base import Env
from envs.registry import unknown_name_message
from tutors import TutorConfig
from tutors.store import without_password

HERE = Path(__file__).parents[1]
TUNED = HERE / "agents" / "defaults.toml"
EVALUATION_SEED = 1_000_003  # added to a run's seed: the games of an evaluation are never those of training

COMMON_FLAGS = (  # what `train.py --help` shows
    *("algo", "env", "env_kwargs", "total_steps", "seed", "device", "run_dir", "resume"),
    *("tutor", "guidance"),
)
EXAMPLES = """\
  python train.py --algo ppo --env snake --total-steps 200000
  python train.py --algo dqn --env connect4 --tutor scripted --guidance distill
  python train.py --resume runs/NAME --total-steps 1000000 --force
"""


@dataclass(frozen=True)
class Config:
    """One training run."""

    algo: str = "dqn"
    """Student: dqn, ppo or a2c."""
    env: str = "connect4"
    """Environment: blackjack, connect4 or snake; gym:ID for a Gymnasium env, module:Class for your own."""
    env_kwargs: tuple[str, ...] = ()
    """Options of the environment as NAME=VALUE, such as opponent=negamax:2 or size=8."""
    total_steps: int = 300_000
    """Env steps, all env copies together."""
    num_envs: int = 256
    """Number of env copies, all ranks together."""
    seed: int = 1
    """Random seed."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda if available."""
    compile_mode: Literal["auto", "eager", "compile", "graph"] = "auto"
    """How the training loop runs: eager; compile: with torch.compile, after tens of seconds of compilation; graph: as
    CUDA graphs, too. auto is eager in this version."""
    eval_every: int = 25_000
    """Env steps between evaluations of the student alone."""
    eval_episodes: int = 500
    """Episodes per evaluation."""
    log_every: int = 5_000
    """Env steps between log records."""
    save_minutes: float = 5.0
    """Minutes between checkpoints; more if saving would take over 2 % of the time."""
    run_dir: Path | None = None
    """Run directory; a new one under runs/ if not given."""
    resume: Path | None = None
    """Run directory of the run to resume. With another --run-dir, a new run starts from that run's student."""
    force: bool = False
    """Resume although settings differ from those that the run was started with."""
    progress: Literal["live", "json", "quiet"] = "live"
    """live: a progress bar, or plain lines outside a terminal; json: an object a line; quiet: errors only."""
    track: bool = False
    """Log to Weights & Biases, too."""
    tutoring: Annotated[TutorConfig, tyro.conf.arg(name="tutor")] = field(default_factory=TutorConfig)
    guiding: Annotated[GuidanceConfig, tyro.conf.arg(name="guidance")] = field(default_factory=GuidanceConfig)
    agent: Annotated[DQNConfig | PPOConfig | A2CConfig, tyro.conf.arg(name="agent")] = field(default_factory=DQNConfig)

    def check(self) -> None:
        """Raise ValueError for what cannot be run."""
        if self.algo not in AGENTS:
            raise ValueError(unknown_name_message("student", self.algo, AGENTS))
        for name in ("total_steps", "num_envs", "eval_every", "eval_episodes", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed is {self.seed}; it must lie between 0 and 2**31 - 1")
        if self.num_envs % world_size():
            raise ValueError(f"{self.num_envs} games cannot be split between {world_size()} processes")
        self.agent.check(self.num_envs // world_size())
        self.tutoring.check()
        self.guiding.check(self.algo)

    def to_json(self) -> str:
        """Return everything but passwords, as `config_from_json` reads it; an endless budget is written as a string."""
        told = asdict(self) | {
            "run_dir": str(self.run_dir),
            "resume": None if self.resume is None else str(self.resume),
        }
        for name in ("advice_store", "tutor"):  # a recorded tutor's name is a store's, too
            if told["tutoring"][name] is not None:
                told["tutoring"][name] = without_password(told["tutoring"][name])
        if self.tutoring.tutor_key_file is not None:
            told["tutoring"]["tutor_key_file"] = str(self.tutoring.tutor_key_file)
        if math.isinf(told["tutoring"]["reuse"]):
            told["tutoring"]["reuse"] = "inf"
        return json.dumps(told | {"versions": versions()}, indent=2)


def config_from_json(text: str) -> Config:
    """Return the config that `Config.to_json` wrote."""
    told = json.loads(text)
    del told["versions"]
    agent, tutoring = told.pop("agent"), told.pop("tutoring")
    agent["hidden"], told["env_kwargs"] = tuple(agent["hidden"]), tuple(told["env_kwargs"])
    tutoring["reuse"], tutoring["tutor_url"] = float(tutoring["reuse"]), tuple(tutoring["tutor_url"])
    if tutoring["tutor_key_file"] is not None:
        tutoring["tutor_key_file"] = Path(tutoring["tutor_key_file"])
    told["run_dir"] = Path(told["run_dir"])
    if told.get("resume") is not None:
        told["resume"] = Path(told["resume"])
    _, agent_config = AGENTS[told["algo"]]
    guiding = GuidanceConfig(**told.pop("guiding", {}))  # runs of 0.3.0 have none
    return Config(**told, agent=agent_config(**agent), tutoring=TutorConfig(**tutoring), guiding=guiding)


def versions() -> dict[str, str]:
    """Return which program on which machine makes this run."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def tuned(algo: str, env: str) -> Config:
    """Return the defaults of a student in a game: those of agents/defaults.toml where it has some.

    Raises:
        ValueError: there is no such student.
    """
    if algo not in AGENTS:
        raise ValueError(unknown_name_message("student", algo, AGENTS))
    found = dict(tomllib.loads(TUNED.read_text()).get(algo, {}).get(env, {}))
    found.pop("chosen", None)
    told = {name: found.pop(name) for name in [one.name for one in fields(Config)] if name in found}
    if "hidden" in found:
        found["hidden"] = tuple(found["hidden"])
    _, agent_config = AGENTS[algo]
    return Config(algo=algo, env=env, agent=agent_config(**found), **told)


def config_of(folder: Path) -> Config:
    """Return what the run in a folder was told.

    Raises:
        ValueError: there is none, or its config.json cannot be read.
    """
    try:
        return config_from_json((folder / "config.json").read_text())
    except OSError as error:
        raise ValueError(f"{folder} is no run's folder: it has no config.json") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is not one of this version: {error!r}") from error


def tuned_for(flags: Sequence[str]) -> Config:
    """Return the defaults of the student and the game that a command line names, or of the run it goes on with."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume")
    parser.add_argument("--algo", default=Config.algo)
    parser.add_argument("--env", default=Config.env)
    named, _ = parser.parse_known_args(list(flags))
    if named.resume is not None:
        return replace(config_of(Path(named.resume)), run_dir=None, resume=Path(named.resume), force=False)
    return tuned(named.algo, named.env)


def make_agent(config: Config, env: Env) -> Agent:
    """Return a new student of the run's games; with a tutor, one that does with advice what was told."""
    agent, _ = AGENTS[config.algo]
    guidance = None
    if config.tutoring.tutor != "none":
        guidance = config.guiding.make(agent.has_policy, env.device, env.num_envs, config.agent.gamma)
    return agent(config.agent, env, config.total_steps, config.seed, guidance)


def make_env(config: Config, device: str) -> Env:
    """Return the games to train in: this rank's share of them."""
    num_envs = config.num_envs // world_size()
    options = envs.parse_options(config.env_kwargs)
    return envs.make(config.env, num_envs, config.seed, device, rank() * num_envs, **options)


def evaluation_env(config: Config, num_envs: int, device: str, others: Sequence[str] = ()) -> Env:
    """Return the run's game for an evaluation, with luck of its own.

    Who learned against itself is evaluated against the default opponent.
    """
    options = envs.parse_options(config.env_kwargs)
    if options.get("opponent") == "self":
        options = {}
    options |= envs.parse_options(others)
    return envs.make(config.env, num_envs, config.seed + EVALUATION_SEED, device, **options)


def find_device(name: str) -> str:
    """Return the device called `name`, which may be auto.

    Raises:
        ValueError: it is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device here; use --device cpu or auto")
    if name not in ("cpu", "cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))):
        raise ValueError(unknown_name_message("device", name, ("auto", "cpu", "cuda")))
    if ":" in name:
        torch.cuda.set_device(name)  # streams and events are those of the current device
    return name
