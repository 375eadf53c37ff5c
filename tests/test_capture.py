"""Eager, compiled and recorded training against each other; and that nothing on the way asks the device anything.

The watcher of the last tests sees every operation that reaches PyTorch's dispatcher and refuses those that must know a
tensor's values on the host: reading a number back, and results whose shape depends on values. It cannot see `tolist`
on a CPU; CUDA's own check, where there is a device, can.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents import AGENTS
from agents.capture import Graph, capture
from run import Config, make_agent, make_env, tuned
from train import Training

SMALL: dict[str, Any] = {"hidden": (16,), "network": "mlp"}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def training_of(algo: str, env: str, mode: str, device: str, seed: int = 1) -> Training:
    config = replace(tuned(algo, env), num_envs=32, total_steps=10_000, seed=seed, accelerate=mode, device=device)
    told = SMALL | (
        {"learning_starts": 64, "batch_size": 32, "buffer_size": 640} if algo == "dqn" else {"num_steps": 4}
    )
    config: Config = replace(config, agent=replace(config.agent, **told))
    games = make_env(config, device)
    return Training(config, games, make_agent(config, games), None, None)


def trained(algo: str, env: str, mode: str, device: str, rounds: int = 8) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights, the games and what was logged after some rounds."""
    training = training_of(algo, env, mode, device)
    step, stats = training.env.reset(), {}
    for _ in range(rounds):
        step, stats = training.round(step)
    seen = {name: tensor.clone() for name, tensor in training.env.state.items()}
    seen["returns"] = training.score.returns.clone()
    return training.agent.network.state_dict(), seen | stats


def assert_alike(ours: tuple[dict[str, Any], dict[str, Any]], theirs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("algo", AGENTS)
def test_compiled_training_is_eager_training(algo: str) -> None:
    eager, compiled = (trained(algo, "blackjack", mode, "cpu") for mode in ("eager", "compile"))
    assert_alike(eager, compiled)
    fresh = training_of(algo, "blackjack", "eager", "cpu").agent.network.state_dict()
    assert any((fresh[name] - eager[0][name]).abs().max() > 1e-3 for name in fresh), "it did learn"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("env", ["blackjack", "connect4"])
@pytest.mark.parametrize("algo", AGENTS)
def test_recorded_training_is_eager_training(algo: str, env: str) -> None:
    assert_alike(*(trained(algo, env, mode, "cuda", rounds=12) for mode in ("eager", "graph")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_recorded_function_takes_new_inputs_and_counts_its_calls_once() -> None:
    total = torch.zeros((), device="cuda")

    def add(number: torch.Tensor) -> torch.Tensor:
        total.add_(number)
        return total * 2

    recorded = capture(add, "graph")
    assert isinstance(recorded, Graph)
    outputs = [recorded(torch.tensor(float(number), device="cuda")).item() for number in range(1, 9)]
    assert outputs == [2.0 * sum(range(number + 1)) for number in range(1, 9)]


def test_eager_is_the_function_itself() -> None:
    assert capture(len, "eager") is len


class Watcher(TorchDispatchMode):
    """Refuses operations that must know values on the host."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.__name__.split(".")[0]
        assert name not in self.REFUSED, f"{name} reads values back"
        if name in ("index", "index_put", "index_put_"):
            assert not any(one is not None and one.dtype == torch.bool for one in args[1]), "a mask as an index"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("env", ["blackjack", "connect4", "snake", "envs.cartpole:CartPole"])
@pytest.mark.parametrize("algo", AGENTS)
def test_neither_a_rollout_nor_an_update_asks_the_device_anything(algo: str, env: str) -> None:
    training = training_of(algo, env, "eager", "cpu")
    step = training.env.reset()
    with Watcher():
        for _ in range(4):
            step, stats = training.round(step)
    assert stats, "it has learned"


def test_the_watcher_sees_what_it_should() -> None:
    numbers = torch.arange(4)
    for forbidden in (
        lambda: numbers.sum().item(),
        lambda: bool(numbers.any()),
        lambda: numbers[numbers > 1],
        lambda: numbers.nonzero(),
        lambda: numbers.masked_select(numbers > 1),
        lambda: numbers.unique(),
    ):
        with pytest.raises(AssertionError), Watcher():
            forbidden()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("algo", AGENTS)
def test_cuda_itself_sees_no_synchronisation(algo: str) -> None:
    training = training_of(algo, "connect4", "eager", "cuda")
    step = training.env.reset()
    step, _ = training.round(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step, _ = training.round(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
