"""The advice table against a plain dictionary: it may forget, but it never lies.

Every answer that a test puts has a serial number for its probabilities, so what comes back names the put
it came from. Hypothesis drives three machines: one whose table is far too small (only lies are errors),
one whose table is large (must equal the dictionary), one that asks singly (must equal a least recently
used cache made of Python's ordered dictionaries).
"""

import copy
import math
from collections import Counter, OrderedDict, defaultdict

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from torch import Tensor

from envs.rng import GOLDEN
from tutors.advice_table import TAG_BITS, WAYS, AdviceTable, hash_keys, rank_in_group, sort_four
from tutors.base import Advice

BUDGETS = [0, 1, 3, math.inf]
MACHINE = settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    stateful_step_count=30,
    phases=[Phase.generate],  # shrinking a failure takes minutes
)
SERIALS = torch.tensor([1.0, 0.5, 0.25])  # an answer's probabilities are multiples of its serial number


def twin(key: int, half: int) -> tuple[int, int]:
    """Another key with the very hash, and so the address, of (key, 0): only the keys themselves tell them apart."""
    return (torch.tensor(key) - torch.tensor(half) * GOLDEN).item(), half


def as_keys(pairs: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)


def answers(serials: list[int], given: list[bool] | None = None) -> Advice:
    number = torch.tensor(serials, dtype=torch.float32)
    flags = [True] * len(serials) if given is None else given
    return Advice(number[:, None] * SERIALS, torch.tensor(flags, dtype=torch.bool), number / 1024)


def serials_of(advice: Advice) -> list[int | None]:
    """The serial number that each row was given; rows without advice must be all zeros."""
    expected = answers(advice.probs[:, 0].long().tolist())
    torch.testing.assert_close(advice.probs, expected.probs, rtol=0, atol=0)
    torch.testing.assert_close(advice.label_mass, expected.label_mass, rtol=0, atol=0)
    assert (advice.probs[~advice.valid] == 0).all(), "no advice means zeros"
    rows = zip(advice.probs[:, 0].long().tolist(), advice.valid.tolist(), strict=True)
    return [serial if given else None for serial, given in rows]


def get(table: AdviceTable, pairs: list[tuple[int, int]], wanted: list[bool] | None = None) -> list[int | None]:
    flags = [True] * len(pairs) if wanted is None else wanted
    return serials_of(table.get(as_keys(pairs), torch.tensor(flags, dtype=torch.bool)))


def put(table: AdviceTable, pairs: list[tuple[int, int]], serials: list[int], given=None) -> None:
    table.put(as_keys(pairs), answers(serials, given))


def bucket_of(table: AdviceTable, pair: tuple[int, int]) -> int:
    return address_of(table, pair) >> TAG_BITS


def address_of(table: AdviceTable, pair: tuple[int, int]) -> int:
    return table._address(as_keys([pair])).item()


def entries(table: AdviceTable) -> list[tuple[int, int]]:
    """All keys that lie in the table, the bucket for writes that must not happen left out."""
    used = table.tags[: table.dummy_row] != 0
    return [(key, check) for key, check in table.keys[: table.dummy_row][used].tolist()]


def neighbours(table: AdviceTable, count: int) -> list[tuple[int, int]]:
    """The first `count` exact keys that share one bucket."""
    groups = defaultdict(list)
    for number in range(10_000):
        group = groups[bucket_of(table, (number, 0))]
        group.append((number, 0))
        if len(group) == count:
            return group
    raise AssertionError("no bucket has so many keys")


POOL = (
    [(number, 0) for number in range(6)]  # exact keys
    + [(number, 11) for number in range(3)]  # the same first halves, other checks
    + [twin(number, half) for number in range(3) for half in (5, -7)]  # the same hashes
    + [(1 << 48, 0), (-(2**63), -1), (2**63 - 1, -(2**63))]
)
KEYS = st.sampled_from(POOL)
BATCH = st.lists(st.tuples(KEYS, st.booleans()), max_size=12)


