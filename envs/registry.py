"""Environments by name, their options, and the message for a name that is unknown."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium

from envs.base import Env, Game, VecEnv
from envs.gymnasium_vec import GymnasiumVecEnv
from envs.rendering import register_drawing

ENVS = {  # name -> entry point of the game; imported when it is made
    "blackjack": "envs.blackjack:Blackjack",
    "connect4": "envs.opponents:connect4_against",
    "snake": "envs.snake:snake",
}


GAME_PARTS = ("spec", "reset", "step", "observe")


def make(
    name: str,
    num_envs: int,
    seed: int = 0,
    device: str = "cpu",
    first_env_id: int = 0,
    max_episode_steps: int | None = None,
    **options: Any,
) -> Env:
    """Return `num_envs` copies of the environment called `name`.

    Args:
        name: a key of ENVS; gym:ID for any Gymnasium env; module:Class for a game from elsewhere.
        num_envs: N.
        seed: of all randomness, with each copy's id.
        device: of all tensors.
        first_env_id: id of the first copy, so that shards of one run differ.
        max_episode_steps: time steps after which an episode is truncated; None: as the environment says.
        options: keyword arguments of the game or the Gymnasium env.

    Raises:
        ValueError: the environment or one of the options does not exist; the message lists those that do.
    """
    if max_episode_steps is not None and (type(max_episode_steps) is not int or max_episode_steps < 1):
        raise ValueError(f"max_episode_steps is {max_episode_steps!r}; it must be a whole number, at least 1")
    if name.startswith("gym:"):
        search_working_directory()  # for gym:MODULE:ID
        if max_episode_steps is not None:
            options["max_episode_steps"] = max_episode_steps
        return GymnasiumVecEnv(name.removeprefix("gym:"), num_envs, seed, device, first_env_id, **options)
    return VecEnv(make_game(name, **options), num_envs, seed, device, first_env_id, max_episode_steps)


def make_game(name: str, **options: Any) -> Game:
    """Return the game called `name`, a key of ENVS or module:Class.

    Raises:
        ValueError: as `make`.
    """
    entry_point = ENVS.get(name, name)
    if ":" not in entry_point:
        raise ValueError(unknown_name_message("env", name, [*ENVS, "gym:ID", "module:Class"]) + gymnasium_hint(name))
    game = load_object(entry_point)
    check_options(name, game, options)
    made: Game = make_object(name, game, GAME_PARTS, **options)
    if hasattr(made, "render"):
        register_drawing(made)
    return made


def make_object(name: str, make: Callable[..., Any], parts: Iterable[str], *args: Any, **options: Any) -> Any:
    """Return what a class or a function called `name` makes, which must have these attributes.

    Raises:
        ValueError: it makes nothing, or something else.
    """
    try:
        made = make(*args, **options)
    except ValueError:
        raise
    except Exception as error:  # whatever the code of a user raises
        raise ValueError(f"{name} cannot be made: {type(error).__name__}: {error}") from error
    missing = [part for part in parts if not hasattr(made, part)]
    if missing:
        raise ValueError(f"{name} makes {type(made).__name__}, which has no {', '.join(missing)}")
    return made


def gymnasium_hint(name: str) -> str:
    """Return that a Gymnasium env may be meant: one of that id, or of that name in its newest version; else nothing."""
    ids = [one for one in gymnasium.registry if one.partition("-v")[0].lower() == name.partition("-v")[0].lower()]
    return f"; did you mean 'gym:{name if name in ids else ids[-1]}'?" if ids else ""


def search_working_directory() -> None:
    """Let modules in the working directory be found."""
    working_directory = str(Path.cwd())
    if working_directory not in sys.path:
        sys.path.append(working_directory)


def load_object(entry_point: str) -> Any:
    """Return what `module:name` denotes; modules in the working directory are found too.

    Raises:
        ValueError: the module cannot be imported, or has no such name.
    """
    module, _, name = entry_point.partition(":")
    search_working_directory()
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"cannot load {entry_point!r}: {error}") from error


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Return options from texts such as `size=6`: numbers and booleans as such, all else as text.

    Raises:
        ValueError: a text is not of the form NAME=VALUE.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ValueError(f"an option must have the form NAME=VALUE, not {text!r}")
        options[name] = parse_value(value)
    return options


def parse_value(text: str) -> bool | int | float | str:
    """Return the boolean or the number that a text denotes, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def check_options(owner: str, make: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raise ValueError for an option that `make` does not take, or whose type differs from its default's."""
    if not callable(make):
        raise ValueError(f"{owner} is not a class or a function but {make!r}")
    try:
        known = inspect.signature(make).parameters
    except ValueError as error:  # of some builtins
        raise ValueError(f"{owner} cannot be made: {error}") from error
    for name, value in options.items():
        if name not in known:
            message = unknown_name_message(f"option of {owner}", name, known) if known else f"{owner} has no options"
            raise ValueError(message)
        default = known[name].default
        types = (int, float) if type(default) is float else (type(default),)
        if default is not inspect.Parameter.empty and type(value) not in types:
            raise ValueError(f"{owner}: {name} must be of type {type(default).__name__}, not {value!r}")


def unknown_name_message(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message that no `kind` is called `name`, with the known names and the closest match."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, 1, 0.5)
    matches += [one for one in known if one.lower() == name.lower()] if not matches else []
    hint = f"; did you mean {matches[0]!r}?" if matches else ""
    return f"no {kind} is called {name!r}; there are {', '.join(known)}{hint}"
