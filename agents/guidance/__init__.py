"""What a student does with advice: one file a method."""

from dataclasses import dataclass
from typing import Literal

import torch

from agents.base import Guidance
from agents.guidance.advantage import Advantage
from agents.guidance.blend import Blend
from agents.guidance.demonstrate import Demonstrate
from agents.guidance.distill import Distill, Near
from agents.guidance.hint import Hint
from agents.guidance.mask import Mask
from agents.guidance.modulate import Modulate, ModulateActions, ModulateDistill, ModulateRewards
from agents.guidance.override import CorrectedOverride, Override
from agents.guidance.preferences import Preferences
from agents.guidance.shape import Shape
from envs.registry import closest

METHODS: dict[str, type[Guidance]] = {
    "none": Guidance,
    "override": Override,
    "override-corrected": CorrectedOverride,
    "distill": Distill,
    "kl": Near,
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
    mask, shape, advantage or demonstrate. With --resume RUN, after the tutor has read RUN's student's games: modulate,
    modulate-a, modulate-r, modulate-d or preferences."""
    strength_from: float | None = None
    """How strongly at first, of the methods that have a strength; the method's own if not given."""
    strength_to: float | None = None
    """And in the end."""
    strength_over: float | None = None
    """Share of the run over which it goes from one to the other."""
    reward_scale: float = 0.2
    """modulate, preferences: what a reward of 1 in the tutor's eyes is worth."""
    episodes: int = 20
    """modulate, preferences: the student's games that are read."""
    which: Literal["worst", "any"] = "worst"
    """modulate, preferences: the games of the lowest returns of five times as many, or any."""

    def check(self, algo: str) -> None:
        """Raise ValueError for what cannot be done."""
        if self.guidance not in METHODS:
            raise ValueError(closest("guidance", self.guidance, METHODS))
        students = METHODS[self.guidance].students
        if algo not in students:
            raise ValueError(f"--guidance {self.guidance} is for {' and '.join(students)}, not for {algo}")
        if self.episodes < 2:
            raise ValueError(f"episodes is {self.episodes}; it must be at least 2")
        strongest = METHODS[self.guidance].strongest
        for name in ("strength_from", "strength_to", "strength_over", "reward_scale"):
            told = getattr(self, name)
            if told is None:
                continue
            if not 0 <= told < float("inf"):
                raise ValueError(f"{name} is {told}; it must be at least 0")
            if name != "reward_scale" and not strongest:
                raise ValueError(f"guidance {self.guidance} has no strength: leave out {name}")
            if name in ("strength_from", "strength_to") and told > strongest:
                raise ValueError(f"{name} is {told}; with {self.guidance} it must be at most {strongest:g}")

    def make(self, has_policy: bool, device: torch.device | str, num_envs: int, gamma: float) -> Guidance:
        """Return the method, for such a student: see `Guidance`."""
        method = METHODS[self.guidance](has_policy, device, num_envs, gamma)
        method.reward_scale = self.reward_scale
        return method

    def strength_at(self, progress: float) -> float:
        """Return the strength after that share of the run: linear, then constant."""
        method = METHODS[self.guidance]
        first, last, over = (
            getattr(method, name) if getattr(self, name) is None else getattr(self, name)
            for name in ("strength_from", "strength_to", "strength_over")
        )
        return first + (last - first) * (min(progress / over, 1.0) if over > 0 else 1.0)
