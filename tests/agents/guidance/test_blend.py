"""Blend: the mixture of both policies row by row in Python floats, and actions that are sampled from it."""

import math

import pytest

from tests.helpers.guidance import ROWS, act, sampled_shares


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_blend_policy_is_a_mixture_weighted_by_the_tutor_s_certainty(algo: str, strength: float) -> None:
    method, case, stored = act("blend", algo, strength)
    found = method.policy(case.decision.scores, case.action_mask, case.advice, stored.followed).exp()
    for row in range(ROWS):
        tutor, policy = case.advice[row].tolist(), case.decision.scores[row].exp().tolist()
        if sum(tutor) > 0:
            number = max(int(case.action_mask[row].sum()), 2)
            undecided = -sum(p * math.log(p) for p in tutor if p > 0) / math.log(number)
            weight = strength * (1 - undecided)
            policy = [weight * p + (1 - weight) * q for p, q in zip(tutor, policy, strict=True)]
        assert found[row].tolist() == pytest.approx(policy, abs=1e-5)
    assert stored.followed.equal(case.advice.any(1))


def test_blend_actions_are_sampled_from_its_policy() -> None:
    shares, policy, _, _ = sampled_shares("blend")
    assert shares == pytest.approx(policy, abs=0.015)
