"""How many look-ups and inserts a second the advice table makes: a part of benchmark.py.

Beside it stand a Python dict, asked key by key; `torch.searchsorted` on sorted keys, which cannot insert; and FBGEMM's
hash table, in the peers' environment. These three find a place, ours advice. The table is filled to a share of its
entries with random keys; a share of the queries are among them.
"""

import json
import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table as Grid
from torch import Tensor

from tutors.advice_table import AdviceTable
from tutors.base import Advice

ACTIONS = 7
CAPACITY = 1 << 20
DICT_ROWS = 20_000  # of the queries that a dict is asked: enough to time it


@dataclass(frozen=True)
class Table:
    """The advice table, look-ups and inserts a second."""

    queries: tuple[int, ...] = (1 << 14, 1 << 18, 1 << 20)
    """At once."""
    loads: tuple[float, ...] = (0.5, 0.8, 0.95)
    """Shares of the table's 1,048,576 entries that are filled."""
    hits: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Shares of the queries that are there."""
    device: str = "cpu"
    """Where the table lies."""
    repeats: int = 3
    """Turns of each; the median counts."""
    seconds: float = 0.3
    """How long a turn lasts at least."""
    peers: Path = Path(".venv-peers/bin/python")
    """A Python that has fbgemm-gpu-cpu; see requirements/peers.txt."""
    out: Path = Path("results/table.json")
    """Where the JSON goes."""


def table_rows(told: Table) -> list[dict[str, Any]]:
    """Measure, and return a row for each number of queries, load and share of hits."""
    rows = []
    for load in told.loads:
        table, keys = filled(load, told.device)
        plain = {key: row for row, key in enumerate(map(tuple, keys.tolist()))}
        ordered = keys[:, 0].sort().values
        look = torch.compile(table.get, dynamic=False)
        for count in told.queries:
            for share in told.hits:
                asked = queries(keys, count, share)
                everybody = torch.ones(count, dtype=torch.bool, device=told.device)
                halves = asked[:, 0].contiguous()
                few = list(map(tuple, asked[:DICT_ROWS].tolist()))
                programs: dict[str, tuple[Callable[[], object], int]] = {
                    "eager": (lambda t=table, a=asked, e=everybody: t.get(a, e), count),
                    "compile": (lambda f=look, a=asked, e=everybody: f(a, e), count),
                    "searchsorted": (lambda o=ordered, a=halves: torch.searchsorted(o, a), count),
                    "dict": (lambda p=plain, f=few: [p.get(key) for key in f], len(few)),
                }
                row: dict[str, Any] = {
                    "queries": count,
                    "load": load,
                    "hits": share,
                    "runs": {name: [] for name in programs},
                }
                for _ in range(told.repeats):
                    for name, (go, size) in programs.items():
                        row["runs"][name].append(rate(go, size, told.seconds, told.device))
                row["runs"]["fbgemm"] = fbgemm_rate(len(keys), count, share, told)
                row["found"] = round(table.get(asked, everybody).given.float().mean().item(), 4)
                row["per_second"] = {name: median(runs) for name, runs in row["runs"].items() if runs}
                rows.append(row)
    for row in rows:
        if row["hits"] == told.hits[0]:
            row["inserts_per_second"] = insert_rate(row["queries"], row["load"], told)
    return rows


def fbgemm_rate(entries: int, count: int, share: float, told: Table) -> list[float]:
    """Return FBGEMM's look-ups a second in one long turn, or nothing where it is not installed."""
    if not told.peers.exists():
        return []
    what = [entries, CAPACITY, count, share, told.seconds * told.repeats]
    done = subprocess.run(
        [told.peers, "peers.py", "lookups", *map(str, what)], capture_output=True, text=True, check=False
    )
    return [json.loads(done.stdout)] if done.returncode == 0 else []


def filled(load: float, device: str) -> tuple[AdviceTable, Tensor]:
    """Return a table with about that share of its entries in use, and the keys that are in it."""
    table = AdviceTable(ACTIONS, math.inf, CAPACITY, device=device)
    chance = torch.Generator().manual_seed(1)
    wanted = int(load * CAPACITY)
    for _ in range(200):  # a full bucket forgets, so that filling goes on after so many keys have been put
        missing = wanted - int(float(table.load()) * CAPACITY)
        if missing <= 0:
            break
        put(table, torch.randint(1 << 62, (missing, 2), generator=chance).to(device))
    return table, table.keys[: table.capacity][table.tags[: table.capacity] != 0]


def put(table: AdviceTable, keys: Tensor) -> None:
    """Insert keys with some advice."""
    rows = len(keys)
    probs = torch.full((rows, ACTIONS), 1 / ACTIONS, device=keys.device)
    given = torch.ones(rows, dtype=torch.bool, device=keys.device)
    table.put(keys, Advice(probs, given, given.float()))


def queries(keys: Tensor, count: int, share: float) -> Tensor:
    """Return keys of which that share is among `keys`, in any order, (count, 2) int64."""
    chance = torch.Generator().manual_seed(2)
    known = keys[torch.randint(len(keys), (count,), generator=chance).to(keys.device)]
    other = torch.randint(1 << 62, (count, 2), generator=chance).to(keys.device)
    is_known = (torch.rand(count, generator=chance) < share).to(keys.device)
    return torch.where(is_known[:, None], known, other)


def insert_rate(count: int, load: float, told: Table) -> float:
    """Return inserts of new keys a second into a table that is filled so far at the beginning."""
    runs = []
    for turn in range(told.repeats):
        table, _ = filled(load, told.device)
        chance = torch.Generator().manual_seed(3 + turn)
        batches = [torch.randint(1 << 62, (count, 2), generator=chance).to(told.device) for _ in range(3)]
        put(table, batches[0])
        wait(told.device)
        began = time.perf_counter()
        for batch in batches[1:]:
            put(table, batch)
        wait(told.device)
        runs.append(2 * count / (time.perf_counter() - began))
    return median(runs)


def rate(go: Callable[[], object], size: int, seconds: float, device: str) -> float:
    """Return `size` times calls of `go` a second, over at least so many seconds after two calls."""
    go()
    go()
    wait(device)
    calls, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        go()
        calls += 1
        if calls % 8 == 0:
            wait(device)
    wait(device)
    spent = time.perf_counter() - began
    return calls * size / spent


def wait(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def show_lookups(rows: list[dict[str, Any]]) -> Grid:
    """Return the table: million look-ups a second, a line for each number of queries, load and share of hits."""
    grid = Grid(title="the advice table, millions a second")
    programs = ("eager", "compile", "searchsorted", "fbgemm", "dict")
    for name in ("queries", "load", "hits", "found", *programs, "inserts, eager"):
        grid.add_column(name, justify="right")
    for row in rows:
        rates = [f"{row['per_second'][name] / 1e6:.3g}" if name in row["per_second"] else "-" for name in programs]
        inserts = f"{row['inserts_per_second'] / 1e6:.3g}" if "inserts_per_second" in row else ""
        grid.add_row(f"{row['queries']:,}", f"{row['load']}", f"{row['hits']}", f"{row['found']:.2f}", *rates, inserts)
    return grid
