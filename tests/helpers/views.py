"""The registered prompt views that have an expert, each with an env that it is about, for the contract tests."""

import envs
from envs.base import Game
from tutors.prompts import VIEWS
from tutors.prompts.base import PromptView

EXAMPLES = {"gym:*FrozenLake*": "gym:FrozenLake8x8-v1"}  # of games with wildcards; 4 x 4 has few positions
EVERY_VIEW = [
    (EXAMPLES.get(game, game), name)
    for game, views in VIEWS.items()
    for name, view in views.items()
    if view.expert_values is not PromptView.expert_values
]


def game_of(name: str, **options: object) -> Game:
    """What a prompt view is made with: the rules, or the Gymnasium env itself."""
    return envs.make(name, 1, **options).game
