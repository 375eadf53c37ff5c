"""The advisor against a tutor that keeps a list of what it was asked, and a plain account of what must be asked."""

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.base import State, select_rows
from envs.connect4 import mirror
from tests.helpers.advisors import (
    SPEC,
    TAGS,
    VIEW,
    RecordingTutor,
    answers,
    canonical_keys,
    expected,
    make_advisor,
    some,
    states,
)
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor, advisor_metrics, advisor_summary, sound_advice
from tutors.base import Advice, Tutor
from tutors.store import AdviceStore, identity_of


def summary_of(advisor: Advisor) -> dict[str, Any]:
    return advisor_summary(advisor.tutor.name, advisor.counters())


@pytest.mark.parametrize("budget", [0, 1, 3, math.inf])
def test_advice_is_about_its_own_position_in_its_own_actions(budget: float) -> None:
    advisor = make_advisor(budget, RecordingTutor())
    for turn, state in enumerate(states(12)):
        wanted = some(64, turn)
        advice = advisor.advise(state, wanted)
        assert torch.equal(advice.valid, wanted)
        torch.testing.assert_close(advice.probs, expected(state) * wanted[:, None])


@pytest.mark.parametrize("budget", [0, 1, 3, math.inf])
def test_queries_are_those_of_a_plain_account(budget: float) -> None:
    """Of each key's rows in a step the first `left` are hits; if more want it, it is asked once, for all of them."""
    tutor = RecordingTutor()
    advisor = make_advisor(budget, tutor)
    left: dict[int, float] = {}
    asked, consulted, hits = [], 0, 0
    for turn, state in enumerate(states(30)):
        wanted = some(64, turn)
        advisor.advise(state, wanted)
        for key, rows in Counter(canonical_keys(state, wanted.nonzero()[:, 0])).items():
            consulted += rows
            hits += min(rows, left.get(key, 0))
            if rows > left.get(key, 0):
                asked.append(key)
                left[key] = budget
            else:
                left[key] -= rows
    assert sorted(tutor.asked) == sorted(asked)
    summary = summary_of(advisor)
    assert (summary["consulted"], summary["hits"], summary["asked"]) == (consulted, hits, len(asked))
    assert summary["hit_rate"] == pytest.approx(hits / consulted, abs=1e-4)


def test_unlimited_reuse_asks_once_about_a_position_and_its_mirror_image() -> None:
    tutor = RecordingTutor()
    advisor = make_advisor(math.inf, tutor)
    everybody = torch.ones(64, dtype=torch.bool)
    for state in states(20):
        advisor.advise(state, everybody)
        advisor.advise({name: mirror(cells) for name, cells in state.items()}, everybody)
    assert len(tutor.asked) == len(set(tutor.asked))


def test_nothing_wanted_is_nothing_asked() -> None:
    tutor = RecordingTutor()
    advisor = make_advisor(math.inf, tutor)
    advice = advisor.advise(states(1)[0], torch.zeros(64, dtype=torch.bool))
    assert not advice.valid.any()
    assert not advice.probs.any()
    assert tutor.asked == []
    assert advisor_metrics({}, advisor.counters())["tutor/hit_rate"] == 0


def test_position_without_advice_is_asked_about_again() -> None:
    tutor = RecordingTutor(mute=2)
    advisor = make_advisor(math.inf, tutor)
    state = states(4)[3]
    everybody = torch.ones(64, dtype=torch.bool)
    first = advisor.advise(state, everybody)
    keys = VIEW.key(VIEW.canonicalize(state)[0])[:, 0]
    assert torch.equal(first.valid, keys % 2 != 0)
    assert not first.probs[~first.valid].any()
    before = len(tutor.asked)
    advisor.advise(state, everybody)
    again = tutor.asked[before:]
    assert again
    assert all(key % 2 == 0 for key in again)
    assert summary_of(advisor)["no_advice"] == {"mute": 2 * len(again)}


def test_second_run_asks_nothing_that_is_stored(tmp_path: Path) -> None:
    first, second = RecordingTutor(), RecordingTutor()
    everybody = torch.ones(64, dtype=torch.bool)
    for tutor in (first, second):
        store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, tutor.identity))
        advisor = make_advisor(math.inf, tutor, store)
        for state in states(8):
            torch.testing.assert_close(advisor.advise(state, everybody).probs, expected(state))
        found = store.count()
        store.close()
    assert first.asked
    assert second.asked == []
    assert advisor.counts["stored"] == found == len(first.asked)


