"""Whose answers are stored, and to which prompts: what two answers must share to be interchangeable."""

import hashlib
import json
from typing import Any

from envs.base import Spec
from tutors.prompts.base import PromptView


def question_of(spec: Spec, view: PromptView) -> dict[str, Any]:
    """Return everything that two prompts must share to be written in the same words."""
    return {
        "game": spec.name,
        "game_version": spec.version,
        "view": view.name,
        "view_version": view.version,
        "rules": view.instructions,
        "labels": list(view.labels),
    }


def identity_of(spec: Spec, view: PromptView, tutor: dict[str, Any]) -> dict[str, Any]:
    """Return everything that two answers must share to be answers to the same prompt; see `Tutor.identity`."""
    return question_of(spec, view) | tutor


def digest_of(identity: dict[str, Any]) -> tuple[str, str]:
    """Return (SHA-256, JSON) of an identity, the same for equal ones whatever the order of their keys."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), text