class CrowdedTable(RuleBasedStateMachine):
    """A table with room for eight of eighteen keys: what it gives must be true, and no more than allowed."""

    capacity = 8

    @initialize(budget=st.sampled_from(BUDGETS))
    def begin(self, budget: float) -> None:
        self.budget = budget
        self.table = AdviceTable(3, budget, self.capacity)
        self.latest: dict[tuple[int, int], set[int]] = {}  # more than one until it is seen which was kept
        self.left: dict[tuple[int, int], float] = {}
        self.serial = 0

    @rule(batch=BATCH)
    def put(self, batch: list[tuple[tuple[int, int], bool]]) -> None:
        pairs, given = [pair for pair, _ in batch], [flag for _, flag in batch]
        serials = list(range(self.serial + 1, self.serial + 1 + len(batch)))
        self.serial += len(batch)
        put(self.table, pairs, serials, given)
        said = defaultdict(set)
        for pair, serial, flag in zip(pairs, serials, given, strict=True):
            if flag:
                said[pair].add(serial)
        self.latest |= said
        self.left |= dict.fromkeys(said, self.budget)
        present = entries(self.table)
        assert len(present) == len(set(present)), "a key has one entry"
        assert self.table.load().item() == len(present) / self.table.dummy_row

    @rule(batch=BATCH)
    def get(self, batch: list[tuple[tuple[int, int], bool]]) -> None:
        pairs, wanted = [pair for pair, _ in batch], [flag for _, flag in batch]
        gotten = get(self.table, pairs, wanted)
        served = defaultdict(list)
        for pair, serial, flag in zip(pairs, gotten, wanted, strict=True):
            if not flag:
                assert serial is None, "it was not wanted"
                continue
            served[pair].append(serial is not None)
            if serial is not None:
                assert serial in self.latest[pair], "the table lies"
                self.latest[pair] = {serial}
        for pair, flags in served.items():
            uses = sum(flags)
            assert flags == [True] * uses + [False] * (len(flags) - uses), "the first rows are served"
            assert uses in (0, min(len(flags), self.left.get(pair, 0))), "all that is left, or forgotten"
            if uses:
                self.left[pair] -= uses


class LargeTable(CrowdedTable):
    """A table with room for all: it must equal the dictionary, but for keys of one address, of which one is there."""

    capacity = 1 << 8

    @initialize(budget=st.sampled_from(BUDGETS))
    def begin(self, budget: float) -> None:
        super().begin(budget)
        self.holder: dict[int, tuple[int, int]] = {}
        addresses = {address_of(self.table, pair) for pair in POOL}
        assert max(Counter(address >> TAG_BITS for address in addresses).values()) <= WAYS

    @rule(batch=BATCH)
    def put(self, batch: list[tuple[tuple[int, int], bool]]) -> None:
        super().put(batch)
        if self.budget > 0:  # the first of the batch is kept
            self.holder |= {address_of(self.table, pair): pair for pair, flag in reversed(batch) if flag}
        assert set(entries(self.table)) == set(self.holder.values())

    @rule(batch=BATCH)
    def get(self, batch: list[tuple[tuple[int, int], bool]]) -> None:
        left = dict(self.left)
        expected = []
        for pair, flag in batch:
            holds = self.holder.get(address_of(self.table, pair)) == pair
            expected.append(flag and holds and left[pair] > 0)
            left[pair] = left.get(pair, 0) - expected[-1]
        gotten = get(copy.deepcopy(self.table), [pair for pair, _ in batch], [flag for _, flag in batch])
        assert [serial is not None for serial in gotten] == expected
        super().get(batch)


class SingleFile(RuleBasedStateMachine):
    """One key at a time on a crowded table: an ordered dictionary for each bucket, oldest use first."""

    @initialize(budget=st.sampled_from(BUDGETS[1:]))
    def begin(self, budget: float) -> None:
        self.budget = budget
        self.table = AdviceTable(3, budget, capacity=8)
        self.buckets: dict[int, OrderedDict] = defaultdict(OrderedDict)
        self.serial = 0

    @rule(pair=KEYS)
    def put(self, pair: tuple[int, int]) -> None:
        self.serial += 1
        put(self.table, [pair], [self.serial])
        bucket = self.buckets[bucket_of(self.table, pair)]
        for other in [other for other in bucket if address_of(self.table, other) == address_of(self.table, pair)]:
            del bucket[other]
        bucket[pair] = [self.serial, self.budget]
        if len(bucket) > WAYS:
            bucket.popitem(last=False)
        assert set(entries(self.table)) == {pair for bucket in self.buckets.values() for pair in bucket}

    @rule(pair=KEYS, wanted=st.sampled_from([True, True, True, False]))
    def get(self, pair: tuple[int, int], wanted: bool) -> None:
        bucket = self.buckets[bucket_of(self.table, pair)]
        serial, left = bucket.get(pair, (None, 0))
        given = wanted and left > 0
        assert get(self.table, [pair], [wanted]) == [serial if given else None]
        if given:
            bucket[pair][1] -= 1
            bucket.move_to_end(pair)