def test_filled_table_reads_neither_store_nor_tutor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = torch.ones(64, dtype=torch.bool)
    for tutor in (RecordingTutor(), RecordingTutor()):
        store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, tutor.identity))
        advisor = make_advisor(math.inf, tutor, store)
        advisor.fill_table()
        if filled := summary_of(advisor)["filled"]:
            assert filled == store.count()
            monkeypatch.setattr(store, "find", None)
        for state in states(8):
            torch.testing.assert_close(advisor.advise(state, everybody).probs, expected(state))
        store.close()
    assert filled
    assert tutor.asked == []
    assert summary_of(advisor)["hits"] == summary_of(advisor)["consulted"] == 8 * 64


def test_table_of_another_tutor_is_not_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    advisors = []
    for name in ("one", "one", "other"):
        store = AdviceStore(tmp_path / f"{len(advisors)}.sqlite", identity_of(SPEC, VIEW, {"tutor": name}))
        advisors.append(make_advisor(math.inf, RecordingTutor(), store))
    (state,), everybody = states(1), torch.ones(64, dtype=torch.bool)
    advisors[0].advise(state, everybody)
    advisors[1].load_state_dict(advisors[0].state_dict())
    assert advisors[1].lookup(advisors[1].canonicalize(state), everybody).advice.valid.all()
    assert not caplog.records
    advisors[2].load_state_dict(advisors[0].state_dict())
    assert not advisors[2].lookup(advisors[2].canonicalize(state), everybody).advice.valid.any()
    assert "its earlier answers are not used" in caplog.text
    for advisor in advisors:
        assert advisor.store is not None
        advisor.store.close()


@pytest.mark.parametrize("budget", [0, 3])
def test_finite_reuse_budget_fills_no_table(budget: float, tmp_path: Path) -> None:
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "recording"}))
    make_advisor(budget, RecordingTutor(), store).advise(states(1)[0], torch.ones(64, dtype=torch.bool))
    store.flush()
    advisor = make_advisor(budget, RecordingTutor(), store)
    advisor.fill_table()
    assert summary_of(advisor)["filled"] == advisor.table.load() == 0
    store.close()


def test_small_table_is_filled_with_the_newest_answers(tmp_path: Path) -> None:
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "recording"}))
    keys = torch.stack([torch.arange(500), torch.zeros(500, dtype=torch.int64)], 1)
    for number in range(500):
        store.put(keys[number : number + 1], answers(keys[number : number + 1]), [""])
    advisor = Advisor(VIEW, RecordingTutor(), AdviceTable(7, math.inf, capacity=64), store)
    store.flush()
    advisor.fill_table()
    assert advisor.counts["filled"] == 64
    given = advisor.table.get(keys, torch.ones(500, dtype=torch.bool)).valid
    assert not given[: 500 - 64].any()
    assert given[500 - 64 :].sum() > 32
    store.close()


def test_unreadable_store_leaves_the_table_empty(tmp_path: Path) -> None:
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "recording"}))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("drop table answers")
    advisor = make_advisor(math.inf, RecordingTutor(), store)
    advisor.fill_table()
    assert (summary_of(advisor)["filled"], summary_of(advisor)["store_failures"]) == (0, 1)
    store.close()


def test_answer_costs_its_share_of_the_call(tmp_path: Path) -> None:
    class Expensive(RecordingTutor):
        def advise(self, state: State) -> Advice:
            self.stats["prompt_tokens"] += 100
            self.stats["answer_tokens"] += 10
            time.sleep(0.05)
            return super().advise(state)

    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "recording"}))
    advisor = make_advisor(math.inf, Expensive(), store)
    everybody, moments = torch.ones(64, dtype=torch.bool), states(10)
    for state in (moments[0], moments[9]):
        advisor.advise(state, everybody)
    store.flush()
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql("select prompt_tokens, answer_tokens, seconds from answers").all()
    store.close()
    prompts, tokens, seconds = (sum(column) for column in zip(*rows, strict=True))
    assert len(rows) == len(advisor.tutor.asked) > 20
    assert {len(set(column)) for column in zip(*rows, strict=True)} == {2}, "two calls, of different sizes"
    assert (prompts, tokens) == (pytest.approx(200), pytest.approx(20))
    assert seconds == pytest.approx(advisor.sums["seconds"])
    assert seconds >= 0.1


def test_finite_reuse_budget_asks_again_about_what_is_stored(tmp_path: Path) -> None:
    everybody = torch.ones(64, dtype=torch.bool)
    asked = []
    for _ in range(2):
        tutor = RecordingTutor()
        store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, tutor.identity))
        advisor = make_advisor(3, tutor, store)
        for state in states(5):
            advisor.advise(state, everybody)
        store.close()
        asked.append(tutor.asked)
    assert asked[0] == asked[1] != []


