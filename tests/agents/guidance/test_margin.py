"""Margin: the loss row by row in Python floats, and which env copies follow."""

import pytest
import torch

from agents.guidance.demonstrate import MARGIN
from agents.guidance.margin import margin_loss
from tests.helpers.guidance import ACTIONS, ROWS, act


def test_margin_loss_keeps_the_advised_actions_best_wherever_there_is_advice() -> None:
    method, case, stored = act("margin", "dqn")
    total, scores = 0.0, case.decision.scores
    for row in range(ROWS):
        advice = case.advice[row]
        if advice.sum() > 0:
            best = [action for action in range(ACTIONS) if advice[action] == advice.max()]
            legal = [action for action in range(ACTIONS) if case.action_mask[row, action]]
            rivals = [float(scores[row, action]) + MARGIN * (action not in best) for action in legal]
            total += max(rivals) - max(float(scores[row, action]) for action in best)
    scores = scores.clone().requires_grad_()
    loss = method.loss(scores, stored)
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(0.7 * total / ROWS, rel=1e-4)
    (slope,) = torch.autograd.grad(loss, scores)
    assert (slope[~case.action_mask] == 0).all()


def test_margin_loss_lets_equally_advised_actions_be_equal() -> None:
    scores = torch.tensor([[0.5, 0.45, 0.2]])
    everything = torch.ones(1, 3, dtype=torch.bool)
    assert margin_loss(scores, everything, torch.tensor([[0.5, 0.5, 0.0]])).item() == 0
    assert margin_loss(scores, everything, torch.tensor([[0.0, 1.0, 0.0]])).item() == pytest.approx(0.15)


def test_margin_follows_in_every_other_env_copy_at_any_strength() -> None:
    for strength, followed in ((1.0, True), (0.1, True), (0.0, False)):
        method, case, stored = act("margin", "dqn", strength)
        has_advice = case.advice.sum(1) > 0
        assert not stored.followed[method.alone].any()
        led = has_advice & ~method.alone
        assert int(method.alone.sum()) == ROWS // 2
        assert stored.followed[led].eq(followed).all()
        assert stored.action[stored.followed].equal(case.advice.argmax(1)[stored.followed])
        assert stored.action[~stored.followed].equal(case.decision.action[~stored.followed])
