"""How a run stops and goes on: what of it is saved and when, signals, and what may differ when it goes on."""

import json
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from agents import Agent
from agents.distributed import broadcast_object, rank, world_size
from agents.guidance import METHODS
from envs.base import Env, Step
from envs.episode_stats import EpisodeStats
from envs.opponents import SelfPlay
from training.checkpoint import save_checkpoint
from training.config import Config, config_of
from training.timing import Stopwatch
from tutors.advisor import Desk
from tutors.query import Asking, Rations
from tutors.store import without_password

NUMBERS = ("global_step", "updates", "guided_from")  # of a run that goes on
PARTS = ("agent", "env", "score", "guidance", "asking")

HARMLESS = {  # flags that change nothing of what is learned
    *("device", "compile_mode", "log_every", "eval_every", "eval_episodes", "save_minutes", "progress", "track"),
    *("run_dir", "resume", "force"),
    *("tutoring.tutor_url", "tutoring.tutor_key_file", "tutoring.tutor_wait", "tutoring.tutor_deadline"),
    *("tutoring.tutor_optional",),
}


def settled(config: Config) -> tuple[Config, bool]:
    """Return a run's config with its folder, and whether a run goes on there; else a new one begins.

    A run that reads a student's games, and has not done so yet, is a new one.

    Raises:
        ValueError: there is no run to go on with, or it began otherwise; or there is one where a new one is to begin.
    """
    source, method, goes_on = config.resume, config.guiding.guidance, False
    if METHODS[method].needs_episode_review:
        if source is None:
            raise ValueError(f"--guidance {method} reads a student's games: --resume says which run's")
        if world_size() > 1:
            raise ValueError(f"--guidance {method} reads games in one process: leave out torchrun")
        # what was read is looked up everywhere, and nobody is asked about positions
        quiet = {"asking": "early", "ask_budget": 0, "reuse": math.inf, "nowait": False, "advice_store": None}
        config = replace(config, tutoring=replace(config.tutoring, **quiet))
    if source is not None and config.run_dir in (None, source):
        before = config_of(source)
        goes_on = not METHODS[method].needs_episode_review or before.guiding.guidance == method
        changed = differences(before, config) if goes_on else []
        if changed and not config.force:
            raise ValueError(f"{source} began otherwise: {'; '.join(changed)}. --force goes on all the same")
        if goes_on:
            config = replace(config, run_dir=source, resume=before.resume)
    config = replace(config, run_dir=broadcast_object(config.run_dir or new_folder(config)))
    if broadcast_object((config.run_dir / "config.json").exists() and not goes_on):
        raise ValueError(f"{config.run_dir} holds a run already; choose another --run-dir or --resume it")
    return config, goes_on


def differences(before: Config, now: Config) -> list[str]:
    """Return how a config differs from the one that a run began with, in what may change what is learned.

    A run's config.json forgets passwords, so none is compared or told.
    """
    old, new = (
        {name: without_password(value) if isinstance(value, str) else value for name, value in settings(asdict(one))}
        for one in (before, now)
    )
    return [f"{name} was {old[name]}, is {value}" for name, value in new.items() if name in old and old[name] != value]


