"""Which run is begun or resumed, what may differ when it is, and who may write in its folder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import envs
from agents.distributed import broadcast_object, rank, world_size
from agents.guidance import Guidance, find_method
from training.checkpoint import check_fit, load_checkpoint
from training.config import Config, load_config
from training.hints import resume_command
from training.state import COUNTERS
from tutors.display import without_password

MAX_THREADS = 1024  # of a run
RESUME_SAFE = {  # options that change nothing of what is learned
    *("device", "compile_mode", "log_every", "eval_every", "eval_episodes", "save_minutes", "progress", "track"),
    *("run_dir", "resume", "force"),
    *("tutoring.tutor_url", "tutoring.tutor_key_file", "tutoring.tutor_wait", "tutoring.tutor_deadline"),
    *("tutoring.tutor_optional",),
}
SHAPES = ("algo", "env", "num_envs", "agent.network", "agent.hidden", "agent.buffer_size")  # of a checkpoint's tensors

BEGUN = ("config.json", "metrics.csv", "metrics.csv.tmp", "events.out.tfevents.*")  # what a run begins anew


def resolve_run(config: Config) -> tuple[Config, Path, bool]:
    """Return a run's config, its run_dir, and whether that run is resumed; else a new one begins.

    A run whose guidance reviews a student's episodes, and has not done so yet, is a new one.

    Raises:
        ValueError: there is no run to resume, or it was started with other settings; or the run_dir is taken.
    """
    source, method, resuming = config.resume, config.guiding.guidance, False
    if find_method(method, config.algo).needs_episode_review:
        if source is None:
            raise ValueError(f"--guidance {method} reads a student's episodes: name its run with --resume")
        if world_size() > 1:
            raise ValueError(f"--guidance {method} reads episodes in one process: leave out torchrun")
    if source is not None:
        before = load_config(source)
        if found := misfits(before, config):
            raise ValueError(
                f"the student of {source} does not fit other settings: {'; '.join(found)}. "
                "Leave them out, or start a run without --resume"
            )
    if source is not None and config.run_dir in (None, source):
        resuming = not find_method(method, config.algo).needs_episode_review or before.guiding.guidance == method
        changed = differences(before, config) if resuming else []
        if resuming and is_remembered_otherwise(before, config):
            raise ValueError(
                f"run {source} was started with different settings: {'; '.join(changed)}. "
                "Its checkpoint holds what its guidance and its query strategy remember: "
                "pass another --run-dir to start a new run from its student"
            )
        if changed and not config.force:
            raise ValueError(
                f"run {source} was started with different settings: {'; '.join(changed)}. Pass --force to resume anyway"
            )
        if resuming:
            mode = before.compile_mode if config.compile_mode == "auto" else config.compile_mode
            mode = "eager" if mode == "auto" else mode  # as auto was in versions 1.0 and 1.1, whose config.json has it
            config = replace(config, run_dir=source, resume=before.resume, compile_mode=mode)
    run_dir: Path = broadcast_object(config.run_dir or new_run_dir(config))
    if broadcast_object((run_dir / "config.json").exists() and not resuming):
        raise ValueError(
            f"{run_dir} holds a run already: choose another --run-dir, or continue it: {resume_command(run_dir)}"
        )
    return replace(config, run_dir=run_dir), run_dir, resuming


def load_source(config: Config, resuming: bool, device: str) -> dict[str, Any] | None:
    """Return the checkpoint that a run begins from, or None.

    Raises:
        ValueError: there is none, or all steps of the run are done.
    """
    source = config.run_dir if resuming else config.resume
    if source is None:
        return None
    state = load_checkpoint(source / "checkpoints", device, rank(), world_size())
    with check_fit(source):
        if not all(isinstance(state[name], int | float) for name in (*COUNTERS, "seconds")):
            raise TypeError(f"{', '.join(COUNTERS)} and seconds must be numbers")
        if type(state.get("threads", 1)) is not int or not 1 <= state.get("threads", 1) <= MAX_THREADS:
            raise ValueError(f"threads is {state['threads']}; it must be between 1 and {MAX_THREADS}")
    is_done = state["global_step"] >= config.total_steps
    if is_done and not (resuming and not (source / "summary.json").exists()):  # else its last evaluation is to do
        raise ValueError(
            f"{source} has done {state['global_step']:,} of {config.total_steps:,} steps; "
            + (f"to train on: {resume_command(source)}" if resuming else "pass a larger --total-steps to train on")
        )
    return state


def differences(before: Config, now: Config) -> list[str]:
    """Return how a config differs from the one that a run began with, in what may change what is learned.

    A run's config.json holds no passwords, so none is compared or shown.
    """
    old, new = (
        {name: without_password(value) if isinstance(value, str) else value for name, value in settings(asdict(one))}
        for one in (before, now)
    )
    return [f"{name} was {old[name]}, is {value}" for name, value in new.items() if name in old and old[name] != value]


def misfits(before: Config, now: Config) -> list[str]:
    """Return how a config differs from another in what shapes a student's tensors, so that they fit no other."""
    found = [one for one in differences(before, now) if one.partition(" was ")[0] in SHAPES]
    if not found and not now.env.startswith("gym:") and before.env_kwargs != now.env_kwargs:
        old, new = (envs.make_game(one.env, **envs.parse_options(one.env_kwargs)).spec for one in (before, now))
        if (old.obs_shape, old.num_actions) != (new.obs_shape, new.num_actions):
            found.append(f"env_kwargs was {before.env_kwargs}, is {now.env_kwargs}")
    old_method, new_method = method_of(before), method_of(now)
    if old_method.uses_advice_as_input != new_method.uses_advice_as_input:
        found.append(f"guidance was {before.guiding.guidance}, is {now.guiding.guidance}, and hints are inputs")
    return found


