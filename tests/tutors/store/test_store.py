"""The advice store against what was put into it: bit by bit, across reopening, sharing, trouble and kill -9."""

import math
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sql
import torch
from sqlalchemy.exc import OperationalError, SQLAlchemyError

import envs
from tests.helpers.stores import IDENTITY, KEYS, SPEC, assert_same, child, keys_of, put, random_advice, soon, words
from tutors import TutorConfig, open_advisor
from tutors.base import Advice
from tutors.prompts import make_view
from tutors.store import (
    AdviceStore,
    Cost,
    advice_store,
    database,
    identity_of,
    recorded_identities,
    without_password,
    writer,
)
from tutors.store.advice_store import KEYS_PER_QUERY

WRITER = """
import itertools, sys, time, torch
from tutors.base import Advice
from tutors.store import AdviceStore
store = AdviceStore(sys.argv[1], {"labels": ["A", "B"]})
for batch in itertools.count():
    keys = torch.tensor([[batch, row] for row in range(7)])
    probs = torch.tensor([batch, 0.5]).expand(7, 2)
    store.put(keys, Advice(probs, torch.ones(7).bool(), torch.ones(7)), ["words"] * 7)
    if sys.argv[2] == "flush":
        store.flush()
    else:
        time.sleep(0.01)
    print(batch, time.time(), flush=True)
"""
OPENER = """
import sys, time
from tutors.store import AdviceStore
print("ready", flush=True)
sys.stdin.read(1)
for path in sys.argv[1:]:
    AdviceStore(path, {"labels": ["A", "B"]}).close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "advice.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[AdviceStore]:
    store = AdviceStore(path, IDENTITY)
    yield store
    store.close()


def test_find_returns_stored_bits(store: AdviceStore) -> None:
    advice = random_advice(len(KEYS))
    store.put(KEYS, advice, words(len(KEYS)))
    assert_same(store.find(KEYS), advice)
    assert store.count() == len(KEYS)


def test_answers_survive_reopening(path: Path) -> None:
    advice = random_advice(len(KEYS))
    first = AdviceStore(path, IDENTITY)
    first.put(KEYS, advice, words(len(KEYS)))
    first.close()
    again = AdviceStore(str(path), IDENTITY)
    assert_same(again.find(KEYS), advice)
    again.close()


def test_find_keeps_the_order_of_keys(store: AdviceStore) -> None:
    advice = random_advice(len(KEYS))
    store.put(KEYS, advice, words(len(KEYS)))
    order = torch.tensor([4, 2, 0, 5])
    assert_same(store.find(KEYS[order]), Advice(*(tensor[order] for tensor in advice)))


def test_unknown_keys_get_no_advice(store: AdviceStore) -> None:
    store.put(KEYS[:1], random_advice(1), words(1))
    others = torch.tensor([[5, 1], [0, 5], [6, 0], [-5, 0]])  # the first shares a half with what is stored
    assert_same(store.find(others), Advice.no_advice(4, 7))


def test_find_answers_repeated_keys(store: AdviceStore) -> None:
    store.put(KEYS[:1], random_advice(1), words(1))
    assert store.find(KEYS[[0, 1, 0]]).valid.tolist() == [True, False, True]


def test_empty_batch_is_accepted(store: AdviceStore) -> None:
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    store.put(nothing, Advice.no_advice(0, 7), [])
    assert_same(store.find(nothing), Advice.no_advice(0, 7))
    assert store.count() == 0


@pytest.mark.parametrize(
    "other",
    [
        identity_of(replace(SPEC, name="snake"), make_view(envs.make_game("connect4")), {"tutor": "somebody"}),
        identity_of(replace(SPEC, version=2), make_view(envs.make_game("connect4")), {"tutor": "somebody"}),
        identity_of(SPEC, make_view(envs.make_game("connect4")), {"tutor": "somebody else"}),
        identity_of(
            SPEC, make_view(envs.make_game("connect4")), {"tutor": "somebody", "template": "Think first. {words}"}
        ),
    ],
    ids=["game", "game version", "tutor", "template"],
)
def test_other_game_tutor_or_template_gets_no_advice(store: AdviceStore, path: Path, other: dict[str, object]) -> None:
    assert_stranger(store, path, other)


@pytest.mark.parametrize(
    ("part", "value"),
    [("name", "list"), ("version", 2), ("instructions", "Guess.\n"), ("labels", tuple("1234567"))],
)
def test_other_view_gets_no_advice(store: AdviceStore, path: Path, part: str, value: object) -> None:
    view = make_view(envs.make_game("connect4"))
    setattr(view, part, value)
    assert_stranger(store, path, identity_of(SPEC, view, {"tutor": "somebody"}))


def assert_stranger(store: AdviceStore, path: Path, identity: dict[str, object]) -> None:
    """A store of another identity on the same file neither answers, nor counts, nor is answered."""
    store.put(KEYS, random_advice(len(KEYS)), words(len(KEYS)))
    store.flush()
    other = AdviceStore(path, identity)
    assert_same(other.find(KEYS), Advice.no_advice(len(KEYS), 7))
    assert other.count() == 0
    theirs = random_advice(len(KEYS), seed=1)
    other.put(KEYS, theirs, words(len(KEYS)))
    assert_same(other.find(KEYS), theirs)
    assert_same(store.find(KEYS), random_advice(len(KEYS)))
    other.close()


def test_identity_does_not_depend_on_key_order(store: AdviceStore, path: Path) -> None:
    store.put(KEYS, random_advice(len(KEYS)), words(len(KEYS)))
    store.flush()
    again = AdviceStore(path, dict(reversed(IDENTITY.items())))
    assert again.count() == len(KEYS)
    again.close()


@pytest.mark.parametrize("written", [False, True])
def test_first_answer_stays(store: AdviceStore, written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH_WAIT_S", 1000)
    first, second = random_advice(len(KEYS)), random_advice(len(KEYS), seed=1)
    store.put(KEYS[:2], Advice(*(tensor[:2] for tensor in first)), words(2))
    if written:
        store.flush()
    store.put(KEYS, second, words(len(KEYS)))
    found = store.find(KEYS)
    assert found.probs[:2].equal(first.probs[:2])
    assert found.probs[2:].equal(second.probs[2:])
    assert found.label_mass[:2].equal(first.label_mass[:2])
    store.flush()
    assert_same(store.find(KEYS), found)
    assert store.count() == len(KEYS)


def test_rows_without_advice_are_not_written(store: AdviceStore) -> None:
    given = torch.tensor([True, False, True, False, False, True])
    store.put(KEYS, random_advice(len(KEYS))._replace(valid=given), words(len(KEYS)))
    assert store.find(KEYS).valid.equal(given)
    assert store.count() == 3
    store.put(KEYS, random_advice(len(KEYS))._replace(valid=~given), words(len(KEYS)))
    assert store.find(KEYS).valid.all()


def test_prompt_cost_and_time_are_stored_with_each_answer(store: AdviceStore, path: Path) -> None:
    began = time.time() - 1e-6
    store.put(KEYS[:2], random_advice(2), ["one", "two"], Cost(97.5, 1.0, 0.125))
    store.flush()
    with sqlite3.connect(path) as connection:
        rows = connection.execute("select key, words, at from answers order by words").fetchall()
        costs = connection.execute("select prompt_tokens, answer_tokens, seconds from answers").fetchall()
        (text,) = connection.execute("select text from identities").fetchone()
    connection.close()
    assert [row[:2] for row in rows] == [(5, "one"), (5, "two")]
    assert all(began <= at <= time.time() + 1e-6 for *_, at in rows)
    assert costs == [(97.5, 1.0, 0.125)] * 2
    assert "somebody" in text


@pytest.mark.parametrize("rows", [KEYS_PER_QUERY, KEYS_PER_QUERY + 1, 3 * KEYS_PER_QUERY + 7])
def test_find_splits_keys_over_several_queries(store: AdviceStore, rows: int) -> None:
    keys = torch.stack([torch.arange(rows) - rows // 2, torch.arange(rows) % 3], 1)
    advice = random_advice(rows)
    store.put(keys, advice, words(rows))
    assert store.count() == rows
    assert_same(store.find(keys), advice)
    assert not store.find(keys + torch.tensor([0, 3])).valid.any()


def test_two_stores_share_a_file(store: AdviceStore, path: Path) -> None:
    other = AdviceStore(path, IDENTITY)
    first, second = random_advice(3), random_advice(3, seed=1)
    for at in range(3):  # in turns, both open all the time
        ours, theirs = KEYS[2 * at : 2 * at + 1], KEYS[2 * at + 1 : 2 * at + 2]
        store.put(ours, Advice(*(tensor[at : at + 1] for tensor in first)), ["ours"])
        store.flush()
        assert other.find(ours).probs.equal(first.probs[at : at + 1])
        other.put(theirs, Advice(*(tensor[at : at + 1] for tensor in second)), ["theirs"])
        other.flush()
        assert store.find(theirs).probs.equal(second.probs[at : at + 1])
    assert store.count() == other.count() == 6
    other.close()


@pytest.mark.process
def test_concurrent_processes_open_new_stores(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.sqlite") for number in range(40)]
    children = [child(OPENER, *paths) for _ in range(2)]
    for process in children:
        assert process.stdout.readline() == "ready\n"
    for process in children:
        process.stdin.write("x")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in children]
    assert [process.returncode for process in children] == [0, 0], "\n".join(errors)


@pytest.mark.process
def test_concurrent_writers_of_the_same_keys_lose_nothing(path: Path) -> None:
    children = [child(WRITER, str(path), how) for how in ("flush", "flush", "never")]
    printed = [[process.stdout.readline() for _ in range(20)] for process in children]
    for process in children:
        process.kill()
        process.communicate()
    assert all(line for lines in printed for line in lines)
    store = AdviceStore(path, {"labels": ["A", "B"]})
    keys = torch.cartesian_prod(torch.arange(20), torch.arange(7))
    assert store.find(keys).valid.all()
    store.close()


@pytest.mark.process
def test_killed_process_loses_nothing_committed(path: Path) -> None:
    with child(WRITER, str(path), "flush") as process:
        printed = [process.stdout.readline() for _ in range(25)]
        process.send_signal(signal.SIGKILL)
        printed += process.stdout.read().splitlines()  # between the last line and its end
    assert process.returncode == -signal.SIGKILL
    store = AdviceStore(path, {"labels": ["A", "B"]})
    assert store.count() % 7 == 0, "a batch was written in part"
    assert store.count() // 7 in (len(printed), len(printed) + 1), "all that was printed, and at most one that was not"
    keys = torch.cartesian_prod(torch.arange(len(printed)), torch.arange(7))
    expected = torch.stack([keys[:, 0].float(), torch.full((len(keys),), 0.5)], 1)
    assert_same(store.find(keys), Advice(expected, torch.ones(len(keys)).bool(), torch.ones(len(keys))))
    store.close()


@pytest.mark.process
def test_killed_process_loses_at_most_the_last_second_unflushed(path: Path) -> None:
    with child(WRITER, str(path), "never") as process:
        printed = [process.stdout.readline().split() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        printed += [line.split() for line in process.stdout.read().splitlines()]
    store = AdviceStore(path, {"labels": ["A", "B"]})
    kept = store.count()
    store.close()
    assert kept % 7 == 0, "what was put at once is written at once"
    killed = float(printed[-1][1])
    due = [int(batch) for batch, when in printed if float(when) < killed - 1]
    assert due, "the child did not live for a second"
    assert kept // 7 > due[-1]


@pytest.mark.process
@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_ended_process_without_close_loses_nothing(path: Path, ending: str) -> None:
    program = f"""
