"""A desk that does not wait: its ring and its choice of questions against plain lists, its advice against a plain
account of what must be known when; and a tutor that hangs, fails or never answers, for which nobody waits.
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

from envs.base import State, select_rows
from tests.helpers.host_reads import NoHostReads
from tests.helpers.llm_tutors import connect_tutor
from tests.helpers.scripted_server import Handler, serving
from tests.integration.test_query import config_of, metrics, tensors
from tests.tutors.test_advisor import VIEW, Witness, canonical_keys, expected, some, states
from train import train
from training.checkpoint import load_checkpoint
from training.config import default_config
from tutors import TutorConfig
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor, Told
from tutors.async_advisor import Clerk, Questions, Ring, worth_asking
from tutors.base import Advice, TutorError


def numbered(numbers: list[int]) -> tuple[Tensor, State]:
    """Keys and a state that can be told from each other."""
    rows = torch.tensor(numbers)
    return torch.stack([rows, -rows], 1), {"mine": 10 * rows, "pair": torch.stack([rows, rows + 1], 1)}


def wait_for_clerk(desk: Advisor) -> None:
    """Wait until what was handed over has been answered."""
    assert desk.clerk is not None
    over = time.monotonic() + 20
    while desk.clerk.is_busy and desk.clerk.outbox.empty():
        assert time.monotonic() < over
        time.sleep(0.001)


def make_desk(tutor: Witness, budget: float = math.inf, device: str = "cpu") -> Advisor:
    return Advisor(VIEW, tutor, AdviceTable(7, budget, capacity=1 << 14, device=device), None, async_tutor=True)


def test_a_ring_holds_the_newest_questions_and_forgets_them_when_they_are_handed_out() -> None:
    ring, held, added = Ring(numbered([0])[1], 8), [], 0
    chance = torch.Generator().manual_seed(1)
    for turn in range(40):
        numbers = [100 * turn + row for row in range(5)]
        keys, state = numbered(numbers)
        missed = torch.rand(5, generator=chance) < 0.6
        ring.add(keys, state, missed)
        held += [number for number, miss in zip(numbers, missed.tolist(), strict=True) if miss]
        added += int(missed.sum())
        if turn % 4 == 3:
            questions = ring.drain()
            assert int(questions.added) == added
            newest = [(added - 1 - back) % 8 for back in range(min(added, 8))]
            assert questions.keys[newest, 0].tolist() == held[::-1][:8]
            assert questions.state["mine"][newest].tolist() == [10 * number for number in held[::-1][:8]]
            assert questions.state["pair"][newest, 1].tolist() == [number + 1 for number in held[::-1][:8]]
            held, added = [], 0


def test_the_commonest_then_the_newest_questions_are_asked_and_the_rest_is_dropped() -> None:
    for seed in range(30):
        numbers = torch.randint(12, (40,), generator=torch.manual_seed(seed)).tolist()
        known = {(3, -3), (4, -4)}
        ring = Ring(numbered([0])[1], 32)
        for number in numbers:
            ring.add(*numbered([number]), torch.tensor([True]))
        keys, state, dropped = worth_asking(ring.drain(), known, most=5)
        held = [number for number in numbers[-32:] if (number, -number) not in known]
        often = Counter(held)
        order = sorted(often, key=lambda one: (-often[one], held[::-1].index(one)))
        assert keys[:, 0].tolist() == order[:5]
        assert state["mine"].tolist() == [10 * number for number in order[:5]]
        assert dropped == 8 + sum(often[one] for one in order[5:])


def test_nothing_to_ask_is_an_empty_batch() -> None:
    keys, state, dropped = worth_asking(Ring(numbered([0])[1], 8).drain(), set())
    assert len(keys) == len(state["mine"]) == dropped == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")])])  # fmt: skip
@pytest.mark.parametrize("budget", [2, math.inf])
def test_an_answer_that_comes_at_once_serves_from_the_second_step_after_the_question(
    budget: float, device: str
) -> None:
    tutor = Witness()
    desk = make_desk(tutor, budget, device)
    left: dict[int, float] = {}  # uses of each key in the table
    coming: list[set[int]] = []  # keys handed over, a batch each
    asked: Counter[int] = Counter()
    queue: list[int] = []
    for turn, state in enumerate(states(30)):
        wanted = some(64, turn)
        there = {name: rows.to(device) for name, rows in state.items()}
        advice = Advice(*(part.cpu() for part in desk.advise(there, wanted.to(device))))
        for row, key in enumerate(canonical_keys(state, torch.arange(64))):
            if not wanted[row]:
                assert not advice.valid[row]
            elif left.get(key, 0) > 0:
                left[key] -= 1
                assert advice.valid[row]
                torch.testing.assert_close(advice.probs[row], expected(state)[row])
            else:
                assert not advice.valid[row]
                queue.append(key)
        wait_for_clerk(desk)
        desk.tend()
        if coming:
            left |= dict.fromkeys(coming[-1], budget)
        if queue:
            coming.append(set(queue) - (coming[-1] if coming else set()))
            asked.update(coming[-1])
            queue = []
    wait_for_clerk(desk)
    assert Counter(tutor.heard) == asked
    desk.close()


def test_a_question_that_comes_up_again_after_a_quiet_step_is_asked_again() -> None:
    """With a reuse of 1 the third time that a position comes up is a new question, whenever that is."""
    tutor = Witness()
    desk = make_desk(tutor, 1)
    (state,) = states(1)
    everybody, nobody = torch.ones(64, dtype=torch.bool), torch.zeros(64, dtype=torch.bool)
    for turn, wanted in enumerate((everybody, nobody, nobody, everybody, everybody, nobody, nobody)):
        advice = desk.advise(select_rows(state, torch.tensor([0])), wanted[:1])
        assert bool(advice.valid) == (turn == 3)
        wait_for_clerk(desk)
        desk.tend()
    wait_for_clerk(desk)
    desk.close()
    assert len(tutor.heard) == 2
    assert desk.summary()["dropped"] == 0


@pytest.mark.parametrize(("algo", "reuse"), [("dqn", math.inf), ("ppo", 3)])
def test_with_a_tutor_that_answers_at_once_a_run_is_one_that_waits_but_hears_a_step_later(
    algo: str, reuse: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run waits for each answer, does not use it in its own step, and knows it after the next one."""
    hand, coming = Clerk.hand, []

    def hand_and_wait(clerk: Clerk, questions: Questions) -> None:
        hand(clerk, questions)
        while clerk.outbox.empty():
            time.sleep(0.0001)

    def ask_for_later(desk: Advisor, told: Told, missing: Tensor, advice: Advice) -> None:
        known = coming.pop() if coming else None
        if known is not None:
            desk.table.put(*known)
        rows = torch.tensor([row for row in missing.nonzero()[:, 0].tolist() if known is None or not
                             (known[0] == told.keys[row]).all(1).any()], dtype=torch.int64)  # fmt: skip
        keys, which = told.keys[rows].unique(dim=0, return_inverse=True)
        first = torch.tensor([which.tolist().index(number) for number in range(len(keys))], dtype=torch.int64)
        if len(keys):
            coming.append((keys, desk._ask(select_rows(told.state, rows[first]), keys)))

    monkeypatch.setattr(Clerk, "hand", hand_and_wait)
    runs = {}
    for name in ("async_tutor", "wait"):
        told = {"reuse": reuse, "tutor_accuracy": 0.8, "async_tutor": name == "async_tutor"}
        runs[name] = train(config_of(algo, "connect4", tmp_path / name, **told))["tutor"]
        monkeypatch.setattr(Advisor, "ask", ask_for_later)
    assert runs["async_tutor"]["hits"] == runs["wait"]["hits"] > 30  # type: ignore[index]
    weights = [load_checkpoint(tmp_path / name / "checkpoints", "cpu")["agent"] for name in runs]
    assert all(one.equal(other) for one, other in zip(*map(tensors, weights), strict=True))
    logged = [
        [row for row in metrics(tmp_path / name) if row[1].startswith(("charts/", "losses/", "eval/", "tutor/hit"))]
        for name in runs
    ]
    assert logged[0] == logged[1]


