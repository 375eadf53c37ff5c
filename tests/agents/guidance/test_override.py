"""Override: the tutor's best action is done; corrected, the policy learns from the student's own actions alone."""

import pytest
import torch

from agents.gae import gae
from agents.guidance import METHODS
from tests.helpers.guidance import ROWS, act
from tests.helpers.guided import guided_rollout
from tests.helpers.students import uniforms


@pytest.mark.parametrize("name", ["override", "override-corrected", "demonstrate"])
def test_override_takes_the_tutor_s_best_action_where_there_is_advice(name: str) -> None:
    _, case, stored = act(name, METHODS[name].students[0])
    for row in range(ROWS):
        has_advice = bool(case.advice[row].any())
        expected = case.advice[row].argmax() if has_advice else case.decision.action[row]
        assert stored.action[row] == expected
        assert stored.followed[row] == has_advice


def test_corrected_override_gives_the_tutor_s_actions_no_weight() -> None:
    method, _, stored = act("override-corrected", "ppo")
    advantages = uniforms(1, 8, 50)
    rollout = type(stored)(*(column.view(8, 50, *column.shape[1:]) for column in stored))
    found, weight = method.advantage(advantages, rollout)
    assert found.equal(advantages)
    assert weight.equal((~rollout.followed).float())
    assert 0 < weight.mean() < 1


@pytest.mark.parametrize("norm_adv", [True, False])
@pytest.mark.parametrize("share_own", [0.0, 0.1, 0.5, 1.0])
def test_corrected_advantages_are_those_of_the_own_actions_as_if_there_were_no_others(
    share_own: float, norm_adv: bool
) -> None:
    agent, step = guided_rollout("override-corrected", "connect4", norm_adv=norm_adv)
    stored = agent.rollout
    own = uniforms(1, *stored.followed.shape) < share_own
    stored.followed.copy_(~own)
    next_values = torch.cat([stored.value[1:], agent.network.get_value(step.obs)[None].detach()])
    ends = (stored.terminated, stored.truncated)
    plain, _ = gae(stored.reward, stored.value, next_values, *ends, agent.config.gamma, agent.config.gae_lambda)
    agent.compute_advantages(step)
    assert not stored.advantage[~own].any()
    if own.any():
        expected = plain[own].double()
        if norm_adv:
            std = max(expected.std(correction=0).item(), agent.config.adv_floor)
            expected = (expected - expected.mean()) / std
        found = stored.advantage[own].double() * own.double().mean()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
