"""When a checkpoint is written, what keeps it from being written, and whose weights a self-play opponent has."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import envs
from agents import AGENTS
from envs.base import EnvError, State, blame
from tests.helpers.probes import Counter
from tests.helpers.small_runs import small_config, tensors_in
from train import Trainer, train
from training.checkpoint import complete_steps, load_checkpoint
from training.cli import exit_codes
from training.config import make_agent
from training.state import Checkpointer, check_finite
from training.timing import SectionTimer
from tutors.base import TutorError


@pytest.mark.parametrize(
    ("minutes", "took", "after", "due"),
    [(0.0, 2.0, 99.0, False), (0.0, 2.0, 101.0, True), (5.0, 2.0, 299.0, False), (5.0, 2.0, 301.0, True)],
)
def test_checkpointer_is_due_after_its_interval_and_fifty_times_its_duration(
    minutes: float, took: float, after: float, due: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(tmp_path, minutes, SectionTimer())
    checkpointer.saved_at, checkpointer.duration = 100.0, took
    monkeypatch.setattr("training.state.time.monotonic", lambda: 100.0 + after)
    assert checkpointer.is_due() == due


@pytest.mark.train
def test_checkpoints_are_written_while_training(tmp_path: Path) -> None:
    train(replace(small_config("a2c", "connect4", tmp_path / "run", tutor="none"), save_minutes=0.0))
    assert len(complete_steps(tmp_path / "run" / "checkpoints")) == 2, "the newest and the one before"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_check_finite_refuses_and_dumps(bad: float, tmp_path: Path) -> None:
    assert check_finite({}, 1, tmp_path) == {}
    assert check_finite({"a": torch.tensor(2.0)}, 1, tmp_path) == {"a": 2.0}
    assert not (tmp_path / "diverged.json").exists()
    with pytest.raises(ValueError, match="training diverged before step 1,024"):
        check_finite({"a": torch.tensor(1.0), "b": torch.tensor(bad)}, 1024, tmp_path)
    assert json.loads((tmp_path / "diverged.json").read_text()) == {"global_step": 1024, "a": "1.0", "b": str(bad)}


@pytest.mark.train
def test_diverged_update_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(small_config("ppo", "connect4", tmp_path / "run", tutor="none"), save_minutes=0.0)
    update = Trainer.update

    def poisoned(self: Trainer, step: Any) -> Any:
        if self.state.global_step == 1024:
            with torch.no_grad():
                next(self.agent.network.parameters()).fill_(math.nan)
        return update(self, step)

    monkeypatch.setattr(Trainer, "update", poisoned)
    with pytest.raises(ValueError, match="training diverged before step"):
        train(config)
    state = load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")
    assert state["global_step"] <= 1024
    assert all(tensor.isfinite().all() for tensor in tensors_in(state["agent"]))


@pytest.mark.train
@pytest.mark.parametrize("algo", ["dqn", "ppo", "a2c"])
@pytest.mark.parametrize("what", ["learning_rate", "weights", "optimizer"])
def test_student_that_is_not_finite_is_not_saved_when_the_tutor_ends_the_run(
    algo: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was logged or saved since it diverged: by a learning rate, or outside of any update."""
    config = replace(small_config(algo, "blackjack", tmp_path / "run"), log_every=10**6)
    if what == "learning_rate":
        config = replace(config, agent=replace(config.agent, learning_rate=1e38, max_grad_norm=1e38))

    def refused(self: Trainer, lookup: Any) -> Any:
        if self.state.global_step < 1024:
            return resolve(self, lookup)
        if what == "weights":
            with torch.no_grad():
                next(self.agent.network.parameters())[0] = math.nan
        if what == "optimizer":
            self.agent.optimizer.exp_avg_sq[-1] = math.inf  # type: ignore[attr-defined]
        raise TutorError("the key is refused")

    resolve = Trainer.resolve
    monkeypatch.setattr(Trainer, "resolve", refused)
    with pytest.raises(ValueError, match="the key is refused; besides, training diverged before step 1,024"):
        train(config)
    assert not complete_steps(tmp_path / "run" / "checkpoints")
    named = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert not math.isfinite(float(named["largest/optimizer" if what == "optimizer" else "largest/network"]))


