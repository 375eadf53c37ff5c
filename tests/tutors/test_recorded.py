"""Tutors that repeat a store, against what was put into it: the same answers, no advice elsewhere, no network."""

import csv
import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import envs
from envs.base import State, select_rows
from tests.helpers.llm_tutors import positions_of
from tests.helpers.paths import ROOT
from tutors import TutorConfig, open_advisor
from tutors.base import Advice
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.recorded import RecordedTutor
from tutors.store import AdviceStore, database, identity_of

GAME = envs.make_game("connect4")
VIEW, STATE = positions_of("connect4")
LLAMA = {"tutor": "meta-llama/Llama", "template": "<s>{words}", "mode": "label", "permutations": 1, "calibrated": False}
SMALL = (
    "--env",
    "blackjack",
    "--total-steps",
    "4000",
    "--num-envs",
    "32",
    "--eval-episodes",
    "10",
    "--log-every",
    "640",
)


def record(path: Path, state: State, tutor: dict[str, object], view: PromptView = VIEW, seed: int = 0) -> Advice:
    """Put some answers about `state` into a store."""
    rows = len(view.key(state))
    probs = torch.rand(rows, len(view.labels), generator=torch.manual_seed(seed)).softmax(1)
    advice = Advice(probs, torch.ones(rows, dtype=torch.bool), torch.rand(rows))
    store = AdviceStore(path, identity_of(envs.make_game(view.game).spec, view, tutor))
    store.put(view.key(state), advice, [""] * rows)
    store.close()
    return advice


@contextmanager
def recorded_tutor(path: Path, who: str | None = None) -> Iterator[RecordedTutor]:
    tutor = RecordedTutor(str(path), GAME.spec, VIEW, who)
    try:
        yield tutor
    finally:
        tutor.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "advice.sqlite"


def no_network(*_args: object, **_kwargs: object) -> None:
    raise AssertionError("a recorded tutor asks nobody")


def test_recorded_answers_are_repeated_bit_by_bit_and_the_rest_is_counted_as_no_advice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = record(path, select_rows(STATE, torch.arange(7)), LLAMA)
    monkeypatch.setattr(socket, "socket", no_network)
    order = torch.tensor([9, 3, 0, 11, 3, 6])
    with recorded_tutor(path) as tutor:
        advice = tutor.advise(select_rows(STATE, order))
        assert tutor.advise(select_rows(STATE, order)).probs.equal(advice.probs)
        assert tutor.stats == {"asked": 12, "no_advice/not_recorded": 4}
        assert tutor.report() == {}
    is_known = order < 7
    assert advice.valid.equal(is_known)
    assert advice.probs[is_known].equal(known.probs[order[is_known]])
    assert advice.label_mass[is_known].equal(known.label_mass[order[is_known]])
    assert not advice.probs[~is_known].any()


def test_it_answers_under_the_identity_of_the_recording(path: Path) -> None:
    record(path, STATE, LLAMA)
    with recorded_tutor(path) as tutor:
        assert tutor.identity == LLAMA
        assert tutor.name == "recorded"


def test_store_of_two_tutors_requires_the_name_of_one(path: Path) -> None:
    first = record(path, STATE, LLAMA, seed=1)
    second = record(path, STATE, LLAMA | {"tutor": "Qwen", "permutations": 7}, seed=2)
    with pytest.raises(ValueError, match="--tutor-model") as error, recorded_tutor(path):
        pass
    assert "meta-llama/Llama (calibrated False, mode label, permutations 1)" in str(error.value)
    assert "Qwen (calibrated False, mode label, permutations 7)" in str(error.value)
    for who, advice in (("Llama", first), ("Qwen", second), ("permutations 7", second)):
        with recorded_tutor(path, who) as tutor:
            assert tutor.advise(STATE).probs.equal(advice.probs)
    for who in ("gemma", "mode label", ""):
        with pytest.raises(ValueError, match="--tutor-model"), recorded_tutor(path, who):
            pass


@pytest.mark.parametrize("view", [make_view(envs.make_game("snake"), "full"), make_view(envs.make_game("blackjack"))])
def test_answers_about_another_game_are_refused_and_named(path: Path, view: PromptView) -> None:
    record(path, positions_of(view.game, view.name)[1], LLAMA, view)
    with (
        pytest.raises(ValueError, match=f"no answers about connect4 board, only {view.game} {view.name}"),
        recorded_tutor(path),
    ):
        pass


