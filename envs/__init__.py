"""Games as batched tensors: rules only, no word about learning or language."""

from collections.abc import Callable
from typing import Any

from envs.base import Env, Game
from envs.blackjack import Blackjack
from envs.gymnasium_vec import GymEnv
from envs.opponents import connect4_against
from envs.registry import check_options, closest, load, read_options
from envs.snake import Snake

__all__ = ["ENVS", "closest", "load", "make", "make_game", "read_options"]

ENVS: dict[str, Callable[..., Game]] = {"blackjack": Blackjack, "connect4": connect4_against, "snake": Snake}


def make(name: str, num_envs: int, seed: int = 0, device: str = "cpu", first_env_id: int = 0, **options: Any) -> Env:
    """Return `num_envs` copies of a game.

    Args:
        name: of ENVS; gym:ID for any Gymnasium env; module:Class for a game of one's own.
        num_envs: N.
        seed: of the games' luck.
        device: where all tensors live.
        first_env_id: id of the first copy, so that shards of one run play different games.
        options: the game's own.

    Raises:
        ValueError: there is no such game, or it has no such option; the message lists those there are.
    """
    if name.startswith("gym:"):
        return GymEnv(name.removeprefix("gym:"), num_envs, seed, device, first_env_id, **options)
    return Env(make_game(name, **options), num_envs, seed, device, first_env_id)


def make_game(name: str, **options: Any) -> Game:
    """Return the rules of a game of ENVS, or of one's own as module:Class.

    Raises:
        ValueError: as `make`.
    """
    game = find(name)
    check_options(name, game, options)
    return game(**options)


def find(name: str) -> Callable[..., Game]:
    """Return what makes the game called `name`."""
    if name in ENVS:
        return ENVS[name]
    if ":" in name:
        return load(name)
    raise ValueError(closest("env", name, [*ENVS, "gym:ID", "module:Class"]))
