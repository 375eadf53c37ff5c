"""What advice is, who gives it, and how a game is put into words."""

import logging
import math
import time
from collections import Counter
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from envs.base import State

WARN_EVERY = 60.0  # seconds between two warnings of one kind


class Advice(NamedTuple):
    """What a tutor holds of the actions in B positions."""

    probs: Tensor  # (B, A) float32: a distribution over the legal actions; zeros where there is no advice
    given: Tensor  # (B,) bool: whether there is advice
    label_mass: Tensor  # (B,) float32 in [0, 1]: how much of the tutor's mind was on legal answers at all

    @classmethod
    def silence(cls, rows: int, num_actions: int, device: torch.device | str = "cpu") -> "Advice":
        """Return no advice for any of `rows` positions."""
        probs = torch.zeros(rows, num_actions, device=device)
        return cls(probs, torch.zeros(rows, dtype=torch.bool, device=device), probs.new_zeros(rows))

    def to(self, device: torch.device | str) -> "Advice":
        """Return the same advice on `device`."""
        return Advice(*(tensor.to(device) for tensor in self))


class View(Protocol):
    """A game in words. The words decide what a tutor knows; equal words have equal keys, and only they.

    A question is always asked about a canonical position, so that positions which are one and the same
    to a player are one question. `symmetry[t, a]` is the canonical position's name for action `a` of a
    position that transform `t` made canonical.
    """

    game: str
    name: str
    version: int  # changes with any word or key
    labels: tuple[str, ...]  # one letter an action
    rules: str  # what all prompts begin with
    symmetry: Tensor  # (S, A) int64

    def canonical(self, state: State) -> tuple[State, Tensor]:
        """Return (the canonical positions, the transform that led there (B,) int64)."""

    def key(self, state: State) -> Tensor:
        """Return (B, 2) int64, equal exactly when the words would be equal."""

    def legal(self, state: State) -> Tensor:
        """Return which actions are legal, (B, A) bool."""

    def words(self, state: State) -> list[str]:
        """Return the whole question about each position: rules first, position last."""

    def values(self, state: State, depth: int) -> Tensor:
        """Return how good a search of `depth` finds each action, (B, A); the best is the largest."""


class Tutor(Protocol):
    """Whoever can be asked. Failure is silence, never an exception, never an illegal action."""

    name: str
    identity: str  # whose answers these are, as the advice store tells answers apart
    stats: Counter[str]  # asked: prompts sent; silent/<kind>: positions without an answer

    def advise(self, state: State) -> Advice:
        """Return advice for every row of `state`, on the CPU or wherever `state` lives."""


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