def test_answers_in_another_view_or_to_other_prompts_are_refused(path: Path) -> None:
    full, state = positions_of("snake", "full")
    record(path, state, LLAMA, full)
    snake = envs.make_game("snake")
    with pytest.raises(ValueError, match="no answers about snake local, only snake full"):
        RecordedTutor(str(path), snake.spec, make_view(snake, "local"))
    reworded = make_view(snake, "full")
    reworded.instructions += " "
    with pytest.raises(ValueError, match="no answers about snake full"):
        RecordedTutor(str(path), snake.spec, reworded)


def test_a_store_without_an_answer_is_refused(path: Path) -> None:
    AdviceStore(path, identity_of(GAME.spec, VIEW, LLAMA)).close()
    with pytest.raises(ValueError, match="no answers about connect4 board, only none"), recorded_tutor(path):
        pass


def a_text(path: Path) -> None:
    path.write_text("this is no database " * 100)


def a_folder(path: Path) -> None:
    path.mkdir()


def another_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE cats (name TEXT)")
    connection.close()


@pytest.mark.parametrize("make", [lambda path: None, a_text, a_folder, another_database])
def test_file_that_is_no_store_is_refused_by_name_and_left_alone(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    was = path.read_bytes() if path.is_file() else path.exists()
    with pytest.raises(ValueError, match=r"advice\.sqlite") as error, recorded_tutor(path):
        pass
    assert "\n" not in str(error.value)
    if make is a_text:
        assert path.read_bytes() == was
    if was is False:
        assert not path.exists(), "a store that is not there is not made"


def test_store_lost_in_mid_run_is_no_advice(path: Path) -> None:
    record(path, STATE, LLAMA)
    with recorded_tutor(path) as tutor:
        with tutor.store.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE answers")
        advice = tutor.advise(STATE)
        assert not advice.valid.any()
        assert tutor.stats == {"asked": 12, "no_advice/store": 12}


def test_advisor_keeps_recorded_answers_in_the_store_of_the_run(path: Path, tmp_path: Path) -> None:
    known = record(path, STATE, LLAMA)
    run = tmp_path / "run"
    run.mkdir()
    with open_advisor(TutorConfig(tutor=f"recorded:{path}"), GAME, 0, run, "cpu") as advisor:
        advice = advisor.advise(STATE, torch.ones(12, dtype=torch.bool))
        advisor.advise(STATE, torch.ones(12, dtype=torch.bool))
        assert advisor.tutor.stats["asked"] == 12
        assert advisor.store.count() == 12
    assert advice.probs.equal(known.probs)


@pytest.mark.process
def test_run_with_the_recorded_answers_of_another_is_the_same_run(tmp_path: Path) -> None:
    def train(name: str, tutor: str, *flags: str) -> tuple[list[tuple[str, str]], dict]:
        command = [sys.executable, "train.py", *SMALL, "--tutor", tutor, "--run-dir", str(tmp_path / name), *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        with (tmp_path / name / "metrics.csv").open() as file:
            rows = [dict(row) for row in csv.DictReader(file)]
        returns = [
            tuple(value for name, value in row.items() if name not in ("wall_seconds", "tag"))
            for row in rows
            if row["tag"] == "charts/episodic_return"
        ]
        return returns, json.loads((tmp_path / name / "summary.json").read_text())["tutor"]

    first, recorded = train("scripted", "scripted", "--tutor-accuracy", "0.8")
    store = tmp_path / "scripted" / "advice.sqlite"
    once, repeated = train("once", f"recorded:{store}")
    again, _ = train("again", f"recorded:{store}")
    assert len(once) > 2
    assert once == again == first, "a recorded answer is the answer"
    assert repeated["no_advice"] in ({}, {"not_recorded": 0})
    assert repeated["asked"] == recorded["asked"]
    refused = subprocess.run(
        [sys.executable, "train.py", "--env", "connect4", "--tutor", f"recorded:{store}"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "no answers about connect4 board, only blackjack table" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_store_that_is_locked_at_the_start_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than one connection waits; also where it is exported."""
    path = tmp_path / "advice.sqlite"
    store = AdviceStore(path, identity_of(GAME.spec, VIEW, LLAMA))
    store.put(
        VIEW.key(STATE),
        Advice(torch.ones(len(VIEW.key(STATE)), 7) / 7, *known(len(VIEW.key(STATE)))),
        VIEW.render(STATE),
    )
    store.close()
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.05)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("pragma locking_mode = exclusive")
    other.execute("begin exclusive")
    threading.Timer(1.0, other.close).start()
    began = time.monotonic()
    tutor = RecordedTutor(str(path), GAME.spec, VIEW)
    assert time.monotonic() - began > 0.5
    assert tutor.advise(STATE).valid.all()
    tutor.close()


def known(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of answers that are all there: that they are valid, and their label mass."""
    return torch.ones(rows, dtype=torch.bool), torch.ones(rows)
