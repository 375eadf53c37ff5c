"""Advantages against a loop over each row's own episode, and normalising against statistics, in Python floats.

The loop follows the definition and not the recursion: from every row it walks forward, adds up discounted
errors, and stops at the first row that ends an episode. Games end at random, in both ways.
"""

import statistics

import pytest
import torch
from torch import Tensor

from agents.gae import gae, normalize

GAMMA = 0.9


def rollout(moments: int, games: int = 6, seed: int = 0, ends: float = 0.25) -> dict[str, Tensor]:
    """A rollout in which about a quarter of the rows terminate and as many others are truncated."""
    chance = torch.Generator().manual_seed(seed)
    reward, value, next_value, how = torch.rand(4, moments, games, generator=chance).unbind()
    return {
        "rewards": reward * 4 - 2,
        "values": value * 6 - 3,
        "next_values": next_value * 6 - 3,
        "terminations": how < ends,
        "truncations": how > 1 - ends,
    }


def advantage_by_definition(kept: dict[str, Tensor], row: int, game: int, gamma: float, gae_lambda: float) -> float:
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}, up to and including the row that ends the episode."""
    column = {name: tensor[:, game].tolist() for name, tensor in kept.items()}
    total = 0.0
    for further, at in enumerate(range(row, len(column["rewards"]))):
        future = 0.0 if column["terminations"][at] else gamma * column["next_values"][at]
        total += (gamma * gae_lambda) ** further * (column["rewards"][at] + future - column["values"][at])
        if column["terminations"][at] or column["truncations"][at]:
            break
    return total


def advantages_by_definition(kept: dict[str, Tensor], gamma: float, gae_lambda: float) -> Tensor:
    moments, games = kept["rewards"].shape
    return torch.tensor(
        [
            [advantage_by_definition(kept, row, game, gamma, gae_lambda) for game in range(games)]
            for row in range(moments)
        ]
    )


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("moments", [1, 2, 3, 7, 128])
def test_advantages_equal_the_sum_that_defines_them(moments: int, gae_lambda: float) -> None:
    for seed, ends in enumerate((0.25, 0.02, 0.0)):
        kept = rollout(moments, seed=seed, ends=ends)
        advantages, returns = gae(**kept, gamma=GAMMA, gae_lambda=gae_lambda)
        expected = advantages_by_definition(kept, GAMMA, gae_lambda)
        torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(returns, expected + kept["values"], rtol=1e-5, atol=1e-5)


def test_three_rows_worked_out_by_hand() -> None:
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
    # the second row terminates: its error is 2 - 20, and it hears nothing of the third
    assert advantages(torch.cat([no, yes, no]), never) == [1 - 18 / 4, -18, -6]
    # the second row is truncated: its error keeps its future, and it hears nothing of the third
    assert advantages(never, torch.cat([no, yes, no])) == [1 - 3 / 4, -3, -6]


def test_what_follows_a_termination_does_not_matter() -> None:
    kept = rollout(64)
    lies = torch.where(kept["terminations"], kept["next_values"] + 1000, kept["next_values"])
    assert not lies.equal(kept["next_values"])
    told = gae(**kept, gamma=GAMMA, gae_lambda=0.95)
    lied = gae(**kept | {"next_values": lies}, gamma=GAMMA, gae_lambda=0.95)
    assert lied[0].equal(told[0])
    assert lied[1].equal(told[1])


@pytest.mark.parametrize("end", ["terminations", "truncations"])
def test_nothing_flows_back_over_the_end_of_a_game(end: str) -> None:
    kept = rollout(20, ends=0.0)
    kept[end][9] = True
    changed = {name: tensor.clone() for name, tensor in kept.items()}
    for name in ("rewards", "values", "next_values"):
        changed[name][10:] += 7
    before, after = (gae(**numbers, gamma=GAMMA, gae_lambda=0.95)[0] for numbers in (kept, changed))
    torch.testing.assert_close(after[:10], before[:10])
    assert ((after[10:] - before[10:]).abs() > 0.5).all()


def test_a_truncation_keeps_its_future_and_a_termination_does_not() -> None:
    kept = rollout(20, ends=0.0)
    more = kept | {"next_values": kept["next_values"].index_add(0, torch.tensor([9]), torch.ones(1, 6))}
    for end, gained in (("truncations", GAMMA), ("terminations", 0.0)):
        flag = torch.zeros(20, 6, dtype=torch.bool)
        flag[9] = True
        before, after = (gae(**numbers | {end: flag}, gamma=GAMMA, gae_lambda=0.95)[0] for numbers in (kept, more))
        torch.testing.assert_close(after[9] - before[9], torch.full((6,), gained))


def test_with_lambda_0_an_advantage_is_the_error_of_one_step() -> None:
    kept = rollout(7)
    advantages, _ = gae(**kept, gamma=GAMMA, gae_lambda=0.0)
    future = torch.where(kept["terminations"], 0.0, GAMMA * kept["next_values"])
    torch.testing.assert_close(advantages, kept["rewards"] + future - kept["values"])


def test_with_lambda_1_a_return_is_the_discounted_sum_of_rewards_to_the_end() -> None:
    kept = rollout(128, ends=0.1)
    # such values as an env gives: where a game goes on, the next value is that of the row below
    on = ~(kept["terminations"] | kept["truncations"])[:-1]
    kept["next_values"][:-1] = torch.where(on, kept["values"][1:], kept["next_values"][:-1])
    _, returns = gae(**kept, gamma=GAMMA, gae_lambda=1.0)
    for game in range(6):
        for row in range(128):
            total, factor = 0.0, 1.0
            for at in range(row, 128):
                total += factor * kept["rewards"][at, game].item()
                factor *= GAMMA
                if kept["terminations"][at, game]:
                    factor = 0.0
                if kept["terminations"][at, game] or kept["truncations"][at, game]:
                    break
            total += factor * kept["next_values"][at, game].item()
            assert returns[row, game].item() == pytest.approx(total, abs=1e-4)


def test_a_rollout_is_not_modified() -> None:
    kept = rollout(7)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    gae(**kept, gamma=GAMMA, gae_lambda=0.95)
    assert all(kept[name].equal(before[name]) for name in kept)


def by_statistics(numbers: Tensor, floor: float) -> list[float]:
    listed = numbers.flatten().tolist()
    mean, spread = statistics.fmean(listed), statistics.pstdev(listed)
    return [(number - mean) / max(spread, floor) for number in listed]


@pytest.mark.parametrize(("scale", "floor"), [(3.0, 0.1), (3.0, 1e-8), (0.5, 0.1), (0.05, 0.1), (0.05, 0.01)])
def test_advantages_are_divided_by_their_spread_or_by_the_floor(scale: float, floor: float) -> None:
    numbers = scale * torch.randn(16, 8, generator=torch.Generator().manual_seed(3)) + 0.4 * scale
    normal = normalize(numbers, numbers.mean(), numbers.square().mean(), floor)
    assert normal.shape == numbers.shape
    torch.testing.assert_close(normal.flatten(), torch.tensor(by_statistics(numbers, floor)), rtol=1e-4, atol=1e-4)
    spread = normal.square().mean().sqrt().item()
    assert spread == pytest.approx(1.0, abs=1e-3) if scale > floor else spread < 0.6


@pytest.mark.parametrize("number", [0.0, 0.3, -7.7])
def test_equal_advantages_become_almost_0_with_a_floor_and_are_finite_without(number: float) -> None:
    same = torch.full((4, 3), number)
    for below in (0.0, 1e-6):  # the mean of squares may come out below the square of the mean
        square = torch.tensor(number).square() - below
        assert normalize(same, same.mean(), square, 1e-8).isfinite().all()
        torch.testing.assert_close(normalize(same, same.mean(), square, 0.1), torch.zeros(4, 3), rtol=0, atol=1e-4)