def run_machine(machine: type[RuleBasedStateMachine]) -> None:
    case = machine.TestCase()
    case.settings = MACHINE
    case.runTest()


def test_a_crowded_table_may_forget_but_never_lies() -> None:
    run_machine(CrowdedTable)


def test_a_table_with_room_for_all_equals_a_dictionary() -> None:
    run_machine(LargeTable)


def test_a_crowded_table_asked_singly_equals_a_least_recently_used_cache() -> None:
    run_machine(SingleFile)


def test_many_keys_in_few_batches_equal_a_dictionary() -> None:
    table = AdviceTable(3, math.inf)
    pairs = [(number, 0) for number in range(3000)] + [(number, 1) for number in range(3000)]
    pairs += [(number, -1 - number) for number in range(2000)]
    put(table, pairs, list(range(1, 8001)))
    put(table, pairs[:1000], list(range(9001, 10_001)))
    expected: list[int | None] = list(range(9001, 10_001)) + list(range(1001, 8001))
    assert get(table, pairs) == expected
    assert get(table, [(number, 0) for number in range(5000, 6000)]) == [None] * 1000
    assert table.load().item() == 8000 / table.dummy_row


def test_twins_have_one_hash() -> None:
    for half in (5, -7, 2**62):
        assert hash_keys(as_keys([(3, 0)])).equal(hash_keys(as_keys([twin(3, half)])))


def test_of_keys_of_one_address_in_one_batch_the_first_is_kept_and_nobody_else_gets_its_answer() -> None:
    table = AdviceTable(3, math.inf, capacity=64)
    trio = [(3, 0), twin(3, 5), twin(3, -7)]
    put(table, trio, [1, 2, 3])
    assert get(table, [*trio, twin(3, 6)]) == [1, None, None, None]
    put(table, trio, [4, 5, 6], [False, True, True])
    assert get(table, [*trio, twin(3, 6)]) == [None, 5, None, None]


@pytest.mark.parametrize("other", [(3, 8), (4, 9), (9, 3)])
@pytest.mark.parametrize("tags", [True, False], ids=["other tags", "one tag"])
def test_keys_of_one_bucket_are_told_apart_by_tag_and_key(other: tuple[int, int], tags: bool) -> None:
    table = AdviceTable(3, math.inf, capacity=8)
    table._address = lambda keys: hash_keys(keys) & (1 << TAG_BITS) - 1 if tags else torch.full_like(keys[:, 0], 77)
    mine = (3, 9)
    put(table, [mine], [1])
    assert get(table, [other]) == [None]
    put(table, [other], [2])
    assert get(table, [mine, other]) == [1 if tags else None, 2]


def test_each_tag_is_found_in_each_way_beside_its_neighbours() -> None:
    """A tag and those that differ from it by one, which a borrow from the lane below could mix up."""
    table = AdviceTable(3, math.inf, capacity=8)
    table._address = lambda keys: keys[:, 0]
    for first in (0, 1, 254, 255, 256, 4095, (1 << TAG_BITS) - 4):
        for shift in range(WAYS):
            tags = [(first + (lane + shift) % WAYS, first) for lane in range(WAYS)]
            put(table, tags, [1, 2, 3, 4])
            assert get(table, tags) == [1, 2, 3, 4]
            others = [(tag, first) for tag in range(1 << TAG_BITS) if not first <= tag < first + WAYS]
            _, found = table._find(as_keys(others)[:, 0])
            assert not found.any()


