"""Demonstrate: the margin loss row by row in Python floats."""

import pytest
import torch

from agents.guidance.demonstrate import MARGIN
from tests.helpers.guidance import ACTIONS, ROWS, act
from tests.helpers.students import uniforms


def test_demonstrate_loss_keeps_the_demonstrated_action_best() -> None:
    method, case, stored = act("demonstrate", "dqn")
    followed = stored.followed & (uniforms(1, ROWS) < 0.5)  # of some advice the student did not do the best action
    assert followed.any()
    assert not followed.equal(stored.followed)
    stored = stored._replace(followed=followed)
    total, scores = 0.0, case.decision.scores
    for row in range(ROWS):
        if followed[row]:
            best = int(case.advice[row].argmax())
            legal = [action for action in range(ACTIONS) if case.action_mask[row, action]]
            rivals = [float(scores[row, action]) + MARGIN * (action != best) for action in legal]
            total += max(rivals) - float(scores[row, best])
    scores = scores.clone().requires_grad_()
    loss = method.loss(scores, stored)
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(0.7 * total / ROWS, rel=1e-4)
    (slope,) = torch.autograd.grad(loss, scores)
    assert (slope[~case.action_mask] == 0).all()
    assert (slope[~followed] == 0).all()