def test_stored_prompt_has_no_instructions(tmp_path: Path) -> None:
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "recording"}))
    advisor = make_advisor(math.inf, RecordingTutor(), store)
    state = select_rows(states(3)[2], torch.tensor([5]))
    advisor.advise(state, torch.ones(1, dtype=torch.bool))
    store.flush()
    with store.engine.connect() as connection:
        (words,) = connection.exec_driver_sql("select words from answers").scalars()
    store.close()
    (question,) = VIEW.render(VIEW.canonicalize(state)[0])
    assert VIEW.instructions + words == question


def test_failing_store_costs_no_advice_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutors.store.advice_store.READ_RETRY_S", 0.0)
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "recording"}))
    advisor = make_advisor(math.inf, RecordingTutor(), store)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("drop table answers")
    everybody = torch.ones(64, dtype=torch.bool)
    for state in states(3):
        torch.testing.assert_close(advisor.advise(state, everybody).probs, expected(state))
    assert advisor_metrics({}, advisor.counters())["tutor/store_failures"] >= 3
    store.close()
    assert summary_of(advisor)["store_failures"] > 3
    assert len([record for record in caplog.records if "advice store failed" in record.message]) == 1
    assert "answers could not be written to the advice store" in caplog.records[-1].message


def test_metrics_count_what_came_up_since_the_last_counters() -> None:
    advisor = make_advisor(math.inf, RecordingTutor())
    everybody = torch.ones(64, dtype=torch.bool)
    state = states(6)[5]
    advisor.advise(state, everybody)
    before = advisor.counters()
    first = advisor_metrics({}, before)
    assert first["tutor/consulted"] == 64
    assert first["tutor/hit_rate"] == 0
    assert first["tutor/asked"] == len(set(canonical_keys(state, torch.arange(64))))
    assert first["tutor/label_mass"] == 1
    assert first["tutor/latency_ms"] > 0
    assert "tutor/dropped" not in first
    assert advisor.gauges() == TAGS | {"tutor/table_load": pytest.approx(first["tutor/asked"] / (1 << 14))}
    advisor.advise(state, everybody)
    second = advisor_metrics(before, advisor.counters())
    assert (second["tutor/consulted"], second["tutor/asked"], second["tutor/hit_rate"]) == (64, 0, 1)


def test_resolve_writes_nothing_into_a_lookup() -> None:
    advisor = make_advisor(math.inf, RecordingTutor())
    (state,), everybody = states(1), torch.ones(64, dtype=torch.bool)
    lookup = advisor.lookup(advisor.canonicalize(state), everybody)
    before = [tensor.clone() for tensor in (*lookup.advice, lookup.misses)]
    assert advisor.resolve(lookup).valid.all()
    assert all(one.equal(other) for one, other in zip((*lookup.advice, lookup.misses), before, strict=True))


NAN, INF = math.nan, math.inf
UNSOUND = {  # advice about a position in which columns 0 and 6 are full
    "illegal action": [1.0, 0, 0, 0, 0, 0, 0],
    "a little illegal": [0.02, 0.98, 0, 0, 0, 0, 0],
    "last column": [0, 0.5, 0, 0, 0, 0, 0.5],
    "negative": [0, 1.5, -0.5, 0, 0, 0, 0],
    "negative illegal": [-0.5, 1.5, 0, 0, 0, 0, 0],
    "sums to two": [0, 1.0, 1.0, 0, 0, 0, 0],
    "sums to half": [0, 0.5, 0, 0, 0, 0, 0],
    "all zero": [0.0] * 7,
    "NaN": [0, NAN, 1.0, 0, 0, 0, 0],
    "NaN illegal": [NAN, 1.0, 0, 0, 0, 0, 0],
    "infinite": [0, INF, 0, 0, 0, 0, 0],
    "two infinities": [0, INF, -INF, 1.0, 0, 0, 0],
    "huge": [0, 3e38, 3e38, 0, 0, 0, 0],
}


@pytest.mark.parametrize("probs", UNSOUND.values(), ids=UNSOUND)
def test_advice_that_is_no_distribution_over_legal_actions_is_none(probs: list[float]) -> None:
    mask = torch.tensor([[False, True, True, True, True, True, False]] * 2)
    rows = torch.tensor([probs, [0, 0.25, 0.75, 0, 0, 0, 0]])
    advice = sound_advice(Advice(rows, torch.ones(2, dtype=torch.bool), torch.ones(2)), mask)
    assert advice.valid.tolist() == [False, True]
    assert not advice.probs[0].any(), "zeros, not NaN"
    assert torch.equal(advice.probs[1], rows[1])


