"""The advice table and other ways to find a key: look-ups and inserts a second.

Beside it stand a Python dict, asked key by key; `torch.searchsorted` on sorted keys, which cannot insert; and FBGEMM's
hash table, in the peers' environment. These three find a place, ours advice. The table is filled to a share of its
entries with random keys; a share of the queries are among them.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, ClassVar

import rich.table
import torch
from annotated_types import Interval
from torch import Tensor

from agents.compile import MODES, compile_function
from benchmarks.common import PEERS_PYTHON, Benchmark, Row, WorkerError, cell, check_names, peer, waiting_for
from benchmarks.timing import rate
from tutors.advice_table import AdviceTable
from tutors.base import Advice

NUM_ACTIONS = 7
DICT_ROWS = 20_000  # of the queries that a dict is asked: enough to time it
INSERT_BATCHES = 3  # the first is not timed
PROGRAMS = (*MODES, "searchsorted", "fbgemm", "dict")
Programs = dict[str, tuple[Callable[[], object], int]]  # what is called, and how many look-ups that makes


@dataclass(frozen=True)
class Table(Benchmark):
    """The advice table, look-ups and inserts a second."""

    name: ClassVar[str] = "table"

    queries: tuple[Annotated[int, Interval(ge=1, le=10**8)], ...] = (1 << 14, 1 << 18, 1 << 20)
    """Queries in one batch."""
    entries: tuple[Annotated[int, Interval(ge=1, le=2**31)], ...] = (1 << 20,)
    """Entries of the table."""
    loads: tuple[Annotated[float, Interval(ge=0, le=1)], ...] = (0.5, 0.8, 0.95)
    """Shares of the entries that are filled."""
    hits: tuple[Annotated[float, Interval(ge=0, le=1)], ...] = (0.0, 0.5, 1.0)
    """Shares of the queries that are in the table."""
    programs: tuple[str, ...] = ("eager", "compile", "searchsorted", "fbgemm", "dict")
    """Programs: eager, compile and, on CUDA, graph are ours."""
    device: str = "cpu"
    """Device of the table."""
    repeats: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Turns of each; the median counts."""
    seconds: Annotated[float, Interval(gt=0, le=1e6)] = 0.3
    """Seconds that a turn lasts at least."""
    peers: Path = PEERS_PYTHON
    """A Python that has fbgemm-gpu-cpu; see requirements/peers.txt."""

    def measure(self) -> Iterator[list[Row]]:
        check_names("program", self.programs, PROGRAMS)
        rows: list[Row] = []
        for entries in self.entries:
            for load in self.loads:
                table, keys = filled(entries, load, self.device)
                contents = Contents(table, keys, self.programs)
                for queries in self.queries:
                    for hits in self.hits:
                        row: Row = {"queries": queries, "entries": entries, "load": load, "hits": hits}
                        rows.append(row | self._lookups(contents, queries, hits))
                        yield rows
        for row in rows:
            if row["hits"] == self.hits[0]:
                row["inserts_per_second"] = self._inserts(row["entries"], row["queries"], row["load"])
                yield rows

    def _lookups(self, contents: "Contents", count: int, hits: float) -> Row:
        """Return the look-ups a second of each program."""
        keys = queries(contents.keys, count, hits)
        programs = contents.programs_for(keys)
        runs: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(self.repeats):
            for name, (work, size) in programs.items():
                runs[name].append(rate(work, size, self.seconds, waiting_for(self.device)))
        if "fbgemm" in self.programs and self.peers.exists():
            runs["fbgemm"] = self._fbgemm(contents, count, hits)
        found = contents.table.get(keys, everywhere(keys)).valid.float().mean().item()
        per_second = {name: median(rates) for name, rates in runs.items() if rates}
        return {"runs": runs, "found": round(found, 4), "per_second": per_second}

    def _fbgemm(self, contents: "Contents", count: int, hits: float) -> list[float]:
        """Return FBGEMM's look-ups a second in one long turn, or nothing where it cannot be run."""
        settings = {
            "entries": len(contents.keys),
            "capacity": contents.table.capacity,
            "queries": count,
            "hits": hits,
            "seconds": self.seconds * self.repeats,
        }
        try:
            return [peer("lookups", settings, self.peers).run()["rate"]]
        except WorkerError:
            return []

    def _inserts(self, entries: int, count: int, load: float) -> float:
        """Return inserts of new keys a second into a table that is filled so far at the beginning."""
        wait, runs = waiting_for(self.device), []
        for turn in range(self.repeats):
            table, _ = filled(entries, load, self.device)
            generator = torch.Generator().manual_seed(3 + turn)
            batches = [random_keys(count, generator, self.device) for _ in range(INSERT_BATCHES)]
            put(table, batches[0])
            wait()
            began = time.perf_counter()
            for batch in batches[1:]:
                put(table, batch)
            wait()
            runs.append((INSERT_BATCHES - 1) * count / (time.perf_counter() - began))
        return median(runs)

    def table(self, rows: list[Row]) -> rich.table.Table:
        grid = rich.table.Table(title="the advice table, millions a second")
        for name in ("queries", "entries", "load", "hits", "found", *self.programs, "inserts, eager"):
            grid.add_column(name, justify="right")
        for row in rows:
            rates = [cell(row["per_second"].get(name), ".3g", 1e6) for name in self.programs]
            inserts = cell(row["inserts_per_second"], ".3g", 1e6) if "inserts_per_second" in row else ""
            sizes = (f"{row['queries']:,}", f"{row['entries']:,}")
            grid.add_row(*sizes, f"{row['load']}", f"{row['hits']}", f"{row['found']:.2f}", *rates, inserts)
        return grid


