"""Commands that programs tell people to type: they name this Python and all flags, so that they work when pasted."""

import os
import shlex
import sys
from pathlib import Path

from agents.distributed import world_size
from training.config import ROOT, Config, load_config
from training.config_json import to_plain
from tutors.config import TutorConfig
from tutors.display import HIDDEN, without_password

UNSET = TutorConfig()


def python() -> str:
    """Return this interpreter, as short as the working directory allows."""
    path = Path(sys.executable)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def called() -> str:
    """Return the command line of the program that runs, without its arguments."""
    spec = sys.modules["__main__"].__spec__
    words = [sys.argv[0]] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return f"{python()} {shlex.join(words)}"


def command(program: str, *arguments: str) -> str:
    """Return the command line of a program at the root, such as train.py, or of a module."""
    path = program if Path.cwd() == ROOT else str(ROOT / program)
    words = [path] if program.endswith(".py") else ["-m", program]
    return f"{python()} {shlex.join([*words, *arguments])}"


def install_command(*packages: str) -> str:
    """Return the command line that installs packages, or `.[extra]` of this repository, for this interpreter."""
    return f"{python()} -m pip install {shlex.join(packages)}"


def train_command(*arguments: str) -> str:
    """Return the command line of train.py, in as many processes as there are."""
    if world_size() == 1:
        return command("train.py", *arguments)
    if os.environ.get("LOCAL_WORLD_SIZE") != str(world_size()):
        return f"torchrun on each machine as before, with {shlex.join(arguments)}"
    launch = (
        "--standalone",
        f"--nproc-per-node={world_size()}",
        "train.py" if Path.cwd() == ROOT else ROOT / "train.py",
    )
    return command("torch.distributed.run", *map(str, launch), *arguments)


def tutor_flags(config: TutorConfig, default: TutorConfig = UNSET) -> list[str]:
    """Return the flags of the settings in which a tutor differs from `default`; passwords in URLs are hidden."""
    shown, usual = (to_plain(one, without_password) for one in (config, default))
    flags = []
    for name, value in shown.items():
        if value != usual[name]:
            values = value if isinstance(value, list) else [] if isinstance(value, bool) else [value]
            flags += [f"--{name.replace('_', '-')}", *map(str, values)]
    return flags


def resume_command(run_dir: Path) -> str:
    """Return the command line that continues a run; of one that is finished, the one that trains it twice as long."""
    config = load_config(run_dir)
    longer = ["--total-steps", str(2 * config.total_steps), "--force"] if (run_dir / "summary.json").exists() else []
    return train_command("--resume", str(run_dir), *longer) + missing_passwords(config)


def missing_passwords(config: Config) -> str:
    """Return what a command lacks where URLs had passwords, which a run does not keep; empty if none had."""
    shown = to_plain(config, without_password)
    hidden = [f"--{name.replace('_', '-')}" for name, value in shown["tutoring"].items() if HIDDEN in str(value)]
    return f", with {' and '.join(hidden)} given again: passwords are not kept" if hidden else ""
