"""An advisor that does not wait: a thread asks the tutor while the envs go on."""

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from envs.base import State, select_rows
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor, Lookup
from tutors.base import Advice, Tutor, TutorError
from tutors.positions import unique_rows
from tutors.prompts.base import PromptView
from tutors.store import AdviceStore

MAX_QUERIES_PER_BATCH = 1024  # what one request to a server holds
MIN_QUEUE_CAPACITY = 8192  # queries that can wait
JOIN_TIMEOUT_S = 5.0  # seconds that the thread may take to end

# advice about distinct positions, of which there may be none, and their keys; and what ended the tutor's call early
Ask = Callable[[State, Tensor], tuple[Advice, BaseException | None]]


class AsyncAdvisor(Advisor):
    """Returns what the table knows at once; a thread asks about the rest, and the answers serve later steps.

    `resolve` is a function of tensors here, too: it reads nothing back. `step`, between two steps of the env, puts
    answers into the table and submits what came up meanwhile. Call `allocate` before `resolve` is compiled.
    """

    waits: ClassVar[bool] = False

    def __init__(self, view: PromptView, tutor: Tutor, table: AdviceTable, store: AdviceStore | None) -> None:
        super().__init__(view, tutor, table, store)
        self.query_view = view.to("cpu")  # the thread works on the host
        self.query_device = "cpu"
        self.thread = TutorThread(self._ask, tutor.cancel)
        self.queue: PendingQueue | None = None  # made when it is known what positions look like

    def allocate(self, state: State) -> None:
        """Make room for queries about positions of as many envs as are in `state`."""
        if self.queue is None:
            positions = self.canonicalize(state)
            self.queue = PendingQueue(positions.state, max(MIN_QUEUE_CAPACITY, 4 * len(positions.keys)))

    @torch.no_grad()
    def resolve(self, lookup: Lookup) -> Advice:
        """Return what the table knows, in the env's own actions, and leave the misses to the thread."""
        assert self.queue is not None, "allocate comes first"
        self.queue.add(lookup.positions.keys, lookup.positions.state, lookup.misses)
        return self.to_env_actions(lookup.positions, lookup.advice)

    def step(self) -> None:
        """Put new answers into the table, and submit what came up meanwhile. Never waits.

        Raises:
            TutorError: the tutor is unavailable until the user acts.
        """
        if self.queue is None:
            return
        answered = self.thread.poll()
        if answered is not None:
            keys, advice, error, dropped = answered
            self.counts["dropped"] += dropped
            if len(keys):
                keys, *parts = (to_device(tensor, self.table.keys.device) for tensor in (keys, *advice))
                self.table.put(keys, Advice(*parts))
            if error is not None:
                raise tutor_error(error)
        if not self.thread.is_busy and (self.queue.count.is_cuda or self.queue.count):  # no read-back on the CPU
            self.thread.submit(self.queue.drain())
        elif answered is not None:
            self.thread.last_keys = set()  # nothing came up while these were asked about

    def close(self) -> None:
        """End the thread; queries without an answer get none."""
        if not self.thread.close():
            logging.getLogger(__name__).warning("the tutor's thread does not end; it is left running")

    def counters(self) -> dict[str, float]:
        """Return what an advisor counts, and the queries that were dropped because others came up more often."""
        return {**super().counters(), "dropped": self.counts["dropped"]}


class Answered(NamedTuple):
    """What came of a batch."""

    keys: Tensor  # (B, 2) int64
    advice: Advice
    error: BaseException | None  # that ended the tutor's call; the advice is what came before it
    dropped: int  # queries


class PendingBatch(NamedTuple):
    """A copy of a queue on the host; with CUDA it is complete once `ready` has come."""

    keys: Tensor  # (capacity, 2) int64
    state: State
    added: Tensor  # 0-d int64, how many queries there were: the newest of them are in the batch
    ready: torch.cuda.Event | None


