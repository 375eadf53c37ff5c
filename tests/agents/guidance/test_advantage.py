"""Advantage: the tutor's preference for the action that was done, row by row in Python floats."""

import pytest
import torch

from tests.helpers.guidance import ROWS, Stored, act
from tests.helpers.students import uniforms


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_advantage_adds_the_tutor_s_preference(algo: str) -> None:
    method, case, stored = act("advantage", algo)
    assert stored.action.equal(case.decision.action), "the student acts itself"
    advantages = uniforms(14, 8, 50)
    rollout = Stored(*(column.view(8, 50, *column.shape[1:]) for column in stored))
    found, weight = method.advantage(advantages, rollout)
    assert weight.equal(torch.ones(8, 50))
    for row in range(ROWS):
        preference = 0.0
        if case.advice[row].any():
            preference = float(case.advice[row, stored.action[row]]) - 1 / int(case.action_mask[row].sum())
        expected = float(advantages.flatten()[row]) + 0.7 * preference
        assert found.flatten()[row].item() == pytest.approx(expected, abs=1e-6)
