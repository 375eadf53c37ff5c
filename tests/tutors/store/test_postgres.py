"""The advice store on a real PostgreSQL server, which the test starts where Debian's packages are installed.

The same is expected as of SQLite: what was put is found to the bit, whoever writes beside it, and trouble costs answers
only. Nothing that a run leaves behind has the password in it.
"""

import gc
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql

from tests.helpers.commands import tutors
from tests.helpers.paths import ROOT
from tests.helpers.stores import IDENTITY, KEYS, assert_same, child, command, keys_of, put, random_advice, soon, words
from tutors.base import Advice
from tutors.store import AdviceStore, Cost, writer
from tutors.store.database import open_engine
from tutors.store.json_lines import read_all

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
CANARY = "canary-p%2Fa%40ss"  # canary-p/a@ss in a URL
FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not FOUND, reason="no PostgreSQL here: apt-get install postgresql"),
]

WRITER = """
import sys, torch
from tutors.base import Advice
from tutors.store import AdviceStore, Cost
print("ready", flush=True)
sys.stdin.read(1)
store = AdviceStore(sys.argv[1], {"labels": ["A", "B"], "tutor": "both"})
first, turn = int(sys.argv[2]), int(sys.argv[3])
for batch in range(30):
    numbers = torch.randperm(200, generator=torch.manual_seed(batch + turn)) + first
    keys = torch.stack([numbers, numbers], 1)
    store.put(keys, Advice(torch.full((200, 2), 0.5), torch.ones(200).bool(), torch.ones(200)), ["words"] * 200)
    store.flush()
store.close()
print(store.failures, store.writer.lost)
"""