def is_remembered_otherwise(before: Config, now: Config) -> bool:
    """Return whether the guidance or the query strategy of two configs keep different tensors in a checkpoint."""
    strategies = {one.tutoring.query_strategy == "visited" for one in (before, now)}
    return method_of(before).state_keys != method_of(now).state_keys or len(strategies) > 1


def method_of(config: Config) -> type[Guidance]:
    """Return the guidance of a run: none without a tutor."""
    return Guidance if config.tutoring.tutor == "none" else find_method(config.guiding.guidance, config.algo)


def settings(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each option that may change what is learned, by its name; in a group after the group's name and a dot."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from settings(value, f"{prefix}{name}.")
        elif prefix + name not in RESUME_SAFE:
            yield prefix + name, value


@contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Keep every other process out of a run's folder.

    Raises:
        ValueError: another one is in it, or it cannot be written.
    """
    lock = FileLock(run_dir / ".lock", timeout=0)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process trains in {run_dir}") from error
    except OSError as error:
        raise ValueError(f"the run's folder {run_dir} cannot be written: {error.strerror}") from error
    with lock:
        yield


@contextmanager
def removed_unless_begun(run_dir: Path) -> Iterator[None]:
    """Where a run ends before it has begun, which is when its config.json is written, leave its folder as it was.

    A server's log and what a review of episodes found stay.
    """
    known = set(run_dir.glob("*"))
    try:
        yield
    except BaseException:
        if not (run_dir / "config.json").exists():
            for path in {
                path for pattern in (*BEGUN, ".lock", "advice.sqlite*") for path in run_dir.glob(pattern)
            } - known:
                path.unlink()
            with suppress(OSError):  # it is not empty, or was never made
                run_dir.rmdir()
        raise


def new_run_dir(config: Config) -> Path:
    """Return the name of a folder under runs/ that no other run has."""
    when = time.strftime("%Y%m%d-%H%M%S")
    env = config.env.replace(":", "-").replace("/", "-")
    tutor = config.tutoring.tutor.partition(":")[0]  # of a recorded tutor the rest is a path or a URL
    name = f"{env}_{config.algo}_{tutor}_seed{config.seed}_{when}"
    run_dir, number = Path("runs") / name, 1
    while run_dir.exists():
        number += 1
        run_dir = Path("runs") / f"{name}_{number}"
    return run_dir
