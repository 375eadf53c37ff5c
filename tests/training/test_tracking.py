"""Weights & Biases and Trackio, offline: what their files hold, read by hand, against metrics.csv."""

import csv
import json
import os
import sqlite3
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.programs import SMALL
from training.tracking import Tracker, tracked_id

BLOCK, HEAD = 32_768, 7  # bytes


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_without_the_library_it_is_said_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"--track {name} requires {name}: .*python -m pip install -e '\.\[track\]'"):
        Tracker(name, tmp_path, {})


def tracked(folder: Path, *flags: str, mode: str = "offline") -> subprocess.CompletedProcess[str]:
    home = {"HOME": str(folder.parent), "WANDB_MODE": mode, "TRACKIO_DIR": str(folder.parent / "trackio")}
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "TRACKIO"))}
    return subprocess.run(
        [sys.executable, "train.py", *flags], cwd=ROOT, env=surroundings | home, timeout=200,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_that_is_tracked_leaves_all_it_logs_and_goes_on_as_the_same_run(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    folder = tmp_path / "run"
    read = {"wandb": wandb_rows, "trackio": trackio_rows}[name]
    done = tracked(folder, *SMALL, "--track", name, "--run-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert scalars(read(folder)) == logged(folder) != {}
    done = tracked(folder, "--resume", str(folder), "--total-steps", "6000", "--force")
    assert done.returncode == 0, done.stderr
    rows = read(folder)
    assert scalars(rows) == logged(folder)
    tags = [tag for _, row in rows for tag in row]
    assert tags.count("game") >= 2, "a picture of an episode at evaluations"
    ends = {step: row for step, row in rows if "summary" in row}
    assert len(ends) == 2, "of both parts"
    assert all("gif" in row["episode"] for row in ends.values())
    assert [summary_in(name, folder, row)["eval.episodes"] for row in ends.values()] == ["64", "64"]


@pytest.mark.process
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_second_run_of_the_same_name_is_another_one(name: str, tmp_path: Path) -> None:
    ids = [tracked_id(tmp_path / part / "run" / f"{name}.id", name) for part in ("a", "b")]
    assert ids[0] != ids[1]


@pytest.mark.process
@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_who_is_not_known_there_is_told_so(tmp_path: Path) -> None:
    done = tracked(tmp_path / "run", *SMALL, "--track", "wandb", "--run-dir", str(tmp_path / "run"), mode="online")
    assert done.returncode == 2
    assert "error: --track wandb: Weights & Biases says: " in done.stderr
    assert "Traceback" not in done.stderr


def logged(folder: Path) -> dict[tuple[int, str], float]:
    with (folder / "metrics.csv").open() as file:
        return {(int(row["global_step"]), row["tag"]): float(row["value"]) for row in csv.DictReader(file)}


Rows = list[tuple[int, dict[str, str]]]  # what was logged at an env step, as JSON by tag


def scalars(rows: Rows) -> dict[tuple[int, str], float]:
    return {(step, tag): json.loads(value) for step, row in rows for tag, value in row.items() if "/" in tag}


def trackio_rows(folder: Path) -> Rows:
    """What the runs of a project hold, which are one run, whose name has the id of the run directory."""
    with sqlite3.connect(folder.parent / "trackio" / "tutored.db") as database:
        found = database.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len({run_id for run_id, *_ in found}) == 1, "one run, in two parts"
    assert {name for _, name, *_ in found} == {f"run-{(folder / 'trackio.id').read_text()}"}
    return [(step, {tag: json.dumps(value) for tag, value in json.loads(text).items()}) for *_, step, text in found]


def summary_in(name: str, folder: Path, row: dict[str, str]) -> dict[str, str]:
    """The table at a run's end: quantities and values."""
    shown = json.loads(row["summary"])
    if name == "trackio":
        return {line["quantity"]: line["value"] for line in shown["_value"]}
    (path,) = folder.glob(f"wandb/offline-run-*/files/{shown['path']}")
    return dict(json.loads(path.read_text())["data"])


def wandb_rows(folder: Path) -> Rows:
    """What all parts of a run hold."""
    from wandb.proto.wandb_internal_pb2 import Record

    names = {path.stem for path in folder.glob("wandb/offline-run-*/*.wandb")}
    assert names == {f"run-{(folder / 'wandb.id').read_text()}"}, "one run, in two parts"
    found: Rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records(path.read_bytes()):
            row: dict[str, Any] = {}
            for item in Record.FromString(data).history.item:
                tag, *inside = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                row[tag] = {**row.get(tag, {}), inside[0]: value} if inside else value
            if "global_step" in row:
                found.append((row.pop("global_step"), {tag: json.dumps(value) for tag, value in row.items()}))
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
    found = tracked_id(path, "wandb")
    assert len(found) == 8
    assert tracked_id(path, "wandb") == found
    assert ("is damaged" in caplog.text) == bool(damaged)
