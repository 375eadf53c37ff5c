"""The prompt views of Blackjack: the sum, the ace, the dealer's card, in two wordings.

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
        self.instructions = self.write_rules(game)

    def write_rules(self, game: Blackjack) -> str:
        """Return the instructions."""
        naturals = "A sum of 21 with the first two cards beats every other 21. " if game.sab else ""
        if game.natural and not game.sab:
            naturals = "Winning with 21 from the first two cards pays one and a half times the stake. "
        return (
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
        return [self.instructions + self.render_hand(*hand) for hand in hands]

    def render_hand(self, total: int, open_card: int, usable: int) -> str:
        """Return one hand as the end of a question."""
        return position(total, open_card, usable, self.labels)

    def expert_values(self, state: State, depth: int) -> Tensor:
        return self.action_values.to(state["sum"].device)[state["sum"], state["open"], state["usable"]]


class HandView(BlackjackView):
    """The same three numbers in the words of a card table: stand, hit, bust, soft and hard."""

    name, is_rewording = "hand", True

    def write_rules(self, game: Blackjack) -> str:
        naturals = "Two cards that make 21 outrank a 21 of more cards. " if game.sab else ""
        if game.natural and not game.sab:
            naturals = "If you win with two cards that make 21, you are paid 3 to 2. "
        return (
            "You are a player at a Blackjack table, alone against the dealer. The better hand wins your bet, where "
            "a hand is better the nearer its value is to 21; a hand above 21 is bust and has lost. Face cards are "
            "worth 10 and number cards what they show. An ace is worth 11 as long as the hand stays at 21 or below "
            "(a soft hand), otherwise 1 (a hard hand). The deck never runs out. When you stand, the dealer takes "
            f"cards up to 17 or above. {naturals}With equal hands you get your bet back. Choose what gives you the "
            f"best odds. {LETTER_ONLY}\n\n"
        )

    def render_hand(self, total: int, open_card: int, usable: int) -> str:
        stand, hit = self.labels
        kind, dealer = "soft" if usable else "hard", "an ace" if open_card == 1 else str(open_card)
        shown = f"Your hand: {kind} {total}\nOpen card of the dealer: {dealer}"
        return f"{shown}\nOptions: {stand} stand, {hit} hit\n{ANSWER}"


def position(total: int, open_card: int, usable: int, labels: tuple[str, ...]) -> str:
    """One hand as the end of a question."""
    ace = "with an ace that counts 11" if usable else "without an ace that counts 11"
    dealer = {1: "an ace", 8: "an 8"}.get(open_card, f"a {open_card}")
    stick, hit = labels
    return f"Your sum: {total}, {ace}\nThe dealer shows {dealer}\nOptions: {stick} stick, {hit} hit\n{ANSWER}"
