"""A run that is stopped and resumed equals one that was not, bit by bit: weights, envs, table, counts and log."""

import contextlib
import csv
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train as train_program
from agents import AGENTS
from agents.guidance import METHODS, GuidanceConfig
from tests.helpers.processes import running, stop, until
from tests.helpers.programs import program
from tests.helpers.resumed_runs import HALF, assert_equal_runs, resume, stop_half_way
from tests.helpers.scripted_server import serving
from tests.helpers.small_runs import series, small_config, tensors_in
from tests.helpers.trust_runs import echo_config, trust_config
from train import Trainer, train
from training.checkpoint import complete_steps, load_checkpoint, save_checkpoint
from training.config import Config, config_from_json, default_config
from training.probe import Probe
from training.resume import differences, lock_run_dir
from training.state import Checkpointer
from training.stop_signal import REPEAT_SECONDS, Interruption, StopSignal
from training.timing import SectionTimer
from training.trust import NUM_UPDATES
from training.video import EpisodeRecorder
from tutors import TutorConfig
from tutors.base import TutorError
from tutors.scripted import ScriptedTutor

TIMES = ("seconds", "latency_ms")
ALONE = [name for name, method in METHODS.items() if not method.needs_episode_review]  # guidance without a review


def both_ways(config: Config, monkeypatch: pytest.MonkeyPatch, step: int = HALF) -> tuple[Path, Path]:
    """Train without a stop, and with one at an env step, half-way if not given; return both folders."""
    whole, parts = config, replace(config, run_dir=config.run_dir.with_name("parts"))
    expected = train(whole)
    stop_half_way(parts, monkeypatch, step=step)
    summary = resume(parts)
    for one in (expected, summary):
        for name in ("wall_seconds", "sps"):
            del one[name]
        if one["tutor"]:
            del one["tutor"]["seconds"]
    assert summary == expected
    return whole.run_dir, parts.run_dir


@pytest.mark.train
@pytest.mark.parametrize(("algo", "env"), [("dqn", "connect4"), ("ppo", "snake"), ("a2c", "blackjack")])
def test_resumed_run_equals_uninterrupted_one(
    algo: str, env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, Any] = {"reuse": 3, "tutor_accuracy": 0.8, "query_budget_per_step": 40, "query_budget": 900}
    config = small_config(algo, env, tmp_path / "whole", **limits)
    if env == "snake":
        config = replace(config, env_kwargs=("size=6", "time_limit=50"))
    assert_equal_runs(*both_ways(config, monkeypatch))


