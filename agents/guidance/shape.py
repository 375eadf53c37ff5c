"""Shape: what the tutor would have done too is rewarded at once, and paid back a step later.

The reward becomes r + gamma * phi' - phi. The potential phi' of the next state is strength * p_tutor(a | s), the
tutor's approval of the action that led there: 0 where there was no advice, in an episode's first state and where the
episode has terminated. strength falls from 0.2 to 0 in the first half of the run. The student always acts itself.
Source: potential-based shaping leaves the best policies the best (Ng, Harada & Russell 1999, "Policy invariance under
reward transformations"); with a potential of the last action, look-back advice (Wiewiora, Cottrell & Elkan 2003,
"Principled methods for advising reinforcement learning agents"); with one that changes in time, Devlin & Kudenko 2012,
"Dynamic potential-based reward shaping". The theorem is about a student that remembers phi. Ours does not see it, so
its values know only what phi is on average in a state, and the invariance is as good as that.
"""

import math

import torch
from torch import Tensor

from agents.guidance.base import Guidance
from agents.policy import gather_action
from envs.base import Step


class Shape(Guidance):
    """Lend a reward for what the tutor would have done."""

    is_annealed = True
    max_strength = math.inf
    strength_start = 0.2
    state_keys = ("potential",)

    def __init__(self, has_policy: bool, device: torch.device | str, num_envs: int = 1, gamma: float = 1.0) -> None:
        super().__init__(has_policy, device, num_envs, gamma)
        self.potential = torch.zeros(num_envs, device=device)  # of the state that is acted in

    def reward(self, next_step: Step, action: Tensor, advice: Tensor) -> tuple[Tensor, Tensor]:
        potential = self.strength * gather_action(advice, action) * ~next_step.terminated
        shaped = next_step.reward + self.gamma * potential - self.potential
        self.potential.copy_(potential * ~next_step.truncated)
        return shaped, torch.zeros_like(shaped)