@pytest.mark.compile
def test_a_compiled_table_finds_what_an_eager_one_does() -> None:
    """A C++ compiler may take it that no sum or product of signed numbers overflows."""
    table = AdviceTable(3, math.inf, capacity=1 << 16)
    pairs = [(number * number, number % 3) for number in range(40_000)]
    put(table, pairs, list(range(1, 40_001)))
    asked, everybody = as_keys(pairs + [(-number, 1) for number in range(1, 1000)]), torch.ones(40_999).bool()
    eager = table.get(asked, everybody)
    assert 30_000 < eager.valid.sum() < 40_000
    for rows in (40_999, 64):
        compiled = torch.compile(table.get, dynamic=False)(asked[:rows], everybody[:rows])
        assert all(one.equal(other[:rows]) for one, other in zip(compiled, eager, strict=True))


def test_a_key_of_zeros_is_not_an_empty_way() -> None:
    table = AdviceTable(3, math.inf, capacity=64)
    assert get(table, [(0, 0), (0, -1), (-1, 0)]) == [None] * 3
    put(table, [(0, 0)], [1])
    assert get(table, [(0, 0), (0, -1), (-1, 0)]) == [1, None, None]


@pytest.mark.parametrize(("budget", "uses"), [(0, 0), (1, 1), (3, 3), (math.inf, 50)])
def test_an_answer_is_used_again_as_often_as_the_budget_says(budget: float, uses: int) -> None:
    table = AdviceTable(3, budget, capacity=64)
    put(table, [(7, 0)], [1])
    assert [get(table, [(7, 0)]) for _ in range(50)] == [[1]] * uses + [[None]] * (50 - uses)


def test_where_three_uses_are_left_the_first_three_rows_get_them() -> None:
    table = AdviceTable(3, 3, capacity=64)
    put(table, [(7, 0), (8, 0)], [1, 2])
    rows = [(7, 0), (8, 0), (7, 0), (9, 0), (7, 0), (7, 0), (8, 0), (7, 0)]
    assert get(table, rows) == [1, 2, 1, None, 1, None, 2, None]
    assert get(table, rows) == [None, 2, None, None, None, None, None, None]


def test_only_rows_that_want_advice_use_it_up() -> None:
    table = AdviceTable(3, 3, capacity=64)
    put(table, [(7, 0)], [1])
    assert get(table, [(7, 0)] * 4, [False, True, False, True]) == [None, 1, None, 1]
    assert get(table, [(7, 0)] * 4, [False] * 4) == [None] * 4
    assert get(table, [(7, 0)] * 2) == [1, None]


def test_a_second_put_renews_the_answer_and_its_budget() -> None:
    table = AdviceTable(3, 3, capacity=64)
    put(table, [(7, 0)], [1])
    assert get(table, [(7, 0)] * 2) == [1, 1]
    put(table, [(7, 0)], [2])
    assert get(table, [(7, 0)] * 4) == [2, 2, 2, None]
    put(table, [(7, 0)], [3])
    assert get(table, [(7, 0)] * 4) == [3, 3, 3, None]


def test_a_silent_put_changes_nothing() -> None:
    table = AdviceTable(3, 3, capacity=64)
    put(table, [(7, 0)], [1])
    assert get(table, [(7, 0)]) == [1]
    put(table, [(7, 0), (8, 0)], [2, 3], [False, False])
    assert get(table, [(7, 0)] * 3 + [(8, 0)]) == [1, 1, None, None]
    assert entries(table) == [(7, 0)]


def test_silent_rows_push_nothing_out_of_a_full_table() -> None:
    table = AdviceTable(3, 3, capacity=8)
    put(table, [(number, 0) for number in range(60)], list(range(1, 61)))
    assert table.load().item() == 1
    names = ("tags", "keys", "answers", "left", "last_use")
    before = [getattr(table, name)[: table.dummy_row].clone() for name in names]
    put(table, [(number, 0) for number in range(40, 90)], list(range(101, 151)), [False] * 50)
    assert all(getattr(table, name)[: table.dummy_row].equal(old) for name, old in zip(names, before, strict=True))


@pytest.mark.parametrize("given", [[True] * 5, [False, True, True, False, True], [True, False, True, False, True]])
def test_equal_keys_of_one_batch_make_one_entry(given: list[bool]) -> None:
    table = AdviceTable(3, math.inf, capacity=64)
    put(table, [(7, 0)] * 5, [1, 2, 3, 4, 5], given)
    assert entries(table) == [(7, 0)]
    kept = get(table, [(7, 0)])[0]
    assert kept is not None
    assert given[kept - 1], "the answer of a row without advice was kept"


