"""The advice table: a cache of advice on the device, by the keys of positions.

A table has `buckets` rows of WAYS ways. A key's hash gives its address: the bucket that it belongs to, and a tag of 13
bits under which it is in one of the bucket's ways. No two ways of a bucket have the same tag, so a lookup reads
all tags of a bucket at once, which are one int64, and then one key, of the way with that tag, and its answer.

There is one bucket more, the last: writes that must not happen and reads of what is not there go to it. Shapes stay
fixed, and nothing is read back.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from envs.rng import GOLDEN, shift_right, splitmix64
from tutors.base import Advice

UNLIMITED = 1 << 30
WAYS, TAG_BITS = 4, 13  # four tags, from 1 to 2**13, in the four lanes of 16 bits of an int64; an empty way has tag 0
EVERY_LANE = 0x0001_0001_0001_0001  # times a number, it is in every lane
LINE = 64  # bytes that a processor fetches at once
UNIT = torch.complex128  # 16 bytes, the most that PyTorch copies as one


class AdviceTable:
    """A set-associative cache from keys to advice, on the device.

    Looking up costs one gather of tags, one of entries, and no synchronisation. The table may forget: a new entry in a
    full bucket replaces the way used longest ago, a new entry of another key with its own address (one pair in two to
    the number of buckets times 2**13) replaces that one, and where one batch brings more new keys for a bucket than it
    has ways the rest are dropped. It never answers with another key's advice.

    Args:
        num_actions: A.
        budget: how often each answer is used again: 0 switches the table off, math.inf never asks twice.
        capacity: entries, rounded up to a power of two.
    """

    def __init__(
        self, num_actions: int, budget: float, capacity: int = 1 << 20, device: str | torch.device = "cpu"
    ) -> None:
        if not (budget == math.inf or (budget >= 0 and budget == int(budget))):
            raise ValueError(f"a reuse budget is 0, a whole number or inf, not {budget}")
        self.budget = UNLIMITED if budget >= UNLIMITED else int(budget)
        self.bits = max(1, math.ceil(math.log2(max(capacity, 2 * WAYS) / WAYS)))
        self.buckets = 1 << self.bits
        self.dummy_row = self.capacity = self.buckets * WAYS
        rows = self.capacity + WAYS
        self.tags = torch.zeros(rows, dtype=torch.int16, device=device)
        self.tags_of_bucket = self.tags.view(torch.int64)
        lines = -(-(16 + 4 * (1 + num_actions)) // LINE)  # of an entry: its key and its answer
        self.entries = torch.zeros(rows, lines * LINE // 8, dtype=torch.int64, device=device)
        self.keys = self.entries[:, :2]
        self.answers = self.entries.view(torch.float32)[:, 4 : 5 + num_actions]  # label mass and distribution
        self.left = torch.zeros(rows, dtype=torch.int64, device=device)
        self.last_use = torch.zeros(rows, dtype=torch.int64, device=device)
        self.now = torch.zeros((), dtype=torch.int64, device=device)

    def get(self, keys: Tensor, wanted: Tensor) -> Advice:
        """Return the advice for `keys` (B, 2) where it is wanted (B,), known, and not used up.

        Every row that gets advice uses up one reuse. Where fewer reuses are left than rows want one
        entry, the first rows get them.
        """
        slot, found = self._find(self._address(keys))
        slot = torch.where(
            found, slot, self.dummy_row
        )  # key and answer are fetched at once: neither waits for the other
        held = self.keys.index_select(0, slot)
        valid = found & (held[:, 0] == keys[:, 0]) & (held[:, 1] == keys[:, 1]) & wanted
        if self.budget < UNLIMITED:
            valid &= rank_in_group(torch.where(valid, slot, self.dummy_row)) < self.left[slot]
            self.left.index_add_(0, slot, -valid.long())
        probs = torch.where(valid[:, None], self.answers[:, 1:].index_select(0, slot), 0)
        label_mass = torch.where(valid, self.answers[:, 0].index_select(0, slot), 0)
        self.now += 1
        self.last_use[torch.where(valid, slot, self.dummy_row)] = self.now
        return Advice(probs, valid, label_mass)

    def put(self, keys: Tensor, advice: Advice) -> None:
        """Keep the valid advice for `keys` (B, 2), each with a full reuse budget.

        Of equal keys in one batch, and of keys with one address, one is kept.
        """
        if self.budget == 0:
            return
        nowhere = self.buckets << TAG_BITS  # an address in the bucket more
        address, order = torch.where(advice.valid, self._address(keys), nowhere).sort(stable=True)
        keep = run_starts(address) & (address < nowhere)
        slot, found = self._find(address)
        self.now += 1
        now = self.now.expand(len(slot))
        self.last_use.scatter_(0, torch.where(found & keep, slot, self.dummy_row), now)
        slot = torch.where(found, slot, self._room(address, keep & ~found))
        slot = torch.where(keep, slot, self.dummy_row)
        self.tags.scatter_(0, slot, tag_of(address).to(torch.int16))
        self.left.scatter_(0, slot, self.budget)
        self.last_use.scatter_(0, slot, now)
        slot = torch.empty_like(slot).scatter_(0, order, slot)  # of the batch's rows, which then need not be sorted
        units = pack(keys, advice)
        self.entries.view(UNIT).scatter_(0, slot[:, None].expand_as(units), units)

    def load(self) -> Tensor:
        """Return the share of entries in use, a 0-d tensor."""
        return (self.tags[: self.capacity] != 0).float().mean()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is in the table, with the reuses that are left. Reads back how much that is."""
        slots = (self.tags[: self.capacity] != 0).nonzero()[:, 0]
        held = {name: getattr(self, name)[slots] for name in ("tags", "keys", "answers", "left", "last_use")}
        return {"slots": slots, "now": self.now.clone(), **held}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` of a table of the same capacity returned, in place of what is there.

        No entry has more reuses left than this table's budget; with an endless one all have no end.
        """
        self.clear()
        self.now.copy_(state["now"])
        for name in ("tags", "keys", "answers", "left", "last_use"):
            getattr(self, name)[state["slots"]] = state[name].to(self.now.device)
        if self.budget == UNLIMITED:
            self.left.fill_(UNLIMITED)
        self.left.clamp_(max=self.budget)

    def clear(self) -> None:
        """Forget everything."""
        self.tags.zero_()
        self.last_use.zero_()

    def _address(self, keys: Tensor) -> Tensor:
        """Return each key's bucket and tag as one number, (B,) int64."""
        return shift_right(hash_keys(keys), 64 - TAG_BITS - self.bits)

    def _find(self, address: Tensor) -> tuple[Tensor, Tensor]:
        """Return (slot, found), both (B,): the way of that tag; where there is none the slot means nothing.

        All lanes are compared at once: two tags differ in some of 14 bits, so of their difference and 2**14 - 1 the sum
        has the bit 2**14 unless they are equal. Nothing overflows; a C++ compiler makes what it likes of what does.
        """
        bucket = address >> TAG_BITS
        differs = self.tags_of_bucket.index_select(0, bucket) ^ tag_of(address) * EVERY_LANE
        fits = ~(differs + EVERY_LANE * 0x3FFF) >> 14 & EVERY_LANE  # 1 << 16 * lane
        lane = (fits > 1).long() + (fits > 1 << 16) + (fits > 1 << 32)
        return bucket * WAYS + lane, fits != 0

    def _room(self, address: Tensor, new: Tensor) -> Tensor:
        """Return a slot for each new key: of two in one bucket the second gets the second oldest way.

        Addresses are sorted, so the keys of a bucket stand together. Ways used in this very step are taken.
        """
        bucket = address >> TAG_BITS
        before = new.cumsum(0) - new.long()
        rank = before - torch.where(run_starts(bucket), before, 0).cummax(0).values
        last_use = self.last_use.view(-1, WAYS).index_select(0, bucket)
        ways = sort_four([last_use[:, way] * WAYS + way for way in range(WAYS)])  # by last use, then by number
        oldest = torch.stack(ways).gather(0, rank.clamp(max=WAYS - 1)[None])[0]
        is_free = (rank < WAYS) & (oldest < self.now * WAYS)
        return torch.where(is_free, bucket * WAYS + (oldest & WAYS - 1), self.dummy_row)


def tag_of(address: Tensor) -> Tensor:
    """Return the tags of addresses, (B,) int64 from 1 to 2**13."""
    return (address & (1 << TAG_BITS) - 1) + 1


def hash_keys(keys: Tensor) -> Tensor:
    """Return one well-mixed hash of each key, (B,) int64."""
    return splitmix64(keys[:, 0] + keys[:, 1] * GOLDEN)


def run_starts(ordered: Tensor) -> Tensor:
    """Return where in (B,) or (B, K) a row differs from the one before it, (B,) bool."""
    new = torch.ones(len(ordered), dtype=torch.bool, device=ordered.device)
    differs = ordered[1:] != ordered[:-1]
    new[1:] = differs if differs.ndim == 1 else differs.any(1)
    return new


def pack(keys: Tensor, advice: Advice) -> Tensor:
    """Return keys and answers as they stand in entries, (B, units) of 16 bytes each."""
    padding = advice.probs.new_zeros(len(keys), -(1 + advice.probs.shape[1]) % 4)
    floats = [keys.contiguous().view(torch.float32), advice.label_mass[:, None], advice.probs, padding]
    return torch.cat(floats, 1).view(UNIT)


def sort_four(columns: Sequence[Tensor]) -> list[Tensor]:
    """Sort four tensors element by element: a network of five comparisons, where `sort` takes rows one by one."""
    a, b, c, d = columns
    a, b, c, d = torch.minimum(a, b), torch.maximum(a, b), torch.minimum(c, d), torch.maximum(c, d)
    a, b, c, d = torch.minimum(a, c), torch.minimum(b, d), torch.maximum(a, c), torch.maximum(b, d)
    return [a, torch.minimum(b, c), torch.maximum(b, c), d]


def first_index_of_equal(keys: Tensor) -> Tensor:
    """Return the first row that has the same key, for each of (B, 2): (B,) int64."""
    order = keys[:, 1].argsort(stable=True)
    order = order[keys[order, 0].argsort(stable=True)]
    start = torch.where(run_starts(keys[order]), torch.arange(len(order), device=order.device), 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, order[start])


def rank_in_group(slot: Tensor) -> Tensor:
    """Return how many earlier rows name the same slot, (B,) int64."""
    ordered, order = slot.sort(stable=True)
    place = torch.arange(len(slot), device=slot.device)
    rank = place - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rank).scatter_(0, order, rank)
