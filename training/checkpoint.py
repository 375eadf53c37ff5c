"""Saving and loading all that a run must have again.

A checkpoint is a file, `step_000000300000.pt`, and beside it `….pt.sha256`, which is written last: a file without it is
not whole, and one that does not agree with it is damaged. Both are as `sha256sum` writes and checks them. Of several
processes that train one student each has a file of its own.
"""

import hashlib
import io
import logging
import os
import pickle
import re
from pathlib import Path

import torch

KEPT = 2  # the newest, and one more in case that it turns out to be damaged


def name_of(global_step: int, rank: int) -> str:
    """Return a checkpoint's name."""
    return f"step_{global_step:012d}{f'.rank{rank}' if rank else ''}.pt"


def mark_of(path: Path) -> Path:
    """Return the file that says that a checkpoint is whole."""
    return path.with_name(path.name + ".sha256")


def save_checkpoint(folder: Path, global_step: int, state: dict[str, object], rank: int = 0) -> Path:
    """Write `state` under `folder`, whole or not at all, remove all but the newest KEPT, and return its path.

    Raises:
        OSError: it could not be written; what was there before still is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, content = folder / name_of(global_step, rank), io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    write(path, content.getbuffer())
    write(mark_of(path), f"{digest}  {path.name}\n".encode())
    for old in steps_in(folder, rank)[KEPT:]:
        mark_of(folder / name_of(old, rank)).unlink(missing_ok=True)
        (folder / name_of(old, rank)).unlink(missing_ok=True)
    return path


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file beside its place, force it to the disk, and give it its name."""
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
    os.fsync(folder)  # the name, too
    os.close(folder)


def steps_in(folder: Path, rank: int = 0) -> list[int]:
    """Return the steps of which there are whole checkpoints, damaged or not, newest first."""
    pattern = re.compile(name_of(0, rank).replace("0" * 12, r"(\d{12,})").replace(".", r"\.") + r"\.sha256")
    found = (pattern.fullmatch(path.name) for path in folder.glob("*.sha256"))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def newest_step(folder: Path, ranks: int = 1) -> int:
    """Return the step of the newest checkpoint that is whole and undamaged, for all ranks.

    Raises:
        ValueError: there is none.
    """
    for step in steps_in(folder):
        damaged = [name for name in (name_of(step, rank) for rank in range(ranks)) if not is_sound(folder / name)]
        if not damaged:
            return step
        logging.getLogger(__name__).warning(
            "%s is damaged or not all there: the checkpoint before it is taken", damaged[0]
        )
    raise ValueError(f"there is no checkpoint in {folder}")


def is_sound(path: Path) -> bool:
    """Return whether a checkpoint is there and what was written."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == mark_of(path).read_text().split()[0]
    except (OSError, IndexError):
        return False


def load_checkpoint(folder: Path, device: str, rank: int = 0, ranks: int = 1) -> dict:
    """Return the newest sound state under `folder`. Only tensors and plain containers are ever loaded.

    Raises:
        ValueError: there is none, or it holds anything else.
    """
    path = folder / name_of(newest_step(folder, ranks), rank)
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain containers; it is not loaded") from error
