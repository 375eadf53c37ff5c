"""A tutor that is a function of your own: `--tutor module:function`, (prompts, action_mask) -> probabilities.

It costs what the function costs. Its answers are stored under the function's name and version.
"""

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.base import State
from envs.registry import load_object
from tutors.base import Advice, Tutor, TutorError, Warner
from tutors.prompts.base import PromptView

Function = Callable[[list[str], Tensor], Any]


class FunctionTutor(Tutor):
    """Asks a function: for B prompts and an action mask (B, A) on the CPU it returns B rows of A probabilities.

    Rows are normalised over the legal actions; a row of zeros is no opinion. A first call that fails ends the run: the
    function is wrong. A later one is no advice, as any failure of a tutor.

    Args:
        view: writes the prompts.
        name: module:function.

    Raises:
        ValueError: there is no such function.
    """

    takes_long = True

    def __init__(self, view: PromptView, name: str) -> None:
        self.view = view
        self.name = name
        self.function: Function = load_function(name)
        self.identity: dict[str, Any] = {"tutor": name, "version": version_of(self.function)}
        self.stats: Counter[str] = Counter()
        self.warn = Warner(logging.getLogger(__name__))

    def advise(self, state: State) -> Advice:
        prompts, action_mask = self.view.render(state), self.view.action_mask(state)
        is_first = not self.stats["asked"]
        self.stats["asked"] += len(prompts)
        try:
            weights = as_weights(self.function(prompts, action_mask.cpu()), action_mask)
        except Exception as error:  # whatever the function raises, or returns
            problem = f"--tutor {self.name} failed: {type(error).__name__}: {error}"
            if is_first:
                raise TutorError(problem) from error
            self.warn("function", problem)
            self.stats["no_advice/function"] += len(prompts)
            return Advice.no_advice(len(prompts), action_mask.shape[1], action_mask.device)
        is_sound = (weights.isfinite() & (weights >= 0)).all(1)
        legal = torch.where(is_sound[:, None] & action_mask, weights, 0.0)
        mass = legal.sum(1)
        valid = (mass > 0) & mass.isfinite()
        self.stats["no_advice/invalid"] += int((~is_sound).sum())
        self.stats["no_advice/no_opinion"] += int((is_sound & ~valid).sum())
        probs = torch.where(valid[:, None], legal / mass.clamp(min=torch.finfo(mass.dtype).tiny)[:, None], 0.0)
        share = mass / torch.where(valid, weights.sum(1), 1.0)
        return Advice(probs.float(), valid, torch.where(valid, share, 0.0).float())


def as_weights(answers: Any, action_mask: Tensor) -> Tensor:
    """Return what a function returned, (B, A) float64 on the mask's device.

    Raises:
        ValueError: it has another shape.
    """
    weights = torch.as_tensor(answers, dtype=torch.float64).detach().to(action_mask.device)
    if weights.shape != action_mask.shape:
        raise ValueError(f"it returned {tuple(weights.shape)} numbers for an action mask of {tuple(action_mask.shape)}")
    return weights


def is_function_name(tutor: str) -> bool:
    """Return whether a tutor's name is that of a function, module:function."""
    module, sign, function = tutor.partition(":")
    return bool(sign) and all(part.isidentifier() for part in [*module.split("."), function])


def load_function(name: str) -> Function:
    """Return the function `module:function`.

    Raises:
        ValueError: there is none.
    """
    function = load_object(name)
    if not callable(function):
        raise ValueError(f"--tutor {name} is no function but {type(function).__name__}")
    return function


def version_of(function: Function) -> str:
    """Return the `version` that a function has, or else a digest of the file that it stands in.

    So an edited function never finds the answers of the one before.
    """
    if (version := getattr(function, "version", None)) is not None:
        return str(version)
    module = sys.modules.get(getattr(function, "__module__", None) or type(function).__module__)
    file = getattr(module, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else "1"
