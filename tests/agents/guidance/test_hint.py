"""Hint: the network sees advice and whether there is any; states are valued with the hint that came with them."""

import math

import pytest
import torch

from agents import AGENTS
from agents.dqn import dqn_loss
from agents.gae import gae
from agents.guidance import METHODS
from agents.guidance.base import EMPTY
from agents.networks import Network, NetworkConfig
from agents.replay_buffer import Batch
from tests.helpers.guidance import ACTIONS, GAMMA, ROWS, act
from tests.helpers.guided import connect4, guided_rollout, guided_student
from tests.helpers.students import all_equal, uniforms


@pytest.mark.parametrize("algo", AGENTS)
def test_hint_inputs_are_the_advice_and_whether_there_is_any(algo: str) -> None:
    method, case, stored = act("hint", algo)
    assert stored.action.equal(case.decision.action), "the student acts itself"
    inputs = method.inputs(case.advice)
    assert inputs is not None
    assert inputs.shape == (ROWS, method.num_inputs(ACTIONS))
    for row in range(ROWS):
        has_advice = bool(case.advice[row].any())
        expected = [*case.advice[row].tolist(), 1.0] if has_advice else [0.0] * (ACTIONS + 1)
        assert inputs[row].tolist() == expected
    assert method.inputs(EMPTY) is None


@pytest.mark.parametrize("algo", AGENTS)
def test_decide_with_a_hint_uses_the_noise_of_the_last_act(algo: str) -> None:
    env = connect4(64)
    agent, step = guided_student(algo, env, "hint"), env.reset()
    first = agent.act(step.obs, step.action_mask)
    no_advice = torch.zeros(64, 7)
    assert all_equal(agent.decide(step.obs, step.action_mask, no_advice), first)
    for module in agent.network.modules():
        if isinstance(module, Network):
            torch.nn.init.normal_(module.extra_inputs.weight, std=5.0)
    assert all_equal(agent.decide(step.obs, step.action_mask, no_advice), first), "zeros change nothing"
    hinted = agent.decide(step.obs, step.action_mask, uniforms(17, 64, 7))
    assert not hinted.greedy.equal(first.greedy)
    assert not hinted.scores.equal(first.scores)
    assert step.action_mask.gather(1, hinted.action[:, None]).all()
    assert agent.steps == 1


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_decide_explores_as_act_did(algo: str) -> None:
    """Where the network does not use the hint, the second decision is the first one, at every time step."""
    env = connect4(64)
    agent, step = guided_student(algo, env, "hint"), env.reset()
    for at in range(3):
        first = agent.act(step.obs, step.action_mask)
        assert agent.decide(step.obs, step.action_mask, uniforms(at, 64, 7)).action.equal(first.action)
        step = env.step(first.action).as_initial()


def test_value_with_a_time_limit_bootstraps_from_the_next_state_with_its_hint() -> None:
    agent, step = guided_rollout("hint", "snake", env_kwargs=("size=4", "time_limit=10"))
    stored = agent.rollout
    next_values = torch.cat([stored.value[1:], agent.network.get_value(step.obs)[None].detach()])
    ended = stored.terminated | stored.truncated
    assert ended.any()
    assert stored.truncated.any()
    next_values = torch.where(ended, stored.next_value, next_values)
    assert not next_values.allclose(stored.next_value), "hints matter here"
    ends = (stored.terminated, stored.truncated)
    _, returns = gae(stored.reward, stored.value, next_values, *ends, agent.config.gamma, agent.config.gae_lambda)
    agent.compute_advantages(step)
    torch.testing.assert_close(stored.returns, returns)


@torch.no_grad()
def test_dqn_loss_values_both_states_with_their_hints() -> None:
    method = METHODS["hint"](False, "cpu")
    config = NetworkConfig("mlp", (16,))
    networks = [Network(config, (6,), ACTIONS, seed, extra_inputs=ACTIONS + 1) for seed in (1, 2)]
    for network in networks:
        for weight in network.parameters():
            weight.data += 0.1 * uniforms(3, *weight.shape)
    online, target = networks
    action_mask = torch.ones(ROWS, ACTIONS, dtype=torch.bool)
    has_advice = (uniforms(4, ROWS) < 0.7)[:, None]
    advice, next_advice = uniforms(9, ROWS, ACTIONS) * has_advice, uniforms(5, ROWS, ACTIONS) * has_advice.flip(0)
    batch = Batch(
        obs=uniforms(6, ROWS, 6),
        action_mask=action_mask,
        action=(uniforms(10, ROWS) * ACTIONS).long(),
        reward=uniforms(7, ROWS),
        discount=torch.full((ROWS,), GAMMA),
        next_obs=uniforms(8, ROWS, 6),
        next_action_mask=action_mask,
        advice=advice,
        followed=torch.zeros(ROWS, dtype=torch.bool),
        next_advice=next_advice,
    )
    loss, _ = dqn_loss(online, target, batch, 1e9, method)
    errors = []
    for row in range(ROWS):
        hint, next_hint = (
            torch.cat([one[row], one[row].any()[None].float()])[None] for one in (batch.advice, batch.next_advice)
        )
        best = online(batch.next_obs[row : row + 1], next_hint).argmax()
        expected = batch.reward[row] + GAMMA * target(batch.next_obs[row : row + 1], next_hint)[0, best]
        value = online(batch.obs[row : row + 1], hint)[0, batch.action[row]]
        errors.append(float((value - expected) ** 2) / 2)
    assert float(loss) == pytest.approx(math.fsum(errors) / ROWS, rel=1e-4)
