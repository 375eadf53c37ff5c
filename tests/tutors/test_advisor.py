"""The desk against a tutor that keeps a list of what it was asked, and a plain account of what must be asked.

The positions are real ones of Connect Four; the tutor's answer to each is a function of its key, so that a
wrong row, a mirrored action or another position's advice is seen at once.
"""

import math
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

import envs
from envs.base import State, select_rows
from envs.connect4 import mirror
from envs.rng import sample_legal, splitmix64
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.base import Advice, Tutor
from tutors.prompts import make_view
from tutors.store import AdviceStore, identity_of

VIEW = make_view(envs.make_game("connect4"))
SPEC = envs.make("connect4", 1).spec


class Witness(Tutor):
    """Answers by key, is silent about every key that is a multiple of `mute`, and remembers."""

    name = "witness"

    def __init__(self, mute: int = 0) -> None:
        self.mute = mute
        self.identity = {"tutor": "witness"}
        self.heard: list[int] = []
        self.stats: Counter[str] = Counter()

    def report(self) -> dict[str, float]:
        return {"vllm/requests_waiting": 3.0}

    def advise(self, state: State) -> Advice:
        keys = VIEW.key(state)[:, 0]
        self.heard += keys.tolist()
        self.stats["asked"] += len(keys)
        given = keys % self.mute != 0 if self.mute else torch.ones_like(keys, dtype=torch.bool)
        self.stats["no_advice/mute"] += int((~given).sum())
        return Advice(answer_to(keys) * given[:, None], given, given.float())


def answer_to(keys: Tensor) -> Tensor:
    """A distribution that belongs to one key only, over the actions of the canonical position."""
    weights = (splitmix64(keys[:, None] + torch.arange(7)) & 0xFFFF).float() + 1
    return weights / weights.sum(1, keepdim=True)


def answers(keys: Tensor) -> Advice:
    """The advice about some keys."""
    given = torch.ones(len(keys), dtype=torch.bool)
    return Advice(answer_to(keys[:, 0]), given, given.float())


def expected(state: State) -> Tensor:
    """The answer about each position in its own actions, by mirroring one position at a time."""
    rows = []
    for mine, theirs in zip(state["mine"], state["theirs"], strict=True):
        one = {"mine": mine[None], "theirs": theirs[None]}
        other = {"mine": mirror(mine[None]), "theirs": mirror(theirs[None])}
        key, flipped = VIEW.key(one)[:, 0], VIEW.key(other)[:, 0]
        rows.append(answer_to(flipped)[0].flip(0) if flipped < key else answer_to(key)[0])
    return torch.stack(rows)


def states(steps: int, num_envs: int = 64, seed: int = 1) -> list[State]:
    env = envs.make("connect4", num_envs, seed, opponent="random")
    step, found = env.reset(), []
    for turn in range(steps):
        found.append({name: tensor.clone() for name, tensor in env.state.items()})
        step = env.step(sample_legal(step.action_mask, torch.rand(num_envs, generator=torch.manual_seed(turn))))
    return found


def canonical_keys(state: State, rows: Tensor) -> list[int]:
    return VIEW.key(VIEW.canonicalize(state)[0])[rows, 0].tolist()


def make_desk(budget: float, tutor: Witness, store: AdviceStore | None = None) -> Advisor:
    return Advisor(VIEW, tutor, AdviceTable(7, budget, capacity=1 << 14), store)


def some(num_envs: int, seed: int) -> Tensor:
    return torch.rand(num_envs, generator=torch.manual_seed(seed)) < 0.7


@pytest.mark.parametrize("budget", [0, 1, 3, math.inf])
def test_every_row_gets_the_advice_about_its_own_position_in_its_own_actions(budget: float) -> None:
    desk = make_desk(budget, Witness())
    for turn, state in enumerate(states(12)):
        wanted = some(64, turn)
        advice = desk.advise(state, wanted)
        assert torch.equal(advice.valid, wanted)
        torch.testing.assert_close(advice.probs, expected(state) * wanted[:, None])


@pytest.mark.parametrize("budget", [0, 1, 3, math.inf])
def test_what_is_asked_is_what_a_plain_account_says(budget: float) -> None:
    """Of each key's rows in a step the first `left` are hits; if more want it, it is asked once, for all of them."""
    tutor = Witness()
    desk = make_desk(budget, tutor)
    left: dict[int, float] = {}
    asked, consulted, hits = [], 0, 0
    for turn, state in enumerate(states(30)):
        wanted = some(64, turn)
        desk.advise(state, wanted)
        for key, rows in Counter(canonical_keys(state, wanted.nonzero()[:, 0])).items():
            consulted += rows
            hits += min(rows, left.get(key, 0))
            if rows > left.get(key, 0):
                asked.append(key)
                left[key] = budget
            else:
                left[key] -= rows
    assert sorted(tutor.heard) == sorted(asked)
    summary = desk.summary()
    assert (summary["consulted"], summary["hits"], summary["asked"]) == (consulted, hits, len(asked))
    assert summary["hit_rate"] == pytest.approx(hits / consulted, abs=1e-4)


