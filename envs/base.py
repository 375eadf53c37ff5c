"""What a game is, and N copies of it as one environment, stepped in lockstep on one device.

A game is three pure functions of tensors: `reset`, `step` and `observe`. `VecEnv` adds what every game needs: a
seed, a time limit, and autoreset in the very step in which an episode ends.
"""

import os
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from envs.rng import ENV_STREAM, CounterRNG

UNKNOWN_LIMIT = 1 << 62  # where no limit is known: not None, since such an env may still truncate an episode itself
HERE = Path(__file__).parent
THEIRS = (Exception, SystemExit)  # what a third party's env raises: some call `sys.exit` when their window is closed
State = dict[str, Tensor]  # all of a game that can change: tensors of N rows, one row per env copy


@dataclass(frozen=True)
class Spec:
    """The constants of a game."""

    name: str
    version: int  # changes only when the same actions and uniforms lead elsewhere
    obs_shape: tuple[int, ...]
    num_actions: int
    num_reset_uniforms: int  # columns of uniforms that `reset` uses
    num_step_uniforms: int  # columns of uniforms that `step` uses
    time_limit: int | None  # time steps after which an episode is truncated; None: no time limit
    title: str = ""  # as people call it; empty: the name
    return_range: tuple[float, float] | None = None  # the lowest and the highest return of an episode; None: unknown
    return_unit: str = ""  # what a return counts

    def shown_title(self) -> str:
        """Return what people call the game."""
        return self.title or self.name.removeprefix("gym:")


class EnvError(Exception):
    """An env from elsewhere raised an error, or returned what it must not; the message names it."""


@contextmanager
def blame(env: str, what: str, where: Callable[[], str]) -> Iterator[None]:
    """Name an env in whatever error it raises, but where memory ran out.

    Args:
        env: its name.
        what: the call, such as step.
        where: returns the copy and the time step.

    Raises:
        EnvError: from the error.
    """
    try:
        yield
    except EnvError as error:
        raise EnvError(f"{env}: {error} ({where()})") from error.__cause__
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except THEIRS as error:
        if is_ours(error):
            raise
        raise EnvError(f"{env}: {what} raised {describe(error)} ({where()})") from error


def is_ours(error: BaseException) -> bool:
    """Return whether an error is the program's own end by a signal: a class of its own, which `sys.exit` raises not."""
    return isinstance(error, SystemExit) and type(error) is not SystemExit


def describe(error: BaseException) -> str:
    """Return an error's class and message, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = frames[-1].filename if frames else ""
    is_known = HERE in Path(place).parents or any(
        f"{os.sep}{name}{os.sep}" in place for name in ("gymnasium", "importlib")
    )
    shown = f" at {place}, line {frames[-1].lineno}" if place and not is_known else ""
    return f"{type(error).__name__}{f': {error}' if str(error) else ''}{shown}"


class Game(Protocol):
    """The rules of a game, without a state of their own. An action outside 0 … A - 1 is an error."""

    spec: Spec

    def reset(self, u: Tensor) -> State:
        """Return initial states, one for each row of the uniforms `u` (N, num_reset_uniforms)."""

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return (state, reward (N,) float32, terminated (N,) bool); the given `state` is not modified."""

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """Return (obs (N, *obs_shape) float32, action_mask (N, A) bool with at least one True per row).

        Both are new tensors: the state will be written over.
        """


class Step(NamedTuple):
    """One time step of N env copies: the current observation, and what the last action led to.

    Where an episode has just ended, `obs` and `action_mask` belong to the next episode's initial state, and
    `final_obs` and `final_action_mask` to the state in which the old one ended; elsewhere the two pairs are equal.
    """

    obs: Tensor  # (N, *obs_shape) float32
    action_mask: Tensor  # (N, A) bool
    reward: Tensor  # (N,) float32
    terminated: Tensor  # (N,) bool: the episode is over and has no future
    truncated: Tensor  # (N,) bool: the time limit was reached; never True together with terminated
    final_obs: Tensor  # (N, *obs_shape) float32
    final_action_mask: Tensor  # (N, A) bool
    state: State  # what `obs` and `action_mask` show; not modified by later steps
    final_state: State  # what `final_obs` and `final_action_mask` show

    def as_initial(self) -> "Step":
        """Return the current observation alone, as if `reset` had returned it: all that the next action depends on."""
        return initial_step(self.obs, self.action_mask, self.state)


def initial_step(obs: Tensor, action_mask: Tensor, state: State) -> Step:
    """Return the step before any action: no reward, no end, and the final pair equal to the current one."""
    no = torch.zeros(len(obs), dtype=torch.bool, device=obs.device)
    return Step(obs, action_mask, no.float(), no, no, obs, action_mask, state, state)


