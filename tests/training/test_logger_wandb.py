"""Weights & Biases, offline: what its files hold, read by hand as a LevelDB log, against metrics.csv."""

import csv
import json
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.programs import SMALL
from training.logger import Logger, wandb_id

BLOCK, HEAD = 32_768, 7  # bytes


def test_without_wandb_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"--track requires wandb: .*python -m pip install -e '\.\[track\]'"):
        Logger(tmp_path, track={})
    Logger(tmp_path).close()


def tracked(folder: Path, *flags: str, mode: str = "offline") -> subprocess.CompletedProcess[str]:
    home = {"HOME": str(folder.parent), "WANDB_MODE": mode, "OMP_NUM_THREADS": "1"}
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "train.py", *flags], cwd=ROOT, env=surroundings | home, timeout=200,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_a_run_that_is_tracked_leaves_its_scalars_and_goes_on_as_the_same_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = tracked(folder, *SMALL, "--track", "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert scalars(folder) == logged(folder) != {}
    done = tracked(folder, "--resume", str(folder), "--total-steps", "6000", "--force")
    assert done.returncode == 0, done.stderr
    assert scalars(folder) == logged(folder)
    names = {path.stem for path in folder.glob("wandb/offline-run-*/*.wandb")}
    assert names == {f"run-{(folder / 'wandb.id').read_text()}"}, "one run, in two parts"
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2


@pytest.mark.process
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_who_is_not_known_there_is_told_so(tmp_path: Path) -> None:
    done = tracked(tmp_path / "run", *SMALL, "--track", "--run-dir", str(tmp_path / "run"), mode="online")
    assert done.returncode == 2
    assert "error: --track: Weights & Biases says: " in done.stderr
    assert "Traceback" not in done.stderr


def logged(folder: Path) -> dict[tuple[int, str], float]:
    with (folder / "metrics.csv").open() as file:
        return {(int(row["global_step"]), row["tag"]): float(row["value"]) for row in csv.DictReader(file)}


def scalars(folder: Path) -> dict[tuple[int, str], float]:
    """What all parts of a run hold."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        for data in records(path.read_bytes()):
            items = Record.FromString(data).history.item
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            found |= {(row["global_step"], tag): value for tag, value in row.items() if "/" in tag}
    return found


def records(data: bytes) -> list[bytes]:
    """The records of a log: parts with a checksum, a length and a kind (whole, first, middle, last), in blocks."""
    found, part, at = [], b"", HEAD  # the file's own head comes first
    while at + HEAD <= len(data):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEAD])
        part += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4):
            found.append(part)
            part = b""
    return found


@pytest.mark.parametrize("damaged", [b"", b"\xff", b"no id", b"../../x", b"0" * 10_000])
def test_a_damaged_id_is_replaced(damaged: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "wandb.id"
    path.write_bytes(damaged)
    found = wandb_id(path)
    assert len(found) == 8
    assert wandb_id(path) == found
    assert ("is damaged" in caplog.text) == bool(damaged)
