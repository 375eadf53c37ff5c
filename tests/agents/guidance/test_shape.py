"""Shape: lent and paid-back rewards of each env copy against a list of Python floats."""

import pytest
import torch

from agents import AGENTS
from envs.base import Step
from tests.helpers.guidance import GAMMA, ROWS, make_case, make_method, make_next_step


@pytest.mark.parametrize("algo", AGENTS)
def test_shape_lends_approval_and_takes_it_back_a_step_later(algo: str) -> None:
    """Six time steps; the formula is at the head of agents/guidance/shape.py."""
    method = make_method("shape", algo)
    potential = [0.0] * ROWS
    for at in range(6):
        method.strength.fill_(1 - 0.1 * at)
        case = make_case(method.has_policy)
        roll = [(row + 7 * at) % ROWS for row in range(ROWS)]
        decision, advice = case.decision._replace(action=case.decision.action[roll]), case.advice[roll]
        action, followed = method.act(decision, advice, case.action_mask[roll], case.u)
        assert action.equal(decision.action), "the student acts itself"
        assert not followed.any()
        next_step = make_next_step(at)
        reward, bonus = method.reward(next_step, action, advice)
        assert not bonus.any()
        for row in range(ROWS):
            approval = (1 - 0.1 * at) * float(advice[row, action[row]])
            next_potential = 0.0 if next_step.terminated[row] else approval
            expected = float(next_step.reward[row]) + GAMMA * next_potential - potential[row]
            assert reward[row].item() == pytest.approx(expected, abs=1e-6)
            potential[row] = 0.0 if next_step.truncated[row] else next_potential
    assert method.potential.tolist() == pytest.approx(potential, abs=1e-6)
    again = make_method("shape", algo)
    again.load_state_dict(method.state_dict())
    assert again.potential.equal(method.potential)


def test_shape_adds_nothing_over_a_whole_episode() -> None:
    """The discounted sum of what is added is 0 where an episode terminates (Ng, Harada & Russell 1999)."""
    method, case = make_method("shape", "ppo"), make_case(True)
    total, none = torch.zeros(ROWS), torch.zeros(ROWS)
    for at in range(10):
        done = torch.full((ROWS,), at == 9)
        next_step = Step(none, none, none, done, torch.zeros_like(done), none, none, {}, {})
        total += GAMMA**at * method.reward(next_step, case.decision.action, case.advice)[0]
        assert at == 9 or total[case.advice.any(1)].abs().max() > 0.1
    assert total.abs().max() < 1e-6
