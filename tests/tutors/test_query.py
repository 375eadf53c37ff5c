"""Query strategies, the query budget and the consult schedule against slow definitions and known values."""

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import tutors.query
from agents.policy import TEMPERATURE, action_probs, normalized_entropy
from envs.rng import QUERY_STREAM, CounterRNG, splitmix64
from tutors.base import Advice
from tutors.query import (
    THRESHOLDS,
    QueryBudget,
    QueryRequest,
    QueryStrategy,
    VisitSketch,
    by_chance,
    check_query_options,
    importance,
)
from tutors.query import consult_probability as consult_probability_of

ROWS, ACTIONS = 500, 5


def consult_probability(step: int, *args: Any, **options: Any) -> float:
    return consult_probability_of(torch.tensor(step), *args, **options).item()


def test_consult_probability_begins_at_p_init() -> None:
    assert consult_probability(0, 1000) == 1.0
    assert consult_probability(0, 1000, p_init=0.7, p_final=0.2) == 0.7


def test_consult_probability_is_half_way_in_the_middle() -> None:
    assert consult_probability(500, 1000) == pytest.approx(0.55)
    assert consult_probability(250, 1000, p_init=0.8, p_final=0.0) == pytest.approx(0.6)


def test_consult_probability_stays_at_p_final() -> None:
    for step in (1000, 1001, 10**12):
        assert consult_probability(step, 1000) == pytest.approx(0.1, abs=1e-15)
        assert consult_probability(step, 1000, p_init=0.5, p_final=0.0) == 0.0


def test_consult_probability_reaches_p_final_at_theta() -> None:
    assert consult_probability(999, 1000) == pytest.approx(0.1 + 0.9 / 1000)
    assert consult_probability(1, 1000) == pytest.approx(1 - 0.9 / 1000)


def test_consult_probability_with_theta_0_is_p_final() -> None:
    assert consult_probability(0, 0) == pytest.approx(0.1)
    assert consult_probability(5, 0, p_init=1.0, p_final=0.3) == pytest.approx(0.3)


def test_consult_probability_may_rise_or_be_constant() -> None:
    assert consult_probability(3, 4, p_init=0.0, p_final=1.0) == 0.75
    assert {consult_probability(step, 4, 0.3, 0.3) for step in range(9)} == {0.3}


def test_consult_probability_is_linear() -> None:
    values = [consult_probability(step, 64, p_init=1.0, p_final=0.0) for step in range(65)]
    assert values == [1 - step / 64 for step in range(65)]


def test_by_chance_selects_where_u_is_below_the_probability() -> None:
    rng = CounterRNG(3, torch.arange(4096), QUERY_STREAM).uniform(0, 1)[:, 0]
    for probability in (0.0, 0.1, 0.5, 0.99, 1.0):
        expected = [number < probability for number in rng.tolist()]
        assert by_chance(probability, rng).tolist() == expected


def test_by_chance_does_not_select_where_u_is_equal() -> None:
    u = torch.tensor([0.5 - 2.0**-24, 0.5, 0.5 + 2.0**-24])
    assert by_chance(0.5, u).tolist() == [True, False, False]


def test_by_chance_with_probability_0_and_1() -> None:
    ends = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
    assert not by_chance(0.0, ends).any()
    assert by_chance(1.0, ends).all()


def test_by_chance_selects_the_share_that_the_probability_says() -> None:
    rows = 20_000
    rng = CounterRNG(0, torch.arange(rows), QUERY_STREAM).uniform(0, 1)[:, 0]
    share = by_chance(0.3, rng).float().mean().item()
    assert abs(share - 0.3) < math.sqrt(math.log(2 / 1e-9) / (2 * rows)), "Hoeffding's bound at 1e-9"