def settings(told: dict[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting by its name, those of parts with the part's name before a dot."""
    for name, value in told.items():
        if isinstance(value, dict):
            yield from settings(value, f"{under}{name}.")
        elif under + name not in HARMLESS:
            yield under + name, value


class Stop:
    """Takes note of the first SIGINT or SIGTERM; the second one ends the program at once.

    Within a `with` statement of the main thread; elsewhere signals are left alone.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal that came
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Take note, or end."""
        if self.number:
            sys.exit(128 + number)
        self.number = number
        print("stopping when this update is done; once more to stop at once", file=sys.stderr)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep every other process out of a run's folder.

    Raises:
        ValueError: another one is in it, or it cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process trains in {folder}") from error
    except OSError as error:
        raise ValueError(f"the run's folder {folder} cannot be written: {error.strerror}") from error
    with lock:
        yield


def new_folder(config: Config) -> Path:
    """Return a folder's name that no other run has."""
    when = time.strftime("%Y%m%d-%H%M%S")
    game = config.env.replace(":", "-").replace("/", "-")
    tutor = config.tutoring.tutor.partition(":")[0]  # of a recorded tutor the rest is a path or a URL
    name = f"{game}_{config.algo}_{tutor}_seed{config.seed}_{when}"
    folder, again = Path("runs") / name, 1
    while folder.exists():
        again += 1
        folder = Path("runs") / f"{name}_{again}"
    return folder


class Resumable:
    """The part of a training that is saved, and goes on."""

    config: Config
    env: Env
    agent: Agent
    desk: Desk | None
    score: EpisodeStats
    asking: Asking
    rations: Rations
    acted: Tensor
    agreed: Tensor
    actions: Tensor
    watch: Stopwatch
    global_step: int
    updates: int
    logged_step: int
    began: float  # seconds on the clock of time.monotonic
    saved_at: float
    saving = 0.0  # seconds that the last checkpoint took
    guided_from = 0  # env step from which on there was guidance
    rival: SelfPlay | None = None  # an opponent that is the student of some time ago
    mirror: Agent  # that student, where there is one
    opponent: dict[str, Tensor] | None = None  # its weights; None before the first time
    step: Step | None = None  # where a run that goes on stands

    def is_time_to_save(self) -> bool:
        """Return whether the last checkpoint is old enough: saving takes at most a fiftieth of the time."""
        return time.monotonic() - self.saved_at > max(60 * self.config.save_minutes, 50 * self.saving)

    def save(self, stats: dict[str, Tensor], last: bool = False) -> None:
        """Write a checkpoint. What cannot be written is a warning, the last time an error."""
        self.check(stats)
        began = time.monotonic()
        try:
            place = self.config.run_dir / "checkpoints"
            self.watch("save", save_checkpoint, place, self.global_step, self.state_dict(), rank())
        except OSError as error:
            told = f"no checkpoint could be written in {self.config.run_dir}: {error.strerror}; the last one is whole"
            if last:
                raise ValueError(told) from error
            logging.getLogger(__name__).warning(told)
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - began

    def check(self, stats: dict[str, Tensor]) -> dict[str, float]:
        """Return the numbers of the last update, in one read-back.

        Raises:
            ValueError: one of them is no number; diverged.json says which.
        """
        numbers = dict(zip(stats, torch.stack(list(stats.values())).tolist(), strict=True)) if stats else {}
        if not all(math.isfinite(value) for value in numbers.values()):
            told = {"global_step": self.global_step, **{name: str(value) for name, value in numbers.items()}}
            (self.config.run_dir / "diverged.json").write_text(json.dumps(told, indent=2) + "\n")
            raise ValueError(
                f"training diverged before step {self.global_step:,}: see {self.config.run_dir / 'diverged.json'}. "
                "The checkpoints are of before; a smaller --learning-rate or --max-grad-norm may help"
            )
        return numbers

    def state_dict(self) -> dict[str, object]:
        """Return all that a run must have to go on as if it had never stopped."""
        return {
            **{name: getattr(self, name) for name in NUMBERS},
            **{name: getattr(self, name).state_dict() for name in PARTS},
            "desk": None if self.desk is None else self.desk.state_dict(),
            "opponent": self.opponent,
            "rations": self.rations.state_dict(),
            "acted": self.acted,
            "agreed": self.agreed,
            "actions": self.actions,
            "seconds": time.monotonic() - self.began,
        }

    def load_state_dict(self, state: dict[str, Any], goes_on: bool) -> None:
        """Stand where another run stood; if it is not the same one, with a tutor and counts of its own."""
        for name in NUMBERS:
            setattr(self, name, state[name])
        if self.rival is not None and state["opponent"] is not None:
            self.oppose(state["opponent"])
        for name in PARTS if goes_on else ("agent", "env"):
            getattr(self, name).load_state_dict(state[name])
        self.acted.copy_(state["acted"])
        if goes_on:
            self.actions.copy_(state["actions"])
            if self.desk is not None and state["desk"] is not None:
                self.desk.load_state_dict(state["desk"])
                self.rations.load_state_dict(state["rations"])
                self.agreed.copy_(state["agreed"])
        else:
            self.guided_from = self.global_step
        self.step = self.env.current()
        self.began -= state["seconds"]
        self.logged_step = self.global_step

    def refresh_opponent(self) -> None:
        """Make an opponent that is the student itself what the student is now, when it is time."""
        if self.rival is not None and self.updates % self.rival.refresh == 0:
            self.oppose(self.agent.network.state_dict())

    def oppose(self, weights: dict[str, Tensor]) -> None:
        """Have the student with these weights for an opponent, in the tensors that a recorded step knows."""
        assert self.rival is not None
        assert isinstance(self.rival.errs, Tensor)
        self.mirror.network.load_state_dict(weights)
        self.rival.errs.fill_(SelfPlay.ERRS)
        self.opponent = self.mirror.network.state_dict()
