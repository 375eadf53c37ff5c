"""The runs of a study as processes: one that was killed, and goes on, is the one that was not; and who tutors them."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from filelock import FileLock

import tutors
from experiments import study
from experiments.runner import begun, here
from experiments.spec import read_grid
from experiments.study import Report, Run
from tests.experiments.test_study import ALONE_ONCE, BEGUN, TINY, summaries, told, written
from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import serving
from tests.helpers.vllm_program import install_vllm, is_alive
from training.checkpoint import load_checkpoint, save_checkpoint, steps_in
from training.config import Config, load_config

SECONDS = 120.0  # that something may take on a busy machine


def processes() -> dict[int, int]:
    """The parent of each process that is not dead."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if state != "Z":
            found[int(file.parent.name)] = int(parent)
    return found


def family(root: int) -> set[int]:
    """A process and all that descend from it."""
    found, parents = {root}, processes()
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def until(is_so: Callable[[], bool]) -> None:
    over = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < over
        time.sleep(0.1)


@contextmanager
def heeding_sigint() -> Iterator[None]:
    """What is begun here heeds SIGINT: a shell's background jobs, and all that they begin, do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def running(path: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A study at work, in a process group of its own, as a terminal begins it; nothing of it is left behind."""
    command = [sys.executable, "-m", "experiments.study", *told(path, "run", *flags)]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with heeding_sigint():
        process = subprocess.Popen(command, cwd=ROOT, **quiet)
    ours = {process.pid}
    try:
        yield process
    finally:
        ours |= family(process.pid)
        for one in ours & set(processes()):
            os.kill(one, signal.SIGKILL)
        process.wait()


def stop(process: subprocess.Popen[bytes], number: int) -> int:
    """Press Ctrl-C, or send a study another signal, and return its exit code when all its processes are gone."""
    ours = family(process.pid)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    code = process.wait(SECONDS)
    until(lambda: not ours & set(processes()))
    return code


def folders_of(path: Path) -> list[Path]:
    return [path.parent / "runs" / job.name() for job in read_grid(path).jobs()]


def test_a_study_that_is_stopped_leaves_no_process_behind(tmp_path: Path) -> None:
    path = written(tmp_path, ALONE_ONCE.replace("3_000", "100_000_000"))
    for number, jobs, code in ((signal.SIGKILL, 2, -9), (signal.SIGINT, 1, 130)):
        with running(path, "--jobs", str(jobs)) as at_work:
            until(lambda jobs=jobs: all((one / "metrics.csv").exists() for one in folders_of(path)[:jobs]))
            until(lambda jobs=jobs, pid=at_work.pid: len(family(pid)) == 3 + jobs)  # with multiprocessing's two helpers
            assert stop(at_work, number) == code
        assert not summaries(path)
        shutil.rmtree(tmp_path / "runs")


LONGER = TINY.replace("inf", "3").replace("[1, 2]", "[1]").replace("3_000", "15_000")
LONGER = LONGER.replace("--num-envs", "--save-minutes 0 --num-envs")


def table(path: Path) -> list[dict[str, str]]:
    """The study's report, but for times."""
    study.report(Report(path, path.parent / "runs", out=path.parent / "out"))
    rows = list(csv.DictReader((path.parent / "out" / "cells.csv").read_text().splitlines()[1:]))
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


@pytest.mark.timeout(600)
def test_a_study_that_was_killed_twice_has_the_table_of_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, killed = (written(tmp_path / name, LONGER) for name in ("whole", "killed"))
    study.run(Run(whole, whole.parent / "runs"))
    folders = folders_of(killed)
    for at, number in ((0, signal.SIGKILL), (2, signal.SIGINT)):
        with running(killed, "--jobs", "1") as at_work:
            until(lambda at=at: steps_in(folders[at] / "checkpoints") != [])
            (folders[at] / "mark").touch()
            stop(at_work, number)
        assert not (folders[at] / "summary.json").exists()
        state = load_checkpoint(folders[at] / "checkpoints", "cpu")
        save_checkpoint(folders[at] / "checkpoints", state["global_step"], state | {"seconds": 1000.0})
    log = (killed.parent / "runs" / "logs" / f"{folders[2].name}.txt").read_text()
    assert "goes on" in log, "Ctrl-C gives a run the time to save"
    study.run(Run(killed, killed.parent / "runs", jobs=1))
    assert table(killed) == table(whole)
    for folder in (folders[0], folders[2]):
        assert (folder / "mark").exists(), "it went on"
        seconds = json.loads((folder / "summary.json").read_text())["wall_seconds"]
        assert 1000 < seconds < 1000 + SECONDS, "the time of all parts"


