"""Runs with every method of guidance: each changes what is learned, and without advice none does, to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import training.trust
from agents import AGENTS
from agents.guidance import METHODS, GuidanceConfig
from agents.networks import Network
from agents.policy import gather_action, masked_log_softmax
from tests.helpers.guidance import PAIRS
from tests.helpers.small_runs import series, small_config, tensors_in
from tests.helpers.trust_runs import echo_config
from train import Trainer, train
from training.checkpoint import load_checkpoint
from training.config import make_agent, make_env
from tutors import open_advisor

pytestmark = pytest.mark.train


def weights_after_run(run_dir: Path, algo: str, guidance: str, **tutoring: Any) -> list[Tensor]:
    """Return the weights after a small run, without those of extra inputs."""
    config = replace(small_config(algo, "connect4", run_dir, **tutoring), total_steps=1024, eval_episodes=1)
    train(replace(config, guiding=GuidanceConfig(guidance, trust="none")))
    weights = load_checkpoint(run_dir / "checkpoints", "cpu")["agent"]["network"]
    return tensors_in({name: weight for name, weight in weights.items() if "extra_inputs" not in name})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    """What each student learns without a tutor."""
    return {
        algo: weights_after_run(tmp_path_factory.mktemp(algo) / "run", algo, "none", tutor="none") for algo in AGENTS
    }


@pytest.mark.parametrize(("name", "algo"), [pair for pair in PAIRS if not METHODS[pair[0]].needs_episode_review])
def test_run_with_guidance_learns_other_weights_and_without_advice_the_same_as_alone(
    name: str, algo: str, alone: dict[str, list[Tensor]], tmp_path: Path
) -> None:
    unadvised = weights_after_run(tmp_path / "unadvised", algo, name, query_budget=0)
    guided = weights_after_run(tmp_path / "guided", algo, name)
    assert all(one.equal(other) for one, other in zip(alone[algo], unadvised, strict=True))
    assert all(one.equal(other) for one, other in zip(alone[algo], guided, strict=True)) == (name == "none")
    assert all(tensor.isfinite().all() for tensor in guided)
    assert sum(series(tmp_path / "guided", "tutor/consulted").values()) > 250


@pytest.mark.compile
@pytest.mark.parametrize(("algo", "name"), [("ppo", "blend"), ("dqn", "demonstrate")])
def test_compiled_run_with_guidance_equals_the_eager_one(algo: str, name: str, tmp_path: Path) -> None:
    config = replace(
        small_config(algo, "blackjack", tmp_path), guiding=GuidanceConfig(name, trust="none"), total_steps=1024
    )
    weights = []
    for mode in ("eager", "compile"):
        train(replace(config, compile_mode=mode, run_dir=tmp_path / mode))
        weights.append(tensors_in(load_checkpoint(tmp_path / mode / "checkpoints", "cpu")["agent"]["network"]))
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.compile
@pytest.mark.timeout(900)  # the compiler alone took 250 s beside other programs on two cores
@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_compiled_run_with_trust_equals_the_eager_one(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.trust, "PROBE_SHARE", 0.5)  # episodes enough in a short run
    config = echo_config(algo, tmp_path, GuidanceConfig(pretrain_updates=2))
    config = replace(config, total_steps=1536)
    found = []
    for mode in ("eager", "compile"):
        train(replace(config, compile_mode=mode, run_dir=tmp_path / mode))
        saved = load_checkpoint(tmp_path / mode / "checkpoints", "cpu")
        found.append((saved["trust"]["opened_at"], saved["global_step"], tensors_in(saved["agent"]["network"])))
    assert found[0][:2] == found[1][:2]
    assert found[0][0] is not None
    assert max(series(tmp_path / "compile", "tutor/trust").values()) > 0
    for one, other in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "algo"), [("distill", "dqn"), ("mask", "ppo"), ("override", "ppo"), ("hint", "a2c")])
def test_annealed_guidance_wants_advice_everywhere_and_then_nowhere(name: str, algo: str, tmp_path: Path) -> None:
    """The others with the consult probability, to the end; so does an annealed one whose --consult-to is set."""
    config = replace(small_config(algo, "connect4", tmp_path / "run"), guiding=GuidanceConfig(name, trust="none"))
    train(config)
    wanted = list(series(tmp_path / "run", "tutor/wanted").values())
    half = len(wanted) // 2
    if METHODS[name].is_annealed:
        assert wanted == [1.0] * half + [0.0] * half
        strength = list(series(tmp_path / "run", "tutor/strength").values())
        assert strength == sorted(strength, reverse=True)
        assert (strength[0] > 0, strength[-1]) == (True, 0)
        rarer = replace(config, run_dir=tmp_path / "rarer", tutoring=replace(config.tutoring, consult_to=0.5))
        train(rarer)
        wanted = list(series(tmp_path / "rarer", "tutor/wanted").values())
        assert all(0.5 < share < 1 for share in wanted[:half])
        assert wanted[half:] == [0.0] * half
    else:
        assert all(0 < share < 1 for share in wanted)
        assert wanted[-1] == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_run_with_hints_acts_and_stores_by_the_decision_that_saw_them(algo: str, tmp_path: Path) -> None:
    config = replace(small_config(algo, "connect4", tmp_path), guiding=GuidanceConfig("hint"))
    env = make_env(config, "cpu")
    agent = make_agent(config, env)
    for module in agent.network.modules():
        if isinstance(module, Network):
            torch.nn.init.normal_(module.extra_inputs.weight)
    with open_advisor(config.tutoring, env.game, 1, tmp_path, "cpu") as advisor:
        step = env.reset()
        Trainer(config, env, agent, advisor).rollout_step(step)
    stored = agent.rollout
    advice = stored.advice[0]
    assert advice.any(1).float().mean() > 0.9
    with torch.no_grad():
        logits, value = agent.network(step.obs, agent.guidance.inputs(advice))
        _, unseen = agent.network(step.obs)
    log_probs = masked_log_softmax(logits, step.action_mask)
    torch.testing.assert_close(stored.value[0], value)
    assert not value.allclose(unseen)
    torch.testing.assert_close(stored.log_prob[0], gather_action(log_probs, stored.action[0]))
