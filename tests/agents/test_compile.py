"""Eager, compiled and recorded training against each other; and that nothing on the way asks the device anything.

What CUDA records is tried without it: a tape keeps every operation on tensors with the tensors themselves, and does
them again. As on a GPU, Python is not in it, and what one call returns is written over by the next.

The watcher of the last tests sees every operation that reaches PyTorch's dispatcher and refuses those that must know a
tensor's values on the host: reading a number back, and results whose shape depends on values. It cannot see `tolist`
on a CPU; CUDA's own check, where there is a device, can.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import envs
from agents import AGENTS
from agents import compile as capturing
from agents.compile import CUDAGraph, compile_function
from agents.guidance import METHODS, GuidanceConfig
from envs.base import State
from train import Trainer
from training.config import Config, default_config, make_agent, make_env
from tutors import TutorConfig, open_advisor
from tutors.advisor import Advisor
from tutors.prompts import VIEWS, make_view

READ_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")
SMALL: dict[str, Any] = {"hidden": (16,), "network": "mlp"}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def config_of(algo: str, env: str, mode: str, device: str, **further: Any) -> Config:
    config = replace(
        default_config(algo, env), num_envs=32, total_steps=10_000, seed=1, compile_mode=mode, device=device
    )
    told = SMALL | (
        {"learning_starts": 64, "batch_size": 32, "buffer_size": 640} if algo == "dqn" else {"num_steps": 4}
    )
    return replace(config, agent=replace(config.agent, **told), **further)


def training_of(config: Config, desk: Advisor | None = None) -> Trainer:
    games = make_env(config, config.device)
    return Trainer(config, games, make_agent(config, games), desk, None)


def trained(algo: str, env: str, mode: str, device: str, rounds: int = 8) -> tuple[dict[str, Any], dict[str, Any]]:
    return lived(training_of(config_of(algo, env, mode, device)), rounds)


def lived(training: Trainer, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights, the games and what was logged after some rounds."""
    step, stats = training.env.reset(), {}
    for _ in range(rounds):
        step, stats = training.round(step)
        training.refresh_opponent()
    seen = {name: tensor.clone() for name, tensor in training.env.state.items()}
    seen |= {"returns": training.score.returns.clone(), "acted": training.acted, "actions": training.actions}
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
    fresh = training_of(config_of(algo, "blackjack", "eager", "cpu")).agent.network.state_dict()
    assert any((fresh[name] - eager[0][name]).abs().max() > 1e-3 for name in fresh), "it did learn"


@pytest.mark.parametrize(("game", "name"), [(game, name) for game in VIEWS for name in VIEWS[game]])
def test_a_compiled_view_tells_what_the_view_tells(game: str, name: str) -> None:
    """What PyTorch 2.13 makes of padded bools, as Snake's views were, does not compile."""
    env = envs.make(game, 32, seed=1)
    view, step = make_view(env.game, name), env.reset()
    for _ in range(5):
        step = env.step(step.action_mask.int().argmax(1)).as_initial()

    def tell(state: State) -> tuple[State, torch.Tensor, torch.Tensor]:
        canonical, turned = view.canonicalize(state)
        return canonical, turned, view.key(canonical)

    ours, theirs = (pytree.tree_leaves(told(step.state)) for told in (compile_function(tell, "compile"), tell))
    assert all(one.equal(other) for one, other in zip(ours, theirs, strict=True))


class Tape(TorchDispatchMode):
    """Records operations while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []
        self.is_fresh = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert func.__name__.split(".")[0] not in READ_BACK, f"{func} cannot be recorded"
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do all operations again, where they were done; the first time that is done already, by the recorded call."""
        for func, args, kwargs, result in [] if self.is_fresh else self.operations:
            for place, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != new.data_ptr():
                    place.copy_(new)
        self.is_fresh = False


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Recording without a GPU, of functions that nobody compiled."""
    tapes: list[Tape] = []

    def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        tapes.append(Tape())
        with tapes[-1]:
            return tapes[-1].replay, work()

    monkeypatch.setattr(capturing, "record", record)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return tapes


def assert_same(ours: tuple[dict[str, Any], dict[str, Any]], theirs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].equal(other[name]), name


@pytest.mark.parametrize("env", ["blackjack", "connect4", "snake", "envs.cartpole:CartPole"])
@pytest.mark.parametrize("algo", AGENTS)
def test_what_is_recorded_does_what_eager_does(algo: str, env: str, taped: list[Tape]) -> None:
    eager, graph = (trained(algo, env, mode, "cpu", rounds=10) for mode in ("eager", "graph"))
    assert_same(graph, eager)
    assert len(taped) > 1, "a moment, and the parts of an update"


def test_one_tensor_told_twice_is_one_in_the_recording(taped: list[Tape]) -> None:
    """The compiler has noted that it is."""
    same = []

    def double(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        same.append(one is other)
        return one + other

    recorded = compile_function(double, "graph")
    assert [recorded(number, number).item() for number in torch.arange(6.0)] == [0, 2, 4, 6, 8, 10]
    assert len(taped) == 1
    assert same == [True] * 4


def advised(config: Config, folder: Path, rounds: int = 10) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same with a tutor, and what was counted of it."""
    folder.mkdir(exist_ok=True)
    with open_advisor(config.tutoring, make_env(config, "cpu").game, 1, folder, config.device) as desk:
        assert desk is not None
        if desk.clerk is not None:
            desk.tend = lambda: None  # when a clerk brings answers is no two times the same
        training = training_of(config, desk)
        weights, seen = lived(training, rounds)
        return weights, seen | {"tally": desk.tally, "agreed": training.agreed, "left": training.rations.left}