class Env(ABC):
    """N copies of an environment in lockstep, their tensors on one device.

    An episode that ends is reset in the same step (autoreset). The copies have the ids `first_env_id`,
    `first_env_id + 1`, …; a copy's randomness depends on the seed and its id, not on N, so that the shards of one run
    differ from each other and equal the parts of the whole.
    """

    is_compilable: bool  # whether `step` is made of tensor operations alone, which a compiler and a CUDA graph require
    continues_episodes = True  # whether `current`, once a saved state is loaded, is that state
    spec: Spec
    game: Any  # the Game, or what offers its `spec` and `observe`
    state: State  # the current one

    def __init__(self, num_envs: int, seed: int, device: str, first_env_id: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; an environment requires at least 1 copy")
        self.num_envs = num_envs
        self.seed = seed
        self.device = device
        self.first_env_id = first_env_id
        self.steps = torch.zeros((), dtype=torch.int64, device=device)  # calls of reset and step so far
        self.interrupting: Callable[[], AbstractContextManager[None]] = nullcontext  # in which a slow `step` may end

    @abstractmethod
    def reset(self) -> Step:
        """Start a new episode in every copy, another one than at the last reset, and return the initial step."""

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Apply one action (N,) int64 to every copy; a copy whose episode ends is reset at once."""

    @abstractmethod
    def current(self) -> Step:
        """Return the current state as an initial step."""

    @abstractmethod
    def state_dict(self) -> dict[str, object]:
        """Return what a checkpoint requires to continue the episodes."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


class VecEnv(Env):
    """N copies of a game, batched.

    Args:
        game: the rules.
        num_envs: N.
        seed: of all randomness, with each copy's id.
        device: of all tensors.
        first_env_id: id of the first copy.
        max_episode_steps: time steps after which an episode is truncated; None: as the game says.
    """

    is_compilable = True

    def __init__(
        self,
        game: Game,
        num_envs: int,
        seed: int = 0,
        device: str = "cpu",
        first_env_id: int = 0,
        max_episode_steps: int | None = None,
    ) -> None:
        super().__init__(num_envs, seed, device, first_env_id)
        self.game = game
        self.spec = game.spec
        if max_episode_steps is not None:
            self.spec = replace(game.spec, time_limit=max_episode_steps)
        env_ids = torch.arange(first_env_id, first_env_id + num_envs, device=device)
        self.rng = CounterRNG(seed, env_ids, ENV_STREAM)
        self.elapsed_steps = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.is_built_in = type(game).__module__.startswith("envs.")
        if self.is_built_in:
            self.state = clone_state(game.reset(self._draw()[0]))
        else:
            with blame(self.spec.name, "reset", lambda: "the first one"):
                self.state = clone_state(game.reset(self._draw()[0]))

    def reset(self) -> Step:
        self._write(self.game.reset(self._draw()[0]), torch.zeros_like(self.elapsed_steps))
        return self.current()

    def reset_rows(self, rows: Tensor) -> Step:
        """Start a new episode in the copies `rows` (N,) bool alone, and return the initial step of all."""
        fresh = self.game.reset(self._draw()[0])
        self._write(where_states(rows, fresh, self.state), self.elapsed_steps * ~rows)
        return self.current()

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with the copies `rows` (B,) int64 alone; each plays as it would have beside the others."""
        self.num_envs = len(rows)
        self.state = select_rows(self.state, rows)
        self.elapsed_steps = self.elapsed_steps[rows]
        self.rng.base = self.rng.base[rows]

    def current(self) -> Step:
        state = clone_state(self.state)
        obs, action_mask = self.game.observe(state)
        return initial_step(obs, action_mask, state)

    def step(self, action: Tensor) -> Step:
        if self.is_built_in or torch.compiler.is_compiling():
            return self._step(action)
        with blame(self.spec.name, "step", lambda: f"call {int(self.steps):,} of reset and step"):
            return self._step(action)

    def _step(self, action: Tensor) -> Step:
        reset_u, step_u = self._draw()
        before = clone_state(self.state)  # a game may return the tensors it was given, and no Step may change later
        final_state, reward, terminated = self.game.step(before, action, step_u)
        elapsed_steps = self.elapsed_steps + 1
        truncated = torch.zeros_like(terminated)
        if self.spec.time_limit is not None:
            truncated = (elapsed_steps >= self.spec.time_limit) & ~terminated
        final_obs, final_action_mask = self.game.observe(final_state)
        done = terminated | truncated
        state = where_states(done, self.game.reset(reset_u), final_state)
        self._write(state, elapsed_steps * ~done)
        obs, action_mask = self.game.observe(state)
        return Step(obs, action_mask, reward, terminated, truncated, final_obs, final_action_mask, state, final_state)

    def state_dict(self) -> dict[str, object]:
        return {"state": self.state, "elapsed_steps": self.elapsed_steps, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._write(state["state"], state["elapsed_steps"])
        self.steps.copy_(state["steps"])

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Return this step's uniforms for `reset` and for `step`, and advance to the next step's."""
        u = self.rng.uniform(self.steps, self.spec.num_reset_uniforms + self.spec.num_step_uniforms)
        self.steps += 1
        return u[:, : self.spec.num_reset_uniforms], u[:, self.spec.num_reset_uniforms :]

    def _write(self, state: State, elapsed_steps: Tensor) -> None:
        """The one place that writes: into buffers that never move."""
        for name, buffer in self.state.items():
            buffer.copy_(state[name])
        self.elapsed_steps.copy_(elapsed_steps)


def where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Select whole rows: `condition` is (N,), the others (N, …)."""
    return torch.where(condition.view(-1, *[1] * (no.ndim - 1)), yes, no)


def where_states(condition: Tensor, yes: State, no: State) -> State:
    """Select whole rows of two states of N rows; `condition` is (N,)."""
    return {name: where(condition, yes[name], no[name]) for name in no}


def clone_state(state: State) -> State:
    """Return a copy that shares no memory with `state`."""
    return {name: tensor.clone() for name, tensor in state.items()}


def select_rows(state: State, rows: Tensor) -> State:
    """Return the rows `rows` (B,) int64 of a state as a state of B rows."""
    return {name: tensor[rows] for name, tensor in state.items()}


def cat_states(states: Sequence[State]) -> State:
    """Return the rows of all states, one after the other, as one state."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def state_to(state: State, device: str | torch.device) -> State:
    """Return a state whose tensors are on `device`."""
    return {name: tensor.to(device) for name, tensor in state.items()}


def num_rows(state: State) -> int:
    """Return how many rows a state has."""
    return len(next(iter(state.values())))