class Server:
    """A PostgreSQL server of its own, with a password, on a port of 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, FOUND[-1].parent
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "password").write_text("canary-p/a@ss")
        if os.getuid() == 0:  # as whom PostgreSQL refuses to run
            user = pwd.getpwnam("postgres")
            for path in (folder, folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        self("initdb", "--username", "tutored", "--auth", "scram-sha-256", "--pwfile", folder / "password")
        self.start()

    def __call__(self, program: str, *flags: str | Path) -> None:
        other = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*other, str(self.programs / program), "-D", str(self.folder / "data"), *map(str, flags)]
        with (self.folder / "log").open("a") as log:  # not a pipe, which the server would keep open
            done = subprocess.run(command, cwd="/", stdout=log, stderr=log, timeout=60, check=False)
        assert done.returncode == 0, (self.folder / "log").read_text()

    def start(self) -> None:
        flags = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self("pg_ctl", "start", "-w", "-o", flags)

    def stop(self) -> None:
        self("pg_ctl", "stop", "-w", "-m", "immediate")

    def processes(self) -> list[int]:
        """Return the numbers of the server's processes."""
        first = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]

    def database(self, name: str) -> str:
        """Make a database and return its URL."""
        engine = open_engine(self.url("postgres"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"drop database if exists {name} with (force)")
            connection.exec_driver_sql(f"create database {name}")
        engine.dispose()
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://tutored:{CANARY}@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))  # pytest's own folders are closed to others
    try:
        server = Server(folder)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def url(server: Server) -> str:
    return server.database("advice")


@pytest.fixture
def store(url: str) -> Iterator[AdviceStore]:
    store = AdviceStore(url, IDENTITY)
    yield store
    store.close()


def test_find_returns_stored_bits_before_and_after_writing(store: AdviceStore, url: str) -> None:
    advice = random_advice(len(KEYS))
    store.put(KEYS, advice, words(len(KEYS)), Cost(1.5, 2.0, 0.25))
    assert_same(store.find(KEYS), advice)
    store.flush()
    again = AdviceStore(url, IDENTITY)
    assert_same(again.find(KEYS), advice)
    (batch,) = again.all(100)
    order = [KEYS.tolist().index(key) for key in batch[0].tolist()]
    assert_same(batch[1], Advice(*(tensor[order] for tensor in advice)))
    assert again.count() == len(KEYS)
    again.close()


def test_first_answer_stays_and_another_identity_gets_no_advice(store: AdviceStore, url: str) -> None:
    first = random_advice(len(KEYS))
    store.put(KEYS, first, words(len(KEYS)))
    store.flush()
    store.put(KEYS, random_advice(len(KEYS), seed=1), words(len(KEYS)))
    store.flush()
    assert_same(store.find(KEYS), first)
    stranger = AdviceStore(url, IDENTITY | {"tutor": "another"})
    assert not stranger.find(KEYS).valid.any()
    stranger.close()


def test_concurrent_processes_create_tables_and_write_the_same_rows(url: str) -> None:
    children = [child(WRITER, url, first, str(turn)) for turn, first in enumerate(("0", "0", "100"))]
    for process in children:
        assert process.stdout.readline() == "ready\n"
    for process in children:
        process.stdin.write("x")
        process.stdin.flush()
    printed = [process.communicate(timeout=120) for process in children]
    assert [out for out, _ in printed] == ["0 0\n"] * 3, printed
    store = AdviceStore(url, {"labels": ["A", "B"], "tutor": "both"})
    assert store.count() == 300
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from identities").scalar() == 1
    store.close()


def test_restarted_server_costs_a_warning(
    server: Server, store: AdviceStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "RETRY_WAIT_S", 0.1)
    monkeypatch.setattr("tutors.store.advice_store.READ_RETRY_S", 0.0)
    put(store, 1)
    store.flush()
    server.stop()
    try:
        began = time.monotonic()
        put(store, 2)
        put(store, 3)
        assert time.monotonic() - began < 0.5
        assert soon(lambda: store.failures > 1)
        with pytest.raises(sql.exc.OperationalError):
            store.find(keys_of(1))
    finally:
        server.start()
    assert soon(lambda: not store.writer.waiting, 10)
    assert store.find(keys_of(1, 2, 3)).valid.all()
    assert store.writer.lost == 0
    assert len([record for record in caplog.records if record.name == "tutors.store.advice_store"]) == 1
    assert "canary" not in caplog.text


@pytest.mark.filterwarnings("ignore:.*deleted while still open:ResourceWarning")  # connections that were given up
def test_hanging_server_delays_within_bounds(server: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in its tracks it still takes connections and what is sent to it, and says nothing."""
    monkeypatch.setattr("tutors.store.advice_store.LOCK_TIMEOUT_S", 0.5)
    monkeypatch.setattr(writer, "CLOSE_TIMEOUT_S", 1.0)
    store = AdviceStore(url, IDENTITY)
    put(store, 1)
    store.flush()
    everybody = server.processes()
    try:
        for process in everybody:
            os.kill(process, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(sql.exc.SQLAlchemyError):
            store.find(keys_of(1))
        put(store, 2)
        assert not store.find(keys_of(1)).valid.any()
        store.close()
        assert time.monotonic() - began < 10
        assert store.writer.lost == 1
    finally:
        for process in everybody:
            os.kill(process, signal.SIGCONT)
    assert soon(lambda: not any("advice store" in thread.name for thread in threading.enumerate()), 30)
    gc.collect()


def test_server_that_is_gone_at_the_start_is_used_once_it_is_back(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RETRY_WAIT_S", 0.1)
    gone = url.replace(f":{server.port}/", f":{free_port()}/")
    store = AdviceStore(gone, IDENTITY)
    assert store.failures == 1
    put(store, 1)
    assert soon(lambda: store.failures > 1)
    back = AdviceStore(url, IDENTITY)
    store.engine = back.engine
    assert soon(lambda: store.writer.waiting == {})
    assert back.find(keys_of(1)).valid.all()
    store.close()
    back.close()


def free_port() -> int:
    """A port at which nothing answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_locked_table_delays_within_bounds(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tutors.store.database.POSTGRES_OPTIONS", {"options": "-c lock_timeout=100ms"})
    store = AdviceStore(url, IDENTITY)
    engine = open_engine(url)
    with engine.connect() as other:
        other.exec_driver_sql("lock table answers in access exclusive mode")
        put(store, 1)
        with pytest.raises(sql.exc.OperationalError, match="lock timeout"):
            store.flush()
        with pytest.raises(sql.exc.OperationalError, match="lock timeout"):
            store.find(keys_of(1))
        other.rollback()
    engine.dispose()
    assert store.count() == 1
    store.close()


def test_commands_move_a_store_between_databases(url: str, tmp_path: Path) -> None:
    file = tmp_path / "advice.sqlite"
    done = tutors("fill", "--advice-store", str(file), "--env", "blackjack", "--tutor", "scripted")
    assert done.returncode == 0, done.stderr
    done = command("merge", url, file)
    assert done.stdout == "280 answers are new, 0 were there\n", done.stderr
    done = tutors("fill", "--advice-store", url, "--env", "blackjack", "--tutor", "scripted")
    assert "280 were stored, 0 of 0" in done.stdout
    assert "canary" not in done.stdout + done.stderr
    (one,) = json.loads(command("info", url, "--json").stdout)
    assert one["answers"] == 280
    text = command("export", url).stdout
    assert text == command("export", file).stdout
    assert len(text.splitlines()) == 281
    (tmp_path / "text").write_text(text)
    assert command("import", url, tmp_path / "text").stdout == "0 answers are new, 280 were there\n"
    assert command("vacuum", url).returncode == 0
    engine = open_engine(url)
    assert sum(len(rows) for _, rows in read_all(engine)) == 280
    engine.dispose()


def test_runs_share_a_server_and_write_its_password_nowhere(url: str, tmp_path: Path) -> None:
    small = "--algo ppo --env blackjack --num-envs 64 --total-steps 4096 --eval-episodes 10 --guidance override --tutor"

    def run(name: str, tutor: str, *flags: str, program: str = "train.py") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, program, *small.split(), tutor, "--run-dir", str(tmp_path / name), *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    cold = run("cold", "scripted", "--advice-store", url)
    warm = run("warm", "scripted", "--advice-store", url)
    recorded = run("recorded", f"recorded:{url}")
    refused = run("refused", "scripted", "--advice-store", url.replace("canary", "canary-wrong"))
    nowhere = run("nowhere", f"recorded:{url}-not-there")
    other = run("other", f"recorded:{url}", "--env", "connect4")
    for done in (cold, warm, recorded):
        assert done.returncode == 0, done.stderr
    for done in (refused, nowhere, other):
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert "password authentication failed" in refused.stderr
    assert "no answers about connect4 board" in other.stderr
    summaries = [json.loads((tmp_path / name / "summary.json").read_text())["tutor"] for name in ("cold", "warm")]
    assert summaries[0]["asked"] == summaries[1]["filled"] > 200
    assert summaries[1]["asked"] == 0
    for done in (cold, warm, recorded, refused, nowhere, other):
        assert "canary" not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 12
    for path in files:
        assert b"canary" not in path.read_bytes(), path
    assert "tutored:***@" in (tmp_path / "cold" / "config.json").read_text()


def test_masked_password_is_read_from_libpq_s_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = url.replace(CANARY, "***")
    with pytest.raises(ValueError, match="no password supplied"):
        AdviceStore(written, IDENTITY)
    monkeypatch.setenv("PGPASSWORD", "canary-p/a@ss")
    store = AdviceStore(written, IDENTITY)
    assert store.count() == 0
    store.close()
