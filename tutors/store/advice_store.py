"""Stored answers under one identity: game, version, view, tutor, prompt and labels.

The table on the device is a cache of the store.
"""

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

from tutors.base import Advice, Warner
from tutors.store.database import (
    LOCK_TIMEOUT_S,
    ReadThread,
    answers,
    create_tables,
    identities,
    is_passing,
    open_engine,
    open_existing,
    reason,
    register,
    retry_while_locked,
    store_error,
    write,
)
from tutors.store.identity import digest_of
from tutors.store.soundness import columns_of, sound_answer, sound_identity
from tutors.store.writer import Key, Row, Writer

READ_RETRY_S = 30.0  # after a failed read
KEYS_PER_QUERY = 400  # SQLite takes at least 999 values
ANSWERS_PER_BATCH = 10_000


class Cost(NamedTuple):
    """The cost of one answer: that of a call, divided by its positions."""

    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0
    seconds: float = 0.0


FREE = Cost()


def recorded_identities(url: str | Path) -> list[dict[str, Any]]:
    """Return the identities under which a store has answers; damaged ones are left out, with a warning.

    Raises:
        ValueError: the store does not exist, or cannot be read.
    """
    query = sql.select(identities.c.hash, identities.c.text).where(identities.c.id.in_(sql.select(answers.c.identity)))
    with open_existing(url) as engine, engine.connect() as connection:
        found = [sound_identity(digest, text) for digest, text in connection.execute(query)]
    sound = [identity for identity in found if identity is not None]
    if len(sound) < len(found):
        logging.getLogger(__name__).warning(f"{len(found) - len(sound)} damaged identities are left out")
    return sound