@pytest.mark.train
@pytest.mark.parametrize(
    ("algo", "tutoring", "options"),
    [
        ("dqn", {"tutor": "none"}, {}),
        ("ppo", {"query_strategy": "visited"}, {}),
        ("dqn", {"reuse": float("inf")}, {}),
        ("a2c", {"tutor": "none"}, {"env_kwargs": ("opponent=self", "refresh=1")}),
        pytest.param("ppo", {}, {"compile_mode": "compile"}, marks=pytest.mark.compile),
    ],
    ids=["untutored", "visited", "unlimited reuse", "self-play", "compiled"],
)
def test_resumed_run_of_each_kind_equals_uninterrupted_one(
    algo: str, tutoring: dict[str, Any], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(algo, "connect4", tmp_path / "whole", **tutoring)
    assert_equal_runs(*both_ways(replace(config, **options), monkeypatch))


@pytest.mark.train
@pytest.mark.parametrize("name", ALONE)
def test_resumed_run_with_each_guidance_equals_uninterrupted_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(METHODS[name].students[0], "connect4", tmp_path / "whole")
    assert_equal_runs(*both_ways(replace(config, guiding=GuidanceConfig(name, trust="none")), monkeypatch))


@pytest.mark.train
def test_checkpoint_with_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are missing, of another type, or of another shape; its digest is right."""
    config = small_config("a2c", "connect4", tmp_path / "run", tutor="none")
    stop_half_way(config, monkeypatch)
    folder = config.run_dir / "checkpoints"
    state = load_checkpoint(folder, "cpu")
    damages = [(name, None) for name in ("agent", "env", "updates", "seconds", "guided_from", "env_steps")]
    for name, value in [*damages, ("agent", {}), ("env", {"state": 3}), ("seconds", "1"), ("updates", [])]:
        damaged = dict(state)
        damaged |= {name: value}
        save_checkpoint(folder, HALF, damaged)
        with pytest.raises(ValueError, match=r"the checkpoint of .* is of another kind"):
            resume(config)


@pytest.mark.train
@pytest.mark.parametrize("algo", AGENTS)
def test_resumed_run_with_trust_equals_uninterrupted_one(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it is not clear yet who is better."""
    config = small_config(algo, "connect4", tmp_path / "whole", tutor_accuracy=0.8)
    whole, parts = both_ways(replace(config, guiding=GuidanceConfig()), monkeypatch)
    assert_equal_runs(whole, parts)
    assert load_checkpoint(parts / "checkpoints", "cpu")["trust"]["gates"][0]["tutor"][0] > 0


def values_at_saves(name: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list that gets what trust has under that name at each checkpoint from now on."""
    values: list[float] = []
    save = Checkpointer.save

    def saved(self: Checkpointer, state: Any, *args: Any, **options: Any) -> None:
        values.append(getattr(state.trust, name))
        save(self, state, *args, **options)

    monkeypatch.setattr(Checkpointer, "save", saved)
    return values


@pytest.mark.train
@pytest.mark.parametrize("algo", AGENTS)
def test_resumed_run_whose_tutor_is_trusted_equals_uninterrupted_one(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trust is above 0 when the run stops, and the student was pretrained."""
    config = replace(echo_config(algo, tmp_path / "whole", GuidanceConfig(pretrain_updates=2)), total_steps=16_384)
    values = values_at_saves("value", monkeypatch)
    step = 1536 if algo == "dqn" else HALF  # the Echo game is soon learned
    assert_equal_runs(*both_ways(config, monkeypatch, step))
    _, stopped, _ = values  # of the whole run, of the first part and of the second
    assert stopped > 0


@pytest.mark.train
def test_killed_run_logs_each_step_once_after_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged after the last checkpoint is logged once, in TensorBoard's events and in metrics.csv."""
    whole = small_config("a2c", "connect4", tmp_path / "whole", tutor="none")
    train(whole)
    killed = replace(whole, run_dir=tmp_path / "killed", save_minutes=0.0)
    evaluate = Trainer.report

    class KilledError(Exception):
        pass

    def kill(self: Trainer, stats: Any) -> None:
        evaluate(self, stats)
        if self.state.global_step == 1536:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "report", kill)
        due = iter([False, True])
        patch.setattr(Checkpointer, "is_due", lambda self: next(due, False))
        with pytest.raises(KilledError):
            train(killed)
    saved = complete_steps(killed.run_dir / "checkpoints")
    assert max(series(killed.run_dir, "losses/entropy")) == 1536 > max(saved), "more is logged than saved"
    with (killed.run_dir / "metrics.csv").open("a") as file:
        file.write("2048,1.0,losses/ent")  # a line that was cut short
    resume(killed)
    assert_equal_runs(whole.run_dir, killed.run_dir)
    for tag in ("losses/entropy", "charts/episodic_return"):
        events = EventAccumulator(str(killed.run_dir)).Reload().Scalars(tag)
        assert [event.step for event in events] == sorted(series(whole.run_dir, tag))
    with (killed.run_dir / "metrics.csv").open() as file:
        seconds = [float(row["wall_seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)


@pytest.mark.train
def test_action_counts_before_a_stop_are_in_the_next_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(small_config("ppo", "connect4", tmp_path / "whole"), log_every=1500)
    folders = both_ways(config, monkeypatch)
    assert_equal_runs(*folders)
    for who in ("student", "tutor"):
        events = [EventAccumulator(str(folder), {"histograms": 0}).Reload() for folder in folders]  # 0: all of them
        logs = [one.Histograms(f"policy/actions_{who}") for one in events]
        whole, parts = ([(one.step, one.histogram_value) for one in log] for log in logs)
        assert whole == parts
        ((step, counts),) = whole
        assert step == 1536 > HALF
        assert who == "tutor" or sum(counts.bucket) == 1536


@pytest.mark.train
def test_other_settings_are_refused_without_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("a2c", "connect4", tmp_path / "run", tutor="none")
    stop_half_way(config, monkeypatch)
    other = replace(config, agent=replace(config.agent, gamma=0.5), total_steps=4096, log_every=512)
    message = r"different settings: total_steps was 2048, is 4096; agent\.gamma was .*, is 0\.5\. Pass --force"
    with pytest.raises(ValueError, match=message) as refused:
        resume(other)
    assert "log_every" not in str(refused.value), "that changes nothing of what is learned"
    assert resume(other, force=True)["global_step"] == 4096
    assert json.loads((tmp_path / "run" / "config.json").read_text())["agent"]["gamma"] == 0.5
    with pytest.raises(ValueError, match=r"has done 4,096 of 4,096 steps; to train on: .* --total-steps 8192 --force$"):
        resume(replace(other, log_every=512))


@pytest.mark.train
def test_new_run_begins_with_another_runs_student(tmp_path: Path) -> None:
    first = small_config("ppo", "connect4", tmp_path / "first", tutor="none")
    train(first)
    folder = tmp_path / "second"
    config = replace(first, run_dir=folder, resume=first.run_dir, total_steps=4096, tutoring=TutorConfig("scripted"))
    assert train(config)["global_step"] == 4096
    consult = series(folder, "tutor/consult_probability")
    assert min(consult) > 2048, "its log is its own"
    assert consult[4096] == pytest.approx(0.1), "its schedules begin where it begins"
    assert consult[min(consult)] == pytest.approx(1 - 0.9 * (min(consult) - 2048) / 1024, abs=1e-6)
    assert json.loads((folder / "config.json").read_text())["resume"] == str(first.run_dir)
    assert load_checkpoint(first.run_dir / "checkpoints", "cpu")["global_step"] == 2048, "the first is as it was"


@pytest.mark.train
@pytest.mark.parametrize("name", [name for name in ALONE if "dqn" in METHODS[name].students])
def test_transitions_of_an_untutored_student_have_no_advice(name: str, tmp_path: Path) -> None:
    first = small_config("dqn", "connect4", tmp_path / "first", tutor="none")
    train(first)
    config = replace(first, run_dir=tmp_path / "second", resume=first.run_dir, total_steps=2560)
    config = replace(config, tutoring=TutorConfig("scripted"), guiding=GuidanceConfig(name, trust="none"))
    if name == "hint":  # its network has more inputs than the first one's
        with pytest.raises(ValueError, match=r"does not fit other settings: guidance was override, is hint"):
            train(config)
        return
    assert train(config)["global_step"] == 2560
    time_steps = 2048 // first.num_envs
    replay = load_checkpoint(tmp_path / "second" / "checkpoints", "cpu")["agent"]["replay"]
    assert bool(len(replay["advice"])) == METHODS[name].stores_advice
    if METHODS[name].stores_advice:
        assert not replay["advice"][:time_steps].any()
        assert not replay["followed"][:time_steps].any()
        assert replay["advice"][time_steps : int(replay["num_added"])].any()


@pytest.mark.train
@pytest.mark.parametrize("change", [{"env": "blackjack"}, {"algo": "dqn"}])
def test_student_of_another_kind_cannot_be_resumed(change: dict[str, Any], tmp_path: Path) -> None:
    first = small_config("ppo", "connect4", tmp_path / "first", tutor="none")
    train(first)
    other = small_config(change.get("algo", "ppo"), change.get("env", "connect4"), tmp_path / "second", tutor="none")
    with pytest.raises(ValueError, match=r"does not fit other settings: (env|algo) was .*without --resume$"):
        train(replace(other, resume=first.run_dir, total_steps=4096))


@pytest.mark.train
def test_run_stopped_before_its_last_evaluation_ends_with_one(tmp_path: Path) -> None:
    config = small_config("ppo", "connect4", tmp_path / "run", tutor="none")
    summary = train(config)
    with pytest.raises(ValueError, match="has done"):
        resume(config)
    (config.run_dir / "summary.json").unlink()
    again = resume(config)
    assert again["global_step"] == summary["global_step"]
    assert again["eval"] == summary["eval"]
    assert (config.run_dir / "summary.json").exists()


@pytest.mark.process
def test_second_process_in_a_run_dir_is_refused(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path), pytest.raises(ValueError, match="another process trains in"), lock_run_dir(tmp_path):
        pass
    with lock_run_dir(tmp_path):
        done = program("train.py", "--total-steps", "4000", "--run-dir", str(tmp_path))
    assert done.returncode == 2
    assert "another process trains in" in done.stderr


def test_error_in_a_locked_run_dir_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), lock_run_dir(tmp_path):
        raise OSError("mine")


def test_second_signal_ends_at_once_and_says_what_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes with the first does not: a parent's death is told once for each of the parent's threads."""
    before = signal.getsignal(signal.SIGINT)
    saved = Checkpointer(Path("runs/x"), 1.0, SectionTimer())
    assert saved.loss(1200) == "there is no checkpoint yet: all 1,200 env steps are lost"
    saved.saved_step = 1000
    with StopSignal(lambda: saved.loss(1200)) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGINT
        monkeypatch.setattr(stop, "came_at", stop.came_at - REPEAT_SECONDS)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    said = capsys.readouterr().err
    assert "once more to stop at once, without" in said
    assert "lost are the 200 env steps since the checkpoint of 1,000" in said
    assert signal.getsignal(signal.SIGINT) == before


def kill_and_go_on(*args: Any, **options: Any) -> None:
    """Get SIGTERM, and do not end by itself: what a user does who waits for work that takes too long."""
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        time.sleep(0.01)


@pytest.mark.train
@pytest.mark.parametrize("name", ["evaluate_student", "contact_sheet"])
@pytest.mark.parametrize("at", [HALF, 2048])
def test_signal_in_an_evaluation_ends_it_at_once(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one during the run, and in the last; the run that resumes equals one that was not stopped."""
    whole = replace(small_config("ppo", "connect4", tmp_path / "whole", tutor="none"), eval_every=at)
    expected = train(whole)
    parts = replace(whole, run_dir=tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(train_program if name == "evaluate_student" else EpisodeRecorder, name, kill_and_go_on)
        with pytest.raises(SystemExit) as ended:
            train(parts)
    assert ended.value.code == 143
    assert load_checkpoint(parts.run_dir / "checkpoints", "cpu")["global_step"] == at
    assert not (parts.run_dir / "summary.json").exists()
    assert resume(parts)["eval"] == expected["eval"]
    saved = [load_checkpoint(run_dir / "checkpoints", "cpu") for run_dir in (whole.run_dir, parts.run_dir)]
    assert all(left.equal(right) for left, right in zip(*map(tensors_in, saved), strict=True))


@pytest.mark.train
@pytest.mark.parametrize("probes", [0, 1])
def test_signal_in_a_probe_ends_it_at_once(probes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the update of trust had done before is undone."""
    whole = replace(small_config("ppo", "connect4", tmp_path / "whole"), guiding=GuidanceConfig())
    train(whole)
    parts = replace(whole, run_dir=tmp_path / "parts")
    play, played = Probe.play, []

    def stopped(self: Probe, *args: Any) -> Any:
        played.append(args)
        return kill_and_go_on() if len(played) > probes else play(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Probe, "play", stopped)
        with pytest.raises(SystemExit) as ended:
            train(parts)
    assert ended.value.code == 143
    saved = load_checkpoint(parts.run_dir / "checkpoints", "cpu")
    assert saved["global_step"] == saved["trust"]["probe_steps"] == 0
    resume(parts)
    tensors = [tensors_in(load_checkpoint(one.run_dir / "checkpoints", "cpu")["agent"]) for one in (whole, parts)]
    assert all(left.equal(right) for left, right in zip(*tensors, strict=True))


def test_env_that_catches_all_exceptions_does_not_stop_an_interruption() -> None:
    with StopSignal() as stop, pytest.raises(Interruption), stop.interrupting(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGINT)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interruption), stop.interrupting():
            raise AssertionError("what comes after a signal does not begin")


@pytest.mark.process
def test_signal_in_an_evaluation_that_is_slow(tmp_path: Path) -> None:
    """Each time step of the evaluation takes 0.64 s, and 1,000 are to come."""
    flags = (
        "--algo ppo --env gym:tests.helpers.odd_envs:Endless-v0 --env-kwargs seconds=0.01 --num-envs 8 --num-steps 8"
    )
    flags += f" --total-steps 100000 --eval-every 64 --eval-episodes 64 --hidden 8 --run-dir {tmp_path / 'run'}"
    with running("train", *flags.split()) as process:
        until((tmp_path / "run" / "config.json").exists)
        time.sleep(3)  # 64 env steps of training take 0.6 s
        began = time.monotonic()
        assert stop(process, signal.SIGTERM) == 143
        assert time.monotonic() - began < 5
    assert load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")["global_step"] == 64


def test_differences_name_the_settings() -> None:
    one = default_config("ppo", "connect4")
    other = replace(one, seed=7, tutoring=replace(one.tutoring, reuse=3.0, tutor_wait=1.0), device="cuda")
    assert differences(one, one) == []
    assert differences(one, other) == ["seed was 1, is 7", "tutoring.reuse was inf, is 3.0"]


def test_differences_do_not_show_passwords() -> None:
    url = "postgresql://me:secret@host/advice"
    tutoring = replace(default_config("ppo", "connect4").tutoring, tutor=f"recorded:{url}", advice_store=url)
    config = replace(default_config("ppo", "connect4"), tutoring=tutoring)
    saved = config_from_json(config.to_json())
    assert differences(saved, config) == []
    elsewhere = replace(tutoring, tutor="tiny", advice_store=url.replace("host", "other"))
    assert differences(saved, replace(config, tutoring=elsewhere)) == [
        "tutoring.tutor was recorded:postgresql://me:***@host/advice, is tiny",
        "tutoring.advice_store was postgresql://me:***@host/advice, is postgresql://me:***@other/advice",
    ]


@pytest.mark.process
def test_resume_as_typed(tmp_path: Path) -> None:
    """The flags of a run that resumes are its own."""
    folder = str(tmp_path / "run")
    flags = "--total-steps 4000 --num-envs 64 --eval-episodes 64 --log-every 640 --learning-starts 640 --hidden 32"
    assert program("train.py", *flags.split(), "--run-dir", folder).returncode == 0
    for more, code, words in (
        ((), 2, "has done 4,032 of 4,000 steps"),
        (("--total-steps", "5000"), 2, "total_steps was 4000, is 5000"),
        (("--total-steps", "5000", "--force"), 0, ""),
        (("--total-steps", "6000", "--run-dir", str(tmp_path / "other")), 0, ""),
    ):
        done = program("train.py", "--resume", folder, *more)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
    done = program("train.py", "--resume", str(tmp_path / "nothing"))
    assert (done.returncode, "is no run directory" in done.stderr) == (2, True)


def gone_server(config: Config) -> Config:
    """The same run, whose tutor's server does not answer."""
    tutoring = TutorConfig("tiny", tutor_url=("http://127.0.0.1:9",), tutor_wait=0.0)
    return replace(config, tutoring=tutoring)


def broken_store(config: Config) -> Config:
    """The same run, whose store is no database."""
    path = config.run_dir.with_name("diary")
    path.write_text("dear diary" * 100)
    return replace(config, tutoring=TutorConfig("scripted", advice_store=str(path)))


FAILURES: dict[str, Any] = {"server": gone_server, "store": broken_store, "memory": replace, "signal": replace}


@pytest.mark.train
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("there_before", [None, "notes.txt"])
def test_start_that_fails_leaves_the_folder_as_it_was(
    failure: str, there_before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FAILURES[failure](small_config("ppo", "connect4", tmp_path / "run"))
    if there_before is not None:
        config.run_dir.mkdir()
        (config.run_dir / there_before).write_text("mine")

    def fail(self: Trainer) -> None:
        raise {"memory": MemoryError, "signal": SystemExit}[failure]

    if failure in ("memory", "signal"):
        monkeypatch.setattr(Trainer, "compile", fail)  # the last thing before the run begins
    with pytest.raises((ValueError, TutorError, MemoryError, SystemExit)):
        train(config)
    names = {path.name for path in tmp_path.rglob("*") if path.name != "diary"}
    assert names == (set() if there_before is None else {"run", there_before})


@pytest.mark.train
def test_start_of_a_resumed_run_that_fails_keeps_the_run(tmp_path: Path) -> None:
    config = small_config("ppo", "connect4", tmp_path / "run", tutor="none")
    train(config)
    before = sorted(path.name for path in config.run_dir.iterdir())
    with pytest.raises(TutorError):
        resume(gone_server(config), force=True, total_steps=9000)
    assert set(before) <= {path.name for path in config.run_dir.iterdir()}


@pytest.mark.train
def test_run_says_when_it_begins_that_it_is_too_short_but_not_when_it_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config("dqn", "connect4", tmp_path / "run", tutor="none")
    config = replace(config, agent=replace(config.agent, learning_starts=9000))
    stop_half_way(config, monkeypatch)
    assert "too short to learn: dqn begins to learn after --learning-starts 9,000" in capsys.readouterr().out
    resume(config)
    assert "too short" not in capsys.readouterr().out


def stopped_in_call(owner: type, name: str, number: int, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call of a method do something else, once, in place of itself or before."""
    method, calls = getattr(owner, name), []

    def called(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            act()
        return method(self, *args)

    monkeypatch.setattr(owner, name, called)


def both_ways_in(
    owner: type, name: str, number: int, act: Any, config: Config, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """Train without a stop, and with one in a call of a method; return both folders."""
    whole, parts = config, replace(config, run_dir=config.run_dir.with_name("parts"))
    train(whole)
    with monkeypatch.context() as patch:
        stopped_in_call(owner, name, number, act, patch)
        with pytest.raises(SystemExit) as ended:
            train(parts)
    assert ended.value.code == 143
    resume(parts)
    return whole.run_dir, parts.run_dir


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.train
@pytest.mark.parametrize("algo", AGENTS)
def test_run_that_is_stopped_in_pretraining_equals_an_uninterrupted_one(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops after that update on the tutor's probe episodes, and does not play them again.

    Their env steps are more than those after which trust is decided anew, and as many as those after which is logged.
    """
    config = replace(trust_config(algo, tmp_path / "tried"), guiding=GuidanceConfig(pretrain_updates=9))
    with monkeypatch.context() as patch:
        stopped_in_call(AGENTS[algo][0], "pretrain", 3, terminate, patch)
        with pytest.raises(SystemExit):
            train(config)
    probe_steps = load_checkpoint(config.run_dir / "checkpoints", "cpu")["global_step"]
    assert probe_steps > config.total_steps // NUM_UPDATES
    config = replace(config, run_dir=tmp_path / "whole", log_every=probe_steps)
    left = values_at_saves("pretrain_left", monkeypatch)
    assert_equal_runs(*both_ways_in(AGENTS[algo][0], "pretrain", 3, terminate, config, monkeypatch))
    _, stopped, _ = left  # of the whole run, of the first part and of the second
    assert stopped > 0


@pytest.mark.train
@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize("call", [3, 8, 13])  # of 8 in a rollout, 4 rollouts in all
def test_run_that_is_stopped_in_a_rollout_equals_an_uninterrupted_one(
    algo: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, Any] = {"reuse": 3, "tutor_accuracy": 0.8, "query_budget_per_step": 40, "query_budget": 900}
    config = replace(small_config(algo, "connect4", tmp_path / "whole", **limits), guiding=GuidanceConfig())
    whole, parts = both_ways_in(Trainer, "rollout_step", call, terminate, config, monkeypatch)
    assert_equal_runs(whole, parts)


@pytest.mark.train
@pytest.mark.parametrize("algo", AGENTS)
@pytest.mark.parametrize("tutoring", [{"query_strategy": "visited"}, {"query_budget": 700}], ids=["visited", "budget"])
def test_run_that_is_stopped_while_its_tutor_is_asked_equals_an_uninterrupted_one(
    algo: str, tutoring: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(algo, "connect4", tmp_path / "whole", **tutoring)
    config = replace(config, guiding=GuidanceConfig("override", trust="none"))
    monkeypatch.setattr(ScriptedTutor, "takes_long", True)
    whole, parts = both_ways_in(ScriptedTutor, "advise", 5, kill_and_go_on, config, monkeypatch)
    saved = [load_checkpoint(run_dir / "checkpoints", "cpu") for run_dir in (whole, parts)]
    for name in ("agent", "env", "query_strategy", "query_budget", "lookups", "action_counts", "agreement"):
        ours, theirs = (tensors_in(one["advisor"][name] if name == "lookups" else one[name]) for one in saved)
        assert all(left.equal(right) for left, right in zip(ours, theirs, strict=True)), name
    assert series(whole, "tutor/consulted") == series(parts, "tutor/consulted")


@pytest.mark.train
@pytest.mark.parametrize("algo", AGENTS)
def test_run_in_a_gymnasium_env_that_is_stopped_in_a_step_can_be_resumed(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its env cannot be saved: what was not learned from is dropped."""
    config = small_config(algo, "gym:CartPole-v1", tmp_path / "run", tutor="none")
    with monkeypatch.context() as patch:
        stopped_in_call(CartPoleEnv, "step", 64 * 11 + 5, kill_and_go_on, patch)
        with pytest.raises(SystemExit) as ended:
            train(config)
    assert ended.value.code == 143
    saved = load_checkpoint(config.run_dir / "checkpoints", "cpu")
    assert (saved["global_step"], int(saved["agent"]["steps"])) == (64 * 11, 11)
    assert resume(config)["global_step"] >= 2048


@pytest.mark.process
@pytest.mark.parametrize("slow", ["env", "tutor"])
def test_signal_ends_a_slow_time_step_within_seconds(slow: str, tmp_path: Path) -> None:
    """A time step of the env takes 32 s; the tutor's server answers the first questions alone."""
    flags = f"--algo ppo --num-envs 64 --num-steps 512 --hidden 8 --eval-episodes 8 --run-dir {tmp_path / 'run'}"
    asked = threading.Event()
    with serving() as server:
        if slow == "env":
            flags += " --env gym:tests.helpers.odd_envs:Endless-v0 --env-kwargs seconds=0.5 --total-steps 100000"
        else:
            flags += f" --env connect4 --tutor tiny --tutor-url {server.url} --trust none"

            def misbehave(handler: Any, body: dict[str, Any]) -> bool:
                if len(body["prompt"]) < 8:
                    return False
                asked.set()
                time.sleep(20)
                return False

            server.misbehave = misbehave
        with running("train", *flags.split()) as process:
            until((tmp_path / "run" / "config.json").exists if slow == "env" else asked.is_set)
            time.sleep(2)
            began = time.monotonic()
            assert stop(process, signal.SIGTERM) == 143
            assert time.monotonic() - began < 15  # much less where the machine is idle
    saved = load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")
    assert saved["global_step"] == 64 * int(saved["agent"]["steps"])
