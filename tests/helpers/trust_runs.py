"""Small runs in which trust decides how much advice counts, and returns that are made up."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.guidance import GuidanceConfig
from agents.guidance.trust import Returns
from tests.helpers.small_runs import small_config
from train import Trainer
from training.config import Config, make_agent, make_env
from training.trust import TrustMonitor
from tutors import open_advisor
from tutors.advisor import Advisor

ECHO = "tests.helpers.probes:Echo"


def echo_config(algo: str, run_dir: Path, guiding: GuidanceConfig | None = None, **tutoring: Any) -> Config:
    """Return a run in which the tutor plays perfectly, and a new student in two episodes of three does not.

    Every time step is an episode: after the first update there are returns of the student enough.
    """
    config = small_config(algo, ECHO, run_dir, view="tests.helpers.echo_view:EchoView", **tutoring)
    return replace(config, env_kwargs=("walls=true",), guiding=guiding or GuidanceConfig())


def trust_config(algo: str, run_dir: Path, total_steps: int = 16384, **tutoring: Any) -> Config:
    """Return a run of Connect Four in which the tutor is soon found better."""
    config = small_config(algo, "connect4", run_dir, **{"tutor_depth": 2} | tutoring)
    return replace(config, total_steps=total_steps, guiding=GuidanceConfig())


def make_trainer(config: Config, advisor: Advisor | None) -> Trainer:
    """Return a trainer of that run, which logs nothing."""
    env = make_env(config, "cpu")
    return Trainer(config, env, make_agent(config, env), advisor)


@contextmanager
def opened_trainer(config: Config) -> Iterator[tuple[Trainer, TrustMonitor]]:
    """Yield a trainer with the run's tutor, and what decides its trust."""
    assert config.run_dir is not None
    config.run_dir.mkdir(parents=True, exist_ok=True)
    env = make_env(config, "cpu")
    with open_advisor(config.tutoring, env.game, config.seed, config.run_dir, "cpu", lambda _: None) as advisor:
        trainer = make_trainer(config, advisor)
        assert trainer.state.trust is not None
        yield trainer, trainer.state.trust


def spread(mean: float, count: int = 200, std: float = 0.5) -> Returns:
    """Return `count` returns of that mean, half of them above it and half below."""
    return Returns(count, count * mean, count * (mean * mean + std * std))
