"""Each command that a program tells people to type is typed here, as it was printed."""

import ast
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.guidance import GuidanceConfig
from experiments.report import ReportOptions, report
from tests.helpers.paths import ROOT
from tests.helpers.programs import program
from tests.helpers.resumed_runs import resume, stop_half_way
from tests.helpers.small_runs import small_config
from tests.helpers.studies import ALONE, write_study
from train import train
from training import hints
from training.cli import parse
from training.config import COMMON_FLAGS, EXAMPLES, Config, defaults_from_flags
from training.flag_effects import check_effects
from tutors.config import TutorConfig

PROGRAMS = ("train.py", "evaluate.py", "training", "tutors", "experiments", "benchmarks", "agents", "envs")
QUOTED = {  # command lines in strings that nobody is told to type: what a rename or a report quotes
    *("python -m tutors report", "python -m tutors fill", "python -m tutors", "python -m tutors store"),
    *("python -m benchmarks ", "python "),
}


def typed(message: str) -> list[str]:
    """The arguments of the command at the end of a message, for this Python."""
    found = re.search(rf"{re.escape(hints.python())} (.+)$", message.strip())
    assert found is not None, message
    words = shlex.split(found[1])
    return words[1:] if words[0] == "-m" else words


def test_commands_name_this_python_and_work_in_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv/bin/python"))
    monkeypatch.chdir(ROOT)
    assert hints.command("train.py", "--run-dir", "a b") == ".venv/bin/python train.py --run-dir 'a b'"
    assert hints.install_command("-e", ".[study]") == ".venv/bin/python -m pip install -e '.[study]'"
    monkeypatch.chdir(tmp_path)
    assert hints.command("train.py") == f"{ROOT}/.venv/bin/python {ROOT}/train.py"
    assert hints.command("experiments", "run") == f"{ROOT}/.venv/bin/python -m experiments run"


