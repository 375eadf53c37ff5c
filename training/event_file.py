"""Files that a run appends to, and TensorBoard's events in one of them. One that cannot be written ends no run."""

import logging
import os
import platform
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from tutors.base import Warner

NUMBERS = count()  # of the event files of this process


class AppendedFile:
    """Takes whole records at its end. One that cannot be written is left out with a warning, and the next is tried.

    Args:
        path: the file, which is made if there is none.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("ab", buffering=0)
        self.size = self.file.tell()
        self.warner = Warner(logging.getLogger(__name__))

    def write(self, record: bytes) -> None:
        """Append a record as a whole, or nothing of it."""
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self.file.truncate(self.size)
            self.warner(str(self.path), f"{self.path} cannot be written, training goes on: {error.strerror}")
        else:
            self.size += len(record)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self.file.close()


class EventFile:
    """Writes a new file of TensorBoard's events.

    Args:
        run_dir: its directory.
        purge_step: TensorBoard forgets what older files have from this env step on; None: nothing.
    """

    def __init__(self, run_dir: Path, purge_step: int | None = None) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{next(NUMBERS)}"
        self.file = AppendedFile(run_dir / name)
        self.records = RecordWriter(self.file)
        self.write(file_version="brain.Event:2")
        if purge_step is not None:
            self.write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, summary: Summary, global_step: int = 0) -> None:
        """Write what torch.utils.tensorboard.summary makes."""
        self.write(step=global_step, summary=summary)

    def write(self, **fields: Any) -> None:
        """Write one event."""
        self.records.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        """Close the file."""
        self.file.close()
