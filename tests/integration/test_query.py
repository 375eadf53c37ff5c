"""Query strategies and budgets in a run: against a plain account, without a read-back, and in training.

The strategy "chance" is compared with a direct implementation: the same weights, summary and metrics.
"""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import AGENTS
from agents.base import Choice, Proposal
from agents.distributed import shard_size
from envs.base import Step
from envs.rng import QUERY_STREAM, CounterRNG
from evaluate import Evaluation, evaluate
from tests.helpers.host_reads import NoHostReads
from tests.tutors.test_advisor import VIEW, Witness, canonical_keys, make_desk, some, states
from train import Trainer, train
from training.checkpoint import load_checkpoint
from training.config import Config, config_from_json, default_config, make_agent, make_env
from tutors import TutorConfig, open_advisor
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor, Query
from tutors.base import Advice
from tutors.query import THRESHOLDS, QueryBudget, QueryRequest, QueryStrategy, by_chance

SMALL = {"dqn": {"learning_starts": 256, "batch_size": 32}, "ppo": {"num_steps": 8}, "a2c": {"num_steps": 8}}


def config_of(algo: str, env: str, folder: Path, **told: Any) -> Config:
    """A small run with a scripted tutor."""
    config = replace(
        default_config(algo, env), total_steps=2048, num_envs=64, eval_every=10_000, eval_episodes=16, log_every=256,
        device="cpu", run_dir=folder, tutoring=TutorConfig(**{"tutor": "scripted", "tutor_depth": 1} | told),
    )  # fmt: skip
    return replace(config, agent=replace(config.agent, hidden=(16,), network="mlp", **SMALL[algo]))


def metrics(folder: Path) -> list[list[str]]:
    """What was logged, but for times."""
    with (folder / "metrics.csv").open() as file:
        rows = [[step, tag, value] for step, _, tag, value in csv.reader(file)]
    return [row for row in rows if not row[1].startswith(("time/", "charts/SPS", "tutor/latency", "tutor/seconds"))]


def series(folder: Path, tag: str) -> list[float]:
    return [float(value) for _, name, value in metrics(folder) if name == tag]


def nothing_yet(self: Trainer, step: Step, proposal: Proposal) -> Query:
    """In place of `Trainer.look_up`: no question is put."""
    assert self.desk is not None
    nobody = torch.zeros(len(proposal.action), dtype=torch.bool)
    return Query(
        self.desk.tell(step.state), QueryRequest(nobody, nobody, nobody), Advice.no_advice(len(nobody), 7), nobody
    )


def asked_as_before(self: Trainer, step: Step, proposal: Proposal, query: Query) -> tuple[Proposal, Choice]:
    """What asking and following was when chance was the only way, in place of `Trainer.follow`."""
    assert self.desk is not None
    wanted = by_chance(self.consult_probability(), self.rng.uniform(self.env.steps, 1)[:, 0])
    advice = self.watch("tutor", self.desk.advise, step.state, wanted)
    same = advice.valid & (advice.probs.argmax(1) == proposal.greedy)
    self.agreed += torch.stack([same.sum(), advice.valid.sum()])
    action = torch.where(wanted & advice.valid, advice.probs.argmax(1), proposal.action)
    return proposal, Choice(action, proposal.scores, {})


@pytest.mark.train
@pytest.mark.parametrize(("algo", "env"), [("dqn", "connect4"), ("ppo", "blackjack"), ("a2c", "connect4")])
def test_asking_by_chance_is_what_it_was_before(
    algo: str, env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {"reuse": 3, "tutor_accuracy": 0.8}
    now = train(config_of(algo, env, tmp_path / "now", **told))
    roomy = train(config_of(algo, env, tmp_path / "roomy", query_budget=10**9, query_budget_per_step=64, **told))
    monkeypatch.setattr(Trainer, "look_up", nothing_yet)
    monkeypatch.setattr(Trainer, "follow", asked_as_before)
    before = train(config_of(algo, env, tmp_path / "before", **told))
    assert roomy["tutor"].pop("budget_left") == 10**9 - roomy["tutor"]["asked"]
    for summary in (now, roomy, before):
        for name in ("wall_seconds", "sps"):
            del summary[name]
        del summary["tutor"]["seconds"]
    assert now == before == roomy
    assert metrics(tmp_path / "now") == metrics(tmp_path / "before")
    weights = [load_checkpoint(tmp_path / name / "checkpoints", "cpu")["agent"] for name in ("now", "before")]
    assert all(one.equal(other) for one, other in zip(*map(tensors, weights), strict=True))


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, dict):
        return [tensor for name in sorted(state) for tensor in tensors(state[name])]
    return [state] if isinstance(state, Tensor) else []


