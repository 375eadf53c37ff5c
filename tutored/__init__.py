"""Tutored as a library: the names that a script or a notebook works with.

    import tutored

    config = tutored.make_config("ppo", "connect4", tutor="scripted", guidance="distill", total_steps=50_000)
    student = tutored.train(config)
    action, _ = student.predict(obs, action_mask=mask)

A name is imported when it is used. `tutored.sb3`, for Stable-Baselines3, is imported by itself.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.guidance import GuidanceConfig
    from envs import make as make_env
    from envs import make_game
    from training.config import Config, make_agent, make_config
    from training.student import Student, load
    from tutored.run import train
    from tutors import TutorConfig, open_advisor
    from tutors.advice_table import AdviceTable
    from tutors.base import Advice, Tutor

__all__ = [
    "Advice",
    "AdviceTable",
    "Config",
    "GuidanceConfig",
    "Student",
    "Tutor",
    "TutorConfig",
    "load",
    "make_agent",
    "make_config",
    "make_env",
    "make_game",
    "open_advisor",
    "train",
]
PLACES = {  # where each name is, as module:name
    "Advice": "tutors.base:Advice",
    "AdviceTable": "tutors.advice_table:AdviceTable",
    "Config": "training.config:Config",
    "GuidanceConfig": "agents.guidance:GuidanceConfig",
    "Student": "training.student:Student",
    "Tutor": "tutors.base:Tutor",
    "TutorConfig": "tutors:TutorConfig",
    "load": "training.student:load",
    "make_agent": "training.config:make_agent",
    "make_config": "training.config:make_config",
    "make_env": "envs:make",
    "make_game": "envs:make_game",
    "open_advisor": "tutors:open_advisor",
    "train": "tutored.run:train",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used."""
    if name not in PLACES:
        raise AttributeError(f"module 'tutored' has no attribute {name!r}")
    module, _, inside = PLACES[name].partition(":")
    return getattr(importlib.import_module(module), inside)


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return __all__
