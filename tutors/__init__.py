"""Tutors: who gives advice, who keeps it, and how often it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutors.config import TutorConfig
    from tutors.factory import DEFAULT_URL, connect_servers, make_analyst, make_tutor, open_advisor

__all__ = ["DEFAULT_URL", "TutorConfig", "connect_servers", "make_analyst", "make_tutor", "open_advisor"]


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` when it is used: `python -m tutors` begins here, and PyTorch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'tutors' has no attribute {name!r}")
    return getattr(importlib.import_module("tutors.config" if name == "TutorConfig" else "tutors.factory"), name)