def test_what_is_left_of_a_run_decides_how_it_begins(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert begun(folder) == []
    folder.mkdir()
    (folder / "left").touch()
    assert begun(folder) == []
    assert not folder.exists()
    folder.mkdir()
    (folder / "config.json").write_text(Config(run_dir=folder, total_steps=100).to_json())
    save_checkpoint(folder / "checkpoints", 50, {})
    assert begun(folder) == ["--resume", str(folder)]
    save_checkpoint(folder / "checkpoints", 100, {})
    (folder / "summary.json").touch()
    begun(folder)
    assert load_checkpoint(folder / "checkpoints", "cpu") == {}, "what is done is not removed"
    (folder / "summary.json").unlink()
    assert begun(folder) == ["--resume", str(folder)], "it was killed before it was evaluated"
    (folder / "config.json").write_text("{")
    assert begun(folder) == ["--resume", str(folder)], "train.py says why it cannot go on"


def test_a_run_that_another_study_has_finished_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    path = written(tmp_path, ALONE_ONCE)
    one, *_ = Run(path, tmp_path / "runs").errands()
    one.folder.mkdir(parents=True)
    one.log().parent.mkdir()
    (one.folder / "mark").touch()
    lock = FileLock(one.folder / ".lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.5, lambda: ((one.folder / "summary.json").touch(), lock.release())).start()
    assert list(here([one], 1)) == [(one, 0)]
    assert one.log().read_text() == ""
    assert (one.folder / "mark").exists()


def test_why_a_run_cannot_go_on_is_in_its_log(tmp_path: Path) -> None:
    path = written(tmp_path, ALONE_ONCE)
    folder, *_ = folders_of(path)
    save_checkpoint(folder / "checkpoints", 50, {})
    with pytest.raises(ValueError, match="1 of 2 runs failed"):
        study.run(Run(path, tmp_path / "runs"))
    assert "it has no config.json" in (tmp_path / "runs" / "logs" / f"{folder.name}.txt").read_text()
    assert steps_in(folder / "checkpoints") == [50]


def test_a_run_that_is_still_saving_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "left").touch()
    lock = FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    seen = []
    threading.Timer(0.5, lambda: (seen.append((tmp_path / "left").exists()), lock.release())).start()
    assert begun(tmp_path) == []
    assert seen == [True], "nothing was removed meanwhile"


def test_a_run_with_other_flags_is_not_gone_on_with(tmp_path: Path) -> None:
    text = ALONE_ONCE.replace("--num-envs", "--save-minutes 0 --num-envs")
    path = written(tmp_path, text.replace("3_000", "100_000_000"))
    with running(path) as at_work:
        until(lambda: all(steps_in(one / "checkpoints") != [] for one in folders_of(path)))
        stop(at_work, signal.SIGINT)
    written(tmp_path, text)
    with pytest.raises(ValueError, match="2 of 2 runs failed"):
        study.run(Run(path, tmp_path / "runs"))
    for folder in folders_of(path):
        log = " ".join((tmp_path / "runs" / "logs" / f"{folder.name}.txt").read_text().split())
        assert "began otherwise: total_steps was 100000000, is 3000" in log


SERVED = TINY.replace('["scripted:0.9"]', '["tiny"]').replace('["dqn", "ppo"]', '["ppo"]').replace("inf", "3")
SERVED = SERVED.replace('dqn = "--learning-starts 500"', "")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> str:
    """A place where no server answers, but one may be started."""
    with serving() as server:
        url = server.url
    monkeypatch.setattr(tutors, "DEFAULT_URL", url)
    return url


def tutored(path: Path) -> list[Path]:
    return [folder for folder in folders_of(path) if "_tiny_" in folder.name]


def test_one_server_is_started_for_all_runs_of_a_tutor_and_ends_after_them(
    free: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, SERVED)
    pid = install_vllm(tmp_path, monkeypatch, broken=False)
    study.run(Run(path, tmp_path / "runs"))
    assert len(summaries(path)) == 4
    assert (tmp_path / "runs" / "logs" / "vllm_tiny.txt").read_text() == "loading\n"
    assert not list((tmp_path / "runs").glob("*/vllm.log")), "no run started one"
    assert not is_alive(int(pid.read_text()))
    for folder in tutored(path):
        assert load_config(folder).tutoring.tutor_url == (free,)
        assert json.loads((folder / "summary.json").read_text())["tutor"]["asked"] > 100


def test_servers_are_told_to_those_whom_they_tutor_and_a_log_is_added_to(tmp_path: Path) -> None:
    told = Run(written(tmp_path, SERVED.replace('["tiny"]', '["tiny", "scripted:0.9"]')), tmp_path / "runs")
    for one in told.errands():
        further = ["--tutor-url", "http://there"] if one.job.cell.tutor == "tiny" else []
        assert one.asking(["http://there"]).arguments == [*one.arguments, *further]
        assert one.asking([]) == one
    one.log().parent.mkdir(parents=True)
    one.log().write_text("begun\n")
    assert one.failed("it rains") == (one, 2)
    assert one.log().read_text() == "begun\nerror: it rains\n"


def test_a_tutor_that_cannot_be_had_fails_its_own_runs_only(
    free: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, SERVED.replace('["tiny"]', '["tiny", "scripted:0.9"]'))
    install_vllm(tmp_path, monkeypatch, broken=True)
    with pytest.raises(ValueError, match="2 of 6 runs failed"):
        study.run(Run(path, tmp_path / "runs"))
    assert summaries(path).keys() == {folder.name for folder in folders_of(path)} - {one.name for one in tutored(path)}
    for folder in tutored(path):
        assert "OSError: no weights for" in (tmp_path / "runs" / "logs" / f"{folder.name}.txt").read_text()
        assert not folder.exists()


def test_servers_that_are_named_are_asked_and_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, SERVED.replace("[1, 2]", "[1]"))
    pid = install_vllm(tmp_path, monkeypatch, broken=False)
    with serving() as one, serving() as two:
        urls = one.url, two.url
        study.run(Run(path, tmp_path / "runs", tutor_url=urls))
        assert min(len(one.asked), len(two.asked)) > 5
    (folder,) = tutored(path)
    assert load_config(folder).tutoring.tutor_url == urls
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match="1 of 2 runs failed"):
        study.run(Run(path, tmp_path / "runs", tutor_url=urls))
    log = (tmp_path / "runs" / "logs" / f"{folder.name}.txt").read_text()
    assert f"error: no server answers at {urls[0]}" in log
    assert not pid.exists()