def positions(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values, log-probabilities of a policy, which actions are legal) of some rows; a few have one legal action."""
    u = torch.Generator().manual_seed(seed)
    action_mask = torch.rand(ROWS, ACTIONS, generator=u) < 0.6
    action_mask[torch.arange(ROWS), torch.randint(ACTIONS, (ROWS,), generator=u)] = True
    values = torch.randn(ROWS, ACTIONS, generator=u) * torch.rand(ROWS, 1, generator=u)
    logits = torch.randn(ROWS, ACTIONS, generator=u) * 3 * torch.rand(ROWS, 1, generator=u)
    assert (action_mask.sum(1) == 1).any()
    return values, logits.masked_fill(~action_mask, -1e9).log_softmax(1), action_mask


def legal_ones(row: Tensor, action_mask: Tensor) -> list[float]:
    return [number for number, may in zip(row.tolist(), action_mask.tolist(), strict=True) if may]


def softmax(numbers: list[float]) -> list[float]:
    most = max(numbers)
    weights = [math.exp(number - most) for number in numbers]
    return [weight / sum(weights) for weight in weights]


def gap(numbers: list[float]) -> float:
    return max(numbers) - min(numbers)


def share_of_entropy(probs: list[float]) -> float:
    if len(probs) == 1:
        return 0.0
    return -sum(p * math.log(p) for p in probs if p > 0) / math.log(len(probs))


def by_definition(name: str, scores: Tensor, action_mask: Tensor, has_policy: bool) -> list[float]:
    """Each row's score by a strategy, from legal actions alone."""
    found = []
    for row, may in zip(scores, action_mask, strict=True):
        numbers = legal_ones(row, may)
        if has_policy:
            numbers = [math.exp(number) for number in numbers]
        if name == "uncertainty":
            found.append(share_of_entropy(numbers if has_policy else softmax([q / TEMPERATURE for q in numbers])))
        else:
            found.append(gap(numbers))
    return found


def some_keys(rows: int, kinds: int, seed: int) -> Tensor:
    chosen = torch.randint(kinds, (rows,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([splitmix64(chosen), splitmix64(chosen % 7)], 1)


def uniforms(rows: int, step: int) -> Tensor:
    return CounterRNG(5, torch.arange(rows), QUERY_STREAM).uniform(step, 2)


@pytest.mark.parametrize("has_policy", [False, True])
@pytest.mark.parametrize("name", ["importance", "mistake", "uncertainty"])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.35])
def test_scores_are_those_of_the_slow_definition(name: str, has_policy: bool, threshold: float | None) -> None:
    values, log_probs, action_mask = positions(1)
    scores = log_probs if has_policy else values
    request = QueryStrategy(name, threshold, has_policy, "cpu").select(
        some_keys(ROWS, 9, 0), scores, action_mask, 0.0, uniforms(ROWS, 0)
    )
    expected = by_definition(name, scores, action_mask, has_policy)
    torch.testing.assert_close(request.score, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    least = {"importance": 0.2, "mistake": 0.2, "uncertainty": 0.5}[name] if threshold is None else threshold
    clear = [abs(score - least) > 1e-4 or score == least for score in expected]
    wanted = [score > least for score in expected]
    assert [got for got, sure in zip(request.wanted.tolist(), clear, strict=True) if sure] == [
        one for one, sure in zip(wanted, clear, strict=True) if sure
    ]
    assert sum(clear) > 0.9 * ROWS
    assert 0.1 < sum(wanted) / ROWS < 1


def test_known_scores() -> None:
    three = torch.tensor([[True, True, True]])
    assert importance(torch.tensor([[0.5, -0.25, 0.0]]), three).item() == 0.75
    assert importance(torch.tensor([[0.5, -0.25, 9.0]]), torch.tensor([[True, True, False]])).item() == 0.75
    assert normalized_entropy(torch.full((1, 3), 1 / 3), three).item() == pytest.approx(1)
    assert normalized_entropy(torch.tensor([[0.0, 1.0, 0.0]]), three).item() == 0
    assert normalized_entropy(
        torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[True, True, False]])
    ).item() == pytest.approx(1)
    alone = torch.tensor([[False, True, False]])
    assert normalized_entropy(torch.tensor([[0.0, 1.0, 0.0]]), alone).item() == 0
    assert importance(torch.tensor([[3.0, 1.0, 2.0]]), alone).item() == 0
    probs = action_probs(torch.tensor([[0.1, 0.0, 5.0]]), torch.tensor([[True, True, False]]), has_policy=False)
    assert probs.tolist()[0] == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e), 0])


