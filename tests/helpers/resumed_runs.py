"""Runs that are stopped and resumed, and what must be equal of two runs."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.small_runs import logged, tensors_in
from train import Trainer, train
from training.checkpoint import load_checkpoint
from training.config import Config

HALF = 1024  # of 2,048 env steps


def stop_half_way(
    config: Config, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM, step: int = HALF
) -> None:
    """Train, and get a signal after the first update that reaches an env step, half-way if not given."""
    update = Trainer.update
    stopped: list[int] = []

    def interrupted(self: Trainer, now: Any) -> Any:
        result = update(self, now)
        if self.state.global_step >= step and not stopped:
            stopped.append(self.state.global_step)
            os.kill(os.getpid(), number)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        with pytest.raises(SystemExit) as ended:
            train(config)
    assert ended.value.code == 128 + number
    assert load_checkpoint(config.run_dir / "checkpoints", "cpu")["global_step"] == stopped[0]


def resume(config: Config, **changes: Any) -> dict[str, Any]:
    """Resume a run and return its summary."""
    return train(replace(config, run_dir=None, resume=config.run_dir, **changes))


def assert_equal_runs(one: Path, other: Path) -> None:
    """Everything that was saved and logged is equal, but times."""
    saved = [load_checkpoint(run_dir / "checkpoints", "cpu") for run_dir in (one, other)]
    assert without_times(saved[0]) == without_times(saved[1])
    ours, theirs = tensors_in(saved[0]), tensors_in(saved[1])
    assert len(ours) > 10
    assert all(left.equal(right) for left, right in zip(ours, theirs, strict=True))
    assert logged(one) == logged(other)
    assert len(set(logged(one))) == len(logged(one)), "no line twice"


def without_times(state: Any) -> Any:
    """What of a state is no tensor, but times."""
    if isinstance(state, dict):
        times = ("seconds", "latency_ms")
        return {
            name: without_times(one) for name, one in state.items() if name not in times and not torch.is_tensor(one)
        }
    return state
