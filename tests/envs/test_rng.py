"""The mixer against Python integers modulo 2**64 and SplitMix64's published outputs, streams against shards of
themselves, numbers against the uniform distribution, and `sample_legal` against equal shares of the legal actions.
"""

import itertools
import random

import pytest
import torch
from torch import Tensor

from envs.rng import (
    ENV_STREAM,
    EXPLORATION_STREAM,
    GOLDEN,
    QUERY_STREAM,
    SAMPLING_STREAM,
    CounterRNG,
    bits_to_uniform,
    column_keys,
    sample_legal,
    shift_right,
    splitmix64,
    splitmix64_of,
)

STREAMS = (ENV_STREAM, EXPLORATION_STREAM, SAMPLING_STREAM, QUERY_STREAM)
MANY = 1 << 16
SPLITMIX64_OF_SEED_0 = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)


def signed(number: int) -> int:
    """Return the int64 with the same 64 bits."""
    return (number & (1 << 64) - 1) - ((number & 1 << 63) << 1)


def mixed_by_integers(number: int) -> int:
    """SplitMix64's finaliser, unsigned and modulo 2**64, as published."""
    z = number % 2**64
    z = (z ^ z // 2**30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z // 2**27) * 0x94D049BB133111EB % 2**64
    return z ^ z // 2**31


def some_integers(count: int) -> list[int]:
    generator = random.Random(1)
    edges = [0, 1, -1, 2**63 - 1, -(2**63), 2**31, -(2**31), 2**32, *(signed(1 << bit) for bit in range(64))]
    return edges + [signed(generator.getrandbits(64)) for _ in range(count)]


def numbers(seed: int = 0, stream: int = ENV_STREAM, num_envs: int = MANY, step: int = 0, columns: int = 1) -> Tensor:
    return CounterRNG(seed, torch.arange(num_envs), stream).uniform(step, columns)


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].item()


def assert_uncorrelated(a: Tensor, b: Tensor) -> None:
    """Independent samples correlate by 0 +- 1 / sqrt(n); 5 of these occur by chance once in 1.7 million."""
    assert (a == b).float().mean() < 0.001  # 2**-24 by chance
    assert abs(correlation(a, b)) < 5 / a.numel() ** 0.5


def test_splitmix64_equals_finaliser_in_python_integers() -> None:
    inputs = some_integers(2000)
    assert splitmix64(torch.tensor(inputs)).tolist() == [signed(mixed_by_integers(x)) for x in inputs]


def test_splitmix64_gives_published_outputs() -> None:
    counters = [signed((k + 1) * 0x9E3779B97F4A7C15) for k in range(4)]
    assert splitmix64(torch.tensor(counters)).tolist() == [signed(x) for x in SPLITMIX64_OF_SEED_0]


def test_uniform_of_no_columns_is_empty() -> None:
    assert CounterRNG(7, torch.arange(9), ENV_STREAM).uniform(torch.tensor(3), 0).shape == (9, 0)


def test_splitmix64_of_one_number_equals_that_of_a_tensor() -> None:
    inputs = some_integers(500)
    assert [splitmix64_of(x) for x in inputs] == splitmix64(torch.tensor(inputs)).tolist()


@pytest.mark.parametrize("step", [0, 1, 12345, 2**31 - 1, 2**62])
def test_column_keys_in_python_equal_those_of_tensors(step: int) -> None:
    step_key = splitmix64(torch.tensor(step) + GOLDEN)
    assert column_keys(step, 5) == splitmix64(step_key + torch.arange(5)).tolist()
    rng = CounterRNG(7, torch.arange(9), ENV_STREAM)
    keys = torch.tensor(column_keys(step, 5))
    assert rng.uniform(torch.tensor(step), 5).equal(bits_to_uniform(splitmix64(rng.base + keys[:, None])).T)


def test_splitmix64_is_one_to_one() -> None:
    near = torch.arange(-(1 << 18), 1 << 18)
    assert len(splitmix64(near).unique()) == len(near)