def test_an_action_that_a_policy_has_given_up_does_not_spoil_its_uncertainty() -> None:
    log_probs = torch.tensor([[0.0, -300.0, -1e9]])
    probs = action_probs(log_probs, torch.tensor([[True, True, False]]), has_policy=True)
    assert normalized_entropy(probs, torch.tensor([[True, True, False]])).item() == 0


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_only_chance_uses_the_consult_probability(probability: float) -> None:
    values, _, action_mask = positions(2)
    u = uniforms(ROWS, 3)
    for name in THRESHOLDS:
        request = QueryStrategy(name, None, False, "cpu").select(
            some_keys(ROWS, 60, 1), values, action_mask, probability, u
        )
        other = QueryStrategy(name, None, False, "cpu").select(some_keys(ROWS, 60, 1), values, action_mask, 0.7, u)
        assert (request.wanted.equal(other.wanted)) == (name != "chance")
    chance = QueryStrategy("chance", None, False, "cpu").select(
        some_keys(ROWS, 60, 1), values, action_mask, probability, u
    )
    assert chance.wanted.tolist() == [number < probability for number in u[:, 0].tolist()]
    assert chance.u.equal(u[:, 1])
    assert not chance.score.any()


def test_early_wants_advice_everywhere() -> None:
    values, _, action_mask = positions(2)
    request = QueryStrategy("early", None, False, "cpu").select(
        some_keys(ROWS, 9, 1), values, action_mask, 0.0, uniforms(ROWS, 0)
    )
    assert request.wanted.all()
    assert not request.score.any()


def test_visits_are_counted_as_by_a_dictionary() -> None:
    """So few positions that no sketch of this size can mix them up."""
    strategy, truth = QueryStrategy("visited", 4, False, "cpu"), Counter[tuple[int, ...]]()
    values, _, action_mask = positions(3)
    for step in range(12):
        keys = some_keys(ROWS, 1500, step)
        truth.update(map(tuple, keys.tolist()))
        request = strategy.select(keys, values, action_mask, 0.0, uniforms(ROWS, step))
        counts = [truth[tuple(key)] for key in keys.tolist()]
        assert request.score.tolist() == counts
        assert request.wanted.tolist() == [count >= 4 for count in counts]


def test_visit_is_of_a_whole_key() -> None:
    visits = VisitSketch("cpu")
    pairs = torch.tensor([[1, 2], [1, 3], [2, 2], [2, 1], [1, 2]])
    assert visits.add(pairs).tolist() == [2, 1, 1, 1, 2]


def test_crowded_sketch_never_counts_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tutors.query, "LOG2_SKETCH_COLUMNS", 10)
    visits, truth = VisitSketch("cpu"), Counter[tuple[int, ...]]()
    for step in range(20):
        keys = some_keys(ROWS, 5000, step)
        truth.update(map(tuple, keys.tolist()))
        counts = visits.add(keys)
    excess = [count - truth[tuple(key)] for count, key in zip(counts.tolist(), keys.tolist(), strict=True)]
    assert min(excess) >= 0
    assert max(excess) > 0
    over = sum(one > math.e / 2**10 * 20 * ROWS for one in excess) / ROWS
    assert over <= math.exp(-4), "Cormode & Muthukrishnan's bound"


