"""Any Gymnasium env with discrete actions as one of ours, so that students can be compared with others' results.

Gymnasium steps the copies one after the other on the CPU; their randomness is Gymnasium's, seeded by the run's seed
and the copy's id. What an env hands out is copied at once, and checked: an env may fill the same array again.
"""

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from envs.base import THEIRS, UNKNOWN_LIMIT, Env, EnvError, Spec, State, Step, blame, describe, initial_step, is_ours
from envs.global_generators import GlobalGenerators, Seeding
from envs.gymnasium_spaces import ActionFormat, ObservationFormat

LARGEST = float(np.finfo(np.float32).max)
NOT_FINITE = "the observation holds values that are not finite, as float32"
BEFORE = -1  # the time step of what an env does when it is made


class GymnasiumVecEnv(Env):
    """N copies of the Gymnasium env `id`; the first call must be `reset`.

    The state is what was observed, in a type as small as its own, and the action mask: that of `info["action_mask"]`,
    of a method `action_masks`, or of an observation {"observation", "action_mask"}. Without one all actions are legal.

    Args:
        id: as for `gym.make`.
        num_envs: N.
        seed: of all randomness, with each copy's id.
        device: of all tensors.
        first_env_id: id of the first copy.
        options: keyword arguments of the env.

    Raises:
        ValueError: the env cannot be made, or a student cannot use its spaces.
    """

    is_compilable = False
    continues_episodes = False

    def __init__(
        self, id: str, num_envs: int, seed: int = 0, device: str = "cpu", first_env_id: int = 0, **options: Any
    ) -> None:
        super().__init__(num_envs, seed, device, first_env_id)
        self.name = f"gym:{id}"
        env_ids = range(first_env_id, first_env_id + num_envs)
        self.copy_seeds = [draw_seed(seed, env_id, 1 << 32) for env_id in env_ids]
        self.generators = GlobalGenerators()
        self.copies = make_copies(id, self.copy_seeds, options, self.generators)
        first = self.copies[0]
        try:
            self.observations = ObservationFormat(first.observation_space)
            self.actions = ActionFormat(first.action_space)
        except ValueError as error:
            raise ValueError(f"{self.name} {error}") from error
        limit = options.get("max_episode_steps", first.spec.max_episode_steps if first.spec else None)
        self.spec = Spec(self.name, 0, self.observations.shape, self.actions.number, 0, 0, limit or UNKNOWN_LIMIT)
        self.game = self  # it has `spec` and `observe`, which is all that prompt views and replay buffers use
        self.has_mask_method = first.has_wrapper_attr("action_masks")
        self.has_masks = self.has_mask_method or self.observations.masks_itself  # whatever their infos hold
        self.all_legal = np.ones((num_envs, self.spec.num_actions), bool)
        self.began = [0] * num_envs  # the time steps at which the episodes did
        self.state = self._state(self.observations.empty(num_envs), self.all_legal.copy())

    def reset(self) -> Step:
        time_step, row = int(self.steps), 0
        obs, mask = self.observations.empty(self.num_envs), self.all_legal.copy()
        with self.generators.own() as seed_globals, blame(self.name, "reset", lambda: self._place(row)):
            for row, env in enumerate(self.copies):
                seed = draw_seed(self.seed, self.first_env_id + row, time_step)
                if seed_globals:
                    seed_globals(self.copy_seeds[row], time_step)
                seed_generators(env, seed)
                self._write_reset(row, env.reset(seed=seed), obs, mask)
        self.steps += 1
        self.state = self._state(obs, mask)
        return initial_step(*self.observe(self.state), self.state)

    def current(self) -> Step:
        """Reset all copies: the current state of a Gymnasium env cannot be read."""
        return self.reset()

    def step(self, action: Tensor) -> Step:
        obs, mask = self.observations.empty(self.num_envs), self.all_legal.copy()
        final_state = None
        with self.generators.own() as seed_globals, self.interrupting():
            rewards, terminated, truncated = self._step_copies(action.tolist(), seed_globals, obs, mask)
            if any(terminated) or any(truncated):
                final_state = self._state(obs.copy(), mask.copy())
                self._reset_copies(
                    np.flatnonzero(np.logical_or(terminated, truncated)).tolist(), seed_globals, obs, mask
                )
        self.steps += 1
        self.state = self._state(obs, mask)
        shown, legal = self.observe(self.state)
        final_obs, final_legal = (shown, legal) if final_state is None else self.observe(final_state)
        return Step(
            shown,
            legal,
            torch.from_numpy(np.array(rewards, np.float32)).to(self.device),
            torch.from_numpy(np.array(terminated)).to(self.device),
            torch.from_numpy(np.array(truncated)).to(self.device),
            final_obs,
            final_legal,
            self.state,
            self.state if final_state is None else final_state,
        )

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """Return (obs, action_mask) of a state, as `Game.observe` does; no state of these envs is written over."""
        return self.observations.decode(state["obs"]), state["action_mask"]

    def positions(self, raw_obs: Sequence[Any], raw_masks: Sequence[Any] | None = None) -> State:
        """Return the state of copies elsewhere, a row each, by what they show.

        Without masks all actions are legal, but where the observations hold masks themselves.

        Raises:
            ValueError: an observation or a mask is not of the env's spaces.
        """
        obs, mask = self.observations.empty(len(raw_obs)), np.ones((len(raw_obs), self.spec.num_actions), bool)
        if raw_masks is None and self.observations.masks_itself:
            raw_masks = [one["action_mask"] for one in raw_obs]
        for row, raw in enumerate(raw_obs):
            self.observations.write(raw, obs[row])
            if raw_masks is not None:
                mask[row] = self.actions.mask(raw_masks[row])
        return self._state(obs, mask)

    def state_dict(self) -> dict[str, object]:
        """Return the number of steps, from which the seeds of the next reset follow."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps.copy_(state["steps"])

    def _step_copies(
        self, numbers: list[int], seed_globals: Seeding | None, obs: np.ndarray, mask: np.ndarray
    ) -> tuple[list[float], list[bool], list[bool]]:
        """Step all copies, write down what they show, and return (reward, terminated, truncated) of each.

        What is done for each copy takes a third as long as a step of CartPole, and so nothing here is a function that
        need not be one.
        """
        row, time_step, write = 0, int(self.steps), self.observations.write
        rewards: list[float] = []
        terminated: list[bool] = []
        truncated: list[bool] = []
        with blame(self.name, "step", lambda: self._place(row)):
            for row, (env, action) in enumerate(zip(self.copies, self.actions.take(numbers), strict=True)):
                if seed_globals:
                    seed_globals(self.copy_seeds[row], time_step)
                returned = env.step(action)
                if not isinstance(returned, tuple) or len(returned) != 5:
                    raise EnvError("step must return (observation, reward, terminated, truncated, info)")
                raw_obs, reward, ends, stops, info = returned
                write(raw_obs, obs[row])
                reward = reward if type(reward) is float else as_number(reward, "the reward")
                if not -LARGEST <= reward <= LARGEST:
                    raise EnvError(f"the reward is {reward}; it must be finite, as float32")
                ends = ends if type(ends) is bool else as_truth(ends, "terminated")
                stops = stops if type(stops) is bool else as_truth(stops, "truncated")
                rewards.append(reward)
                terminated.append(ends)
                truncated.append(stops and not ends)
                if info or self.has_masks:
                    self._write_mask(row, raw_obs, info, mask[row])
                    if not mask[row].any():
                        if not ends and not stops:
                            raise EnvError("the action mask leaves no legal action, and the episode goes on")
                        mask[row] = True
            if (unsound := first_not_finite(obs)) is not None:
                row = unsound
                raise EnvError(NOT_FINITE)
        return rewards, terminated, truncated

    def _reset_copies(self, rows: list[int], seed_globals: Seeding | None, obs: np.ndarray, mask: np.ndarray) -> None:
        """Reset the copies whose episode is over, and write down what they show."""
        row, time_step = 0, int(self.steps)
        with blame(self.name, "reset", lambda: self._place(row)):
            for row in rows:
                if seed_globals:
                    seed_globals(self.copy_seeds[row], time_step)
                self._write_reset(row, self.copies[row].reset(), obs, mask)

    def _write_reset(self, row: int, returned: Any, obs: np.ndarray, mask: np.ndarray) -> None:
        """Write down what the reset of a copy returned."""
        self.began[row] = int(self.steps)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise EnvError("reset must return (observation, info)")
        self.observations.write(returned[0], obs[row])
        mask[row] = True
        self._write_mask(row, *returned, mask[row])
        if first_not_finite(obs[row : row + 1]) is not None:
            raise EnvError(NOT_FINITE)
        if not mask[row].any():
            raise EnvError("the action mask leaves no legal action")

    def _write_mask(self, row: int, raw_obs: Any, info: Any, mask: np.ndarray) -> None:
        """Write down which actions are legal in a copy, if it says so."""
        if isinstance(info, dict) and info.get("action_mask") is not None:
            mask[:] = self.actions.mask(info["action_mask"])
        elif self.observations.masks_itself:
            mask[:] = self.actions.mask(raw_obs["action_mask"])
        elif self.has_mask_method:
            found = self.copies[row].get_wrapper_attr("action_masks")
            mask[:] = self.actions.mask(found() if callable(found) else found)

    def _place(self, row: int) -> str:
        return f"copy {self.first_env_id + row}, time step {int(self.steps) - self.began[row]}"

    def _state(self, obs: np.ndarray, mask: np.ndarray) -> State:
        """Return what copies show, which must not be written over."""
        return {"obs": torch.from_numpy(obs).to(self.device), "action_mask": torch.from_numpy(mask).to(self.device)}


def first_not_finite(obs: np.ndarray) -> int | None:
    """Return the first row that holds a value which is not finite, if one does."""
    if obs.dtype.kind != "f" or np.isfinite(obs).all():
        return None
    return int(np.isfinite(obs).reshape(len(obs), -1).all(1).argmin())


def as_number(value: Any, what: str) -> Any:
    """Return a number, of which an array holds one.

    Raises:
        EnvError: it is not one.
    """
    if type(value) in (float, bool, int, np.float64, np.bool_):
        return value
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise EnvError(f"{what} is {value!r}; it must be a single number or truth value")
    return array.item()


def as_truth(value: Any, what: str) -> bool:
    """Return a truth value, of which an array holds one.

    Raises:
        EnvError: it is not one.
    """
    number = as_number(value, what)
    if number not in (0, 1):
        raise EnvError(f"{what} is {number}; it must be a truth value")
    return bool(number)


def draw_seed(*numbers: int) -> int:
    """Return a seed of 32 bits, another one for other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def make_copies(id: str, seeds: list[int], options: dict[str, Any], generators: GlobalGenerators) -> list[gym.Env]:
    """Return copies of an env, each made while the process's generators are seeded by its seed."""
    copies = []
    with generators.own() as seed_globals:
        for seed in seeds:
            if seed_globals:
                seed_globals(seed, BEFORE)
            try:
                env = gym.make(id, **{"disable_env_checker": True, **options})
            except THEIRS as error:
                if is_ours(error):
                    raise
                raise ValueError(f"gym:{id} cannot be made: {describe(error)}") from error
            separate_spaces(env.unwrapped)
            copies.append(env)
    return copies


def separate_spaces(env: gym.Env) -> None:
    """Give an env spaces of its own, whose generators no other copy draws from: they may be those of its class."""
    for name in ("action_space", "observation_space"):
        with suppress(AttributeError):  # a property, whose space is made by the env itself
            setattr(env, name, copy.deepcopy(getattr(env, name)))


def seed_generators(env: gym.Env, seed: int) -> None:
    """Seed the generators of an env that its `reset` may leave alone: its own, and those of its spaces."""
    env.unwrapped.np_random = np.random.default_rng(seed)
    layer = env
    while True:
        for space in (layer.action_space, layer.observation_space):
            space.seed(seed)
        if not isinstance(layer, gym.Wrapper):
            return
        layer = layer.env
