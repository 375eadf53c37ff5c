"""How a position is put to a tutor: the interface of a prompt view."""

import copy

import torch
from torch import Tensor

from envs.base import Game, State

LETTER_ONLY = "Answer with the letter of one option only."  # what the instructions of every view ask for
NUMBER_ONLY = "Answer with the number of one option only."  # the same where digits are the labels
DIGITS = tuple("123456789")
ANSWER = "Answer:"  # how every prompt ends


class PromptView:
    """How one game's positions are written as prompts.

    `canonicalize` reduces a game's state to what the prompt shows of it, in a form that is the same for positions that
    are equivalent to a player; all other methods take such canonical positions. `symmetry[t, a]` is the canonical
    position's name for action `a` of a position that transform `t` led from. Prompts are equal exactly when keys are.

    A subclass sets the first five attributes and defines `key` and `render`. Defaults: no symmetry, all actions
    legal, no expert. If `render` and `instructions` name the actions by nothing but `labels`, it may set
    `relabels = True`: its letters can then be permuted. If `canonicalize` uses only the transforms that `symmetry` has
    rows for, it may set `optional_symmetry = True`: with the first row alone, the identity, nothing is transformed.
    """

    game: str
    name: str
    version: int  # changes with any prompt or key
    labels: tuple[str, ...]  # one letter for each action
    instructions: str  # what every prompt begins with
    symmetry: Tensor  # (S, A) int64
    relabels = False
    optional_symmetry = False
    is_rewording = False  # whether it shows what another view of the game shows, in other words

    def __init_subclass__(cls) -> None:
        if not hasattr(cls, "symmetry"):
            cls.symmetry = torch.arange(len(cls.labels))[None]

    def __init__(self, game: Game) -> None:
        """Store what the prompts need to know of the game's rules."""

    def relabelled(self, labels: tuple[str, ...]) -> "PromptView":
        """Return the same view with its letters in another order, or with other labels.

        Raises:
            ValueError: its prompts name the actions by more than `labels`.
        """
        if not self.relabels:
            raise ValueError(f"the view {self.name} of {self.game} cannot permute its letters (--label-permutations)")
        other = copy.copy(self)
        other.labels = labels
        other.instructions = other.render_instructions()
        if set(labels) <= set(DIGITS):
            other.instructions = other.instructions.replace(LETTER_ONLY, NUMBER_ONLY)
        return other

    def with_digits(self) -> "PromptView":
        """Return the same view with digits from 1 on as labels.

        Raises:
            ValueError: its prompts name the actions by more than `labels`, or there are more actions than digits.
        """
        if not self.relabels or len(self.labels) > len(DIGITS):
            raise ValueError(f"the view {self.name} of {self.game} cannot have digits as labels (--label-set)")
        return self.relabelled(DIGITS[: len(self.labels)])

    def without_symmetry(self) -> "PromptView":
        """Return the same view without symmetry, under another name, since its prompts differ.

        Raises:
            ValueError: it requires its symmetry.
        """
        if len(self.symmetry) == 1:
            return self
        if not self.optional_symmetry:
            raise ValueError(f"the view {self.name} of {self.game} requires its symmetry: leave out --no-symmetry")
        other = copy.copy(self)
        other.symmetry, other.name = self.symmetry[:1], f"{self.name} without symmetry"
        other.instructions = other.render_instructions()
        return other

    def to(self, device: torch.device | str) -> "PromptView":
        """Return the same view with its tensors on `device`."""
        other = copy.copy(self)
        for name in {*vars(self), "symmetry"}:
            if isinstance(tensor := getattr(self, name), Tensor):
                setattr(other, name, tensor.to(device))
        return other

    def render_instructions(self) -> str:
        """Return the instructions for the current `labels`."""
        return self.instructions

    def content_free_prompt(self) -> str:
        """Return a prompt without a position, whose answer shows what the model prefers before it sees anything."""
        return self.instructions + ANSWER

    def canonicalize(self, state: State) -> tuple[State, Tensor]:
        """Return (canonical positions, B rows; the transform that led to each, (B,) int64)."""
        rows = next(iter(state.values()))
        return state, torch.zeros(len(rows), dtype=torch.int64, device=rows.device)

    def key(self, state: State) -> Tensor:
        """Return (B, 2) int64, equal exactly when the prompts are equal."""
        raise NotImplementedError

    def render(self, state: State) -> list[str]:
        """Return the whole prompt for each position: instructions first, position last."""
        raise NotImplementedError

    def action_mask(self, state: State) -> Tensor:
        """Return which actions are legal, (B, A) bool: as the state says, if it does and nothing is transformed."""
        rows = next(iter(state.values()))
        mask = state.get("action_mask")
        if mask is not None and mask.shape == (len(rows), len(self.labels)) and len(self.symmetry) == 1:
            return mask.bool()
        return torch.ones(len(rows), len(self.labels), dtype=torch.bool, device=rows.device)

    @property
    def has_expert(self) -> bool:
        """Whether the view defines `expert_values`."""
        return type(self).expert_values is not PromptView.expert_values

    def expert_values(self, state: State, depth: int) -> Tensor:
        """Return an expert's value of each action, by what the prompt shows, (B, A); the largest is best.

        `depth` is how far the expert looks ahead, where it searches. Values differ by a few units.

        Raises:
            ValueError: the view defines no expert.
        """
        raise ValueError(f"the view {self.name} of {self.game} has no expert, which a scripted tutor requires")
