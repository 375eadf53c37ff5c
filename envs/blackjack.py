"""Blackjack: draw cards, come closer to 21 than the dealer, and not beyond it.

obs      (29,) float32: the sum 4 … 21 as one of 18, none when it is beyond; the dealer's open card 1 … 10 as one
         of 10, an ace being 1; whether an ace counts as 11. `raw` has the same as three numbers.
action   0 sticks, 1 hits. Both are always legal.
reward   at the end: +1 for the higher sum, -1 for the lower one or for a sum beyond 21, 0 for equal sums.
         sab: a natural (an ace and a ten at once) beats any sum but another natural. Without it a natural is a 21
         like others, and with `natural` one that wins pays 1.5.
ends     when the student sticks or its sum is beyond 21. There is no clock.
luck     deal: three cards in one number. play: eleven cards in four numbers; a hit takes the first. The dealer, who
         stands on every 17, cannot need more: the longest hand is A, A, A, A, A, A, 6, A, A, A, A, A.

The deck is endless: every card is one of thirteen ranks, four of them worth ten. The dealer's hidden card is drawn
when the student sticks, which no one can tell from drawing it before.
A hand is its sum with aces as 1, how many aces and how many cards it has.
Source: Gymnasium's Blackjack-v1, after example 5.1 of Sutton & Barto 2018.
"""

import torch
from torch import Tensor

from envs.base import Spec, State

STICK, HIT = 0, 1
RANKS = 13
LOW, HIGH = 4, 21  # the sums that one plays on from
STANDS = 17


class Blackjack:
    """The rules, in the form that `Env` plays.

    Args:
        sab: whether naturals win as Sutton & Barto have it.
        natural: whether a natural that wins pays 1.5; without `sab` only.
    """

    def __init__(self, sab: bool = True, natural: bool = False) -> None:
        self.sab, self.natural = sab, natural
        self.spec = Spec(
            "blackjack", 1, (HIGH - LOW + 12,), 2, num_reset_uniforms=1, num_step_uniforms=4, time_limit=None
        )

    def reset(self, u: Tensor) -> State:
        open_card, first, second = cards(u).unbind(1)
        return {
            "sum": first + second,
            "aces": (first == 1).long() + (second == 1),
            "cards": torch.full_like(first, 2),
            "open": open_card,
        }

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        drawn = cards(u)
        hit = action == HIT
        after = {
            "sum": torch.where(hit, state["sum"] + drawn[:, 0], state["sum"]),
            "aces": state["aces"] + (hit & (drawn[:, 0] == 1)),
            "cards": state["cards"] + hit,
            "open": state["open"],
        }
        bust = after["sum"] > HIGH
        reward = torch.where(hit, torch.where(bust, -1.0, 0.0), self._payoff(state, drawn))
        return after, reward, bust | ~hit

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        total, open_card, usable = raw(state).T[:, :, None]
        number = torch.arange(HIGH + 1, device=total.device)
        obs = torch.cat([total == number[LOW:], open_card == number[1:11], usable == 1], 1).float()
        return obs, torch.ones_like(obs[:, :2], dtype=torch.bool)

    def _payoff(self, state: State, drawn: Tensor) -> Tensor:
        """What sticking brings when the dealer draws these cards (N, 11)."""
        dealer = best_sum(*dealer_hand(state["open"], drawn))
        mine = best_sum(state["sum"], state["aces"])
        dealer = dealer * (dealer <= HIGH)
        reward = (mine > dealer).float() - (mine < dealer).float()
        natural = is_natural(state)
        if self.sab:
            theirs = state["open"] + drawn[:, 0] == 11
            either_ace = (state["open"] == 1) | (drawn[:, 0] == 1)
            return torch.where(natural & ~(theirs & either_ace), 1.0, reward)
        return torch.where(natural & (reward > 0), 1.5, reward) if self.natural else reward


def cards(u: Tensor) -> Tensor:
    """Return three cards, 1 … 10, for each number of luck: (N, 3 C) int64 for (N, C)."""
    three = (u.T * RANKS**3).floor()  # whole numbers below 2**24 are exact in float32, and so is what follows
    first = (three / RANKS**2).floor()
    second = (three / RANKS).floor() - first * RANKS
    third = three - (first * RANKS + second) * RANKS
    ranks = torch.stack([first, second, third], 1)  # (C, 3, N)
    return (ranks + 1).clamp(max=10).long().flatten(0, 1).T


def best_sum(total: Tensor, aces: Tensor) -> Tensor:
    """Return a hand's sum, with an ace as 11 where that is not beyond 21."""
    return torch.where((aces > 0) & (total <= HIGH - 10), total + 10, total)


def dealer_hand(open_card: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (sum, aces) with which the dealer stands or goes bust; `drawn` (N, 11) begins with the hidden card."""
    total, aces = open_card, (open_card == 1).long()
    for card in drawn[:, :11].unbind(1):
        more = best_sum(total, aces) < STANDS
        total, aces = torch.where(more, total + card, total), torch.where(more & (card == 1), aces + 1, aces)
    return total, aces


def is_natural(state: State) -> Tensor:
    """Whether the student's hand is an ace and a ten as they were dealt."""
    return (state["cards"] == 2) & (state["aces"] > 0) & (state["sum"] == 11)


def raw(state: State) -> Tensor:
    """Return (sum, dealer's open card, usable ace), (N, 3) int64, as Gymnasium shows them."""
    total = best_sum(state["sum"], state["aces"])
    return torch.stack([total, state["open"], (total != state["sum"]).long()]).T
