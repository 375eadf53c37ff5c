"""The advice store against what was put into it: bit by bit, across reopening, sharing and kill -9."""

import math
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import envs
from envs.base import Spec
from tutors.base import Advice
from tutors.store import CHUNK, AdviceStore, identity_of
from tutors.views import make_view

ROOT = Path(__file__).parent.parent
SPEC = Spec("connect4", 1, (2, 6, 7), 7, deal_luck=2, play_luck=1, time_limit=None)
IDENTITY = identity_of(SPEC, make_view(envs.make_game("connect4")), {"tutor": "somebody"})
KEYS = torch.tensor([[5, 0], [5, 9], [-(2**63), 2**63 - 1], [2**63 - 1, -(2**63)], [-1, -1], [0, 0]])

WRITER = """
import itertools, sys, torch
from tutors.base import Advice
from tutors.store import AdviceStore
store = AdviceStore(sys.argv[1], {"labels": ["A", "B"]})
for batch in itertools.count():
    keys = torch.tensor([[batch, row] for row in range(7)])
    probs = torch.tensor([batch, 0.5]).expand(7, 2)
    store.put(keys, Advice(probs, torch.ones(7).bool(), torch.ones(7)), ["words"] * 7)
    print(batch, flush=True)
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


def random_advice(rows: int, seed: int = 0, num_actions: int = 7) -> Advice:
    """Numbers that no short decimal can write, the smallest float32 among them."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(rows, num_actions, generator=generator).softmax(1)
    probs[0, 0], probs[0, 1] = 2.0**-149, 1 - 2.0**-24
    return Advice(probs, torch.ones(rows, dtype=torch.bool), torch.rand(rows, generator=generator))


def words(rows: int) -> list[str]:
    return [f"position {row}" for row in range(rows)]


