"""The advice-reuse table: what a tutor has said, on the device, found by a position's key.

A table is `ways` columns of `buckets` rows. A key belongs to one bucket and may lie in any of its ways.
One row more than that, the last, is where writes go that must not happen: shapes stay fixed and nothing
asks the device how many there are.
"""

import math

import torch
from torch import Tensor

from envs.luck import mix, shift_right
from tutors.base import Advice

NO_KEY = -1  # in both halves of an empty way's key: no exact key is negative, and two hashes hardly ever are both -1
ENDLESS = 1 << 30


class AdviceTable:
    """A set-associative cache from keys to advice, on the device.

    Looking up costs one gather of keys and no synchronisation. The table may forget: a new entry in a
    full bucket replaces the way used longest ago, and where one batch brings more new keys for a bucket
    than it has ways the rest are dropped. It never answers with another key's advice.

    Args:
        num_actions: A.
        budget: how often each answer is used again: 0 switches the table off, math.inf never asks twice.
        capacity: entries, rounded up to a power of two.
        ways: entries a bucket, a power of two.
    """

    def __init__(
        self,
        num_actions: int,
        budget: float,
        capacity: int = 1 << 20,
        ways: int = 8,
        device: str | torch.device = "cpu",
    ) -> None:
        if not (budget == math.inf or (budget >= 0 and budget == int(budget))):
            raise ValueError(f"a reuse budget is 0, a whole number or inf, not {budget}")
        self.budget = ENDLESS if budget == math.inf else int(budget)
        self.ways = ways
        self.bits = max(1, math.ceil(math.log2(max(capacity, 2 * ways) / ways)))
        self.trash = self.capacity = ways << self.bits
        rows = self.trash + 1
        self.keys = torch.full((rows, 2), NO_KEY, dtype=torch.int64, device=device)
        self.probs = torch.zeros(rows, num_actions, device=device)
        self.label_mass = torch.zeros(rows, device=device)
        self.left = torch.zeros(rows, dtype=torch.int64, device=device)
        self.last_use = torch.zeros(rows, dtype=torch.int64, device=device)
        self.now = torch.zeros((), dtype=torch.int64, device=device)

    def get(self, keys: Tensor, wanted: Tensor) -> Advice:
        """Return the advice for `keys` (B, 2) where it is wanted (B,), known, and not used up.

        Every row that is given advice uses up one reuse. Where fewer reuses are left than rows want one
        entry, the first rows get them.
        """
        slot, found = self._find(keys)
        given = found & wanted
        if self.budget < ENDLESS:
            given &= turn(torch.where(given, slot, self.trash)) < self.left[slot]
            self.left.index_add_(0, slot, -given.long())
        self.now += 1
        self.last_use[torch.where(given, slot, self.trash)] = self.now
        probs = torch.where(given[:, None], self.probs[slot], 0.0)
        return Advice(probs, given, torch.where(given, self.label_mass[slot], 0.0))

    def put(self, keys: Tensor, advice: Advice) -> None:
        """Keep the advice that is given for `keys` (B, 2), each with a full reuse budget.

        Of equal keys in one batch one is kept.
        """
        if self.budget == 0:
            return
        keys = torch.where(advice.given[:, None], keys, NO_KEY)
        order, hashes, first = side_by_side(keys)
        keys, advice = keys[order], Advice(*(tensor[order] for tensor in advice))
        keep = advice.given & first
        slot, found = self._find(keys)
        self.now += 1
        self.last_use[torch.where(found & keep, slot, self.trash)] = self.now
        slot = torch.where(found, slot, self._room(hashes, keep & ~found))
        slot = torch.where(keep, slot, self.trash)
        self.keys[slot] = keys
        self.probs[slot] = advice.probs
        self.label_mass[slot] = advice.label_mass
        self.left[slot] = self.budget
        self.last_use[slot] = self.now

    def load(self) -> Tensor:
        """Return the share of entries in use, a 0-d tensor."""
        return (self.keys[: self.trash] != NO_KEY).any(1).float().mean()

    def _find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return (slot, found), both (B,); the slot of a key that is not there means nothing."""
        slots = self._bucket(scramble(keys))
        match = (self.keys[slots] == keys[:, None]).all(2)
        return slots.gather(1, match.long().argmax(1, keepdim=True))[:, 0], match.any(1)

    def _bucket(self, hashes: Tensor) -> Tensor:
        """Return the slots of each hash's bucket, (B, ways): the hash's first bits name the bucket."""
        bucket = shift_right(hashes, 64 - self.bits)
        return bucket[:, None] * self.ways + torch.arange(self.ways, device=hashes.device)

    def _room(self, hashes: Tensor, new: Tensor) -> Tensor:
        """Return a slot for each new key: of two in one bucket the second gets the second oldest way.

        Hashes are sorted, so the keys of a bucket stand together. Ways used in this very step are taken.
        """
        bucket = shift_right(hashes, 64 - self.bits)
        before = new.cumsum(0) - new.long()
        starts = torch.ones_like(new)
        starts[1:] = bucket[1:] != bucket[:-1]
        rank = before - torch.where(starts, before, 0).cummax(0).values
        slots = self._bucket(hashes)
        oldest = self.last_use[slots].argsort(dim=1, stable=True)
        way = oldest.gather(1, rank.clamp(max=self.ways - 1)[:, None])
        slot = slots.gather(1, way)[:, 0]
        return torch.where((rank < self.ways) & (self.last_use[slot] < self.now), slot, self.trash)


def scramble(keys: Tensor) -> Tensor:
    """Return one well-mixed hash of each key, (B,) int64."""
    return mix(keys[:, 0] ^ mix(keys[:, 1]))


def side_by_side(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an order of keys (B, 2) by hash, the ordered hashes, and where in it another key begins; all (B,).

    Equal keys stand together, and each begins with the first of the batch.
    """
    order = keys[:, 1].argsort(stable=True)  # so that equal keys stand together among those of one hash
    hashes, by_hash = scramble(keys[order]).sort(stable=True)
    order = order[by_hash]
    ordered = keys[order]
    begins = torch.ones_like(order, dtype=torch.bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(1)
    return order, hashes, begins


def first_alike(keys: Tensor) -> Tensor:
    """Return the first row that has the same key, for each of (B, 2): (B,) int64."""
    order, _, begins = side_by_side(keys)
    start = torch.where(begins, torch.arange(len(order), device=order.device), 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, order[start])


def turn(slot: Tensor) -> Tensor:
    """Return how many earlier rows name the same slot, (B,) int64."""
    ordered, order = slot.sort(stable=True)
    place = torch.arange(len(slot), device=slot.device)
    rank = place - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rank).scatter_(0, order, rank)
