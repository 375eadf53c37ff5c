"""The methods of guidance by name, and the options of a run that concern them."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from agents.guidance.advantage import Advantage
from agents.guidance.base import Guidance
from agents.guidance.blend import Blend
from agents.guidance.demonstrate import Demonstrate
from agents.guidance.distill import KL, Distill
from agents.guidance.hint import Hint
from agents.guidance.margin import Margin
from agents.guidance.mask import Mask
from agents.guidance.modulate import Modulate, ModulateActions, ModulateDistill, ModulateRewards
from agents.guidance.override import CorrectedOverride, Override
from agents.guidance.preferences import Preferences
from agents.guidance.shape import Shape
from envs.registry import load_object, unknown_name_message

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
    "margin": Margin,
    "modulate": Modulate,
    "modulate-a": ModulateActions,
    "modulate-r": ModulateRewards,
    "modulate-d": ModulateDistill,
    "preferences": Preferences,
}
AUTO = {"dqn": "margin", "ppo": "distill", "a2c": "distill"}  # what `auto` is, by student
ALONE_EVERY = 4  # with trust: the first of so many env copies gets no advice that is acted on, to measure the student


def find_method(name: str, algo: str) -> type[Guidance]:
    """Return the method of that name, or what `auto` is for a student.

    Raises:
        ValueError: there is no such method, or it is not for this student.
    """
    method = load_method(AUTO[algo] if name == "auto" else name)
    if algo not in method.students:
        raise ValueError(f"--guidance {name} is for {' and '.join(method.students)}, not for {algo}")
    return method


def load_method(name: str) -> type[Guidance]:
    """Return the method of that name, a key of METHODS, or module:Class of your own.

    Raises:
        ValueError: there is no such method.
    """
    if ":" not in name:
        if name not in METHODS:
            raise ValueError(unknown_name_message("guidance", name, ("auto", *METHODS, "module:Class")))
        return METHODS[name]
    method = load_object(name)
    if not isinstance(method, type) or not issubclass(method, Guidance):
        raise ValueError(f"--guidance {name} is no guidance: it must be a subclass of agents.guidance.Guidance")
    return method


@dataclass(frozen=True)
class GuidanceConfig:
    """What is done with advice."""

    guidance: str = "auto"
    """What the student does with advice: auto (margin for dqn, distill for ppo and a2c), none, override (the paper's),
    override-corrected, distill, kl, blend, hint, mask, shape, advantage, demonstrate or margin; module:Class of your
    own. With --resume RUN, after the tutor has read RUN's student's episodes: modulate, modulate-a, modulate-r,
    modulate-d or preferences."""
    trust: Literal["gap", "none"] = "gap"
    """What decides the strength of a method that has one. gap: how much better the tutor plays than the student, from
    probe episodes, which are env steps of the run; none: the schedule of the three options below."""
    pretrain_updates: Annotated[int, Interval(ge=0, le=10**6)] = 1000
    """gap: updates on the tutor's probe episodes when it is found better than the student, at full trust."""
    guidance_start: Annotated[float, Interval(ge=0, le=1e6)] | None = None
    """Strength at the start, of a method that has one, or at full trust; by default the method's own."""
    guidance_end: Annotated[float, Interval(ge=0, le=1e6)] | None = None
    """Strength at the end; by default the method's own."""
    guidance_fraction: Annotated[float, Interval(ge=0, le=1)] | None = None
    """Share of the run over which the strength goes from start to end; by default the method's own."""
    reward_scale: Annotated[float, Interval(ge=0, le=1e6)] = 0.2
    """modulate, preferences: the reward that a 1 of the tutor's is worth."""
    episodes: Annotated[int, Interval(ge=2, le=10**6)] = 20
    """modulate, preferences: number of the student's episodes that are read."""
    episode_selection: Literal["worst", "any"] = "worst"
    """modulate, preferences: the episodes of the lowest returns of five times as many, or any."""
    no_audit: bool = False
    """modulate, preferences: use whatever the tutor found, without an audit by rollouts."""

    def check(self, algo: str) -> None:
        """Raise ValueError for a method that is not there, or that these options or this student do not fit."""
        method = find_method(self.guidance, algo)
        if self.episodes < 2:
            raise ValueError(f"episodes is {self.episodes}; it must be at least 2")
        if self.pretrain_updates < 0:
            raise ValueError(f"pretrain_updates is {self.pretrain_updates}; it must be at least 0")
        max_strength = method.max_strength
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

    def check_copies(self, algo: str, num_envs: int) -> None:
        """Raise ValueError if there are too few env copies to leave one without advice."""
        if num_envs < 2 and self.uses_trust(algo) and find_method(self.guidance, algo).acts_on_advice:
            raise ValueError(
                f"--guidance {self.guidance} with --trust gap requires at least 2 env copies: add --trust none"
            )

    def make(self, algo: str, has_policy: bool, device: torch.device | str, num_envs: int, gamma: float) -> Guidance:
        """Return the method for such a student: see `Guidance`."""
        method = find_method(self.guidance, algo)(has_policy, device, num_envs, gamma)
        method.reward_scale = self.reward_scale
        if method.acts_on_advice and self.uses_trust(algo):
            method.alone = torch.arange(num_envs, device=device) % ALONE_EVERY == 0
        return method

    def uses_trust(self, algo: str) -> bool:
        """Return whether trust decides the strength."""
        method = find_method(self.guidance, algo)
        return self.trust != "none" and method.max_strength > 0 and not method.needs_episode_review

    def strength_at(self, progress: float, method: Guidance | type[Guidance]) -> float:
        """Return the strength after that share of the run: linear, then constant."""
        start = method.strength_start if self.guidance_start is None else self.guidance_start
        end = method.strength_end if self.guidance_end is None else self.guidance_end
        fraction = method.strength_fraction if self.guidance_fraction is None else self.guidance_fraction
        return start + (end - start) * (min(progress / fraction, 1.0) if fraction > 0 else 1.0)

    def trusted_strength(self, method: Guidance | type[Guidance]) -> float:
        """Return the strength at full trust."""
        default = method.strength_start if method.trusted_strength is None else method.trusted_strength
        return default if self.guidance_start is None else self.guidance_start
