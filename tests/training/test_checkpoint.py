"""Saving and loading: the newest whole file, and nothing but tensors and plain containers."""

import hashlib
import math
import multiprocessing
import os
import random
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from training.checkpoint import (
    check_fit,
    checkpoint_name,
    complete_steps,
    digest_path,
    load_checkpoint,
    newest_step,
    save_checkpoint,
)


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


def damage_checkpoint(path: Path, damage: str) -> None:
    """Damage a checkpoint, or its digest, in one of the ways of DAMAGES."""
    digest, content = digest_path(path), bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage in ("gone", "is a folder"):
        path.unlink()
        if damage == "is a folder":
            path.mkdir()
    elif damage == "digest is a folder":
        digest.unlink()
        digest.mkdir()
    elif damage == "digest has a flipped bit":
        digest.write_bytes(b"\xff" + digest.read_bytes()[1:])
    else:
        digest.write_bytes(
            {"digest is empty": b"", "digest is null": bytes(74), "digest is huge": b"a" * 10**6}[damage]
        )


DAMAGES = [
    *("cut", "flipped", "gone", "is a folder", "digest is a folder", "digest has a flipped bit"),
    *("digest is empty", "digest is null", "digest is huge"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_skipped_for_the_one_before(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [save_checkpoint(tmp_path, step, {"global_step": step, "w": torch.ones(50)}) for step in (1, 2)]
    damage_checkpoint(paths[1], damage)
    assert load_checkpoint(tmp_path, "cpu")["global_step"] == 1
    assert "is damaged" in caplog.text


def test_checkpoint_without_a_digest_was_never_complete(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [save_checkpoint(tmp_path, step, {"global_step": step}) for step in (1, 2)]
    digest_path(paths[1]).unlink()
    assert load_checkpoint(tmp_path, "cpu")["global_step"] == 1
    assert not caplog.text


def test_every_flipped_bit_of_a_digest_leads_to_the_checkpoint_before(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, step, {"global_step": step}) for step in (1, 2)]
    digest = digest_path(paths[1])
    content = digest.read_bytes()
    for bit in range(8 * 64):  # what follows is the file's name
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        digest.write_bytes(flipped)
        assert newest_step(tmp_path) == 1


@pytest.mark.parametrize(
    "content",
    [
        *([], {}, None, 7, torch.zeros(2), {"global_step": "2"}, {"global_step": math.nan}, {"global_step": None}),
        *({"global_step": 1}, {"global_step": torch.tensor(2)}, {"global_step": True}),
    ],
    ids=str,
)
def test_readable_file_that_is_no_checkpoint_is_skipped(
    content: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, 1, {"global_step": 1})
    save_checkpoint(tmp_path, 2, content)
    assert load_checkpoint(tmp_path, "cpu")["global_step"] == 1
    assert "is no checkpoint of its step" in caplog.text


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"\x80\x02K\x05.", b"\x80\x05N.", bytes(4096)])
def test_file_that_matches_its_digest_and_cannot_be_read_is_skipped(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [save_checkpoint(tmp_path, step, {"global_step": step}) for step in (1, 2)]
    paths[1].write_bytes(content)
    digest_path(paths[1]).write_text(f"{hashlib.sha256(content).hexdigest()}  {paths[1].name}\n")
    assert load_checkpoint(tmp_path, "cpu")["global_step"] == 1
    assert "the checkpoint before it is used" in caplog.text


def test_without_a_sound_checkpoint_the_newest_ones_problem_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        damage_checkpoint(save_checkpoint(tmp_path, step, {"global_step": step}), "cut")
    with pytest.raises(ValueError, match=r"there is no checkpoint in .*; step_000000000002\.pt is damaged"):
        load_checkpoint(tmp_path, "cpu")


def test_save_after_a_damaged_checkpoint_removes_it_and_keeps_two_sound_ones(tmp_path: Path) -> None:
    for step in (1, 3):
        save_checkpoint(tmp_path, step, {"global_step": step})
    damage_checkpoint(tmp_path / checkpoint_name(3, 0), "cut")
    save_checkpoint(tmp_path, 2, {"global_step": 2})  # of the run that resumed from step 1
    assert complete_steps(tmp_path) == [2, 1]


@pytest.mark.parametrize(
    "error", [KeyError("agent"), TypeError("no tensor"), AttributeError("shape"), RuntimeError("size"), IndexError(3)]
)
def test_content_that_does_not_fit_is_an_error_of_the_user(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is of another kind of student or env"), check_fit(tmp_path):
        raise error


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
