"""What advice is, who gives it, and how a game is put into words."""

import copy
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from envs.base import Game, State

WARN_EVERY = 60.0  # seconds between two warnings of one kind
BRIEFLY = "Answer with the letter of one option only."  # what the rules of every view ask for
ANSWER = "Answer:"  # and how a question ends


class Advice(NamedTuple):
    """What a tutor holds of the actions in B positions."""

    probs: Tensor  # (B, A) float32: a distribution over the legal actions; zeros where there is no advice
    given: Tensor  # (B,) bool: whether there is advice
    label_mass: Tensor  # (B,) float32 in [0, 1]: how much of the tutor's mind was on legal answers at all

    @classmethod
    def no_advice(cls, rows: int, num_actions: int, device: torch.device | str = "cpu") -> "Advice":
        """Return no advice for any of `rows` positions."""
        probs = torch.zeros(rows, num_actions, device=device)
        return cls(probs, torch.zeros(rows, dtype=torch.bool, device=device), probs.new_zeros(rows))

    def to(self, device: torch.device | str) -> "Advice":
        """Return the same advice on `device`."""
        return Advice(*(tensor.to(device) for tensor in self))


class View:
    """A game in words. The words decide what a tutor knows; equal words have equal keys, and only they.

    `canonical` reduces a game's state to what is told of it, in a form that is the same for positions which
    are one and the same to a player; all the other methods take what it returned. `symmetry[t, a]` is the told
    position's name for action `a` of a position that transform `t` led from.

    A subclass says what the first five are, `key` and `words`; the rest defaults to no symmetry, all legal, no expert.
    Where `words` and `rules` name the actions by nothing but `labels`, it may say `relabels = True`: then its letters
    can be dealt anew. Where `canonical` keeps to the transforms that `symmetry` has rows for, it may say
    `optional_symmetry = True`: with the first of them alone, the identity, positions are told as they lie.
    """

    game: str
    name: str
    version: int  # changes with any word or key
    labels: tuple[str, ...]  # one letter an action
    rules: str  # what all prompts begin with
    symmetry: Tensor  # (S, A) int64
    relabels = False
    optional_symmetry = False

    def __init_subclass__(cls) -> None:
        if not hasattr(cls, "symmetry"):
            cls.symmetry = torch.arange(len(cls.labels))[None]

    def __init__(self, game: Game) -> None:
        """Take what must be known of the rules."""

    def relabelled(self, labels: tuple[str, ...]) -> "View":
        """Return the same view with other letters for the actions: the same ones in another order.

        Raises:
            ValueError: its words name the actions by more than `labels`.
        """
        if not self.relabels:
            raise ValueError(f"the view {self.name} of {self.game} cannot deal its letters anew (--label-permutations)")
        other = copy.copy(self)
        other.labels = labels
        other.rules = other.introduce()
        return other

    def without_symmetry(self) -> "View":
        """Return the same view without symmetry, under a name of its own: its questions are others.

        Raises:
            ValueError: it has a symmetry that it cannot do without.
        """
        if len(self.symmetry) == 1:
            return self
        if not self.optional_symmetry:
            raise ValueError(f"the view {self.name} of {self.game} cannot do without its symmetry (--no-symmetry)")
        other = copy.copy(self)
        other.symmetry, other.name = self.symmetry[:1], f"{self.name} without symmetry"
        other.rules = other.introduce()
        return other

    def to(self, device: torch.device | str) -> "View":
        """Return the same view with its tensors on a device, where it is asked step by step."""
        other = copy.copy(self)
        for name in {*vars(self), "symmetry"}:
            if isinstance(tensor := getattr(self, name), Tensor):
                setattr(other, name, tensor.to(device))
        return other

    def introduce(self) -> str:
        """Return the rules as they read with these `labels`."""
        return self.rules

    def blank(self) -> str:
        """Return a question without a position: what is answered to it was held before anything was seen."""
        return self.rules + ANSWER

    def canonical(self, state: State) -> tuple[State, Tensor]:
        """Return (what is told of B positions, tensors of B rows, the transform that led there (B,) int64)."""
        rows = next(iter(state.values()))
        return state, torch.zeros(len(rows), dtype=torch.int64, device=rows.device)

    def key(self, state: State) -> Tensor:
        """Return (B, 2) int64, equal exactly when the words would be equal."""
        raise NotImplementedError

    def words(self, state: State) -> list[str]:
        """Return the whole question about each position: rules first, position last."""
        raise NotImplementedError

    def action_mask(self, state: State) -> Tensor:
        """Return which actions are legal, (B, A) bool."""
        rows = next(iter(state.values()))
        return torch.ones(len(rows), len(self.labels), dtype=torch.bool, device=rows.device)

    @property
    def has_expert(self) -> bool:
        """Whether somebody has said what an expert would hold of this game."""
        return type(self).values is not View.values

    def values(self, state: State, depth: int) -> Tensor:
        """Return how good an expert finds each action by what is told, (B, A); the best is the largest.

        `depth` is how far the expert looks ahead, where it searches. Differences are of some few units.

        Raises:
            ValueError: nobody has said what an expert would hold of this game.
        """
        raise ValueError(f"the view {self.name} of {self.game} has no expert, which a scripted tutor needs")


class Tutor(Protocol):
    """Whoever can be asked. Failure is silence, never an exception, never an illegal action."""

    name: str
    identity: dict[str, Any]  # whose answers these are and how they are asked for: the advice store tells them apart
    stats: Counter[str]  # asked: prompts sent; no_advice/<kind>: positions without an answer

    def advise(self, state: State) -> Advice:
        """Return advice for every row of `state`, which a view has told, on the CPU or wherever it lives."""

    def report(self) -> dict[str, float]:
        """Return what the tutor's own side has to say since the last report, as TensorBoard tags."""


def no_advice_counts(stats: Mapping[str, float]) -> dict[str, Any]:
    """Return how many positions got no advice, by kind of failure, out of a tutor's counters."""
    return {name.removeprefix("no_advice/"): count for name, count in stats.items() if name.startswith("no_advice/")}


class Warner:
    """Warns of each kind of trouble at most once a minute, so that a long run's log stays readable."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.last: dict[str, float] = {}  # when each kind was last warned of

    def __call__(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self.last.get(kind, -math.inf) >= WARN_EVERY:
            self.last[kind] = now
            self.logger.warning(text)


class TutorError(Exception):
    """The tutor cannot be had at all: the message is for the user, who must act."""
