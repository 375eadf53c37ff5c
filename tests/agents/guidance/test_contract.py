"""What every method of guidance keeps, over METHODS: no advice changes nothing, to the bit, and more.

The time step on which all are tried is that of tests/helpers/guidance.py. What each method does with advice is in the
test file of that method.
"""

import math

import pytest
import torch
from torch import Tensor

from agents.guidance import METHODS, Guidance
from agents.guidance.preferences import Preferences
from agents.policy import masked_argmax
from tests.helpers.guidance import ACTIONS, PAIRS, ROWS, Stored, act, make_case, make_method, make_next_step
from tests.helpers.host_reads import NoHostReads
from tests.helpers.students import all_equal, save_and_load, uniforms

ALL = pytest.mark.parametrize(("name", "algo"), PAIRS)
ANNEALED = pytest.mark.parametrize(("name", "algo"), [pair for pair in PAIRS if METHODS[pair[0]].is_annealed])


def as_rollout(stored: Stored, time_steps: int = 8) -> Stored:
    """Return the same transitions as (T, N, …)."""
    return Stored(*(column.view(time_steps, -1, *column.shape[1:]) for column in stored))


@ALL
def test_act_returns_legal_actions_and_follows_only_where_there_is_advice(name: str, algo: str) -> None:
    _, case, stored = act(name, algo)
    assert stored.action.dtype == torch.int64
    assert case.action_mask.gather(1, stored.action[:, None]).all()
    assert stored.followed.dtype == torch.bool
    assert stored.followed.shape == (ROWS,)
    has_advice = case.advice.sum(1) > 0
    assert not (stored.followed & ~has_advice).any()
    assert stored.action[~has_advice].equal(case.decision.action[~has_advice])