def test_without_end_no_position_and_no_mirror_image_is_asked_twice() -> None:
    tutor = Witness()
    desk = make_desk(math.inf, tutor)
    everybody = torch.ones(64, dtype=torch.bool)
    for state in states(20):
        desk.advise(state, everybody)
        desk.advise({name: mirror(cells) for name, cells in state.items()}, everybody)
    assert len(tutor.heard) == len(set(tutor.heard))


def test_nobody_asks_nothing() -> None:
    tutor = Witness()
    desk = make_desk(math.inf, tutor)
    advice = desk.advise(states(1)[0], torch.zeros(64, dtype=torch.bool))
    assert not advice.valid.any()
    assert not advice.probs.any()
    assert tutor.heard == []
    assert desk.report()["tutor/hit_rate"] == 0


def test_silence_is_no_advice_and_is_asked_about_again() -> None:
    tutor = Witness(mute=2)
    desk = make_desk(math.inf, tutor)
    state = states(4)[3]
    everybody = torch.ones(64, dtype=torch.bool)
    first = desk.advise(state, everybody)
    keys = VIEW.key(VIEW.canonicalize(state)[0])[:, 0]
    assert torch.equal(first.valid, keys % 2 != 0)
    assert not first.probs[~first.valid].any()
    before = len(tutor.heard)
    desk.advise(state, everybody)
    again = tutor.heard[before:]
    assert again
    assert all(key % 2 == 0 for key in again)
    assert desk.summary()["no_advice"] == {"mute": 2 * len(again)}


def test_a_second_run_finds_the_answers_in_the_store_and_asks_nothing(tmp_path: Path) -> None:
    first, second = Witness(), Witness()
    everybody = torch.ones(64, dtype=torch.bool)
    for tutor in (first, second):
        store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, tutor.identity))
        desk = make_desk(math.inf, tutor, store)
        for state in states(8):
            torch.testing.assert_close(desk.advise(state, everybody).probs, expected(state))
        found = store.count()
        store.close()
    assert first.heard
    assert second.heard == []
    assert desk.counts["stored"] == found == len(first.heard)


def test_a_table_that_was_filled_from_the_store_neither_asks_nor_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = torch.ones(64, dtype=torch.bool)
    for tutor in (Witness(), Witness()):
        store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, tutor.identity))
        desk = make_desk(math.inf, tutor, store)
        desk.fill_table()
        if filled := desk.summary()["filled"]:
            assert filled == store.count()
            monkeypatch.setattr(store, "find", None)
        for state in states(8):
            torch.testing.assert_close(desk.advise(state, everybody).probs, expected(state))
        store.close()
    assert filled
    assert tutor.heard == []
    assert desk.summary()["hits"] == desk.summary()["consulted"] == 8 * 64


def test_another_tutor_s_table_is_not_gone_on_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    desks = []
    for name in ("one", "one", "other"):
        store = AdviceStore(tmp_path / f"{len(desks)}.sqlite", identity_of(SPEC, VIEW, {"tutor": name}))
        desks.append(make_desk(math.inf, Witness(), store))
    (state,), everybody = states(1), torch.ones(64, dtype=torch.bool)
    desks[0].advise(state, everybody)
    desks[1].load_state_dict(desks[0].state_dict())
    assert desks[1].look_up(desks[1].tell(state), everybody).valid.all()
    assert not caplog.records
    desks[2].load_state_dict(desks[0].state_dict())
    assert not desks[2].look_up(desks[2].tell(state), everybody).valid.any()
    assert "its earlier answers are not used" in caplog.text
    for desk in desks:
        assert desk.store is not None
        desk.store.close()


@pytest.mark.parametrize("budget", [0, 3])
def test_a_finite_budget_fills_no_table(budget: float, tmp_path: Path) -> None:
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "witness"}))
    make_desk(budget, Witness(), store).advise(states(1)[0], torch.ones(64, dtype=torch.bool))
    store.flush()
    desk = make_desk(budget, Witness(), store)
    desk.fill_table()
    assert desk.summary()["filled"] == desk.table.load() == 0
    store.close()