import os, signal, sys, torch
from tutors.base import Advice
from tutors.store import AdviceStore, writer
writer.BATCH_WAIT_S = 1000
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # as run_program does
store = AdviceStore(sys.argv[1], {{"labels": ["A", "B"]}})
store.put(torch.arange(10).view(5, 2), Advice(torch.ones(5, 2), torch.ones(5).bool(), torch.ones(5)), ["words"] * 5)
{ending}
"""
    with child(program, str(path)) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == {"": 0, "r": 3, "o": 143}[ending[:1]], errors
    store = AdviceStore(path, {"labels": ["A", "B"]})
    assert store.count() == 5
    store.close()


def test_file_has_a_write_ahead_log(store: AdviceStore, path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    connection.close()


def test_non_finite_advice_is_not_stored(store: AdviceStore) -> None:
    broken = random_advice(len(KEYS))
    broken.label_mass[3], broken.probs[1, 4], broken.probs[2, 0] = math.nan, math.inf, math.nan
    store.put(KEYS, broken, words(len(KEYS)))
    assert store.find(KEYS).valid.tolist() == [True, False, False, False, True, True]
    assert store.count() == 3


def test_rejected_batch_is_dropped_and_not_retried(store: AdviceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH_WAIT_S", 1000)
    store.put(KEYS, random_advice(len(KEYS)), [*words(len(KEYS) - 1), "\ud800"])
    with pytest.raises(UnicodeEncodeError):
        store.flush()
    assert store.count() == 0
    assert store.writer.lost == len(KEYS)
    put(store, 1)
    assert store.count() == 1


def written(path: Path) -> int:
    """How many answers another program finds."""
    connection = sqlite3.connect(path)
    (count,) = connection.execute("select count(*) from answers").fetchone()
    connection.close()
    return count


def test_find_includes_unwritten_answers(store: AdviceStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH_WAIT_S", 1000)
    known = put(store, 1, 2)
    store.flush()
    new = put(store, 3, 4)
    assert written(path) == 2
    both = [torch.cat(parts) for parts in zip(known, new, strict=True)]
    assert_same(store.find(keys_of(1, 2, 3, 4)), Advice(*both))


def test_puts_are_written_in_one_transaction_without_waiting(
    store: AdviceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BATCH_WAIT_S", 1000)
    inserts: list[str] = []
    sql.event.listen(
        store.engine, "before_cursor_execute", lambda *arguments: inserts.append(threading.current_thread().name)
    )
    for number in range(50):
        put(store, number)
    assert inserts == []
    store.flush()
    assert len(inserts) == 1
    store.flush()
    assert len(inserts) == 1, "nothing waited"


def test_thread_writes_within_a_second_without_flush(store: AdviceStore, path: Path) -> None:
    threads: set[str] = set()
    sql.event.listen(
        store.engine, "before_cursor_execute", lambda *arguments: threads.add(threading.current_thread().name)
    )
    put(store, 1, 2, 3)
    assert soon(lambda: written(path) == 3, 1.0)
    assert threads == {"advice store"}


def test_closing_ends_both_threads(path: Path) -> None:
    before = threading.active_count()
    store = AdviceStore(path, IDENTITY)
    assert threading.active_count() == before
    for _ in range(3):
        store.find(KEYS)
    assert threading.active_count() == before + 1
    put(store, 1)
    assert threading.active_count() == before + 2
    store.close()
    store.close()
    assert soon(lambda: threading.active_count() == before, 2.0)
    with pytest.raises(AssertionError, match="closed"):
        put(store, 2)


def test_locked_database_blocks_nobody_and_is_written_later(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(writer, "RETRY_WAIT_S", 0.05)
    store = AdviceStore(path, IDENTITY)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    began = time.monotonic()
    answers = [put(store, number) for number in range(1, 30)]
    assert time.monotonic() - began < 0.5
    assert soon(lambda: store.failures > 3)
    assert_same(store.find(keys_of(7)), answers[6])
    other.execute("rollback")
    other.close()
    assert soon(lambda: written(path) == 29)
    store.close()
    assert store.writer.lost == 0
    assert [record.message for record in caplog.records] == [
        "the advice store failed (database is locked): training goes on without it"
    ]


def at_once(call: Callable[[], object]) -> object:
    """In place of trying again for ten seconds."""
    return call()


@pytest.mark.parametrize("is_new", [True, False])
def test_database_that_is_locked_at_the_start_is_used_later(
    is_new: bool, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(advice_store, "READ_RETRY_S", 0.0)
    monkeypatch.setattr(advice_store, "retry_while_locked", at_once)
    monkeypatch.setattr(writer, "RETRY_WAIT_S", 0.05)
    if not is_new:
        store = AdviceStore(path, IDENTITY)
        known = put(store, 99)
        store.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    began = time.monotonic()
    store = AdviceStore(path, IDENTITY)
    assert store.failures == 1
    with pytest.raises(SQLAlchemyError, match="locked"):
        list(store.all(10))
    answers = put(store, 1)
    with pytest.raises(SQLAlchemyError, match="locked"):
        store.find(keys_of(1))
    assert soon(lambda: store.failures > 1)
    assert time.monotonic() - began < 3
    other.execute("rollback")
    other.close()
    assert soon(lambda: path.exists() and store.writer.waiting == {})
    assert_same(store.find(keys_of(1)), answers)
    if not is_new:
        assert_same(store.find(keys_of(99)), known)
    store.close()
    assert store.writer.lost == 0
    assert [record.message for record in caplog.records] == [
        "the advice store failed (database is locked): training goes on without it"
    ]


def test_disk_that_is_full_at_the_start_costs_answers_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RETRY_WAIT_S", 0.05)
    full, connect = True, database.prepare_sqlite

    def prepare(connection: sqlite3.Connection, record: object) -> None:
        connect(connection, record)
        connection.execute(f"pragma max_page_count = {1 if full else 1 << 30}")

    monkeypatch.setattr(database, "prepare_sqlite", prepare)
    store = AdviceStore(path, IDENTITY)
    assert store.failures == 1
    put(store, 1)
    assert soon(lambda: store.failures > 1)
    full = False
    store.engine.dispose()
    assert soon(lambda: path.exists() and store.writer.waiting == {})
    assert store.count() == 1
    store.close()
    assert store.writer.lost == 0


def test_run_begins_with_a_locked_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(advice_store, "retry_while_locked", at_once)
    AdviceStore(tmp_path / "advice.sqlite", IDENTITY).close()
    other = sqlite3.connect(tmp_path / "advice.sqlite", isolation_level=None)
    other.execute("begin exclusive")
    env = envs.make("connect4", 8, 1)
    with open_advisor(TutorConfig("scripted"), env.game, 1, tmp_path, "cpu") as advisor:
        assert advisor is not None
        step = env.reset()
        assert advisor.advise(step.state, torch.ones(8, dtype=torch.bool)).valid.all()
        assert advisor.counters()["store_failures"] > 1
        other.execute("rollback")
        other.close()
    assert written(tmp_path / "advice.sqlite") == advisor.counts["queried"] > 0


def test_full_disk_loses_only_what_does_not_fit(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "RETRY_WAIT_S", 0.05)
    monkeypatch.setattr(writer, "BATCH_WAIT_S", 0.05)
    monkeypatch.setattr(writer, "MAX_WAITING", 500)
    store = AdviceStore(path, IDENTITY)
    full = True
    sql.event.listen(
        store.engine,
        "begin",
        lambda connection: connection.exec_driver_sql(f"pragma max_page_count = {1 if full else 1 << 30}"),
    )
    for number in range(0, 1000, 10):
        put(store, *range(number, number + 10))
        if number == 100:
            assert soon(lambda: store.failures > 0)
    assert soon(lambda: store.failures > 3)
    assert store.writer.lost == 500
    assert "full" in caplog.text
    full = False
    assert soon(lambda: written(path) == 500)
    put(store, 5000)
    assert store.count() == 501
    store.close()
    assert "500 answers could not be written" in caplog.records[-1].message


def test_close_reports_unwritten_answers(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = AdviceStore(path, IDENTITY)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("drop table answers")
    put(store, 1, 2, 3)
    with pytest.raises(SQLAlchemyError):
        store.find(keys_of(1))
    with pytest.raises(OperationalError, match="no such table"):
        store.flush()
    store.close()
    assert store.failures >= 1
    assert "3 answers could not be written" in caplog.records[-1].message


def test_full_queue_is_written_to_make_room(store: AdviceStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH_WAIT_S", 1000)
    monkeypatch.setattr(writer, "MAX_WAITING", 10)
    for number in range(0, 32, 4):
        put(store, *range(number, number + 4))
        assert len(store.writer.waiting) <= 10
    assert written(path) == 24
    put(store, *range(100, 200))
    assert store.count() == 132
    assert store.writer.lost == 0


def test_concurrent_threads_put_and_find(store: AdviceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "BATCH_WAIT_S", 0.001)
    missed = []

    def work(first: int) -> None:
        for number in range(first, first + 60):
            advice = put(store, number)
            if not store.find(keys_of(number)).probs.equal(advice.probs):
                missed.append(number)

    threads = [threading.Thread(target=work, args=(1000 * turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missed == []
    assert store.count() == 240


@pytest.mark.parametrize(("most", "expected"), [(100, range(10)), (10, range(10)), (4, range(6, 10)), (1, [9])])
def test_all_returns_the_newest_answers_oldest_first(
    store: AdviceStore, path: Path, most: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice_store, "ANSWERS_PER_BATCH", 3)
    clock = iter(range(1, 100))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    other = AdviceStore(path, IDENTITY | {"tutor": "somebody else"})
    put(other, 77)
    other.close()
    answers = [put(store, number) for number in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
    store.flush()
    batches = list(store.all(most))
    assert [len(keys) for keys, _ in batches] == [3] * (len(expected) // 3) + [len(expected) % 3] * (
        len(expected) % 3 > 0
    )
    order = [(3, 1, 4, 0, 5, 9, 2, 6, 8, 7)[turn] for turn in expected]
    assert torch.cat([keys for keys, _ in batches]).equal(keys_of(*order))
    found = Advice(*(torch.cat(parts) for parts in zip(*(advice for _, advice in batches), strict=True)))
    assert_same(found, Advice(*(torch.cat(parts) for parts in zip(*(answers[turn] for turn in expected), strict=True))))


def test_all_of_an_empty_store_is_empty(store: AdviceStore) -> None:
    assert list(store.all(10)) == []


DAMAGES = {
    "cut off": "[0.1, 0.2",
    "too few": "[0.5, 0.5]",
    "nothing": "null",
    "words": '["a", 0, 0, 0, 0, 0, 1]',
    "no number": "[NaN, 0, 0, 0, 0, 0, 1]",
    "truth": "[true, 0, 0, 0, 0, 0, 0]",
    "no float": f"[{10**400}, 0, 0, 0, 0, 0, 1]",
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_answer_is_skipped_alone(damage: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = AdviceStore(path, IDENTITY)
    advice = put(store, 1, 2, 3)
    store.flush()
    with sqlite3.connect(path) as file:
        file.execute("update answers set probs = ? where key = 2", (damage,))
    found = store.find(keys_of(1, 2, 3))
    assert found.valid.tolist() == [True, False, True]
    assert found.probs[[0, 2]].equal(advice.probs[[0, 2]])
    ((keys, rest),) = store.all(10)
    assert keys[:, 0].tolist() == [1, 3]
    assert rest.probs.equal(advice.probs[[0, 2]])
    assert store.failures == 2
    assert "1 of its answers are damaged" in caplog.text
    store.close()


def test_answers_below_min_label_mass_are_kept_and_not_read(path: Path) -> None:
    store = AdviceStore(path, IDENTITY)
    advice = random_advice(3)._replace(label_mass=torch.tensor([0.2, 0.5, 0.8]))
    store.put(keys_of(1, 2, 3), advice, words(3))
    store.close()
    strict = AdviceStore(path, IDENTITY, min_mass=0.5)
    assert strict.find(keys_of(1, 2, 3)).valid.tolist() == [False, True, True]
    assert [keys[:, 0].tolist() for keys, _ in strict.all(10)] == [[2, 3]]
    strict.close()
    assert written(path) == 3


def test_database_that_never_answers_delays_one_read_and_no_later_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(advice_store, "LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(writer, "CLOSE_TIMEOUT_S", 0.3)
    over = threading.Event()
    store = AdviceStore(path, IDENTITY)
    monkeypatch.setattr(store, "_read", lambda keys: over.wait())
    store.writer.write = lambda rows: over.wait()
    put(store, 1)
    began = time.monotonic()
    with pytest.raises(SQLAlchemyError, match=r"no answer within 0\.2 seconds"):
        store.find(keys_of(7))
    assert not store.find(keys_of(7)).valid.any()
    assert store.find(keys_of(1)).valid.all(), "it still waits to be written"
    store.close()
    assert time.monotonic() - began < 3
    assert "1 answers could not be written" in caplog.text
    over.set()


@pytest.mark.parametrize("content", [b"garbage " * 4096, b"SQLite format 3\x00" + bytes(range(256)) * 64])
def test_corrupt_file_is_refused_and_unchanged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        AdviceStore(path, IDENTITY)
    assert path.read_bytes() == content


def test_tables_of_another_program_are_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table identities (name text)")
    connection.close()
    with pytest.raises(ValueError, match="identities"):
        AdviceStore(path, IDENTITY)


def test_store_of_another_version_is_refused_naming_what_is_missing(path: Path) -> None:
    AdviceStore(path, IDENTITY).close()
    connection = sqlite3.connect(path)
    connection.execute("alter table answers drop column seconds")
    connection.close()
    for open_it in (lambda: AdviceStore(path, IDENTITY), lambda: recorded_identities(path)):
        with pytest.raises(ValueError, match="no advice store of this version: table answers lacks seconds"):
            open_it()


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        AdviceStore(tmp_path, IDENTITY)


@pytest.mark.parametrize("folder", ["/proc", "missing", "file"])  # root may write everywhere but in /proc
def test_unwritable_folder_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be used"):
        AdviceStore(tmp_path / folder / "advice.sqlite", IDENTITY)


def test_unknown_database_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        AdviceStore("nothing://here/advice", IDENTITY)


def test_refused_url_is_shown_without_its_password() -> None:
    for url, said in (
        ("mysql+pymysql://me:canary@here/advice", "cannot be used: it is in sqlite or postgresql, not in mysql"),
        ("postgresql+psycopg://me:canary@here:port/advice", "cannot be used|is no URL"),
        ("postgresql+psycopg://me:ca/na:canary@here/advice", "cannot be used|is no URL"),
        ("nothing://me:canary@here", "cannot be used"),
        ("://me:canary@here", "cannot be used|is no URL"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            AdviceStore(url, IDENTITY)
        assert "canary" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:canary@here:5432/advice", "postgresql+psycopg://me:***@here:5432/advice"),
        ("postgresql://me:can@ary@here/advice", "postgresql://me:***@here/advice"),
        ("postgresql://:canary@/advice", "postgresql://:***@/advice"),
        ("postgresql://here/advice?password=canary&user=me", "postgresql://here/advice?password=***&user=me"),
        ("postgresql://here/advice?user=me&sslpassword=canary", "postgresql://here/advice?user=me&sslpassword=***"),
        ("recorded:postgresql://me:canary@here/advice", "recorded:postgresql://me:***@here/advice"),
        ("postgresql://me@here/advice", "postgresql://me@here/advice"),
        ("sqlite:///advice.sqlite", "sqlite:///advice.sqlite"),
        ("a:b@c.sqlite", "a:b@c.sqlite"),
    ],
)
def test_without_password_masks_every_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_path_is_taken_literally(tmp_path: Path) -> None:
    strange = tmp_path / "what? 100%25 #1.sqlite"
    AdviceStore(strange, IDENTITY).close()
    assert strange.is_file()


def test_closed_store_releases_its_file(path: Path) -> None:
    store = AdviceStore(path, IDENTITY)
    store.put(KEYS, random_advice(len(KEYS)), words(len(KEYS)))
    store.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name], "the log is folded into the file"


def test_put_copies_tensors(store: AdviceStore) -> None:
    advice = random_advice(len(KEYS))
    kept = advice.probs.clone()
    store.put(KEYS, advice, words(len(KEYS)))
    advice.probs.zero_()
    assert store.find(KEYS).probs.equal(kept)


def test_put_requires_a_prompt_per_row(store: AdviceStore) -> None:
    with pytest.raises(ValueError, match="zip"):
        store.put(KEYS, random_advice(len(KEYS)), words(1))
    assert store.count() == 0


def test_identity_has_all_parts_that_answers_share() -> None:
    parts = {"game", "game_version", "view", "view_version", "tutor", "rules", "labels"}
    assert set(IDENTITY) == parts
