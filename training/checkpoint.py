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
from pathlib import Path

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

    Raises:
        OSError: it could not be written; earlier checkpoints are intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, content = folder / checkpoint_name(global_step, rank), io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    atomic_write(path, content.getbuffer())
    atomic_write(digest_path(path), f"{digest}  {path.name}\n".encode())
    for old in complete_steps(folder, rank)[NUM_KEPT:]:
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
    """Return the step of the newest checkpoint that is complete and intact, for all ranks.

    Raises:
        ValueError: there is none.
    """
    for step in complete_steps(folder):
        damaged = [
            name for name in (checkpoint_name(step, rank) for rank in range(ranks)) if not is_intact(folder / name)
        ]
        if not damaged:
            return step
        logging.getLogger(__name__).warning("%s is damaged or incomplete: the checkpoint before it is used", damaged[0])
    raise ValueError(f"there is no checkpoint in {folder}")


def is_intact(path: Path) -> bool:
    """Return whether a checkpoint exists and matches its digest."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest_path(path).read_text().split()[0]
    except (OSError, IndexError):
        return False


def load_checkpoint(folder: Path, device: str, rank: int = 0, ranks: int = 1) -> dict:
    """Return the newest intact checkpoint in `folder`. Only tensors and plain containers are loaded.

    Raises:
        ValueError: there is none, or it holds anything else.
    """
    path = folder / checkpoint_name(newest_step(folder, ranks), rank)
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain containers, so it is not loaded") from error
