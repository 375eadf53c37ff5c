"""What a game is, and how N copies of it are played in lockstep on one device.

A game is three pure functions of tensors: `reset`, `step` and `observe`. `Env` adds what every game needs:
a seed, a clock, and a fresh deal in the very step in which a game ends.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from envs.rng import GAMES, CounterRNG

State = dict[str, Tensor]  # all of a game that can change: tensors of N rows


@dataclass(frozen=True)
class Spec:
    """What one must know of a game before playing it."""

    name: str
    version: int  # changes only when the same actions and luck lead elsewhere
    obs_shape: tuple[int, ...]
    num_actions: int
    num_reset_uniforms: int  # columns of luck that `reset` uses
    num_step_uniforms: int  # columns of luck that `step` uses
    time_limit: int | None  # steps after which a game is truncated; None: there is no clock


class Game(Protocol):
    """Rules only: nothing here keeps anything between two calls. An action outside 0 … A - 1 is an error."""

    spec: Spec

    def reset(self, u: Tensor) -> State:
        """Return fresh games, one for each row of `u` (N, num_reset_uniforms)."""

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return (state, reward (N,) float32, terminated (N,) bool); the given `state` is not modified."""

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """Return (obs (N, *obs_shape) float32, legal (N, A) bool with at least one True a row).

        Both are new tensors: the state will be written over.
        """


class Step(NamedTuple):
    """One moment of N games: what is seen now, and how the last action got there.

    Where a game has just ended, `obs` and `action_mask` belong to the fresh game and `final_obs` and
    `final_action_mask` to the position in which the old one ended; elsewhere the two pairs are equal.
    """

    obs: Tensor  # (N, *obs_shape) float32
    action_mask: Tensor  # (N, A) bool
    reward: Tensor  # (N,) float32
    terminated: Tensor  # (N,) bool: the game is over and has no future
    truncated: Tensor  # (N,) bool: the clock ran out; never True together with terminated
    final_obs: Tensor  # (N, *obs_shape) float32
    final_action_mask: Tensor  # (N, A) bool
    state: State  # what `obs` and `action_mask` show; not modified by later steps
    final_state: State  # what `final_obs` and `final_action_mask` show

    def as_initial(self) -> "Step":
        """Return the moment alone, as if it were the first: what the next action needs and no more."""
        nothing = torch.zeros_like(self.terminated)
        return Step(
            self.obs,
            self.action_mask,
            nothing.float(),
            nothing,
            nothing,
            self.obs,
            self.action_mask,
            self.state,
            self.state,
        )


class Env:
    """N copies of a game in lockstep, with a clock and a fresh deal where a game ends.

    Args:
        game: the rules.
        num_envs: N.
        seed: of the games' luck.
        device: where all tensors live.
        first_env_id: id of the first copy, so that shards of one run play different games.
    """

    def __init__(self, game: Game, num_envs: int, seed: int = 0, device: str = "cpu", first_env_id: int = 0) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; there must be at least one game")
        self.game, self.spec, self.num_envs, self.device = game, game.spec, num_envs, device
        self.first_env_id = first_env_id
        games = torch.arange(first_env_id, first_env_id + num_envs, device=device)
        self.rng = CounterRNG(seed, games, GAMES)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        self.elapsed_steps = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.state = {name: tensor.clone() for name, tensor in game.reset(self._draw()[0]).items()}

    def reset(self) -> Step:
        """Deal all games afresh and return the first moment, in which nothing has happened yet."""
        self._write(self.game.reset(self._draw()[0]), torch.zeros_like(self.elapsed_steps))
        return self.current()

    def current(self) -> Step:
        """Return the moment in which the games stand, as if it were the first."""
        state = {name: buffer.clone() for name, buffer in self.state.items()}
        obs, action_mask = self.game.observe(state)
        nothing = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return Step(obs, action_mask, nothing.float(), nothing, nothing, obs, action_mask, state, state)

    def step(self, action: Tensor) -> Step:
        """Play one action (N,) int64 in every game; a game that ends is dealt afresh at once."""
        reset_u, step_u = self._draw()
        before = {name: buffer.clone() for name, buffer in self.state.items()}  # what a game hands on must not change
        state, reward, terminated = self.game.step(before, action, step_u)
        clock = self.elapsed_steps + 1
        truncated = torch.zeros_like(terminated)
        if self.spec.time_limit is not None:
            truncated = (clock >= self.spec.time_limit) & ~terminated
        final_obs, final_action_mask = self.game.observe(state)
        ended = terminated | truncated
        fresh = self.game.reset(reset_u)
        now = {name: where(ended, fresh[name], state[name]) for name in state}
        self._write(now, clock * ~ended)
        obs, action_mask = self.game.observe(now)
        return Step(obs, action_mask, reward, terminated, truncated, final_obs, final_action_mask, now, state)

    def state_dict(self) -> dict[str, object]:
        """Return how the games stand."""
        return {"state": self.state, "clock": self.elapsed_steps, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the games stand as `state_dict` returned."""
        self._write(state["state"], state["clock"])
        self.steps.copy_(state["steps"])

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Return this step's luck for `reset` and for `step`, and go on to the next step's."""
        u = self.rng.uniform(self.steps, self.spec.num_reset_uniforms + self.spec.num_step_uniforms)
        self.steps += 1
        return u[:, : self.spec.num_reset_uniforms], u[:, self.spec.num_reset_uniforms :]

    def _write(self, state: State, clock: Tensor) -> None:
        """The one place that writes: into buffers that never move."""
        for name, buffer in self.state.items():
            buffer.copy_(state[name])
        self.elapsed_steps.copy_(clock)


def where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Choose whole rows: `condition` is (N,), the others (N, …)."""
    return torch.where(condition.view(-1, *[1] * (no.ndim - 1)), yes, no)


def select_rows(state: State, rows: Tensor) -> State:
    """Return the games at `rows` (B,) int64 as a state of B rows."""
    return {name: tensor[rows] for name, tensor in state.items()}


def num_rows(state: State) -> int:
    """Return how many games a state holds."""
    return len(next(iter(state.values())))