@pytest.mark.train
def test_student_is_saved_when_the_tutor_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "resolve", lambda self, lookup: (_ for _ in ()).throw(TutorError("no key")))
    with pytest.raises(TutorError, match="no key"):
        train(small_config("ppo", "blackjack", tmp_path / "run"))
    assert complete_steps(tmp_path / "run" / "checkpoints") == [0]


@pytest.mark.train
def test_full_disk_is_a_warning_on_the_way_and_an_error_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.state.save_checkpoint", full)
    with pytest.raises(ValueError, match=r"no checkpoint could be written in .*: No space left"):
        train(replace(small_config("a2c", "connect4", tmp_path / "run", tutor="none"), save_minutes=0.0))
    assert "No space left" in caplog.text


def test_self_play_opponent_plays_at_random_until_its_first_refresh(tmp_path: Path) -> None:
    env = envs.make("connect4", 16, opponent="self", refresh=3)
    config = replace(small_config("a2c", "connect4", tmp_path, tutor="none"), num_envs=16)
    trainer = Trainer(config, env, make_agent(config, env), None)
    opponent = trainer.opponent
    assert opponent is not None
    step, epsilons, weights = env.reset(), [], []
    for _ in range(8):
        step, _ = trainer.update(step)
        epsilons.append(round(float(opponent.epsilon), 2))
        weights.append(None if opponent.weights is None else [w.clone() for w in tensors_in(opponent.weights)])
    assert epsilons == [1.0, 1.0, *[0.05] * 6]
    assert weights[:2] == [None, None]
    changes = [at for at in range(3, 8) if not all(map(torch.equal, weights[at], weights[at - 1]))]
    assert changes == [5]
    assert trainer.state.state_dict()["opponent"] is opponent.weights


class Poisonous(Counter):
    """From its third step on in an episode it gives what is not finite: rewards, or observations."""

    def __init__(self, what: str = "rewards") -> None:
        self.what = what

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        after, reward, over = super().step(state, action, u)
        return after, torch.where((after["count"] == 3) & (self.what == "rewards"), math.nan, reward), over

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        obs, action_mask = super().observe(state)
        return obs / ~((state["count"] == 3) & (self.what == "observations"))[:, None], action_mask


@pytest.mark.train
@pytest.mark.parametrize("what", ["rewards", "observations"])
@pytest.mark.parametrize("algo", AGENTS)
def test_game_that_gives_what_is_not_finite_is_named(algo: str, what: str, tmp_path: Path) -> None:
    config = small_config(algo, f"{__name__}:Poisonous", tmp_path / "run", tutor="none")
    with pytest.raises(ValueError, match=f"the env counter gave {what} that are not finite"):
        train(replace(config, env_kwargs=(f"what={what}",)))


class Raising(Counter):
    """Raises an error in its 20th step."""

    steps = 0

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        self.steps += 1
        if self.steps == 20:
            raise ValueError("no such corridor")
        return super().step(state, action, u)


@pytest.mark.train
@pytest.mark.parametrize("name", [f"{__name__}:Raising", "gym:tests.helpers.odd_envs:Late-v0"])
def test_student_is_saved_when_its_env_raises(name: str, tmp_path: Path) -> None:
    config = small_config("ppo", name, tmp_path / "run", tutor="none")
    said = r"(counter|Late-v0): step raised ValueError: no such corridor at .*\.py, line \d+ \(.*(time step|call) \d+"
    with pytest.raises(EnvError, match=said):
        train(config)
    assert load_checkpoint(config.run_dir / "checkpoints", "cpu")["global_step"] >= 16 * config.num_envs


def test_error_of_an_env_ends_a_program_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended, exit_codes():
        fail()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: mine: step raised ValueError: no such corridor at ")
    assert "Traceback" in said
    assert 'raise ValueError("no such corridor")' in said


def fail() -> None:
    with blame("mine", "step", lambda: "copy 1"):
        raise ValueError("no such corridor")