@pytest.mark.parametrize("strategy", ["chance", "mistake", "visited"])
@pytest.mark.parametrize("algo", AGENTS)
def test_recording_stops_where_the_tutor_is_asked(algo: str, strategy: str, taped: list[Tape], tmp_path: Path) -> None:
    threshold = 0.0 if strategy == "mistake" else None
    told = TutorConfig(
        "scripted",
        query_strategy=strategy,
        query_threshold=threshold,
        query_budget=300,
        query_budget_per_step=8,
        reuse=3,
    )
    configs = [config_of(algo, "snake", mode, "cpu", tutoring=told) for mode in ("eager", "graph")]
    eager, graph = (advised(config, tmp_path / config.compile_mode) for config in configs)
    assert_same(graph, eager)
    assert int(eager[1]["tally"][1]) > 0
    assert int(eager[1]["left"]) < 300


@pytest.mark.parametrize(
    ("algo", "guidance"),
    [(algo, name) for name, method in METHODS.items() for algo in method.students if not method.pauses],
)
def test_every_guidance_can_be_recorded(algo: str, guidance: str, taped: list[Tape], tmp_path: Path) -> None:
    """With a table that knows all answers, and a desk that does not wait: a moment is one recording."""
    told = TutorConfig("scripted", advice_store=str(tmp_path / "advice.sqlite"), reuse=math.inf)
    guiding = GuidanceConfig(guidance)
    advised(config_of("dqn", "blackjack", "eager", "cpu", tutoring=told), tmp_path, rounds=40)
    warm = replace(told, async_tutor=True)
    configs = [config_of(algo, "blackjack", mode, "cpu", tutoring=warm, guiding=guiding) for mode in ("eager", "graph")]
    eager, graph = (advised(config, tmp_path / config.compile_mode) for config in configs)
    assert_same(graph, eager)
    assert int(eager[1]["tally"][2]) > 0, "there was advice"


def test_an_opponent_that_is_the_student_is_refreshed_in_a_recording_too(taped: list[Tape]) -> None:
    runs = []
    for mode in ("eager", "graph"):
        config = config_of("dqn", "connect4", mode, "cpu", env_kwargs=("opponent=self", "refresh=6"))
        agent = replace(config.agent, learning_rate=0.05)  # its copies play differently
        runs.append(lived(training_of(replace(config, agent=agent)), 30))
    assert_same(*runs)


@pytest.mark.parametrize("algo", ["dqn", "ppo"])
def test_nothing_is_compiled_while_it_is_recorded(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA refuses what the compiler does: what is recorded must find everything compiled by the calls before."""
    compiled, counted = torch.compile, []

    def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        before = counters["frames"]["total"]
        outputs = work()
        counted.append(counters["frames"]["total"] - before)
        return lambda: None, outputs

    monkeypatch.setattr(capturing, "record", record)
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic, **_: compiled(function, dynamic=dynamic, backend="eager")
    )
    lived(training_of(config_of(algo, "blackjack", "graph", "cpu")), 6)
    assert len(counted) > 1
    assert not any(counted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("env", ["blackjack", "connect4", "snake"])
@pytest.mark.parametrize("algo", AGENTS)
def test_recorded_training_is_eager_training(algo: str, env: str) -> None:
    assert_alike(*(trained(algo, env, mode, "cuda", rounds=12) for mode in ("eager", "graph")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("async_tutor", [False, True])
@pytest.mark.parametrize("algo", AGENTS)
def test_a_tutored_student_is_recorded_as_it_is_eager(algo: str, async_tutor: bool, tmp_path: Path) -> None:
    """The table knows the answers of an earlier run, or they are waited for."""
    told = TutorConfig("scripted", reuse=math.inf)
    if async_tutor:
        told = replace(told, advice_store=str(tmp_path / "advice.sqlite"))
        advised(config_of(algo, "blackjack", "eager", "cuda", tutoring=told), tmp_path / "first", rounds=40)
        told = replace(told, async_tutor=True)
    configs = [config_of(algo, "blackjack", mode, "cuda", tutoring=told) for mode in ("eager", "graph")]
    eager, graph = (advised(config, tmp_path / config.compile_mode, rounds=12) for config in configs)
    assert_alike(graph, eager)
    assert int(eager[1]["tally"][2]) > 0, "there was advice"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_recorded_function_takes_new_inputs_and_counts_its_calls_once() -> None:
    total = torch.zeros((), device="cuda")

    def add(number: torch.Tensor) -> torch.Tensor:
        total.add_(number)
        return total * 2

    recorded = compile_function(add, "graph")
    assert isinstance(recorded, CUDAGraph)
    outputs = [recorded(torch.tensor(float(number), device="cuda")).item() for number in range(1, 9)]
    assert outputs == [2.0 * sum(range(number + 1)) for number in range(1, 9)]


def test_eager_is_the_function_itself() -> None:
    assert compile_function(len, "eager") is len


class Watcher(TorchDispatchMode):
    """Refuses operations that must know values on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.__name__.split(".")[0]
        assert name not in READ_BACK, f"{name} reads values back"
        if name in ("index", "index_put", "index_put_"):
            assert not any(one is not None and one.dtype == torch.bool for one in args[1]), "a mask as an index"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("env", ["blackjack", "connect4", "snake", "envs.cartpole:CartPole"])
@pytest.mark.parametrize("algo", AGENTS)
def test_neither_a_rollout_nor_an_update_asks_the_device_anything(algo: str, env: str) -> None:
    training = training_of(config_of(algo, env, "eager", "cpu"))
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
    training = training_of(config_of(algo, "connect4", "eager", "cuda"))
    step = training.env.reset()
    step, _ = training.round(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step, _ = training.round(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
