"""Runs of some seconds, and what they leave behind."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.guidance import GuidanceConfig
from training.config import Config, default_config
from tutors import TutorConfig

SIZES = {"dqn": {"learning_starts": 256, "batch_size": 32}, "ppo": {"num_steps": 8}, "a2c": {"num_steps": 8}}
CLOCKS = ("time/", "charts/SPS", "tutor/latency", "tutor/seconds")  # tags of what differs from run to run


def small_config(algo: str, env: str, run_dir: Path, **tutoring: Any) -> Config:
    """Return a run of 2,048 env steps with a scripted tutor, or as `tutoring` says, whose advice overrides."""
    config = replace(
        default_config(algo, env),
        total_steps=2048,
        num_envs=64,
        eval_every=10_000,
        eval_episodes=16,
        log_every=256,
        device="cpu",
        run_dir=run_dir,
        guiding=GuidanceConfig("override"),
        tutoring=TutorConfig(**{"tutor": "scripted", "tutor_depth": 1} | tutoring),
    )
    return replace(config, agent=replace(config.agent, hidden=(16,), network="mlp", **SIZES[algo]))


def logged(run_dir: Path) -> list[tuple[int, str, str]]:
    """Return the lines of metrics.csv but those of clocks: (global_step, tag, value)."""
    with (run_dir / "metrics.csv").open() as file:
        rows = [(int(row["global_step"]), row["tag"], row["value"]) for row in csv.DictReader(file)]
    return [row for row in rows if not row[1].startswith(CLOCKS)]


def series(run_dir: Path, tag: str) -> dict[int, float]:
    """Return what was logged under a tag, by global_step."""
    return {step: float(value) for step, name, value in logged(run_dir) if name == tag}


def tensors_in(state: Any) -> list[Tensor]:
    """Return all tensors in nested containers, in order."""
    if torch.is_tensor(state):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]
