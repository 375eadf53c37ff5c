"""Modulation: a model has read the student's episodes; in the states that it found critical, its findings count.

What stands for advice here is a row of numbers in [-1, 1] for each critical state: what the model thinks each action
there is worth; zeros elsewhere. With `modulate-a` the best of the legal ones is done in place of the student's own with
the probability strength, where its number is above 0: two episodes may contradict each other. With `modulate-r` the
reward becomes r + strength * reward_scale * (the number of the action that was done); `modulate` does both. Nothing is
done anywhere else, and strength falls from 1 to 0 in the first half of what is left of the run. The trajectories are
ordinary data for the student's updates; a bonus in DQN's replay buffer is worth what it is worth when it is learned
from.

Source: ULTRA-A, -R and -RA (Tan, Yan & Yang 2025, arXiv:2505.20671). How they scale the reward, anneal it and find a
state again is not known: the exact key, the row of numbers and the schedule are ours.

`modulate-d` is ours, too: the student always acts itself, and in critical states its loss draws it to that best action,
by the cross-entropy of `distill` and with its strength, 5 falling to 0 in the first half of what is left.
"""

import math

import torch
from torch import Tensor

from agents.guidance.base import Guidance
from agents.guidance.distill import Distill
from agents.policy import Decision, gather_action
from envs.base import Step


class Modulate(Guidance):
    """Do the model's action in critical states, and add its reward."""

    stores_advice = needs_episode_review = True
    max_strength = 1.0
    has_actions = has_rewards = True

    def act(self, decision: Decision, advice: Tensor, action_mask: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if not self.has_actions:
            return super().act(decision, advice, action_mask, u)
        better, is_named = better_action(advice, action_mask)
        followed = is_named & (u[:, -1] < self.strength)
        return torch.where(followed, better, decision.action), followed

    def reward(self, next_step: Step, action: Tensor, advice: Tensor) -> tuple[Tensor, Tensor]:
        if not self.has_rewards:
            return super().reward(next_step, action, advice)
        return next_step.reward, gather_action(advice, action)


class ModulateActions(Modulate):
    """Do its action alone."""

    has_rewards = False


class ModulateRewards(Modulate):
    """Add its reward alone."""

    has_actions = False
    max_strength = math.inf


class ModulateDistill(Distill):
    """Learn its action."""

    needs_episode_review = True
    is_annealed = False

    def distance(self, log_probs: Tensor, action_mask: Tensor, advice: Tensor) -> Tensor:
        better, is_named = better_action(advice, action_mask)
        actions = torch.arange(advice.shape[1], device=advice.device)
        target = (actions == better[:, None]) & is_named[:, None]  # F.one_hot reads values on the host, on CPUs
        return super().distance(log_probs, action_mask, target.float())


def better_action(worth: Tensor, action_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (the best legal action, whether the model named it), (N,) int64 and bool."""
    best_worth, best = worth.masked_fill(~action_mask, -torch.inf).max(1)
    return best, best_worth > 0
