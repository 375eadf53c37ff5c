"""Gymnasium's spaces as a student sees them: observations as one tensor, actions as one number.

Pictures come in two orders and several types. Those of (rows, columns, channels) become (channels, rows, columns), for
convolutions; stacked ones become more channels. They are kept in their own type, and scaled by their declared bounds
when they are looked at: 8 bits a value in a replay, and not 32. What is not a Box is flattened as Gymnasium does it,
without the parts of a Dict that are words of no declared length, such as the missions of MiniGrid.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import batch_space, iterate
from torch import Tensor

MIN_PICTURE_SIZE = 5  # rows and columns
MAX_UNSCALED = 100.0  # values up to this are no burden to a network; those of pictures are, beyond 1
MAX_BOUND = 65_535.0  # what is declared beyond this bounds nothing
MAX_JOINT_ACTIONS = 4096
KEPT_TYPES = ("bool", "uint8", "int8", "int16", "float16")  # all others are kept as float32


class ObservationFormat:
    """How observations of a space become tensors.

    Args:
        space: of one observation.

    Raises:
        ValueError: such observations cannot be flattened.
    """

    def __init__(self, space: gym.Space) -> None:
        self.space = space = without_words(space)
        self.masks_itself = isinstance(space, gym.spaces.Dict) and set(space) == {"observation", "action_mask"}
        self.part: Any = space["observation"] if self.masks_itself and isinstance(space, gym.spaces.Dict) else space
        box = self.part if isinstance(self.part, gym.spaces.Box) else flat_box(self.part)
        self.raw_shape = box.shape
        self.arrange, self.is_picture = arrangement(box)
        self.dtype = np.dtype(box.dtype if box.dtype is not None and box.dtype.name in KEPT_TYPES else np.float32)
        bound = np.maximum(np.abs(box.low.astype(np.float64)), np.abs(box.high.astype(np.float64)))
        least = 1.0 if self.is_picture else MAX_UNSCALED
        scale = self.arrange(np.where((bound > least) & (bound <= MAX_BOUND), bound, 1.0).astype(np.float32))
        self.shape = scale.shape
        self.scale = torch.from_numpy(scale.copy()) if (scale != 1).any() else None
        self.is_plain = (
            self.part is space and isinstance(space, gym.spaces.Box) and not self.is_picture and bool(box.shape)
        )

    def empty(self, rows: int) -> np.ndarray:
        """Return an array for so many observations."""
        return np.zeros((rows, *self.shape), self.dtype)

    def write(self, obs: Any, row: np.ndarray) -> None:
        """Copy an observation, of which the env may keep the array, into a row.

        Raises:
            ValueError: it is not in the space.
        """
        if self.is_plain and type(obs) is np.ndarray and obs.dtype is self.dtype and obs.shape == self.raw_shape:
            row[...] = obs  # a tenth of a step of CartPole; the rest takes as long again
            return
        if self.masks_itself:
            obs = obs["observation"]
        array = np.asarray(obs if isinstance(self.part, gym.spaces.Box) else gym.spaces.flatten(self.part, obs))
        if array.shape != self.raw_shape or array.dtype.kind not in "biuf":
            raise ValueError(
                f"the observation is of shape {array.shape} and type {array.dtype}; the space says {self.raw_shape}"
            )
        arranged = self.arrange(array)
        np.copyto(row, arranged, casting="unsafe")
        if row.dtype.kind != "f" and array.dtype != row.dtype and not np.array_equal(row, arranged):
            raise ValueError(f"the observation has values that are not of the type that the space says, {row.dtype}")

    def split(self, obs: Any) -> tuple[list[Any], bool]:
        """Return the observations of a batch, as Gymnasium's vector envs stack them, or of one, and whether it is one.

        Raises:
            ValueError: it is neither.
        """
        found = list(leaves(self.space, obs))
        if all(np.shape(one) == space.shape for space, one in found):
            return [obs], True
        if not all(np.shape(one)[1:] == space.shape and np.ndim(one) for space, one in found):
            raise ValueError(f"the observation is of shape {[np.shape(one) for _, one in found]}, not of {self.space}")
        return list(iterate(batch_space(self.space, len(found[0][1])), obs)), False

    def decode(self, stored: Tensor) -> Tensor:
        """Return stored observations as float32, scaled; they may be the same tensor."""
        obs = stored.float()
        return obs if self.scale is None else obs / self.scale.to(obs.device)


def leaves(space: gym.Space, obs: Any) -> Iterator[tuple[gym.Space, Any]]:
    """Yield the parts of an observation, or of a batch, each with its space."""
    if isinstance(space, gym.spaces.Dict):
        for name, part in space.items():
            yield from leaves(part, obs[name])
    elif isinstance(space, gym.spaces.Tuple):
        for part, one in zip(space, obs, strict=True):
            yield from leaves(part, one)
    else:
        yield space, obs


def without_words(space: gym.Space) -> gym.Space:
    """Return a Dict without the parts whose values are words of any length; any other space as it is.

    A space of a type that Gymnasium does not know says by a sample what its values are.
    """
    if not isinstance(space, gym.spaces.Dict):
        return space
    is_known = {name: type(part).__module__.startswith("gymnasium.") for name, part in space.items()}
    kept = {name: part for name, part in space.items() if is_known[name] or not isinstance(part.sample(), str)}
    return gym.spaces.Dict(kept) if kept and len(kept) < len(space) else space


def flat_box(space: gym.Space) -> gym.spaces.Box:
    """Return the Box of flattened observations."""
    try:
        box = gym.spaces.flatten_space(space)
    except NotImplementedError as error:
        raise ValueError(
            f"has the observation space {space}, which cannot be flattened; a wrapper that leaves out the part which "
            "cannot, such as gymnasium.wrappers.FilterObservation, makes it one that can"
        ) from error
    if not isinstance(box, gym.spaces.Box):
        raise ValueError(f"has the observation space {space}, whose size is not fixed; a student requires one that is")
    return box


def arrangement(box: gym.spaces.Box) -> tuple[Callable[[np.ndarray], np.ndarray], bool]:
    """Return how an observation is laid out for a network, and whether it is a picture."""
    shape = box.shape
    if not shape:
        return lambda array: array.reshape(1), False
    if len(shape) == 2 and min(shape) >= MIN_PICTURE_SIZE and np.issubdtype(box.dtype, np.integer):
        return lambda array: array[None], True
    if len(shape) not in (3, 4) or math.prod(shape) == 0:
        return lambda array: array, False
    is_last = channels_are_last(shape[-3:])
    rows, columns = shape[-3:-1] if is_last else shape[-2:]
    if min(rows, columns) < MIN_PICTURE_SIZE:
        return lambda array: array, False
    if len(shape) == 3:
        return (lambda array: array.transpose(2, 0, 1)) if is_last else (lambda array: array), True
    if is_last:
        return lambda array: array.transpose(0, 3, 1, 2).reshape(-1, rows, columns), True
    return lambda array: array.reshape(-1, rows, columns), True


def channels_are_last(shape: tuple[int, ...]) -> bool:
    """Return whether a picture's channels come last: pictures are square, else of few channels."""
    first, middle, last = shape
    if (first == middle) != (middle == last):
        return first == middle
    return last < min(first, middle)


