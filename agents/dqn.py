"""DQN (Mnih et al. 2015, doi:10.1038/nature14236): a network that learns what actions are worth.

With double Q-learning (van Hasselt et al. 2016, arXiv:1509.06461) and targets of n steps (Hessel et al. 2018,
arXiv:1710.02298). Deliberate deviations from the first paper, with its value in brackets:
1. `num_envs` games act at once, and every step of them all is followed by `updates_per_step` updates (one
   game, one update every 4 steps).
2. Illegal actions are left out, in acting and in the target (all actions are legal in Atari games).
3. Adam (RMSProp).
4. A game cut short by its clock keeps its future: the target bootstraps from the last position (Atari
   games end when a life is lost).
5. Exploration falls over a share of the whole run (over the first million frames).
6. Targets of n steps are not corrected for what the student would do by now, as in Rainbow (one step).
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.adam import Adam, learning_rate_at
from agents.base import NOTHING, UNGUIDED, Extras, Guidance, Proposal
from agents.distributed import world_size
from agents.networks import Network, NetworkConfig, polyak_update
from agents.policy import gather_action, masked_argmax
from agents.replay_buffer import Batch, ReplayBuffer
from envs.base import Env, Step
from envs.rng import EXPLORATION, SAMPLING, CounterRNG, sample_legal


@dataclass(frozen=True)
class DQNConfig(NetworkConfig):
    """Hyper-parameters, in CleanRL's words."""

    learning_rate: float = 5e-4
    anneal_lr: bool = False  # whether the learning rate falls to 0 over the run
    gamma: float = 0.97  # discount of one step
    n_step: int = 1  # rewards in a target before the network's own estimate
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
    huber_delta: float = 1.0  # errors beyond this count linearly, which pulls a value from the mean towards the median

    def check(self, num_envs: int) -> None:
        super().check(num_envs)
        for name in ("batch_size", "updates_per_step", "target_network_frequency", "n_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % world_size():
            raise ValueError(f"a batch of {self.batch_size} cannot be split between {world_size()} processes")
        if self.buffer_size // world_size() < num_envs * self.n_step:
            raise ValueError(
                f"a buffer of {self.buffer_size} does not hold the {self.n_step} moments of {num_envs} games that "
                "a target needs"
            )


def epsilon_at(step: Tensor, config: DQNConfig, total_steps: int) -> Tensor:
    """Return the chance of a random action after `step` env steps (0-d): linear, then constant."""
    progress = (step / max(config.exploration_fraction * total_steps, 1)).clamp(max=1)
    return config.start_e + progress * (config.end_e - config.start_e)


def dqn_loss(
    network: nn.Module, target: nn.Module, batch: Batch, huber_delta: float = 1.0, guidance: Guidance = UNGUIDED
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (Huber loss of the double-Q error, what to log).

    y = R + gamma^n * Q'(s', argmax over legal a of Q(s', a)), without the second term where the game
    terminated. Source: arXiv:1509.06461, eq. 4; arXiv:1710.02298, section 3.
    """
    with torch.no_grad():
        besides = guidance.see(batch.next_extras)
        theirs = target(batch.next_obs, besides)
        future = gather_action(theirs, masked_argmax(network(batch.next_obs, besides), batch.next_action_mask))
        future = guidance.future(future, theirs, batch.next_action_mask, batch.next_extras)
        aim = batch.reward + batch.discount * future
    values = network(batch.obs, guidance.see(batch.extras))
    value = gather_action(values, batch.action)
    assert value.shape == aim.shape == batch.reward.shape, "one value for each transition"
    loss = F.huber_loss(value, aim, delta=huber_delta)
    whole = loss + guidance.loss(values, batch.action_mask, batch.extras)
    return whole, {"losses/td_loss": loss.detach(), "losses/q_values": value.detach().mean()}


class DQN:
    """A student that learns the value of actions from everything it has lived through."""

    horizon = 1
    parts = ("learn",)
    has_policy = False

    def __init__(
        self, config: DQNConfig, env: Env, total_steps: int, seed: int, guidance: Guidance | None = None
    ) -> None:
        self.guidance = guidance or Guidance(self.has_policy, env.device)
        spec, device, first_env_id = env.spec, env.device, env.first_env_id
        self.config, self.total_steps = config, total_steps
        self.all_envs = env.num_envs * world_size()
        besides = self.guidance.inputs(spec.num_actions)
        self.network = Network(config, spec.obs_shape, spec.num_actions, seed, besides=besides).to(device)
        self.target = copy.deepcopy(self.network)
        self.optimizer = Adam(self.network, config.max_grad_norm)
        self.replay = ReplayBuffer(config.buffer_size // world_size(), env, self.guidance.extras(spec.num_actions))
        self.rng = CounterRNG(seed, torch.arange(first_env_id, first_env_id + env.num_envs, device=device), EXPLORATION)
        rows, rank = config.batch_size // world_size(), first_env_id // env.num_envs
        self.batch_rng = CounterRNG(seed, torch.arange(rank * rows, (rank + 1) * rows, device=device), SAMPLING)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)  # moments acted in
        self.updates = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = 0  # moments observed, as the host counts them

    @torch.no_grad()
    def act(self, step: Step) -> Proposal:
        self.steps += 1
        return self.think(step, None)

    @torch.no_grad()
    def think(self, step: Step, besides: Tensor | None) -> Proposal:
        before = self.steps - 1
        u = self.rng.uniform(before, 2)
        explore = u[:, 0] < epsilon_at(before * self.all_envs, self.config, self.total_steps)
        values = self.network(step.obs, besides)
        greedy = masked_argmax(values, step.action_mask)
        action = torch.where(explore, sample_legal(step.action_mask, u[:, 1]), greedy)
        return Proposal(action, greedy, values, gather_action(values, greedy))

    @torch.no_grad()
    def greedy(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        return masked_argmax(self.network(obs), action_mask)

    def observe(self, step: Step, proposal: Proposal, action: Tensor, after: Step, extras: Extras = NOTHING) -> None:
        self.replay.add(step, action, after, extras)

    def update(self, step: Step) -> dict[str, Tensor]:
        self.seen += 1
        stats: dict[str, Tensor] = {}
        if self.seen * self.all_envs >= self.config.learning_starts and self.seen >= self.config.n_step:
            for _ in range(self.config.updates_per_step):
                stats = self.learn()
        return stats

    def learn(self) -> dict[str, Tensor]:
        """Go one step down the loss of a sample, and move the target network when it is time."""
        told = self.config
        u = self.batch_rng.uniform(self.updates, 1)[:, 0]
        batch = self.replay.sample(u, told.n_step, told.gamma, self.guidance.felt)
        loss, stats = dqn_loss(self.network, self.target, batch, told.huber_delta, self.guidance)
        rate = learning_rate_at(self.steps * self.all_envs, told.learning_rate, told.anneal_lr, self.total_steps)
        norm = self.optimizer.step(loss, rate)
        self.updates += 1
        polyak_update(self.target, self.network, told.tau * (self.updates % told.target_network_frequency == 0))
        return stats | {"losses/grad_norm": norm, "charts/learning_rate": rate}

    def state_dict(self) -> dict[str, object]:
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "steps": self.steps,
            "updates": self.updates,
            "seen": self.seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"], self.guidance.unheard)
        self.steps.copy_(state["steps"])
        self.updates.copy_(state["updates"])
        self.seen = state["seen"]