@ALL
def test_guidance_without_advice_changes_nothing_to_the_bit(name: str, algo: str) -> None:
    method = make_method(name, algo)
    case = make_case(method.has_policy)
    none = torch.zeros_like(case.advice)
    action, followed = method.act(case.decision, none, case.action_mask, case.u)
    assert action.equal(case.decision.action)
    assert not followed.any()
    scores = case.decision.scores.clone().requires_grad_()
    batch = Stored(case.action_mask, action, none, followed)
    policy = method.policy(scores, case.action_mask, none, followed)
    assert policy.equal(scores)
    assert float(torch.as_tensor(method.loss(scores, batch)).detach()) == 0
    numbers = uniforms(11, 8, ROWS // 8)
    advantages, weight = method.advantage(numbers, as_rollout(batch))
    assert advantages.equal(numbers)
    assert weight.equal(torch.ones_like(numbers))
    value = uniforms(12, ROWS)
    assert method.bootstrap(value, scores, case.action_mask, none).equal(value)
    for at in range(3):
        next_step = make_next_step(at)
        reward, bonus = method.reward(next_step, action, none)
        assert reward.equal(next_step.reward)
        assert not bonus.any()
        assert method.shaped(reward, bonus).equal(reward)
    inputs = method.inputs(none)
    assert inputs is None or not inputs.any()
    plain = scores.square().masked_fill(~case.action_mask, 0).sum()
    guided = policy.square().masked_fill(~case.action_mask, 0).sum() + method.loss(scores, batch)
    slopes = [torch.autograd.grad(one, scores)[0] for one in (plain, guided)]
    assert slopes[0].equal(slopes[1])


@ANNEALED
def test_annealed_guidance_at_strength_0_changes_nothing(name: str, algo: str) -> None:
    method, case, stored = act(name, algo, strength=0.0)
    if name == "blend":  # samples once more from what is the student's own policy then: see the next assertion
        assert not stored.followed[case.advice.sum(1) == 0].any()
    else:
        assert stored.action.equal(case.decision.action)
        assert not stored.followed.any()
    policy = method.policy(case.decision.scores, case.action_mask, case.advice, stored.followed)
    legal = case.action_mask
    torch.testing.assert_close(policy[legal], case.decision.scores[legal], rtol=1e-5, atol=1e-5)
    scores = case.decision.scores.clone().requires_grad_()
    loss = torch.as_tensor(method.loss(scores, stored)) + 0 * scores.sum()
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, scores)[0].any()
    numbers = uniforms(11, 8, ROWS // 8)
    advantages, weight = method.advantage(numbers, as_rollout(stored))
    assert advantages.equal(numbers)
    assert weight.equal(torch.ones_like(numbers))
    value = uniforms(12, ROWS)
    assert method.bootstrap(value, case.decision.scores, case.action_mask, case.advice).equal(value)
    next_step = make_next_step(0)
    reward, bonus = method.reward(next_step, stored.action, case.advice)
    assert reward.equal(next_step.reward)
    assert method.shaped(reward, bonus).equal(next_step.reward)


@ALL
def test_guidance_gradients_equal_differences_where_all_actions_are_legal(name: str, algo: str) -> None:
    method, case, stored = act(name, algo)
    rows = case.action_mask.all(1).nonzero()[:, 0][:12]
    assert len(rows) == 12
    batch = Stored(*(column[rows].double() if column.is_floating_point() else column[rows] for column in stored))
    scores = case.decision.scores[rows].double().requires_grad_()
    method.strength = method.strength.double()

    def both(scores: Tensor) -> tuple[Tensor, Tensor]:
        policy = method.policy(scores, batch.action_mask, batch.advice, batch.followed)
        return policy.exp(), scores.sum() * 0 + method.loss(scores, batch)

    assert torch.autograd.gradcheck(both, scores)


@ALL
def test_hooks_neither_modify_their_inputs_nor_read_values_on_the_host(name: str, algo: str) -> None:
    method = make_method(name, algo)
    if isinstance(method, Preferences):
        method.fit([uniforms(one, 3, 4) for one in range(2)], [(0, 1)], [1.0], 1)
    case, next_step = make_case(method.has_policy), make_next_step(0)._replace(final_obs=uniforms(1, ROWS, 4))
    given = [*case.decision, *case[1:], next_step.reward, next_step.terminated, next_step.truncated]
    before = [tensor.clone() for tensor in given]
    value = uniforms(2, ROWS)
    with NoHostReads():
        action, followed = method.act(case.decision, case.advice, case.action_mask, case.u)
        method.policy(case.decision.scores, case.action_mask, case.advice, followed)
        reward, bonus = method.reward(next_step, action, case.advice)
        method.shaped(reward, bonus)
        method.bootstrap(value, case.decision.scores, case.action_mask, case.advice)
        stored = Stored(case.action_mask, action, case.advice, followed)
        method.loss(case.decision.scores, stored)
        method.advantage(value.view(8, -1), as_rollout(stored))
        method.inputs(case.advice)
    assert all_equal(given, before)


@pytest.mark.parametrize("name", METHODS)
def test_method_that_stores_no_advice_fills_no_hook_of_an_update(name: str) -> None:
    """Those hooks are not called then."""
    method = METHODS[name]
    if not method.stores_advice:
        for hook in ("policy", "advantage", "bootstrap", "loss", "shaped"):
            assert getattr(method, hook) is getattr(Guidance, hook), hook
    if method.is_annealed:
        assert method.max_strength > 0
        assert method.strength_end == 0


@ALL
def test_guidance_resumed_from_a_checkpoint_goes_on_as_the_saved_one(name: str, algo: str) -> None:
    method, other = make_method(name, algo), make_method(name, algo)
    if isinstance(method, Preferences):
        method.fit([uniforms(one, 3, 4) for one in range(4)], [(0, 1), (2, 3)], [1.0, 0.0], 1)
    case = make_case(method.has_policy)

    def reward(of: Guidance, at: int) -> Tensor:
        next_step = make_next_step(at)._replace(final_obs=uniforms(at, ROWS, 4))
        shaped = of.shaped(*of.reward(next_step, case.decision.action, case.advice))
        assert not shaped.equal(next_step.reward) or name not in ("shape", "preferences", "modulate", "modulate-r")
        return shaped

    reward(method, 0)
    other.load_state_dict(save_and_load(method.state_dict()))
    assert all(reward(method, at).equal(reward(other, at)) for at in range(1, 4))


@pytest.mark.parametrize("name", METHODS)
def test_inputs_have_the_width_that_num_inputs_says(name: str) -> None:
    method = make_method(name, METHODS[name].students[0])
    inputs = method.inputs(make_case(method.has_policy).advice)
    assert (0 if inputs is None else inputs.shape[1]) == method.num_inputs(ACTIONS)


def test_guidance_base_takes_the_student_s_own_action() -> None:
    case = make_case(True)
    action, followed = Guidance(True, "cpu").act(case.decision, case.advice, case.action_mask, case.u)
    assert action.equal(case.decision.action)
    assert not followed.any()


def test_shaped_reward_adds_the_bonus_by_strength_and_scale() -> None:
    method = make_method("modulate", "dqn", 0.5, reward_scale=0.3)
    rewards, bonus = uniforms(1, 4, 6), uniforms(2, 4, 6) - 0.5
    for (row, column), found in zip(
        [(row, column) for row in range(4) for column in range(6)], method.shaped(rewards, bonus).flatten(), strict=True
    ):
        expected = float(rewards[row, column]) + 0.5 * 0.3 * float(bonus[row, column])
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_case_of_these_tests_has_advice_of_every_kind() -> None:
    """With and without certainty, agreeing with the student and not, in states with one legal action and several."""
    for has_policy in (True, False):
        case = make_case(has_policy)
        has_advice, certain = case.advice.sum(1) > 0, case.advice.amax(1) == 1
        same = case.advice.argmax(1) == masked_argmax(case.decision.scores, case.action_mask)
        single = case.action_mask.sum(1) == 1
        groups = [has_advice & ~certain, has_advice & certain & ~single, has_advice & same, has_advice & ~same, single]
        assert all(int(group.sum()) > 10 for group in groups)
        assert math.isclose(float(case.advice[has_advice].sum(1).mean()), 1.0, rel_tol=1e-5)
        assert not case.advice[~case.action_mask].any()
