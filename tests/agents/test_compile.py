"""Eager, compiled and recorded training against each other; and that nothing on the way reads values on the host.

What CUDA records is tried without it: a tape keeps every operation on tensors with the tensors themselves, and does
them again. As on a GPU, Python is not in it, and what one call returns is written over by the next.
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
from agents import compile as compile_module
from agents.compile import CUDAGraph, compile_function
from agents.guidance import METHODS, GuidanceConfig
from envs.base import State
from tests.helpers.host_reads import READ_BACK, NoHostReads
from tests.helpers.views import EVERY_VIEW
from train import Trainer
from training.config import Config, default_config, make_agent, make_env
from tutors import TutorConfig, open_advisor
from tutors.advisor import Advisor
from tutors.prompts import make_view

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
    sizes = {"learning_starts": 64, "batch_size": 32, "buffer_size": 640} if algo == "dqn" else {"num_steps": 4}
    further = {"guiding": GuidanceConfig("override")} | further
    return replace(config, agent=replace(config.agent, **SMALL, **sizes), **further)


def make_trainer(config: Config, advisor: Advisor | None = None) -> Trainer:
    env = make_env(config, config.device)
    return Trainer(config, env, make_agent(config, env), advisor)


def trained(algo: str, env: str, mode: str, device: str, updates: int = 8) -> tuple[dict[str, Any], dict[str, Any]]:
    return run(make_trainer(config_of(algo, env, mode, device)), updates)


def run(trainer: Trainer, updates: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights, and the state of env copies and counters and what was logged, after some updates."""
    step, stats = trainer.env.reset(), {}
    for _ in range(updates):
        step, stats = trainer.update(step)
    found = {name: tensor.clone() for name, tensor in trainer.env.state.items()}
    state = trainer.state
    found |= {"returns": state.episode_stats.returns.clone()}
    found |= {"env_steps": state.env_steps, "action_counts": state.action_counts, "agreement": state.agreement}
    return trainer.agent.network.state_dict(), found | stats


