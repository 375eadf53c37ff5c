"""Rows in which any column holds anything, against the sound rows beside them: found, filled in, recorded, exported."""

import json
import math
import sqlite3
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import envs
from tests.helpers.fuzzing import cases
from tests.helpers.stores import command, keys_of, random_advice
from tutors.prompts import make_view
from tutors.recorded import RecordedTutor
from tutors.store import AdviceStore, identity_of, recorded_identities
from tutors.store.database import open_engine
from tutors.store.json_lines import from_lines, read_all, to_lines, write_all
from tutors.store.soundness import MAX_PROBS_CHARS

GAME = envs.make_game("blackjack")
VIEW = make_view(GAME)
IDENTITY = identity_of(GAME.spec, VIEW, {"tutor": "somebody"})
COLUMNS = (
    "identity",
    "key",
    "check",
    "probs",
    "label_mass",
    "words",
    "prompt_tokens",
    "answer_tokens",
    "seconds",
    "at",
)
ROWS = 60  # of a store, of which every second is damaged
VALUES: list[Any] = [
    *(None, 0, -99, 99, 2**31, 2**63 - 1, -(2**63), 0.5, 1.5, -0.0, 1e-320, 1e39, 1e300, -1e300, math.inf, -math.inf),
    *("", "0.5", "words", "null", "true", "NaN", "[]", "[[]]", "{}", "[0.5, 0.5", "[0.5, 0.5, 0]", '["a", "b"]'),
    *("[1, 0]", "[true, false]", "[0.5, null]", "[NaN, 1]", "[Infinity, 0]", "[1e39, 0]", "[-1e400, 1]", "[1e300, 1]"),
    *(f"[{10**400}, 0]", f"[{10**30}, 0]", f"[{'9' * 5000}, 0]", "[" * 10_000, '{"a":' * 10_000, "a\x00b", "\ud7ff"),
    *(b"", b"\xff\xfe", b"[0.5, 0.5]", b"[0.5, \xc3", "é" * MAX_PROBS_CHARS, "[0.5, 0.5" + " " * MAX_PROBS_CHARS + "]"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of ROWS answers, whose columns have no type and take anything."""
    path = tmp_path / "advice.sqlite"
    store = AdviceStore(path, IDENTITY)
    numbers = range(ROWS)
    words = [f"number {number}" for number in numbers]
    store.put(keys_of(*numbers), random_advice(ROWS, num_actions=2), words)
    store.close()
    with sqlite3.connect(path) as file:
        file.execute("create table loose as select * from answers")
        file.execute("drop table answers")
        file.execute("alter table loose rename to answers")
    file.close()
    return path


def damaged(path: Path, rng: Random) -> Path:
    """A copy of a store in which some columns of every second row hold anything."""
    copy = path.with_name("damaged.sqlite")
    copy.write_bytes(path.read_bytes())
    with sqlite3.connect(copy) as file:
        for number in range(0, ROWS, 2):
            for column in rng.sample(COLUMNS, rng.choice([1, 1, 2])):
                file.execute(
                    f'update answers set "{column}" = ? where words = ?', (rng.choice(VALUES), f"number {number}")
                )
    file.close()
    return copy


def assert_sound_rows_are_found(store: AdviceStore) -> None:
    sound, expected = torch.arange(1, ROWS, 2), random_advice(ROWS, num_actions=2)
    advice = store.find(keys_of(*range(ROWS)))
    assert advice.valid[sound].all()
    assert advice.probs[sound].equal(expected.probs[sound])
    assert advice.label_mass[sound].equal(expected.label_mass[sound])
    assert advice.probs.isfinite().all()
    assert advice.label_mass.isfinite().all()


def test_any_value_in_any_column_costs_its_own_row_only(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rng in cases("stored rows", 6):
        copy = damaged(path, rng)
        store = AdviceStore(copy, IDENTITY)
        assert_sound_rows_are_found(store)
        numbers = set()
        for keys, advice in store.all(10 * ROWS):
            assert advice.probs.isfinite().all()
            assert keys.shape == (len(advice.probs), 2)
            numbers |= set(keys[:, 0].tolist())
        assert numbers >= set(range(1, ROWS, 2))
        store.close()

        assert recorded_identities(copy)[0] == IDENTITY
        tutor = RecordedTutor(str(copy), GAME.spec, VIEW)
        assert_sound_rows_are_found(tutor.store)
        tutor.close()

        done = command("info", copy, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        (one,) = json.loads(done.stdout, parse_constant=pytest.fail)
        assert ROWS / 2 <= one["answers"] <= ROWS
        assert command("info", copy).returncode == 0

        exported = command("export", copy)
        assert exported.returncode == 0
        assert "damaged answers" in caplog.text
        (tmp_path / "lines").write_text(exported.stdout)
        for name, source in (("import", tmp_path / "lines"), ("merge", copy)):
            target = tmp_path / name
            target.unlink(missing_ok=True)
            done = command(name, target, source)
            assert done.returncode == 0, done.stderr
            new = AdviceStore(target, IDENTITY)
            assert_sound_rows_are_found(new)
            new.close()


IDENTITIES = [
    *("", "null", "[]", "3", '"text"', "{", "{}", '{"labels": 3}', '{"labels": [1, 2]}', "[" * 100_000, b"\xff", b"{}"),
    *(
        '{"labels": ["H", "S"]}',
        '{"game": "blackjack"}',
        '{"labels": ' * 20_000,
        f'{{"tutor": {10**400}}}',
        3,
        0.5,
        None,
    ),
    json.dumps(IDENTITY | {"tutor": "somebodx"}),
    json.dumps(IDENTITY | {"tutor": "\ud800 \x1b[31m"}),
]


@pytest.mark.parametrize("text", IDENTITIES, ids=lambda text: repr(text)[:20])
def test_damaged_identity_is_left_out_and_its_answers_stay(
    text: Any, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with sqlite3.connect(path) as file:
        file.execute("create table loose as select * from identities")
        file.execute("drop table identities")
        file.execute("alter table loose rename to identities")
        file.execute("update identities set text = ?", (text,))
    file.close()
    other = identity_of(GAME.spec, VIEW, {"tutor": "somebody else"})
    assert recorded_identities(path) == []
    with pytest.raises(ValueError, match=r"has no answers about blackjack .*, only none"):
        RecordedTutor(str(path), GAME.spec, VIEW)
    done = command("info", path, "--json")
    (one,) = json.loads(done.stdout)
    assert (one["identity"], one["answers"]) == ({}, ROWS)
    assert "damaged" in command("info", path).stdout
    done = command("export", path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "all of 1 damaged identities" in caplog.text
    target = tmp_path / "target"
    store = AdviceStore(target, other)
    store.close()
    assert command("merge", target, path).returncode == 0
    with sqlite3.connect(path) as file:
        assert file.execute("select count(*) from answers").fetchone() == (ROWS,)
    file.close()


LINES = [
    *('{"identity": {"labels": []}}', '{"identity": {"labels": ' * 5000, '{"identity": 3}', "3", "null", '"x"', "[]"),
    f'{{"identity": {{"labels": ["A", "B"], "a": {"[" * 100_000}{"]" * 100_000}}}}}',
]
FIELDS = ("words", "advice", "mass", "prompt_tokens", "answer_tokens", "seconds", "at", "key")


def answer(rng: Random) -> dict[str, Any]:
    """A line of an export, of which one or two fields hold anything."""
    fields: dict[str, Any] = {
        "words": "w",
        "advice": {"A": 0.5, "B": 0.5},
        "mass": 1.0,
        "prompt_tokens": 1.0,
        "answer_tokens": 1.0,
        "seconds": 1.0,
        "at": "2026-01-01T00:00:00+00:00",
        "key": [1, 2],
    }
    for name in rng.sample(FIELDS, rng.choice([1, 1, 2])):
        value = rng.choice([*filter(lambda value: not isinstance(value, bytes), VALUES), 10**400, *LINES, "0001-01-01"])
        if name == "advice" and rng.random() < 0.8:
            value = {"A": value, "B": 0.5}
        elif name == "key" and rng.random() < 0.8:
            value = [1, value]
        elif rng.random() < 0.1:
            value = "9999-12-31T23:59:59-23:59" if rng.random() < 0.5 else "\ud800"
        fields[name] = value
    return fields


def test_any_value_in_any_field_of_an_import_is_refused_by_its_line_or_read_as_it_was(tmp_path: Path) -> None:
    messages: list[str] = []
    for rng in cases("imported lines", 200):
        fields = answer(rng)
        lines = ['{"identity": {"labels": ["A", "B"]}}', json.dumps(fields)]
        try:
            ((identity, rows),) = from_lines(lines)
        except ValueError as error:
            messages.append(str(error))
            continue
        engine = open_engine(tmp_path / "store")
        write_all(engine, [(identity, rows)])
        exported = [json.loads(line) for line in to_lines(read_all(engine))]
        engine.dispose()
        assert exported == [json.loads(lines[0]), fields | {"at": exported[1]["at"]}]
        (tmp_path / "store").unlink()
    assert len(messages) > 100
    assert all("line 2" in message and len(message) < 300 for message in messages)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:20])
def test_any_line_of_an_import_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(ValueError, match="line 1 is not of an export"):
        list(from_lines([line]))
