"""Dataclasses as plain values for JSON, and back, with the type of every field checked."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from training.ranges import shorten


def to_plain(value: Any, scrub: Callable[[str], str] = str) -> Any:
    """Return a value as JSON can hold it: paths and infinity as strings, tuples as lists; `scrub` rewrites strings."""
    if is_dataclass(value):
        return {one.name: to_plain(getattr(value, one.name), scrub) for one in fields(value)}
    if isinstance(value, tuple):
        return [to_plain(one, scrub) for one in value]
    if isinstance(value, str | Path):
        return scrub(str(value))
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def from_plain(kind: Any, value: Any, name: str = "", overrides: Mapping[str, Any] | None = None) -> Any:
    """Return what `to_plain` was given, an instance of `kind`.

    Args:
        name: of the field, for error messages.
        overrides: types of some fields of `kind` that take the place of the annotated ones.

    Raises:
        ValueError: a field is missing, unknown or of another type; the message names it.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return from_plain(args[0], value, name)
    if origin in (Union, UnionType) and NoneType in args:
        return None if value is None else from_plain(args[0], value, name)
    if is_dataclass(kind) and isinstance(value, dict):
        return dataclass_from_plain(kind, value, name, overrides or {})
    if origin is tuple and isinstance(value, list):
        return tuple(from_plain(args[0], one, f"{name}[{index}]") for index, one in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: from_plain(args[1], one, f"{name}.{key}") for key, one in value.items()}
    if origin is Literal and value in args:
        return value
    if kind in (str, Path) and isinstance(value, str):
        return kind(checked_text(value, name))
    if kind is float and (type(value) in (int, float) or value in ("inf", "-inf")):
        with suppress(OverflowError):
            return float(value)
    if kind in (bool, int) and type(value) is kind:
        return value
    expected = kind.__name__ if origin is None else str(kind).replace("typing.", "")
    raise ValueError(f"{name} is {shorten(repr(value))}; it must be of type {expected}")


def checked_text(text: str, name: str) -> str:
    """Return a text that names of files and messages can hold.

    Raises:
        ValueError: it has a character that they cannot.
    """
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} is {shorten(repr(text))}; it has a character that no text can have")
    return text


def dataclass_from_plain(kind: Any, values: dict[str, Any], name: str, overrides: Mapping[str, Any]) -> Any:
    """Return an instance of the dataclass `kind`; every field must be there, and no other."""
    hints = {**get_type_hints(kind, include_extras=True), **overrides}
    prefix = f"{name}." if name else ""
    names = [one.name for one in fields(kind)]
    if unknown := sorted(set(values) - set(names)):
        raise ValueError(f"{prefix}{unknown[0]} is no setting of this version")
    if missing := [one for one in names if one not in values]:
        raise ValueError(f"{prefix}{missing[0]} is missing")
    return kind(**{one: from_plain(hints[one], values[one], f"{prefix}{one}") for one in names})


def read_object(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds, an object.

    Raises:
        OSError: there is no such file.
        ValueError: it holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError(f"it holds {shorten(repr(values))} and no object")
    return values


def read_fields(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return some fields of a JSON file, each of its type.

    Raises:
        ValueError: the file cannot be read, or a field is missing or of another type; the message names both.
    """
    try:
        values = read_object(path)
        return {name: from_plain(kind, values.get(name), name) for name, kind in kinds.items()}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