def test_equal_keys_between_keys_of_the_same_hash_make_one_entry() -> None:
    table = AdviceTable(3, math.inf, capacity=64)
    put(table, [(3, 0), twin(3, 5), (3, 0), twin(3, 5)], [1, 2, 3, 4])
    assert entries(table) == [(3, 0)]


def test_a_silent_row_before_its_equal_does_not_hide_it() -> None:
    table = AdviceTable(3, math.inf, capacity=1 << 10)
    for first in range(20):  # whatever the order in which equal keys are sorted
        put(table, [(first, 0)] * 4, [1, 2, 3, 4], [False, False, False, True])
    assert get(table, [(first, 0) for first in range(20)]) == [4] * 20


def test_a_full_bucket_lets_go_of_the_way_used_longest_ago() -> None:
    table = AdviceTable(3, math.inf, capacity=64)
    a, b, c, d, e, f, g = neighbours(table, 7)
    for serial, pair in enumerate([a, b, c, d], start=1):
        put(table, [pair], [serial])
    assert get(table, [a]) == [1]  # oldest first: b c d a
    put(table, [e], [5])  # c d a e
    assert set(entries(table)) == {c, d, a, e}
    put(table, [c], [6])  # d a e c
    assert get(table, [b, d], [True, False]) == [None, None]  # neither is a use
    put(table, [f, g], [7, 8])  # e c f g
    assert set(entries(table)) == {e, c, f, g}
    assert get(table, [a, b, c, d, e, f, g]) == [None, None, 6, None, 5, 7, 8]


def test_more_new_keys_than_ways_lose_some_and_mix_up_none() -> None:
    table = AdviceTable(3, math.inf, capacity=64)
    crowd = neighbours(table, 11)
    put(table, crowd, list(range(1, 12)))
    gotten = get(table, crowd)
    assert sum(serial is not None for serial in gotten) == 4
    assert all(serial in (None, row) for row, serial in enumerate(gotten, start=1))


def test_no_two_keys_of_one_batch_are_sent_to_one_way() -> None:
    """On a GPU two writes to one way could mix the key of one row with the answer of another."""
    table = AdviceTable(3, math.inf, capacity=64)
    put(table, neighbours(table, 2), [1, 2])
    crowd = as_keys(neighbours(table, 11) + [(number, 1) for number in range(100)])
    slots = table._room(table._address(crowd).sort().values, torch.ones(111, dtype=torch.bool)).tolist()
    taken = [slot for slot in slots if slot != table.dummy_row]
    assert len(taken) == len(set(taken)) <= 64
    assert slots.count(table.dummy_row) >= 111 - 64


def test_a_known_key_of_the_batch_is_not_pushed_out_by_a_new_one() -> None:
    table = AdviceTable(3, 3, capacity=64)
    crowd = neighbours(table, 10)
    put(table, crowd[:4], [1, 2, 3, 4])
    put(table, crowd[1:], list(range(12, 21)))  # three are known, six new, one way is left
    gotten = get(table, crowd)
    assert gotten[:4] == [None, 12, 13, 14]
    assert sum(serial is not None for serial in gotten[4:]) == 1
    assert all(serial in (None, row) for row, serial in enumerate(gotten[4:], start=15))


def test_what_was_dropped_is_never_found() -> None:
    table = AdviceTable(3, math.inf, capacity=8)
    for number in range(50):
        put(table, [(key, 0) for key in range(number, number + 10)], list(range(1, 11)))
        assert len(entries(table)) <= 8
    assert len([serial for serial in get(table, [(key, 0) for key in range(60)]) if serial]) == 8


def test_a_table_without_budget_stays_empty() -> None:
    table = AdviceTable(3, 0, capacity=64)
    put(table, [(7, 0), (8, 0)], [1, 2])
    assert entries(table) == []
    assert get(table, [(7, 0), (8, 0)]) == [None, None]
    assert table.load().item() == 0


def test_load_is_the_share_of_entries_in_use() -> None:
    table = AdviceTable(3, math.inf, capacity=64)
    assert table.load().item() == 0
    put(table, [(7, 0), (8, 0), (9, 0)], [1, 2, 3], [True, False, True])
    put(table, [(7, 0)], [4])
    assert table.load().item() == 2 / 64