def test_the_games_go_on_while_the_tutor_thinks() -> None:
    gate = threading.Event()

    class Slow(Witness):
        def advise(self, state: State) -> Advice:
            gate.wait(20)
            return super().advise(state)

    tutor = Slow()
    desk = make_desk(tutor)
    played = states(20)
    for state in played:
        assert not desk.advise(state, torch.ones(64, dtype=torch.bool)).valid.any()
        desk.tend()
    assert tutor.heard == []
    assert desk.report()["tutor/consulted"] == 20 * 64, "a report does not wait either"
    gate.set()
    wait_for_clerk(desk)
    assert set(tutor.heard) == set(canonical_keys(played[0], torch.arange(64)))
    desk.tend()
    assert desk.advise(played[0], torch.ones(64, dtype=torch.bool)).valid.all()
    desk.close()


def test_asking_reads_nothing_back() -> None:
    desk = make_desk(Witness())
    first, *rest = states(5)
    desk.advise(first, some(64, 0))
    with NoHostReads():
        for state in rest:
            desk.advise(state, some(64, 1))
    assert desk.ring is not None
    assert int(desk.ring.count) > 64
    desk.close()


def test_a_thread_that_waits_for_ever_is_called_back() -> None:
    gate = threading.Event()

    def ask(state: State, keys: Tensor) -> Advice:
        gate.wait()
        return Advice.no_advice(len(keys), 7)

    clerk = Clerk(ask, gate.set)
    ring = Ring(numbered([0])[1], 8)
    ring.add(*numbered([1]), torch.tensor([True]))
    clerk.hand(ring.drain())
    time.sleep(0.05)
    assert clerk.close()
    assert not clerk.thread.is_alive()


