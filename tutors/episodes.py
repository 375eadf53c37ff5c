"""An episode of a student, step by step, as it is put to a tutor in words."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
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
    states: State  # T rows: the env's own states, of which `positions` are the canonical form


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


class EpisodeStatistics:
    """How often positions and actions occur in episodes, and what the episodes with them brought on average.

    A model that reads one bad episode over-reacts to it; these numbers say how much of it was luck. Source:
    arXiv:2605.08315.
    """

    def __init__(self, view: PromptView, episodes: Sequence[Episode]) -> None:
        self.view = view
        self.returns = [episode.episodic_return for episode in episodes]
        self.of_action: dict[int, list[float]] = defaultdict(list)  # returns of the episodes with it, once for each
        self.of_position: dict[tuple[int, ...], list[float]] = defaultdict(list)
        self.of_choice: dict[tuple[int, ...], list[float]] = defaultdict(list)  # of a position and an action
        for episode in episodes:
            keys, actions = view.key(episode.positions).tolist(), episode.actions.tolist()
            for action in set(actions):
                self.of_action[action].append(episode.episodic_return)
            for key in set(map(tuple, keys)):
                self.of_position[key].append(episode.episodic_return)
            for choice in {(*key, action) for key, action in zip(keys, actions, strict=True)}:
                self.of_choice[choice].append(episode.episodic_return)

    def overview(self) -> str:
        """Return what all episodes have in common, in words."""
        low, high = min(self.returns), max(self.returns)
        actions = "; ".join(
            f"{self.view.labels[action]} in {len(returns)}, which brought {fmean(returns):+.2f}"
            for action, returns in sorted(self.of_action.items())
        )
        return (
            f"This is one of {len(self.returns)} games of the student. They brought {low:+g} to {high:+g}, "
            f"{fmean(self.returns):+.2f} on average. The student chose {actions} on average."
        )

    def of_steps(self, episode: Episode) -> list[str]:
        """Return what is known of each step of an episode, in words; nothing where it occurs in no other episode."""
        texts = []
        for key, action in zip(self.view.key(episode.positions).tolist(), episode.actions.tolist(), strict=True):
            position, choice = self.of_position[tuple(key)], self.of_choice[(*key, action)]
            texts.append(
                f" This position came up in {len(position)} of the games, which brought {fmean(position):+.2f} on "
                f"average; with this choice in {len(choice)}, which brought {fmean(choice):+.2f}."
                if len(position) > 1
                else ""
            )
        return texts


def render_episode(view: PromptView, episode: Episode, statistics: EpisodeStatistics | None = None) -> str:
    """Return an episode in words: each position, what the student did there, and the return.

    With statistics, those of all episodes come first, and those of a position and a choice after each step.
    """
    steps = []
    texts = position_texts(view, episode.positions)
    known = [""] * len(texts) if statistics is None else statistics.of_steps(episode)
    actions, rewards = episode.actions.tolist(), episode.rewards.tolist()
    for number, (text, action, reward, often) in enumerate(zip(texts, actions, rewards, known, strict=True), 1):
        gain = f", and got {reward:+g}" if reward else ""
        steps.append(f"Step {number}\n{text}\nThe student chose {view.labels[action]}{gain}.{often}")
    skipped = f"After {episode.num_earlier_steps} earlier steps:\n\n" if episode.num_earlier_steps else ""
    end = f"The whole game brought {episode.episodic_return:+g}."
    overview = "" if statistics is None else f"{statistics.overview()}\n\n"
    return "\n\n".join([f"{overview}{skipped}{steps[0]}", *steps[1:], end])


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
