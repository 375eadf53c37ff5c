"""Blackjack: draw cards to come closer to 21 than the dealer, and not beyond it.

obs      (29,) float32: the sum 4 … 21 as one of 18, none when it is beyond; the dealer's open card 1 … 10 as one
         of 10, an ace being 1; whether an ace counts as 11. `gymnasium_obs` returns the same as three numbers.
action   0 sticks, 1 hits. Both are always legal.
reward   at the end: +1 for the higher sum, -1 for the lower one or for a sum beyond 21, 0 for equal sums.
         sab: a natural (an ace and a ten as the first two cards) beats any sum but another natural. Without sab a
         natural is a 21 like others, and with `natural` a winning one pays 1.5.
ends     terminated when the student sticks or its sum is beyond 21. There is no time limit.
random   reset: three cards from one uniform. step: eleven cards from four uniforms, of which a hit takes the first. The
         dealer, who stands on every 17, cannot draw more: the longest hand is A, A, A, A, A, A, 6, A, A, A, A, A.
source   Gymnasium's Blackjack-v1, after example 5.1 of Sutton & Barto 2018.

The deck is infinite: every card is one of thirteen ranks, four of them worth ten. The dealer's hidden card is drawn
when the student sticks, which has the same distribution as drawing it at the start.
A state holds each hand's sum with aces as 1, and of the student's hand the number of aces and of cards.
"""

import torch
from torch import Tensor

from envs.base import Spec, State

STICK, HIT = 0, 1
RANKS = 13
MIN_SUM, MAX_SUM = 4, 21  # of a hand that is not bust
DEALER_STANDS = 17


class Blackjack:
    """The rules, in the form that `VecEnv` steps.

    Args:
        sab: whether naturals win as in Sutton & Barto.
        natural: whether a winning natural pays 1.5; without `sab` only.
    """

    def __init__(self, sab: bool = True, natural: bool = False) -> None:
        self.sab = sab
        self.natural = natural
        obs_shape = (MAX_SUM - MIN_SUM + 12,)
        self.spec = Spec(
            *("blackjack", 1, obs_shape, 2),
            num_reset_uniforms=1,
            num_step_uniforms=4,
            time_limit=None,
            title="Blackjack",
            return_range=(-1.0, 1.5 if natural and not sab else 1.0),
            return_unit="+1 win, 0 push, −1 loss of the stake",
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
        bust = after["sum"] > MAX_SUM
        reward = torch.where(hit, torch.where(bust, -1.0, 0.0), self._payoff(state, drawn))
        return after, reward, bust | ~hit

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        total, open_card, usable = gymnasium_obs(state).T[:, :, None]
        number = torch.arange(MAX_SUM + 1, device=total.device)
        obs = torch.cat([total == number[MIN_SUM:], open_card == number[1:11], usable == 1], 1).float()
        return obs, torch.ones_like(obs[:, :2], dtype=torch.bool)

    def _payoff(self, state: State, drawn: Tensor) -> Tensor:
        """Return the reward (N,) of sticking when the dealer draws these cards (N, 11)."""
        dealer = dealer_sum(state["open"], drawn)
        mine = best_sum(state["sum"], state["aces"])
        dealer = dealer * (dealer <= MAX_SUM)
        reward = (mine > dealer).float() - (mine < dealer).float()
        natural = is_natural(state)
        if self.sab:
            theirs = state["open"] + drawn[:, 0] == 11
            either_ace = (state["open"] == 1) | (drawn[:, 0] == 1)
            return torch.where(natural & ~(theirs & either_ace), 1.0, reward)
        return torch.where(natural & (reward > 0), 1.5, reward) if self.natural else reward


def cards(u: Tensor) -> Tensor:
    """Return three cards, 1 … 10, for each uniform: (N, 3 C) int64 for (N, C)."""
    triple = (u.T * RANKS**3).floor()  # integers below 2**24 are exact in float32, and so is what follows
    first = (triple / RANKS**2).floor()
    second = (triple / RANKS).floor() - first * RANKS
    third = triple - (first * RANKS + second) * RANKS
    ranks = torch.stack([first, second, third], 1)  # (C, 3, N)
    return (ranks + 1).clamp(max=10).long().flatten(0, 1).T


def best_sum(total: Tensor, aces: Tensor) -> Tensor:
    """Return a hand's sum, with one ace as 11 where that is not beyond 21."""
    return torch.where((aces > 0) & (total <= MAX_SUM - 10), total + 10, total)


def dealer_sum(open_card: Tensor, drawn: Tensor) -> Tensor:
    """Return the sum (N,) with which the dealer stands or goes bust; `drawn` (N, 11) begins with the hidden card."""
    draws = dealer_draws(drawn.device)
    hand = 32 * open_card + 16 * (open_card == 1)
    for card in drawn[:, :11].unbind(1):
        hand = draws.take(hand + card)
    return best_sum(hand >> 5, hand >> 4 & 1)


def dealer_draws(device: torch.device) -> Tensor:
    """Return the dealer's hand after every card in every hand, by their sum: 30 operations where one a card is 90.

    A hand is 32 times its sum with aces as 1, plus 16 if it has an ace. One that stands stays as it is.
    """
    number = torch.arange(32 * (DEALER_STANDS + 10), device=device)
    hand, card = number & ~15, number & 15
    more = best_sum(hand >> 5, hand >> 4 & 1) < DEALER_STANDS
    return torch.where(more, (hand + 32 * card) | 16 * (card == 1), hand)


def is_natural(state: State) -> Tensor:
    """Return whether the student's first two cards, with no more drawn, are an ace and a ten. (N,) bool."""
    return (state["cards"] == 2) & (state["aces"] > 0) & (state["sum"] == 11)


def gymnasium_obs(state: State) -> Tensor:
    """Return Gymnasium's observation: (sum, dealer's open card, usable ace), (N, 3) int64."""
    total = best_sum(state["sum"], state["aces"])
    return torch.stack([total, state["open"], (total != state["sum"]).long()]).T
