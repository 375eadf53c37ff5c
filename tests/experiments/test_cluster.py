"""A study on many machines: two nodes of Ray, one of which dies, and Slurm's script, beside the same runs done here."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock, Timeout

from experiments import study
from experiments.cluster import over_ray, slurm_script
from experiments.study import Run
from tests.experiments.test_runner import LONGER, SECONDS, folders_of, running, table, until
from tests.experiments.test_study import ALONE_ONCE, BEGUN, TINY, summaries, told, written
from tests.helpers.paths import ROOT
from tests.helpers.programs import program
from training.checkpoint import steps_in


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps its files, and remembers the machine's cluster, in place of /tmp/ray."""
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)  # a short name: those of Ray's sockets must fit
        (Path(folder) / "ray").mkdir()
        yield Path(folder)


@pytest.fixture
def nodes(ray_folder: Path) -> Iterator[Any]:
    """A Ray cluster of two nodes with a CPU each, as processes of this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for head in ({"include_dashboard": False}, {}):
            cluster.add_node(num_cpus=1, object_store_memory=100 << 20, **head)
        yield cluster
    finally:
        cluster.shutdown()


DQN_ONLY = LONGER.replace('["dqn", "ppo"]', '["dqn"]').replace("15_000", "20_000")


@pytest.mark.timeout(600)
def test_a_node_that_dies_changes_nothing_but_the_time(nodes: Any, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here, there = (written(tmp_path / name, DQN_ONLY) for name in ("here", "there"))
    study.run(Run(here, here.parent / "runs"))
    folders = folders_of(there)
    with running(there, "--ray", nodes.address) as at_work:
        until(lambda: all(steps_in(one / "checkpoints") != [] for one in folders))
        for one in folders:
            (one / "mark").touch()
        nodes.remove_node(nodes.list_all_nodes()[1], allow_graceful=False)
        assert at_work.wait(300) == 0
    assert table(there) == table(here)
    logs = [there.parent / "runs" / "logs" / f"{one.name}.txt" for one in folders]
    assert [begun(log) for log in logs] in ([2, 1], [1, 2])
    assert all((one / "mark").exists() for one in folders), "it went on from its checkpoint"


def begun(log: Path) -> int:
    """How often a run was begun or gone on with."""
    return " ".join(log.read_text().split()).count(" on connect4, tutor ")


@pytest.mark.timeout(600)
def test_runs_on_a_cluster_that_fail_or_are_stopped_are_told(nodes: Any, tmp_path: Path) -> None:
    path = written(tmp_path, ALONE_ONCE.replace("500", "few"))
    ended = program("experiments.study", *told(path, "run", "--ray", nodes.address))
    assert (ended.returncode, ended.stderr) == (2, "error: 1 of 2 runs failed; the same command tries them again\n")
    assert "failed with exit code 2" in ended.stdout
    assert len(summaries(path)) == 1
    path = written(tmp_path, ALONE_ONCE.replace("3_000", "100_000_000").replace("[1]", "[2]"))
    with running(path, "--ray", nodes.address) as at_work:
        until(lambda: all((one / "metrics.csv").exists() for one in folders_of(path)))
        at_work.send_signal(signal.SIGINT)
        assert at_work.wait(SECONDS) == 130
        until(lambda: not any(is_at_work(one) for one in folders_of(path)))


def is_at_work(folder: Path) -> bool:
    """Whether a process keeps a run's folder to itself."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def test_without_ray_the_way_to_have_it_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, ALONE_ONCE)
    words = ["experiments.study", *told(path, "run", "--ray", "auto")]
    text = (
        f"import runpy, sys; sys.modules['ray'], sys.argv = None, {words}; "
        "runpy.run_module('experiments.study', None, '__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "error: --ray wants Ray, which is not installed: pip install -e '.[study]'\n"


def test_a_cluster_that_is_not_there_is_said(ray_folder: Path, tmp_path: Path) -> None:
    ended = program("experiments.study", *told(written(tmp_path, ALONE_ONCE), "run", "--ray", "auto"))
    assert ended.returncode == 2
    assert "error: no Ray cluster answers at auto: " in ended.stderr
    assert "Traceback" not in ended.stderr


class Cluster:
    """A cluster whose nodes die with all that they do."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self.is_up = True

    def remote(self, **told: Any) -> Callable[..., Any]:
        return lambda task: SimpleNamespace(remote=lambda words, folder: tuple(words))

    def wait(self, tasks: list[Any]) -> tuple[list[Any], list[Any]]:
        return tasks[:1], tasks[1:]

    def get(self, task: Any) -> int:
        raise RuntimeError(f"{task[-1]} died")

    def shutdown(self) -> None:
        self.is_up = False


def test_a_run_whose_nodes_all_die_has_failed_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Cluster()
    monkeypatch.setattr("cluster.connected", lambda address: ray)
    errands = Run(written(tmp_path, ALONE_ONCE), tmp_path / "runs").errands()
    (tmp_path / "runs" / "logs").mkdir(parents=True)
    assert list(over_ray(errands, ["do"], "auto")) == [(one, 2) for one in errands]
    assert [one.log().read_text() for one in errands] == ["error: 1 died\n", "error: 2 died\n"]
    assert not ray.is_up


def script(path: Path, *flags: str) -> str:
    ended = program("experiments.study", *told(path, "run", "--slurm", *flags))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def submitted(text: str) -> list[int]:
    """The tasks of the array that sbatch would make of a script."""
    (line,) = [line for line in text.splitlines() if line.startswith("#SBATCH --array=")]
    return [int(number) for number in line.partition("=")[2].split(",")]


def test_a_task_of_slurm_is_one_run_of_the_study(tmp_path: Path) -> None:
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    path = written(folder, TINY)
    text = script(path)
    assert submitted(text) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert submitted(script(path, "--seeds", "2", "--students", "ppo")) == [6, 8], "a number is that of the whole study"
    task = {"SLURM_ARRAY_TASK_ID": "6", "PATH": os.environ["PATH"]}
    ended = subprocess.run(["bash"], input=text, env=task, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), text
    assert list(summaries(path)) == ["connect4_ppo_none_none_inf_seed2"] == [folders_of(path)[5].name]
    assert "1/1" in (folder / "runs" / "logs" / "slurm_6.txt").read_text()
    assert submitted(script(path)) == [1, 2, 3, 4, 5, 7, 8]


def test_a_script_says_what_a_task_wants_and_that_it_is_told_before_its_end(tmp_path: Path) -> None:
    head, _, body = slurm_script([], ["do", "it's"], tmp_path / "a b").partition("set -eu\n")
    assert set(head.splitlines()) >= {
        "#SBATCH --cpus-per-task=1", "#SBATCH --requeue", "#SBATCH --signal=B:TERM@60", "#SBATCH --output=/dev/null"
    }  # fmt: skip
    logs = f"'{tmp_path}/a b/logs'"
    assert body.splitlines() == [
        f"mkdir -p {logs}",
        f'exec >{logs}/slurm_"$SLURM_ARRAY_TASK_ID".txt 2>&1',
        f"cd {shlex.quote(str(Path.cwd()))}",
        """exec do 'it'"'"'s' --only "$SLURM_ARRAY_TASK_ID\"""",
    ]


