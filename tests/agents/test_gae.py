"""Advantages against a loop over each row's own episode, and normalization against statistics, in Python floats.

The loop follows the definition and not the recursion: from every row it walks forward, adds up discounted
errors, and stops at the first row that ends an episode. Episodes end at random, in both ways.
"""

import statistics

import pytest
import torch
from torch import Tensor

from agents.gae import gae, normalize

GAMMA = 0.9


def rollout(time_steps: int, num_envs: int = 6, seed: int = 0, ends: float = 0.25) -> dict[str, Tensor]:
    """A rollout in which about a quarter of the rows terminate and as many others are truncated."""
    generator = torch.Generator().manual_seed(seed)
    reward, value, next_value, how = torch.rand(4, time_steps, num_envs, generator=generator).unbind()
    return {
        "rewards": reward * 4 - 2,
        "values": value * 6 - 3,
        "next_values": next_value * 6 - 3,
        "terminations": how < ends,
        "truncations": how > 1 - ends,
    }


def advantage_by_definition(
    columns: dict[str, Tensor], row: int, env_id: int, gamma: float, gae_lambda: float
) -> float:
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}, up to and including the row that ends the episode."""
    column = {name: tensor[:, env_id].tolist() for name, tensor in columns.items()}
    total = 0.0
    for offset, at in enumerate(range(row, len(column["rewards"]))):
        future = 0.0 if column["terminations"][at] else gamma * column["next_values"][at]
        total += (gamma * gae_lambda) ** offset * (column["rewards"][at] + future - column["values"][at])
        if column["terminations"][at] or column["truncations"][at]:
            break
    return total


def advantages_by_definition(columns: dict[str, Tensor], gamma: float, gae_lambda: float) -> Tensor:
    time_steps, num_envs = columns["rewards"].shape
    return torch.tensor(
        [
            [advantage_by_definition(columns, row, env_id, gamma, gae_lambda) for env_id in range(num_envs)]
            for row in range(time_steps)
        ]
    )


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("time_steps", [1, 2, 3, 7, 128])
def test_gae_equals_the_sum_that_defines_it(time_steps: int, gae_lambda: float) -> None:
    for seed, ends in enumerate((0.25, 0.02, 0.0)):
        columns = rollout(time_steps, seed=seed, ends=ends)
        advantages, returns = gae(**columns, gamma=GAMMA, gae_lambda=gae_lambda)
        expected = advantages_by_definition(columns, GAMMA, gae_lambda)
        torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(returns, expected + columns["values"], rtol=1e-5, atol=1e-5)


def test_gae_of_three_rows_worked_out_by_hand() -> None:
    yes, no = torch.tensor([[True]]), torch.tensor([[False]])
    never = torch.cat([no, no, no])
    numbers = {
        "rewards": torch.tensor([[1.0], [2.0], [4.0]]),
        "values": torch.tensor([[10.0], [20.0], [30.0]]),
        "next_values": torch.tensor([[20.0], [30.0], [40.0]]),
    }

    def advantages(terminations: Tensor, truncations: Tensor) -> list[float]:
        flags = {"terminations": terminations, "truncations": truncations}
        return gae(**numbers, **flags, gamma=0.5, gae_lambda=0.5)[0].flatten().tolist()

    # errors of one step: 1 + 10 - 10 = 1, 2 + 15 - 20 = -3, 4 + 20 - 30 = -6; carried on by a quarter
    assert advantages(never, never) == [1 + (-3 - 6 / 4) / 4, -3 - 6 / 4, -6]
    # the second row terminates: its error is 2 - 20, and nothing of the third reaches it
    assert advantages(torch.cat([no, yes, no]), never) == [1 - 18 / 4, -18, -6]
    # the second row is truncated: its error keeps its future, and nothing of the third reaches it
    assert advantages(never, torch.cat([no, yes, no])) == [1 - 3 / 4, -3, -6]


def test_gae_ignores_the_next_value_of_a_termination() -> None:
    columns = rollout(64)
    others = torch.where(columns["terminations"], columns["next_values"] + 1000, columns["next_values"])
    assert not others.equal(columns["next_values"])
    plain = gae(**columns, gamma=GAMMA, gae_lambda=0.95)
    changed = gae(**columns | {"next_values": others}, gamma=GAMMA, gae_lambda=0.95)
    assert changed[0].equal(plain[0])
    assert changed[1].equal(plain[1])


@pytest.mark.parametrize("end", ["terminations", "truncations"])
def test_gae_does_not_flow_back_over_the_end_of_an_episode(end: str) -> None:
    columns = rollout(20, ends=0.0)
    columns[end][9] = True
    changed = {name: tensor.clone() for name, tensor in columns.items()}
    for name in ("rewards", "values", "next_values"):
        changed[name][10:] += 7
    before, after = (gae(**numbers, gamma=GAMMA, gae_lambda=0.95)[0] for numbers in (columns, changed))
    torch.testing.assert_close(after[:10], before[:10])
    assert ((after[10:] - before[10:]).abs() > 0.5).all()


def test_gae_bootstraps_at_a_truncation_and_not_at_a_termination() -> None:
    columns = rollout(20, ends=0.0)
    more = columns | {"next_values": columns["next_values"].index_add(0, torch.tensor([9]), torch.ones(1, 6))}
    for end, gained in (("truncations", GAMMA), ("terminations", 0.0)):
        flag = torch.zeros(20, 6, dtype=torch.bool)
        flag[9] = True
        before, after = (gae(**numbers | {end: flag}, gamma=GAMMA, gae_lambda=0.95)[0] for numbers in (columns, more))
        torch.testing.assert_close(after[9] - before[9], torch.full((6,), gained))


def test_gae_with_lambda_0_is_the_error_of_one_step() -> None:
    columns = rollout(7)
    advantages, _ = gae(**columns, gamma=GAMMA, gae_lambda=0.0)
    future = torch.where(columns["terminations"], 0.0, GAMMA * columns["next_values"])
    torch.testing.assert_close(advantages, columns["rewards"] + future - columns["values"])


def test_gae_with_lambda_1_returns_the_discounted_sum_of_rewards() -> None:
    columns = rollout(128, ends=0.1)
    # such values as an env gives: where an episode goes on, the next value is that of the row below
    on = ~(columns["terminations"] | columns["truncations"])[:-1]
    columns["next_values"][:-1] = torch.where(on, columns["values"][1:], columns["next_values"][:-1])
    _, returns = gae(**columns, gamma=GAMMA, gae_lambda=1.0)
    for env_id in range(6):
        for row in range(128):
            total, factor = 0.0, 1.0
            for at in range(row, 128):
                total += factor * columns["rewards"][at, env_id].item()
                factor *= GAMMA
                if columns["terminations"][at, env_id]:
                    factor = 0.0
                if columns["terminations"][at, env_id] or columns["truncations"][at, env_id]:
                    break
            total += factor * columns["next_values"][at, env_id].item()
            assert returns[row, env_id].item() == pytest.approx(total, abs=1e-4)


def test_gae_does_not_modify_its_inputs() -> None:
    columns = rollout(7)
    before = {name: tensor.clone() for name, tensor in columns.items()}
    gae(**columns, gamma=GAMMA, gae_lambda=0.95)
    assert all(columns[name].equal(before[name]) for name in columns)


def by_statistics(numbers: Tensor, floor: float) -> list[float]:
    listed = numbers.flatten().tolist()
    mean, std = statistics.fmean(listed), statistics.pstdev(listed)
    return [(number - mean) / max(std, floor) for number in listed]


@pytest.mark.parametrize(("scale", "floor"), [(3.0, 0.1), (3.0, 1e-8), (0.5, 0.1), (0.05, 0.1), (0.05, 0.01)])
def test_normalize_divides_by_the_standard_deviation_or_the_floor(scale: float, floor: float) -> None:
    numbers = scale * torch.randn(16, 8, generator=torch.Generator().manual_seed(3)) + 0.4 * scale
    normal = normalize(numbers, numbers.mean(), numbers.square().mean(), floor)
    assert normal.shape == numbers.shape
    torch.testing.assert_close(normal.flatten(), torch.tensor(by_statistics(numbers, floor)), rtol=1e-4, atol=1e-4)
    std = normal.square().mean().sqrt().item()
    assert std == pytest.approx(1.0, abs=1e-3) if scale > floor else std < 0.6


@pytest.mark.parametrize("number", [0.0, 0.3, -7.7])
def test_normalize_of_equal_advantages_is_0_with_a_floor_and_finite_without(number: float) -> None:
    same = torch.full((4, 3), number)
    for below in (0.0, 1e-6):  # the mean of squares may come out below the square of the mean
        square = torch.tensor(number).square() - below
        assert normalize(same, same.mean(), square, 1e-8).isfinite().all()
        torch.testing.assert_close(normalize(same, same.mean(), square, 0.1), torch.zeros(4, 3), rtol=0, atol=1e-4)
