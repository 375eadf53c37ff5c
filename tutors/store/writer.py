"""Writes behind the training's back: several puts become one transaction, and a failure costs answers only."""

import atexit
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import OperationalError, TimeoutError

LEAVES_WITHIN = 10.0  # seconds that a transaction may take in the end, and that one which must wait waits for another
LINGER = 0.25  # seconds that answers wait for others: what kill -9 may cost, beside a transaction's time
PAUSE = 1.0  # seconds before the next try after a failure
ROOM = 1 << 15  # answers that may wait

Key = tuple[int, int]
Row = dict[str, Any]


class Writer:
    """Keeps rows until a thread of its own, which starts with the first of them, has written them.

    What a database cannot take for now, because it is locked, full or gone, is tried again. When there is no more room
    new rows wait for their turn; while the database fails they are dropped. What it will never take is dropped.

    Args:
        write: writes rows in one transaction.
        failed: is told of each failure, in either thread.
    """

    def __init__(self, write: Callable[[list[Row]], object], failed: Callable[[Exception], None]) -> None:
        self.write, self.failed = write, failed
        self.waiting: dict[Key, Row] = {}
        self.lock = threading.Lock()  # of what waits
        self.turn = threading.Lock()  # one transaction at a time
        self.ending = threading.Event()
        self.thread: threading.Thread | None = None
        self.is_failing = False
        self.lost = 0  # rows that were dropped

    def put(self, rows: dict[Key, Row]) -> None:
        """Take rows to be written; of two with one key the first stays."""
        assert not self.ending.is_set(), "a closed store takes no answers"
        if len(self.waiting) + len(rows) > ROOM and (self.is_failing or not self.try_flush()):
            self.lost += len(rows)
            return
        with self.lock:
            for key, row in rows.items():
                self.waiting.setdefault(key, row)
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="advice store", daemon=True)
                self.thread.start()
                atexit.register(self.close)

    def peek(self, keys: list[Key]) -> dict[Key, Row]:
        """Return those of the rows of `keys` that wait."""
        with self.lock:
            return {key: self.waiting[key] for key in keys if key in self.waiting}

    def flush(self) -> None:
        """Write what waits, in one transaction; raise what the database raises."""
        if not self.turn.acquire(timeout=LEAVES_WITHIN):
            self.is_failing = True
            raise TimeoutError(f"a transaction takes longer than {LEAVES_WITHIN:g} seconds")
        try:
            self._flush()
        finally:
            self.turn.release()

    def _flush(self) -> None:
        with self.lock:
            rows = dict(self.waiting)
        if not rows:
            return
        try:
            self.write(list(rows.values()))
        except OperationalError:
            self.is_failing = True
            raise
        except Exception:
            self._forget(rows)
            self.lost += len(rows)
            raise
        self.is_failing = False
        self._forget(rows)

    def try_flush(self) -> bool:
        """Write what waits; return whether that went well."""
        try:
            self.flush()
        except Exception as error:
            self.failed(error)
            return False
        return True

    def close(self) -> int:
        """Write what waits, end the thread, and return how many rows were lost in all."""
        atexit.unregister(self.close)
        self.ending.set()
        if self.thread is not None:
            self.thread.join(LEAVES_WITHIN)
            self.thread = None
        self.lost += len(self.waiting)
        self.waiting = {}
        return self.lost

    def _work(self) -> None:
        while not self.ending.wait(PAUSE if self.is_failing else LINGER):
            self.try_flush()
        self.try_flush()

    def _forget(self, rows: dict[Key, Row]) -> None:
        with self.lock:
            for key in rows:
                self.waiting.pop(key, None)  # a writer that was given up has let go of it