def test_splitmix64_input_bit_flips_half_of_output_bits() -> None:
    x = torch.tensor(some_integers(4000))
    for bit in range(64):
        moved = splitmix64(x) ^ splitmix64(x ^ signed(1 << bit))
        flips = sum((moved >> at & 1).sum().item() for at in range(64)) / len(x)
        assert 31 < flips < 33, f"input bit {bit}"  # 32 +- 0.06 for ideal mixing


@pytest.mark.parametrize("bits", [1, 27, 30, 31, 40, 63])
def test_shift_right_fills_with_zeros(bits: int) -> None:
    inputs = some_integers(100)
    assert shift_right(torch.tensor(inputs), bits).tolist() == [(x % 2**64) >> bits for x in inputs]


def test_bits_to_uniform_takes_top_24_bits() -> None:
    bits = torch.tensor([0, (1 << 40) - 1, 1 << 40, 1 << 62, -(1 << 63), -1])
    assert bits_to_uniform(bits).tolist() == [0, 0, 2.0**-24, 0.25, 0.5, 1 - 2.0**-24]


def test_uniform_is_float32_below_1_in_multiples_of_2_to_minus_24() -> None:
    u = numbers(num_envs=1000, columns=50)
    assert u.shape == (1000, 50)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    scaled = u.double() * 2**24
    assert (scaled == scaled.round()).all()
    assert (scaled % 2 == 1).any()  # the grid is no coarser


@pytest.mark.parametrize("stream", STREAMS)
def test_uniform_is_independent_of_num_envs_and_sharding(stream: int) -> None:
    whole = CounterRNG(5, torch.arange(64), stream)
    seven = CounterRNG(5, torch.arange(7), stream)
    alone = CounterRNG(5, torch.arange(1), stream)
    shard = CounterRNG(5, torch.arange(3, 7), stream)
    shuffled = CounterRNG(5, torch.tensor([63, 2, 40]), stream)
    for step in range(20):
        expected = whole.uniform(step, 3)
        assert torch.equal(seven.uniform(step, 3), expected[:7])
        assert torch.equal(alone.uniform(step, 3), expected[:1])
        assert torch.equal(shard.uniform(step, 3), expected[3:7])
        assert torch.equal(shuffled.uniform(step, 3), expected[[63, 2, 40]])


def test_uniform_equals_recorded_numbers() -> None:
    """Recorded from this code: other numbers would change the result of every seed of every experiment."""
    drawn = CounterRNG(1, torch.tensor([0, 1000]), SAMPLING_STREAM).uniform(7, 3)
    recorded = torch.tensor([[5992421, 3262349, 9937551], [13421653, 16154458, 5280394]])
    assert torch.equal(drawn, recorded * 2.0**-24)


def test_uniform_of_two_widths_shares_no_numbers_between_steps() -> None:
    rng = CounterRNG(1, torch.arange(50), SAMPLING_STREAM)
    wide = torch.stack([rng.uniform(step, 4) for step in range(1, 5)])
    narrow = torch.stack([rng.uniform(step, 1) for step in range(5, 20)])
    assert not torch.isin(narrow, wide).float().mean() > 0.01


def test_uniform_keeps_no_state() -> None:
    rng = CounterRNG(0, torch.arange(9), ENV_STREAM)
    first = rng.uniform(4, 2)
    rng.uniform(5, 2)
    assert torch.equal(rng.uniform(4, 2), first)


def test_uniform_accepts_step_as_number_or_tensor() -> None:
    rng = CounterRNG(0, torch.arange(9), ENV_STREAM)
    assert torch.equal(rng.uniform(torch.tensor(12), 3), rng.uniform(12, 3))


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(STREAMS, 2)))
def test_streams_of_one_seed_are_uncorrelated(a: int, b: int) -> None:
    assert_uncorrelated(numbers(stream=a), numbers(stream=b))


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2), (0, -1), (3, 3 + 2**32), (0, 2**63 - 1)])
def test_seeds_are_uncorrelated(a: int, b: int) -> None:
    assert_uncorrelated(numbers(seed=a), numbers(seed=b))


def test_seed_and_stream_pairs_are_distinct() -> None:
    distinct = {
        tuple(numbers(seed, stream, num_envs=3)[:, 0].tolist()) for seed in range(-50, 50) for stream in STREAMS
    }
    assert len(distinct) == 100 * len(STREAMS)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2), (0, 100), (7, 1_000_000_007)])
