"""The asynchronous advisor: its queue and its choice of queries against plain lists, its advice against a plain
account of what must be known when; and a tutor that hangs, fails or never answers, for which nothing waits.
"""

import math
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agents.guidance import GuidanceConfig
from envs.base import State, select_rows
from tests.helpers.advisors import VIEW, RecordingTutor, canonical_keys, expected, some, states
from tests.helpers.host_reads import NoHostReads
from tests.helpers.llm_tutors import connect_tutor
from tests.helpers.scripted_server import Handler, serving
from tests.helpers.small_runs import logged, small_config, tensors_in
from train import train
from training.checkpoint import load_checkpoint
from training.config import default_config
from tutors import TutorConfig
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor, Lookup, advisor_metrics, advisor_summary
from tutors.async_advisor import AsyncAdvisor, PendingBatch, PendingQueue, TutorThread, select_queries
from tutors.base import Advice, TutorError
from tutors.positions import unique_rows


def numbered(numbers: list[int]) -> tuple[Tensor, State]:
    """Keys and a state that differ from each other."""
    rows = torch.tensor(numbers)
    return torch.stack([rows, -rows], 1), {"mine": 10 * rows, "pair": torch.stack([rows, rows + 1], 1)}


def wait_for_thread(advisor: AsyncAdvisor) -> None:
    """Wait until the submitted batch has been answered."""
    over = time.monotonic() + 20
    while advisor.thread.is_busy and advisor.thread.outbox.empty():
        assert time.monotonic() < over
        time.sleep(0.001)


def make_async(tutor: RecordingTutor, budget: float = math.inf, device: str = "cpu") -> AsyncAdvisor:
    advisor = AsyncAdvisor(VIEW, tutor, AdviceTable(7, budget, capacity=1 << 14, device=device), None)
    advisor.allocate({name: rows.to(device) for name, rows in states(1)[0].items()})
    return advisor


def test_queue_holds_the_newest_queries_until_it_is_drained() -> None:
    queue, held, added = PendingQueue(numbered([0])[1], 8), [], 0
    chance = torch.Generator().manual_seed(1)
    for turn in range(40):
        numbers = [100 * turn + row for row in range(5)]
        keys, state = numbered(numbers)
        missed = torch.rand(5, generator=chance) < 0.6
        queue.add(keys, state, missed)
        held += [number for number, miss in zip(numbers, missed.tolist(), strict=True) if miss]
        added += int(missed.sum())
        if turn % 4 == 3:
            batch = queue.drain()
            assert int(batch.added) == added
            newest = [(added - 1 - back) % 8 for back in range(min(added, 8))]
            assert batch.keys[newest, 0].tolist() == held[::-1][:8]
            assert batch.state["mine"][newest].tolist() == [10 * number for number in held[::-1][:8]]
            assert batch.state["pair"][newest, 1].tolist() == [number + 1 for number in held[::-1][:8]]
            held, added = [], 0


def test_most_frequent_then_newest_queries_are_selected_and_the_rest_dropped() -> None:
    for seed in range(30):
        numbers = torch.randint(12, (40,), generator=torch.manual_seed(seed)).tolist()
        known = {(3, -3), (4, -4)}
        queue = PendingQueue(numbered([0])[1], 32)
        for number in numbers:
            queue.add(*numbered([number]), torch.tensor([True]))
        keys, state, dropped = select_queries(queue.drain(), known, limit=5)
        held = [number for number in numbers[-32:] if (number, -number) not in known]
        often = Counter(held)
        order = sorted(often, key=lambda one: (-often[one], held[::-1].index(one)))
        assert keys[:, 0].tolist() == order[:5]
        assert state["mine"].tolist() == [10 * number for number in order[:5]]
        assert dropped == 8 + sum(often[one] for one in order[5:])


def test_empty_queue_is_an_empty_batch() -> None:
    keys, state, dropped = select_queries(PendingQueue(numbered([0])[1], 8).drain(), set())
    assert len(keys) == len(state["mine"]) == dropped == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")])])  # fmt: skip
