"""The last transitions of all env copies, in a ring on the device.

The ring stores states, not observations: two boards of Connect Four are 32 bytes where two observations are 672.
States are observed once more when they are sampled.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.guidance.base import EMPTY, NO_GUIDANCE, Guidance
from envs.base import Env, Step, cat_states, where

COLUMNS = ("action", "reward", "terminated", "truncated")
ADVICE_COLUMNS = ("advice", "followed", "bonus")  # without rows where the guidance stores no advice


class Batch(NamedTuple):
    """B transitions of n steps each, or fewer where an episode ended. `next_obs` comes before any reset.

    The last three are EMPTY without a guidance that stores advice.
    """

    obs: Tensor  # (B, *obs_shape) float32
    action_mask: Tensor  # (B, A) bool, of `obs`
    action: Tensor  # (B,) int64, the first of the n
    reward: Tensor  # (B,) float32, the discounted sum of those n
    discount: Tensor  # (B,) float32: gamma^n, or 0 where the episode terminated. A truncated one had a future
    next_obs: Tensor  # (B, *obs_shape) float32
    next_action_mask: Tensor  # (B, A) bool
    advice: Tensor = EMPTY  # (B, A) float32 in the first of the n states, zeros where there was none
    followed: Tensor = EMPTY  # (B,) bool, of the first action
    next_advice: Tensor = EMPTY  # (B, A) float32 after the n steps; zeros where not known, or another episode's


class ReplayBuffer:
    """The last `buffer_size` transitions of all env copies; the oldest are overwritten.

    Args:
        buffer_size: transitions, rounded down to whole time steps of all env copies.
        env: whose transitions they are.
        guidance: whether it stores advice, and what a stored bonus is worth when it is sampled.
    """

    def __init__(self, buffer_size: int, env: Env, guidance: Guidance = NO_GUIDANCE) -> None:
        self.capacity = buffer_size // env.num_envs  # time steps
        self.num_envs = env.num_envs
        self.env_observe = env.game.observe
        self.guidance = guidance
        shape = (self.capacity, env.num_envs)
        self.states = {name: tensor.new_zeros(self.capacity, *tensor.shape) for name, tensor in env.state.items()}
        self.final_states = {name: torch.zeros_like(ring) for name, ring in self.states.items()}
        self.action = torch.zeros(shape, dtype=torch.int64, device=env.device)
        self.reward = torch.zeros(shape, device=env.device)
        self.terminated = torch.zeros(shape, dtype=torch.bool, device=env.device)
        self.truncated = torch.zeros_like(self.terminated)
        rows, width = (self.capacity, env.spec.num_actions) if guidance.stores_advice else (0, 0)
        self.advice = torch.zeros(rows, env.num_envs, width, device=env.device)
        self.followed = torch.zeros(rows, env.num_envs, dtype=torch.bool, device=env.device)
        self.bonus = torch.zeros(rows, env.num_envs, device=env.device)
        self.num_added = torch.zeros((), dtype=torch.int64, device=env.device)  # time steps, ever

    def add(self, step: Step, next_step: Step, **columns: Tensor) -> None:
        """Store one time step of all env copies: (N, …) of each column that is given."""
        pos = (self.num_added % self.capacity)[None]
        for name, value in columns.items():
            getattr(self, name).index_copy_(0, pos, value[None])
        for rings, state in ((self.states, step.state), (self.final_states, next_step.final_state)):
            for name, tensor in state.items():
                rings[name].index_copy_(0, pos, tensor[None])
        self.num_added += 1

    def sample(self, u: Tensor, n_step: int, gamma: float) -> Batch:
        """Return one transition for each of the uniforms `u` (B,) in [0, 1), all equally likely.

        The newest n - 1 time steps begin no transition yet. There must be n time steps.
        """
        stored = self.num_added.clamp(max=self.capacity)
        oldest = self.num_added - stored
        which = (u.double() * ((stored - (n_step - 1)) * self.num_envs)).long()
        env_id, first = which % self.num_envs, oldest + which // self.num_envs
        last = row = first % self.capacity * self.num_envs + env_id
        reward, discount = self._reward(row), torch.full_like(u, gamma)
        terminated = take(self.terminated, row)
        goes_on = ~(terminated | take(self.truncated, row))
        for offset in range(1, n_step):
            at = (first + offset) % self.capacity * self.num_envs + env_id
            last = torch.where(goes_on, at, last)
            reward = reward + discount * self._reward(at) * goes_on
            discount = torch.where(goes_on, discount * gamma, discount)
            terminated = take(self.terminated, last)
            goes_on = goes_on & ~(terminated | take(self.truncated, last))
        states = [
            {name: take(ring, rows) for name, ring in rings.items()}
            for rings, rows in ((self.states, row), (self.final_states, last))
        ]
        obs, action_mask = self.env_observe(cat_states(states))  # both at once: small operations are what it costs
        (obs, next_obs), (action_mask, next_action_mask) = obs.chunk(2), action_mask.chunk(2)
        action, discount = take(self.action, row), discount * ~terminated
        batch = Batch(obs, action_mask, action, reward, discount, next_obs, next_action_mask)
        if not self.guidance.stores_advice:
            return batch
        following = goes_on & (first + n_step < self.num_added)
        next_advice = take(self.advice, (first + n_step) % self.capacity * self.num_envs + env_id)
        return batch._replace(
            advice=take(self.advice, row),
            followed=take(self.followed, row),
            next_advice=where(following, next_advice, torch.zeros_like(next_advice)),
        )

    def observations(self) -> Iterator[Tensor]:
        """Yield what is stored of observations, a time step at a time."""
        for rings in (self.states, self.final_states):
            for pos in range(self.capacity):
                yield self.env_observe({name: ring[pos] for name, ring in rings.items()})[0]

    def _reward(self, row: Tensor) -> Tensor:
        """Return the rewards (B,) to learn from, with the bonus as much as it is worth now."""
        reward = take(self.reward, row)
        return self.guidance.shaped(reward, take(self.bonus, row)) if self.guidance.stores_advice else reward

    def state_dict(self) -> dict[str, object]:
        """Return the whole ring."""
        columns = {name: getattr(self, name) for name in (*COLUMNS, *ADVICE_COLUMNS)}
        return {"num_added": self.num_added, "states": self.states, "final_states": self.final_states, **columns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a ring of the same size; transitions that were stored without advice have none."""
        self.num_added.copy_(state["num_added"])
        for rings in ("states", "final_states"):
            for name, ring in getattr(self, rings).items():
                ring.copy_(state[rings][name])
        for name in COLUMNS:
            getattr(self, name).copy_(state[name])
        for name in ADVICE_COLUMNS:
            column = getattr(self, name)
            if len(column) == len(state[name]):
                column.copy_(state[name])
            else:  # one of the two students stores advice, the other does not
                column.zero_()


def take(ring: Tensor, row: Tensor) -> Tensor:
    """Return the rows `row` (B,) of a ring (time steps, env copies, …) that are counted through all time steps."""
    return ring.flatten(0, 1).index_select(0, row)
