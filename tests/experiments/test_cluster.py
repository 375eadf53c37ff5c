"""A study on several machines: two Ray nodes, one of which dies, and Slurm's script; compared with runs here."""

import csv
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

from experiments import cluster
from experiments.cluster import run_on_ray, slurm_script
from experiments.runner import RunOptions, run
from tests.helpers.paths import ROOT
from tests.helpers.processes import TIMEOUT_S, running, until
from tests.helpers.programs import program
from tests.helpers.studies import ALONE, PRETRAINED, TINY, cli, finish_times, run_dirs, write_study
from training.checkpoint import complete_steps

TWO_RUNS = ALONE.replace("[1]", "[1, 2]")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes with a CPU each, as processes of this machine."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        monkeypatch.setenv("RAY_TMPDIR", folder)  # in place of /tmp/ray; short: the names of Ray's sockets must fit
        (Path(folder) / "ray").mkdir()
        found = cluster_utils.Cluster()
        try:
            for head in ({"include_dashboard": False}, {}):
                found.add_node(num_cpus=1, object_store_memory=100 << 20, **head)
            yield found
        finally:
            found.shutdown()


@pytest.mark.process
@pytest.mark.train
@pytest.mark.timeout(600)
def test_runs_on_a_cluster_that_fail_or_are_stopped_are_reported(nodes: Any, tmp_path: Path) -> None:
    path = write_study(tmp_path, ALONE.replace("--num-steps 8", "--num-steps few"))
    ended = program(*cli(path, "run", "--ray", nodes.address))
    assert (ended.returncode, ended.stderr) == (2, "error: 1 of 1 runs failed; the same command tries them again\n")
    assert "failed with exit code 2" in ended.stdout
    path = write_study(tmp_path, ALONE.replace("3_000", "100_000_000").replace("[1]", "[2]"))
    (run_dir,) = run_dirs(path)
    with running(*cli(path, "run", "--ray", nodes.address)) as process:
        until(lambda: (run_dir / "metrics.csv").exists())
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130
        until(lambda: not is_locked(run_dir))


def is_locked(run_dir: Path) -> bool:
    """Whether a process trains in a run's directory."""
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            return False
    except Timeout:
        return True


@pytest.mark.process
@pytest.mark.train
@pytest.mark.timeout(600)
def test_a_node_that_dies_changes_nothing_but_the_time(nodes: Any, tmp_path: Path) -> None:
    text = TWO_RUNS.replace("3_000", "48_000")  # long enough for both to be running when the node dies
    text = text.replace("--num-envs", "--save-minutes 0 --num-envs")
    paths = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        paths.append(write_study(tmp_path / name, text))
    here, there = paths
    run(RunOptions(here, here.parent / "runs"))
    directories = run_dirs(there)
    with running(*cli(there, "run", "--ray", nodes.address)) as process:
        until(lambda: all(complete_steps(one / "checkpoints") != [] for one in directories))
        for one in directories:
            (one / "mark").touch()
        nodes.remove_node(nodes.list_all_nodes()[1], allow_graceful=False)
        assert process.wait(300) == 0
    for one, other in zip(run_dirs(here), directories, strict=True):
        assert evaluations(one) == evaluations(other)
        assert (other / "mark").exists(), "it continued from its checkpoint"
    starts = [started(there.parent / "runs" / "logs" / f"{one.name}.txt") for one in directories]
    assert starts in ([2, 1], [1, 2])


def evaluations(run_dir: Path) -> list[tuple[str, str, str]]:
    """What a run's evaluations logged, but for the seconds."""
    with (run_dir / "metrics.csv").open() as file:
        rows = [(row["global_step"], row["tag"], row["value"]) for row in csv.DictReader(file)]
    return [row for row in rows if row[1].startswith("eval/")]


def started(log: Path) -> int:
    """How often a run was started or resumed."""
    return " ".join(log.read_text().split()).count(" on connect4, tutor ")


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--ray requires Ray: .*python -m pip install -e '\.\[study\]'"):
        cluster.connect("auto")


def test_a_cluster_that_cannot_be_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(ValueError, match="no Ray cluster can be reached at auto: Could not find any"):
        cluster.connect("auto")