@pytest.mark.parametrize("budget", [2, math.inf])
def test_immediate_answer_serves_from_the_second_step_after_the_query(budget: float, device: str) -> None:
    tutor = RecordingTutor()
    advisor = make_async(tutor, budget, device)
    left: dict[int, float] = {}  # uses of each key in the table
    coming: list[set[int]] = []  # keys handed over, a batch each
    asked: Counter[int] = Counter()
    queue: list[int] = []
    for turn, state in enumerate(states(30)):
        wanted, probs = some(64, turn), expected(state)
        there = {name: rows.to(device) for name, rows in state.items()}
        advice = Advice(*(part.cpu() for part in advisor.advise(there, wanted.to(device))))
        for row, key in enumerate(canonical_keys(state, torch.arange(64))):
            if not wanted[row]:
                assert not advice.valid[row]
            elif left.get(key, 0) > 0:
                left[key] -= 1
                assert advice.valid[row]
                torch.testing.assert_close(advice.probs[row], probs[row])
            else:
                assert not advice.valid[row]
                queue.append(key)
        wait_for_thread(advisor)
        advisor.step()
        if coming:
            left |= dict.fromkeys(coming[-1], budget)
        if queue:
            coming.append(set(queue) - (coming[-1] if coming else set()))
            asked.update(coming[-1])
            queue = []
    wait_for_thread(advisor)
    assert Counter(tutor.asked) == asked
    advisor.close()


def test_position_that_comes_up_again_after_a_step_without_it_is_asked_again() -> None:
    """With a reuse of 1 the third time that a position comes up is a new question, whenever that is."""
    tutor = RecordingTutor()
    advisor = make_async(tutor, 1)
    (state,) = states(1)
    everybody, nobody = torch.ones(64, dtype=torch.bool), torch.zeros(64, dtype=torch.bool)
    for turn, wanted in enumerate((everybody, nobody, nobody, everybody, everybody, nobody, nobody)):
        advice = advisor.advise(select_rows(state, torch.tensor([0])), wanted[:1])
        assert bool(advice.valid) == (turn == 3)
        wait_for_thread(advisor)
        advisor.step()
    wait_for_thread(advisor)
    advisor.close()
    assert len(tutor.asked) == 2
    assert advisor_summary("", advisor.counters())["dropped"] == 0


def test_steps_continue_while_the_tutor_is_asked() -> None:
    gate = threading.Event()

    class Slow(RecordingTutor):
        def advise(self, state: State) -> Advice:
            gate.wait(20)
            return super().advise(state)

    tutor = Slow()
    advisor = make_async(tutor)
    played = states(20)
    for state in played:
        assert not advisor.advise(state, torch.ones(64, dtype=torch.bool)).valid.any()
        advisor.step()
    assert tutor.asked == []
    assert advisor_metrics({}, advisor.counters() | advisor.gauges())["tutor/consulted"] == 20 * 64, (
        "a report does not wait either"
    )
    gate.set()
    wait_for_thread(advisor)
    assert set(tutor.asked) == set(canonical_keys(played[0], torch.arange(64)))
    advisor.step()
    assert advisor.advise(played[0], torch.ones(64, dtype=torch.bool)).valid.all()
    advisor.close()


def test_resolve_reads_nothing_back() -> None:
    advisor = make_async(RecordingTutor())
    first, *rest = states(5)
    advisor.advise(first, some(64, 0))
    with NoHostReads():
        for state in rest:
            advisor.advise(state, some(64, 1))
    assert advisor.queue is not None
    assert int(advisor.queue.count) > 64
    advisor.close()


def test_closing_cancels_a_call_that_never_returns() -> None:
    gate = threading.Event()

    def ask(state: State, keys: Tensor) -> tuple[Advice, None]:
        gate.wait()
        return Advice.no_advice(len(keys), 7), None

    thread = TutorThread(ask, gate.set)
    queue = PendingQueue(numbered([0])[1], 8)
    queue.add(*numbered([1]), torch.tensor([True]))
    thread.submit(queue.drain())
    time.sleep(0.05)
    assert thread.close()
    assert not thread.thread.is_alive()


