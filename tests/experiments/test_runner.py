"""The runs of a study as processes: a study that was killed and one that was not are equal; servers, failures, logs."""

import csv
import json
import shlex
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from experiments.report import ReportOptions, report
from experiments.runner import LocalPool, RunOptions, resume_arguments, run, run_locally
from experiments.spec import RunCommand, read_study
from experiments.stats import read_curve
from tests.helpers.paths import ROOT
from tests.helpers.processes import TIMEOUT_S, family, running, stop, until
from tests.helpers.programs import program
from tests.helpers.scripted_server import serving
from tests.helpers.studies import ALONE, PRETRAINED, SERVED, TINY, cli, finish_times, run_dirs, write_study
from tests.helpers.vllm_program import install_vllm, is_alive
from training.checkpoint import complete_steps, load_checkpoint, save_checkpoint
from training.config import Config, default_config, load_config
from tutors import factory

LONGER = TINY.replace("[1, 2]", "[1]").replace("inf", "3").replace("3_000", "12_000")
LONGER = LONGER.replace("--num-envs", "--save-minutes 0 --num-envs")


def table(path: Path) -> list[dict[str, str]]:
    """The study's conditions, but for times."""
    report(ReportOptions(path, path.parent / "runs"))
    lines = (path.parent / "runs" / "report" / "conditions.csv").read_text().splitlines()[1:]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in csv.DictReader(lines)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a study all of whose runs are finished."""
    path = write_study(tmp_path_factory.mktemp("study"), LONGER)
    ended = program(*cli(path, "run"))
    assert ended.returncode == 0, ended.stderr
    return path


@pytest.mark.process
@pytest.mark.train
def test_run_trains_with_the_settings_of_each_condition(finished: Path) -> None:
    assert set(finish_times(finished)) == {one.name for one in run_dirs(finished)}
    for spec, run_dir in zip(read_study(finished).runs(), run_dirs(finished), strict=True):
        config = load_config(run_dir)
        assert (config.algo, config.seed, config.total_steps) == (spec.condition.algo, spec.seed, 12_000)
        assert (config.num_envs, config.agent.hidden) == (100, (16,))
        assert config.tutoring.tutor == spec.condition.tutor.name
        assert config.tutoring.tutor_accuracy == (spec.condition.tutor.accuracy or 1)
        assert "step" in (run_dir.parent / "logs" / f"{run_dir.name}.txt").read_text()


@pytest.mark.process
@pytest.mark.train
@pytest.mark.timeout(600)
def test_a_study_that_was_killed_twice_has_the_table_of_one_that_was_not(finished: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, LONGER)
    directories = run_dirs(path)
    for run_dir, number in zip(directories, (signal.SIGKILL, signal.SIGINT), strict=True):
        with running(*cli(path, "run", "--jobs", "1")) as process:
            until(lambda run_dir=run_dir: complete_steps(run_dir / "checkpoints") != [])
            (run_dir / "mark").touch()
            assert len(family(process.pid)) == 3 + 1, "multiprocessing's two helpers and a run"
            assert stop(process, number) == (130 if number == signal.SIGINT else -number)
        assert not (run_dir / "summary.json").exists()
        state = load_checkpoint(run_dir / "checkpoints", "cpu")
        save_checkpoint(run_dir / "checkpoints", state["global_step"], state | {"seconds": 1000.0})
    run(RunOptions(path, tmp_path / "runs", jobs=1))
    assert table(path) == table(finished)
    for run_dir in directories:
        assert (run_dir / "mark").exists(), "it continued"
        seconds = json.loads((run_dir / "summary.json").read_text())["wall_seconds"]
        assert 1000 < seconds < 1000 + TIMEOUT_S, "the time of all parts"


@pytest.mark.process
@pytest.mark.train
def test_only_unfinished_runs_are_repeated_and_failures_are_reported(finished: Path, tmp_path: Path) -> None:
    path = write_study(tmp_path, LONGER.replace("--num-steps 8", "--num-steps few"))
    shutil.copytree(finished.parent / "runs", tmp_path / "runs")
    before = finish_times(path)
    run(RunOptions(path, tmp_path / "runs"))
    assert finish_times(path) == before
    failing = run_dirs(path)[0]
    (failing / "summary.json").unlink()
    ended = program(*cli(path, "run"))
    assert ended.returncode == 2
    assert ended.stderr == "error: 1 of 2 runs failed; the same command tries them again\n"
    assert "failed with exit code 2" in ended.stdout
    assert "2/2" in ended.stdout
    assert "few" in (tmp_path / "runs" / "logs" / f"{failing.name}.txt").read_text()
    assert before.items() - finish_times(path).items() == {(failing.name, before[failing.name])}


def test_a_dry_run_prints_the_commands_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, TINY)
    study = read_study(path)
    run(RunOptions(path, tmp_path / "runs", dry_run=True))
    lines = capsys.readouterr().out.splitlines()
    for spec, line in zip(study.runs(), lines, strict=True):
        arguments = study.arguments(spec, tmp_path / "runs" / spec.name(), tmp_path / "runs" / "advice.sqlite")
        assert shlex.split(line) == ["python", "train.py", *arguments]
    assert not (tmp_path / "runs").exists()


def test_no_password_of_a_url_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, TINY.replace("scripted:0.9", "tiny"))
    options = RunOptions(
        path,
        tmp_path / "runs",
        tutor_url=("http://me:canary@host",),
        advice_store="postgresql://me:canary@host/advice",
    )
    run(replace(options, dry_run=True))
    printed = capsys.readouterr().out
    assert "canary" not in printed
    assert "me:***@host" in printed
    with pytest.raises(ValueError, match="a Slurm script would show the password"):
        run(replace(options, slurm=True))


def test_jobs_must_be_positive_and_only_must_exist(tmp_path: Path) -> None:
    path = write_study(tmp_path, TINY)
    with pytest.raises(ValueError, match="jobs is 0"):
        run(RunOptions(path, tmp_path / "runs", jobs=0))
    for only in (0, 5):
        with pytest.raises(ValueError, match=f"the study has no run {only}; its last one is 4"):
            run(RunOptions(path, tmp_path / "runs", only=only))
    (command,) = RunOptions(path, tmp_path / "runs", only=3, seeds=(2,)).commands()
    assert command.run_dir == run_dirs(path)[2]


def test_the_command_for_the_report_has_all_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path, TINY)
    for run_dir in run_dirs(path):
        run_dir.mkdir(parents=True)
        (run_dir / "summary.json").touch()
    run(RunOptions(path, tmp_path / "runs", seeds=(1, 2), tutors=("scripted:0.9",)))
    said = capsys.readouterr().out
    assert f"experiments report {path} --output-dir {tmp_path / 'runs'} --tutors scripted:0.9 --seeds 1 2" in said


def test_resume_arguments_depend_on_what_is_left_of_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert resume_arguments(run_dir) == []
    assert not run_dir.exists()
    run_dir.mkdir()
    paid = {"advice.sqlite", "advice.sqlite-wal", "advice.sqlite-shm", "answers.db", "vllm.log", "answers.jsonl"}
    begun = {"config.json", "metrics.csv", "events.out.tfevents.1.host.2.0"}
    for name in paid | begun:
        (run_dir / name).write_text(name)
    damaged = save_checkpoint(run_dir / "checkpoints", 25, {"global_step": 25})
    damaged.write_bytes(b"")
    assert resume_arguments(run_dir) == []
    assert {one.name for one in run_dir.iterdir()} - {".lock"} == paid, "nothing that was paid for is removed"
    assert all((run_dir / name).read_text() == name for name in paid)
    (run_dir / "config.json").write_text(Config(run_dir=run_dir, total_steps=100).to_json())
    save_checkpoint(run_dir / "checkpoints", 50, {"global_step": 50})
    assert resume_arguments(run_dir) == ["--resume", str(run_dir)]
    save_checkpoint(run_dir / "checkpoints", 100, {"global_step": 100})
    (run_dir / "summary.json").touch()
    resume_arguments(run_dir)
    assert load_checkpoint(run_dir / "checkpoints", "cpu") == {"global_step": 100}, "a finished run is not removed"
    (run_dir / "summary.json").unlink()
    assert resume_arguments(run_dir) == ["--resume", str(run_dir)], "it was killed before its last evaluation"
    (run_dir / "config.json").write_text("{")
    assert resume_arguments(run_dir) == ["--resume", str(run_dir)], "train.py says why it cannot resume"


def test_a_run_that_is_still_saving_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "left").touch()
    lock = FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    seen = []
    threading.Timer(0.5, lambda: (seen.append((tmp_path / "left").exists()), lock.release())).start()
    assert resume_arguments(tmp_path) == []
    assert seen == [True], "nothing was removed meanwhile"


@pytest.mark.process
def test_a_run_that_another_process_finished_meanwhile_is_not_repeated(tmp_path: Path) -> None:
    (command,) = RunOptions(write_study(tmp_path, ALONE), tmp_path / "runs").commands()
    command.run_dir.mkdir(parents=True)
    (command.run_dir / "mark").touch()
    lock = FileLock(command.run_dir / ".lock", thread_local=False)
    lock.acquire()
    threading.Timer(0.5, lambda: ((command.run_dir / "summary.json").touch(), lock.release())).start()
    assert list(run_locally([command], 1)) == [(command, 0)]
    assert command.log_file().read_text() == ""
    assert (command.run_dir / "mark").exists()


@pytest.mark.process
def test_the_log_says_why_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    path = write_study(tmp_path, ALONE.replace("[1]", "[1, 2]"))
    without_config, other_settings = run_dirs(path)
    for run_dir in (without_config, other_settings):
        save_checkpoint(run_dir / "checkpoints", 50, {"global_step": 50})
    config = Config(algo="ppo", run_dir=other_settings, total_steps=9, agent=default_config("ppo", "connect4").agent)
    (other_settings / "config.json").write_text(config.to_json())
    with pytest.raises(ValueError, match="2 of 2 runs failed"):
        run(RunOptions(path, tmp_path / "runs"))
    logs = [" ".join((tmp_path / "runs" / "logs" / f"{one.name}.txt").read_text().split()) for one in run_dirs(path)]
    assert "no config.json" in logs[0]
    assert "does not fit other settings: num_envs was 256, is 100" in logs[1]
    assert complete_steps(without_config / "checkpoints") == [50]


@pytest.fixture
def free_url(monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL at which no server answers, and one may be started."""
    with serving() as server:
        url = server.url
    monkeypatch.setattr(factory, "DEFAULT_URL", url)
    return url