def assert_same(advice: Advice, expected: Advice) -> None:
    for ours, theirs in zip(advice, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.equal(theirs)


def child(program: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_was_put_is_found_to_the_bit(store: AdviceStore) -> None:
    advice = random_advice(len(KEYS))
    store.put(KEYS, advice, words(len(KEYS)))
    assert_same(store.find(KEYS), advice)
    assert store.count() == len(KEYS)


def test_it_is_there_after_reopening(path: Path) -> None:
    advice = random_advice(len(KEYS))
    first = AdviceStore(path, IDENTITY)
    first.put(KEYS, advice, words(len(KEYS)))
    first.close()
    again = AdviceStore(str(path), IDENTITY)
    assert_same(again.find(KEYS), advice)
    again.close()


def test_keys_come_back_in_the_order_in_which_they_are_asked(store: AdviceStore) -> None:
    advice = random_advice(len(KEYS))
    store.put(KEYS, advice, words(len(KEYS)))
    order = torch.tensor([4, 2, 0, 5])
    assert_same(store.find(KEYS[order]), Advice(*(tensor[order] for tensor in advice)))


def test_unknown_keys_are_silent(store: AdviceStore) -> None:
    store.put(KEYS[:1], random_advice(1), words(1))
    others = torch.tensor([[5, 1], [0, 5], [6, 0], [-5, 0]])  # the first shares a half with what is stored
    assert_same(store.find(others), Advice.silence(4, 7))


def test_a_key_asked_twice_is_answered_twice(store: AdviceStore) -> None:
    store.put(KEYS[:1], random_advice(1), words(1))
    assert store.find(KEYS[[0, 1, 0]]).given.tolist() == [True, False, True]


def test_an_empty_batch_is_no_trouble(store: AdviceStore) -> None:
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    store.put(nothing, Advice.silence(0, 7), [])
    assert_same(store.find(nothing), Advice.silence(0, 7))
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
def test_another_game_tutor_or_template_never_answers(store: AdviceStore, path: Path, other: dict[str, object]) -> None:
    assert_stranger(store, path, other)


@pytest.mark.parametrize(
    ("part", "value"),
    [("name", "list"), ("version", 2), ("rules", "Guess.\n"), ("labels", tuple("1234567"))],
)
def test_another_view_never_answers(store: AdviceStore, path: Path, part: str, value: object) -> None:
    view = make_view(envs.make_game("connect4"))
    setattr(view, part, value)
    assert_stranger(store, path, identity_of(SPEC, view, {"tutor": "somebody"}))


def assert_stranger(store: AdviceStore, path: Path, identity: dict[str, object]) -> None:
    """A store of another identity on the same file neither answers, nor counts, nor is answered."""
    store.put(KEYS, random_advice(len(KEYS)), words(len(KEYS)))
    other = AdviceStore(path, identity)
    assert_same(other.find(KEYS), Advice.silence(len(KEYS), 7))
    assert other.count() == 0
    theirs = random_advice(len(KEYS), seed=1)
    other.put(KEYS, theirs, words(len(KEYS)))
    assert_same(other.find(KEYS), theirs)
    assert_same(store.find(KEYS), random_advice(len(KEYS)))
    other.close()


def test_equal_identities_in_another_order_are_one(store: AdviceStore, path: Path) -> None:
    store.put(KEYS, random_advice(len(KEYS)), words(len(KEYS)))
    again = AdviceStore(path, dict(reversed(IDENTITY.items())))
    assert again.count() == len(KEYS)
    again.close()


def test_the_first_answer_stays(store: AdviceStore) -> None:
    first, second = random_advice(len(KEYS)), random_advice(len(KEYS), seed=1)
    store.put(KEYS[:2], Advice(*(tensor[:2] for tensor in first)), words(2))
    store.put(KEYS, second, words(len(KEYS)))
    found = store.find(KEYS)
    assert found.probs[:2].equal(first.probs[:2])
    assert found.probs[2:].equal(second.probs[2:])
    assert found.label_mass[:2].equal(first.label_mass[:2])
    assert store.count() == len(KEYS)


def test_silent_rows_are_not_written(store: AdviceStore) -> None:
    given = torch.tensor([True, False, True, False, False, True])
    store.put(KEYS, random_advice(len(KEYS))._replace(given=given), words(len(KEYS)))
    assert store.find(KEYS).given.equal(given)
    assert store.count() == 3
    store.put(KEYS, random_advice(len(KEYS))._replace(given=~given), words(len(KEYS)))
    assert store.find(KEYS).given.all()


def test_words_and_time_stand_beside_each_answer(store: AdviceStore, path: Path) -> None:
    began = time.time()
    store.put(KEYS[:2], random_advice(2), ["one", "two"])
    with sqlite3.connect(path) as connection:
        rows = connection.execute("select key, words, at from answers order by words").fetchall()
        (text,) = connection.execute("select text from identities").fetchone()
    connection.close()
    assert [row[:2] for row in rows] == [(5, "one"), (5, "two")]
    assert all(began <= at <= time.time() for *_, at in rows)
    assert "somebody" in text


@pytest.mark.parametrize("rows", [CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_more_keys_than_one_query_holds_are_all_found(store: AdviceStore, rows: int) -> None:
    keys = torch.stack([torch.arange(rows) - rows // 2, torch.arange(rows) % 3], 1)
    advice = random_advice(rows)
    store.put(keys, advice, words(rows))
    assert store.count() == rows
    assert_same(store.find(keys), advice)
    assert not store.find(keys + torch.tensor([0, 3])).given.any()


def test_two_stores_on_one_file_share_their_answers(store: AdviceStore, path: Path) -> None:
    other = AdviceStore(path, IDENTITY)
    first, second = random_advice(3), random_advice(3, seed=1)
    for at in range(3):  # in turns, both open all the time
        ours, theirs = KEYS[2 * at : 2 * at + 1], KEYS[2 * at + 1 : 2 * at + 2]
        store.put(ours, Advice(*(tensor[at : at + 1] for tensor in first)), ["ours"])
        assert other.find(ours).probs.equal(first.probs[at : at + 1])
        other.put(theirs, Advice(*(tensor[at : at + 1] for tensor in second)), ["theirs"])
        assert store.find(theirs).probs.equal(second.probs[at : at + 1])
    assert store.count() == other.count() == 6
    other.close()


def test_processes_that_open_new_stores_at_one_moment_all_succeed(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.sqlite") for number in range(40)]
    children = [child(OPENER, *paths) for _ in range(2)]
    for process in children:
        assert process.stdout.readline() == "ready\n"
    for process in children:
        process.stdin.write("x")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in children]
    assert [process.returncode for process in children] == [0, 0], "\n".join(errors)


def test_kill_9_in_the_middle_of_writing_loses_nothing_that_was_committed(path: Path) -> None:
    with child(WRITER, str(path)) as process:
        told = [int(process.stdout.readline()) for _ in range(25)]
        process.send_signal(signal.SIGKILL)
        told += map(int, process.stdout.read().split())  # between the last line and its end
    assert process.returncode == -signal.SIGKILL
    store = AdviceStore(path, {"labels": ["A", "B"]})
    assert store.count() % 7 == 0, "a batch was written in part"
    assert store.count() // 7 in (len(told), len(told) + 1), "all that was told, and at most one untold"
    keys = torch.cartesian_prod(torch.arange(len(told)), torch.arange(7))
    expected = torch.stack([keys[:, 0].float(), torch.full((len(keys),), 0.5)], 1)
    assert_same(store.find(keys), Advice(expected, torch.ones(len(keys)).bool(), torch.ones(len(keys))))
    store.close()


def test_the_file_keeps_a_log_that_a_crash_can_be_undone_from(store: AdviceStore, path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_batch_that_fails_leaves_nothing_behind(store: AdviceStore) -> None:
    broken = random_advice(len(KEYS))
    broken.label_mass[3] = math.nan  # which a database holds to be nothing at all
    with pytest.raises(Exception, match="NOT NULL"):
        store.put(KEYS, broken, words(len(KEYS)))
    assert store.count() == 0


@pytest.mark.parametrize("content", [b"garbage " * 4096, b"SQLite format 3\x00" + bytes(range(256)) * 64])
def test_a_corrupt_file_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        AdviceStore(path, IDENTITY)
    assert path.read_bytes() == content


def test_another_program_s_tables_are_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table identities (name text)")
    connection.close()
    with pytest.raises(ValueError, match="identities"):
        AdviceStore(path, IDENTITY)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        AdviceStore(tmp_path, IDENTITY)


@pytest.mark.parametrize("folder", ["/proc", "missing", "file"])  # root may write everywhere but in /proc
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be used"):
        AdviceStore(tmp_path / folder / "advice.sqlite", IDENTITY)


def test_a_database_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        AdviceStore("nothing://here/advice", IDENTITY)


def test_a_path_is_taken_as_it_is_written(tmp_path: Path) -> None:
    strange = tmp_path / "what? 100%25 #1.sqlite"
    AdviceStore(strange, IDENTITY).close()
    assert strange.is_file()


def test_a_closed_store_lets_go_of_its_file(path: Path) -> None:
    store = AdviceStore(path, IDENTITY)
    store.put(KEYS, random_advice(len(KEYS)), words(len(KEYS)))
    store.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name], "the log is folded into the file"


def test_numbers_that_were_put_are_not_kept_by_reference(store: AdviceStore) -> None:
    advice = random_advice(len(KEYS))
    kept = advice.probs.clone()
    store.put(KEYS, advice, words(len(KEYS)))
    advice.probs.zero_()
    assert store.find(KEYS).probs.equal(kept)


def test_a_put_needs_words_for_every_row(store: AdviceStore) -> None:
    with pytest.raises(ValueError, match="zip"):
        store.put(KEYS, random_advice(len(KEYS)), words(1))
    assert store.count() == 0


def test_the_identity_names_everything_that_two_answers_must_share() -> None:
    parts = {"game", "game_version", "view", "view_version", "tutor", "rules", "labels"}
    assert set(IDENTITY) == parts
