"""Writes in the background: several puts become one transaction, and a failure costs answers only."""

import atexit
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import OperationalError, TimeoutError

CLOSE_TIMEOUT_S = 10.0  # of the last transaction, and of one that must wait for another
BATCH_WAIT_S = 0.25  # answers wait for others: what kill -9 may cost, beside a transaction's time
RETRY_WAIT_S = 1.0  # after a failure
MAX_WAITING = 1 << 15  # answers

Key = tuple[int, int]
Row = dict[str, Any]


class Writer:
    """Keeps rows until a thread of its own, which the first of them starts, has written them.

    Rows that a database refuses for now, because it is locked, full or gone, are tried again. When too many wait, `put`
    writes them itself; while the database fails, new rows are dropped. Rows that it will always refuse are dropped.

    Args:
        write: writes rows in one transaction.
        failed: called with each error, in either thread.
    """

    def __init__(self, write: Callable[[list[Row]], object], failed: Callable[[Exception], None]) -> None:
        self.write, self.failed = write, failed
        self.waiting: dict[Key, Row] = {}
        self.lock = threading.Lock()  # of what waits
        self.writing = threading.Lock()  # one transaction at a time
        self.ending = threading.Event()
        self.thread: threading.Thread | None = None
        self.is_failing = False
        self.lost = 0  # rows that were dropped

    def put(self, rows: dict[Key, Row]) -> None:
        """Queue rows; of two with one key the first stays."""
        assert not self.ending.is_set(), "put after close: a closed store takes no answers"
        if len(self.waiting) + len(rows) > MAX_WAITING and (self.is_failing or not self.try_flush()):
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
        """Return the waiting rows of `keys`."""
        with self.lock:
            return {key: self.waiting[key] for key in keys if key in self.waiting}

    def flush(self) -> None:
        """Write what waits, in one transaction. Raises what the database raises."""
        if not self.writing.acquire(timeout=CLOSE_TIMEOUT_S):
            self.is_failing = True
            raise TimeoutError(f"a transaction takes longer than {CLOSE_TIMEOUT_S:g} seconds")
        try:
            self._flush()
        finally:
            self.writing.release()

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
        """Write what waits, and return whether the database took it."""
        try:
            self.flush()
        except Exception as error:
            self.failed(error)
            return False
        return True

    def close(self) -> int:
        """Write what waits, end the thread, and return the number of rows lost in all."""
        atexit.unregister(self.close)
        self.ending.set()
        if self.thread is not None:
            self.thread.join(CLOSE_TIMEOUT_S)
            self.thread = None
        self.lost += len(self.waiting)
        self.waiting = {}
        return self.lost

    def _work(self) -> None:
        while not self.ending.wait(RETRY_WAIT_S if self.is_failing else BATCH_WAIT_S):
            self.try_flush()
        self.try_flush()

    def _forget(self, rows: dict[Key, Row]) -> None:
        with self.lock:
            for key in rows:
                self.waiting.pop(key, None)  # `close` may have dropped it
