"""What is called by a name: the one that was meant, what a user wrote, and what an option's text says."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def closest(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that nothing is called `name`, what there is, and what was probably meant."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no {kind} is called {name!r}; there are {', '.join(known)}{hint}"


def load(place: str) -> Any:
    """Return what stands under `module:name`, also of a file in the folder one is in.

    Raises:
        ValueError: there is no such module, or it has no such name.
    """
    module, _, name = place.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{place!r} is not to be had: {error}") from error


def read_options(texts: Iterable[str]) -> dict[str, Any]:
    """Return options from texts such as `size=6`: numbers, true and false as such, the rest as text.

    Raises:
        ValueError: a text is not of that form.
    """
    options: dict[str, Any] = {}
    for told in texts:
        name, sign, value = told.partition("=")
        if not sign or not name:
            raise ValueError(f"an option is told as NAME=VALUE, not {told!r}")
        options[name] = read(value)
    return options


def read(value: str) -> bool | int | float | str:
    """Return what a text says."""
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def check_options(owner: str, make: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise ValueError where `make` has no such option, or one whose default is of another type."""
    if not callable(make):
        raise ValueError(f"{owner} is not a class or a function but {make!r}")
    known = inspect.signature(make).parameters
    for name, value in options.items():
        if name not in known:
            raise ValueError(closest(f"option of {owner}", name, known) if known else f"{owner} has no options")
        default = known[name].default
        kinds = (int, float) if type(default) is float else (type(default),)
        if default is not inspect.Parameter.empty and type(value) not in kinds:
            raise ValueError(f"{owner}: {name} is of type {type(default).__name__}, and {value!r} is not")