class DyingCluster:
    """Takes the place of Ray: its nodes die with all their tasks."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self.is_up = True

    def remote(self, **options: Any) -> Callable[..., Any]:
        return lambda task: SimpleNamespace(remote=lambda arguments, directory: tuple(arguments))

    def wait(self, tasks: list[Any]) -> tuple[list[Any], list[Any]]:
        return tasks[:1], tasks[1:]

    def get(self, task: Any) -> int:
        raise RuntimeError(f"{task[-1]} died")

    def shutdown(self) -> None:
        self.is_up = False


def test_a_run_all_of_whose_nodes_die_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = DyingCluster()
    monkeypatch.setattr(cluster, "connect", lambda address: ray)
    commands = RunOptions(write_study(tmp_path, TWO_RUNS), tmp_path / "runs").commands()
    (tmp_path / "runs" / "logs").mkdir(parents=True)
    assert list(run_on_ray(commands, ["do"], "auto")) == [(one, 2) for one in commands]
    assert [one.log_file().read_text() for one in commands] == ["error: 1 died\n", "error: 2 died\n"]
    assert not ray.is_up


def script(path: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    """What `run --slurm` prints."""
    run(RunOptions(path, path.parent / "runs", slurm=True, **options))
    return capsys.readouterr().out


def array(text: str) -> list[int]:
    """The tasks of the array that sbatch would make of a script."""
    (line,) = [line for line in text.splitlines() if line.startswith("#SBATCH --array=")]
    return [int(number) for number in line.partition("=")[2].split(",")]


@pytest.mark.process
@pytest.mark.train
def test_a_slurm_task_is_one_run_of_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    path = write_study(folder, TINY)
    text = script(path, capsys)
    assert array(text) == [1, 2, 3, 4]
    assert array(script(path, capsys, seeds=(2,))) == [3, 4], "an index is that of the whole study"
    task = {"SLURM_ARRAY_TASK_ID": "3", "PATH": os.environ["PATH"]}
    text = text.replace(f"cd {Path.cwd()}", f"cd {ROOT}")
    ended = subprocess.run(
        ["bash"], input=text, env=task, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), text
    assert list(finish_times(path)) == ["connect4_ppo_none_none_inf_seed2"] == [run_dirs(path)[2].name]
    assert "1/1" in (folder / "runs" / "logs" / "slurm_3.txt").read_text()
    assert array(script(path, capsys)) == [1, 2, 4]


def test_a_slurm_script_asks_for_one_cpu_and_a_signal_before_the_time_limit(tmp_path: Path) -> None:
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


def test_a_slurm_script_begins_with_pretraining(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, PRETRAINED)
    assert array(script(path, capsys)) == [1, 2]
    for one in run_dirs(path)[:2]:
        one.mkdir(parents=True)
        (one / "summary.json").touch()
    assert array(script(path, capsys)) == list(range(3, 9))


def test_finished_runs_are_not_submitted(tmp_path: Path) -> None:
    path = write_study(tmp_path, TINY)
    for one in run_dirs(path):
        one.mkdir(parents=True)
        (one / "summary.json").touch()
    with pytest.raises(ValueError, match="all runs are finished"):
        run(RunOptions(path, tmp_path / "runs", slurm=True))


@pytest.mark.parametrize("options", [{"slurm": True}, {"ray": "auto"}])
def test_a_served_tutor_of_runs_on_other_machines_requires_a_url(options: dict[str, Any], tmp_path: Path) -> None:
    path = write_study(tmp_path, TINY.replace('["scripted:0.9"]', '["tiny"]'))
    with pytest.raises(ValueError, match="--tutor-url must say where tiny is served"):
        run(RunOptions(path, tmp_path / "runs", **options))


def test_a_slurm_script_names_servers_and_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, TINY.replace('["scripted:0.9"]', '["tiny"]'))
    urls, store = ("http://one:8000", "http://two:8000"), "postgresql:///my advice"
    *_, last = script(path, capsys, tutor_url=urls, advice_store=store).splitlines()
    words = shlex.split(last)
    assert words[1:5] == [sys.executable, "-m", "experiments", "run"]
    assert words[-7:] == ["--tutor-url", *urls, "--advice-store", store, "--only", "$SLURM_ARRAY_TASK_ID"]


def test_runs_share_a_store_on_one_machine_only(tmp_path: Path) -> None:
    path = write_study(tmp_path, TINY)
    for options, store in (({}, tmp_path / "runs" / "advice.sqlite"), ({"only": 2}, None), ({"slurm": True}, None)):
        for command in RunOptions(path, tmp_path / "runs", **options).commands():
            words = command.arguments
            kept = words[words.index("--advice-store") + 1] if "--advice-store" in words else None
            expected = store if store is not None and "--tutor" in words else None
            assert kept == (expected and str(expected)), "SQLite requires all its writers on one machine"