def assert_close(ours: tuple[dict[str, Any], dict[str, Any]], theirs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.compile
@pytest.mark.parametrize("algo", AGENTS)
def test_compiled_training_equals_eager_training(algo: str) -> None:
    eager, compiled = (trained(algo, "blackjack", mode, "cpu") for mode in ("eager", "compile"))
    assert_close(eager, compiled)
    fresh = make_trainer(config_of(algo, "blackjack", "eager", "cpu")).agent.network.state_dict()
    assert any((fresh[name] - eager[0][name]).abs().max() > 1e-3 for name in fresh), "it did learn"


@pytest.mark.compile
@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
def test_compiled_view_equals_the_view(game: str, name: str) -> None:
    """PyTorch 2.13 cannot compile padded bools, which Snake's views once had."""
    env = envs.make(game, 32, seed=1)
    view, step = make_view(env.game, name), env.reset()
    for _ in range(5):
        step = env.step(step.action_mask.int().argmax(1)).as_initial()

    def canonicalize(state: State) -> tuple[State, torch.Tensor, torch.Tensor]:
        canonical, symmetry = view.canonicalize(state)
        return canonical, symmetry, view.key(canonical)

    functions = (compile_function(canonicalize, "compile"), canonicalize)
    ours, theirs = (pytree.tree_leaves(function(step.state)) for function in functions)
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
            for output, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(output, torch.Tensor) and output.data_ptr() != new.data_ptr():
                    output.copy_(new)
        self.is_fresh = False


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Recording without a GPU, of functions that are not compiled, but do without values as those that are."""
    tapes: list[Tape] = []

    def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        tapes.append(Tape())
        with monkeypatch.context() as patch, tapes[-1]:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            return tapes[-1].replay, work()

    monkeypatch.setattr(compile_module, "record", record)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return tapes


def assert_equal(ours: tuple[dict[str, Any], dict[str, Any]], theirs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].equal(other[name]), name


@pytest.mark.parametrize("env", ["blackjack", "connect4", "snake", "envs.cartpole:CartPole"])
@pytest.mark.parametrize("algo", AGENTS)
def test_recorded_training_without_a_gpu_equals_eager_training(algo: str, env: str, taped: list[Tape]) -> None:
    eager, graph = (trained(algo, env, mode, "cpu", updates=10) for mode in ("eager", "graph"))
    assert_equal(graph, eager)
    assert len(taped) > 1, "a rollout step, and the parts of an update"


def test_recording_of_one_tensor_given_twice_keeps_it_one(taped: list[Tape]) -> None:
    """Dynamo has noted that it is."""
    same = []

    def double(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        same.append(one is other)
        return one + other

    recorded = compile_function(double, "graph")
    assert [recorded(number, number).item() for number in torch.arange(6.0)] == [0, 2, 4, 6, 8, 10]
    assert len(taped) == 1
    assert same == [True] * 4


def run_with_tutor(config: Config, folder: Path, updates: int = 10) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same with a tutor, and what was counted of it."""
    folder.mkdir(exist_ok=True)
    with open_advisor(config.tutoring, make_env(config, "cpu").game, 1, folder, config.device) as advisor:
        assert advisor is not None
        if not advisor.waits:
            advisor.step = lambda: None  # when answers arrive is no two times the same
        trainer = make_trainer(config, advisor)
        weights, found = run(trainer, updates)
        return weights, found | {"lookups": advisor.lookups, "left": trainer.query.budget.left}


@pytest.mark.train
@pytest.mark.parametrize("strategy", ["chance", "mistake", "visited"])
@pytest.mark.parametrize("algo", AGENTS)
def test_recording_ends_where_the_tutor_is_queried(algo: str, strategy: str, taped: list[Tape], tmp_path: Path) -> None:
    threshold = 0.0 if strategy == "mistake" else None
    tutoring = TutorConfig(
        "scripted",
        query_strategy=strategy,
        query_threshold=threshold,
        query_budget=300,
        query_budget_per_step=8,
        reuse=3,
    )
    configs = [config_of(algo, "snake", mode, "cpu", tutoring=tutoring) for mode in ("eager", "graph")]
    eager, graph = (run_with_tutor(config, tmp_path / config.compile_mode) for config in configs)
    assert_equal(graph, eager)
    assert int(eager[1]["lookups"][1]) > 0
    assert int(eager[1]["left"]) < 300


@pytest.mark.train
@pytest.mark.parametrize(
    ("algo", "guidance"),
    [(algo, name) for name, method in METHODS.items() for algo in method.students if not method.needs_episode_review],
)
def test_every_guidance_can_be_recorded(algo: str, guidance: str, taped: list[Tape], tmp_path: Path) -> None:
    """With a table that holds all answers and an async tutor: a rollout step is one recording."""
    tutoring = TutorConfig("scripted", advice_store=str(tmp_path / "advice.sqlite"), reuse=math.inf)
    guiding = GuidanceConfig(guidance, trust="none")
    run_with_tutor(config_of("dqn", "blackjack", "eager", "cpu", tutoring=tutoring), tmp_path, updates=40)
    warm = replace(tutoring, async_tutor=True)
    configs = [config_of(algo, "blackjack", mode, "cpu", tutoring=warm, guiding=guiding) for mode in ("eager", "graph")]
    eager, graph = (run_with_tutor(config, tmp_path / config.compile_mode) for config in configs)
    assert_equal(graph, eager)
    assert int(eager[1]["lookups"][2]) > 0, "there was advice"


def test_recorded_self_play_refreshes_its_opponent(taped: list[Tape]) -> None:
    runs = []
    for mode in ("eager", "graph"):
        config = config_of("dqn", "connect4", mode, "cpu", env_kwargs=("opponent=self", "refresh=6"))
        agent = replace(config.agent, learning_rate=0.05)  # so that its copies act differently
        runs.append(run(make_trainer(replace(config, agent=agent)), 30))
    assert_equal(*runs)


@pytest.mark.compile
@pytest.mark.parametrize("algo", ["dqn", "ppo"])
def test_recording_compiles_nothing(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA refuses what the compiler does: all must have been compiled in the calls before."""
    compiled, counted = torch.compile, []

    def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        before = counters["frames"]["total"]
        outputs = work()
        counted.append(counters["frames"]["total"] - before)
        return lambda: None, outputs

    monkeypatch.setattr(compile_module, "record", record)
    monkeypatch.setattr(
        torch, "compile", lambda function, dynamic, **_: compiled(function, dynamic=dynamic, backend="eager")
    )
    run(make_trainer(config_of(algo, "blackjack", "graph", "cpu")), 6)
    assert len(counted) > 1
    assert not any(counted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("env", ["blackjack", "connect4", "snake"])
@pytest.mark.parametrize("algo", AGENTS)
def test_recorded_training_equals_eager_training(algo: str, env: str) -> None:
    assert_close(*(trained(algo, env, mode, "cuda", updates=12) for mode in ("eager", "graph")))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("async_tutor", [False, True])
@pytest.mark.parametrize("algo", AGENTS)
def test_recorded_training_with_a_tutor_equals_eager_training(algo: str, async_tutor: bool, tmp_path: Path) -> None:
    """The table holds the answers of an earlier run, or the run waits for them."""
    tutoring = TutorConfig("scripted", reuse=math.inf)
    if async_tutor:
        tutoring = replace(tutoring, advice_store=str(tmp_path / "advice.sqlite"))
        run_with_tutor(config_of(algo, "blackjack", "eager", "cuda", tutoring=tutoring), tmp_path / "first", updates=40)
        tutoring = replace(tutoring, async_tutor=True)
    configs = [config_of(algo, "blackjack", mode, "cuda", tutoring=tutoring) for mode in ("eager", "graph")]
    eager, graph = (run_with_tutor(config, tmp_path / config.compile_mode, updates=12) for config in configs)
    assert_close(graph, eager)
    assert int(eager[1]["lookups"][2]) > 0, "there was advice"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_recorded_function_takes_new_inputs_and_runs_once_a_call() -> None:
    total = torch.zeros((), device="cuda")

    def add(number: torch.Tensor) -> torch.Tensor:
        total.add_(number)
        return total * 2

    recorded = compile_function(add, "graph")
    assert isinstance(recorded, CUDAGraph)
    outputs = [recorded(torch.tensor(float(number), device="cuda")).item() for number in range(1, 9)]
    assert outputs == [2.0 * sum(range(number + 1)) for number in range(1, 9)]


def test_compile_function_eager_returns_the_function_itself() -> None:
    assert compile_function(len, "eager") is len


@pytest.mark.parametrize("env", ["blackjack", "connect4", "snake", "envs.cartpole:CartPole"])
@pytest.mark.parametrize("algo", AGENTS)
def test_rollout_and_update_read_no_values_on_the_host(algo: str, env: str) -> None:
    trainer = make_trainer(config_of(algo, env, "eager", "cpu"))
    step = trainer.env.reset()
    with NoHostReads():
        for _ in range(4):
            step, stats = trainer.update(step)
    assert stats, "it has learned"


def test_no_host_reads_refuses_reads_and_shapes_that_depend_on_values() -> None:
    numbers = torch.arange(4)
    for forbidden in (
        lambda: numbers.sum().item(),
        lambda: bool(numbers.any()),
        lambda: numbers[numbers > 1],
        lambda: numbers.nonzero(),
        lambda: numbers.masked_select(numbers > 1),
        lambda: numbers.unique(),
    ):
        with pytest.raises(AssertionError), NoHostReads():
            forbidden()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("algo", AGENTS)
def test_rollout_and_update_never_synchronize_with_cuda(algo: str) -> None:
    trainer = make_trainer(config_of(algo, "connect4", "eager", "cuda"))
    step = trainer.env.reset()
    step, _ = trainer.update(step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step, _ = trainer.update(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
