"""Games as batched tensors: rules only, no word about learning or language."""

import difflib
from collections.abc import Iterable

from envs.base import Env
from envs.connect4 import Connect4
from envs.opponents import OPPONENTS

__all__ = ["ENVS", "OPPONENTS", "closest", "make"]

ENVS = ("connect4",)


def make(
    name: str,
    num_envs: int,
    seed: int = 0,
    device: str = "cpu",
    opponent: str = "tactical",
    first_game: int = 0,
) -> Env:
    """Return `num_envs` copies of the game called `name`.

    Raises:
        ValueError: no game or opponent has that name; the message lists those there are.
    """
    if name not in ENVS:
        raise ValueError(closest("env", name, ENVS))
    if opponent not in OPPONENTS:
        raise ValueError(closest("opponent", opponent, OPPONENTS))
    return Env(Connect4(OPPONENTS[opponent]), num_envs, seed, device, first_game)


def closest(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that nothing is called `name`, what there is, and what was probably meant."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no {kind} is called {name!r}; there are {', '.join(known)}{hint}"