class PendingQueue:
    """The newest queries without an answer, on the device. Fixed shapes, no read-back; the oldest are overwritten.

    Args:
        state: canonical positions, of which only shapes and types matter.
        capacity: queries, at least as many as come in one step.
    """

    def __init__(self, state: State, capacity: int) -> None:
        device = next(iter(state.values())).device
        self.capacity = capacity
        # the last row of each is where writes go that must not happen
        self.keys = torch.zeros(capacity + 1, 2, dtype=torch.int64, device=device)
        self.state = {name: rows.new_zeros(capacity + 1, *rows.shape[1:]) for name, rows in state.items()}
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.host = [
            torch.empty_like(tensor, device="cpu", pin_memory=device.type == "cuda")
            for tensor in (self.keys, self.count, *self.state.values())
        ]

    def add(self, keys: Tensor, state: State, misses: Tensor) -> None:
        """Keep the queries about the rows that are `misses`, (N,) bool."""
        slot = torch.where(misses, (self.count + misses.cumsum(0) - 1) % self.capacity, self.capacity)
        self.keys[slot] = keys
        for name, rows in state.items():
            self.state[name][slot] = rows
        self.count += misses.sum()

    def drain(self) -> PendingBatch:
        """Return all queries and forget them, without waiting for the device.

        The copies are overwritten by the next call.
        """
        for host, device in zip(self.host, (self.keys, self.count, *self.state.values()), strict=True):
            host.copy_(device, non_blocking=True)
        self.count.zero_()
        ready = None
        if self.count.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        keys, count, *rows = self.host
        return PendingBatch(keys, dict(zip(self.state, rows, strict=True)), count, ready)


def select_queries(
    batch: PendingBatch, known: set[tuple[int, ...]], limit: int = MAX_QUERIES_PER_BATCH
) -> tuple[Tensor, State, int]:
    """Return (keys, positions, number of queries dropped): each position once, at most `limit`.

    The most frequent ones go first, of these the newest: answers to them will be used soonest. Those in `known` were
    being asked about when these came up.
    """
    capacity, added = len(batch.keys) - 1, int(batch.added)
    held = min(added, capacity)
    slots = (added - 1 - torch.arange(held)) % capacity  # the newest first
    unknown = [
        slot for slot, key in zip(slots.tolist(), batch.keys[slots].tolist(), strict=True) if tuple(key) not in known
    ]
    slots = torch.tensor(unknown, dtype=torch.int64)
    keys, inverse, newest = unique_rows(batch.keys[slots])
    frequency = torch.zeros_like(newest).index_add_(0, inverse, torch.ones_like(inverse))
    order = newest.argsort(stable=True)
    order = order[frequency[order].argsort(descending=True, stable=True)]
    dropped = added - held + int(frequency[order[limit:]].sum())
    order = order[:limit]
    return keys[order], select_rows(batch.state, slots[newest[order]]), dropped


class TutorThread:
    """Asks the tutor in a thread of its own, one batch at a time.

    Args:
        ask: who answers; called in the thread.
        cancel: makes a call of `ask` return at once, from another thread.
    """

    def __init__(self, ask: Ask, cancel: Callable[[], None]) -> None:
        self.ask = ask
        self.cancel = cancel
        self.inbox: SimpleQueue[PendingBatch | None] = SimpleQueue()
        self.outbox: SimpleQueue[Answered | BaseException] = SimpleQueue()
        self.is_busy = False
        self.last_keys: set[tuple[int, ...]] = set()  # of the batch before
        self.thread = threading.Thread(target=self._work, name="tutor", daemon=True)
        self.thread.start()

    def submit(self, batch: PendingBatch) -> None:
        """Hand over a batch; only an idle thread takes one."""
        assert not self.is_busy, "one batch at a time"
        self.is_busy = True
        self.inbox.put(batch)

    def poll(self) -> Answered | None:
        """Return what came of a batch that is done, or None.

        Raises:
            TutorError: the tutor is unavailable until the user acts.
        """
        try:
            result = self.outbox.get_nowait()
        except Empty:
            return None
        self.is_busy = False
        if isinstance(result, BaseException):
            raise tutor_error(result)
        return result

    def close(self) -> bool:
        """End the thread, whatever it waits for; return whether it has ended."""
        self.inbox.put(None)
        if self.is_busy:
            self.cancel()
        self.thread.join(JOIN_TIMEOUT_S)
        return not self.thread.is_alive()

    def _work(self) -> None:
        while (batch := self.inbox.get()) is not None:
            try:
                if batch.ready is not None:
                    batch.ready.synchronize()
                keys, state, dropped = select_queries(batch, self.last_keys)
                self.last_keys = set(map(tuple, keys.tolist()))
                self.outbox.put(Answered(keys, *self.ask(state, keys), dropped))
            except BaseException as error:  # of any kind: the training loop must see it
                self.outbox.put(error)


def tutor_error(error: BaseException) -> Exception:
    """Return what the training loop raises for an error of the tutor's thread."""
    return error if isinstance(error, TutorError) else RuntimeError(f"the tutor's thread failed: {error!r}")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on a device, by way of pinned memory, which is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
