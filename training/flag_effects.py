"""Flags that were given and cannot act: refused, with what would make them act.

A run that ignores a flag in silence is a night lost: one with `--guidance distill` and no tutor learns alone.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from agents.guidance import GuidanceConfig, find_method
from training.cli import expand, flags_and_values
from training.config import Config
from tutors import TutorConfig
from tutors.llm.models import is_model
from tutors.recorded import PREFIX


class Requirement(NamedTuple):
    """What some flags require to act."""

    names: Collection[str]  # fields of the config
    is_met: Callable[[Any], bool]  # of the options
    remedy: str


def has_tutor(config: Config) -> bool:
    """Return whether somebody gives advice."""
    return config.tutoring.tutor != "none"


def is_scripted(config: Config) -> bool:
    """Return whether the tutor searches."""
    return config.tutoring.tutor == "scripted"


def is_served(config: Config) -> bool:
    """Return whether the tutor is a served model."""
    return is_model(config.tutoring.tutor)


def is_recorded(config: Config) -> bool:
    """Return whether the tutor is a recording."""
    return config.tutoring.tutor.startswith(PREFIX)


def reviews_episodes(config: Config) -> bool:
    """Return whether the tutor reads episodes."""
    return find_method(config.guiding.guidance, config.algo).needs_episode_review


def has_strength(config: Config) -> bool:
    """Return whether the guidance has a strength."""
    return find_method(config.guiding.guidance, config.algo).max_strength > 0


TUTORING = [one.name for one in fields(TutorConfig) if one.name != "tutor"]
GUIDING = [one.name for one in fields(GuidanceConfig)]
REQUIREMENTS = (  # the first that is not met is the error
    Requirement([*TUTORING, *GUIDING], has_tutor, "add --tutor NAME"),
    Requirement(
        ["tutor_accuracy", "tutor_stochastic", "tutor_all_best", "tutor_depth"],
        is_scripted,
        "it is of --tutor scripted",
    ),
    Requirement(["tutor_depth"], lambda config: config.env == "connect4", "it is of --env connect4"),
    Requirement(
        ["tutor_url", "tutor_key_file", "tutor_mode", "tutor_wait", "tutor_deadline", "tutor_optional"],
        is_served,
        "it is of a tutor that is a served model",
    ),
    Requirement(
        ["tutor_model"], lambda config: is_served(config) or is_recorded(config), "it is of a served or recorded model"
    ),
    Requirement(
        ["label_permutations", "label_set", "calibrate", "min_label_mass"],
        lambda config: is_served(config) and config.tutoring.tutor_mode == "label",
        "it is of a served model with --tutor-mode label",
    ),
    Requirement(
        ["tutor_tokens", "tutor_samples", "tutor_tries"],
        lambda config: is_served(config) and (config.tutoring.tutor_mode == "text" or reviews_episodes(config)),
        "it is of a served model with --tutor-mode text",
    ),
    Requirement(
        ["no_thinking"],
        lambda config: is_served(config) and config.tutoring.tutor_mode == "text",
        "it is of a served model with --tutor-mode text",
    ),
    Requirement(
        ["reward_scale", "episodes", "episode_selection", "no_audit"],
        reviews_episodes,
        "it is of a guidance that reviews episodes, such as --guidance modulate",
    ),
    Requirement(
        ["guidance_start", "guidance_end", "guidance_fraction"],
        has_strength,
        "it is of a guidance that has a strength, such as --guidance auto",
    ),
    Requirement(
        ["trust", "pretrain_updates"],
        lambda config: config.guiding.trust == "none" or (has_strength(config) and not reviews_episodes(config)),
        "it is of a guidance that has a strength, such as --guidance auto",
    ),
    Requirement(["pretrain_updates"], lambda config: config.guiding.trust != "none", "it is of --trust gap"),
    Requirement(
        ["guidance_end", "guidance_fraction"],
        lambda config: reviews_episodes(config) or config.guiding.trust == "none",
        "trust decides the strength: add --trust none",
    ),
    Requirement(
        ["reuse", "async_tutor", "query_strategy", "query_threshold", "query_budget", "query_budget_per_step"],
        lambda config: not reviews_episodes(config),
        "a guidance that reviews episodes makes no queries in training",
    ),
    Requirement(
        ["consult_from", "consult_to", "theta"],
        lambda config: config.tutoring.query_strategy == "chance" and not reviews_episodes(config),
        "it is of --query-strategy chance",
    ),
)


def check_effects(config: Config, args: Sequence[str]) -> None:
    """Raise ValueError for a flag of a command line that cannot act in the run that it describes."""
    config.check()  # a value that cannot be used comes first
    check_requirements(config, args, Config, REQUIREMENTS)


def check_requirements(options: Any, args: Sequence[str], kind: Any, requirements: Sequence[Requirement]) -> None:
    """Raise ValueError for a flag of a command line that cannot act; it describes `options`, of type `kind`."""
    expanded = expand(args, kind)
    given = {
        flag.removeprefix("--").replace("-", "_") for flag, _ in flags_and_values(expanded) if flag.startswith("--")
    }
    for names, is_met, remedy in requirements:
        idle = sorted(given & set(names))
        if idle and not is_met(options):
            raise ValueError(f"--{idle[0].replace('_', '-')} has no effect here: {remedy}")
