"""The front desk: what is known already, and who must be asked, now or while the games go on."""

import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from sqlalchemy.exc import SQLAlchemyError
from torch import Tensor

from envs.base import State, select_rows
from tutors.advice_table import UNLIMITED, AdviceTable
from tutors.async_advisor import Clerk, Ring
from tutors.base import Advice, Tutor, no_advice_counts
from tutors.prompts.base import PromptView
from tutors.query import QueryRequest
from tutors.store import AdviceStore, Cost

RING = 8192  # questions that wait at most, where the games do not
LOGGED = ("consulted", "asked", "prompt_tokens", "answer_tokens", "seconds", "store_failures")
EXPERT_DEPTH = 4  # how far ahead the expert looks with whose moves advice is compared


Together = Callable[[Mapping[str, float]], dict[str, float]]


class Told(NamedTuple):
    """N positions as a view tells them."""

    state: State  # what is told
    turned: Tensor  # (N,) int64: the transform that led there
    keys: Tensor  # (N, 2) int64


class Query(NamedTuple):
    """What is said at the desk before anybody is asked."""

    told: Told
    wish: QueryRequest
    advice: Advice  # what the table knows, in the actions as they are told
    missing: Tensor  # (N,) bool: where a question is put


class Advisor:
    """Answers a step's questions from the table, then from the store, then by asking the tutor.

    Equal questions of one step are asked once, whatever the reuse budget; a budget counts later uses. The
    store is read only where answers may be used without end: a budget of k says to ask again.

    A desk that waits answers every question in the step in which it comes up. That costs one read-back a step, and the
    time of the tutor where something is not known. With `async_tutor` a step gets what the table holds, with none;
    the rest is asked by a clerk meanwhile, and is in the table some steps later: call `tend` between two steps.

    `tell`, `look_up`, `queue` and `turn_back` are functions of tensors, for `agents.compile`; `ask` and `tend` are the
    host's part; `answer` is a whole step.

    Args:
        view: how positions are told.
        tutor: who is asked.
        table: what is known.
        store: what was ever answered.
        async_tutor: whether the games go on while the tutor is asked.
    """

    def __init__(
        self,
        view: PromptView,
        tutor: Tutor,
        table: AdviceTable,
        store: AdviceStore | None,
        async_tutor: bool = False,
    ) -> None:
        self.view, self.tutor, self.table, self.store = view.to(table.keys.device), tutor, table, store
        self.asked = (
            view if async_tutor else self.view
        )  # of positions that are asked about: those of a clerk are the host's
        # filled: into the table at the start; stored: found in the store; told (of which
        # answered), calls: the tutor's
        self.counts: Counter[str] = Counter()
        self.tally = torch.zeros(3, dtype=torch.int64, device=table.keys.device)  # positions, consulted, hits
        self.sums = {"label_mass": 0.0, "seconds": 0.0}  # over answers, with the tutor
        self.reported: dict[str, float] = {}
        self.talking = threading.Lock()  # one talk with the tutor at a time, whoever has it
        self.clerk = Clerk(self._ask, tutor.cancel) if async_tutor else None
        self.ring: Ring | None = None  # made when it is known what positions look like

    def fill_table(self) -> None:
        """Put into the table what the store knows, as far as it holds it, where answers may be used without end."""
        if self.store is not None and self.table.budget == UNLIMITED:
            device = self.table.keys.device
            try:
                for keys, advice in self.store.all(self.table.capacity):
                    self.table.put(keys.to(device), advice.to(device))
                    self.counts["filled"] += len(keys)
            except SQLAlchemyError as error:
                self.store.failed(error)

    def advise(self, state: State, wanted: Tensor) -> Advice:
        """Return advice for the rows of `state` that want it (N,) bool, in the games' own actions."""
        return self.answer(self.tell(state), wanted)

    @torch.no_grad()
    def tell(self, state: State) -> Told:
        """Return the positions as they are told to the tutor."""
        canonical, turned = self.view.canonicalize(state)
        return Told(canonical, turned, self.view.key(canonical))

    @torch.no_grad()
    def answer(self, told: Told, wanted: Tensor, admit: Callable[[Tensor], Tensor] = lambda missing: missing) -> Advice:
        """Return advice for the rows that want it (N,) bool, in the games' own actions.

        `admit` says about which of the rows that the table does not know (N,) bool a question is put.
        """
        advice = self.look_up(told, wanted)
        missing = admit(wanted & ~advice.valid)
        if self.clerk is None:
            self.ask(told, missing, advice)
        else:
            self.make_ring(told.state)
            self.queue(told, missing)
        return self.turn_back(told, advice)

    @torch.no_grad()
    def look_up(self, told: Told, wanted: Tensor) -> Advice:
        """Return what the table knows of the rows that want it, in the actions as they are told."""
        advice = self.table.get(told.keys, wanted)
        self.tally += torch.stack([torch.ones_like(wanted).sum(), wanted.sum(), advice.valid.sum()])
        return advice

    @torch.no_grad()
    def ask(self, told: Told, missing: Tensor, advice: Advice) -> None:
        """Ask about the rows that are `missing` (N,) bool, and write the answers into `advice`."""
        rows = missing.nonzero()[:, 0]
        if len(rows):
            answers = self._answer(select_rows(told.state, rows), told.keys[rows])
            for known, new in zip(advice, answers, strict=True):
                known[rows] = new

    def make_ring(self, state: State) -> None:
        """Make room for questions about positions of as many games as are in `state`, where the games do not wait."""
        if self.clerk is not None and self.ring is None:
            told = self.tell(state)
            self.ring = Ring(told.state, max(RING, 4 * len(told.keys)))

    def queue(self, told: Told, missing: Tensor) -> None:
        """Leave the questions about the rows that are `missing` (N,) bool to the clerk."""
        assert self.ring is not None, "make_ring comes first"
        self.ring.add(told.keys, told.state, missing)

    def turn_back(self, told: Told, advice: Advice) -> Advice:
        """Return the same advice in the games' own actions."""
        return advice._replace(probs=advice.probs.gather(1, self.view.symmetry[told.turned]))

    def tend(self) -> None:
        """Put what the clerk brings into the table, and hand over what has come up meanwhile. Never waits.

        Raises:
            TutorError: the tutor cannot be had any longer before a person mends something.
        """
        if self.clerk is None or self.ring is None:
            return
        done = self.clerk.collect()
        if done is not None:
            keys, advice, dropped = done
            self.counts["dropped"] += dropped
            if len(keys):
                keys, *answers = (sent(tensor, self.table.keys.device) for tensor in (keys, *advice))
                self.table.put(keys, Advice(*answers))
        if not self.clerk.is_busy and (self.ring.count.is_cuda or self.ring.count):  # a look that costs nothing here
            self.clerk.hand(self.ring.drain())
        elif done is not None:
            self.clerk.known = set()  # nothing came up while these were asked

    def close(self) -> None:
        """Let go of the clerk; what has not been answered will not be."""
        if self.clerk is not None and not self.clerk.close():
            logging.getLogger(__name__).warning("the tutor's thread does not end; it is left alone")

    def report(self, together: Together = dict) -> dict[str, float]:
        """Return what came up since the last report, as TensorBoard tags. Reads the table's load back.

        `all_gather_sum` adds up the counts of all desks of a run.
        """
        total = together(self._counted())
        new = defaultdict(float, {name: total[name] - self.reported.get(name, 0) for name in total})
        self.reported = total
        no_advice = {f"tutor/{kind}": new[kind] for kind in total if kind.startswith("no_advice/")}
        return {
            **{f"tutor/{part}": new[part] for part in LOGGED},
            "tutor/wanted": new["consulted"] / max(new["positions"], 1),
            "tutor/hit_rate": new["hits"] / max(new["consulted"], 1),
            "tutor/latency_ms": 1000 * new["seconds"] / max(new["calls"], 1),
            "tutor/label_mass": new["label_mass"] / max(new["told"], 1),
            "tutor/expert_agreement": new["expert_agreed"] / max(new["answered"], 1),
            "tutor/table_load": float(self.table.load()),
            **({} if self.clerk is None else {"tutor/dropped": new["dropped"]}),
            **no_advice,
            **self._servers(),
        }

    def _counted(self) -> dict[str, float]:
        """Return everything that is counted; copies, since a clerk may be counting."""
        tally = dict(zip(("positions", "consulted", "hits"), self.tally.tolist(), strict=True))
        failures = 0 if self.store is None else self.store.failures
        return {**self.counts.copy(), **self.tutor.stats.copy(), **self.sums, **tally, "store_failures": failures}

    def _servers(self) -> dict[str, float]:
        """Return what the tutor's own side has to say, unless it is being asked just now."""
        if not self.talking.acquire(blocking=False):
            return {}
        try:
            return self.tutor.report()
        finally:
            self.talking.release()

    def summary(self, together: Together = dict) -> dict[str, object]:
        """Return what a whole run came to, at all desks."""
        told = Counter(together(self._counted()))
        return {
            "name": self.tutor.name,
            **{part: told[part] for part in ("consulted", "asked", "prompt_tokens", "answer_tokens")},
            "expert_agreement": round(told["expert_agreed"] / max(told["answered"], 1), 4),
            **{part: told[part] for part in ("filled", "stored", "store_failures", "hits")},
            "hit_rate": round(told["hits"] / max(told["consulted"], 1), 4),
            "no_advice": no_advice_counts(told),
            "seconds": round(told["seconds"], 2),
            **({} if self.clerk is None else {"dropped": told["dropped"]}),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what is known and what was counted. Questions that nobody has answered yet are not in it."""
        return {
            "identity": None if self.store is None else self.store.digest,
            "table": self.table.state_dict(),
            "tally": self.tally,
            "counts": dict(self.counts),
            "stats": dict(self.tutor.stats),
            "sums": dict(self.sums),
            "reported": dict(self.reported),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what `state_dict` returned; another tutor, or one that is asked otherwise, begins a new table."""
        if state["identity"] == (None if self.store is None else self.store.digest):
            self.table.load_state_dict(state["table"])
        else:
            logging.getLogger(__name__).warning("the tutor or its questions changed: its earlier answers are not used")
        self.tally.copy_(state["tally"])
        for ours, saved in ((self.counts, "counts"), (self.tutor.stats, "stats"), (self.sums, "sums")):
            ours.clear()
            ours.update(state[saved])
        self.reported = dict(state["reported"])

    def _answer(self, state: State, keys: Tensor) -> Advice:
        """Return advice for positions that the table does not know, each different one asked once."""
        distinct, which = keys.unique(dim=0, return_inverse=True)
        first = torch.full_like(distinct[:, 0], len(keys))
        first.scatter_reduce_(0, which, torch.arange(len(keys), device=keys.device), "amin")
        answers = self._ask(select_rows(state, first), distinct)
        self.table.put(distinct, answers)
        return Advice(*(tensor[which] for tensor in answers))

    def _ask(self, state: State, keys: Tensor) -> Advice:
        """Return advice about distinct positions from the store, and from the tutor where it has none."""
        answers = self._stored(keys)
        rows = (~answers.valid).nonzero()[:, 0]
        if len(rows):
            asked = select_rows(state, rows)
            said, cost = self._talk(asked)
            said = said.to(keys.device)
            for known, new in zip(answers, said, strict=True):
                known[rows] = new
            self._keep(asked, keys[rows], said, cost)
        return answers

    def _talk(self, state: State) -> tuple[Advice, Cost]:
        """Return what the tutor says, and what each answer cost."""
        with self.talking:
            spent, began = Counter(self.tutor.stats), time.monotonic()
            said = self.tutor.advise(state)
            seconds = time.monotonic() - began
        self.sums["seconds"] += seconds
        self.counts["calls"] += 1
        tokens = [self.tutor.stats[kind] - spent[kind] for kind in ("prompt_tokens", "answer_tokens")]
        return said, Cost(*(total / len(said.valid) for total in (*tokens, seconds)))

    def _stored(self, keys: Tensor) -> Advice:
        """Return what the store knows."""
        if self.store is not None and self.table.budget == UNLIMITED:
            try:
                found = self.store.find(keys.cpu()).to(keys.device)
                self.counts["stored"] += int(found.valid.sum())
                return found
            except SQLAlchemyError as error:
                self.store.failed(error)
        return Advice.no_advice(len(keys), self.view.symmetry.shape[1], keys.device)

    def _keep(self, state: State, keys: Tensor, said: Advice, cost: Cost) -> None:
        """Hand new answers to the store, count them, and compare them with an expert's where there is one."""
        self.counts["told"] += len(keys)
        self.counts["answered"] += int(said.valid.sum())
        self.sums["label_mass"] += float(said.label_mass.sum())
        if not said.valid.any():
            return
        if self.asked.has_expert:
            values, action_mask = self.asked.expert_values(state, EXPERT_DEPTH).float(), self.asked.action_mask(state)
            values = values.masked_fill(~action_mask, -torch.inf)
            best = values == values.amax(1, keepdim=True)
            agreed = best.gather(1, said.probs.argmax(1, keepdim=True))[:, 0] & said.valid
            self.counts["expert_agreed"] += int(agreed.sum())
        if self.store is not None:
            words = [text.removeprefix(self.asked.instructions) for text in self.asked.render(state)]
            self.store.put(keys.cpu(), said.to("cpu"), words, cost)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, without waiting for it: from memory that the device can read itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
