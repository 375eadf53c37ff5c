"""The methods of guidance by name, and the options of a run that concern them."""

from dataclasses import dataclass
from typing import Literal

import torch

from agents.guidance.advantage import Advantage
from agents.guidance.base import Guidance
from agents.guidance.blend import Blend
from agents.guidance.demonstrate import Demonstrate
from agents.guidance.distill import KL, Distill
from agents.guidance.hint import Hint
from agents.guidance.mask import Mask
from agents.guidance.modulate import Modulate, ModulateActions, ModulateDistill, ModulateRewards
from agents.guidance.override import CorrectedOverride, Override
from agents.guidance.preferences import Preferences
from agents.guidance.shape import Shape
from envs.registry import unknown_name_message

METHODS: dict[str, type[Guidance]] = {
    "none": Guidance,
    "override": Override,
    "override-corrected": CorrectedOverride,
    "distill": Distill,
    "kl": KL,
    "blend": Blend,
    "hint": Hint,
    "mask": Mask,
    "shape": Shape,
    "advantage": Advantage,
    "demonstrate": Demonstrate,
    "modulate": Modulate,
    "modulate-a": ModulateActions,
    "modulate-r": ModulateRewards,
    "modulate-d": ModulateDistill,
    "preferences": Preferences,
}


@dataclass(frozen=True)
class GuidanceConfig:
    """What is done with advice."""

    guidance: str = "override"
    """What the student does with advice: none, override (the paper's), override-corrected, distill, kl, blend, hint,
    mask, shape, advantage or demonstrate. With --resume RUN, after the tutor has read RUN's student's episodes:
    modulate, modulate-a, modulate-r, modulate-d or preferences."""
    guidance_start: float | None = None
    """Strength at the start, of a method that has one; by default the method's own."""
    guidance_end: float | None = None
    """Strength at the end; by default the method's own."""
    guidance_fraction: float | None = None
    """Share of the run over which the strength goes from start to end; by default the method's own."""
    reward_scale: float = 0.2
    """modulate, preferences: the reward that a 1 of the tutor's is worth."""
    episodes: int = 20
    """modulate, preferences: number of the student's episodes that are read."""
    episode_selection: Literal["worst", "any"] = "worst"
    """modulate, preferences: the episodes of the lowest returns of five times as many, or any."""

    def check(self, algo: str) -> None:
        """Raise ValueError for a method that is not there, or that these options or this student do not fit."""
        if self.guidance not in METHODS:
            raise ValueError(unknown_name_message("guidance", self.guidance, METHODS))
        students = METHODS[self.guidance].students
        if algo not in students:
            raise ValueError(f"--guidance {self.guidance} is for {' and '.join(students)}, not for {algo}")
        if self.episodes < 2:
            raise ValueError(f"episodes is {self.episodes}; it must be at least 2")
        max_strength = METHODS[self.guidance].max_strength
        for name in ("guidance_start", "guidance_end", "guidance_fraction", "reward_scale"):
            value = getattr(self, name)
            if value is None:
                continue
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be at least 0")
            if name != "reward_scale" and not max_strength:
                raise ValueError(f"guidance {self.guidance} has no strength: leave out {name}")
            if name in ("guidance_start", "guidance_end") and value > max_strength:
                raise ValueError(f"{name} is {value}; with {self.guidance} it must be at most {max_strength:g}")

    def make(self, has_policy: bool, device: torch.device | str, num_envs: int, gamma: float) -> Guidance:
        """Return the method for such a student: see `Guidance`."""
        method = METHODS[self.guidance](has_policy, device, num_envs, gamma)
        method.reward_scale = self.reward_scale
        return method

    def strength_at(self, progress: float) -> float:
        """Return the strength after that share of the run: linear, then constant."""
        method = METHODS[self.guidance]
        start = method.strength_start if self.guidance_start is None else self.guidance_start
        end = method.strength_end if self.guidance_end is None else self.guidance_end
        fraction = method.strength_fraction if self.guidance_fraction is None else self.guidance_fraction
        return start + (end - start) * (min(progress / fraction, 1.0) if fraction > 0 else 1.0)
