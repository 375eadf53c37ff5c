"""Saving and loading: the newest whole file, and nothing but tensors and plain containers."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from agents.checkpoint import load_checkpoint, save_checkpoint


def test_the_newest_checkpoint_is_loaded_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 999, {"weights": torch.zeros(3), "global_step": 999})
    save_checkpoint(tmp_path, 1_000_000, {"weights": torch.arange(3), "global_step": 1_000_000})
    loaded = load_checkpoint(tmp_path, "cpu")
    assert loaded["global_step"] == 1_000_000
    assert torch.equal(loaded["weights"], torch.arange(3))


def test_an_unfinished_file_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"global_step": 1})

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"global_step": 2})
    assert load_checkpoint(tmp_path, "cpu")["global_step"] == 1


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_checkpoint(tmp_path, "cpu")


class Malice:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_checkpoint_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    torch.save({"agent": Malice(tmp_path / "touched")}, tmp_path / "step_000000000001.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path, "cpu")
    assert not (tmp_path / "touched").exists()
