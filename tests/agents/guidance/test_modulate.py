"""Modulation: what a model thinks actions are worth in critical states, row by row in Python floats."""

import pytest
import torch

from agents import AGENTS
from agents.policy import Decision
from tests.helpers.guidance import ROWS, Stored, make_case, make_method, make_next_step
from tests.helpers.students import uniforms


@pytest.mark.parametrize("name", ["modulate", "modulate-a", "modulate-r"])
@pytest.mark.parametrize("algo", AGENTS)
def test_modulate_acts_and_pays_in_critical_states(name: str, algo: str) -> None:
    method = make_method(name, algo, strength=0.6, reward_scale=0.5)
    case, next_step = make_case(method.has_policy), make_next_step(0)
    critical = case.advice.any(1)
    worth = (uniforms(40, ROWS, 5) * 2 - 1) * case.action_mask * critical[:, None]
    action, followed = method.act(case.decision, worth, case.action_mask, case.u)
    shaped = method.shaped(*method.reward(next_step, action, worth))
    for row in range(ROWS):
        expected = int(case.decision.action[row])
        legal = [one for one in range(5) if case.action_mask[row, one]]
        best = max(legal, key=worth[row].tolist().__getitem__)
        acts = name != "modulate-r" and bool(critical[row] & (case.u[row, -1] < 0.6) & (worth[row, best] > 0))
        expected = best if acts else expected
        assert action[row] == expected
        assert followed[row] == acts
        bonus = 0.0 if name == "modulate-a" else 0.6 * 0.5 * float(worth[row, expected])
        assert shaped[row].item() == pytest.approx(float(next_step.reward[row]) + bonus, abs=1e-6)


@pytest.mark.parametrize("name", ["modulate", "modulate-a"])
def test_modulate_leads_to_legal_actions_of_positive_worth_alone(name: str) -> None:
    """Findings that contradict each other may leave nothing; and an illegal action is never the better one."""
    method = make_method(name, "ppo", strength=1.0)
    worth = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.1, -1.0], [0.9, -0.2, -0.1], [0.0, 0.4, 0.5]])
    action_mask = torch.tensor([[False, True, True], [False, True, True], [False, True, True], [True, True, True]])
    scores = torch.zeros(4, 3)
    for own, expected in ((2, [2, 1, 2, 2]), (1, [1, 1, 1, 2])):
        decision = Decision(torch.full((4,), own), torch.full((4,), own), scores, scores[:, 0])
        action, followed = method.act(decision, worth, action_mask, torch.zeros(4, 4))
        assert action.tolist() == expected
        assert followed.tolist() == [False, True, False, True]


@pytest.mark.parametrize("algo", AGENTS)
def test_modulate_distill_learns_the_named_action_where_it_is_legal_and_better(algo: str) -> None:
    """The cross-entropy of critical states; the student always acts itself."""
    method = make_method("modulate-d", algo, strength=2.0)
    case = make_case(method.has_policy)
    critical = case.advice.any(1)
    worth = (uniforms(40, ROWS, 5) * 2 - 1) * critical[:, None]
    action, followed = method.act(case.decision, worth, case.action_mask, case.u)
    assert action.equal(case.decision.action)
    scores = case.decision.scores if method.has_policy else case.decision.scores / 0.1
    loss, named = 0.0, 0
    for row in range(ROWS):
        legal = [one for one in range(5) if case.action_mask[row, one]]
        best = max(legal, key=worth[row].tolist().__getitem__)
        if critical[row] and worth[row, best] > 0:
            named += 1
            loss -= float(scores[row, best] - scores[row, legal].logsumexp(0))
    assert 0 < named < ROWS
    found = method.loss(case.decision.scores, Stored(case.action_mask, action, worth, followed))
    assert float(found) == pytest.approx(2.0 * loss / ROWS, rel=1e-4)