def test_steps_are_uncorrelated(a: int, b: int) -> None:
    assert_uncorrelated(numbers(step=a), numbers(step=b))


def test_columns_of_two_steps_are_uncorrelated() -> None:
    drawn = torch.cat([numbers(step=step, columns=3) for step in range(2)], 1)
    for a, b in itertools.combinations(range(6), 2):
        assert_uncorrelated(drawn[:, a], drawn[:, b])


def test_neighbouring_env_ids_are_uncorrelated() -> None:
    u = numbers(columns=2)
    assert_uncorrelated(u[:-1], u[1:])


def test_neighbouring_env_ids_and_columns_are_uncorrelated() -> None:
    u = numbers(num_envs=1000, columns=100)
    assert_uncorrelated(u[1:, :-1], u[:-1, 1:])
    assert_uncorrelated(u[:-1, :-1], u[1:, 1:])


def one_env_over_many_steps() -> Tensor:
    rng = CounterRNG(0, torch.arange(1), ENV_STREAM)
    return torch.cat([rng.uniform(step, 4) for step in range(MANY // 16)])


SAMPLES = {
    "over env ids": lambda: numbers(),
    "another seed and stream": lambda: numbers(seed=1, stream=EXPLORATION_STREAM),
    "over columns": lambda: numbers(num_envs=1, columns=MANY),
    "over steps": one_env_over_many_steps,
}


@pytest.mark.parametrize("sample", SAMPLES)
def test_uniform_is_uniformly_distributed(sample: str) -> None:
    """Chi-square over 256 equal bins has mean 255 and standard deviation 22.6; mean and variance follow n."""
    u = SAMPLES[sample]().flatten().double()
    n = len(u)
    counts = torch.bincount((u * 256).long(), minlength=256)
    chi_square = ((counts - n / 256) ** 2 / (n / 256)).sum().item()
    assert abs(chi_square - 255) < 5 * 22.6
    assert abs(u.mean().item() - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(u.var().item() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5


def action_masks(width: int) -> list[list[bool]]:
    return [list(row) for row in itertools.product([False, True], repeat=width) if any(row)]


@pytest.mark.parametrize("width", [1, 2, 5, 7])
def test_sample_legal_gives_every_legal_action_its_exact_share(width: int) -> None:
    """On a grid of 420 uniforms, which 1 to 7 divide, the k-th legal action has the k-th equal part."""
    grid = torch.arange(420) / 420 + 1 / 2000
    for row in action_masks(width):
        columns = [column for column in range(width) if row[column]]
        actions = sample_legal(torch.tensor([row]).expand(420, width), grid)
        assert actions.dtype == torch.int64
        assert actions.tolist() == [column for column in columns for _ in range(420 // len(columns))]


@pytest.mark.parametrize("number", [0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
def test_sample_legal_at_extreme_uniforms_is_legal(number: float) -> None:
    rows = action_masks(7)
    actions = sample_legal(torch.tensor(rows), torch.full((len(rows),), number)).tolist()
    assert all(row[column] for row, column in zip(rows, actions, strict=True))


def test_sample_legal_at_largest_uniform_is_last_action() -> None:
    """For 1 to 599 legal actions: row k has the first k + 1 of 599."""
    masks = torch.ones(599, 599, dtype=torch.bool).tril()
    u = torch.full((599,), 1 - 2.0**-24)
    assert sample_legal(masks, u).tolist() == list(range(599))


def test_sample_legal_single_legal_action_is_chosen() -> None:
    u = numbers(num_envs=7000)[:, 0]
    column = torch.arange(7).repeat(1000)
    assert torch.equal(sample_legal(torch.eye(7, dtype=torch.bool)[column], u), column)


def test_sample_legal_returns_0_where_no_action_is_legal() -> None:
    allowed = torch.tensor([[False, False, False], [False, False, True]])
    assert sample_legal(allowed, torch.tensor([0.9, 0.9])).tolist() == [0, 2]


def test_sample_legal_uses_uniform_of_its_row() -> None:
    u = torch.tensor([0.1, 0.4, 0.9])
    assert sample_legal(torch.ones(3, 3, dtype=torch.bool), u).tolist() == [0, 1, 2]
