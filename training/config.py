"""The settings of a run, and what is made from them."""

import argparse
import json
import os
import platform
import subprocess
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from annotated_types import Interval

import envs
from agents import AGENTS, A2CConfig, Agent, DQNConfig, PPOConfig
from agents.distributed import rank, world_size
from agents.guidance import GuidanceConfig
from envs.base import Env
from envs.registry import unknown_name_message
from training.config_json import from_plain, to_plain
from training.ranges import check_ranges, shorten
from tutors import TutorConfig
from tutors.display import without_password
from tutors.registry import check_tutor

ROOT = Path(__file__).parents[1]
CONFIG = "config.json"  # what every run directory has
DEFAULTS_FILE = ROOT / "agents" / "defaults.toml"
FORMAT = 1  # of config.json; files of versions 0.x have none
ADDED: dict[str, dict[str, Any]] = {  # since 1.0.0: the values that keep what a tutored run did before
    "tutoring": {"tutor_all_best": False, "label_set": None, "no_thinking": False},
    "guiding": {"trust": "none", "pretrain_updates": 0, "no_audit": True},
}
EVALUATION_SEED = 1_000_003  # added to a run's seed: evaluation episodes are never those of training

COMMON_FLAGS = (  # fields that `train.py --help` shows
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
    total_steps: Annotated[int, Interval(ge=1, le=10**15)] = 300_000
    """Env steps, all env copies together."""
    num_envs: Annotated[int, Interval(ge=1, le=10**7)] = 256
    """Number of env copies, all ranks together."""
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 1
    """Random seed."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda if available."""
    compile_mode: Literal["auto", "eager", "compile", "graph"] = "auto"
    """How the training loop runs: eager; compile: with torch.compile, after tens of seconds of compilation; graph: as
    CUDA graphs, too. auto: compile where the run is long enough for that."""
    eval_every: Annotated[int, Interval(ge=1, le=10**15)] = 25_000
    """Env steps between evaluations of the student alone."""
    eval_episodes: Annotated[int, Interval(ge=1, le=10**7)] = 500
    """Episodes per evaluation."""
    log_every: Annotated[int, Interval(ge=1, le=10**15)] = 5_000
    """Env steps between log records."""
    save_minutes: Annotated[float, Interval(ge=0, le=1e9)] = 5.0
    """Minutes between checkpoints; more if saving would take over 2 % of the time."""
    run_dir: Path | None = None
    """Run directory; a new one under runs/ if not given."""
    resume: Path | None = None
    """Run to resume: its run directory, or hub:NAME. Its student begins a new run if --run-dir is another one."""
    force: bool = False
    """Resume although settings differ from those that the run was started with."""
    progress: Literal["live", "json", "quiet"] = "live"
    """live: a progress bar, or plain lines outside a terminal; json: an object a line; quiet: errors only."""
    track: Literal["wandb", "trackio"] | None = None
    """Log to Weights & Biases or to Trackio, too."""
    tutoring: Annotated[TutorConfig, tyro.conf.arg(name="tutor")] = field(default_factory=TutorConfig)
    guiding: Annotated[GuidanceConfig, tyro.conf.arg(name="guidance")] = field(default_factory=GuidanceConfig)
    agent: Annotated[DQNConfig | PPOConfig | A2CConfig, tyro.conf.arg(name="agent")] = field(default_factory=DQNConfig)

    def check(self) -> None:
        """Raise ValueError for settings that cannot be run."""
        if self.algo not in AGENTS:
            raise ValueError(unknown_name_message("student", self.algo, AGENTS))
        check_ranges(self)
        if self.num_envs % world_size():
            raise ValueError(f"num_envs is {self.num_envs}; it must be a multiple of {world_size()}, the world size")
        self.agent.check(self.num_envs // world_size())
        check_tutor(self.tutoring)
        self.guiding.check(self.algo)
        if self.tutoring.tutor != "none":
            self.guiding.check_copies(self.algo, self.num_envs // world_size())

    def shortness(self) -> str | None:
        """Return why a new run of these settings is too short to learn; None if it is not."""
        starts = getattr(self.agent, "learning_starts", 0)
        if self.total_steps <= starts:
            reason = f"{self.algo} begins to learn after --learning-starts {starts:,} env steps"
        elif self.total_steps < (rollout := self.num_envs * getattr(self.agent, "num_steps", 1)):
            reason = f"one update of {self.algo} takes {rollout:,} env steps, --num-envs times --num-steps"
        else:
            return None
        return f"this run is too short to learn: {reason}, and --total-steps is {self.total_steps:,}"

    def to_json(self) -> str:
        """Return all settings and the versions in use as `config_from_json` reads them, without passwords."""
        settings = {"format": FORMAT, **to_plain(self, without_password), "versions": versions()}
        return json.dumps(settings, indent=2)


def config_from_json(text: str) -> Config:
    """Return the config that `Config.to_json` wrote.

    Raises:
        ValueError: the text is of another version or no config; the message says what is wrong, and names the field.
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ValueError("it is of version 0.x, which this version cannot read: use version 0.7.0 for that run")
    values.pop("versions", None)
    if values.get("algo") not in [*AGENTS]:  # a list: whatever stands there can be compared, not hashed
        raise ValueError(f"algo is {shorten(repr(values.get('algo')))}; it must be one of {', '.join(AGENTS)}")
    if isinstance(values.get("track"), bool):  # as in versions 1.0 and 1.1
        values["track"] = "wandb" if values["track"] else None
    for part, added in ADDED.items():
        if isinstance(values.get(part), dict):
            tutored = isinstance(values.get("tutoring"), dict) and values["tutoring"].get("tutor") != "none"
            defaults = to_plain(getattr(Config(), part))
            values[part] = {name: value if tutored else defaults[name] for name, value in added.items()} | values[part]
    _, agent_config = AGENTS[values["algo"]]
    config: Config = from_plain(Config, values, overrides={"agent": agent_config})
    check_ranges(config)
    return config


def load_config(run_dir: Path) -> Config:
    """Return the config of the run in a directory.

    Raises:
        ValueError: there is no run, or its config.json is not one of this version.
    """
    path = run_dir / CONFIG
    try:
        return config_from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{run_dir} is no run directory: it has no config.json{meant_run(run_dir)}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def meant_run(path: Path) -> str:
    """Return a hint at the run that was meant by a path that is none; empty where no run is near."""
    with suppress(OSError):
        if inside := runs_in(path):
            return f"; the newest run in it is {max(inside, key=lambda one: (one / CONFIG).stat().st_mtime)}"
        if path.exists():  # in a run, or elsewhere
            around = [str(one) for one in path.parents if (one / CONFIG).is_file()]
            return f"; it is a part of {around[0]}" if around else ""
        runs = {one.name: one for folder in (Path("runs"), path.parent) for one in runs_in(folder)}
        if near := get_close_matches(path.name, runs, n=1):
            return f"; did you mean {runs[near[0]]}?"
    return ""


def runs_in(folder: Path) -> list[Path]:
    """Return the run directories in a folder."""
    return [one.parent for one in folder.glob(f"*/{CONFIG}")]


def versions() -> dict[str, str]:
    """Return the versions of the program and its libraries, and the machine."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def default_config(algo: str, env: str) -> Config:
    """Return the defaults of a student on an env: those of agents/defaults.toml where it has them.

    Raises:
        ValueError: there is no such student.
    """
    if algo not in AGENTS:
        raise ValueError(unknown_name_message("student", algo, AGENTS))
    settings: dict[str, Any] = dict(tomllib.loads(DEFAULTS_FILE.read_text(encoding="utf-8")).get(algo, {}).get(env, {}))
    settings.pop("chosen", None)
    of_run = {one.name: settings.pop(one.name) for one in fields(Config) if one.name in settings}
    if "hidden" in settings:
        settings["hidden"] = tuple(settings["hidden"])
    _, agent_config = AGENTS[algo]
    return Config(algo=algo, env=env, agent=agent_config(**settings), **of_run)


def make_config(algo: str, env: str, **options: Any) -> Config:
    """Return the defaults of a student on an env, with options that are named as the flags of train.py.

    Raises:
        ValueError: there is no such student or option, or a value is of another type or out of its range.
    """
    values = to_plain(default_config(algo, env))
    parts = [values, *(part for part in values.values() if isinstance(part, dict))]
    known = [name for part in parts for name in part if not isinstance(part[name], dict)]
    for name, value in options.items():
        if name not in known:
            raise ValueError(unknown_name_message("option", name, known))
        next(part for part in parts if name in part)[name] = to_plain(
            tuple(value) if isinstance(value, list) else value
        )
    config: Config = from_plain(Config, values, overrides={"agent": AGENTS[algo][1]})
    config.check()
    return config


def defaults_from_flags(args: Sequence[str]) -> Config:
    """Return the defaults of the student and the env that a command line names, or of the run that it resumes.

    Raises:
        ValueError: there is no such student or run, or the run's student or env is another one.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume")
    parser.add_argument("--algo")
    parser.add_argument("--env")
    named, _ = parser.parse_known_args(list(args))
    if named.resume is None:
        return default_config(named.algo or Config.algo, named.env or Config.env)
    config = replace(load_config(Path(named.resume)), run_dir=None, resume=Path(named.resume), force=False)
    for name in ("algo", "env"):
        if (value := getattr(named, name)) not in (None, getattr(config, name)):
            raise ValueError(
                f"the student of {named.resume} does not fit other settings: {name} was {getattr(config, name)}, is "
                f"{value}. Leave out --{name}, or start a run without --resume"
            )
    return config


def make_agent(config: Config, env: Env) -> Agent:
    """Return a new student for an env; with a tutor, one with the configured guidance."""
    agent: Any = AGENTS[config.algo][0]
    guidance = None
    if config.tutoring.tutor != "none":
        guidance = config.guiding.make(config.algo, agent.has_policy, env.device, env.num_envs, config.agent.gamma)
    return agent(config.agent, env, config.total_steps, config.seed, guidance)


def make_env(config: Config, device: str) -> Env:
    """Return the training env: this rank's share of its copies."""
    num_envs = config.num_envs // world_size()
    options = envs.parse_options(config.env_kwargs)
    return envs.make(config.env, num_envs, config.seed, device, rank() * num_envs, **options)


def evaluation_env(config: Config, num_envs: int, device: str, env_kwargs: Sequence[str] = ()) -> Env:
    """Return an env for evaluation, with random numbers of its own; `env_kwargs` replace options of training.

    A student trained by self-play is evaluated against the default opponent.
    """
    options = envs.parse_options(config.env_kwargs)
    if options.get("opponent") == "self":
        options = {}
    options |= envs.parse_options(env_kwargs)
    return envs.make(config.env, num_envs, config.seed + EVALUATION_SEED, device, **options)


def find_device(name: str) -> str:
    """Return the device called `name`; for auto, cuda if available.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device; use --device cpu or auto")
    if name not in ("cpu", "cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))):
        raise ValueError(unknown_name_message("device", name, ("auto", "cpu", "cuda")))
    if ":" in name:
        torch.cuda.set_device(name)  # streams and events are those of the current device
    return name
