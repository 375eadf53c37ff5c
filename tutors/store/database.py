"""The advice store's two tables, in SQLite or PostgreSQL, and the errors when they do not work."""

import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import sqlalchemy as sql
import tenacity
from sqlalchemy.dialects import postgresql, sqlite

from tutors.display import HIDDEN, without_password

Job = tuple[Future[Any], Callable[[], Any]]

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
PASSING_SQLITE = re.compile(r"database (table )?is locked|disk is full|disk I/O error", re.IGNORECASE)
LASTING_POSTGRES = re.compile(  # what a person must mend, in a URL or on the server
    r"authentication failed|no password supplied|does not exist|no pg_hba.conf entry|permission denied|"
    r"could not translate host name|failed to resolve host|invalid port",
    re.IGNORECASE,
)
INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
LOCK_TIMEOUT_S = 5  # to wait for a lock or a server
POSTGRES_OPTIONS = {  # a server that is gone or locked must not hold up a run for long
    "connect_timeout": LOCK_TIMEOUT_S,
    "tcp_user_timeout": 2000 * LOCK_TIMEOUT_S,
    "options": f"-c lock_timeout={LOCK_TIMEOUT_S}s",
}
CREATE_LOCK_ID = 0x7407  # of the advisory lock under which PostgreSQL's tables are created


def open_engine(url: str | Path) -> sql.Engine:
    """Return the engine of a database by its URL, or by the path of an SQLite file.

    Raises:
        ValueError: `url` is no URL of SQLite or PostgreSQL.
        SQLAlchemyError, ImportError: there is no driver.
    """
    address = address_of(url)
    kind = address.get_backend_name()
    if kind not in INSERTS:
        kinds = " or ".join(INSERTS)
        raise ValueError(f"the advice store {without_password(url)} cannot be used: it is in {kinds}, not in {kind}")
    options: dict[str, Any] = {"timeout": LOCK_TIMEOUT_S} if kind == "sqlite" else POSTGRES_OPTIONS
    engine = sql.create_engine(
        address, connect_args={name: value for name, value in options.items() if name not in address.query}
    )
    if kind == "sqlite":
        sql.event.listen(engine, "connect", prepare_sqlite)
    return engine


def address_of(url: str | Path) -> sql.URL:
    """Return a database's URL, without its password if that is only ***: libpq then uses its own sources."""
    if "://" not in str(url):
        return sql.URL.create("sqlite", database=str(url))
    try:
        address = sql.make_url(str(url))
    except ValueError:
        raise ValueError(f"{without_password(url)} is no URL of a database") from None
    if address.password == HIDDEN:  # as in a run's config.json
        where = (address.host, address.port, address.database, address.query)
        return sql.URL.create(address.drivername, address.username, None, *where)
    return address


@contextmanager
def open_existing(url: str | Path) -> Iterator[sql.Engine]:
    """Open a store that exists, for as long as the block lasts.

    Raises:
        ValueError: it does not exist, or does not work.
    """
    if "://" not in str(url) and not Path(url).is_file():
        inside = Path(url) / "advice.sqlite"  # of a run directory
        hint = f"; did you mean {inside}?" if inside.is_file() else ""
        raise ValueError(f"there is no advice store {url}{hint}")

    def check(engine: sql.Engine) -> None:
        with engine.connect() as connection:
            check_layout(connection)

    with open_database(url) as engine:
        retry_while_locked(check, engine)
        yield engine


@contextmanager
def open_database(url: str | Path) -> Iterator[sql.Engine]:
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
        raise store_error(url, error) from None


def create_tables(connection: sql.Connection) -> None:
    """Create the tables that do not exist.

    Raises:
        ValueError: there are tables of these names with other columns.
    """
    there = set(sql.inspect(connection).get_table_names())
    if not there.issuperset(tables.tables):
        if connection.dialect.name == "postgresql":  # two that create one table at once would fail
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(CREATE_LOCK_ID)))
        for table in tables.sorted_tables:
            connection.execute(sql.schema.CreateTable(table, if_not_exists=True))
    check_layout(connection)


