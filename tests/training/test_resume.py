"""A run that stops and goes on is the run that never stopped: weights, games, table, counts and log, to the bit."""

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import AGENTS
from agents.guidance import METHODS, GuidanceConfig
from agents.guidance.demonstrate import NOBODY
from tests.helpers.programs import program
from tests.integration.test_programs import SMALL
from tests.integration.test_query import config_of, metrics, tensors
from train import Trainer, train
from training.checkpoint import load_checkpoint, steps_in
from training.config import Config, config_from_json, tuned
from training.resume import Stop, differences, lock_run_dir
from tutors import TutorConfig

HALF = 1024


def stopped(config: Config, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Train, and be told to stop half-way."""
    refresh = Trainer.refresh_opponent

    def told(self: Trainer) -> None:
        refresh(self)
        if self.global_step == HALF:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "refresh_opponent", told)
        with pytest.raises(SystemExit) as ended:
            train(config)
    assert ended.value.code == 128 + number
    assert load_checkpoint(config.run_dir / "checkpoints", "cpu")["global_step"] == HALF


def again(config: Config, **told: Any) -> dict[str, Any]:
    """Go on with a run."""
    return train(replace(config, run_dir=None, resume=config.run_dir, **told))


def both_ways(config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Train in one go, and with a stop half-way; return both folders."""
    whole, parts = config, replace(config, run_dir=config.run_dir.with_name("parts"))
    expected = train(whole)
    stopped(parts, monkeypatch)
    summary = again(parts)
    for told in (expected, summary):
        for name in ("wall_seconds", "sps"):
            del told[name]
        if told["tutor"]:
            del told["tutor"]["seconds"]
    assert summary == expected
    return whole.run_dir, parts.run_dir


def agree(one: Path, other: Path) -> None:
    """Everything that was saved and logged, but times."""
    saved = [load_checkpoint(folder / "checkpoints", "cpu") for folder in (one, other)]
    for state in saved:
        if state["desk"] is not None:
            del state["desk"]["sums"]["seconds"]
            for name in ("seconds", "latency_ms"):
                state["desk"]["reported"].pop(name, None)
    assert plain(saved[0]) == plain(saved[1])
    ours, theirs = tensors(saved[0]), tensors(saved[1])
    assert len(ours) > 10
    assert all(one.equal(other) for one, other in zip(ours, theirs, strict=True))
    assert metrics(one) == metrics(other)
    lines = [set(map(tuple, metrics(folder))) for folder in (one, other)]
    assert len(lines[0]) == len(metrics(one)), "no line twice"


def plain(state: Any) -> Any:
    """What of a state is no tensor, but times."""
    if isinstance(state, dict):
        return {name: plain(part) for name, part in state.items() if name != "seconds" and not torch.is_tensor(part)}
    return state


@pytest.mark.parametrize("game", ["blackjack", "snake", "connect4"])
@pytest.mark.parametrize("algo", AGENTS)
def test_a_run_that_stopped_half_way_is_the_run_that_did_not(
    algo: str, game: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {"reuse": 3, "tutor_accuracy": 0.8, "ask_per_step": 40, "ask_budget": 900}
    config = config_of(algo, game, tmp_path / "whole", **told)
    if game == "snake":
        config = replace(config, env_kwargs=("size=6", "time_limit=50"))
    agree(*both_ways(config, monkeypatch))


@pytest.mark.parametrize(
    ("algo", "told", "flags"),
    [
        ("dqn", {"tutor": "none"}, {}),
        ("ppo", {"asking": "visited"}, {}),
        ("dqn", {"reuse": float("inf")}, {}),
        ("a2c", {"tutor": "none"}, {"env_kwargs": ("opponent=self", "refresh=1")}),
        ("ppo", {}, {"compile_mode": "compile"}),
    ],
)
def test_so_is_one_of_another_kind(
    algo: str, told: dict[str, Any], flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(*both_ways(replace(config_of(algo, "connect4", tmp_path / "whole", **told), **flags), monkeypatch))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.pauses])
def test_so_is_one_with_every_guidance(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(METHODS[name].students[0], "connect4", tmp_path / "whole")
    agree(*both_ways(replace(config, guiding=GuidanceConfig(name)), monkeypatch))


def test_curves_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed run had logged after its last checkpoint is logged once, on TensorBoard and in metrics.csv."""
    whole = config_of("a2c", "connect4", tmp_path / "whole", tutor="none")
    train(whole)
    killed = replace(whole, run_dir=tmp_path / "killed", save_minutes=0.0)
    save = Trainer.is_time_to_save

    class KilledError(Exception):
        pass

    def once(self: Trainer) -> bool:
        if self.global_step == 1536:
            raise KilledError
        return save(self) and self.global_step == HALF

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "is_time_to_save", once)
        with pytest.raises(KilledError):
            train(killed)
    logged = [int(step) for step, tag, _ in metrics(killed.run_dir) if tag == "losses/entropy"]
    assert max(logged) == 1536, "there is more in the log than in the checkpoint"
    assert steps_in(killed.run_dir / "checkpoints") == [HALF]
    with (killed.run_dir / "metrics.csv").open("a") as file:
        file.write("2048,1.0,losses/ent")  # a line that was cut short
    again(killed)
    agree(whole.run_dir, killed.run_dir)
    for tag in ("losses/entropy", "charts/episodic_return"):
        events = EventAccumulator(str(killed.run_dir)).Reload().Scalars(tag)
        steps = [event.step for event in events]
        assert steps == sorted(set(steps)) == [int(step) for step, name, _ in metrics(whole.run_dir) if name == tag]
    with (killed.run_dir / "metrics.csv").open() as file:
        seconds = [float(row["wall_seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)


def test_actions_counted_before_a_stop_are_in_the_next_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config_of("ppo", "connect4", tmp_path / "whole"), log_every=1500)
    folders = both_ways(config, monkeypatch)
    agree(*folders)
    for who in ("student", "tutor"):
        events = [EventAccumulator(str(folder), {"histograms": 0}).Reload() for folder in folders]  # 0: all of them
        logs = [one.Histograms(f"policy/actions_{who}") for one in events]
        whole, parts = ([(one.step, one.histogram_value) for one in log] for log in logs)
        assert whole == parts
        ((step, counts),) = whole
        assert step == 1536 > HALF
        assert who == "tutor" or sum(counts.bucket) == 1536


def test_checkpoints_are_written_on_the_way(tmp_path: Path) -> None:
    config = config_of("a2c", "connect4", tmp_path / "run", tutor="none")
    train(replace(config, save_minutes=0.0))
    assert len(steps_in(tmp_path / "run" / "checkpoints")) == 2


def test_saving_takes_a_fiftieth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Trainer.__new__(Trainer)
    training.config, training.saved_at, training.saving = Config(save_minutes=0.0), 100.0, 2.0
    for now, due in ((199.0, False), (201.0, True)):
        monkeypatch.setattr("resume.time.monotonic", lambda now=now: now)
        assert training.is_time_to_save() == due
    training.config = Config(save_minutes=5.0)
    assert not training.is_time_to_save()


def test_another_config_is_refused_unless_it_is_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("a2c", "connect4", tmp_path / "run", tutor="none")
    stopped(config, monkeypatch)
    other = replace(config, agent=replace(config.agent, gamma=0.5), total_steps=4096, log_every=512)
    with pytest.raises(
        ValueError, match=r"total_steps was 2048, is 4096; agent\.gamma was .*, is 0\.5\. --force"
    ) as said:
        again(other)
    assert "log_every" not in str(said.value), "that changes nothing of what is learned"
    assert again(other, force=True)["global_step"] == 4096
    assert json.loads((tmp_path / "run" / "config.json").read_text())["agent"]["gamma"] == 0.5
    with pytest.raises(ValueError, match=r"has done 4,096 of 4,096 steps; --total-steps"):
        again(replace(other, log_every=512))


def test_a_new_run_may_begin_with_another_one_s_student(tmp_path: Path) -> None:
    first = config_of("ppo", "connect4", tmp_path / "first", tutor="none")
    train(first)
    folder = tmp_path / "second"
    config = replace(first, run_dir=folder, resume=first.run_dir, total_steps=4096, tutoring=TutorConfig("scripted"))
    summary = train(config)
    assert summary["global_step"] == 4096
    wanted = {int(step): float(value) for step, tag, value in metrics(folder) if tag == "tutor/consult_probability"}
    assert min(wanted) > 2048, "its log is its own"
    assert wanted[4096] == pytest.approx(0.1), "its schedules begin where it begins"
    assert wanted[min(wanted)] == pytest.approx(1 - 0.9 * (min(wanted) - 2048) / 1024, abs=1e-6)
    assert json.loads((folder / "config.json").read_text())["resume"] == str(first.run_dir)
    assert load_checkpoint(first.run_dir / "checkpoints", "cpu")["global_step"] == 2048, "the first is as it was"


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if "dqn" in one.students and not one.pauses])
def test_what_dqn_lived_through_alone_is_taken_for_moments_in_which_nobody_spoke(name: str, tmp_path: Path) -> None:
    first = config_of("dqn", "connect4", tmp_path / "first", tutor="none")
    train(first)
    config = replace(first, run_dir=tmp_path / "second", resume=first.run_dir, total_steps=2560)
    config = replace(config, tutoring=TutorConfig("scripted"), guiding=GuidanceConfig(name))
    if name == "hint":  # sees more than the first one did
        with pytest.raises(ValueError, match="has another kind of student"):
            train(config)
        return
    assert train(config)["global_step"] == 2560
    moments = 2048 // first.num_envs
    replay = load_checkpoint(tmp_path / "second" / "checkpoints", "cpu")["agent"]["replay"]
    for kind, kept in replay["extras"].items():
        quiet = kept[:moments].flatten(0, 1)
        later = kept[moments : int(replay["written"])].flatten(0, 1)
        assert later.unique(dim=0).shape[0] > 1
        if kind == "plausible":
            assert quiet.any(1).all(), "whatever is legal"
        else:
            assert (quiet == (NOBODY if kind == "shown" else 0)).all()


@pytest.mark.parametrize("change", [{"env": "blackjack"}, {"algo": "dqn"}])
def test_another_student_or_game_cannot_go_on(change: dict[str, Any], tmp_path: Path) -> None:
    first = config_of("ppo", "connect4", tmp_path / "first", tutor="none")
    train(first)
    other = config_of(change.get("algo", "ppo"), change.get("env", "connect4"), tmp_path / "second", tutor="none")
    with pytest.raises(ValueError, match="has another kind of student or game"):
        train(replace(other, resume=first.run_dir, total_steps=4096))


def test_a_run_that_was_stopped_before_its_last_evaluation_ends(tmp_path: Path) -> None:
    config = config_of("ppo", "connect4", tmp_path / "run", tutor="none")
    summary = train(config)
    with pytest.raises(ValueError, match="has done"):
        train(replace(config, resume=config.run_dir))
    (config.run_dir / "summary.json").unlink()
    again = train(replace(config, resume=config.run_dir))
    assert again["global_step"] == summary["global_step"]
    assert again["eval"] == summary["eval"]
    assert (config.run_dir / "summary.json").exists()


def test_a_second_process_in_a_run_s_folder_is_refused(tmp_path: Path) -> None:
    with lock_run_dir(tmp_path), pytest.raises(ValueError, match="another process trains in"), lock_run_dir(tmp_path):
        pass
    with lock_run_dir(tmp_path):
        done = program("train.py", *SMALL, "--run-dir", str(tmp_path))
    assert done.returncode == 2
    assert "another process trains in" in done.stderr


def test_an_error_of_the_training_is_not_taken_for_one_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), lock_run_dir(tmp_path):
        raise OSError("mine")


def test_what_is_no_number_stops_the_run_and_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config_of("ppo", "connect4", tmp_path / "run", tutor="none"), save_minutes=0.0)
    round_ = Trainer.update

    def poisoned(self: Trainer, step: Any) -> Any:
        if self.global_step == HALF:
            with torch.no_grad():
                next(self.agent.network.parameters()).fill_(float("nan"))
        return round_(self, step)

    monkeypatch.setattr(Trainer, "update", poisoned)
    with pytest.raises(ValueError, match="training diverged before step"):
        train(config)
    dump = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert dump["global_step"] > HALF
    assert "nan" in dump.values()
    state = load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")
    assert state["global_step"] <= HALF
    assert all(tensor.isfinite().all() for tensor in tensors(state["agent"]))


def test_a_full_disk_costs_a_checkpoint_on_the_way_and_is_an_error_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config_of("a2c", "connect4", tmp_path / "run", tutor="none"), save_minutes=0.0)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resume.save_checkpoint", full)
    with pytest.raises(ValueError, match=r"no checkpoint could be written in .*: No space left"):
        train(config)
    assert "No space left" in caplog.text


def test_the_second_signal_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGINT) == before


def test_differences_are_told_by_the_names_of_the_settings() -> None:
    one = tuned("ppo", "connect4")
    other = replace(one, seed=7, tutoring=replace(one.tutoring, reuse=3.0, tutor_wait=1.0), device="cuda")
    assert differences(one, one) == []
    assert differences(one, other) == ["seed was 1, is 7", "tutoring.reuse was inf, is 3.0"]


def test_a_password_that_was_forgotten_is_no_difference_and_is_not_told() -> None:
    url = "postgresql://me:secret@host/advice"
    told = replace(tuned("ppo", "connect4").tutoring, tutor=f"recorded:{url}", advice_store=url)
    config = replace(tuned("ppo", "connect4"), tutoring=told)
    kept = config_from_json(config.to_json())
    assert differences(kept, config) == []
    elsewhere = replace(told, tutor="tiny", advice_store=url.replace("host", "other"))
    assert differences(kept, replace(config, tutoring=elsewhere)) == [
        "tutoring.tutor was recorded:postgresql://me:***@host/advice, is tiny",
        "tutoring.advice_store was postgresql://me:***@host/advice, is postgresql://me:***@other/advice",
    ]


def test_a_user_stops_and_goes_on(tmp_path: Path) -> None:
    """As typed: the flags of a run that goes on are its own."""
    folder = str(tmp_path / "run")
    assert program("train.py", *SMALL, "--run-dir", folder).returncode == 0
    for flags, code, words in (
        ((), 2, "has done 4,032 of 4,000 steps"),
        (("--total-steps", "5000"), 2, "total_steps was 4000, is 5000"),
        (("--total-steps", "5000", "--force"), 0, ""),
        (("--total-steps", "6000", "--run-dir", str(tmp_path / "other")), 0, ""),
    ):
        done = program("train.py", "--resume", folder, *flags)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
    done = program("train.py", "--resume", str(tmp_path / "nothing"))
    assert (done.returncode, "is no run's folder" in done.stderr) == (2, True)