@pytest.mark.parametrize("reuse", [0, 1, 3, math.inf])
@pytest.mark.parametrize(("budget", "per_step"), [(150, None), (None, 5), (150, 5), (100_000, 1000)])
def test_the_tutor_hears_as_many_questions_as_the_account_says(
    reuse: float, budget: int | None, per_step: int | None
) -> None:
    """What is charged is different positions a step, and nobody hears more; who shares a question shares its answer."""
    tutor = Witness()
    desk, rations = make_desk(reuse, tutor), QueryBudget(budget, per_step, "cpu")
    left: dict[int, float] = {}  # reuses of each key
    money = math.inf if budget is None else budget
    for turn, state in enumerate(states(30)):
        told, wanted = desk.tell(state), some(64, turn)
        rng = CounterRNG(1, torch.arange(64), QUERY_STREAM).uniform(turn, 1)[:, 0]
        score = (rng * 7).floor() / 7
        heard = len(tutor.heard)
        wish = QueryRequest(wanted, score, rng)
        advice = desk.answer(
            told, wanted, lambda missing, told=told, wish=wish: rations.admit(told.keys, wish, missing)
        )
        keys, all_keys = canonical_keys(state, torch.arange(64)), VIEW.key(told.state)[:, 0].tolist()
        assert keys == all_keys
        known = dict(left)
        missing = []
        for row, key in enumerate(keys):
            if wanted[row] and known.get(key, 0) > 0:
                known[key] -= 1
                assert advice.valid[row]
            elif wanted[row]:
                missing.append(row)
        best: dict[int, float] = {}
        for row in missing:
            best[keys[row]] = max(best.get(keys[row], -1), score[row].item())
        order = sorted(best, key=lambda key: (-best[key], rng[keys.index(key)].item()))
        put = order[: int(min(money, math.inf if per_step is None else per_step, len(order)))]
        assert sorted(tutor.heard[heard:]) == sorted(put)
        assert [bool(advice.valid[row]) for row in missing] == [keys[row] in put for row in missing]
        money -= len(put)
        left = known | dict.fromkeys(put, reuse)
    assert money == (math.inf if budget is None else rations.left.item())
    assert budget is None or len(tutor.heard) == budget - money
    if budget == 150:
        assert money == 0
        assert desk.summary()["hits"] > 0 or reuse == 0


def test_when_the_budget_is_spent_the_table_still_answers() -> None:
    desk, rations = make_desk(math.inf, Witness()), QueryBudget(10, None, "cpu")
    known, unknown = states(1)[0], states(9)[8]
    everybody = torch.ones(64, dtype=torch.bool)
    for state in (known, unknown, known, unknown):
        told = desk.tell(state)
        wish = QueryRequest(everybody, torch.zeros(64), torch.linspace(0, 0.9, 64))
        advice = desk.answer(
            told, everybody, lambda missing, told=told, wish=wish: rations.admit(told.keys, wish, missing)
        )
        share = advice.valid.float().mean()
        assert share == 1 if state is known else share < 0.5
    assert rations.left.item() == 0
    assert desk.summary()["asked"] == 10


