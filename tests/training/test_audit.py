"""The audit of findings: two arms on toy games of known worth, real games row by row, statistics against SciPy."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import envs
from envs.base import Spec, State, select_rows
from envs.rng import ENV_STREAM, CounterRNG, sample_legal
from training.audit import (
    MAX_ARM_STEPS,
    MAX_PAIRS,
    MIN_SAMPLES,
    Audit,
    AuditedFinding,
    Auditor,
    Policy,
    average_ranks,
    mean_verdict,
    rank_verdict,
    t_quantile,
)

GUIDANCE = SimpleNamespace(strength=torch.zeros(()))


class Constant:
    """A student that always does the same."""

    guidance = GUIDANCE

    def __init__(self, action: int = 0) -> None:
        self.action = action

    def greedy(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        return torch.full((len(obs),), self.action)


class Doors:
    """A game of `length` steps: action a of state s is worth `worth[s][a]`, plus `noise` times a uniform number."""

    def __init__(self, worth: list[list[float]], length: int = 3, noise: float = 0.0) -> None:
        self.worth, self.length, self.noise = torch.tensor(worth), length, noise
        self.spec = Spec("doors", 1, (1,), self.worth.shape[1], 0, 1, None)
        self.stepped = 0

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        self.stepped += len(action)
        at = state["at"] + 1
        reward = self.worth[state["door"], action] + self.noise * u[:, 0]
        return {"door": state["door"], "at": at}, reward, at >= self.length

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        obs = state["door"][:, None].float()
        return obs, torch.ones(len(obs), self.worth.shape[1], dtype=torch.bool)


def finding(door: int, action: int, question: Any = None, time_left: int | None = None) -> AuditedFinding:
    state = {"door": torch.tensor([door]), "at": torch.tensor([0])}
    return AuditedFinding((door, action) if question is None else question, state, action, time_left)


class Follows:
    """What is done by a student that follows findings by their index: the action of its door, and else 0."""

    def __init__(self, findings: list[AuditedFinding]) -> None:
        self.findings = findings
        self.asked: list[list[int]] = []

    def __call__(self, kept: Sequence[int]) -> Policy:
        self.asked.append(list(kept))
        actions = {int(self.findings[index].state["door"]): self.findings[index].action for index in kept}

        def policy(state: State, obs: Tensor, action_mask: Tensor) -> Tensor:
            return torch.tensor([actions.get(door, 0) for door in state["door"].tolist()])

        return policy


def audit(findings: list[AuditedFinding], game: Any, max_env_steps: int, seed: int = 1) -> Audit:
    return Auditor(game, Constant(), max_env_steps, seed).audit(findings, Follows(findings))


def test_arms_see_the_same_random_numbers() -> None:
    """The reward is the random number alone: any two actions differ by exactly 0."""
    game = Doors([[0.0, 0.0]] * 40, length=7, noise=1.0)
    auditor = Auditor(game, Constant(), 10_000, 1)
    differences, is_other = auditor.compare([finding(door, 1) for door in range(40)], None)
    assert auditor.env_steps == game.stepped == 2 * 7 * 40
    assert all(is_other)
    assert differences == [0.0] * 40
    assert auditor.compare([finding(3, 1)], lambda state, obs, mask: torch.ones(1).long())[0] == [0.0]


def test_pairs_of_arms_see_different_random_numbers() -> None:
    """What the first action is worth shows through a random number that only one of two arms is paid with."""

    class Ticket(Doors):
        def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
            state, _, terminated = super().step(state, action, u)
            return state, u[:, 0] * action, terminated

    auditor = Auditor(Ticket([[0.0, 0.0]] * 5, length=1), Constant(), 10_000, 3)
    found = [auditor.compare([finding(door, 1) for door in range(5)], None)[0] for _ in range(4)]
    expected = CounterRNG(3, torch.arange(20), ENV_STREAM).uniform(0, 1).view(4, 5)
    assert found == [pytest.approx(row, abs=1e-6) for row in expected.tolist()]
    assert len({one for row in found for one in row}) == 20


def test_finding_that_helps_is_kept_and_one_that_harms_is_dropped() -> None:
    worth = [[0.0, 1.0 + 0.1 * door, -1.0] for door in range(20)]
    found = [finding(door, 1) for door in range(20)] + [finding(3, 2), finding(4, 0)]
    result = audit(found, Doors(worth, noise=0.5), 100_000)
    assert result.differences[:20] == pytest.approx([1.0 + 0.1 * door for door in range(20)], abs=1e-5)
    assert result.differences[20:] == pytest.approx([-1.0, 0.0], abs=1e-5)
    assert [result.keeps(index) for index in range(22)] == [True] * 20 + [False, True]
    assert (result.report()["kept"], result.report()["dropped"]) == (21, 1)
    assert result.alone.samples == 21, "what the student would do anyway is no evidence"


@pytest.mark.parametrize("worth", [[0.0, -1.0], [0.0, 0.0]])
def test_reader_without_a_positive_difference_is_refused_after_the_first_pairs(worth: list[float]) -> None:
    game = Doors([worth] * 30, length=2)
    result = audit([finding(door, 1) for door in range(30)], game, 100_000)
    assert result.alone.is_refused
    assert not any(result.keeps(index) for index in range(30))
    assert result.env_steps == game.stepped == 30 * 2 * 2


def test_reader_whose_difference_is_not_significant_is_refused() -> None:
    worth = [[0.0, 1.2 if door % 2 else -1.0] for door in range(20)]
    result = audit([finding(door, 1) for door in range(20)], Doors(worth), 100_000)
    assert result.alone.value == pytest.approx(0.1)
    assert result.alone.low < 0
    assert result.is_refused
    assert not any(result.keeps(index) for index in range(20))


def test_findings_that_pay_once_and_not_whenever_they_are_followed_are_refused() -> None:
    """Action 1 pays 2 the first time and costs 3 each time that it is done again."""

    class Once(Doors):
        def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
            first = state["at"] == 0
            state, _, terminated = super().step(state, action, u)
            return state, torch.where(first, 2.0, -3.0) * action, terminated

    found = [finding(door, 1) for door in range(20)]
    result = audit(found, Once([[0.0, 0.0]] * 20, length=3), 100_000)
    assert result.alone.value == 2.0
    assert not result.alone.is_refused
    assert result.together.value == 2.0 - 3.0 - 3.0
    assert result.is_refused
    assert not any(result.keeps(index) for index in range(20))


def test_findings_are_tried_together_without_those_that_were_dropped() -> None:
    worth = [[0.0, 1.0, -1.0]] * 20
    found = [finding(door, 1) for door in range(15)] + [finding(door, 2) for door in range(15, 20)]
    follows = Follows(found)
    game = Doors(worth, length=4)
    result = Auditor(game, Constant(), 100_000, 1).audit(found, follows)
    assert follows.asked == [list(range(15))]
    assert result.together.samples == 20
    assert result.together.value == pytest.approx(15 / 20 * 4)
    assert result.env_steps == game.stepped


def test_few_findings_give_no_verdict() -> None:
    found = [finding(door, 1) for door in range(MIN_SAMPLES)]
    worth = [[0.0, 1.0]] * MIN_SAMPLES
    assert not audit(found, Doors(worth), 10_000).is_refused
    result = audit(found[1:], Doors(worth), 10_000)
    assert result.is_refused
    assert result.report()["alone"]["interval"] is None


@pytest.mark.parametrize("budget", [0, 79, 80, 400, 5000])
def test_audit_stays_within_its_env_steps_and_tests_all_it_can(budget: int) -> None:
    game = Doors([[0.0, 1.0]] * 50, length=10)
    result = audit([finding(door, 1) for door in range(50)], game, budget)
    assert result.env_steps == game.stepped <= budget
    tested = sum(difference is not None for difference in result.differences)
    assert tested == min(50, max(0, budget // 2 - 20) // 20)
    assert result.report()["untested"] == 50 - tested
    assert not any(result.keeps(index) for index in range(50) if result.differences[index] is None)
    if tested >= MIN_SAMPLES:
        assert budget - result.env_steps < 2 * MAX_ARM_STEPS or result.together.samples == tested


def test_no_question_gets_more_than_its_pairs() -> None:
    game = Doors([[0.0, 1.0]] * 6, length=2)
    assert audit([finding(door, 1) for door in range(6)], game, 10**6).env_steps == 6 * 2 * 2 * (MAX_PAIRS + 1)


def test_findings_of_one_question_share_their_evidence_and_are_samples_of_the_reader_each() -> None:
    """Two states look alike: in one the action is worth 3, in the other -1."""
    worth = [[0.0, 3.0], [0.0, -1.0]] + [[0.0, 1.0]] * 6
    found = [finding(0, 1, "same"), finding(1, 1, "same")] + [finding(door, 1) for door in range(2, 8)]
    result = audit(found, Doors(worth, length=1), 10_000)
    assert result.differences == pytest.approx((1.0,) * 8)
    assert result.alone.samples == 8
    assert result.alone.high > 1.5, "they differ"


@pytest.mark.parametrize(("time_left", "steps"), [(1, 1), (2, 2), (None, MAX_ARM_STEPS), (10**6, MAX_ARM_STEPS)])
def test_arms_end_with_the_time_limit_or_at_their_bound(time_left: int | None, steps: int) -> None:
    auditor = Auditor(Doors([[1.0, 5.0]], length=10**9), Constant(), 10_000, 1)
    assert auditor.compare([finding(0, 1, time_left=time_left)], None) == ([4.0], [True])
    assert auditor.env_steps == 2 * steps


@pytest.mark.parametrize(("name", "options"), [("snake", {"size": 6}), ("connect4", {}), ("blackjack", {})])
def test_arms_equal_single_episodes_row_by_row(name: str, options: dict[str, Any]) -> None:
    game = envs.make_game(name, **options)
    env = envs.make(name, 30, 2, **options)
    step = env.reset()
    for at in range(3):
        step = env.step(sample_legal(step.action_mask, torch.rand(30, generator=torch.manual_seed(at))))

    class Last:
        """The last legal action."""

        guidance = GUIDANCE

        def greedy(self, obs: Tensor, action_mask: Tensor) -> Tensor:
            return (action_mask * torch.arange(action_mask.shape[1])).argmax(1)

    def first_legal(state: State, obs: Tensor, action_mask: Tensor) -> Tensor:
        return action_mask.long().argmax(1)

    student = Last()
    found = [
        AuditedFinding(row, select_rows(step.state, torch.tensor([row])), action, 15)
        for row, action in enumerate(step.action_mask.long().argmax(1).tolist())
    ]

    def played(state: State, row: int, action: int, then: Any) -> float:
        total = 0.0
        for at in range(15):
            u = CounterRNG(1, torch.tensor([row]), ENV_STREAM).uniform(at, game.spec.num_step_uniforms)
            state, reward, terminated = game.step(state, torch.tensor([action]), u)
            total += float(reward)
            if terminated:
                break
            obs, action_mask = game.observe(state)
            action = int(then(state, obs, action_mask))
        return total

    def alone(state: State, obs: Tensor, action_mask: Tensor) -> Tensor:
        return student.greedy(obs, action_mask)

    for policy, then in ((None, alone), (first_legal, first_legal)):
        differences, is_other = Auditor(game, student, 10_000, 1).compare(found, policy)
        for row, one in enumerate(found):
            own = int(student.greedy(*game.observe(one.state)))
            expected = played(one.state, row, one.action, then) - played(one.state, row, own, alone)
            assert differences[row] == pytest.approx(expected)
            assert is_other[row] == (one.action != own)


def test_an_audit_changes_nothing_that_it_is_given() -> None:
    game, found = envs.make_game("connect4"), []
    state = envs.make("connect4", 20, 1).reset().state
    for row in range(20):
        found.append(AuditedFinding(row, select_rows(state, torch.tensor([row])), 3, None))
    before = [{name: tensor.clone() for name, tensor in one.state.items()} for one in found]
    results = [Auditor(game, Constant(), 4000, seed).audit(found, lambda kept: threes) for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]
    for one, old in zip(found, before, strict=True):
        assert all(one.state[name].equal(old[name]) for name in old)


def threes(state: State, obs: Tensor, action_mask: Tensor) -> Tensor:
    return torch.where(action_mask[:, 3], 3, action_mask.long().argmax(1))


def test_t_quantile_is_scipy_s() -> None:
    for degrees in (*range(4, 40), 100, 1000):
        assert t_quantile(0.95, degrees) == pytest.approx(stats.t.ppf(0.95, degrees), rel=1e-3)


def test_mean_verdict_is_a_t_test() -> None:
    values = [0.3, -0.1, 0.8, 0.2, 0.9, 0.0, 0.4]
    verdict = mean_verdict(values)
    low, high = stats.t.interval(0.9, 6, stats.tmean(values), stats.sem(values))
    assert (verdict.value, verdict.low, verdict.high) == pytest.approx((sum(values) / 7, low, high), abs=1e-3)
    assert not verdict.is_refused


def test_refusal_at_no_effect_is_the_rule() -> None:
    """Of readers that know nothing, about one in twenty is believed."""
    chance = torch.Generator().manual_seed(1)
    believed = sum(not mean_verdict(torch.randn(12, generator=chance).tolist()).is_refused for _ in range(1000))
    assert 25 < believed < 80


def test_rank_verdict_is_spearman_s() -> None:
    chance = torch.Generator().manual_seed(1)
    ours = torch.randn(40, generator=chance)
    theirs = (ours + torch.randn(40, generator=chance)).round()
    verdict = rank_verdict(ours.tolist(), theirs.tolist())
    assert verdict.value == pytest.approx(stats.spearmanr(ours, theirs).statistic)
    assert average_ranks(theirs.tolist()).tolist() == [rank - 1 for rank in stats.rankdata(theirs)]
    assert -1 < verdict.low < verdict.value < verdict.high < 1
    assert not verdict.is_refused
    assert rank_verdict((-ours).tolist(), theirs.tolist()).is_refused
    believed = sum(not rank_verdict(*torch.randn(2, 20, generator=chance).tolist()).is_refused for _ in range(1000))
    assert 25 < believed < 80


def test_rank_verdict_knows_nothing_of_few_or_equal_values() -> None:
    assert rank_verdict([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]).is_refused
    assert rank_verdict([1.0] * 30, [float(one) for one in range(30)]).is_refused
    assert not rank_verdict([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]).is_refused


def test_nothing_found_costs_nothing() -> None:
    result = audit([], Doors([[0.0]]), 8000)
    assert (result.differences, result.env_steps) == ((), 0)
    assert result.is_refused
    assert math.isinf(result.alone.high)