def check_layout(connection: sql.Connection) -> None:
    """Raise ValueError if a table or a column is missing: another program's database, or another version's."""
    inspector = sql.inspect(connection)
    there = inspector.get_table_names()
    for name, table in tables.tables.items():
        columns = {column["name"] for column in inspector.get_columns(name)} if name in there else set()
        if missing := [column.name for column in table.columns if column.name not in columns]:
            where = without_password(connection.engine.url.render_as_string())
            raise ValueError(f"{where} is no advice store of this version: table {name} lacks {', '.join(missing)}")


def register(connection: sql.Connection, digest: str, text: str) -> int:
    """Return the id of an identity, added where it is new."""
    connection.execute(insert(connection, identities), {"hash": digest, "text": text})
    return int(connection.scalar(sql.select(identities.c.id).where(identities.c.hash == digest)) or 0)


def write(connection: sql.Connection, rows: Sequence[dict[str, Any]]) -> int:
    """Insert answers, skip those whose keys exist, and return the number of new ones.

    They are inserted in the order of their keys: two writers of the same rows then cannot deadlock.
    """
    ordered = sorted(rows, key=lambda row: (row["identity"], row["key"], row["check"]))
    counting = {"preserve_rowcount": True}
    return connection.execute(insert(connection, answers), ordered, execution_options=counting).rowcount if rows else 0


def insert(connection: sql.Connection, table: sql.Table) -> sql.Insert:
    """Return an INSERT that skips existing rows, in the database's own dialect."""
    statement: sql.Insert = INSERTS[connection.dialect.name](table).on_conflict_do_nothing()
    return statement


retry_while_locked = tenacity.Retrying(  # SQLite's busy_timeout does not cover the change of a new file to WAL
    retry=tenacity.retry_if_exception(lambda error: "database is locked" in str(error)),
    stop=tenacity.stop_after_delay(2 * LOCK_TIMEOUT_S),
    wait=tenacity.wait_random(0.01, 0.1),
    reraise=True,
)


def prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """Let readers and one writer work at once, and wait for locks instead of failing; read text that is no UTF-8."""
    connection.text_factory = lambda text: str(text, errors="replace")  # else one such row fails a whole query
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA busy_timeout = {int(1000 * LOCK_TIMEOUT_S)}")


class ReadThread:
    """One thread for reads, so that a caller can give up on a database that accepts a query and never replies.

    The first read starts it. A thread that hangs is left behind, and the next read starts another.
    """

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Job | None] | None = None
        self.lock = threading.Lock()  # of `jobs`

    def run(self, read: Callable[[], Any], timeout_s: float) -> Any:
        """Return what `read` returns.

        Raises:
            SQLAlchemyError: what `read` raises, or that it takes longer than `timeout_s`.
        """
        future = Future[Any]()
        with self.lock:
            if self.jobs is None:
                self.jobs = SimpleQueue()
                threading.Thread(target=run_jobs, args=(self.jobs,), name="advice store, reading", daemon=True).start()
            self.jobs.put((future, read))
        try:
            return future.result(timeout_s)
        except TimeoutError:
            self.close()
            raise sql.exc.TimeoutError(f"no answer within {timeout_s:g} seconds") from None

    def close(self) -> None:
        """End the thread after the reads that it was given."""
        with self.lock:
            if self.jobs is not None:
                self.jobs.put(None)
                self.jobs = None


def run_jobs(jobs: SimpleQueue[Job | None]) -> None:
    """Run the jobs of a queue in their order until None comes."""
    while (job := jobs.get()) is not None:
        future, read = job
        try:
            future.set_result(read())
        except Exception as error:
            future.set_exception(error)


def is_passing(error: Exception) -> bool:
    """Return whether a database fails for now: it is locked, full or gone, and no person must act."""
    if not isinstance(error, sql.exc.OperationalError):
        return isinstance(error, sql.exc.TimeoutError)
    if isinstance(error.orig, sqlite3.Error):
        return PASSING_SQLITE.search(str(error)) is not None
    return LASTING_POSTGRES.search(str(error)) is None


def store_error(url: str | Path, error: Exception) -> ValueError:
    """Return the error of a store that does not work; a password in its URL is left out."""
    hint = f" ({sys.executable} -m pip install 'psycopg[binary]')" if isinstance(error, ImportError) else ""
    return ValueError(f"the advice store {without_password(url)} cannot be used: {reason(error)}{hint}")


def reason(error: Exception) -> str:
    """Return the first line of a database's error."""
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]
