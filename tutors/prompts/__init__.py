"""Prompt views: one file a game."""

from fnmatch import fnmatchcase
from typing import Any

from envs.base import Game
from envs.registry import load_object, make_object, unknown_name_message
from tutors.prompts.base import PromptView
from tutors.prompts.blackjack import BlackjackView, HandView
from tutors.prompts.connect4 import Connect4View, GridView
from tutors.prompts.frozen_lake import FrozenLakeView
from tutors.prompts.minigrid import MiniGridView
from tutors.prompts.snake import FullView, LocalView, MapView

VIEW_PARTS = ("name", "version", "labels", "instructions", "symmetry", "key", "render")
VIEWS: dict[str, dict[str, Any]] = {  # by game, with wildcards; the first is taken unless another is named
    "blackjack": {"table": BlackjackView, "hand": HandView},
    "connect4": {"board": Connect4View, "grid": GridView},
    "snake": {"local": LocalView, "full": FullView, "map": MapView},
    "gym:*FrozenLake*": {"lake": FrozenLakeView},
    "gym:*MiniGrid-*": {"seen": MiniGridView},
}


def views_of(game: str) -> dict[str, Any]:
    """Return the views of the game of that name, by their names; none if it has no view of ours."""
    return next((views for pattern, views in VIEWS.items() if fnmatchcase(game, pattern)), {})


def make_view(game: Game, name: str | None = None, symmetry: bool = True) -> PromptView:
    """Return the prompt view of `game`.

    Args:
        game: the rules.
        name: of views_of(game), or module:Class for a view of your own; None: the game's first one.
        symmetry: whether positions that are equivalent to a player have one prompt.

    Raises:
        ValueError: the game has no view, or none of that name, or it requires its symmetry.
    """
    view = find_view(game, name)
    return view if symmetry else view.without_symmetry()


def find_view(game: Game, name: str | None) -> PromptView:
    """Return the view of that name, with its symmetry."""
    if name is not None and ":" in name:
        view: PromptView = make_object(name, load_object(name), VIEW_PARTS, game)
        return view
    views = views_of(game.spec.name)
    if not views:
        raise ValueError(f"{game.spec.name} has no prompt view; name one of your own with --view module:Class")
    name = name or next(iter(views))
    if name not in views:
        raise ValueError(unknown_name_message(f"view of {game.spec.name}", name, views))
    return views[name](game)
