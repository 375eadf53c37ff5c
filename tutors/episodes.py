"""A game that a student played, step by step, as it is told to a tutor."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import State
from tutors.prompts.base import ANSWER, LETTER_ONLY, PromptView

EXPERT_DEPTH = 4  # how far ahead the expert looks with whose choices a student is compared
MATTERS = 0.1  # of the largest gap between the best and the worst action: from there on a step is one that mattered
LAST = 40  # steps of a game that are told, the last ones: a long game would fill a model's whole context


class Episode(NamedTuple):
    """The last T steps of one game, on the CPU. Positions and actions are as the view tells them."""

    told: State  # T rows: the positions, canonical
    actions: Tensor  # (T,) int64: what the student did
    rewards: Tensor  # (T,) float32
    seen: Tensor  # (T, *obs_shape) float32: what the student saw after each step
    total: float  # the whole game's return
    first: int  # steps of the game before these


def as_told(view: PromptView, state: State, actions: Tensor) -> tuple[State, Tensor]:
    """Return positions in their canonical form, and the actions (B,) by the names that they have there."""
    told, turned = view.canonicalize(state)
    return told, view.symmetry.to(actions.device)[turned].gather(1, actions[:, None])[:, 0]


def rules_of(view: PromptView) -> str:
    """Return what a view says of the game, without asking for a letter."""
    return view.instructions.replace(f" {LETTER_ONLY}", "").rstrip()


def words_of(view: PromptView, told: State) -> list[str]:
    """Return positions in words, without the rules and without a question."""
    return [text.removeprefix(view.instructions).removesuffix(ANSWER).rstrip() for text in view.render(told)]


def tell(view: PromptView, episode: Episode) -> str:
    """Return a game in words: each position, what the student did in it, and what came of it all."""
    steps = []
    for number, (words, action, reward) in enumerate(
        zip(words_of(view, episode.told), episode.actions.tolist(), episode.rewards.tolist(), strict=True), 1
    ):
        gain = f", and got {reward:+g}" if reward else ""
        steps.append(f"Step {number}\n{words}\nThe student chose {view.labels[action]}{gain}.")
    skipped = f"After {episode.first} earlier steps:\n\n" if episode.first else ""
    return "\n\n".join([f"{skipped}{steps[0]}", *steps[1:], f"The whole game brought {episode.total:+g}."])


def expert_values(view: PromptView, episode: Episode, depth: int) -> Tensor:
    """Return what an expert holds of all actions in each position, (T, A) float32; -inf where one is not legal.

    Raises:
        ValueError: the view has no expert.
    """
    return view.expert_values(episode.told, depth).float().masked_fill(~view.action_mask(episode.told), -torch.inf)


def gaps(values: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Return (how much it matters what is done, what the student's choice cost), (T,) each, by an expert's values.

    The first is the best legal action's value less the worst one's: `importance` of tutors/query.py, of an expert.
    """
    best = values.amax(1)
    worst = values.masked_fill(values == -torch.inf, torch.inf).amin(1)
    return best - worst, best - values.gather(1, actions[:, None])[:, 0]


def longest(episodes: Sequence[Episode]) -> int:
    """Return the number of steps of the longest."""
    return max(len(episode.actions) for episode in episodes)
