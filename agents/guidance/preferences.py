"""Preferences: a model has said which of two episodes was played better; a reward is fitted to that, and added.

The reward becomes r + strength * reward_scale * R(s'), with R a small network of what the student sees after its step.
R is fitted to the comparisons of pairs of episodes by P(first is better) = sigmoid(sum of R over the first - sum over
the second) (Bradley & Terry 1952, as in Christiano et al. 2017, arXiv:1706.03741), then shifted and scaled to mean 0
and standard deviation 1 over the episodes that were compared. strength falls from 1 to 0 in the first half of what is
left of the run: a fitted reward is soon wrong about a student that has changed. A bonus in DQN's replay buffer is worth
what it is worth when it is learned from. Source: arXiv:2401.07181, which pauses training, lets a model name failure
scenarios and compare rollouts; its network and schedule are not known, ours are our choice.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.adam import Adam
from agents.guidance.base import Guidance
from agents.networks import Network, NetworkConfig
from envs.base import Step

HIDDEN = (64,)
FIT_STEPS = 300
FIT_LEARNING_RATE = 3e-3
DECAY = 1e-2  # of the squared rewards: comparisons leave a constant open, and few of them leave more


class Preferences(Guidance):
    """Add the fitted reward."""

    stores_advice = needs_episode_review = True
    max_strength = math.inf
    model: Network | None = None  # none before `fit`

    def reward(self, next_step: Step, action: Tensor, advice: Tensor) -> tuple[Tensor, Tensor]:
        if self.model is None:
            return super().reward(next_step, action, advice)
        return next_step.reward, self.bonus(next_step.final_obs)

    @torch.no_grad()
    def bonus(self, final_obs: Tensor) -> Tensor:
        """Return the fitted reward of what the student saw after its steps, (B,) for (B, *obs_shape)."""
        assert self.model is not None, "no reward is fitted"
        return (self.model(final_obs)[:, 0] - self.mean) / self.std

    def fit(
        self, episodes: Sequence[Tensor], pairs: Sequence[tuple[int, int]], first_probs: Sequence[float], seed: int
    ) -> float:
        """Fit the reward, and return the share of comparisons that it gets right.

        Args:
            episodes: what the student saw after each step, (T, *obs_shape) float32 each.
            pairs: numbers of the two episodes of each comparison.
            first_probs: the probability that the first is better, of each.
            seed: of the network.
        """
        device = self.strength.device
        lengths = [len(episode) for episode in episodes]
        obs = torch.cat(list(episodes)).to(device)
        target = torch.tensor(first_probs, device=device)
        first, second = torch.tensor(pairs, device=device).T
        model = Network(NetworkConfig("mlp", HIDDEN), tuple(obs.shape[1:]), 1, seed).to(device)
        adam = Adam(model, 1.0)
        for _ in range(FIT_STEPS):
            rewards = model(obs)[:, 0]
            totals = torch.stack([part.sum() for part in rewards.split(lengths)])
            loss = F.binary_cross_entropy_with_logits(totals[first] - totals[second], target)
            adam.step(loss + DECAY * rewards.square().mean(), FIT_LEARNING_RATE)
        mean, std = rewards.mean().detach(), rewards.std().clamp(min=1e-3).detach()
        shape = list(obs.shape[1:])
        self.load_state_dict({"model": model.state_dict(), "mean": mean, "std": std, "shape": shape})
        return float(((totals[first] > totals[second]) == (target > 0.5)).float().mean())

    def state_dict(self) -> dict[str, Any]:
        if self.model is None:
            return {}
        return {"model": self.model.state_dict(), "mean": self.mean, "std": self.std, "shape": self.shape}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.shape = list(state["shape"])
            self.model = Network(NetworkConfig("mlp", HIDDEN), tuple(self.shape), 1, 0).to(self.strength.device)
            self.model.load_state_dict(state["model"])
            self.mean, self.std = state["mean"], state["std"]
