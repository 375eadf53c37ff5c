"""Episodes of Connect Four as an analyst reads them."""

from typing import Any

import torch

import envs
from envs.base import State, cat_states
from tutors.episodes import Episode, to_canonical
from tutors.prompts import make_view

VIEW = make_view(envs.make_game("connect4"))


def episode(
    columns: list[int], rewards: list[float] | None = None, view: Any = VIEW, mirrored: bool = False
) -> Episode:
    """A game in which both sides' discs fall into `columns`, seen by whoever drops next."""
    game = envs.make_game("connect4", opponent="random")
    state: State = {
        name: tensor[:1] for name, tensor in game.reset(torch.zeros(1, game.spec.num_reset_uniforms)).items()
    }
    state = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    states = []
    for column in columns:
        column = 6 - column if mirrored else column
        states.append(state)
        both = state["mine"] | state["theirs"]
        place = both + (1 << (7 * column)) & ~both  # the first free cell of the column
        state = {"mine": state["theirs"], "theirs": state["mine"] | place}
    whole = cat_states(states)
    actions = torch.tensor([6 - column if mirrored else column for column in columns])
    positions, named = to_canonical(VIEW, whole, actions)
    got = torch.tensor(rewards or [0.0] * len(columns))
    return Episode(positions, named, got, torch.zeros(len(columns), 3), float(got.sum()), 0, whole)


BLUNDER = [3, 0, 3, 0, 3, 6]  # the last one does not stop three in a column
