"""An episode of a student, step by step, as it is put to a tutor in words."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import State
from tutors.prompts.base import ANSWER, LETTER_ONLY, PromptView

EXPERT_DEPTH = 4  # how far ahead the expert looks with whose choices a student is compared
CRITICAL_GAP = 0.1  # of the largest gap between the best and the worst action: a step with a larger gap is critical
MAX_STEPS = 40  # steps of an episode that are kept, the last ones: a long one would fill a model's whole context


class Episode(NamedTuple):
    """The last T steps of one episode, on the CPU, with canonical positions and actions."""

    positions: State  # T rows
    actions: Tensor  # (T,) int64: what the student did
    rewards: Tensor  # (T,) float32
    final_obs: Tensor  # (T, *obs_shape) float32: what the student saw after each step
    episodic_return: float  # of the whole episode
    num_earlier_steps: int  # steps of the episode before these


def to_canonical(view: PromptView, state: State, actions: Tensor) -> tuple[State, Tensor]:
    """Return positions in canonical form, and the names that the actions (B,) have there."""
    positions, transform = view.canonicalize(state)
    return positions, view.symmetry.to(actions.device)[transform].gather(1, actions[:, None])[:, 0]


def rules_text(view: PromptView) -> str:
    """Return a view's instructions without the request for a letter."""
    return view.instructions.replace(f" {LETTER_ONLY}", "").rstrip()


def position_texts(view: PromptView, positions: State) -> list[str]:
    """Return the prompts of positions without the instructions and without a question."""
    prompts = view.render(positions)
    return [prompt.removeprefix(view.instructions).removesuffix(ANSWER).rstrip() for prompt in prompts]


def render_episode(view: PromptView, episode: Episode) -> str:
    """Return an episode in words: each position, what the student did there, and the return."""
    steps = []
    texts = position_texts(view, episode.positions)
    actions, rewards = episode.actions.tolist(), episode.rewards.tolist()
    for number, (text, action, reward) in enumerate(zip(texts, actions, rewards, strict=True), 1):
        gain = f", and got {reward:+g}" if reward else ""
        steps.append(f"Step {number}\n{text}\nThe student chose {view.labels[action]}{gain}.")
    skipped = f"After {episode.num_earlier_steps} earlier steps:\n\n" if episode.num_earlier_steps else ""
    end = f"The whole game brought {episode.episodic_return:+g}."
    return "\n\n".join([f"{skipped}{steps[0]}", *steps[1:], end])


def expert_values(view: PromptView, episode: Episode, depth: int) -> Tensor:
    """Return an expert's value of each action in each position, (T, A) float32; -inf where one is illegal.

    Raises:
        ValueError: the view has no expert.
    """
    values = view.expert_values(episode.positions, depth).float()
    return values.masked_fill(~view.action_mask(episode.positions), -torch.inf)


def value_gaps(values: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Return (how much the choice matters, what the student's choice cost), (T,) each, by an expert's values.

    The first is the best legal action's value less the worst one's: `importance` of tutors/query.py, of an expert.
    """
    best = values.amax(1)
    worst = values.masked_fill(values == -torch.inf, torch.inf).amin(1)
    return best - worst, best - values.gather(1, actions[:, None])[:, 0]


def max_length(episodes: Sequence[Episode]) -> int:
    """Return the number of steps of the longest episode."""
    return max(len(episode.actions) for episode in episodes)