def test_closing_does_not_wait_for_a_server_that_never_answers() -> None:
    over = threading.Event()

    def never(handler: Handler, _body: dict) -> bool:
        over.wait(30)
        handler.close_connection = True
        return True

    with serving() as server:
        tutor = connect_tutor(server.url)
        server.misbehave = never
        desk = Advisor(
            VIEW, tutor, AdviceTable(7, math.inf, capacity=1 << 10), None, async_tutor=True, cancel=tutor.cancel
        )
        desk.advise(states(1)[0], torch.ones(64, dtype=torch.bool))
        desk.tend()
        time.sleep(0.3)
        began = time.monotonic()
        desk.close()
        tutor.pool.close()
        assert time.monotonic() - began < 3
        assert desk.clerk is not None
        assert not desk.clerk.thread.is_alive()
        over.set()


def test_what_a_person_must_mend_reaches_the_loop_and_so_does_a_bug() -> None:
    class Refused(Witness):
        def advise(self, state: State) -> Advice:
            raise TutorError("the key is refused") if self.mute else KeyError("a bug")

    for mute, error in ((1, TutorError), (0, RuntimeError)):
        desk = make_desk(Refused(mute))
        desk.advise(states(1)[0], torch.ones(64, dtype=torch.bool))
        desk.tend()
        wait_for_clerk(desk)
        with pytest.raises(error):
            desk.tend()
        desk.close()


def test_silence_is_asked_about_again() -> None:
    tutor = Witness(mute=2)
    desk = make_desk(tutor)
    state, everybody = states(1)[0], torch.ones(64, dtype=torch.bool)
    for _ in range(6):
        desk.advise(state, everybody)
        wait_for_clerk(desk)
        desk.tend()
    again = Counter(tutor.heard)
    assert max(again.values()) > 1
    assert all(key % 2 == 0 for key, times in again.items() if times > 1)
    desk.close()


def test_a_run_that_does_not_wait_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    config = default_config("dqn", "connect4")
    told = TutorConfig(tutor="scripted", async_tutor=True)
    summary = train(
        replace(config, tutoring=told, total_steps=6000, num_envs=64, eval_episodes=20, run_dir=tmp_path / "run")
    )
    assert summary["tutor"]["hits"] > 0  # type: ignore[index]
    assert summary["tutor"]["asked"] > 0  # type: ignore[index]
    assert threading.active_count() <= before
