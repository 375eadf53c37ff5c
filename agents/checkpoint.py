"""Saving and loading what a student is."""

import os
from pathlib import Path

import torch

NAME = "step_{:012d}.pt"


def save_checkpoint(folder: Path, global_step: int, state: dict[str, object]) -> Path:
    """Write `state` under `folder`, whole or not at all, and return its path.

    The file is written beside its place, forced to the disk and then renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME.format(global_step)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return path


def load_checkpoint(folder: Path, device: str) -> dict:
    """Return the newest state under `folder`. Only tensors and plain containers are ever loaded.

    Raises:
        ValueError: there is none.
    """
    paths = sorted(folder.glob("step_*.pt"))
    if not paths:
        raise ValueError(f"there is no checkpoint in {folder}")
    return torch.load(paths[-1], map_location=device, weights_only=True)
