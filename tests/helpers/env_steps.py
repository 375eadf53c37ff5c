"""Trajectories of environments under random legal actions, and comparisons of steps."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from envs.base import Env, State, Step
from envs.rng import EXPLORATION_STREAM, CounterRNG, sample_legal


def reset_with_random_policy(env: Env) -> tuple[Step, Callable[[Step], Tensor]]:
    """Return the initial step, and a policy that samples a legal action at every call."""
    rng = CounterRNG(99, torch.arange(env.num_envs), EXPLORATION_STREAM)
    calls = itertools.count()
    return env.reset(), lambda step: sample_legal(step.action_mask, rng.uniform(next(calls), 1)[:, 0])


def trajectory(env: Env, steps: int, first_env_id: int = 0) -> list[Step]:
    """Return the steps of `env` under random legal actions, which depend on the ids of the copies."""
    rng = CounterRNG(99, torch.arange(first_env_id, first_env_id + env.num_envs, device=env.device), EXPLORATION_STREAM)
    shown = [env.reset()]
    for index in range(steps):
        shown.append(env.step(sample_legal(shown[-1].action_mask, rng.uniform(index, 1)[:, 0])))
    return shown


def map_tensors(step: Step, change: Callable[[Tensor], Tensor]) -> Step:
    """Return the step with `change` applied to every tensor, those of its two states too."""
    return Step(
        *(
            {name: change(tensor) for name, tensor in field.items()} if isinstance(field, dict) else change(field)
            for field in step
        )
    )


def named_tensors(step: Step) -> dict[str, Tensor]:
    """Return every tensor of a step by its name; those of the states are named as in "state board"."""
    named = {name: field for name, field in step._asdict().items() if isinstance(field, Tensor)}
    for name in ("state", "final_state"):
        named |= {f"{name} {part}": tensor for part, tensor in getattr(step, name).items()}
    return named


def assert_steps_equal(ours: list[Step], theirs: list[Step], rows: slice = slice(None)) -> None:
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        expected = named_tensors(b)
        assert named_tensors(a).keys() == expected.keys()
        for name, tensor in named_tensors(a).items():
            assert torch.equal(tensor, expected[name][rows]), f"{name} of step {index}"


def assert_states_equal(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