def test_a_desk_that_does_not_wait_puts_what_it_may_and_no_more() -> None:
    """A position is charged for in every step until its answer is there."""
    tutor, rations = Witness(), QueryBudget(10, 4, "cpu")
    desk = Advisor(VIEW, tutor, AdviceTable(7, math.inf, capacity=1 << 14), None, async_tutor=True)
    state, everybody = states(9)[8], torch.ones(64, dtype=torch.bool)
    told, charged = desk.tell(state), []
    for _ in range(4):
        wish = QueryRequest(everybody, torch.zeros(64), torch.linspace(0, 0.9, 64))
        desk.answer(told, everybody, lambda missing, wish=wish: rations.admit(told.keys, wish, missing))
        charged.append(10 - int(rations.left))
    assert charged == [4, 8, 10, 10]
    desk.tend()
    desk.close()
    assert len(tutor.heard) == 4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")])])  # fmt: skip
@pytest.mark.parametrize("algo", AGENTS)
@pytest.mark.parametrize("method", THRESHOLDS)
def test_asking_asks_the_device_nothing(method: str, algo: str, device: str, tmp_path: Path) -> None:
    """All that happens to a step in which the table knows everything or nobody may ask."""
    config = replace(config_of(algo, "connect4", tmp_path, query_strategy=method), device=device)
    env = make_env(config, device)
    agent = make_agent(config, env)
    asking, rations = QueryStrategy(method, None, agent.has_policy, device), QueryBudget(50, 4, device)
    table, rng = (
        AdviceTable(7, 3, capacity=1 << 10, device=device),
        CounterRNG(1, torch.arange(64, device=device), QUERY_STREAM),
    )
    desk = Advisor(VIEW, Witness(), table, None)
    step = env.reset()

    def go(step: Step) -> Step:
        proposal = agent.act(step)
        told = desk.tell(step.state)
        wish = asking.wish(told.keys, proposal.scores, step.action_mask, 0.5, rng.uniform(env.steps, 2))
        advice = desk.table.get(told.keys, wish.wanted)
        asked = rations.admit(told.keys, wish, wish.wanted & ~advice.valid)
        asking.heed(wish.wanted, asked, rations)
        return env.step(proposal.action).as_initial()

    step = go(step)
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
def test_every_way_of_asking_trains_within_its_budget(method: str, algo: str, env: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    threshold = {"importance": 0.02, "mistake": 0.02}.get(method)
    told = {"query_strategy": method, "query_threshold": threshold, "query_budget": 60, "query_budget_per_step": 4}
    tutor = train(config_of(algo, env, folder, **told))["tutor"]
    assert tutor["asked"] > 0
    assert 0 <= tutor["budget_left"] < 60
    assert tutor["asked"] >= 60 - tutor["budget_left"]
    if method != "mistake":
        assert tutor["asked"] == 60 - tutor["budget_left"]
    if method in ("chance", "early"):
        assert tutor["budget_left"] == 0
    wanted, left, asked = (series(folder, f"tutor/{tag}") for tag in ("wanted", "budget_left", "asked"))
    lines = 8 if algo == "dqn" else 4  # a line every four steps, or every rollout of eight
    assert len(wanted) == len(left) == lines
    assert all(0 <= share <= 1 for share in wanted)
    assert left == sorted(left, reverse=True)
    assert left[-1] == tutor["budget_left"]
    assert max(asked) <= 32 / lines * 4, "four questions a step"
    assert sum(wanted) / lines == pytest.approx(tutor["consulted"] / 2048)
    assert bool(series(folder, "tutor/consult_probability")) == (method == "chance")
    assert method != "early" or wanted == [1.0] * lines
    assert config_from_json((folder / "config.json").read_text()).tutoring.query_strategy == method


@pytest.mark.train
def test_a_checkpoint_keeps_the_table_and_the_reuses_that_are_left(tmp_path: Path) -> None:
    summary = train(config_of("ppo", "blackjack", tmp_path, reuse=3))["tutor"]
    state = load_checkpoint(tmp_path / "checkpoints", "cpu")["desk"]["table"]
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


def advised(training: Trainer, step: Step, proposal: Proposal) -> Tensor:
    """What a student does that waits for its tutor."""
    assert training.desk is not None
    query = training.look_up(step, proposal)
    training.desk.ask(query.told, query.missing, query.advice)
    return training.follow(step, proposal, query)[1].action


def test_a_mistake_is_what_the_student_would_not_have_done(tmp_path: Path) -> None:
    """The budget of corrections against what was corrected, step by step; what agrees is answered and given back."""
    config = config_of("dqn", "connect4", tmp_path, query_strategy="mistake", query_threshold=0.0, query_budget=200)
    env = make_env(config, "cpu")
    agent = make_agent(config, env)
    with open_advisor(config.tutoring, env.game, 1, tmp_path, "cpu") as desk:
        assert desk is not None
        training = Trainer(config, env, agent, desk, None)
        step, money, agreed, paid = env.reset(), 200, 0, 0
        for _ in range(12):
            proposal = agent.act(step)
            keys = list(map(tuple, desk.tell(step.state).keys.tolist()))
            held = desk.table.get(desk.tell(step.state).keys, torch.ones(64, dtype=torch.bool)).valid
            before = desk.tutor.stats["asked"]
            action = advised(training, step, proposal)
            advice = desk.table.get(desk.tell(step.state).keys, torch.ones(64, dtype=torch.bool))
            best = advice.probs.gather(1, desk.view.symmetry[desk.tell(step.state).turned]).argmax(1)
            differs = advice.valid & (best != proposal.greedy)
            assert action.equal(torch.where(differs, best, proposal.action))
            new = {key for key, old in zip(keys, held.tolist(), strict=True) if not old}
            wrong = {key for key, old, one in zip(keys, held, differs, strict=True) if not old and one}
            paid += desk.tutor.stats["asked"] - before
            agreed += len(new - wrong) if money >= len(new) else 0
            money -= len(wrong)
            assert training.rations.left.item() == money >= 0
            step = env.step(action).as_initial()
            training.global_step += 64
        assert agreed > 0
        assert paid > 200 - money


def test_a_silent_tutor_corrects_nobody(tmp_path: Path) -> None:
    config = config_of("dqn", "connect4", tmp_path, query_strategy="mistake", query_threshold=0.0, query_budget=200)
    env = make_env(config, "cpu")
    agent, tutor = make_agent(config, env), Witness(mute=1)
    training = Trainer(config, env, agent, make_desk(math.inf, tutor), None)
    step = env.reset()
    proposal = agent.act(step)
    assert advised(training, step, proposal).equal(proposal.action)
    assert tutor.heard
    assert training.rations.left.item() == 200


@pytest.mark.parametrize("algo", AGENTS)
def test_a_student_says_whether_its_scores_are_a_policy(algo: str, tmp_path: Path) -> None:
    config = config_of(algo, "connect4", tmp_path, query_strategy="uncertainty")
    env = make_env(config, "cpu")
    agent = make_agent(config, env)
    training = Trainer(config, env, agent, make_desk(math.inf, Witness()), None)
    sums = agent.act(env.reset()).scores.exp().sum(1)
    assert training.asking.has_policy == agent.has_policy == torch.allclose(sums, torch.ones(64))


@pytest.mark.train
def test_the_tutor_alone_is_not_rationed(tmp_path: Path) -> None:
    train(config_of("dqn", "connect4", tmp_path / "run", query_budget=3, query_strategy="early"))
    result = evaluate(Evaluation(tmp_path / "run", "tutor", episodes=50))
    assert result.mean_return > 0


@pytest.mark.train
def test_a_run_without_symmetry_asks_more(tmp_path: Path) -> None:
    told = {"consult_to": 1.0, "query_strategy": "early"}
    with_symmetry = train(config_of("dqn", "connect4", tmp_path / "a", **told))["tutor"]
    without = train(config_of("dqn", "connect4", tmp_path / "b", no_symmetry=True, **told))["tutor"]
    assert without["asked"] > 1.02 * with_symmetry["asked"]
    assert without["expert_agreement"] > 0.5
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["tutoring"]["no_symmetry"] is True


def test_portions_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for ranks in (1, 2, 3, 7):
        monkeypatch.setattr("agents.distributed.ranks", lambda ranks=ranks: ranks)
        for whole in (0, 1, 5, 100):
            parts = []
            for rank in range(ranks):
                monkeypatch.setattr("agents.distributed.rank", lambda rank=rank: rank)
                parts.append(shard_size(whole))
            assert sum(parts) == whole
            assert max(parts) - min(parts) <= 1