def test_closing_does_not_wait_for_a_server_that_never_answers() -> None:
    over = threading.Event()

    def never(handler: Handler, _body: dict) -> bool:
        over.wait(30)
        handler.close_connection = True
        return True

    with serving() as server:
        tutor = connect_tutor(server.url)
        server.misbehave = never
        advisor = AsyncAdvisor(VIEW, tutor, AdviceTable(7, math.inf, capacity=1 << 10), None)
        (state,) = states(1)
        advisor.allocate(state)
        advisor.advise(state, torch.ones(64, dtype=torch.bool))
        advisor.step()
        time.sleep(0.3)
        began = time.monotonic()
        advisor.close()
        tutor.pool.close()
        assert time.monotonic() - began < 3
        assert not advisor.thread.thread.is_alive()
        over.set()


def test_step_raises_what_the_thread_raised() -> None:
    class Refused(RecordingTutor):
        def advise(self, state: State) -> Advice:
            raise TutorError("the key is refused") if self.mute else KeyError("a bug")

    for mute, error in ((1, TutorError), (0, RuntimeError)):
        advisor = make_async(Refused(mute))
        advisor.advise(states(1)[0], torch.ones(64, dtype=torch.bool))
        advisor.step()
        wait_for_thread(advisor)
        with pytest.raises(error):
            advisor.step()
        advisor.close()


def test_position_without_advice_is_asked_about_again() -> None:
    tutor = RecordingTutor(mute=2)
    advisor = make_async(tutor)
    state, everybody = states(1)[0], torch.ones(64, dtype=torch.bool)
    for _ in range(6):
        advisor.advise(state, everybody)
        wait_for_thread(advisor)
        advisor.step()
    again = Counter(tutor.asked)
    assert max(again.values()) > 1
    assert all(key % 2 == 0 for key, times in again.items() if times > 1)
    advisor.close()


@pytest.mark.train
def test_async_run_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    config = default_config("dqn", "connect4")
    tutoring = TutorConfig(tutor="scripted", async_tutor=True)
    sizes = {"total_steps": 6000, "num_envs": 64, "eval_episodes": 20, "run_dir": tmp_path / "run"}
    summary = train(replace(config, tutoring=tutoring, guiding=GuidanceConfig("override"), **sizes))
    assert summary["tutor"]["hits"] > 0  # type: ignore[index]
    assert summary["tutor"]["asked"] > 0  # type: ignore[index]
    assert threading.active_count() <= before


@pytest.mark.train
@pytest.mark.parametrize(("algo", "reuse"), [("dqn", math.inf), ("ppo", 3)])
def test_async_run_is_a_waiting_run_whose_answers_come_a_step_later(
    algo: str, reuse: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run waits for each answer, does not use it in its own step, and knows it after the next one."""
    submit, pending = TutorThread.submit, []

    def submit_and_wait(thread: TutorThread, batch: PendingBatch) -> None:
        submit(thread, batch)
        while thread.outbox.empty():
            time.sleep(0.0001)

    def resolve_later(advisor: Advisor, lookup: Lookup) -> Advice:
        known = pending.pop() if pending else None
        if known is not None:
            advisor.table.put(*known)
        positions, misses = lookup.positions, lookup.misses.nonzero()[:, 0].tolist()
        is_new = [known is None or not (known[0] == positions.keys[row]).all(1).any() for row in misses]
        rows = torch.tensor([row for row, new in zip(misses, is_new, strict=True) if new], dtype=torch.int64)
        keys, _, first = unique_rows(positions.keys[rows])
        if len(keys):
            answers, _ = advisor._ask(select_rows(positions.state, rows[first]), keys)
            pending.append((keys, answers))
        return advisor.to_env_actions(positions, lookup.advice)

    monkeypatch.setattr(TutorThread, "submit", submit_and_wait)
    runs = {}
    for name in ("async", "waiting"):
        options = {"reuse": reuse, "tutor_accuracy": 0.8, "async_tutor": name == "async"}
        runs[name] = train(small_config(algo, "connect4", tmp_path / name, **options))["tutor"]
        monkeypatch.setattr(Advisor, "resolve", resolve_later)
    assert runs["async"]["hits"] == runs["waiting"]["hits"] > 30
    weights = [load_checkpoint(tmp_path / name / "checkpoints", "cpu")["agent"] for name in runs]
    assert all(one.equal(other) for one, other in zip(*map(tensors_in, weights), strict=True))
    tags = ("charts/", "losses/", "eval/", "tutor/hit")
    lines = [[row for row in logged(tmp_path / name) if row[1].startswith(tags)] for name in runs]
    assert lines[0] == lines[1]
