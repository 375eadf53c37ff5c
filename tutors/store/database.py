"""The advice store's two tables, in SQLite or PostgreSQL, and what is said when they do not work."""

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import sqlalchemy as sql
import tenacity
from sqlalchemy.dialects import postgresql, sqlite

Found = TypeVar("Found")

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
    sql.Column("prompt_tokens", sql.Float, nullable=False),  # a call's, divided by the positions it was about
    sql.Column("answer_tokens", sql.Float, nullable=False),
    sql.Column("seconds", sql.Float, nullable=False),
    sql.Column("at", sql.Float, nullable=False),  # seconds since 1970, in whole microseconds
)
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
PATIENCE = 5  # seconds to wait for a lock or a server
SERVER = {  # PostgreSQL's: a server that is gone or locked must not hold up a run for long
    "connect_timeout": PATIENCE,
    "tcp_user_timeout": 2000 * PATIENCE,
    "options": f"-c lock_timeout={PATIENCE}s",
}
MAKING = 0x7407  # of the lock under which PostgreSQL's tables are made
FORGOTTEN = "***"  # in place of a password


def open_engine(url: str | Path) -> sql.Engine:
    """Return a database by its URL, or by the path of an SQLite file.

    Raises:
        ValueError: it is no URL of SQLite or PostgreSQL.
        SQLAlchemyError, ImportError: there is no driver.
    """
    address = address_of(url)
    kind = address.get_backend_name()
    if kind not in INSERTS:
        kinds = " or ".join(INSERTS)
        raise ValueError(f"the advice store {without_password(url)} cannot be used: it is in {kinds}, not in {kind}")
    ours = {} if kind == "sqlite" else SERVER
    engine = sql.create_engine(
        address, connect_args={name: value for name, value in ours.items() if name not in address.query}
    )
    if kind == "sqlite":
        sql.event.listen(engine, "connect", prepare_sqlite)
    return engine


def address_of(url: str | Path) -> sql.URL:
    """Return a URL of a database; without its password if that is only ***: libpq then looks where it always does."""
    if "://" not in str(url):
        return sql.URL.create("sqlite", database=str(url))
    try:
        address = sql.make_url(str(url))
    except ValueError:
        raise ValueError(f"{without_password(url)} is no URL of a database") from None
    if address.password == FORGOTTEN:  # as in a run's config.json
        where = (address.host, address.port, address.database, address.query)
        return sql.URL.create(address.drivername, address.username, None, *where)
    return address


@contextmanager
def existing(url: str | Path) -> Iterator[sql.Engine]:
    """Open a store that is there, for as long as the block lasts.

    Raises:
        ValueError: it is not there, or does not work.
    """
    if "://" not in str(url) and not Path(url).is_file():
        raise ValueError(f"there is no advice store {url}")
    with usable(url) as engine:
        with engine.connect() as connection:
            check_layout(connection)
        yield engine


@contextmanager
def usable(url: str | Path) -> Iterator[sql.Engine]:
    """Open a database for as long as the block lasts.

    Raises:
        ValueError: it does not work.
    """
    try:
        engine = open_engine(url)
        try:
            yield engine
        finally:
            engine.dispose()
    except (sql.exc.SQLAlchemyError, ImportError) as error:
        raise unusable(url, error) from None


def make_tables(connection: sql.Connection) -> None:
    """Make the tables where they are not there.

    Raises:
        ValueError: there are tables of these names with other columns.
    """
    there = set(sql.inspect(connection).get_table_names())
    if not there.issuperset(tables.tables):
        if connection.dialect.name == "postgresql":  # where two that make one table at once get in each other's way
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(MAKING)))
        for table in tables.sorted_tables:
            connection.execute(sql.schema.CreateTable(table, if_not_exists=True))
    check_layout(connection)


def check_layout(connection: sql.Connection) -> None:
    """Raise ValueError if the tables are not ours, or those of another version."""
    inspector = sql.inspect(connection)
    there = inspector.get_table_names()
    for name, table in tables.tables.items():
        columns = {column["name"] for column in inspector.get_columns(name)} if name in there else set()
        if missing := [column.name for column in table.columns if column.name not in columns]:
            where = without_password(connection.engine.url.render_as_string())
            raise ValueError(f"{where} is no advice store of this version: {name} has no {', '.join(missing)}")


def register(connection: sql.Connection, digest: str, text: str) -> int:
    """Return the number of an identity, which gets one if it has none."""
    connection.execute(insert(connection, identities), {"hash": digest, "text": text})
    return int(connection.scalar(sql.select(identities.c.id).where(identities.c.hash == digest)) or 0)


def write(connection: sql.Connection, rows: Sequence[dict[str, Any]]) -> int:
    """Write answers, pass over those that are there, and return how many are new.

    In the order of their keys: two writers of the same rows wait for each other instead of blocking each other.
    """
    ordered = sorted(rows, key=lambda row: (row["identity"], row["key"], row["check"]))
    counting = {"preserve_rowcount": True}
    return connection.execute(insert(connection, answers), ordered, execution_options=counting).rowcount if rows else 0


def insert(connection: sql.Connection, table: sql.Table) -> sql.Insert:
    """Return an insert that passes over rows which are there, in the database's own words."""
    statement: sql.Insert = INSERTS[connection.dialect.name](table).on_conflict_do_nothing()
    return statement


when_unlocked = tenacity.Retrying(  # SQLite's own waiting does not cover the change to WAL of a new file
    retry=tenacity.retry_if_exception(lambda error: "database is locked" in str(error)),
    stop=tenacity.stop_after_delay(2 * PATIENCE),
    wait=tenacity.wait_random(0.01, 0.1),
    reraise=True,
)


def prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """Let readers and one writer work at once, and wait for each other instead of failing."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA busy_timeout = {int(1000 * PATIENCE)}")


def within(seconds: float, read: Callable[[], Found]) -> Found:
    """Return what a function returns that waits for a database.

    A server that is reached and does not answer would be waited for without end; a thread of its own may.

    Raises:
        SQLAlchemyError: what it raises, or it takes longer.
    """
    box = SimpleQueue[Found | Exception]()

    def work() -> None:
        try:
            box.put(read())
        except Exception as error:
            box.put(error)

    threading.Thread(target=work, name="advice store, reading", daemon=True).start()
    try:
        found = box.get(timeout=seconds)
    except Empty:
        raise sql.exc.TimeoutError(f"no answer within {seconds:g} seconds") from None
    if isinstance(found, Exception):
        raise found
    return found


def unusable(url: str | Path, error: Exception) -> ValueError:
    """Return what is said of a store that does not work; a password in its URL is left out."""
    hint = " (pip install 'psycopg[binary]')" if isinstance(error, ImportError) else ""
    return ValueError(f"the advice store {without_password(url)} cannot be used: {reason(error)}{hint}")


def without_password(url: str | Path) -> str:
    """Return a database's URL with *** for its password, wherever it stands; a path as it is."""
    text = re.sub(r"://([^:/@?]*):.*@", rf"://\1:{FORGOTTEN}@", str(url))
    return re.sub(r"([?&]\w*password=)[^&]*", rf"\1{FORGOTTEN}", text, flags=re.IGNORECASE)


def reason(error: Exception) -> str:
    """Return the first line of what a database says."""
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]
