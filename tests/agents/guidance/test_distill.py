"""Distill and KL: distances from the tutor's policy row by row in Python floats, and the soft value of KL's targets."""

import math

import pytest
import torch
from torch import Tensor

from agents import AGENTS
from agents.guidance.distill import SMOOTHING
from agents.policy import TEMPERATURE, masked_log_softmax
from tests.helpers.guidance import ACTIONS, ROWS, Stored, act
from tests.helpers.students import uniforms


def policy_by_definition(scores: Tensor, action_mask: Tensor, row: int, has_policy: bool) -> list[float]:
    """Return a row's policy: softmax over legal actions of log-probabilities, or of action values / TEMPERATURE."""
    temperature = 1 if has_policy else TEMPERATURE
    legal = action_mask[row].tolist()
    weights = [math.exp(score / temperature) * one for score, one in zip(scores[row].tolist(), legal, strict=True)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("algo", AGENTS)
@pytest.mark.parametrize("name", ["distill", "kl"])
def test_distance_to_the_tutor_is_the_added_loss(name: str, algo: str) -> None:
    method, case, stored = act(name, algo)
    assert stored.action.equal(case.decision.action), "the student acts itself"
    assert not stored.followed.any()
    total, has_advice = 0.0, case.advice.any(1)
    for row in range(ROWS):
        if not has_advice[row]:
            continue
        tutor = case.advice[row].tolist()
        student = policy_by_definition(case.decision.scores, case.action_mask, row, method.has_policy)
        if name == "distill":
            total -= sum(p * math.log(q) for p, q in zip(tutor, student, strict=True) if p > 0)
        else:
            floor = SMOOTHING / int(case.action_mask[row].sum())
            smoothed = [(1 - SMOOTHING) * p + floor for p in tutor]
            total += sum(q * math.log(q / p) for p, q in zip(smoothed, student, strict=True) if q > 0)
    scores = case.decision.scores.double().requires_grad_()
    loss = method.loss(scores, stored)
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(0.7 * total / ROWS, rel=1e-4)
    (slope,) = torch.autograd.grad(loss, scores)
    assert slope.isfinite().all()
    assert (slope[has_advice].abs().sum(1) > 0).float().mean() > 0.5


def test_kl_bootstrap_lies_between_the_tutor_s_value_and_the_best() -> None:
    """The formula of distill.py; where no advice is known the student's estimate stays, to the bit."""
    method, case, _ = act("kl", "dqn", 3.0)
    q_values, value = uniforms(60, ROWS, ACTIONS) * 2 - 1, uniforms(61, ROWS)
    has_advice = case.advice.any(1)
    found = method.bootstrap(value, q_values, case.action_mask, case.advice)
    for row in range(ROWS):
        if not has_advice[row]:
            assert found[row] == value[row]
            continue
        legal = case.action_mask[row].tolist()
        prior = [(1 - SMOOTHING) * p + SMOOTHING / sum(legal) for p in case.advice[row].tolist()]
        pairs = [(p, q) for p, q, one in zip(prior, q_values[row].tolist(), legal, strict=True) if one]
        expected = 0.3 * math.log(sum(p * math.exp(q / 0.3) for p, q in pairs))
        assert found[row].item() == pytest.approx(expected, abs=1e-5)
        assert sum(p * q for p, q in pairs) - 1e-5 <= found[row] <= max(q for _, q in pairs) + 1e-5
    method.strength.fill_(1e-4)
    cold = method.bootstrap(value, q_values, case.action_mask, case.advice)
    best = q_values.masked_fill(~case.action_mask, -torch.inf).amax(1)
    torch.testing.assert_close(cold[has_advice], best[has_advice], atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["distill", "kl"])
def test_gradient_descent_on_the_distance_leads_to_the_tutor(name: str) -> None:
    method, case, stored = act(name, "ppo", 1.0)
    logits = torch.zeros(ROWS, ACTIONS, requires_grad=True)
    for _ in range(400):
        loss = method.loss(masked_log_softmax(logits, case.action_mask), stored)
        (slope,) = torch.autograd.grad(loss, logits)
        logits.data -= 100 * slope
    distance = (masked_log_softmax(logits, case.action_mask).exp() - case.advice).abs().sum(1)
    assert distance[case.advice.any(1)].max() < 0.25


def test_distill_loss_counts_rows_without_advice_in_its_mean() -> None:
    method, case, stored = act("distill", "ppo")
    has_advice = case.advice.any(1)
    advised = Stored(*(column[has_advice] for column in stored))
    whole, part = (
        method.loss(case.decision.scores[rows], batch) for rows, batch in ((..., stored), (has_advice, advised))
    )
    assert float(whole) == pytest.approx(float(part) * float(has_advice.float().mean()), rel=1e-5)
