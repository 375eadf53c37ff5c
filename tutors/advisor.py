"""The advisor: advice about positions from the table, then the store, then the tutor."""

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from sqlalchemy.exc import SQLAlchemyError
from torch import Tensor

from envs.base import State, num_rows, select_rows, state_to
from tutors.advice_table import UNLIMITED, AdviceTable
from tutors.base import Advice, Tutor, Warner, no_advice_counts
from tutors.positions import unique_rows
from tutors.prompts.base import PromptView
from tutors.store import AdviceStore, Cost

SUM_TOLERANCE = 1e-3  # of probabilities
LOGGED_COUNTERS = ("consulted", "asked", "prompt_tokens", "answer_tokens", "seconds", "store_failures")


class CanonicalPositions(NamedTuple):
    """N positions in the form in which a view puts them to a tutor."""

    state: State
    transform: Tensor  # (N,) int64: which row of the view's symmetry led to each
    keys: Tensor  # (N, 2) int64


class Lookup(NamedTuple):
    """What is known of N positions before anybody is asked."""

    positions: CanonicalPositions
    advice: Advice  # of the table, where advice is wanted; in the canonical positions' actions
    misses: Tensor  # (N,) bool: which positions the store and the tutor are to be asked about


class Advisor:
    """Answers from the advice table, then from the store, then by asking the tutor and waiting.

    Advice from any source is used only where it is a distribution over the legal actions: see `sound_advice`.

    What was answered before an exception ends a query, a refused key or a signal, is kept in the store and the table.

    Equal positions of one step are one query, whatever the reuse budget; the budget counts later uses. The store is
    read only with an unlimited reuse budget: a budget of k means to ask again.

    `canonicalize` and `lookup` are functions of tensors on the device, safe to compile and to capture. `resolve` is
    the host's part: one read-back a step, and the store's and the tutor's time if something is not known.

    Args:
        view: the prompt view.
        tutor: who is asked.
        table: the cache on the device.
        store: every answer so far; None: nothing is kept.
    """

    waits: ClassVar[bool] = True  # whether `resolve` waits for answers, and is no function of tensors alone

    def __init__(self, view: PromptView, tutor: Tutor, table: AdviceTable, store: AdviceStore | None) -> None:
        self.view = view.to(table.keys.device)
        self.query_view = self.view  # of the positions that the tutor is asked about
        self.query_device: str | torch.device = table.keys.device  # where they are then
        self.tutor = tutor
        self.table = table
        self.store = store
        # filled: answers put into the table at the start; stored: found in the store; queried: positions that the tutor
        # was asked about, of which answered; calls: of the tutor
        self.counts: Counter[str] = Counter()
        self.lookups = torch.zeros(3, dtype=torch.int64, device=table.keys.device)  # positions, consulted, hits
        self.table_is_unchecked = False  # whether it holds answers put in by key alone, whose legal actions are unknown
        self.unsound = torch.zeros((), dtype=torch.int64, device=table.keys.device)  # entries found in the table
        self.warn = Warner(logging.getLogger(__name__))
        self.sums = {"label_mass": 0.0, "seconds": 0.0}  # over queried positions; of the tutor's calls
        self.interrupting: Callable[[], AbstractContextManager[None]] = nullcontext  # in which the tutor is asked
        self.tutor_lock = threading.Lock()  # one call of the tutor at a time, whichever thread makes it

    def fill_table(self) -> None:
        """Put what the store knows into the table, as far as it has room; only with an unlimited reuse budget."""
        if self.store is not None and self.table.budget == UNLIMITED:
            device = self.table.keys.device
            try:
                for keys, advice in self.store.all(self.table.capacity):
                    self.table.put(keys.to(device), advice.to(device))
                    self.counts["filled"] += len(keys)
                    self.table_is_unchecked = True
            except SQLAlchemyError as error:
                self.store.failed(error)

    def allocate(self, state: State) -> None:
        """Allocate what depends on the shape of the env's positions, before a step is compiled or captured."""

    @torch.no_grad()
    def canonicalize(self, state: State) -> CanonicalPositions:
        """Return the env's positions in canonical form, with their keys."""
        canonical, transform = self.view.canonicalize(state)
        return CanonicalPositions(canonical, transform, self.view.key(canonical))

    @torch.no_grad()
    def lookup(self, positions: CanonicalPositions, wanted: Tensor) -> Lookup:
        """Return what the table knows of the positions about which advice is wanted, (N,) bool."""
        advice = self.table.get(positions.keys, wanted)
        if self.table_is_unchecked:
            found, advice = advice, sound_advice(advice, self.view.action_mask(positions.state))
            self.unsound += (found.valid & ~advice.valid).sum()
        self.lookups += torch.stack([torch.ones_like(wanted).sum(), wanted.sum(), advice.valid.sum()])
        return Lookup(positions, advice, wanted & ~advice.valid)

    def resolve(self, lookup: Lookup) -> Advice:
        """Return the advice about the positions that were looked up, in the env's own actions."""
        return self.resolve_now(lookup)

    @torch.no_grad()
    def resolve_now(self, lookup: Lookup) -> Advice:
        """Ask about the misses, wait for the answers, and return all advice in the env's own actions."""
        positions, advice = lookup.positions, lookup.advice
        rows = lookup.misses.nonzero()[:, 0]
        if len(rows):
            answers = self._answer(select_rows(positions.state, rows), positions.keys[rows])
            advice = Advice(*(old.index_copy(0, rows, new) for old, new in zip(advice, answers, strict=True)))
        return self.to_env_actions(positions, advice)

    def advise(self, state: State, wanted: Tensor) -> Advice:
        """Return advice about the positions of `state` where it is wanted, (N,) bool, in the env's own actions."""
        return self.resolve(self.lookup(self.canonicalize(state), wanted))

    def to_env_actions(self, positions: CanonicalPositions, advice: Advice) -> Advice:
        """Return advice about canonical positions in the env's own actions."""
        probs = advice.probs.gather(1, self.view.symmetry[positions.transform])
        return Advice(probs, advice.valid, advice.label_mass)

    def step(self) -> None:
        """Do what is due between two steps of the env, without waiting; nothing here.

        Raises:
            TutorError: the tutor is unavailable until the user acts.
        """

    def close(self) -> None:
        """Release what the advisor itself holds; tutor and store are closed by who opened them."""

    def counters(self) -> dict[str, float]:
        """Return everything that was counted since the start of the run, on this rank; one read-back."""
        lookups = dict(zip(("positions", "consulted", "hits"), self.lookups.tolist(), strict=True))
        self._warn_of_unsound("the advice table", int(self.unsound))
        self.unsound.zero_()
        failures = 0 if self.store is None else self.store.failures
        return {**self.counts.copy(), **self.tutor.stats.copy(), **self.sums, **lookups, "store_failures": failures}

    def gauges(self) -> dict[str, float]:
        """Return the table's load and what the tutor's side measured, as TensorBoard tags; one read-back.

        The tutor is not waited for: while it is being asked, its part is left out.
        """
        load = {"tutor/table_load": float(self.table.load())}
        if not self.tutor_lock.acquire(blocking=False):
            return load
        try:
            return load | self.tutor.report()
        finally:
            self.tutor_lock.release()

    def state_dict(self) -> dict[str, Any]:
        """Return the table and the counts; queries without an answer yet are not in it."""
        return {
            "identity": None if self.store is None else self.store.digest,
            "table": self.table.state_dict(),
            "lookups": self.lookups,
            "counts": dict(self.counts),
            "stats": dict(self.tutor.stats),
            "sums": dict(self.sums),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, but the table only if the tutor and its prompts are the same."""
        if state["identity"] == (None if self.store is None else self.store.digest):
            self.table.load_state_dict(state["table"])
            self.table_is_unchecked = True
        else:
            logging.getLogger(__name__).warning("the tutor or its prompts changed: its earlier answers are not used")
        self.lookups.copy_(state["lookups"])
        for ours, saved in ((self.counts, "counts"), (self.tutor.stats, "stats"), (self.sums, "sums")):
            ours.clear()
            ours.update(state[saved])

    def _answer(self, state: State, keys: Tensor) -> Advice:
        """Return advice about positions that the table does not know, each different one asked about once."""
        distinct, inverse, first = unique_rows(keys)
        queried = state_to(select_rows(state, first), self.query_device)
        given, error = self._ask(queried, distinct.to(self.query_device))
        answers = given.to(keys.device)
        self.table.put(distinct, answers)
        if error is not None:
            raise error
        return Advice(*(part[inverse] for part in answers))

    def _ask(self, state: State, keys: Tensor) -> tuple[Advice, BaseException | None]:
        """Return advice about distinct positions from the store, and from the tutor where the store has none.

        An exception that ended the tutor's call is returned, too: the caller raises it when the advice is kept.
        """
        action_mask = self.query_view.action_mask(state).to(keys.device)
        found = self._read_store(keys)
        stored = sound_advice(found, action_mask)
        self._warn_of_unsound("the advice store", int((found.valid & ~stored.valid).sum()))
        self.counts["stored"] += int(stored.valid.sum())
        rows = (~stored.valid).nonzero()[:, 0]
        if not len(rows):
            return stored, None
        queried = select_rows(state, rows)
        given, cost, error = self._query_tutor(queried)
        given = given.to(keys.device)
        answers = sound_advice(given, action_mask[rows])
        if unsound := max(0, int(given.valid.sum()) - int(answers.valid.sum())):
            self.counts["no_advice/unsound"] += unsound
            self._warn_of_unsound(f"the tutor {self.tutor.name!r}", unsound)
        self._record(queried, keys[rows], answers, cost)
        return Advice(*(old.index_copy(0, rows, new) for old, new in zip(stored, answers, strict=True))), error

    def _query_tutor(self, state: State) -> tuple[Advice, Cost, BaseException | None]:
        """Return the tutor's advice, what each answer cost, and the exception that ended the call, if one did."""
        answers, error, before, began = None, None, Counter[str](), time.monotonic()
        try:
            with self.interrupting(), self.tutor_lock:
                before, began = Counter(self.tutor.stats), time.monotonic()
                answers = self.tutor.advise(state)
        except BaseException as raised:
            answers, error = answers or self.tutor.rescue(), raised
            if answers is None:
                raise
        seconds = time.monotonic() - began
        self.sums["seconds"] += seconds
        self.counts["calls"] += 1
        tokens = [self.tutor.stats[kind] - before[kind] for kind in ("prompt_tokens", "answer_tokens")]
        return answers, Cost(*(total / num_rows(state) for total in (*tokens, seconds))), error

    def _read_store(self, keys: Tensor) -> Advice:
        """Return the store's advice; none where it is not to be read, or cannot be."""
        if self.store is not None and self.table.budget == UNLIMITED:
            try:
                found = self.store.find(keys.cpu()).to(keys.device)
                return found
            except SQLAlchemyError as error:
                self.store.failed(error)
        return Advice.no_advice(len(keys), self.view.symmetry.shape[1], keys.device)

    def _warn_of_unsound(self, source: str, number: int) -> None:
        if number:
            text = f"{number} answers of {source} are no distributions over the legal actions: they are not used"
            self.warn(f"unsound {source}", text)

    def _record(self, state: State, keys: Tensor, answers: Advice, cost: Cost) -> None:
        """Count new answers and hand them to the store."""
        self.counts["queried"] += len(keys)
        self.counts["answered"] += int(answers.valid.sum())
        self.sums["label_mass"] += float(answers.label_mass.sum())
        if self.store is not None and answers.valid.any():
            instructions = self.query_view.instructions
            texts = [prompt.removeprefix(instructions) for prompt in self.query_view.render(state)]
            self.store.put(keys.cpu(), answers.to("cpu"), texts, cost)


def sound_advice(advice: Advice, action_mask: Tensor) -> Advice:
    """Return advice only where it is a distribution over the legal actions, (B, A) bool, with a label mass in [0, 1].

    Advice of another shape is no advice at all. A function of tensors on the device, without a read-back.
    """
    rows = action_mask.shape[:1]
    if (advice.probs.shape, advice.valid.shape, advice.label_mass.shape) != (action_mask.shape, rows, rows):
        return Advice.no_advice(len(action_mask), action_mask.shape[1], action_mask.device)
    probs, label_mass = advice.probs.float(), advice.label_mass.float()
    legal = probs.clamp(0, 1 + SUM_TOLERANCE) * action_mask  # NaN stays, and equals nothing
    is_sound = (legal == probs).all(1) & ((legal.sum(1) - 1).abs() < SUM_TOLERANCE)
    in_range = (label_mass >= 0) & (label_mass <= 1 + SUM_TOLERANCE)
    valid = advice.valid.bool() & is_sound & in_range
    return Advice(torch.where(valid[:, None], probs, 0), valid, torch.where(in_range, label_mass, 0))


def advisor_metrics(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Return TensorBoard tags of what happened between two sets of an advisor's counters, of one rank or of all."""
    new = defaultdict(float, {name: now[name] - before.get(name, 0) for name in now})
    return {
        **{f"tutor/{name}": new[name] for name in LOGGED_COUNTERS},
        "tutor/wanted": new["consulted"] / max(new["positions"], 1),
        "tutor/hit_rate": new["hits"] / max(new["consulted"], 1),
        "tutor/latency_ms": 1000 * new["seconds"] / max(new["calls"], 1),
        "tutor/label_mass": new["label_mass"] / max(new["queried"], 1),
        **({"tutor/dropped": new["dropped"]} if "dropped" in now else {}),
        **{f"tutor/{name}": new[name] for name in now if name.startswith("no_advice/")},
    }


def advisor_summary(name: str, counters: Mapping[str, float]) -> dict[str, Any]:
    """Return what a whole run came to, by an advisor's counters; `name` is the tutor's."""
    total = Counter[str](counters)  # counts what is missing as 0
    return {
        "name": name,
        **{part: total[part] for part in ("consulted", "asked", "prompt_tokens", "answer_tokens")},
        **{part: total[part] for part in ("filled", "stored", "store_failures", "hits")},
        "hit_rate": round(total["hits"] / max(total["consulted"], 1), 4),
        "no_advice": no_advice_counts(total),
        "seconds": round(total["seconds"], 2),
        **({"dropped": total["dropped"]} if "dropped" in counters else {}),
    }
