"""What advice is, and the interface of a tutor."""

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.base import State

SECONDS_BETWEEN_WARNINGS = 60.0  # of one kind


class Advice(NamedTuple):
    """A tutor's advice for B positions."""

    probs: Tensor  # (B, A) float32: a distribution over the legal actions; zeros where there is no advice
    valid: Tensor  # (B,) bool: whether there is advice
    label_mass: Tensor  # (B,) float32 in [0, 1]: the probability that the tutor gave to legal answers at all

    @classmethod
    def no_advice(cls, rows: int, num_actions: int, device: torch.device | str = "cpu") -> "Advice":
        """Return no advice for any of `rows` positions."""
        probs = torch.zeros(rows, num_actions, device=device)
        return cls(probs, torch.zeros(rows, dtype=torch.bool, device=device), probs.new_zeros(rows))

    def to(self, device: torch.device | str) -> "Advice":
        """Return the same advice on `device`."""
        return Advice(*(tensor.to(device) for tensor in self))


class Tutor:
    """Gives advice. A failure is no advice, counted by kind; never an exception, never an illegal action.

    What this class defines is right for a tutor that answers at once, without a server.
    """

    name: str
    identity: dict[str, Any]  # the tutor and its settings: the advice store keeps answers of each identity apart
    stats: Counter[str]  # asked: prompts sent; no_advice/<kind>: positions without an answer
    shares_cpu: bool = False  # whether a server on this machine computes its answers
    takes_long: bool = False  # whether a signal ends a call of `advise`, rather than the time step

    def advise(self, state: State) -> Advice:
        """Return advice for every row of `state`, canonical positions of a view, on the CPU or on its device."""
        raise NotImplementedError

    def rescue(self) -> Advice | None:
        """Return, once, the advice that a call of `advise` had before an exception ended it, for all its rows.

        None where there was none: what is answered at once is answered in full, or not at all.
        """
        return None

    def cancel(self) -> None:
        """Make a call of `advise` that another thread waits for end at once, with an exception."""
        return

    def report(self) -> dict[str, float]:
        """Return what the tutor's own side measured since the last report, as TensorBoard tags."""
        return {}


def no_advice_counts(stats: Mapping[str, float]) -> dict[str, Any]:
    """Return the number of positions without advice, by kind of failure that occurred, out of a tutor's counters."""
    start = "no_advice/"
    return {name.removeprefix(start): count for name, count in stats.items() if name.startswith(start) and count}


class Warner:
    """Logs a warning of each kind at most once a minute, so that a long run's log stays readable."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.last: dict[str, float] = {}  # time of the last warning of each kind

    def __call__(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self.last.get(kind, -math.inf) >= SECONDS_BETWEEN_WARNINGS:
            self.last[kind] = now
            self.logger.warning(text)


class TutorError(Exception):
    """The tutor is unavailable until the user acts; the message is for the user."""
