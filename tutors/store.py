"""The advice store: every answer ever paid for, in a database.

The table on the device is a cache of it. An answer is found again only under the same identity: game,
version, view, tutor, prompt and labels.
"""

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sql
import tenacity
import torch
from sqlalchemy.dialects import postgresql, sqlite
from torch import Tensor

from envs.base import Spec
from tutors.base import Advice, View

tables = sql.MetaData()
identities = sql.Table(
    "identities",
    tables,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("hash", sql.String(64), unique=True, nullable=False),
    sql.Column("text", sql.Text, nullable=False),  # what was hashed, for a person to read
)
answers = sql.Table(
    "answers",
    tables,
    sql.Column("identity", sql.ForeignKey("identities.id"), primary_key=True),
    sql.Column("key", sql.BigInteger, primary_key=True),
    sql.Column("check", sql.BigInteger, primary_key=True),
    sql.Column("probs", sql.JSON, nullable=False),
    sql.Column("label_mass", sql.Float, nullable=False),
    sql.Column("words", sql.Text, nullable=False),  # without the rules, which the identity holds
    sql.Column("at", sql.Float, nullable=False),  # seconds since 1970
)
CHUNK = 400  # keys a query; SQLite takes at least 999 values


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


def recorded_identities(url: str | Path) -> list[dict[str, Any]]:
    """Return the identities under which a store has answers.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        engine = open_engine(url)
        query = sql.select(identities.c.text).where(identities.c.id.in_(sql.select(answers.c.identity)))
        with engine.connect() as connection:
            found = [json.loads(text) for (text,) in connection.execute(query)]
        engine.dispose()
    except (sql.exc.SQLAlchemyError, ImportError, json.JSONDecodeError) as error:
        raise unusable(url, error) from None
    return found


class AdviceStore:
    """Answers under one identity, read and written through SQLAlchemy.

    Args:
        url: of a database, or the path of an SQLite file, made where it is not there.
        identity: see `identity_of`.

    Raises:
        ValueError: the file is not a database, or the database cannot be reached.
    """

    def __init__(self, url: str | Path, identity: dict[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            self.engine = open_engine(url)
            known = when_unlocked(self._register, digest, text)
        except (sql.exc.SQLAlchemyError, ImportError) as error:
            raise unusable(url, error) from None
        self.identity = int(known or 0)
        self.num_actions = len(identity["labels"])

    def _register(self, digest: str, text: str) -> int | None:
        """Make the tables if they are not there, and return the number of our identity."""
        with self.engine.begin() as connection:
            for table in tables.sorted_tables:
                connection.execute(sql.schema.CreateTable(table, if_not_exists=True))
            connection.execute(self._insert(identities), {"hash": digest, "text": text})
            return connection.scalar(sql.select(identities.c.id).where(identities.c.hash == digest))

    def find(self, keys: Tensor) -> Advice:
        """Return what is stored for `keys` (B, 2), on the CPU; silence for the rest."""
        advice = Advice.silence(len(keys), self.num_actions)
        rows_by_key: dict[tuple[int, int], list[int]] = {}
        for row, (key, check) in enumerate(keys.tolist()):
            rows_by_key.setdefault((key, check), []).append(row)
        wanted = [key for key, _ in rows_by_key]
        with self.engine.connect() as connection:
            for start in range(0, len(wanted), CHUNK):
                query = sql.select(answers).where(
                    answers.c.identity == self.identity, answers.c.key.in_(wanted[start : start + CHUNK])
                )
                for answer in connection.execute(query):
                    for row in rows_by_key.get((answer.key, answer.check), []):
                        advice.probs[row] = torch.tensor(answer.probs)
                        advice.given[row] = True
                        advice.label_mass[row] = answer.label_mass
        return advice

    def put(self, keys: Tensor, advice: Advice, words: Sequence[str]) -> None:
        """Write the advice that is given for `keys` (B, 2), all or nothing; what is there already stays.

        `words` are the questions without the rules.
        """
        columns = zip(keys.tolist(), *(tensor.tolist() for tensor in advice), words, strict=True)
        rows = [
            {
                "identity": self.identity,
                "key": key,
                "check": check,
                "probs": probs,
                "label_mass": mass,
                "words": text,
                "at": time.time(),
            }
            for (key, check), probs, given, mass, text in columns
            if given
        ]
        if rows:
            with self.engine.begin() as connection:
                connection.execute(self._insert(answers), rows)

    def count(self) -> int:
        """Return how many answers are stored under this identity."""
        query = sql.select(sql.func.count()).where(answers.c.identity == self.identity)
        with self.engine.connect() as connection:
            return int(connection.scalar(query) or 0)

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()

    def _insert(self, table: sql.Table) -> sql.Insert:
        """Return an insert that passes over rows which are there, in the database's own words."""
        dialect = {"sqlite": sqlite, "postgresql": postgresql}[self.engine.dialect.name]
        return dialect.insert(table).on_conflict_do_nothing()


when_unlocked = tenacity.Retrying(  # SQLite's own waiting does not cover the change to WAL of a new file
    retry=tenacity.retry_if_exception(lambda error: "database is locked" in str(error)),
    stop=tenacity.stop_after_delay(10),
    wait=tenacity.wait_random(0.01, 0.1),
    reraise=True,
)


def open_engine(url: str | Path) -> sql.Engine:
    """Return a database by its URL, or by the path of an SQLite file. Raises ImportError for want of a driver."""
    engine = sql.create_engine(str(url) if "://" in str(url) else sql.URL.create("sqlite", database=str(url)))
    if engine.dialect.name == "sqlite":
        sql.event.listen(engine, "connect", prepare_sqlite)
    return engine


def unusable(url: str | Path, error: Exception) -> ValueError:
    """Return what is said of a store that does not work; a password in its URL is left out."""
    return ValueError(f"the advice store {re.sub(r':[^:@/]*@', ':***@', str(url))} cannot be used: {reason(error)}")


def prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """Let readers and one writer work at once, and wait for each other instead of failing."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA busy_timeout = 5000")


def reason(error: Exception) -> str:
    """The first line of what a database says."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