@pytest.mark.parametrize("mass", [-0.1, 1.5, NAN, INF, -INF])
def test_advice_without_a_possible_label_mass_is_none(mass: float) -> None:
    advice = sound_advice(Advice(torch.eye(7)[:1], torch.tensor([True]), torch.tensor([mass])), torch.ones(1, 7).bool())
    assert not advice.valid.any()
    assert not advice.label_mass.any()


SURE = torch.ones(2, dtype=torch.bool)
MISSHAPEN = {
    "rows": answers(torch.zeros(3, 2, dtype=torch.int64)),
    "actions": Advice(torch.ones(2, 8) / 8, SURE, torch.ones(2)),
    "valid": Advice(torch.eye(7)[:2], SURE[:, None], torch.ones(2)),
    "label mass": Advice(torch.eye(7)[:2], SURE, torch.ones(())),
}


@pytest.mark.parametrize("advice", MISSHAPEN.values(), ids=MISSHAPEN)
def test_advice_of_another_shape_is_none(advice: Advice) -> None:
    found = sound_advice(advice, torch.ones(2, 7).bool())
    assert found.probs.shape == (2, 7)
    assert not found.valid.any()


class WrongTutor(RecordingTutor):
    """Names the first illegal action, where there is one, with a distribution of double precision."""

    def advise(self, state: State) -> Advice:
        right, illegal = super().advise(state), ~VIEW.action_mask(state)
        wrong = torch.nn.functional.one_hot(illegal.long().argmax(1), 7).double()
        return right._replace(probs=torch.where(illegal.any(1)[:, None], wrong, right.probs.double()))


def full_columns() -> State:
    """Positions of which some have a full column."""
    state = states(40)[-1]
    assert 0 < (~VIEW.action_mask(state)).any(1).sum() < 64
    return state


EVERYBODY = torch.ones(64, dtype=torch.bool)


@pytest.mark.parametrize("budget", [0, 3, math.inf])
def test_tutor_that_names_illegal_actions_is_not_followed(budget: float, caplog: pytest.LogCaptureFixture) -> None:
    advisor, state = make_advisor(budget, WrongTutor()), full_columns()
    canonical = VIEW.canonicalize(state)[0]
    is_full = (~VIEW.action_mask(canonical)).any(1)
    for _ in range(2):
        advice = advisor.advise(state, EVERYBODY)
        assert torch.equal(advice.valid, ~is_full)
        torch.testing.assert_close(advice.probs, expected(state) * ~is_full[:, None])
    assert advisor.counters()["no_advice/unsound"] == 2 * len(VIEW.key(canonical)[is_full].unique(dim=0))
    assert "the tutor 'recording' are no distributions over the legal actions" in caplog.text


@pytest.mark.parametrize("fills", [True, False], ids=["table", "store"])
def test_stored_illegal_answers_are_not_used_and_asked_about_anew(
    fills: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, {"tutor": "recording"}))
    state = full_columns()
    canonical = VIEW.canonicalize(state)[0]
    wrong = WrongTutor().advise(canonical)
    store.put(VIEW.key(canonical), wrong, [""] * 64)
    store.flush()
    tutor: Tutor = RecordingTutor()
    advisor = make_advisor(math.inf, tutor, store)
    if fills:
        advisor.fill_table()
    advice = advisor.advise(state, EVERYBODY)
    assert advice.valid.all()
    torch.testing.assert_close(advice.probs, expected(state))
    assert tutor.stats["asked"] == len(VIEW.key(canonical)[(~VIEW.action_mask(canonical)).any(1)].unique(dim=0))
    advisor.counters()
    assert "are no distributions over the legal actions" in caplog.text
    store.close()


def test_unsound_table_of_a_checkpoint_is_not_used() -> None:
    advisor, state = make_advisor(math.inf, RecordingTutor()), full_columns()
    canonical = VIEW.canonicalize(state)[0]
    wrong = WrongTutor().advise(canonical)
    advisor.table.put(VIEW.key(canonical), wrong._replace(probs=wrong.probs.float()))
    other = make_advisor(math.inf, RecordingTutor())
    other.load_state_dict(advisor.state_dict())
    torch.testing.assert_close(other.advise(state, EVERYBODY).probs, expected(state))
