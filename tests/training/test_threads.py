"""How many threads are taken: by what is measured, as OMP_NUM_THREADS says, and in a resumed run as before."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.small_runs import small_config
from train import Trainer, train
from training.checkpoint import load_checkpoint, save_checkpoint
from training.threads import choose_threads, threads_text


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def slow_with(number: int) -> Callable[[], None]:
    return lambda: time.sleep(0.02 if torch.get_num_threads() == number else 0.0)


def test_the_faster_number_of_threads_is_taken() -> None:
    choose_threads(slow_with(1))
    assert (torch.get_num_threads(), threads_text()) == (2, "2 threads")
    choose_threads(slow_with(2))
    assert (torch.get_num_threads(), threads_text()) == (1, "1 thread")
    choose_threads(slow_with(1))
    assert torch.get_num_threads() == 1, "what was taken is not taken back"


def test_omp_num_threads_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    choose_threads(slow_with(2))
    assert torch.get_num_threads() == 2


@pytest.mark.train
def test_resumed_run_takes_as_many_threads_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def update(self: Trainer, step: Any) -> Any:
        found.append(torch.get_num_threads())
        return before(self, step)

    before = Trainer.update
    monkeypatch.setattr(Trainer, "update", update)
    config = replace(small_config("ppo", "blackjack", tmp_path / "run", tutor="none"), total_steps=512)
    train(config)
    assert load_checkpoint(tmp_path / "run" / "checkpoints", "cpu")["threads"] == 2
    torch.set_num_threads(1)
    train(replace(config, run_dir=None, resume=tmp_path / "run", total_steps=1024, force=True))
    assert set(found) == {2}
    torch.set_num_threads(1)
    train(replace(config, run_dir=tmp_path / "new", resume=tmp_path / "run", total_steps=1536))
    assert found[-1] == 1, "a new run from another's student chooses for itself"


@pytest.mark.train
@pytest.mark.parametrize("threads", [None, 0, -1, 10**9, "2", 1.5, True])
def test_resuming_a_run_without_a_sound_number_of_threads(
    threads: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    config = replace(small_config("ppo", "blackjack", tmp_path / "run", tutor="none"), total_steps=512)
    train(config)
    folder = tmp_path / "run" / "checkpoints"
    state = load_checkpoint(folder, "cpu")
    del state["threads"]
    save_checkpoint(folder, state["global_step"], state if threads is None else state | {"threads": threads})
    resumed = replace(config, run_dir=None, resume=tmp_path / "run", total_steps=1024, force=True)
    if threads is None:  # as version 1.1 wrote it
        assert train(resumed)["global_step"] == 1024
        return
    with pytest.raises(ValueError, match="threads is"):
        train(resumed)
