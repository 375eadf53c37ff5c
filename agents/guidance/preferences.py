"""Preferences: a model has said which of two games was played better; a reward is fitted to that, and added.

The reward becomes r + strength * reward_scale * R(s'), with R a small network of what the student sees after its step.
R is fitted to the comparisons of pairs of games by P(first is better) = sigmoid(sum of R over the first - sum over the
second) (Bradley & Terry 1952, as in Christiano et al. 2017, arXiv:1706.03741), then shifted and scaled to mean 0 and
spread 1 over the games that were compared. strength falls from 1 to 0 in the first half of what is left of the run: a
fitted reward is soon wrong about a student that has changed. What DQN remembers is paid as it is worth when it is
learned from. Source: arXiv:2401.07181, which pauses so, lets a model name scenarios of failure and compare roll-outs;
its network and schedule are not known, ours are our choice.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.adam import Adam
from agents.base import Choice, Extras, Guidance, Heard, Proposal, Shapes
from agents.networks import Network, NetworkConfig
from envs.base import Step

HIDDEN = (64,)
STEPS, RATE = 300, 3e-3  # of the fit
DECAY = 1e-2  # of the squared rewards: comparisons leave a constant open, and few of them leave more


class Preferences(Guidance):
    """Add the fitted reward."""

    pauses, strongest = True, math.inf
    model: Network | None = None

    def extras(self, num_actions: int) -> Shapes:
        return {"bonus": ((), torch.float32)}

    def choose(self, proposal: Proposal, heard: Heard, action_mask: Tensor, u: Tensor) -> Choice:
        return Choice(proposal.action, proposal.scores, {"bonus": torch.zeros_like(proposal.value)})

    @torch.no_grad()
    def remember(self, after: Step, extras: Extras) -> Extras:
        if self.model is None:
            return extras
        return {"bonus": (self.model(after.final_obs)[:, 0] - self.middle) / self.spread}

    def fit(
        self, games: Sequence[Tensor], pairs: Sequence[tuple[int, int]], firsts: Sequence[float], seed: int
    ) -> float:
        """Fit the reward, and return the share of comparisons that it gets right.

        Args:
            games: what the student saw after each step, (T, *obs_shape) float32 each.
            pairs: numbers of the two games of each comparison.
            firsts: the chance that the first is better, of each.
            seed: of the network.
        """
        device, lengths = self.strength.device, [len(game) for game in games]
        seen, wanted = torch.cat(list(games)).to(device), torch.tensor(firsts, device=device)
        first, second = torch.tensor(pairs, device=device).T
        model = Network(NetworkConfig("mlp", HIDDEN), tuple(seen.shape[1:]), 1, seed).to(device)
        adam = Adam(model, 1.0)
        for _ in range(STEPS):
            rewards = model(seen)[:, 0]
            totals = torch.stack([part.sum() for part in rewards.split(lengths)])
            loss = F.binary_cross_entropy_with_logits(totals[first] - totals[second], wanted)
            adam.step(loss + DECAY * rewards.square().mean(), RATE)
        middle, spread = rewards.mean().detach(), rewards.std().clamp(min=1e-3).detach()
        shape = list(seen.shape[1:])
        self.load_state_dict({"model": model.state_dict(), "middle": middle, "spread": spread, "shape": shape})
        return float(((totals[first] > totals[second]) == (wanted > 0.5)).float().mean())

    def state_dict(self) -> dict:
        if self.model is None:
            return {}
        return {"model": self.model.state_dict(), "middle": self.middle, "spread": self.spread, "shape": self.shape}

    def load_state_dict(self, state: dict) -> None:
        if state:
            self.shape = list(state["shape"])
            self.model = Network(NetworkConfig("mlp", HIDDEN), tuple(self.shape), 1, 0).to(self.strength.device)
            self.model.load_state_dict(state["model"])
            self.middle, self.spread = state["middle"], state["spread"]
