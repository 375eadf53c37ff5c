"""Probe environments so small that their solutions are known, for tests of agents."""

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.base import Spec, State


class Echo:
    """The observation is a one-hot column; choosing that column pays 1, and every episode ends after one step.

    With `walls` the columns beside it are illegal.
    """

    def __init__(self, columns: int = 4, walls: bool = False) -> None:
        self.spec = Spec("echo", 1, (columns,), columns, num_reset_uniforms=1, num_step_uniforms=0, time_limit=None)
        self.walls = walls

    def reset(self, u: Tensor) -> State:
        return {"hidden": (u[:, 0] * self.spec.num_actions).long()}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        return state, (action == state["hidden"]).float(), torch.ones_like(action, dtype=torch.bool)

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        hidden = state["hidden"][:, None]
        distance = (torch.arange(self.spec.num_actions, device=hidden.device) - hidden).abs()
        action_mask = distance != 1 if self.walls else torch.ones_like(distance, dtype=torch.bool)
        return (distance == 0).float(), action_mask


class Credit:
    """The observation is one of two cues; the second action pays 1 if the first action was the cue."""

    spec = Spec("credit", 1, (5,), 2, num_reset_uniforms=1, num_step_uniforms=0, time_limit=None)

    def reset(self, u: Tensor) -> State:
        cue = (u[:, 0] * 2).long()
        return {"cue": cue, "first": torch.full_like(cue, -1)}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        second = state["first"] >= 0
        reward = (second & (state["first"] == state["cue"])).float()
        return {"cue": state["cue"], "first": torch.where(second, state["first"], action)}, reward, second

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        cue = F.one_hot(state["cue"], 2)
        first = F.one_hot(state["first"] + 1, 3)
        return torch.cat([cue, first], 1).float(), torch.ones_like(cue, dtype=torch.bool)


class Walk:
    """A number that grows from a random start and is the reward; truncated after three steps."""

    spec = Spec("walk", 1, (2,), 2, num_reset_uniforms=1, num_step_uniforms=0, time_limit=3)

    def reset(self, u: Tensor) -> State:
        at = (u[:, 0] * 100).long() * 10
        return {"at": at, "clock": torch.zeros_like(at)}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        at = state["at"] + 1 + action
        return {"at": at, "clock": state["clock"] + 1}, at.float(), torch.zeros_like(action, dtype=torch.bool)

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        obs = torch.stack([state["at"], state["clock"]], 1).float()
        return obs, (state["clock"][:, None] + torch.arange(2, device=obs.device)) % 3 != 1


class Clock:
    """Action 1 pays 1, action 0 pays 0; truncated after five steps, which are not observed.

    An agent that bootstraps at truncation learns the value 1 / (1 - gamma) everywhere; one that does not, less.
    """

    spec = Spec("clock", 1, (1,), 2, num_reset_uniforms=1, num_step_uniforms=0, time_limit=5)

    def reset(self, u: Tensor) -> State:
        return {"passed": torch.zeros(len(u), dtype=torch.int64, device=u.device)}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        return {"passed": state["passed"] + 1}, action.float(), torch.zeros_like(action, dtype=torch.bool)

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        passed = state["passed"][:, None]
        return torch.ones_like(passed).float(), torch.ones_like(passed, dtype=torch.bool).repeat(1, 2)


class Counter:
    """The observation is a one-hot count: action 1 increments, action 0 resets it. Reaching 4 pays 1 and terminates."""

    spec = Spec("counter", 1, (5,), 2, num_reset_uniforms=1, num_step_uniforms=0, time_limit=None)

    def reset(self, u: Tensor) -> State:
        return {"count": torch.zeros(len(u), dtype=torch.int64, device=u.device)}

    def step(self, state: State, action: Tensor, u: Tensor) -> tuple[State, Tensor, Tensor]:
        count = (state["count"] + 1) * action
        done = count == 4
        return {"count": count}, done.float(), done

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        obs = F.one_hot(state["count"], 5).float()
        return obs, torch.ones_like(obs[:, :2], dtype=torch.bool)
