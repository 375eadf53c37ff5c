"""The advice store: every answer ever paid for, in a database. `python -m tutors.store` looks after one.

The table on the device is a cache of it. An answer is found again only under the same identity: game,
version, view, tutor, prompt and labels.
"""

import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sql
import torch
from torch import Tensor

from envs.base import Spec
from tutors.base import Advice, Warner
from tutors.prompts.base import PromptView
from tutors.store.database import (
    PATIENCE,
    answers,
    existing,
    identities,
    make_tables,
    open_engine,
    reason,
    register,
    unusable,
    when_unlocked,
    within,
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

READ_AGAIN = 30.0  # seconds after a failure
CHUNK = 400  # keys a query; SQLite takes at least 999 values
BATCH = 10_000  # answers read at once


class Cost(NamedTuple):
    """What one answer cost: a call's cost, divided by the positions that it was about."""

    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    seconds: float = 0.0


FREE = Cost()


def question_of(spec: Spec, view: PromptView) -> dict[str, Any]:
    """Return everything that two questions must share to be asked in the same words."""
    return {
        "game": spec.name,
        "game_version": spec.version,
        "view": view.name,
        "view_version": view.version,
        "rules": view.instructions,
        "labels": list(view.labels),
    }


def identity_of(spec: Spec, view: PromptView, tutor: dict[str, Any]) -> dict[str, Any]:
    """Return everything that two answers must share to be answers to the same question; see `Tutor.identity`."""
    return question_of(spec, view) | tutor


def digest_of(identity: dict[str, Any]) -> tuple[str, str]:
    """Return (hash, text) of an identity, the same for equal ones."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), text


def is_number(thing: object) -> bool:
    """Return whether something that was read is a finite number."""
    return isinstance(thing, int | float) and math.isfinite(thing)


def numbers_of(text: str) -> list[float] | None:
    """Return the numbers that a distribution's text holds; None for what is none."""
    try:
        numbers = json.loads(text)
    except (TypeError, ValueError):
        return None
    return numbers if isinstance(numbers, list) and all(map(is_number, numbers)) else None


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
        least_mass: answers of a smaller label mass are not read.

    Raises:
        ValueError: the file is not a database, or the database cannot be reached.
    """

    def __init__(self, url: str | Path, identity: dict[str, Any], least_mass: float = 0.0) -> None:
        self.digest, text = digest_of(identity)
        self.least_mass = least_mass
        try:
            self.engine = open_engine(url)
            self.identity = when_unlocked(self._register, self.digest, text)
        except (sql.exc.SQLAlchemyError, ImportError) as error:
            raise unusable(url, error) from None
        self.num_actions = len(identity["labels"])
        self.writer = Writer(self._write, self.failed)
        self.read_from = -math.inf  # when it may be read again, after a failure
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
        """Return what is stored for `keys` (B, 2), or put and not yet written, on the CPU; silence for the rest.

        After a failure nothing is read for a while, so that a database which is slow to fail is not waited for often.

        Raises:
            SQLAlchemyError: the database fails, or takes too long.
        """
        advice = Advice.no_advice(len(keys), self.num_actions)
        rows_by_key: dict[Key, list[int]] = {}
        for row, (key, check) in enumerate(keys.tolist()):
            rows_by_key.setdefault((key, check), []).append(row)
        found = self.writer.peek(list(rows_by_key))  # before the database, or what is written meanwhile would be missed
        if time.monotonic() >= self.read_from:
            try:
                read = within(2 * PATIENCE, lambda: self._read([key for key, _ in rows_by_key]))
            except sql.exc.SQLAlchemyError:
                self.read_from = time.monotonic() + READ_AGAIN
                raise
            found |= self._whole(read)
        for key_and_check, one in found.items():
            for row in rows_by_key.get(key_and_check, []):
                advice.probs[row] = torch.tensor(one["probs"])
                advice.valid[row] = True
                advice.label_mass[row] = one["label_mass"]
        return advice

    def _read(self, keys: list[int]) -> list[sql.Row]:
        """Return the rows of the answers under these keys, whatever their check."""
        rows: list[sql.Row] = []
        with self.engine.connect() as connection:
            for start in range(0, len(keys), CHUNK):
                rows += connection.execute(self._columns().where(answers.c.key.in_(keys[start : start + CHUNK])))
        return rows

    def _columns(self) -> sql.Select:
        """Return a query for our answers, with the distributions as text: what is damaged must not end a run."""
        probs = sql.cast(answers.c.probs, sql.Text).label("probs")
        ours = (answers.c.identity == self.identity) & (answers.c.label_mass >= self.least_mass)
        return sql.select(answers.c.key, answers.c.check, probs, answers.c.label_mass, answers.c.at).where(ours)

    def _whole(self, rows: Sequence[sql.Row]) -> dict[Key, Row]:
        """Return the answers in these rows but those that are none, which count as a failure."""
        whole: dict[Key, Row] = {}
        for row in rows:
            probs = numbers_of(row.probs)
            if probs is not None and len(probs) == self.num_actions and is_number(row.label_mass):
                whole[row.key, row.check] = {"probs": probs, "label_mass": row.label_mass}
        if len(whole) < len(rows):
            self.failed(ValueError(f"{len(rows) - len(whole)} of its answers are damaged"))
        return whole

    def put(self, keys: Tensor, advice: Advice, words: Sequence[str], cost: Cost = FREE) -> None:
        """Have the advice that is given for `keys` (B, 2) written soon; what is there already stays.

        `words` are the questions without the rules; `cost` is that of each answer. Advice that is no number is not
        kept. Returns at once unless more waits than the writer has room for.
        """
        given = advice.valid & advice.probs.isfinite().all(1) & advice.label_mass.isfinite()
        columns = zip(keys.tolist(), *(tensor.tolist() for tensor in advice._replace(valid=given)), words, strict=True)
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
        last = self._columns().order_by(answers.c.at.desc()).limit(most).subquery()
        query = sql.select(last).order_by(last.c.at)
        with self.engine.connect().execution_options(yield_per=BATCH) as connection:
            for batch in connection.execute(query).partitions():
                whole = self._whole(batch)
                given = torch.ones(len(whole), dtype=torch.bool)
                probs, masses = ([one[part] for one in whole.values()] for part in ("probs", "label_mass"))
                keys = torch.tensor(list(whole), dtype=torch.int64).view(-1, 2)
                yield keys, Advice(torch.tensor(probs).view(-1, self.num_actions), given, torch.tensor(masses))

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