class Contents:
    """What is in a table, as each program holds it."""

    def __init__(self, table: AdviceTable, keys: Tensor, programs: tuple[str, ...]) -> None:
        self.table = table
        self.keys = keys
        self.modes = [mode for mode in MODES if mode in programs]
        self.ordered = keys[:, 0].sort().values if "searchsorted" in programs else None
        self.rows = {key: row for row, key in enumerate(map(tuple, keys.tolist()))} if "dict" in programs else None

    def programs_for(self, keys: Tensor) -> Programs:
        """Return what looks up `keys` (N, 2) in each way."""
        wanted, count = everywhere(keys), len(keys)
        programs: Programs = {}
        for mode in self.modes:
            programs[mode] = (self._getter(mode, keys, wanted), count)
        if (ordered := self.ordered) is not None:
            halves = keys[:, 0].contiguous()
            programs["searchsorted"] = (lambda: torch.searchsorted(ordered, halves), count)
        if (rows := self.rows) is not None:
            few = list(map(tuple, keys[:DICT_ROWS].tolist()))
            programs["dict"] = (lambda: [rows.get(key) for key in few], len(few))
        return programs

    def _getter(self, mode: str, keys: Tensor, wanted: Tensor) -> Callable[[], Advice]:
        get = compile_function(self.table.get, mode)
        return lambda: get(keys, wanted)


def filled(entries: int, load: float, device: str) -> tuple[AdviceTable, Tensor]:
    """Return a table with about that share of its entries in use, and the keys that are in it."""
    table = AdviceTable(NUM_ACTIONS, math.inf, entries, device=device)
    generator = torch.Generator().manual_seed(1)
    wanted = int(load * entries)
    for _ in range(200):  # a full bucket forgets, so that filling goes on after so many keys have been put
        missing = wanted - int(float(table.load()) * entries)
        if missing <= 0:
            break
        put(table, random_keys(missing, generator, device))
    return table, table.keys[: table.capacity][table.tags[: table.capacity] != 0]


def put(table: AdviceTable, keys: Tensor) -> None:
    """Insert keys (N, 2) with some advice."""
    probs = torch.full((len(keys), NUM_ACTIONS), 1 / NUM_ACTIONS, device=keys.device)
    given = everywhere(keys)
    table.put(keys, Advice(probs, given, given.float()))


def queries(keys: Tensor, count: int, hits: float) -> Tensor:
    """Return keys of which that share is among `keys`, in any order, (count, 2) int64."""
    generator = torch.Generator().manual_seed(2)
    known = keys[torch.randint(len(keys), (count,), generator=generator).to(keys.device)]
    other = random_keys(count, generator, keys.device)
    is_known = (torch.rand(count, generator=generator) < hits).to(keys.device)
    return torch.where(is_known[:, None], known, other)


def random_keys(count: int, generator: torch.Generator, device: str | torch.device) -> Tensor:
    """Return random keys, (count, 2) int64, the same on every device."""
    return torch.randint(1 << 62, (count, 2), generator=generator).to(device)


def everywhere(keys: Tensor) -> Tensor:
    """Return True for each of `keys` (N, 2), (N,) bool."""
    return torch.ones(len(keys), dtype=torch.bool, device=keys.device)
