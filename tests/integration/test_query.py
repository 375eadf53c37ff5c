"""Query strategies and budgets in a run: against a plain account, without a read-back, and in training.

The strategy "chance" is compared with a direct implementation: the same weights, summary and metrics.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agents import AGENTS
from agents.distributed import shard_size
from agents.policy import Decision
from envs.base import Step
from envs.rng import QUERY_STREAM, CounterRNG
from evaluate import Evaluation, evaluate
from tests.helpers.advisors import VIEW, RecordingTutor, canonical_keys, make_advisor, some, states
from tests.helpers.host_reads import NoHostReads
from tests.helpers.small_runs import logged, series, small_config, tensors_in
from train import Trainer, train
from training.checkpoint import load_checkpoint
from training.config import config_from_json, make_agent, make_env
from tutors import open_advisor
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor, Lookup
from tutors.async_advisor import AsyncAdvisor
from tutors.base import Advice
from tutors.query import THRESHOLDS, AdviceQuery, QueryBudget, QueryRequest, QueryStrategy, by_chance


def select_by_chance(query: AdviceQuery, advisor: Advisor, step: Step, decision: Decision) -> Lookup:
    """What `AdviceQuery.select` was when there was neither another strategy nor a budget."""
    u = query.rng.uniform(query.env_steps, 1)[:, 0]
    return advisor.lookup(advisor.canonicalize(step.state), by_chance(query.consult_probability(), u))


@pytest.mark.train
@pytest.mark.parametrize(("algo", "env"), [("dqn", "connect4"), ("ppo", "blackjack"), ("a2c", "connect4")])
def test_strategy_chance_is_a_direct_implementation(
    algo: str, env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"reuse": 3, "tutor_accuracy": 0.8}
    now = train(small_config(algo, env, tmp_path / "now", **options))
    limits = {"query_budget": 10**9, "query_budget_per_step": 64}
    unmet = train(small_config(algo, env, tmp_path / "unmet", **limits, **options))
    monkeypatch.setattr(AdviceQuery, "select", select_by_chance)
    direct = train(small_config(algo, env, tmp_path / "direct", **options))
    assert unmet["tutor"].pop("budget_left") == 10**9 - unmet["tutor"]["asked"]
    for summary in (now, unmet, direct):
        for name in ("wall_seconds", "sps"):
            del summary[name]
        del summary["tutor"]["seconds"]
    assert now == direct == unmet
    assert logged(tmp_path / "now") == logged(tmp_path / "direct")
    weights = [load_checkpoint(tmp_path / name / "checkpoints", "cpu")["agent"] for name in ("now", "direct")]
    assert all(one.equal(other) for one, other in zip(*map(tensors_in, weights), strict=True))


def resolved(advisor: Advisor, budget: QueryBudget, positions: object, request: QueryRequest) -> Advice:
    """What a step gets, as `AdviceQuery.select` and the trainer do it."""
    lookup = advisor.lookup(positions, request.wanted)
    return advisor.resolve(lookup._replace(misses=budget.allow(positions.keys, request, lookup.misses)))


@pytest.mark.parametrize("reuse", [0, 1, 3, math.inf])
@pytest.mark.parametrize(("total", "per_step"), [(150, None), (None, 5), (150, 5), (100_000, 1000)])
def test_queries_within_a_budget_are_those_of_a_plain_account(
    reuse: float, total: int | None, per_step: int | None
) -> None:
    """What is charged is different positions a step, and no more are asked; equal positions share an answer."""
    tutor = RecordingTutor()
    advisor, budget = make_advisor(reuse, tutor), QueryBudget(total, per_step, "cpu")
    reuses: dict[int, float] = {}  # that are left of each key
    left = math.inf if total is None else total
    for turn, state in enumerate(states(30)):
        positions, wanted = advisor.canonicalize(state), some(64, turn)
        u = CounterRNG(1, torch.arange(64), QUERY_STREAM).uniform(turn, 1)[:, 0]
        score = (u * 7).floor() / 7
        before = len(tutor.asked)
        advice = resolved(advisor, budget, positions, QueryRequest(wanted, score, u))
        keys = canonical_keys(state, torch.arange(64))
        assert keys == VIEW.key(positions.state)[:, 0].tolist()
        known = dict(reuses)
        misses = []
        for row, key in enumerate(keys):
            if wanted[row] and known.get(key, 0) > 0:
                known[key] -= 1
                assert advice.valid[row]
            elif wanted[row]:
                misses.append(row)
        best: dict[int, float] = {}
        for row in misses:
            best[keys[row]] = max(best.get(keys[row], -1), score[row].item())
        order = sorted(best, key=lambda key: (-best[key], u[keys.index(key)].item()))
        queries = order[: int(min(left, math.inf if per_step is None else per_step, len(order)))]
        assert sorted(tutor.asked[before:]) == sorted(queries)
        assert [bool(advice.valid[row]) for row in misses] == [keys[row] in queries for row in misses]
        left -= len(queries)
        reuses = known | dict.fromkeys(queries, reuse)
    assert left == (math.inf if total is None else budget.left.item())
    assert total is None or len(tutor.asked) == total - left
    if total == 150:
        assert left == 0
        assert advisor.counters()["hits"] > 0 or reuse == 0


def test_table_answers_when_the_budget_is_spent() -> None:
    advisor, budget = make_advisor(math.inf, RecordingTutor()), QueryBudget(10, None, "cpu")
    known, unknown = states(1)[0], states(9)[8]
    everybody = torch.ones(64, dtype=torch.bool)
    for state in (known, unknown, known, unknown):
        request = QueryRequest(everybody, torch.zeros(64), torch.linspace(0, 0.9, 64))
        share = resolved(advisor, budget, advisor.canonicalize(state), request).valid.float().mean()
        assert share == 1 if state is known else share < 0.5
    assert budget.left.item() == 0
    assert advisor.counters()["asked"] == 10


def test_async_advisor_is_charged_for_a_position_in_every_step_until_its_answer_is_there() -> None:
    tutor, budget = RecordingTutor(), QueryBudget(10, 4, "cpu")
    advisor = AsyncAdvisor(VIEW, tutor, AdviceTable(7, math.inf, capacity=1 << 14), None)
    state, everybody = states(9)[8], torch.ones(64, dtype=torch.bool)
    advisor.allocate(state)
    charged = []
    for _ in range(4):
        request = QueryRequest(everybody, torch.zeros(64), torch.linspace(0, 0.9, 64))
        resolved(advisor, budget, advisor.canonicalize(state), request)
        charged.append(10 - int(budget.left))
    assert charged == [4, 8, 10, 10]
    advisor.step()
    advisor.close()
    assert len(tutor.asked) == 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")])])  # fmt: skip
@pytest.mark.parametrize("algo", AGENTS)
@pytest.mark.parametrize("method", THRESHOLDS)
def test_select_reads_nothing_back(method: str, algo: str, device: str, tmp_path: Path) -> None:
    """Nor does `filter_followed`."""
    config = replace(small_config(algo, "connect4", tmp_path, query_strategy=method), device=device)
    env = make_env(config, device)
    agent = make_agent(config, env)
    rng = CounterRNG(1, torch.arange(64, device=device), QUERY_STREAM)
    strategy, budget = QueryStrategy(method, None, agent.has_policy, device), QueryBudget(50, 4, device)
    probability = torch.tensor(0.5, device=device)
    query = AdviceQuery(strategy, budget, rng, env.steps, lambda: probability, agent.guidance.strength)
    advisor = Advisor(VIEW, RecordingTutor(), AdviceTable(7, 3, capacity=1 << 10, device=device), None)

    def go(step: Step) -> Step:
        decision = agent.act(step.obs, step.action_mask)
        lookup = query.select(advisor, step, decision)
        query.filter_followed(lookup.advice, decision)
        return env.step(decision.action).as_initial()

    step = go(env.reset())
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoHostReads():
            for _ in range(4):
                step = go(step)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.train
@pytest.mark.parametrize(("algo", "env"), [("dqn", "blackjack"), ("ppo", "connect4"), ("a2c", "blackjack")])
@pytest.mark.parametrize("method", THRESHOLDS)
def test_every_strategy_trains_within_its_budget(method: str, algo: str, env: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    threshold = {"importance": 0.02, "mistake": 0.02}.get(method)
    options = {"query_strategy": method, "query_threshold": threshold, "query_budget": 60, "query_budget_per_step": 4}
    tutor = train(small_config(algo, env, run_dir, **options))["tutor"]
    assert tutor["asked"] > 0
    assert 0 <= tutor["budget_left"] < 60
    assert tutor["asked"] >= 60 - tutor["budget_left"]
    if method != "mistake":
        assert tutor["asked"] == 60 - tutor["budget_left"]
    if method in ("chance", "early"):
        assert tutor["budget_left"] == 0
    wanted, left, asked = (list(series(run_dir, f"tutor/{tag}").values()) for tag in ("wanted", "budget_left", "asked"))
    lines = 8 if algo == "dqn" else 4  # a line every four steps, or every rollout of eight
    assert len(wanted) == len(left) == lines
    assert all(0 <= share <= 1 for share in wanted)
    assert left == sorted(left, reverse=True)
    assert left[-1] == tutor["budget_left"]
    assert max(asked) <= 32 / lines * 4, "four queries a step"
    assert sum(wanted) / lines == pytest.approx(tutor["consulted"] / 2048)
    assert bool(series(run_dir, "tutor/consult_probability")) == (method == "chance")
    assert method != "early" or wanted == [1.0] * lines
    assert config_from_json((run_dir / "config.json").read_text()).tutoring.query_strategy == method


@pytest.mark.train
def test_checkpoint_keeps_the_table_and_its_reuses(tmp_path: Path) -> None:
    summary = train(small_config("ppo", "blackjack", tmp_path, reuse=3))["tutor"]
    state = load_checkpoint(tmp_path / "checkpoints", "cpu")["advisor"]["table"]
    table = AdviceTable(2, 3)
    table.load_state_dict(state)
    assert 100 < len(state["slots"]) <= 280
    assert summary["hits"] > len(state["slots"])
    before = table.left.sum()
    assert 0 < before < 3 * len(state["slots"])
    everybody = torch.ones(len(state["slots"]), dtype=torch.bool)
    for turn in range(4):
        given = table.get(state["keys"], everybody).valid
        assert given.equal(state["left"] > turn)


def advance(trainer: Trainer, step: Step, decision: Decision) -> Tensor:
    """Return what a student does that waits for its tutor, and count the step."""
    assert trainer.advisor is not None
    advice = trainer.advisor.resolve(trainer.look_up(step, decision))
    u = trainer.guidance_rng.uniform(trainer.env.steps, 8)
    action, _ = trainer.guidance.act(decision, trainer.followed_advice(decision, advice), step.action_mask, u)
    trainer.state.env_steps += 64
    return action


@pytest.mark.train
def test_mistake_corrects_where_the_student_differs_and_refunds_agreement(tmp_path: Path) -> None:
    """The budget of corrections against what was corrected, step by step; an agreeing answer is refunded."""
    options = {"query_strategy": "mistake", "query_threshold": 0.0, "query_budget": 200}
    config = small_config("dqn", "connect4", tmp_path, **options)
    env = make_env(config, "cpu")
    agent = make_agent(config, env)
    everybody = torch.ones(64, dtype=torch.bool)
    with open_advisor(config.tutoring, env.game, 1, tmp_path, "cpu") as advisor:
        assert advisor is not None
        trainer = Trainer(config, env, agent, advisor)
        step, left, agreed, paid = env.reset(), 200, 0, 0
        for _ in range(12):
            decision = agent.act(step.obs, step.action_mask)
            positions = advisor.canonicalize(step.state)
            keys = list(map(tuple, positions.keys.tolist()))
            held = advisor.table.get(positions.keys, everybody).valid
            before = advisor.tutor.stats["asked"]
            action = advance(trainer, step, decision)
            advice = advisor.to_env_actions(positions, advisor.table.get(positions.keys, everybody))
            best = advice.probs.argmax(1)
            differs = advice.valid & (best != decision.greedy)
            assert action.equal(torch.where(differs, best, decision.action))
            new = {key for key, old in zip(keys, held.tolist(), strict=True) if not old}
            wrong = {key for key, old, one in zip(keys, held, differs, strict=True) if not old and one}
            paid += advisor.tutor.stats["asked"] - before
            agreed += len(new - wrong) if left >= len(new) else 0
            left -= len(wrong)
            assert trainer.query.budget.left.item() == left >= 0
            step = env.step(action).as_initial()
        assert agreed > 0
        assert paid > 200 - left


def test_mistake_without_advice_corrects_nothing(tmp_path: Path) -> None:
    options = {"query_strategy": "mistake", "query_threshold": 0.0, "query_budget": 200}
    config = small_config("dqn", "connect4", tmp_path, **options)
    env = make_env(config, "cpu")
    agent, tutor = make_agent(config, env), RecordingTutor(mute=1)
    trainer = Trainer(config, env, agent, make_advisor(math.inf, tutor))
    step = env.reset()
    decision = agent.act(step.obs, step.action_mask)
    assert advance(trainer, step, decision).equal(decision.action)
    assert tutor.asked
    assert trainer.query.budget.left.item() == 200


@pytest.mark.parametrize("algo", AGENTS)
def test_strategy_knows_whether_scores_are_a_policy(algo: str, tmp_path: Path) -> None:
    config = small_config(algo, "connect4", tmp_path, query_strategy="uncertainty")
    env = make_env(config, "cpu")
    agent = make_agent(config, env)
    trainer = Trainer(config, env, agent, make_advisor(math.inf, RecordingTutor()))
    step = env.reset()
    sums = agent.act(step.obs, step.action_mask).scores.exp().sum(1)
    assert trainer.query.strategy.has_policy == agent.has_policy == torch.allclose(sums, torch.ones(64))


@pytest.mark.train
def test_evaluation_of_the_tutor_has_no_query_budget(tmp_path: Path) -> None:
    train(small_config("dqn", "connect4", tmp_path / "run", query_budget=3, query_strategy="early"))
    result = evaluate(Evaluation(tmp_path / "run", "tutor", episodes=50))
    assert result.mean_return > 0


@pytest.mark.train
def test_run_without_symmetry_asks_more(tmp_path: Path) -> None:
    options = {"consult_to": 1.0, "query_strategy": "early"}
    with_symmetry = train(small_config("dqn", "connect4", tmp_path / "a", **options))["tutor"]
    without = train(small_config("dqn", "connect4", tmp_path / "b", no_symmetry=True, **options))["tutor"]
    assert without["asked"] > 1.02 * with_symmetry["asked"]
    assert config_from_json((tmp_path / "b" / "config.json").read_text()).tutoring.no_symmetry


def test_shard_sizes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for ranks in (1, 2, 3, 7):
        monkeypatch.setattr("agents.distributed.world_size", lambda ranks=ranks: ranks)
        for whole in (0, 1, 5, 100):
            parts = []
            for rank in range(ranks):
                monkeypatch.setattr("agents.distributed.rank", lambda rank=rank: rank)
                parts.append(shard_size(whole))
            assert sum(parts) == whole
            assert max(parts) - min(parts) <= 1
