"""The prompt view of Blackjack: the sum, the ace, the dealer's card.

A key is exact: bits 0-4 are the sum, 5-8 the dealer's open card, 9 whether an ace is usable.
"""

import torch
from torch import Tensor

from envs.base import State
from envs.blackjack import Blackjack, gymnasium_obs
from envs.blackjack_exact import optimum
from tutors.prompts.base import ANSWER, LETTER_ONLY, PromptView

CENTS_PER_STAKE = 100  # the expert's values are in hundredths of a stake


class BlackjackView(PromptView):
    """The three numbers that a player sees."""

    game, name, version = "blackjack", "table", 1
    labels = ("A", "B")
    relabels = True

    def __init__(self, game: Blackjack) -> None:
        optimal = optimum(game)
        self.action_values = torch.stack([optimal.stick, optimal.hit], 3) * CENTS_PER_STAKE  # (32, 11, 2, 2)
        naturals = "A sum of 21 with the first two cards beats every other 21. " if game.sab else ""
        if game.natural and not game.sab:
            naturals = "Winning with 21 from the first two cards pays one and a half times the stake. "
        self.instructions = (
            "This is Blackjack. Come closer to 21 than the dealer without going over it. Jacks, queens and "
            "kings count 10; an ace counts 11 where that does not lead over 21, else 1. All cards are equally "
            "likely at every draw. The dealer draws until the sum is 17 or more, and loses when it is over 21. "
            f"{naturals}Equal sums are a draw. Each turn you stick, which ends your turn, or hit, which draws one "
            f"card; going over 21 loses at once. {LETTER_ONLY}\n\n"
        )

    def canonicalize(self, state: State) -> tuple[State, Tensor]:
        total, open_card, usable = gymnasium_obs(state).unbind(1)
        return {"sum": total, "open": open_card, "usable": usable}, torch.zeros_like(total)

    def key(self, state: State) -> Tensor:
        place = state["sum"] | state["open"] << 5 | state["usable"] << 9
        return torch.stack([place, torch.zeros_like(place)], 1)

    def render(self, state: State) -> list[str]:
        hands = zip(state["sum"].tolist(), state["open"].tolist(), state["usable"].tolist(), strict=True)
        return [self.instructions + position(*hand, self.labels) for hand in hands]

    def expert_values(self, state: State, depth: int) -> Tensor:
        return self.action_values.to(state["sum"].device)[state["sum"], state["open"], state["usable"]]


def position(total: int, open_card: int, usable: int, labels: tuple[str, ...]) -> str:
    """One hand as the end of a question."""
    ace = "with an ace that counts 11" if usable else "without an ace that counts 11"
    dealer = {1: "an ace", 8: "an 8"}.get(open_card, f"a {open_card}")
    stick, hit = labels
    return f"Your sum: {total}, {ace}\nThe dealer shows {dealer}\nOptions: {stick} stick, {hit} hit\n{ANSWER}"
