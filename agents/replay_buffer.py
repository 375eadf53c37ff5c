"""The last transitions of all env copies, in a ring on the device.

The ring stores states, not observations: two boards of Connect Four are 32 bytes where two observations are 672.
States are observed once more when they are sampled.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.guidance.base import EMPTY, NO_GUIDANCE, Guidance
from envs.base import Env, Step, where

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
        last, reward = first % self.capacity, torch.zeros_like(u)
        discount, goes_on = torch.ones_like(u), torch.ones_like(u, dtype=torch.bool)
        for offset in range(n_step):
            pos = (first + offset) % self.capacity
            last = torch.where(goes_on, pos, last)
            reward = reward + discount * self._reward(pos, env_id) * goes_on
            discount = torch.where(goes_on, discount * gamma, discount)
            goes_on = goes_on & ~(self.terminated[pos, env_id] | self.truncated[pos, env_id])
        following = goes_on & (first + n_step < self.num_added)
        after, first = (first + n_step) % self.capacity, first % self.capacity
        obs, action_mask = self.env_observe({name: ring[first, env_id] for name, ring in self.states.items()})
        final = {name: ring[last, env_id] for name, ring in self.final_states.items()}
        next_obs, next_action_mask = self.env_observe(final)
        discount = discount * ~self.terminated[last, env_id]
        batch = Batch(obs, action_mask, self.action[first, env_id], reward, discount, next_obs, next_action_mask)
        if not self.guidance.stores_advice:
            return batch
        advice, next_advice = self.advice[first, env_id], self.advice[after, env_id]
        return batch._replace(
            advice=advice,
            followed=self.followed[first, env_id],
            next_advice=where(following, next_advice, torch.zeros_like(next_advice)),
        )

    def observations(self) -> Iterator[Tensor]:
        """Yield what is stored of observations, a time step at a time."""
        for rings in (self.states, self.final_states):
            for pos in range(self.capacity):
                yield self.env_observe({name: ring[pos] for name, ring in rings.items()})[0]

    def _reward(self, pos: Tensor, env_id: Tensor) -> Tensor:
        """Return the rewards (B,) to learn from, with the bonus as much as it is worth now."""
        reward = self.reward[pos, env_id]
        return self.guidance.shaped(reward, self.bonus[pos, env_id]) if self.guidance.stores_advice else reward

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
