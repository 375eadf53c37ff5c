"""The rules of Blackjack as options of its constructor, and how often each card occurs."""

import pytest

Hand = tuple[int, ...]  # cards, an ace being 1

RULES = {
    "sab": {"sab": True},
    "sab, natural": {"sab": True, "natural": True},  # Gymnasium: natural is then ignored
    "plain": {"sab": False},
    "natural": {"sab": False, "natural": True},
}
every_rules = pytest.mark.parametrize("rules", RULES.values(), ids=list(RULES))

CARD_WEIGHTS = {card: 4 if card == 10 else 1 for card in range(1, 11)}  # ranks of thirteen