@pytest.mark.parametrize(("capacity", "rows"), [(64, 64), (65, 128), (1, 8)])
def test_capacity_is_rounded_up_to_a_power_of_two(capacity: int, rows: int) -> None:
    assert AdviceTable(3, 1, capacity).dummy_row == rows


def test_every_entry_of_the_table_can_be_used() -> None:
    table = AdviceTable(3, math.inf, capacity=16)
    put(table, [(number, 0) for number in range(200)], list(range(1, 201)))
    assert table.load().item() == 1


@pytest.mark.parametrize("budget", [-1, 2.5, math.nan, -math.inf])
def test_a_budget_that_is_no_number_of_uses_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        AdviceTable(3, budget)


def test_the_order_of_rows_changes_nothing_where_all_can_be_served() -> None:
    tables = [AdviceTable(3, 3, capacity=32) for _ in range(2)]
    pool = list({address_of(tables[0], pair): pair for pair in POOL}.values())  # of one address one is kept
    generator = torch.Generator().manual_seed(0)
    for serial in range(1, 60):
        pairs = [pool[row] for row in torch.randperm(len(pool), generator=generator)[:8].tolist()]
        put(tables[0], pairs, list(range(serial, serial + 8)))
        put(tables[1], pairs[::-1], list(range(serial, serial + 8))[::-1])
        asked = [pool[row] for row in torch.randperm(len(pool), generator=generator)[:6].tolist()]
        assert get(tables[0], asked) == get(tables[1], asked[::-1])[::-1]


def test_an_empty_batch_is_no_trouble() -> None:
    table = AdviceTable(3, 3, capacity=64)
    put(table, [], [])
    assert get(table, []) == []
    assert table.load().item() == 0


def test_numbers_of_a_silent_row_never_come_out() -> None:
    table = AdviceTable(3, 3, capacity=64)
    broken = Advice(torch.full((1, 3), math.nan), torch.tensor([False]), torch.tensor([math.nan]))
    table.put(as_keys([(7, 0)]), broken)
    assert get(table, [(7, 0), (8, 0)]) == [None, None]


@pytest.mark.parametrize("num_actions", [1, 2, 3, 4, 7, 8])
def test_an_entry_holds_answers_about_any_number_of_actions(num_actions: int) -> None:
    """The key, the label mass and all probabilities of a row are copied as one run of bytes."""
    table, chance = AdviceTable(num_actions, math.inf, capacity=64), torch.Generator().manual_seed(0)
    pairs, everybody = as_keys([(-1, 3), (5, -9), (1 << 62, 2), (8, 8)]), torch.ones(4, dtype=torch.bool)
    given = Advice(torch.rand(4, num_actions, generator=chance), everybody, torch.rand(4, generator=chance))
    table.put(pairs.T.contiguous().T, given)  # keys of any layout
    for one, expected in zip(table.get(pairs.flip(0), everybody), given, strict=True):
        assert one.equal(expected.flip(0))


def test_sort_four_equals_sort() -> None:
    columns = torch.cartesian_prod(*[torch.arange(4)] * 4).T
    assert torch.stack(sort_four(columns)).equal(columns.sort(dim=0).values)


def test_turn_counts_earlier_rows_of_the_same_slot() -> None:
    slots = [4, 2, 4, 4, 0, 2, 9, 4]
    expected = [slots[:row].count(slot) for row, slot in enumerate(slots)]
    assert rank_in_group(torch.tensor(slots)).tolist() == expected


def some_batches(count: int) -> list[tuple[Tensor, Advice, Tensor]]:
    """Keys of which many are in a bucket of the small table, answers, and who wants them."""
    chance = torch.Generator().manual_seed(7)
    batches = []
    for _ in range(count):
        keys = torch.stack([torch.randint(60, (24,), generator=chance), torch.zeros(24, dtype=torch.int64)], 1)
        given, wanted = (torch.rand(24, generator=chance) < 0.8 for _ in range(2))
        batches.append((keys, Advice(torch.rand(24, 3, generator=chance), given, torch.rand(24)), wanted))
    return batches