def test_impossible_query_options_are_refused() -> None:
    for name in THRESHOLDS:
        check_query_options(name, None, 0, 1)
    for options, message in (
        (("importence", None, None, None), "did you mean 'importance'"),
        (("early", 0.5, None, None), "has no threshold"),
        (("chance", 0.5, None, None), "has no threshold"),
        (("visited", -1.0, None, None), "at least 0"),
        (("uncertainty", math.nan, None, None), "at least 0"),
        (("chance", None, -1, None), "at least 0"),
        (("chance", None, None, 0), "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            check_query_options(*options)


class Account:
    """The budget in plain Python: lists, dictionaries and a sort."""

    def __init__(self, total: int | None, per_step: int | None) -> None:
        self.left = math.inf if total is None else total
        self.per_step = math.inf if per_step is None else per_step

    def allow(self, keys: list[int], misses: list[bool], score: list[float], u: list[float]) -> list[bool]:
        """The highest scores of the misses; ties by the first row of the position, the smallest `u` first."""
        best: dict[int, float] = {}
        for key, is_miss, number in zip(keys, misses, score, strict=True):
            if is_miss:
                best[key] = max(number, best.get(key, -math.inf))
        order = sorted(best, key=lambda key: (-best[key], u[keys.index(key)]))
        self.queries = set(order[: int(min(self.left, self.per_step, len(order)))])
        self.left -= len(self.queries)
        self.allowed = [is_miss and key in self.queries for key, is_miss in zip(keys, misses, strict=True)]
        return self.allowed

    def refund(self, keys: list[int], counts: list[bool]) -> None:
        kept = {key for key, allowed, one in zip(keys, self.allowed, counts, strict=True) if allowed and one}
        self.left += len(self.queries - kept)


@pytest.mark.parametrize("has_refunds", [False, True])
@pytest.mark.parametrize(
    ("total", "per_step"), [(None, None), (400, None), (None, 3), (400, 3), (0, None), (1, 1), (100_000, 40)]
)
def test_budget_is_that_of_a_plain_account(total: int | None, per_step: int | None, has_refunds: bool) -> None:
    generator = random.Random(1)
    budget, account = QueryBudget(total, per_step, "cpu"), Account(total, per_step)
    num_queries = 0
    for step in range(400):
        rows = 32
        kinds = [generator.randrange(1, 24) for _ in range(rows)]
        misses = [generator.random() < 0.5 for _ in range(rows)]
        score = [generator.choice([0.0, 0.0, 0.25, 0.5, generator.random()]) for _ in range(rows)]
        u = uniforms(rows, step)[:, 1]
        keys = torch.stack([splitmix64(torch.tensor(kinds)), torch.tensor(kinds) % 3], 1)
        request = QueryRequest(torch.tensor(misses), torch.tensor(score), u)
        allowed = budget.allow(keys, request, torch.tensor(misses))
        assert allowed.tolist() == account.allow(kinds, misses, request.score.tolist(), u.tolist())
        queries = len({kind for kind, one in zip(kinds, allowed.tolist(), strict=True) if one})
        assert queries <= (per_step or rows)
        num_queries += queries
        if has_refunds:
            counts = [generator.random() < 0.4 for _ in range(rows)]
            budget.refund(torch.tensor(counts))
            account.refund(kinds, counts)
        if total is not None:
            assert budget.left.item() == account.left >= 0
    if total is None:
        assert budget.counters() == {}
        assert num_queries > 400
    else:
        assert budget.counters() == {"budget_left": account.left}
        assert has_refunds or num_queries == total - account.left
        assert account.left == 0 or total == 100_000


@pytest.mark.parametrize(("before", "now", "left"), [(10, 10, 6), (10, 25, 21), (10, 3, 0), (None, 5, 5)])
def test_resumed_budget_has_spent_what_it_spent(before: int | None, now: int, left: int) -> None:
    budget, later = QueryBudget(before, None, "cpu"), QueryBudget(now, None, "cpu")
    request = QueryRequest(torch.ones(4, dtype=torch.bool), torch.zeros(4), torch.rand(4))
    budget.allow(torch.arange(8).view(4, 2), request, request.wanted)
    later.load_state_dict(budget.state_dict())
    assert int(later.left) == left


def test_unlimited_budget_allows_every_miss() -> None:
    missing = torch.tensor([True, False, True])
    request = QueryRequest(missing, torch.zeros(3), torch.zeros(3))
    assert QueryBudget(None, None, "cpu").allow(torch.zeros(3, 2, dtype=torch.int64), request, missing) is missing


def test_ties_are_broken_by_u() -> None:
    rows, drawn = 8, Counter[int]()
    keys = torch.arange(rows)[:, None].expand(-1, 2)
    everybody = torch.ones(rows, dtype=torch.bool)
    for step in range(800):
        request = QueryRequest(everybody, torch.zeros(rows), uniforms(rows, step)[:, 1])
        drawn.update(QueryBudget(None, 2, "cpu").allow(keys, request, everybody).nonzero()[:, 0].tolist())
    assert sum(drawn.values()) == 1600
    assert all(140 < drawn[row] < 260 for row in range(rows)), "200 each, give or take five deviations"


def test_only_mistakes_are_followed_and_refunded_by_that_strategy_alone() -> None:
    wanted = torch.tensor([True, True, False, False])
    probs = torch.eye(4)[:, :3] * wanted[:, None]  # rows 0 and 1 advise the actions 0 and 1
    advice = Advice(probs, wanted, wanted.float())
    for name in THRESHOLDS:
        budget = QueryBudget(9, None, "cpu")
        request = QueryRequest(wanted, torch.zeros(4), torch.zeros(4))
        budget.allow(torch.arange(4)[:, None].expand(-1, 2), request, wanted)
        strategy = QueryStrategy(name, None, False, "cpu")
        followed = strategy.filter_followed(advice, torch.tensor([2, 1, 0, 0]), budget)
        if name == "mistake":
            assert followed.valid.tolist() == [True, False, False, False]
            assert followed.probs.equal(probs * followed.valid[:, None])
        else:
            assert followed is advice
        assert budget.left.item() == (8 if name == "mistake" else 7)
