"""The thread behind the desk, which asks while the games go on; and the questions that wait for it."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import State, select_rows
from tutors.base import Advice, TutorError

MOST = 1024  # questions that are taken at once: what one request holds
LEAVES_WITHIN = 5.0  # seconds that a thread may take to end

Ask = Callable[[State, Tensor], Advice]  # advice about distinct positions, of which there may be none, and their keys


class Questions(NamedTuple):
    """A copy of a ring on the host; with CUDA it is there once `ready` has come."""

    keys: Tensor  # (capacity, 2) int64
    state: State
    added: Tensor  # 0-d int64, how many there were: the newest of them are there
    ready: torch.cuda.Event | None


class Ring:
    """The newest questions without an answer, on the device. Fixed shapes, no read-back; the oldest are forgotten.

    Args:
        state: positions, of which only shapes and types matter.
        capacity: questions, at least as many as come in one step.
    """

    def __init__(self, state: State, capacity: int) -> None:
        device = next(iter(state.values())).device
        self.capacity = capacity
        self.keys = torch.zeros(capacity + 1, 2, dtype=torch.int64, device=device)  # the last row takes what is no miss
        self.state = {name: rows.new_zeros(capacity + 1, *rows.shape[1:]) for name, rows in state.items()}
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.host = [
            torch.empty_like(tensor, device="cpu", pin_memory=device.type == "cuda")
            for tensor in (self.keys, self.count, *self.state.values())
        ]

    def add(self, keys: Tensor, state: State, missed: Tensor) -> None:
        """Keep the questions that `missed` (B,) bool says have no answer."""
        place = torch.where(missed, (self.count + missed.cumsum(0) - 1) % self.capacity, self.capacity)
        self.keys[place] = keys
        for name, rows in state.items():
            self.state[name][place] = rows
        self.count += missed.sum()

    def drain(self) -> Questions:
        """Return all questions and forget them, without waiting for the device.

        The copies are written over by the next call.
        """
        for here, there in zip(self.host, (self.keys, self.count, *self.state.values()), strict=True):
            here.copy_(there, non_blocking=True)
        self.count.zero_()
        ready = None
        if self.count.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        keys, count, *rows = self.host
        return Questions(keys, dict(zip(self.state, rows, strict=True)), count, ready)


def worth_asking(questions: Questions, known: set[tuple[int, ...]], most: int = MOST) -> tuple[Tensor, State, int]:
    """Return (keys, positions, how many were dropped) of what is worth asking: each position once, at most `most`.

    The ones that came up most often go first, of these the newest: an answer to them will be used soonest. Those in
    `known` were asked while these came up.
    """
    capacity, count = len(questions.keys) - 1, int(questions.added)
    held = min(count, capacity)
    places = (count - 1 - torch.arange(held)) % capacity  # the newest first
    fresh = [
        place
        for place, key in zip(places.tolist(), questions.keys[places].tolist(), strict=True)
        if tuple(key) not in known
    ]
    places = torch.tensor(fresh, dtype=torch.int64)
    keys, which, often = questions.keys[places].unique(dim=0, return_inverse=True, return_counts=True)
    newest = torch.full_like(often, len(places)).scatter_reduce_(0, which, torch.arange(len(places)), "amin")
    order = newest.argsort(stable=True)
    order = order[often[order].argsort(descending=True, stable=True)]
    dropped = count - held + int(often[order[most:]].sum())
    order = order[:most]
    return keys[order], select_rows(questions.state, places[newest[order]]), dropped


class Clerk:
    """Asks in a thread of its own, one batch at a time.

    Args:
        ask: who answers; called in the thread.
        cancel: makes a call of `ask` come back at once, from another thread.
    """

    def __init__(self, ask: Ask, cancel: Callable[[], None] = lambda: None) -> None:
        self.ask, self.cancel = ask, cancel
        self.inbox: SimpleQueue[Questions | None] = SimpleQueue()
        self.outbox: SimpleQueue[tuple[Tensor, Advice, int] | BaseException] = SimpleQueue()
        self.is_busy = False
        self.known: set[tuple[int, ...]] = set()  # keys of the batch before
        self.thread = threading.Thread(target=self._work, name="tutor", daemon=True)
        self.thread.start()

    def hand(self, questions: Questions) -> None:
        """Give the clerk a batch; only one that is not busy takes it."""
        assert not self.is_busy, "one batch at a time"
        self.is_busy = True
        self.inbox.put(questions)

    def collect(self) -> tuple[Tensor, Advice, int] | None:
        """Return (keys, advice, questions dropped) of a batch that is done, or None.

        Raises:
            TutorError: what a person must mend.
        """
        try:
            done = self.outbox.get_nowait()
        except Empty:
            return None
        self.is_busy = False
        if isinstance(done, BaseException):
            raise done
        return done

    def close(self) -> bool:
        """End the thread, whatever it waits for; return whether it has ended."""
        self.inbox.put(None)
        if self.is_busy:
            self.cancel()
        self.thread.join(LEAVES_WITHIN)
        return not self.thread.is_alive()

    def _work(self) -> None:
        while (questions := self.inbox.get()) is not None:
            try:
                if questions.ready is not None:
                    questions.ready.synchronize()
                keys, state, dropped = worth_asking(questions, self.known)
                self.known = set(map(tuple, keys.tolist()))
                self.outbox.put((keys, self.ask(state, keys), dropped))
            except BaseException as error:  # whatever it is, the loop must hear of it
                self.outbox.put(
                    error if isinstance(error, TutorError) else RuntimeError(f"the clerk failed: {error!r}")
                )