@pytest.mark.process
@pytest.mark.parametrize("words", ["-m experiments", "-m benchmarks", "-m tutors store", "-m tutors.tiny", "train.py"])
def test_help_that_a_wrong_flag_points_to_is_there(words: str) -> None:
    done = subprocess.run(
        [sys.executable, *words.split(), "--nonsense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    pointed = re.search(r"(?:run|see) (.+ --help)", done.stdout + done.stderr)
    assert pointed is not None, done.stderr
    assert pointed[1].endswith(f"{words} --help")
    shown = subprocess.run(pointed[1], shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(f"usage: {pointed[1].removesuffix(' --help')} [-h]")


def test_commands_of_several_processes_start_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(hints, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2 train.py --resume runs/x"
    assert hints.train_command("--resume", "runs/x") == f"{hints.python()} {launch}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert hints.train_command("--resume", "runs/x") == "torchrun on each machine as before, with --resume runs/x"


def test_command_to_resume_says_which_urls_lack_their_passwords() -> None:
    url = "postgresql://me:canary@host/advice"
    config = Config(tutoring=TutorConfig(tutor=f"recorded:{url}", advice_store=url))
    assert hints.missing_passwords(config) == (", with --tutor and --advice-store given again: passwords are not kept")
    assert hints.missing_passwords(Config()) == ""


def test_no_other_file_writes_command_lines() -> None:
    """But docstrings, comments, help examples (printed with this Python), and cards, which are read elsewhere."""
    found = []
    for name in PROGRAMS:
        for path in (ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / name]:
            tree = ast.parse(path.read_text())
            lines = {id(one.value) for one in ast.walk(tree) if isinstance(one, ast.Expr)}
            cards = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name.endswith("_card")]
            lines |= {id(one) for card in cards for one in ast.walk(card)}
            for one in ast.walk(tree):
                if isinstance(one, ast.Constant) and isinstance(one.value, str) and id(one) not in lines:
                    is_example = one.value.startswith("  python ")
                    if re.search(r"\bpython (-m|\w+\.py|$)", one.value) and not is_example and one.value not in QUOTED:
                        found.append(f"{path}:{one.lineno}: {one.value}")
                    if re.search(r"(?<!-m )pip install", one.value):
                        found.append(f"{path}:{one.lineno}: {one.value}")
    assert not found


@pytest.mark.train
def test_stopped_run_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config("a2c", "connect4", tmp_path / "run", tutor="none")
    stop_half_way(config, monkeypatch, signal.SIGTERM)
    name, *flags = typed(next(line for line in capsys.readouterr().out.splitlines() if "to go on" in line))
    assert Path(name).name == "train.py"
    summary = train(parse(flags, Config, defaults=defaults_from_flags))
    assert summary["global_step"] == config.total_steps


@pytest.mark.train
@pytest.mark.parametrize("again", [{}, {"resume": True}])
def test_finished_run_says_how_to_train_on(again: dict[str, bool], tmp_path: Path) -> None:
    config = small_config("a2c", "connect4", tmp_path / "run", tutor="none")
    train(config)
    with pytest.raises(ValueError, match=r"holds a run already|has done") as refused:
        resume(config) if again else train(config)
    _, *flags = typed(str(refused.value))
    assert train(parse(flags, Config, defaults=defaults_from_flags))["global_step"] == 2 * config.total_steps


CHANGES: dict[str, dict[str, Any]] = {  # flags, and what the refusal offers: --force, --run-dir, or nothing
    "--total-steps 4096": {"offers": "--force"},
    "--gamma 0.5": {"offers": "--force"},
    "--seed 5": {"offers": "--force"},
    "--env-kwargs opponent=random": {"offers": "--force"},
    "--tutor none": {"offers": "--force"},
    "--reuse 3": {"offers": "--force"},
    "--trust gap": {"offers": "--force"},
    "--guidance distill": {"offers": "--force"},
    "--guidance shape": {"offers": "--run-dir"},
    "--query-strategy visited": {"offers": "--run-dir"},
    "--guidance hint": {"offers": None},
    "--algo ppo": {"offers": None},
    "--env blackjack": {"offers": None},
    "--num-envs 32": {"offers": None},
    "--hidden 8": {"offers": None},
    "--network conv": {"offers": None},
    "--buffer-size 9000": {"offers": None},
}


@pytest.mark.train
@pytest.mark.parametrize("flags", CHANGES)
def test_refusal_to_resume_offers_only_what_works(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("dqn", "connect4", tmp_path / "run")
    stop_half_way(replace(config, guiding=GuidanceConfig("margin", trust="none")), monkeypatch)
    args = ["--resume", str(config.run_dir), *flags.split()]
    ways = {"--force": ["--force"], "--run-dir": ["--run-dir", str(tmp_path / "other")]}
    with pytest.raises(ValueError, match=r"different settings|does not fit") as refused:
        train(parse(args, Config, defaults=defaults_from_flags))
    offered = CHANGES[flags]["offers"]
    assert [way for way in ways if way in str(refused.value)] == ([offered] if offered else [])
    if offered:
        assert train(parse([*args, *ways[offered]], Config, defaults=defaults_from_flags))["global_step"] >= 2048
    else:
        with pytest.raises(ValueError, match="does not fit"):
            train(parse([*args, "--force"], Config, defaults=defaults_from_flags))


def test_size_of_a_board_is_refused_without_offering_force(tmp_path: Path) -> None:
    config = small_config("ppo", "snake", tmp_path / "run", tutor="none")
    config.run_dir.mkdir()
    (config.run_dir / "config.json").write_text(config.to_json())
    with pytest.raises(ValueError, match=r"does not fit other settings: env_kwargs was .*size=6") as refused:
        resume(replace(config, env_kwargs=("size=6",)))
    assert "--force" not in str(refused.value)


@pytest.mark.process
@pytest.mark.train
def test_study_says_what_comes_next(tmp_path: Path) -> None:
    """The report of a study that has not run says how to run it, and the run how to report it."""
    path = write_study(tmp_path, ALONE)
    with pytest.raises(ValueError, match="no condition has all its runs") as refused:
        report(ReportOptions(path, output_dir=tmp_path / "runs", algos=("ppo",)))
    done = program(*typed(str(refused.value)))
    assert done.returncode == 0, done.stderr
    done = program(*typed(done.stdout))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "report" / "report.html").exists()


def test_examples_of_the_help_are_command_lines_of_this_python(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], Config, defaults=defaults_from_flags, common=COMMON_FLAGS, examples=EXAMPLES)
    lines = [line for line in capsys.readouterr().out.splitlines() if "train.py --" in line]
    assert len(lines) == len(EXAMPLES.splitlines()) == 3
    for line in lines:
        _, *flags = typed(line)
        if "--resume" not in flags:
            check_effects(parse(flags, Config, defaults=defaults_from_flags), flags)


@pytest.mark.process
def test_demo_says_how_to_see_the_curves() -> None:
    (tensorboard,) = [
        line for line in (ROOT / "experiments" / "demo.py").read_text().splitlines() if "--logdir" in line
    ]
    assert 'command("tensorboard.main", "--logdir", "runs")' in tensorboard
    done = program("tensorboard.main", "--version")
    assert done.returncode == 0, done.stderr
