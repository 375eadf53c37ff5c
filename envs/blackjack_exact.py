"""Blackjack without sampling: what any policy is worth a hand, and the best policy.

A policy is a table (32, 11, 2) of the chance to hit, by the sum, the dealer's open card and whether an ace is
usable: the three numbers that `envs.blackjack.raw` shows. Dynamic programming over those 704 cells, in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from envs.blackjack import HIGH, HIT, LOW, STANDS, Blackjack

CELLS = (32, 11, 2)
CHANCES = {card: (4 if card == 10 else 1) / 13 for card in range(1, 11)}


class Values(NamedTuple):
    """What the two actions are worth in every cell, and what a hand is worth before it is dealt."""

    stick: Tensor  # CELLS, float64; of a hand of more than two cards
    hit: Tensor  # CELLS, float64
    hand: float


def value_of(game: Blackjack, policy: Tensor) -> float:
    """Return the mean reward of a hand under `action_probs`, CELLS in [0, 1]: the chance to hit."""
    return solve(game, policy.double()).hand


def value_of_greedy(game: Blackjack, greedy: Callable[[Tensor, Tensor], Tensor], device: str = "cpu") -> float:
    """Return the mean reward of a hand of who plays `greedy` (obs, legal) -> (N,) actions, 1 to hit."""
    total, open_card, usable = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, CELLS), indexing="ij"))
    there = (total <= HIGH) & (open_card >= 1) & (total >= torch.where(usable == 1, 12, LOW))
    cells = (total[there], open_card[there], usable[there])
    state = {"sum": cells[0] - 10 * cells[2], "aces": cells[2], "cards": torch.full_like(cells[0], 3), "open": cells[1]}
    action = greedy(*game.observe({name: tensor.to(device) for name, tensor in state.items()}))
    policy = torch.zeros(CELLS)
    policy[cells] = (action == HIT).float().cpu()
    return value_of(game, policy)


def optimum(game: Blackjack) -> Values:
    """Return the values of the best policy, which hits where `hit` is more than `stick`."""
    return solve(game, None)


def best_policy(game: Blackjack) -> Tensor:
    """Return the best policy, CELLS of 0 and 1."""
    values = optimum(game)
    return (values.hit > values.stick).double()


def solve(game: Blackjack, policy: Tensor | None) -> Values:
    """Work back from the last card: every hit leads to a cell that was worked out before."""
    stick, natural = stick_values(game)
    hit, value = torch.zeros(CELLS, dtype=torch.float64), torch.zeros(CELLS, dtype=torch.float64)

    def settle(total: int, usable: int) -> None:
        for card, chance in CHANCES.items():
            hit[total, :, usable] += chance * after(total, usable, card, value)
        here = hit[total, :, usable], stick[total, :, usable]
        value[total, :, usable] = mixed(*here, None if policy is None else policy[total, :, usable])

    for total in range(HIGH, 10, -1):
        settle(total, 0)
    for total in range(HIGH, 11, -1):
        settle(total, 1)
    for total in range(10, 3, -1):
        settle(total, 0)
    hand = 0.0
    with_natural = mixed(hit[HIGH, :, 1], natural, None if policy is None else policy[HIGH, :, 1])
    for open_card, open_chance in CHANCES.items():
        for first, first_chance in CHANCES.items():
            for second, second_chance in CHANCES.items():
                ace = int(1 in (first, second))
                total = first + second + 10 * ace
                cell = with_natural if ace and total == HIGH else value[total, :, ace]
                hand += open_chance * first_chance * second_chance * float(cell[open_card])
    return Values(stick, hit, hand)


def mixed(hit: Tensor, stick: Tensor, chance: Tensor | None) -> Tensor:
    """Return what a cell is worth when one hits with `chance`, or does what is best."""
    return torch.maximum(hit, stick) if chance is None else chance * hit + (1 - chance) * stick


def after(total: int, usable: int, card: int, value: Tensor) -> Tensor:
    """Return the values, by the dealer's card (11,), of the cell where `card` leads."""
    total += card
    if card == 1 and not usable and total <= HIGH - 10:
        total, usable = total + 10, 1
    elif usable and total > HIGH:
        total, usable = total - 10, 0
    return value[total, :, usable] if total <= HIGH else torch.full_like(value[0, :, 0], -1.0)


def stick_values(game: Blackjack) -> tuple[Tensor, Tensor]:
    """Return what sticking is worth: in every cell (CELLS), and with a natural, by the dealer's card (11,)."""
    stick = torch.zeros(CELLS, dtype=torch.float64)
    natural = torch.zeros(CELLS[1], dtype=torch.float64)
    for open_card in CHANCES:
        ends = dealer_ends(open_card, open_card == 1, 1)
        for total in range(CELLS[0]):
            for (dealer, _), chance in ends.items():
                dealer = dealer if dealer <= HIGH else 0
                stick[total, open_card] += chance * ((total > dealer) - (total < dealer))
        for (dealer, dealer_natural), chance in ends.items():
            if game.sab:
                natural[open_card] += chance * (not dealer_natural)
            else:
                natural[open_card] += chance * (dealer != HIGH) * (1.5 if game.natural else 1.0)
    return stick, natural


def dealer_ends(total: int, ace: bool, held: int) -> dict[tuple[int, bool], float]:
    """Return the chances of (the dealer's last sum, whether it is a natural) from a hand of `held` cards."""
    best = total + 10 * (ace and total <= HIGH - 10)
    if best >= STANDS:
        return {(best, best == HIGH and held == 2): 1.0}
    ends: dict[tuple[int, bool], float] = {}
    for card, chance in CHANCES.items():
        for end, later in dealer_ends(total + card, ace or card == 1, held + 1).items():
            ends[end] = ends.get(end, 0.0) + chance * later
    return ends
