"""Checkpoints of a run: written atomically, checked by digest, loaded without running code.

A checkpoint is a file, `step_000000300000.pt`, and its digest, `step_000000300000.pt.sha256`, in the format of
`sha256sum`. The digest is written last: a checkpoint without one is incomplete, and one that does not match it is
damaged. Each rank has a file of its own.
"""

import hashlib
import io
import logging
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

NUM_KEPT = 2  # the newest, and one more in case the newest is damaged


def checkpoint_name(global_step: int, rank: int) -> str:
    """Return the file name of a rank's checkpoint."""
    return f"step_{global_step:012d}{f'.rank{rank}' if rank else ''}.pt"


def digest_path(path: Path) -> Path:
    """Return the path of a checkpoint's digest."""
    return path.with_name(path.name + ".sha256")


def save_checkpoint(folder: Path, global_step: int, state: dict[str, object], rank: int = 0) -> Path:
    """Write `state` to `folder` atomically, remove all but the newest NUM_KEPT, and return its path.

    Checkpoints of later steps are removed, too: a run that resumed from an earlier one has found them damaged.

    Raises:
        OSError: it could not be written; earlier checkpoints are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, content = folder / checkpoint_name(global_step, rank), io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    atomic_write(path, content.getbuffer())
    atomic_write(digest_path(path), f"{digest}  {path.name}\n".encode())
    steps = complete_steps(folder, rank)
    kept = [step for step in steps if step <= global_step][:NUM_KEPT]
    for old in set(steps).difference(kept):
        digest_path(folder / checkpoint_name(old, rank)).unlink(missing_ok=True)
        (folder / checkpoint_name(old, rank)).unlink(missing_ok=True)
    return path


def atomic_write(path: Path, content: bytes | memoryview) -> None:
    """Write a temporary file, flush it to the disk, and rename it to `path`."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # the new name, too
    os.close(folder)


def complete_steps(folder: Path, rank: int = 0) -> list[int]:
    """Return the steps that have complete checkpoints, damaged or not, newest first."""
    pattern = re.compile(checkpoint_name(0, rank).replace("0" * 12, r"(\d{12,})").replace(".", r"\.") + r"\.sha256")
    found = (pattern.fullmatch(path.name) for path in folder.glob("*.sha256"))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def newest_step(folder: Path, ranks: int = 1) -> int:
    """Return the step of the newest checkpoint that is complete, intact and readable, for all ranks.

    Each one that is not is passed over with a warning.

    Raises:
        ValueError: there is none; the message says what is wrong with the newest.
    """
    problems: list[str] = []
    for step in complete_steps(folder):
        found = (problem_with(folder / checkpoint_name(step, rank), step) for rank in range(ranks))
        problem = next((one for one in found if one is not None), None)
        if problem is None:
            for one in problems:
                logging.getLogger(__name__).warning("%s: the checkpoint before it is used", one)
            return step
        problems.append(problem)
    raise ValueError(f"there is no checkpoint in {folder}" + "".join(f"; {one}" for one in problems[:1]))


def problem_with(path: Path, global_step: int) -> str | None:
    """Return what is wrong with the checkpoint of an env step, or None. Its tensors are not read into memory."""
    if not is_intact(path):
        return f"{path.name} is damaged or incomplete"
    try:
        state = read_state(path, "meta")
    except pickle.UnpicklingError:
        return f"{path.name} holds more than tensors and plain containers, so it is not loaded"
    except Exception as error:  # whatever the readers of archives and pickles raise
        return f"{path.name} cannot be read ({type(error).__name__})"
    step = state.get("global_step") if isinstance(state, dict) else None
    return None if type(step) is int and step == global_step else f"{path.name} is no checkpoint of its step"


def is_intact(path: Path) -> bool:
    """Return whether a checkpoint exists and matches its digest."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest == digest_path(path).read_text().split()[0]
    except (OSError, ValueError, IndexError):  # a ValueError: the digest is no text
        return False


def read_state(path: Path, device: str) -> Any:
    """Return what a file holds. Only tensors and plain containers are loaded."""
    return torch.load(path, map_location=device, weights_only=True)


def load_checkpoint(folder: Path, device: str, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """Return the newest checkpoint in `folder` that is intact and readable.

    Raises:
        ValueError: there is none.
    """
    state: dict[str, Any] = read_state(folder / checkpoint_name(newest_step(folder, ranks), rank), device)
    return state


@contextmanager
def check_fit(run_dir: Path) -> Iterator[None]:
    """Raise ValueError where, in the block, the content of a run's checkpoint does not fit what it is loaded into."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the checkpoint of {run_dir} is of another kind of student or env, or of another version: {error}"
        ) from error
