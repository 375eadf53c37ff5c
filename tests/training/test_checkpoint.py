"""Saving and loading: the newest whole file, and nothing but tensors and plain containers."""

import multiprocessing
import os
import random
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from training.checkpoint import checkpoint_name, digest_path, load_checkpoint, newest_step, save_checkpoint


def test_newest_checkpoint_is_loaded_unchanged(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 999, {"weights": torch.zeros(3), "global_step": 999})
    save_checkpoint(tmp_path, 1_000_000, {"weights": torch.arange(3), "global_step": 1_000_000})
    loaded = load_checkpoint(tmp_path, "cpu")
    assert loaded["global_step"] == 1_000_000
    assert torch.equal(loaded["weights"], torch.arange(3))


def test_unfinished_file_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, {"global_step": 1})

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"global_step": 2})
    assert load_checkpoint(tmp_path, "cpu")["global_step"] == 1


def test_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for damage in ("cut", "flipped", "unmarked", "gone"):
        folder = tmp_path / damage
        paths = [save_checkpoint(folder, step, {"global_step": step, "w": torch.ones(50)}) for step in (1, 2)]
        content = bytearray(paths[1].read_bytes())
        if damage == "cut":
            paths[1].write_bytes(content[:-1])
        elif damage == "flipped":
            content[len(content) // 2] ^= 1
            paths[1].write_bytes(content)
        elif damage == "unmarked":
            digest_path(paths[1]).unlink()
        else:
            paths[1].unlink()
        caplog.clear()
        assert load_checkpoint(folder, "cpu")["global_step"] == 1
        assert ("is damaged" in caplog.text) == (damage != "unmarked"), "without a mark it was never whole"


def test_newest_two_checkpoints_are_kept_with_checksums(tmp_path: Path) -> None:
    for step in range(5):
        save_checkpoint(tmp_path, step, {"global_step": step})
    save_checkpoint(tmp_path, 3, {"global_step": 3}, rank=1)
    names = {path.name for path in tmp_path.iterdir()}
    whole = {checkpoint_name(3, 0), checkpoint_name(4, 0), checkpoint_name(3, 1)}
    assert names == whole | {f"{name}.sha256" for name in whole}
    done = subprocess.run(["sha256sum", "-c", *(f"{name}.sha256" for name in whole)], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert newest_step(tmp_path) == 4
    assert newest_step(tmp_path, ranks=2) == 3, "the newest of which both ranks have theirs"


@pytest.mark.process
def test_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Twenty times at a random moment: the newest is whole, and none that was reported as written is lost."""
    chance, begin = random.Random(1), 0
    births = multiprocessing.get_context("forkserver")
    births.set_forkserver_preload(["training.checkpoint"])
    for _ in range(20):
        ours, theirs = births.Pipe(duplex=False)
        child = births.Process(target=save_for_ever, args=(tmp_path, begin, theirs))
        child.start()
        theirs.close()
        reported = ours.recv()
        time.sleep(chance.uniform(0, 0.02))
        child.kill()
        child.join()
        while ours.poll():
            try:
                reported = ours.recv()
            except EOFError:
                break
        state = load_checkpoint(tmp_path, "cpu")
        assert state["global_step"] in (reported, reported + 1)
        assert state["w"].eq(state["global_step"]).all()
        begin = reported + 2


def save_for_ever(folder: Path, begin: int, pipe: Connection) -> None:
    """Save checkpoint after checkpoint, and tell which are done."""
    for step in range(begin, 10**9):
        save_checkpoint(folder, step, {"global_step": step, "w": torch.full((20_000,), float(step))})
        pipe.send(step)


def test_load_without_checkpoint_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_checkpoint(tmp_path, "cpu")


class Malice:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_malicious_checkpoint_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"agent": Malice(tmp_path / "touched")})
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_checkpoint(tmp_path, "cpu")
    assert not (tmp_path / "touched").exists()
