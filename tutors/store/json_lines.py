"""A whole store as lines of JSON that a person can read, and back, to the bit.

A line {"identity": …} says whose answers the lines after it hold, and to which question of which game. An answer
has its words, advice such as {"A": 0.7, "B": 0.3}, mass, prompt_tokens, answer_tokens, seconds, at and key.
"""

import json
import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sql

from tutors.store import digest_of
from tutors.store.database import answers, identities, make_tables, register, write

BATCH = 10_000  # answers read or written at once
COSTS = ("prompt_tokens", "answer_tokens", "seconds")
LARGEST = 1 << 63
ROUNDING = 1e-3  # how far probabilities may be from 1 in sum

Part = tuple[dict[str, Any], list[dict[str, Any]]]  # an identity and some of its answers, without its number


class Added(NamedTuple):
    """What came of writing answers."""

    new: int
    known: int


def read_all(engine: sql.Engine) -> Iterator[Part]:
    """Yield all identities with their answers, those of one identity in the order of their keys, in batches."""
    with engine.connect() as connection:
        known = connection.execute(sql.select(identities).order_by(identities.c.id)).all()
        for one in known:
            identity = json.loads(one.text)
            query = sql.select(answers).where(answers.c.identity == one.id).order_by(answers.c.key, answers.c.check)
            found = connection.execute(query.execution_options(yield_per=BATCH)).mappings()
            yield identity, []
            for batch in found.partitions():
                yield identity, [{name: value for name, value in row.items() if name != "identity"} for row in batch]


def write_all(engine: sql.Engine, parts: Iterable[Part]) -> Added:
    """Write all of it or, if `parts` raises, nothing; answers that are there stay."""
    new = total = 0
    with engine.begin() as connection:
        make_tables(connection)
        for identity, rows in parts:
            number = register(connection, *digest_of(identity))
            new += write(connection, [{"identity": number, **row} for row in rows])
            total += len(rows)
    return Added(new, total - new)


def to_lines(parts: Iterable[Part]) -> Iterator[str]:
    """Yield the lines of an export."""
    before = None
    for identity, rows in parts:
        if identity != before:
            yield json.dumps({"identity": identity}, ensure_ascii=False)
            before = identity
        for row in rows:
            told = {
                "words": row["words"],
                "advice": dict(zip(identity["labels"], row["probs"], strict=True)),
                "mass": row["label_mass"],
                **{name: row[name] for name in COSTS},
                "at": datetime.fromtimestamp(row["at"], UTC).isoformat(),
                "key": [row["key"], row["check"]],
            }
            yield json.dumps(told, ensure_ascii=False)


def from_lines(lines: Iterable[str]) -> Iterator[Part]:
    """Yield what the lines of an export hold.

    Raises:
        ValueError: a line is none of an export; the message has its number.
    """
    identity: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            line.encode()  # what is no UTF-8 has surrogates in its place
            told = json.loads(line)
            check(isinstance(told, dict), "it is no object")
            if "identity" in told:
                if identity is not None:
                    yield identity, rows
                identity, rows = checked_identity(told["identity"]), []
                continue
            check(identity is not None, "no line before it says whose answer it is")
            assert identity is not None
            rows.append(checked_answer(told, identity["labels"]))
        except (ValueError, KeyError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error) or "it is nested too deep"
            raise ValueError(f"line {number} is none of an export: {why}") from None
        if len(rows) == BATCH:
            yield identity, rows
            rows = []
    if identity is not None:
        yield identity, rows


def checked_identity(told: Any) -> dict[str, Any]:
    """Return an identity that was read. Raises ValueError where it is none."""
    check(isinstance(told, dict), "its identity is no object")
    labels = told.get("labels")
    check(isinstance(labels, list) and labels and all(isinstance(one, str) for one in labels), "there are no labels")
    check(len(set(labels)) == len(labels), "two labels are equal")
    return told


def checked_answer(told: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """Return an answer that was read, as the database has it. Raises ValueError or KeyError where it is none."""
    advice, key, when = told["advice"], told["key"], told["at"]
    check(isinstance(advice, dict) and set(advice) == set(labels), f"its advice is not about {', '.join(labels)}")
    probs = [amount(advice, label) for label in labels]
    check(abs(sum(probs) - 1) < ROUNDING, f"its probabilities add up to {sum(probs):.4g}")
    mass = amount(told, "mass")
    check(mass < 1 + ROUNDING, f"its label mass is {mass}")
    check(isinstance(told["words"], str), "its words are none")
    told["words"].encode()
    whole = isinstance(key, list) and len(key) == 2 and all(type(half) is int for half in key)
    check(whole and all(-LARGEST <= half < LARGEST for half in key), "its key is not two whole numbers of 64 bits")
    check(isinstance(when, str), "its time is no text")
    at = datetime.fromisoformat(when)
    check(at.tzinfo is not None, "its time has no zone")
    costs = {name: amount(told, name) for name in COSTS}
    written = {"key": key[0], "check": key[1], "probs": probs, "label_mass": mass, "words": told["words"]}
    return {**written, **costs, "at": at.timestamp()}


def amount(told: dict[str, Any], name: str) -> float:
    """Return a number that is finite and not negative. Raises ValueError where it is none."""
    value = told[name]
    check(type(value) in (int, float) and math.isfinite(value) and value >= 0, f"its {name} is {value!r}")
    return float(value)


def check(holds: Any, why: str) -> None:
    """Raise ValueError unless it holds."""
    if not holds:
        raise ValueError(why)