@pytest.mark.parametrize("budget", [1, 3, math.inf])
def test_a_table_that_is_saved_and_loaded_goes_on_as_it_was(budget: float) -> None:
    """Also into one that is not empty; reuses that are left, and whose turn it is to go, are part of it."""
    table, other = (AdviceTable(3, budget, capacity=32) for _ in range(2))
    for keys, advice, wanted in some_batches(20):
        table.put(keys, advice)
        table.get(keys.flip(0), wanted)
        other.put(keys + 7, advice)
    state = table.state_dict()
    assert len(state["slots"]) == 32
    other.load_state_dict(state)
    for keys, advice, wanted in some_batches(40)[20:]:
        for one, same in zip(table.get(keys, wanted), other.get(keys, wanted), strict=True):
            assert one.equal(same)
        table.put(keys, advice)
        other.put(keys, advice)
    assert other.now.equal(table.now)
    assert len(state["slots"]) == len(state["answers"]) == 32, "a state is a copy"


def test_what_was_there_before_a_table_is_loaded_takes_no_room_afterwards() -> None:
    """One bucket's worth of keys, of which the other table knows others, used later than any of these."""
    table, other = (AdviceTable(3, math.inf, capacity=8) for _ in range(2))
    for keys, advice, wanted in some_batches(20):
        other.put(keys, advice)
        other.get(keys, wanted)
    keys, advice, _ = some_batches(1)[0]
    given = advice._replace(valid=torch.ones_like(advice.valid))
    table.put(keys[:1], Advice(*(part[:1] for part in given)))
    other.load_state_dict(table.state_dict())
    assert float(other.load()) == 1 / 8
    for row in range(1, 24):
        for one in (table, other):
            one.put(keys[row : row + 1], Advice(*(part[row : row + 1] for part in given)))
    everybody = torch.ones(24, dtype=torch.bool)
    assert other.get(keys, everybody).valid.equal(table.get(keys, everybody).valid)
    other.clear()
    assert not other.get(keys, everybody).valid.any()


@pytest.mark.parametrize(("before", "now", "served"), [(math.inf, 3, 3), (5, 2, 2), (2, 5, 2), (2, math.inf, 50)])
def test_a_table_of_another_budget_keeps_to_its_own(before: float, now: float, served: int) -> None:
    table, other = AdviceTable(3, before, capacity=32), AdviceTable(3, now, capacity=32)
    key, everybody = torch.tensor([[7, 0]]), torch.ones(1, dtype=torch.bool)
    table.put(key, Advice(torch.full((1, 3), 1 / 3), everybody, everybody.float()))
    other.load_state_dict(table.state_dict())
    assert sum(int(other.get(key, everybody).valid) for _ in range(50)) == served


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("budget", [1, 3, math.inf])
def test_a_table_on_a_gpu_says_the_same(budget: float) -> None:
    here, there = (AdviceTable(3, budget, capacity=32, device=device) for device in ("cpu", "cuda"))
    for keys, advice, wanted in some_batches(60):
        here.put(keys, advice)
        there.put(keys.cuda(), advice.to("cuda"))
        for one, other in zip(here.get(keys, wanted), there.get(keys.cuda(), wanted.cuda()), strict=True):
            assert one.equal(other.cpu())


@pytest.mark.parametrize("budget", [3, math.inf])
def test_advice_that_comes_in_another_order_serves_the_same(budget: float) -> None:
    """A batch in any order, or in two parts, into a table with room for all: what is given afterwards is the same."""
    whole, shuffled, parts = (AdviceTable(3, budget, capacity=1 << 10) for _ in range(3))
    for keys, advice, wanted in some_batches(20):
        first = torch.tensor([row for row, key in enumerate(keys.tolist()) if key not in keys[:row].tolist()])
        keys, advice = keys[first], Advice(*(tensor[first] for tensor in advice))  # an advisor asks about each once
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(len(first)))
        whole.put(keys, advice)
        shuffled.put(keys[order], Advice(*(tensor[order] for tensor in advice)))
        for rows in (order[: len(order) // 2], order[len(order) // 2 :]):
            parts.put(keys[rows], Advice(*(tensor[rows] for tensor in advice)))
        for table in (shuffled, parts):
            for one, other in zip(
                copy.deepcopy(whole).get(keys, wanted[first]), table.get(keys, wanted[first]), strict=True
            ):
                assert one.equal(other)
        whole.get(keys, wanted[first])