def test_a_script_begins_with_the_runs_that_others_go_on_with(tmp_path: Path) -> None:
    path = written(tmp_path, BEGUN)
    assert submitted(script(path)) == [1, 2, 3, 4]
    for one in folders_of(path)[:4]:
        one.mkdir(parents=True)
        (one / "summary.json").touch()
    assert submitted(script(path)) == list(range(5, 17))


def test_nothing_that_is_not_there_or_done_is_submitted(tmp_path: Path) -> None:
    path = written(tmp_path, TINY)
    for one in folders_of(path):
        one.mkdir(parents=True)
        (one / "summary.json").touch()
    with pytest.raises(ValueError, match="no run is left to do"):
        study.run(Run(path, tmp_path / "runs", slurm=True))
    for only in (0, 9):
        with pytest.raises(ValueError, match=f"the study has no run {only}; the last is 8"):
            study.run(Run(path, tmp_path / "runs", only=only))


@pytest.mark.parametrize("way", [("--slurm",), ("--ray", "auto")])
def test_a_served_tutor_of_runs_elsewhere_wants_an_address(way: tuple[str, ...], tmp_path: Path) -> None:
    path = written(tmp_path, TINY.replace('["scripted:0.9"]', '["tiny"]'))
    ended = program("experiments.study", *told(path, "run", *way))
    assert ended.returncode == 2
    assert "--tutor-url must say where tiny answers" in ended.stderr


def test_a_script_says_where_its_tutor_and_its_store_are(tmp_path: Path) -> None:
    path = written(tmp_path, TINY.replace('["scripted:0.9"]', '["tiny"]'))
    told_too = ("--tutor-url", "http://one:8000", "http://two:8000", "--advice-store", "postgresql:///my advice")
    *_, last = script(path, *told_too).splitlines()
    words = shlex.split(last)
    assert words[-2:] == ["--only", "$SLURM_ARRAY_TASK_ID"]
    assert words[1:4] == [sys.executable, "-m", "experiments.study"]
    assert [*told_too] == words[-2 - len(told_too) : -2]
    for only, store in (((), tmp_path / "runs" / "advice.sqlite"), (("--only", "3"), None)):
        shown = program(
            "experiments.study", *told(path, "run", "--dry-run", "--tutor-url", "http://one:8000", *only)
        ).stdout
        tutored = [shlex.split(line) for line in shown.splitlines() if "--tutor tiny" in line]
        assert [line[-2:] for line in tutored] == [["--tutor-url", "http://one:8000"]] * (1 if only else 4)
        for line in tutored:
            kept = line[line.index("--advice-store") + 1] if "--advice-store" in line else None
            assert kept == (None if store is None else str(store)), "SQLite wants all that write on one machine"
