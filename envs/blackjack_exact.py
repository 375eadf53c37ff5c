"""Blackjack without sampling: the exact value of any policy per episode, and the optimal policy.

A policy is a table (32, 11, 2) of probabilities to hit, indexed by the sum, the dealer's open card and whether an ace
is usable: the three numbers of `envs.blackjack.gymnasium_obs`. Dynamic programming over those 704 cells, in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import state_to
from envs.blackjack import DEALER_STANDS, HIT, MAX_SUM, MIN_SUM, Blackjack

CELLS = (32, 11, 2)
CARD_PROBS = {card: (4 if card == 10 else 1) / 13 for card in range(1, 11)}


class Values(NamedTuple):
    """The expected rewards of both actions in every cell, and of an episode."""

    stick: Tensor  # CELLS, float64; of a hand of more than two cards
    hit: Tensor  # CELLS, float64
    hand: float  # before any card is dealt


def value_of(game: Blackjack, policy: Tensor) -> float:
    """Return the mean return of a policy, CELLS in [0, 1]: the probability to hit."""
    return solve(game, policy.double()).hand


def value_of_greedy(game: Blackjack, greedy: Callable[[Tensor, Tensor], Tensor], device: str = "cpu") -> float:
    """Return the mean return of the policy `greedy` (obs, action_mask) -> (N,) actions."""
    total, open_card, usable = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, CELLS), indexing="ij"))
    occurs = (total <= MAX_SUM) & (open_card >= 1) & (total >= torch.where(usable == 1, 12, MIN_SUM))
    total, open_card, usable = total[occurs], open_card[occurs], usable[occurs]
    state = {"sum": total - 10 * usable, "aces": usable, "cards": torch.full_like(total, 3), "open": open_card}
    action = greedy(*game.observe(state_to(state, device)))
    policy = torch.zeros(CELLS)
    policy[total, open_card, usable] = (action == HIT).float().cpu()
    return value_of(game, policy)


def optimum(game: Blackjack) -> Values:
    """Return the values of the optimal policy, which hits where `hit` exceeds `stick`."""
    return solve(game, None)


def best_policy(game: Blackjack) -> Tensor:
    """Return the optimal policy, CELLS of 0 and 1."""
    values = optimum(game)
    return (values.hit > values.stick).double()


def solve(game: Blackjack, policy: Tensor | None) -> Values:
    """Return the values of `policy`, or of the optimal one, in an order in which each hit leads to a solved cell."""
    stick, natural = stick_values(game)
    hit, value = torch.zeros(CELLS, dtype=torch.float64), torch.zeros(CELLS, dtype=torch.float64)

    def solve_cell(total: int, usable: int) -> None:
        for card, prob in CARD_PROBS.items():
            hit[total, :, usable] += prob * value_after(total, usable, card, value)
        hit_prob = None if policy is None else policy[total, :, usable]
        value[total, :, usable] = mix(hit[total, :, usable], stick[total, :, usable], hit_prob)

    for total in range(MAX_SUM, 10, -1):
        solve_cell(total, 0)
    for total in range(MAX_SUM, 11, -1):
        solve_cell(total, 1)
    for total in range(10, 3, -1):
        solve_cell(total, 0)
    hand = 0.0
    with_natural = mix(hit[MAX_SUM, :, 1], natural, None if policy is None else policy[MAX_SUM, :, 1])
    for open_card, open_prob in CARD_PROBS.items():
        for first, first_prob in CARD_PROBS.items():
            for second, second_prob in CARD_PROBS.items():
                ace = int(1 in (first, second))
                total = first + second + 10 * ace
                cell = with_natural if ace and total == MAX_SUM else value[total, :, ace]
                hand += open_prob * first_prob * second_prob * float(cell[open_card])
    return Values(stick, hit, hand)


def mix(hit: Tensor, stick: Tensor, hit_prob: Tensor | None) -> Tensor:
    """Return the value of a cell under the probability to hit; None: under the better action."""
    return torch.maximum(hit, stick) if hit_prob is None else hit_prob * hit + (1 - hit_prob) * stick


def value_after(total: int, usable: int, card: int, value: Tensor) -> Tensor:
    """Return the values, by the dealer's card (11,), of the cell to which drawing `card` leads."""
    total += card
    if card == 1 and not usable and total <= MAX_SUM - 10:
        total, usable = total + 10, 1
    elif usable and total > MAX_SUM:
        total, usable = total - 10, 0
    return value[total, :, usable] if total <= MAX_SUM else torch.full_like(value[0, :, 0], -1.0)


def stick_values(game: Blackjack) -> tuple[Tensor, Tensor]:
    """Return the expected reward of sticking: in every cell (CELLS), and with a natural, by the dealer's card (11,)."""
    stick = torch.zeros(CELLS, dtype=torch.float64)
    natural = torch.zeros(CELLS[1], dtype=torch.float64)
    for open_card in CARD_PROBS:
        outcomes = dealer_outcomes(open_card, open_card == 1, 1)
        for total in range(CELLS[0]):
            for (dealer, _), prob in outcomes.items():
                dealer = dealer if dealer <= MAX_SUM else 0
                stick[total, open_card] += prob * ((total > dealer) - (total < dealer))
        for (dealer, dealer_natural), prob in outcomes.items():
            if game.sab:
                natural[open_card] += prob * (not dealer_natural)
            else:
                natural[open_card] += prob * (dealer != MAX_SUM) * (1.5 if game.natural else 1.0)
    return stick, natural


def dealer_outcomes(total: int, ace: bool, num_cards: int) -> dict[tuple[int, bool], float]:
    """Return the probabilities of (the dealer's final sum, whether it is a natural) from a hand of `num_cards`."""
    best = total + 10 * (ace and total <= MAX_SUM - 10)
    if best >= DEALER_STANDS:
        return {(best, best == MAX_SUM and num_cards == 2): 1.0}
    outcomes: dict[tuple[int, bool], float] = {}
    for card, card_prob in CARD_PROBS.items():
        for outcome, prob in dealer_outcomes(total + card, ace or card == 1, num_cards + 1).items():
            outcomes[outcome] = outcomes.get(outcome, 0.0) + card_prob * prob
    return outcomes
