"""Students as tests drive them: rollouts and updates without a tutor, their weights, a checkpoint's round trip."""

import io
from typing import Any

import torch
from torch import Tensor

from envs.base import Env, Step


def rollout(agent: Any, env: Env, step: Step, time_steps: int) -> Step:
    """Act and store without learning, and return the step that follows."""
    for _ in range(time_steps):
        decision = agent.act(step.obs, step.action_mask)
        next_step = env.step(decision.action)
        agent.observe(step, decision, decision.action, next_step, next_step.reward)
        step = next_step.as_initial()
    return step


def train(agent: Any, env: Env, updates: int, step: Step | None = None) -> Step:
    """Learn from so many rollouts, from `step` or from a reset on, and return the step that follows."""
    step = env.reset() if step is None else step
    for _ in range(updates):
        step = rollout(agent, env, step, agent.steps_per_update)
        agent.update(step)
    return step


def weights_of(agent: Any) -> list[Tensor]:
    """Return a copy of a student's weights."""
    return [tensor.clone() for tensor in agent.network.state_dict().values()]


def all_equal(ours: Any, theirs: Any) -> bool:
    """Return whether two lists, or the values of two dicts, hold the same tensors to the bit."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = ours.values(), theirs.values()
    return all(one.equal(other) for one, other in zip(ours, theirs, strict=True))


def save_and_load(state: Any) -> Any:
    """Return what a checkpoint file makes of a state."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def uniforms(seed: int, *shape: int) -> Tensor:
    """Return numbers in [0, 1) of a seed of their own."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def bin_centers(number: int) -> Tensor:
    """Return the centers of as many equal parts of [0, 1)."""
    return (torch.arange(number) + 0.5) / number