def tutored(path: Path) -> list[Path]:
    return [run_dir for run_dir in run_dirs(path) if "_tiny_" in run_dir.name]


@pytest.mark.process
@pytest.mark.train
def test_one_server_is_started_for_all_runs_of_a_tutor_and_stopped_after_them(
    free_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study(tmp_path, SERVED.replace("[1]", "[1, 2]"))
    for run_dir in run_dirs(path):
        if run_dir not in tutored(path):
            run_dir.mkdir(parents=True)
            (run_dir / "summary.json").touch()
    pid = install_vllm(tmp_path, monkeypatch, broken=False)
    run(RunOptions(path, tmp_path / "runs"))
    assert len(finish_times(path)) == 4
    assert (tmp_path / "runs" / "logs" / "vllm_tiny.txt").read_text() == "loading\n"
    assert not list((tmp_path / "runs").glob("*/vllm.log")), "no run started one"
    assert not is_alive(int(pid.read_text()))
    for run_dir in tutored(path):
        assert load_config(run_dir).tutoring.tutor_url == (free_url,)
        assert json.loads((run_dir / "summary.json").read_text())["tutor"]["asked"] > 100


def test_urls_are_given_to_runs_with_a_served_tutor(tmp_path: Path) -> None:
    path = write_study(tmp_path, SERVED.replace('["tiny"]', '["tiny", "scripted:0.9"]'))
    commands = RunOptions(path, tmp_path / "runs").commands()
    for command, spec in zip(commands, read_study(path).runs(), strict=True):
        further = ("--tutor-url", "http://there") if spec.condition.tutor.name == "tiny" else ()
        assert command.with_servers(["http://there"]).arguments == (*command.arguments, *further)
        assert command.with_servers([]) == command


def test_failures_are_appended_to_the_log(tmp_path: Path) -> None:
    command, *_ = RunOptions(write_study(tmp_path, TINY), tmp_path / "runs").commands()
    command.log_file().parent.mkdir(parents=True)
    command.log_file().write_text("begun\n")
    assert command.log_failure("it rains") == 2
    assert command.log_file().read_text() == "begun\nerror: it rains\n"


@pytest.mark.process
def test_a_tutor_without_a_server_fails_its_own_runs_only(
    free_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study(tmp_path, SERVED)
    alone, with_tutor = run_dirs(path)
    install_vllm(tmp_path, monkeypatch, broken=True)
    with pytest.raises(ValueError, match="1 of 2 runs failed"):
        run(RunOptions(path, tmp_path / "runs"))
    assert finish_times(path).keys() == {alone.name}
    assert "OSError: no weights for" in (tmp_path / "runs" / "logs" / f"{with_tutor.name}.txt").read_text()
    assert not with_tutor.exists()


@pytest.mark.process
@pytest.mark.train
def test_named_servers_are_used_and_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_study(tmp_path, SERVED)
    alone, with_tutor = run_dirs(path)
    alone.mkdir(parents=True)
    (alone / "summary.json").touch()
    pid = install_vllm(tmp_path, monkeypatch, broken=False)
    with serving() as one, serving() as two:
        urls = one.url, two.url
        run(RunOptions(path, tmp_path / "runs", tutor_url=urls))
        assert min(len(one.asked), len(two.asked)) > 5
    assert load_config(with_tutor).tutoring.tutor_url == urls
    (with_tutor / "summary.json").unlink()
    with pytest.raises(ValueError, match="1 of 2 runs failed"):
        run(RunOptions(path, tmp_path / "runs", tutor_url=urls))
    log = (tmp_path / "runs" / "logs" / f"{with_tutor.name}.txt").read_text()
    assert f"error: no server answers at {urls[0]}" in log
    assert not pid.exists()


@pytest.mark.process
@pytest.mark.train
def test_runs_continue_a_pretrained_student(tmp_path: Path) -> None:
    path = write_study(tmp_path, PRETRAINED.replace("[1, 2]", "[1]"))
    run(RunOptions(path, tmp_path / "runs"))
    report(ReportOptions(path, tmp_path / "runs"))
    out = tmp_path / "runs" / "report"
    rows = list(csv.DictReader((out / "conditions.csv").read_text().splitlines()[1:]))
    assert [row["guidance"] for row in rows] == ["none", "modulate", "override"]
    seconds = {}
    for spec, run_dir in zip(read_study(path).runs(), run_dirs(path), strict=True):
        summary = json.loads((run_dir / "summary.json").read_text())
        assert summary["global_step"] >= (1200 if spec.is_pretraining else 3000)
        assert min(step for step, _ in read_curve(run_dir)) > (0 if spec.is_pretraining else 1200)
        seconds["first" if spec.is_pretraining else spec.condition.guidance] = summary["wall_seconds"]
    assert seconds["none"] > seconds["first"]
    for row in rows:
        assert float(row["seconds"]) == pytest.approx(seconds[row["guidance"]] - seconds["first"], abs=1e-3)
    assert ", 4 runs, " in (out / "report.md").read_text(), "with the one of pretraining"


@pytest.mark.process
def test_runs_whose_pretraining_failed_are_not_started(tmp_path: Path) -> None:
    path = write_study(tmp_path, PRETRAINED.replace("[1, 2]", "[1]").replace("--num-steps 8", "--num-steps 0"))
    with pytest.raises(ValueError, match="4 of 4 runs failed"):
        run(RunOptions(path, tmp_path / "runs"))
    _, *others = run_dirs(path)
    for run_dir in others:
        log = (tmp_path / "runs" / "logs" / f"{run_dir.name}.txt").read_text()
        assert "connect4_ppo_pretrain_seed1, which is not finished" in log
        assert not run_dir.exists()


@pytest.mark.process
@pytest.mark.train
def test_the_study_of_reuse_counts_the_questions_that_it_saves(tmp_path: Path) -> None:
    path = tmp_path / "reuse.toml"
    text = (ROOT / "experiments" / "configs" / "reuse.toml").read_text()
    assert '"dqn", "ppo"' in text
    text = text.replace('"dqn", "ppo"', '"ppo"').replace("num_evals = 4", "num_evals = 1").replace("= 100", "= 20")
    path.write_text(text.replace("1_000_000", "2_048").replace("300_000", "2_048").replace("[1, 2]", "[1]"))
    where = (str(path), "--output-dir", str(tmp_path / "runs"), "--envs", "connect4")
    for command in ("run", "report"):
        ended = program("experiments", command, *where)
        assert ended.returncode == 0, ended.stderr
    with (tmp_path / "runs" / "report" / "conditions.csv").open() as file:
        assert file.readline().startswith("# python -m experiments report")
        rows = {(row["variant"], row["reuse"]): row for row in csv.DictReader(file) if row["tutor"] != "none"}
    budgets = ("0", "3", "inf")
    assert list(rows) == [(variant, budget) for variant in ("", "no-symmetry") for budget in budgets]
    for variant in ("", "no-symmetry"):
        asked = [float(rows[variant, budget]["asked"]) for budget in budgets]
        hits = [float(rows[variant, budget]["hit_rate"]) for budget in budgets]
        assert asked[0] > asked[1] > asked[2] > 0
        assert 0 == hits[0] < hits[1] < hits[2]
    assert float(rows["no-symmetry", "inf"]["asked"]) > float(rows["", "inf"]["asked"])


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, BrokenPipeError])
def test_a_fork_server_that_was_killed_fails_one_run(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = RunOptions(write_study(tmp_path, ALONE), tmp_path / "runs").commands()[:2]
    started: list[RunCommand] = []

    def start(self: LocalPool, command: RunCommand) -> None:
        started.append(command)
        command.log_file().parent.mkdir(parents=True, exist_ok=True)
        raise error

    monkeypatch.setattr(LocalPool, "start", start)
    assert list(run_locally(commands, 1)) == [(one, 2) for one in commands]
    assert started == commands
    assert "could not be started" in commands[0].log_file().read_text()


def test_a_run_that_another_study_finishes_meanwhile_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one holds each run's directory when this one comes, and has finished it when this one ends."""
    options = RunOptions(write_study(tmp_path, ALONE), tmp_path / "runs")
    commands = options.commands()

    def refused(group: Sequence[RunCommand], jobs: int) -> Iterator[tuple[RunCommand, int]]:
        for number, one in enumerate(group):
            yield one, 2
            if number >= skipped:
                one.run_dir.mkdir(parents=True, exist_ok=True)
                (one.run_dir / "summary.json").write_text("{}")

    monkeypatch.setattr("experiments.runner.run_locally", refused)
    skipped = 1
    with pytest.raises(ValueError, match=f"1 of {len(commands)} runs failed"):
        run(options)
    skipped = 0
    run(options)
