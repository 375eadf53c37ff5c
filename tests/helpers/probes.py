"""Games so small that their solutions are known, for tests of whatever learns."""

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.base import Spec, State


class Echo:
    """One-hot of a hidden column is seen; naming it pays 1, and every game is over at once.

    With `walls` the columns beside the hidden one are illegal.
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
    """A cue of two is seen; the first move should name it, the second move pays 1 if the first did so."""

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
    """A number from a random start that grows for ever and is the reward; a clock of three steps cuts it short."""

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
    """Action 1 pays 1 a step, action 0 pays nothing; nothing ever ends but by a clock of five steps, which is not seen.

    Who keeps a truncated game's future values every position at 1 / (1 - gamma); who drops it, at less.
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
    """One-hot of a count is seen: action 1 is up, action 0 is back to 0. The fourth up pays 1 and ends the game."""

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