class AdviceStore:
    """Answers under one identity, read and written through SQLAlchemy; several threads may use one.

    Writes happen in the background: a database that fails costs answers, never a run. So does one that is locked, full
    or gone when it is opened: it is tried again with every read and write.

    Args:
        url: of a database, or the path of an SQLite file, created if it does not exist.
        identity: see `identity_of`.
        min_mass: answers of a smaller label mass are not read.

    Raises:
        ValueError: the file is no advice store, or the database will never take this user.
    """

    def __init__(self, url: str | Path, identity: dict[str, Any], min_mass: float = 0.0) -> None:
        self.digest, self.text = digest_of(identity)
        self.min_mass = min_mass
        self.identity: int | None = None  # its number in the database, once that was reached
        self.num_actions = len(identity["labels"])
        self.writer = Writer(self._write, self.failed)
        self.reader = ReadThread()
        self.retry_read_at = -math.inf  # time.monotonic(), after a failed read
        self.failures = 0  # of reads and writes
        self.warn = Warner(logging.getLogger(__name__))
        self.lock = threading.Lock()  # of these two
        try:
            self.engine = open_engine(url)
            retry_while_locked(self._register)
        except (sql.exc.SQLAlchemyError, ImportError) as error:
            if not is_passing(error):
                raise store_error(url, error) from None
            self.failed(error)

    def _register(self) -> int:
        """Return the number of our identity; at first, create the tables that do not exist, and add it."""
        if self.identity is None:
            with self.engine.begin() as connection:
                create_tables(connection)
                self.identity = register(connection, self.digest, self.text)
        return self.identity

    def _write(self, rows: list[Row]) -> None:
        identity = self._register()
        with self.engine.begin() as connection:
            write(connection, [{"identity": identity, **row} for row in rows])

    def find(self, keys: Tensor) -> Advice:
        """Return what is stored, or waits to be written, for `keys` (B, 2), on the CPU; no advice for the rest.

        After a failure nothing is read for READ_RETRY_S, so that a database which is slow to fail is rarely waited for.

        Raises:
            SQLAlchemyError: the database fails, or takes too long.
        """
        advice = Advice.no_advice(len(keys), self.num_actions)
        rows_by_key: dict[Key, list[int]] = {}
        for row, (key, check) in enumerate(keys.tolist()):
            rows_by_key.setdefault((key, check), []).append(row)
        found = self.writer.peek(list(rows_by_key))  # before the database, or what is written meanwhile would be missed
        if time.monotonic() >= self.retry_read_at:
            try:
                read = self.reader.run(lambda: self._read([key for key, _ in rows_by_key]), 2 * LOCK_TIMEOUT_S)
            except sql.exc.SQLAlchemyError:
                self.retry_read_at = time.monotonic() + READ_RETRY_S
                raise
            found |= self._sound(read)
        answered = [(row, found[key]) for key, rows in rows_by_key.items() if key in found for row in rows]
        if answered:
            rows = [row for row, _ in answered]
            advice.probs[rows] = torch.tensor([answer["probs"] for _, answer in answered])
            advice.label_mass[rows] = torch.tensor([answer["label_mass"] for _, answer in answered])
            advice.valid[rows] = True
        return advice

    def _read(self, keys: list[int]) -> list[sql.Row]:
        """Return the rows of the answers with these first halves of keys."""
        rows: list[sql.Row] = []
        with self.engine.connect() as connection:
            for start in range(0, len(keys), KEYS_PER_QUERY):
                chunk = keys[start : start + KEYS_PER_QUERY]
                rows += connection.execute(self._columns().where(answers.c.key.in_(chunk)))
        return rows

    def _columns(self) -> sql.Select:
        """Return a query for our answers."""
        ours = (answers.c.identity == self._register()) & (answers.c.label_mass >= self.min_mass)
        return sql.select(*columns_of("key", "check", "probs", "label_mass", "at")).where(ours)

    def _sound(self, rows: Sequence[sql.Row]) -> dict[Key, Row]:
        """Return the answers in these rows; damaged ones are left out, and count as a failure."""
        sound: dict[Key, Row] = {}
        for row in rows:
            answer = sound_answer(row._mapping, self.num_actions)
            if answer is not None:
                sound[answer["key"], answer["check"]] = answer
        if len(sound) < len(rows):
            self.failed(ValueError(f"{len(rows) - len(sound)} of its answers are damaged"))
        return sound

    def put(self, keys: Tensor, advice: Advice, words: Sequence[str], cost: Cost = FREE) -> None:
        """Store the valid advice for `keys` (B, 2) in the background; an answer that exists stays.

        `words` are the prompts without the instructions; `cost` is that of each answer. Advice that is not finite is
        not kept. Returns at once unless too many answers wait to be written.
        """
        given = advice.valid & advice.probs.isfinite().all(1) & advice.label_mass.isfinite()
        columns = zip(keys.tolist(), *(tensor.tolist() for tensor in advice._replace(valid=given)), words, strict=True)
        same = {**cost._asdict(), "at": round(time.time(), 6)}
        rows = {
            (key, check): {"key": key, "check": check, "probs": probs, "label_mass": mass, "words": text, **same}
            for (key, check), probs, is_given, mass, text in columns
            if is_given
        }
        if rows:
            self.writer.put(rows)

    def flush(self) -> None:
        """Write what waits. Raises SQLAlchemyError where the database refuses it."""
        self.writer.flush()

    def all(self, most: int) -> Iterator[tuple[Tensor, Advice]]:
        """Yield (keys (B, 2), advice) of the newest answers, at most so many, the oldest of them first, in batches."""
        last = self._columns().order_by(answers.c.at.desc()).limit(most).subquery()
        query = sql.select(last).order_by(last.c.at)
        with self.engine.connect().execution_options(yield_per=ANSWERS_PER_BATCH) as connection:
            for batch in connection.execute(query).partitions():
                sound = self._sound(batch)
                given = torch.ones(len(sound), dtype=torch.bool)
                probs, masses = ([one[part] for one in sound.values()] for part in ("probs", "label_mass"))
                keys = torch.tensor(list(sound), dtype=torch.int64).view(-1, 2)
                yield keys, Advice(torch.tensor(probs).view(-1, self.num_actions), given, torch.tensor(masses))

    def count(self) -> int:
        """Return the number of answers stored under this identity, those included that wait to be written."""
        self.flush()
        query = sql.select(sql.func.count()).where(answers.c.identity == self._register())
        with self.engine.connect() as connection:
            return int(connection.scalar(query) or 0)

    def failed(self, error: Exception) -> None:
        """Count a failure of the database, and warn of it: advice costs more then, but is not wrong."""
        with self.lock:
            self.failures += 1
            self.warn("store", f"the advice store failed ({reason(error)}): training goes on without it")

    def close(self) -> None:
        """Write what waits, and close the database; a warning says how much could not be written."""
        if lost := self.writer.close():
            self.warn("lost", f"{lost} answers could not be written to the advice store")
        self.reader.close()
        self.engine.dispose()
