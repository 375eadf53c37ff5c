"""Mask: the actions that the tutor holds plausible row by row in Python, and what is done and learned among them."""

import math

import pytest

from agents import AGENTS
from agents.guidance.mask import PLAUSIBLE, plausible_actions
from tests.helpers.guidance import ROWS, act, sampled_shares


@pytest.mark.parametrize("algo", AGENTS)
def test_mask_leaves_the_plausible_actions(algo: str) -> None:
    method, case, stored = act("mask", algo)
    u, scores = case.u[:, -1], case.decision.scores
    found = plausible_actions(case.advice, case.action_mask, stored.followed)
    policy = method.policy(scores, case.action_mask, case.advice, stored.followed)
    for row in range(ROWS):
        plausible, own = found[row].tolist(), int(case.decision.action[row])
        applied = bool(case.advice[row].any()) and bool(u[row] < 0.7)
        assert stored.followed[row] == applied
        if not applied:
            assert plausible == case.action_mask[row].tolist()
            assert stored.action[row] == own
            assert policy[row].equal(scores[row])
            continue
        best = max(case.advice[row].tolist())
        pairs = zip(case.advice[row].tolist(), case.action_mask[row].tolist(), strict=True)
        assert plausible == [legal and p >= PLAUSIBLE * best for p, legal in pairs]
        assert plausible[stored.action[row]]
        if algo == "dqn":
            pairs = zip(scores[row].tolist(), plausible, strict=True)
            values = [value if one else -math.inf for value, one in pairs]
            assert stored.action[row] == (own if plausible[own] else values.index(max(values)))
        else:
            kept = [q * one for q, one in zip(scores[row].exp().tolist(), plausible, strict=True)]
            assert policy[row].exp().tolist() == pytest.approx([q / sum(kept) for q in kept], abs=1e-5)


def test_mask_actions_are_sampled_from_its_policy_in_a_share_of_strength() -> None:
    shares, policy, action, followed = sampled_shares("mask")
    assert shares == pytest.approx(policy, abs=0.015)
    assert followed.float().mean() == pytest.approx(0.6, abs=0.02)
    assert (action[followed] != 2).all(), "a hundredth of what the best has is not plausible"
    assert not action[~followed].any(), "the student's own action"
