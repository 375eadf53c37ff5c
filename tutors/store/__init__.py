"""The advice store: every answer ever paid for, in a database. `python -m tutors.store` looks after one.

The table on the device is a cache of it. An answer is found again only under the same identity: game,
version, view, tutor, prompt and labels.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sql
import torch
from torch import Tensor

from envs.base import Spec
from tutors.base import Advice, View, Warner
from tutors.store.database import (
    answers,
    existing,
    identities,
    make_tables,
    open_engine,
    reason,
    register,
    unusable,
    when_unlocked,
    without_password,
    write,
)
from tutors.store.writer import Key, Row, Writer

__all__ = [
    "FREE",
    "AdviceStore",
    "Cost",
    "digest_of",
    "identity_of",
    "question_of",
    "reason",
    "recorded_identities",
    "unusable",
    "without_password",
]

CHUNK = 400  # keys a query; SQLite takes at least 999 values
BATCH = 10_000  # answers read at once


class Cost(NamedTuple):
    """What one answer cost: a call's cost, divided by the positions that it was about."""

    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    seconds: float = 0.0


FREE = Cost()


def question_of(spec: Spec, view: View) -> dict[str, Any]:
    """Return everything that two questions must share to be asked in the same words."""
    return {
        "game": spec.name,
        "game_version": spec.version,
        "view": view.name,
        "view_version": view.version,
        "rules": view.rules,
        "labels": list(view.labels),
    }


def identity_of(spec: Spec, view: View, tutor: dict[str, Any]) -> dict[str, Any]:
    """Return everything that two answers must share to be answers to the same question; see `Tutor.identity`."""
    return question_of(spec, view) | tutor


def digest_of(identity: dict[str, Any]) -> tuple[str, str]:
    """Return (hash, text) of an identity, the same for equal ones."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), text


def recorded_identities(url: str | Path) -> list[dict[str, Any]]:
    """Return the identities under which a store has answers.

    Raises:
        ValueError: it is not there, or cannot be read.
    """
    query = sql.select(identities.c.text).where(identities.c.id.in_(sql.select(answers.c.identity)))
    try:
        with existing(url) as engine, engine.connect() as connection:
            return [json.loads(text) for (text,) in connection.execute(query)]
    except json.JSONDecodeError as error:
        raise unusable(url, error) from None


class AdviceStore:
    """Answers under one identity, read and written through SQLAlchemy; several threads may use one.

    What is put is written in the background: a database that fails costs answers, never a run.

    Args:
        url: of a database, or the path of an SQLite file, made where it is not there.
        identity: see `identity_of`.

    Raises:
        ValueError: the file is not a database, or the database cannot be reached.
    """

    def __init__(self, url: str | Path, identity: dict[str, Any]) -> None:
        try:
            self.engine = open_engine(url)
            self.identity = when_unlocked(self._register, *digest_of(identity))
        except (sql.exc.SQLAlchemyError, ImportError) as error:
            raise unusable(url, error) from None
        self.num_actions = len(identity["labels"])
        self.writer = Writer(self._write, self.failed)
        self.failures = 0  # of the database, in reading and in writing
        self.warn = Warner(logging.getLogger(__name__))
        self.lock = threading.Lock()  # of these two

    def _register(self, digest: str, text: str) -> int:
        """Make the tables if they are not there, and return the number of our identity."""
        with self.engine.begin() as connection:
            make_tables(connection)
            return register(connection, digest, text)

    def _write(self, rows: list[Row]) -> None:
        with self.engine.begin() as connection:
            write(connection, rows)

    def find(self, keys: Tensor) -> Advice:
        """Return what is stored for `keys` (B, 2), or put and not yet written, on the CPU; silence for the rest."""
        advice = Advice.silence(len(keys), self.num_actions)
        rows_by_key: dict[Key, list[int]] = {}
        for row, (key, check) in enumerate(keys.tolist()):
            rows_by_key.setdefault((key, check), []).append(row)
        found = self.writer.peek(list(rows_by_key))  # before the database, or what is written meanwhile would be missed
        wanted = [key for key, _ in rows_by_key]
        with self.engine.connect() as connection:
            for start in range(0, len(wanted), CHUNK):
                query = sql.select(answers).where(
                    answers.c.identity == self.identity, answers.c.key.in_(wanted[start : start + CHUNK])
                )
                for answer in connection.execute(query).mappings():
                    found[answer["key"], answer["check"]] = dict(answer)
        for key_and_check, one in found.items():
            for row in rows_by_key.get(key_and_check, []):
                advice.probs[row] = torch.tensor(one["probs"])
                advice.given[row] = True
                advice.label_mass[row] = one["label_mass"]
        return advice

    def put(self, keys: Tensor, advice: Advice, words: Sequence[str], cost: Cost = FREE) -> None:
        """Have the advice that is given for `keys` (B, 2) written soon; what is there already stays.

        `words` are the questions without the rules; `cost` is that of each answer. Advice that is no number is not
        kept. Returns at once unless more waits than the writer has room for.
        """
        given = advice.given & advice.probs.isfinite().all(1) & advice.label_mass.isfinite()
        columns = zip(keys.tolist(), *(tensor.tolist() for tensor in advice._replace(given=given)), words, strict=True)
        same = {"identity": self.identity, **cost._asdict(), "at": round(time.time(), 6)}
        rows = {
            (key, check): {"key": key, "check": check, "probs": probs, "label_mass": mass, "words": text, **same}
            for (key, check), probs, is_given, mass, text in columns
            if is_given
        }
        if rows:
            self.writer.put(rows)

    def flush(self) -> None:
        """Write what waits. Raises SQLAlchemyError where the database does not take it."""
        self.writer.flush()

    def all(self, most: int) -> Iterator[tuple[Tensor, Advice]]:
        """Yield (keys (B, 2), advice) of what is written, at most so many: the newest, oldest first, in batches."""
        newest = sql.select(answers).where(answers.c.identity == self.identity).order_by(answers.c.at.desc())
        last = newest.limit(most).subquery()
        query = sql.select(last.c.key, last.c.check, last.c.probs, last.c.label_mass).order_by(last.c.at)
        with self.engine.connect().execution_options(yield_per=BATCH) as connection:
            for batch in connection.execute(query).partitions():
                keys, checks, probs, masses = zip(*batch, strict=True)
                given = torch.ones(len(keys), dtype=torch.bool)
                yield torch.tensor([keys, checks]).T, Advice(torch.tensor(probs), given, torch.tensor(masses))

    def count(self) -> int:
        """Return how many answers are stored under this identity, those included that wait to be written."""
        self.flush()
        query = sql.select(sql.func.count()).where(answers.c.identity == self.identity)
        with self.engine.connect() as connection:
            return int(connection.scalar(query) or 0)

    def failed(self, error: Exception) -> None:
        """Count a failure of the database, and warn of it: advice is dearer then, not wrong."""
        with self.lock:
            self.failures += 1
            self.warn("store", f"the advice store failed ({reason(error)}): training goes on without it")

    def close(self) -> None:
        """Write what waits, and let go of the database; what cannot be written is lost, and said to be."""
        if lost := self.writer.close():
            self.warn("lost", f"{lost} answers could not be written to the advice store")
        self.engine.dispose()
