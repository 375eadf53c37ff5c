"""Answers that 0.7.0 stored are found again: by the tutor that gave them, and by a recorded one."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.paths import GOLDEN
from tests.helpers.programs import program

pytestmark = pytest.mark.train

OLD = GOLDEN / "v0.7.0" / "advice.sqlite"  # 275 answers about Connect Four
RUN = (
    "--algo ppo --env connect4 --network mlp --hidden 32 32 --num-steps 16 --device cpu --num-envs 16 "
    "--total-steps 1024 --eval-episodes 8 --progress json --guidance override"
)


def test_scripted_tutor_finds_its_answers_of_0_7_0(tmp_path: Path) -> None:
    store = tmp_path / "advice.sqlite"
    shutil.copy(OLD, store)
    tutor = f"--tutor scripted --tutor-accuracy 0.8 --tutor-depth 2 --advice-store {store}"
    done = program("train.py", *RUN.split(), *tutor.split(), "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert '"asked": 0,' in done.stdout
    assert '"filled": 275,' in done.stdout


def test_recorded_tutor_repeats_answers_of_0_7_0(tmp_path: Path) -> None:
    store = tmp_path / "advice.sqlite"
    shutil.copy(OLD, store)
    done = program("train.py", *RUN.split(), "--tutor", f"recorded:{store}", "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert '"asked": 275,' in done.stdout
