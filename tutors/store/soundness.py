"""What a stored row must hold to be used: rows are data that anything may have happened to, whatever wrote them.

A column of SQLite takes values of any type and size, and a file may be edited or have flipped bits.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sql

from tutors.store.database import answers
from tutors.store.identity import digest_of

COSTS = ("prompt_tokens", "answer_tokens", "seconds")
KEY_LIMIT = 1 << 63  # halves of a key are signed 64-bit integers
MAX_NUMBER = sys.float_info.max
MAX_FLOAT32 = float.fromhex("0x1.fffffep127")  # advice is float32: what is larger would become infinite
SUM_TOLERANCE = 1e-3  # of probabilities
MAX_COST = 1e15  # tokens or seconds of one answer that are believed
MIN_TIME, MAX_TIME = -62_135_596_800, 253_402_300_799  # seconds since 1970 that are a date of the years 1 to 9999
MAX_PROBS_CHARS = 1 << 16  # of a distribution; ours have some twenty an action
MAX_WORDS_CHARS = 1 << 20  # of a prompt


def is_number(value: object, limit: float = MAX_NUMBER) -> bool:
    """Return whether a value is a number from -`limit` to `limit`; a truth value is not, and neither is NaN."""
    return type(value) in (int, float) and -limit <= value <= limit  # type: ignore[operator]


def is_key(value: object) -> bool:
    """Return whether a value is a half of a key."""
    return type(value) is int and -KEY_LIMIT <= value < KEY_LIMIT


def is_time(value: object) -> bool:
    """Return whether a value is a time that has a date."""
    return is_number(value) and MIN_TIME <= value <= MAX_TIME  # type: ignore[operator]


def parse_probs(text: object, num_actions: int) -> list[float] | None:
    """Return the numbers of a distribution, None where `text` is no JSON list of so many."""
    try:
        numbers = json.loads(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError):
        return None
    if not isinstance(numbers, list) or len(numbers) != num_actions:
        return None
    return list(map(float, numbers)) if all(is_number(number, MAX_FLOAT32) for number in numbers) else None


def is_cost(value: object) -> bool:
    """Return whether a value is a cost that is believed."""
    return is_number(value, MAX_COST) and value >= 0  # type: ignore[operator]


CHECKS: dict[str, Callable[[Any], bool]] = {  # of an answer's columns
    "key": is_key,
    "check": is_key,
    "label_mass": lambda value: is_number(value, MAX_FLOAT32),
    "words": lambda value: isinstance(value, str),
    "at": is_time,
    **dict.fromkeys(COSTS, is_cost),
}


def is_distribution(answer: Mapping[str, Any]) -> bool:
    """Return whether a sound answer's numbers are probabilities, which what is exported or merged must be."""
    probs = answer["probs"]
    return min(probs) >= 0 and abs(sum(probs) - 1) < SUM_TOLERANCE and 0 <= answer["label_mass"] < 1 + SUM_TOLERANCE


def sound_answer(row: sql.RowMapping, num_actions: int) -> dict[str, Any] | None:
    """Return what was read of an answer, its distribution as numbers; None where a part of it is damaged.

    `row` has any of the columns that `columns_of` selects.
    """
    probs = parse_probs(row["probs"], num_actions)
    if probs is None or not all(CHECKS[name](value) for name, value in row.items() if name in CHECKS):
        return None
    return {**row, "probs": probs}


def columns_of(*names: str) -> list[Any]:
    """Return columns of answers to select so that no value fails to be read, whatever its type; too large is NULL."""
    texts = {"probs": sql.cast(answers.c.probs, sql.Text), "words": answers.c.words}
    limits = {"probs": MAX_PROBS_CHARS, "words": MAX_WORDS_CHARS}
    return [
        sql.case((sql.func.length(texts[name]) <= limits[name], texts[name])).label(name)
        if name in limits
        else answers.c[name]
        for name in names
    ]


def sound_identity(digest: object, text: object) -> dict[str, Any] | None:
    """Return the identity that was stored as `text` under a digest, None where it is damaged."""
    try:
        identity = json.loads(text)  # type: ignore[arg-type]
        is_same = isinstance(identity, dict) and digest_of(identity)[0] == digest
    except (TypeError, ValueError, RecursionError):
        return None
    return identity if is_same and has_labels(identity) else None


def has_labels(identity: dict[str, Any]) -> bool:
    """Return whether an identity says what each action is called."""
    labels = identity.get("labels")
    is_list = isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)
    return bool(is_list) and len(set(labels)) == len(labels)  # type: ignore[arg-type]
