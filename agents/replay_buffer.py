"""What the student has lived through, in a ring on the device.

The ring keeps states, not observations: two boards of Connect Four are 32 bytes where two observations are 672.
What was seen is looked at once more when it is sampled.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from agents.base import NOTHING, Extras, Shapes
from envs.base import Env, Step, where

Felt = Callable[[Tensor, Extras], Tensor]


class Batch(NamedTuple):
    """B transitions of n steps each, or fewer where a game ended. `next_obs` comes before any fresh deal."""

    obs: Tensor  # (B, *obs_shape) float32
    action: Tensor  # (B,) int64, the first of the n
    reward: Tensor  # (B,) float32, the discounted sum of those n
    discount: Tensor  # (B,) float32: gamma^n, or 0 where the game terminated. A truncated game had a future
    next_obs: Tensor  # (B, *obs_shape) float32
    next_action_mask: Tensor  # (B, A) bool
    action_mask: Tensor  # (B, A) bool, of `obs`
    extras: Extras = NOTHING  # what a method of guidance keeps, (B, …) each, of the first of the n moments
    next_extras: Extras = NOTHING  # of the moment after them; zeros where there is none yet, or another game's


class ReplayBuffer:
    """The last `buffer_size` transitions of all games; the oldest make room.

    Args:
        buffer_size: transitions, rounded down to whole moments of all games.
        env: whose games they are.
        extras: what is kept beside a transition: the shape of one game's, and the type.
    """

    def __init__(self, buffer_size: int, env: Env, extras: Shapes | None = None) -> None:
        self.moments, self.num_envs, self.observe = buffer_size // env.num_envs, env.num_envs, env.game.observe
        self.states = {name: tensor.new_zeros(self.moments, *tensor.shape) for name, tensor in env.state.items()}
        self.final_states = {name: torch.zeros_like(ring) for name, ring in self.states.items()}
        self.actions = torch.zeros(self.moments, env.num_envs, dtype=torch.int64, device=env.device)
        self.rewards = torch.zeros(self.actions.shape, device=env.device)
        self.terminations = torch.zeros(self.actions.shape, dtype=torch.bool, device=env.device)
        self.truncations = torch.zeros_like(self.terminations)
        self.extras = {
            name: torch.zeros(*self.actions.shape, *rest, dtype=dtype, device=env.device)
            for name, (rest, dtype) in (extras or {}).items()
        }
        self.written = torch.zeros((), dtype=torch.int64, device=env.device)  # moments, ever

    def add(self, step: Step, action: Tensor, after: Step, extras: Extras = NOTHING) -> None:
        """Write one moment of all games."""
        place = self.written % self.moments
        rings = (self.actions, self.rewards, self.terminations, self.truncations)
        values = (action, after.reward, after.terminated, after.truncated)
        for ring, value in zip(rings, values, strict=True):
            ring.index_copy_(0, place[None], value[None])
        for states, state in (
            (self.states, step.state),
            (self.final_states, after.final_state),
            (self.extras, extras),
        ):
            for name, tensor in state.items():
                states[name].index_copy_(0, place[None], tensor[None])
        self.written += 1

    def sample(self, u: Tensor, n_step: int, gamma: float, felt: Felt = lambda rewards, extras: rewards) -> Batch:
        """Return one transition for each number of `u` (B,) in [0, 1), all equally likely.

        The newest n - 1 moments are no beginnings yet. There must be n moments. `felt` says what rewards are to be
        learned from, of those that there were and the bonus that is kept beside them, if one is.
        """
        kept = self.written.clamp(max=self.moments)
        oldest = self.written - kept
        which = (u.double() * ((kept - (n_step - 1)) * self.num_envs)).long()
        game, first = which % self.num_envs, oldest + which // self.num_envs
        last, reward = first % self.moments, torch.zeros_like(u)
        discount, alive = torch.ones_like(u), torch.ones_like(u, dtype=torch.bool)
        for further in range(n_step):
            place = (first + further) % self.moments
            last = torch.where(alive, place, last)
            bonus = {name: ring[place, game] for name, ring in self.extras.items() if name == "bonus"}
            reward = reward + discount * felt(self.rewards[place, game], bonus) * alive
            discount = torch.where(alive, discount * gamma, discount)
            alive = alive & ~(self.terminations[place, game] | self.truncations[place, game])
        follows, following = alive & (first + n_step < self.written), (first + n_step) % self.moments
        first = first % self.moments
        obs, action_mask = self.observe({name: ring[first, game] for name, ring in self.states.items()})
        next_obs, next_action_mask = self.observe({name: ring[last, game] for name, ring in self.final_states.items()})
        discount = discount * ~self.terminations[last, game]
        extras = {name: ring[first, game] for name, ring in self.extras.items()}
        after = {
            name: where(follows, ring[following, game], torch.zeros_like(extras[name]))
            for name, ring in self.extras.items()
        }
        return Batch(
            obs, self.actions[first, game], reward, discount, next_obs, next_action_mask, action_mask, extras, after
        )

    def state_dict(self) -> dict[str, object]:
        """Return the whole ring."""
        return {
            "written": self.written,
            "states": self.states,
            "final_states": self.final_states,
            "extras": self.extras,
            "actions": self.actions,
            "rewards": self.rewards,
            "terminations": self.terminations,
            "truncations": self.truncations,
        }

    def load_state_dict(self, state: dict, unheard: Callable[[Tensor], Extras] = lambda action_mask: NOTHING) -> None:
        """Take over a ring of the same size.

        `unheard` says what is kept beside moments of which that ring kept less, of what is legal in them (N, A).
        """
        missing = self.extras.keys() - state["extras"].keys()
        for kind in ("states", "final_states", "extras"):
            for name, ring in getattr(self, kind).items():
                if kind != "extras" or name not in missing:
                    ring.copy_(state[kind][name])
        for place in range(self.moments) if missing else ():
            _, action_mask = self.observe({name: ring[place] for name, ring in self.states.items()})
            kept = unheard(action_mask)
            for name in missing:
                self.extras[name][place] = kept[name]
        for name in ("written", "actions", "rewards", "terminations", "truncations"):
            getattr(self, name).copy_(state[name])
