"""`python -m tutors fill` against a scripted server, and against runs that use what it stored."""

import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import envs
from tests.helpers.commands import tutors
from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import serving
from train import train
from training.config import config_from_json, default_config
from training.student import load_agent
from tutors import TutorConfig
from tutors.__main__ import FillOptions, fill_store
from tutors.positions import NUM_ENVS, student_play
from tutors.prompts import make_view
from tutors.store import recorded_identities


def stored(path: Path) -> int:
    """How many answers there are, so far."""
    connection = sqlite3.connect(path)
    with suppress(sqlite3.OperationalError):
        return connection.execute("select count(*) from answers").fetchone()[0]
    return 0


def fill(path: Path, *flags: str) -> str:
    done = tutors("fill", "--advice-store", str(path), "--env", "blackjack", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
@pytest.mark.train
def test_small_game_is_asked_about_once(tmp_path: Path) -> None:
    path = tmp_path / "advice.sqlite"
    said = fill(path, "--tutor", "scripted")
    assert (
        "280 positions of blackjack table, all that play visited: 0 were stored, 280 of 280 were answered now" in said
    )
    assert "280 were stored, 0 of 0 were answered now" in fill(path, "--tutor", "scripted")
    flags = ["--env", "blackjack", "--tutor", "scripted", "--advice-store", str(path), "--total-steps", "4096"]
    folder = ["--run-dir", str(tmp_path / "run"), "--eval-episodes", "10"]
    done = subprocess.run(
        [sys.executable, "train.py", "--algo", "ppo", "--num-envs", "64", *flags, *folder],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tutor = json.loads((tmp_path / "run" / "summary.json").read_text())["tutor"]
    assert (tutor["filled"], tutor["asked"], tutor["hit_rate"]) == (280, 0, 1)


def test_answers_are_under_runs_where_no_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fill_store(FillOptions(env="blackjack", positions=3, tutoring=TutorConfig(tutor="scripted")))
    assert [one.name for one in tmp_path.iterdir()] == ["runs"]
    assert stored(tmp_path / "runs" / "advice.sqlite") == 3
    assert "all in runs/advice.sqlite" in said
    assert "answers are kept in runs/advice.sqlite" in capsys.readouterr().err


def test_served_model_is_asked_in_batches_and_its_cost_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "advice.sqlite"
    with serving() as server:
        flags = ("--tutor", "tiny", "--tutor-url", server.url)
        said = fill(path, *flags)
        prompts = [prompt for body in server.asked for prompt in body["prompt"] if "dealer" in prompt]
        fill(path, *flags)
        again = [prompt for body in server.asked for prompt in body["prompt"] if "dealer" in prompt]
    assert len(set(prompts)) >= 280
    assert len(again) - len(prompts) <= 2, "only the first question is asked again, to know the server"
    (one,) = json.loads(tutors("store", "info", str(path), "--json").stdout)
    assert one["answers"] == 280
    assert one["seconds"] > 0
    assert f"{round(one['prompt_tokens']):,} prompt tokens" in said


@pytest.mark.process
def test_terminated_fill_resumes(tmp_path: Path) -> None:
    path = tmp_path / "advice.sqlite"
    flags = ["--env", "connect4", "--tutor", "scripted", "--tutor-depth", "5", "--positions", "3000"]
    command = [sys.executable, "-m", "tutors", "fill", "--advice-store", str(path), *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        over = time.monotonic() + 120
        while not (path.exists() and stored(path)):
            assert time.monotonic() < over
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 143
    kept = stored(path)
    assert 1024 <= kept < 3000
    done = tutors(*command[3:])
    assert f"{kept:,} were stored, {3000 - kept:,} of" in done.stdout
    assert "3,000 positions of connect4 board, those visited most often" in done.stdout


def test_fill_of_a_run_asks_about_what_its_student_visits(tmp_path: Path) -> None:
    """By another tutor than the run's; one action in ten is any legal one, the others are the student's."""
    run, store = tmp_path / "run", tmp_path / "advice.sqlite"
    config = replace(
        default_config("dqn", "connect4"), total_steps=512, num_envs=64, eval_episodes=8, run_dir=run, device="cpu"
    )
    train(replace(config, agent=replace(config.agent, hidden=(16,), learning_starts=128, batch_size=32)))
    flags = ("--tutor", "scripted", "--positions", "200")
    line = tutors("fill", str(run), *flags, "--advice-store", str(store)).stdout
    assert "200 positions of connect4 board, those visited most often" in line
    assert "200 of 200 were answered now" in line
    assert stored(store) == 200
    agent = load_agent(run, config_from_json((run / "config.json").read_text()), "cpu")
    env = envs.make("connect4", NUM_ENVS, 5)
    play = student_play(agent.greedy)(env, make_view(env.game), 5)
    own = moves = 0
    for before, after in itertools.islice(itertools.pairwise(play), 40):
        expected = agent.greedy(*env.game.observe(before))
        disc = before["mine"] ^ after["mine"]
        goes_on = (before["mine"] & after["mine"] == before["mine"]) & (disc > 0)  # no fresh deal between the two
        own += int((goes_on & (disc >> 7 * expected & 63 > 0)).sum())
        moves += int(goes_on.sum())
    assert 0.85 < own / moves < 0.97, "nine in ten, and some of the others by chance"
    assert "name it with --advice-store" in tutors("fill", str(run), *flags).stderr


def test_fill_without_symmetry_has_an_identity_of_its_own(tmp_path: Path) -> None:
    views = []
    for flags in ((), ("--no-symmetry",)):
        store = tmp_path / f"{len(flags)}.sqlite"
        common = ("--env", "connect4", "--tutor", "scripted", "--tutor-depth", "1", "--positions", "20")
        assert tutors("fill", "--advice-store", str(store), *common, *flags).returncode == 0
        views += [identity["view"] for identity in recorded_identities(store)]
    symmetric, plain = (make_view(envs.make_game("connect4"), None, symmetry).name for symmetry in (True, False))
    assert views == [symmetric, plain]
    assert symmetric != plain


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "name it with --tutor"),
        (("--tutor", "scripted", "--positions", "0"), "at least 1"),
        (("--tutor", "scriptid"), "did you mean 'scripted'"),
        (("--tutor", "scripted", "--env", "blackjak"), "did you mean 'blackjack'"),
        (("--tutor", "scripted", "--view", "tabel"), "did you mean 'table'"),
        (("--tutor", "tiny", "--tutor-url", "http://127.0.0.1:9", "--tutor-wait", "0.1"), "no server answers"),
        (("--tutor", "tiny", "--tutor-url", "http://127.0.0.1:9", "--tutor-optional", "--tutor-wait", "0.1"),
         "answered none of 280 queries"),
    ],
)  # fmt: skip
def test_impossible_fill_is_refused_with_exit_code_2(flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = tutors("fill", "--advice-store", str(tmp_path / "advice.sqlite"), "--env", "blackjack", *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
