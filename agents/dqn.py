"""DQN (Mnih et al. 2015, doi:10.1038/nature14236) with double Q-learning (van Hasselt et al. 2016, arXiv:1509.06461).

Deliberate deviations from the first paper, with its value in brackets:
1. `num_envs` games act at once, and every step of them all is followed by `updates_per_step` updates (one
   game, one update every 4 steps).
2. Illegal actions are left out, in acting and in the target (all actions are legal in Atari games).
3. Adam (RMSProp); a multi-layer perceptron on the observation (a convolutional network on frames).
4. A game cut short by its clock keeps its future: the target bootstraps from the last position (Atari
   games end when a life is lost).
5. Exploration falls over a share of the whole run (over the first million frames).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.base import Proposal, best_legal
from agents.networks import follow, make_network
from agents.replay import Batch, Replay
from envs.base import Spec, Step
from envs.luck import EXPLORATION, SAMPLING, Luck, pick


@dataclass(frozen=True)
class DQNConfig:
    """Hyper-parameters, in CleanRL's words."""

    learning_rate: float = 5e-4
    gamma: float = 0.97  # discount of one step
    buffer_size: int = 100_000  # transitions
    learning_starts: int = 5_000  # env steps before the first update
    batch_size: int = 512  # transitions an update
    updates_per_step: int = 4  # updates after each step of all games
    tau: float = 1.0  # share of the way that the target network goes
    target_network_frequency: int = 100  # updates between two moves of the target network
    start_e: float = 1.0  # exploration: chance of a random legal action at first
    end_e: float = 0.05  # and at the end
    exploration_fraction: float = 0.1  # share of the run in which it falls
    max_grad_norm: float = 10.0
    hidden: tuple[int, ...] = (256, 256)  # units of each layer

    def check(self, num_envs: int) -> None:
        """Raise ValueError for what cannot be trained with."""
        if self.buffer_size < num_envs:
            raise ValueError(f"a buffer of {self.buffer_size} holds no moment of {num_envs} games")
        for name in ("batch_size", "updates_per_step", "target_network_frequency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def epsilon_at(step: Tensor, config: DQNConfig, total_steps: int) -> Tensor:
    """Return the chance of a random action after `step` env steps (0-d): linear, then constant."""
    progress = (step / max(config.exploration_fraction * total_steps, 1)).clamp(max=1)
    return config.start_e + progress * (config.end_e - config.start_e)


def dqn_loss(network: nn.Module, target: nn.Module, batch: Batch, gamma: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (Huber loss of the double-Q error, what to log).

    y = r + gamma * Q'(s', argmax over legal a of Q(s', a)), without the second term where the game
    terminated. Source: arXiv:1509.06461, eq. 4.
    """
    with torch.no_grad():
        action = best_legal(network(batch.next_obs), batch.next_legal)
        future = target(batch.next_obs).gather(1, action[:, None])[:, 0]
        aim = batch.reward + gamma * future * ~batch.terminated
    value = network(batch.obs).gather(1, batch.action[:, None])[:, 0]
    assert value.shape == aim.shape == batch.reward.shape, "one value for each transition"
    loss = F.smooth_l1_loss(value, aim)
    return loss, {"losses/td_loss": loss.detach(), "losses/q_values": value.detach().mean()}


class DQN:
    """A student that learns the value of actions from everything it has lived through."""

    horizon = 1

    def __init__(
        self,
        config: DQNConfig,
        spec: Spec,
        num_envs: int,
        total_steps: int,
        seed: int,
        device: str | torch.device,
    ) -> None:
        self.config, self.num_envs, self.total_steps = config, num_envs, total_steps
        self.network = make_network(spec.obs_shape, config.hidden, spec.num_actions, seed).to(device)
        self.target = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate, fused=True)
        self.replay = Replay(config.buffer_size, num_envs, spec.obs_shape, spec.num_actions, device)
        self.luck = Luck(seed, torch.arange(num_envs, device=device), EXPLORATION)
        self.batch_luck = Luck(seed, torch.arange(config.batch_size, device=device), SAMPLING)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)  # moments acted in
        self.updates = 0

    @torch.no_grad()
    def act(self, step: Step) -> Proposal:
        luck = self.luck.draw(self.steps, 2)
        explore = luck[:, 0] < epsilon_at(self.steps * self.num_envs, self.config, self.total_steps)
        greedy = self.greedy(step.obs, step.legal)
        self.steps += 1
        return Proposal(torch.where(explore, pick(step.legal, luck[:, 1]), greedy), greedy)

    @torch.no_grad()
    def greedy(self, obs: Tensor, legal: Tensor) -> Tensor:
        return best_legal(self.network(obs), legal)

    def frozen(self) -> Callable[[Tensor, Tensor], Tensor]:
        network = copy.deepcopy(self.network).requires_grad_(False)
        return lambda obs, legal: best_legal(network(obs), legal)

    def observe(self, step: Step, action: Tensor, after: Step) -> None:
        self.replay.add(step, action, after)

    def update(self) -> dict[str, Tensor]:
        stats: dict[str, Tensor] = {}
        if self.replay.written * self.num_envs >= self.config.learning_starts:
            for _ in range(self.config.updates_per_step):
                stats = self._update_once()
        return stats

    def _update_once(self) -> dict[str, Tensor]:
        batch = self.replay.sample(self.batch_luck.draw(self.updates, 1)[:, 0])
        loss, stats = dqn_loss(self.network, self.target, batch, self.config.gamma)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        if self.updates % self.config.target_network_frequency == 0:
            follow(self.target, self.network, self.config.tau)
        return stats | {"losses/grad_norm": norm}

    def state_dict(self) -> dict[str, object]:
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "steps": self.steps,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.steps.copy_(state["steps"])
        self.updates = state["updates"]