class ActionFormat:
    """How one number becomes an action of a space.

    Args:
        space: of one action.

    Raises:
        ValueError: its actions are not discrete, or too many.
    """

    def __init__(self, space: gym.Space) -> None:
        self.space = space
        if isinstance(space, gym.spaces.Discrete):
            self.sizes, start = [int(space.n)], np.asarray(space.start)
        elif isinstance(space, gym.spaces.MultiDiscrete):
            self.sizes, start = [int(size) for size in space.nvec.ravel()], space.start
        elif isinstance(space, gym.spaces.MultiBinary):
            self.sizes, start = [2] * int(np.prod(space.shape)), np.zeros(space.shape, np.int8)
        else:
            raise ValueError(f"has the action space {space}; a student requires a Discrete one, or several in one")
        self.number = math.prod(self.sizes)
        if not isinstance(space, gym.spaces.Discrete) and self.number > MAX_JOINT_ACTIONS:
            raise ValueError(
                f"has {self.number:,} joint actions, {space}; a student takes {MAX_JOINT_ACTIONS:,} at most"
            )
        joint = np.stack(np.unravel_index(np.arange(self.number), self.sizes), axis=1)
        self.actions = (joint.reshape(self.number, *start.shape) + start).astype(space.dtype)
        self.numbers = list(self.actions) if self.actions.ndim == 1 else None  # which cannot be changed

    def take(self, numbers: list[int]) -> list[Any]:
        """Return the actions of numbers, which an env may keep and change."""
        if self.numbers is None:
            return [self.actions[number].copy() for number in numbers]
        return [self.numbers[number] for number in numbers]

    def mask(self, raw: Any) -> np.ndarray:
        """Return which numbers are legal, (number,) bool, from a mask as an env gives it.

        Of several discrete actions it is a mask of the joint ones, or the masks of all one after the other.

        Raises:
            ValueError: it is no mask of this space.
        """
        parts = raw if isinstance(raw, tuple | list) and len(raw) == len(self.sizes) > 1 else [raw]
        flat = np.concatenate([np.asarray(part).ravel() for part in parts])
        if flat.dtype.kind not in "biuf" or not np.isin(flat, (0, 1)).all():
            raise ValueError("the action mask holds more than 0 and 1")
        if len(flat) == self.number:
            return flat.astype(bool)
        if len(flat) != sum(self.sizes):
            raise ValueError(f"the action mask has {len(flat)} entries; there are {self.number} actions")
        joint = np.ones((), bool)
        for part in np.split(flat.astype(bool), np.cumsum(self.sizes)[:-1]):
            joint = np.logical_and.outer(joint, part)
        return joint.ravel()