def test_a_table_too_small_for_the_store_takes_the_newest_answers(tmp_path: Path) -> None:
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "witness"}))
    keys = torch.stack([torch.arange(500), torch.zeros(500, dtype=torch.int64)], 1)
    for number in range(500):
        store.put(keys[number : number + 1], answers(keys[number : number + 1]), [""])
    desk = Advisor(VIEW, Witness(), AdviceTable(7, math.inf, capacity=64), store)
    store.flush()
    desk.fill_table()
    assert desk.counts["filled"] == 64
    given = desk.table.get(keys, torch.ones(500, dtype=torch.bool)).valid
    assert not given[: 500 - 64].any()
    assert given[500 - 64 :].sum() > 32
    store.close()


def test_a_store_that_cannot_be_read_leaves_the_table_empty(tmp_path: Path) -> None:
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "witness"}))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("drop table answers")
    desk = make_desk(math.inf, Witness(), store)
    desk.fill_table()
    assert (desk.summary()["filled"], desk.summary()["store_failures"]) == (0, 1)
    store.close()


def test_an_answer_costs_its_share_of_the_call(tmp_path: Path) -> None:
    class Dear(Witness):
        def advise(self, state: State) -> Advice:
            self.stats["prompt_tokens"] += 100
            self.stats["answer_tokens"] += 10
            time.sleep(0.05)
            return super().advise(state)

    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "witness"}))
    desk = make_desk(math.inf, Dear(), store)
    everybody, moments = torch.ones(64, dtype=torch.bool), states(10)
    for state in (moments[0], moments[9]):
        desk.advise(state, everybody)
    store.flush()
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql("select prompt_tokens, answer_tokens, seconds from answers").all()
    store.close()
    prompts, tokens, seconds = (sum(column) for column in zip(*rows, strict=True))
    assert len(rows) == len(desk.tutor.heard) > 20
    assert {len(set(column)) for column in zip(*rows, strict=True)} == {2}, "two calls, of different sizes"
    assert (prompts, tokens) == (pytest.approx(200), pytest.approx(20))
    assert seconds == pytest.approx(desk.sums["seconds"])
    assert seconds >= 0.1


def test_a_finite_budget_asks_again_though_the_store_knows(tmp_path: Path) -> None:
    everybody = torch.ones(64, dtype=torch.bool)
    heard = []
    for _ in range(2):
        tutor = Witness()
        store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, tutor.identity))
        desk = make_desk(3, tutor, store)
        for state in states(5):
            desk.advise(state, everybody)
        store.close()
        heard.append(tutor.heard)
    assert heard[0] == heard[1] != []


def test_the_store_keeps_the_words_without_the_rules(tmp_path: Path) -> None:
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "witness"}))
    desk = make_desk(math.inf, Witness(), store)
    state = select_rows(states(3)[2], torch.tensor([5]))
    desk.advise(state, torch.ones(1, dtype=torch.bool))
    store.flush()
    with store.engine.connect() as connection:
        (words,) = connection.exec_driver_sql("select words from answers").scalars()
    store.close()
    (question,) = VIEW.render(VIEW.canonicalize(state)[0])
    assert VIEW.instructions + words == question


def test_a_store_that_fails_costs_advice_nothing_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutors.store.READ_AGAIN", 0.0)
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "witness"}))
    desk = make_desk(math.inf, Witness(), store)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("drop table answers")
    everybody = torch.ones(64, dtype=torch.bool)
    for state in states(3):
        torch.testing.assert_close(desk.advise(state, everybody).probs, expected(state))
    assert desk.report()["tutor/store_failures"] >= 3
    store.close()
    assert desk.summary()["store_failures"] > 3
    assert len([record for record in caplog.records if "advice store failed" in record.message]) == 1
    assert "answers could not be written to the advice store" in caplog.records[-1].message


def test_a_report_tells_what_came_up_since_the_last() -> None:
    desk = make_desk(math.inf, Witness())
    everybody = torch.ones(64, dtype=torch.bool)
    state = states(6)[5]
    desk.advise(state, everybody)
    first = desk.report()
    assert first["tutor/consulted"] == 64
    assert first["tutor/hit_rate"] == 0
    assert first["tutor/asked"] == len(set(canonical_keys(state, torch.arange(64))))
    assert first["tutor/label_mass"] == 1
    assert first["tutor/latency_ms"] > 0
    assert first["tutor/table_load"] == pytest.approx(first["tutor/asked"] / (1 << 14))
    desk.advise(state, everybody)
    second = desk.report()
    assert (second["tutor/consulted"], second["tutor/asked"], second["tutor/hit_rate"]) == (64, 0, 1)