def test_a_run_that_goes_on_with_one_that_failed_is_not_begun(tmp_path: Path) -> None:
    path = written(tmp_path, BEGUN.replace("[1, 2]", "[1]").replace('dqn = "', 'dqn = "--batch-size 0 '))
    with pytest.raises(ValueError, match="4 of 8 runs failed"):
        study.run(Run(path, tmp_path / "runs"))
    assert all("_ppo_" in name for name in summaries(path))
    log = (tmp_path / "runs" / "logs" / "connect4_dqn_none_none_inf_seed1.txt").read_text()
    assert "connect4_dqn_none_first_inf_seed1, which is not done" in log
    assert not (tmp_path / "runs" / "connect4_dqn_none_none_inf_seed1").exists()


@pytest.mark.serve
@pytest.mark.timeout(600)
def test_the_tiny_tutor_on_vllm_is_started_once_for_a_study(free: str, tmp_path: Path) -> None:
    if not (ROOT / ".venv-vllm" / "bin" / "python").exists():
        pytest.skip("there is no .venv-vllm: make setup")
    path = written(tmp_path, SERVED)
    study.run(Run(path, tmp_path / "runs"))
    assert len(summaries(path)) == 4
    for folder in tutored(path):
        tutor = json.loads((folder / "summary.json").read_text())["tutor"]
        assert tutor["asked"] > 100
        assert tutor["no_advice"] == {}
    assert not list((tmp_path / "runs").glob("*/vllm.log")), "no run started one"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", urlsplit(free).port), timeout=5)
