"""A whole store as JSON lines that a person can read, and back, to the bit.

A line {"identity": …} says whose answers the lines after it hold, and to which question of which game. An answer
has its words, advice such as {"A": 0.7, "B": 0.3}, mass, prompt_tokens, answer_tokens, seconds, at and key.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sql

from tutors.display import printable
from tutors.store.database import answers, create_tables, identities, register, write
from tutors.store.identity import digest_of
from tutors.store.soundness import (
    COSTS,
    MAX_COST,
    MAX_NUMBER,
    MAX_WORDS_CHARS,
    SUM_TOLERANCE,
    columns_of,
    is_distribution,
    is_key,
    is_number,
    is_time,
    sound_answer,
    sound_identity,
)

ANSWERS_PER_BATCH = 10_000
COLUMNS = ("key", "check", "probs", "label_mass", "words", *COSTS, "at")

Part = tuple[dict[str, Any], list[dict[str, Any]]]  # an identity and some of its answers, without its number


class Added(NamedTuple):
    """The numbers of answers written, and of those that existed."""

    new: int
    known: int


def read_all(engine: sql.Engine) -> Iterator[Part]:
    """Yield all identities with their answers, those of one identity in the order of their keys, in batches.

    What is damaged is left out, with a warning that says how much.
    """
    num_damaged = num_unknown = 0
    with engine.connect() as connection:
        known = connection.execute(sql.select(identities).order_by(identities.c.id)).all()
        for one in known:
            identity = sound_identity(one.hash, one.text)
            if identity is None:
                num_unknown += 1
                continue
            ours = sql.select(*columns_of(*COLUMNS)).where(answers.c.identity == one.id)
            query = ours.order_by(answers.c.key, answers.c.check).execution_options(yield_per=ANSWERS_PER_BATCH)
            yield identity, []
            for batch in connection.execute(query).mappings().partitions():
                found = [sound_answer(row, len(identity["labels"])) for row in batch]
                rows = [row for row in found if row is not None and is_distribution(row)]
                num_damaged += len(found) - len(rows)
                yield identity, rows
    if num_damaged or num_unknown:
        logging.getLogger(__name__).warning(
            f"{num_damaged} damaged answers, and all of {num_unknown} damaged identities, are left out"
        )


def write_all(engine: sql.Engine, parts: Iterable[Part]) -> Added:
    """Write all of it or, if `parts` raises, nothing; answers that are there stay."""
    new = total = 0
    with engine.begin() as connection:
        create_tables(connection)
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
            yield to_line({"identity": identity})
            before = identity
        for row in rows:
            fields = {
                "words": row["words"],
                "advice": dict(zip(identity["labels"], row["probs"], strict=True)),
                "mass": row["label_mass"],
                **{name: row[name] for name in COSTS},
                "at": datetime.fromtimestamp(row["at"], UTC).isoformat(),
                "key": [row["key"], row["check"]],
            }
            yield to_line(fields)


def to_line(fields: dict[str, Any]) -> str:
    """Return a line of JSON, readable where a terminal can show it as it is."""
    line = json.dumps(fields, ensure_ascii=False)
    return line if line.isprintable() else json.dumps(fields)


def from_lines(lines: Iterable[str]) -> Iterator[Part]:
    """Yield what the lines of an export hold.

    Raises:
        ValueError: a line is not of an export; the message has its number.
    """
    identity: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            line.encode()  # what is no UTF-8 has surrogates in its place
            fields = json.loads(line)
            check(isinstance(fields, dict), "it is no object")
            if "identity" in fields:
                if identity is not None:
                    yield identity, rows
                identity, rows = checked_identity(fields["identity"]), []
                continue
            check(identity is not None, "no line before it says whose answer it is")
            assert identity is not None
            rows.append(checked_answer(fields, identity["labels"]))
        except (ValueError, KeyError, RecursionError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error) or "it is nested too deep"
            raise ValueError(f"line {number} is not of an export: {printable(why, 200)}") from None
        if len(rows) == ANSWERS_PER_BATCH:
            yield identity, rows
            rows = []
    if identity is not None:
        yield identity, rows


def checked_identity(fields: Any) -> dict[str, Any]:
    """Return an identity that was read. Raises ValueError where it is not one."""
    check(isinstance(fields, dict), "its identity is no object")
    labels = fields.get("labels")
    check(isinstance(labels, list) and labels and all(isinstance(one, str) for one in labels), "there are no labels")
    check(len(set(labels)) == len(labels), "two labels are equal")
    digest_of(fields)  # what is nested too deep has none
    return fields


def checked_answer(fields: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """Return an answer that was read, as the database has it. Raises ValueError or KeyError where it is not one."""
    advice, key, when = fields["advice"], fields["key"], fields["at"]
    check(isinstance(advice, dict) and set(advice) == set(labels), f"its advice is not about {', '.join(labels)}")
    probs = [amount(advice, label) for label in labels]
    check(abs(sum(probs) - 1) < SUM_TOLERANCE, f"its probabilities add up to {sum(probs):.4g}")
    mass = amount(fields, "mass")
    check(mass < 1 + SUM_TOLERANCE, f"its label mass is {mass}")
    words = fields["words"]
    check(isinstance(words, str) and len(words) <= MAX_WORDS_CHARS, "its words are no text, or too long")
    words.encode()
    is_pair = isinstance(key, list) and len(key) == 2 and all(map(is_key, key))
    check(is_pair, "its key is not two whole numbers of 64 bits")
    check(isinstance(when, str), "its time is no text")
    at = datetime.fromisoformat(when)
    check(at.tzinfo is not None, "its time has no zone")
    check(is_time(at.timestamp()), "its time is not of the years 1 to 9999")
    costs = {name: amount(fields, name, MAX_COST) for name in COSTS}
    written = {"key": key[0], "check": key[1], "probs": probs, "label_mass": mass, "words": words}
    return {**written, **costs, "at": at.timestamp()}


def amount(fields: dict[str, Any], name: str, limit: float = MAX_NUMBER) -> float:
    """Return a number from 0 to `limit`. Raises ValueError where it is not one."""
    value = fields[name]
    check(is_number(value, limit) and value >= 0, f"its {name} is {value!r:.80}")
    return float(value)


def check(holds: Any, why: str) -> None:
    """Raise ValueError unless it holds."""
    if not holds:
        raise ValueError(why)
