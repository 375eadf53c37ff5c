"""Games in words: one file a game."""

from tutors.base import View
from tutors.views.connect4 import Connect4View

VIEWS = {"connect4": Connect4View}


def make_view(game: str) -> View:
    """Return how `game` is told to a tutor."""
    return VIEWS[game]()
