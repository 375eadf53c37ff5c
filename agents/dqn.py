"""DQN (Mnih et al. 2015, doi:10.1038/nature14236): a network that learns what actions are worth.

With double Q-learning (van Hasselt et al. 2016, arXiv:1509.06461) and targets of n steps (Hessel et al. 2018,
arXiv:1710.02298). Deliberate deviations from the first paper, with its value in brackets:
1. `num_envs` env copies act at once, and each of their time steps is followed by `updates_per_step` updates (one
   env, one update every 4 steps).
2. Illegal actions are left out, in acting and in the target (all actions are legal in Atari games).
3. Adam (RMSProp).
4. A truncated episode keeps its future: the target bootstraps from its last state (Atari episodes end when a life is
   lost).
5. Exploration falls over a share of the whole run (over the first million frames).
6. Targets of n steps are not corrected for what the student would do by now, as in Rainbow (one step).
"""

import copy
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from agents.adam import Adam, learning_rate_at
from agents.distributed import world_size
from agents.guidance.base import EMPTY, NO_GUIDANCE, Guidance
from agents.guidance.margin import margin_loss
from agents.networks import Network, NetworkConfig, polyak_update
from agents.policy import Decision, gather_action, masked_argmax
from agents.replay_buffer import Batch, ReplayBuffer
from envs.base import Env, Step
from envs.rng import EXPLORATION_STREAM, SAMPLING_STREAM, CounterRNG, sample_legal


@dataclass(frozen=True)
class DQNConfig(NetworkConfig):
    """Hyper-parameters, by CleanRL's names."""

    learning_rate: Annotated[float, Interval(gt=0, le=1e38)] = 5e-4
    anneal_lr: bool = False  # whether the learning rate falls to 0 over the run
    gamma: Annotated[float, Interval(ge=0, le=1)] = 0.97  # discount of one step
    n_step: Annotated[int, Interval(ge=1, le=10**4)] = 1  # rewards in a target before the network's own estimate
    buffer_size: Annotated[int, Interval(ge=1, le=10**15)] = 100_000  # transitions
    learning_starts: Annotated[int, Interval(ge=0, le=10**15)] = 5_000  # env steps before the first update
    batch_size: Annotated[int, Interval(ge=1, le=10**8)] = 512  # transitions an update
    updates_per_step: Annotated[int, Interval(ge=1, le=10**4)] = 4  # updates after each time step of all env copies
    tau: Annotated[float, Interval(gt=0, le=1)] = 1.0  # share of the way that the target network goes
    # updates between two moves of the target network
    target_network_frequency: Annotated[int, Interval(ge=1, le=10**9)] = 100
    # exploration: probability of a random legal action at the start
    start_e: Annotated[float, Interval(ge=0, le=1)] = 1.0
    end_e: Annotated[float, Interval(ge=0, le=1)] = 0.05  # and at the end
    exploration_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.1  # share of the run in which it falls
    max_grad_norm: Annotated[float, Interval(gt=0, le=1e38)] = 10.0
    # errors beyond this count linearly, which pulls a value from the mean towards the median
    huber_delta: Annotated[float, Interval(gt=0, le=1e38)] = 1.0

    def check(self, num_envs: int) -> None:
        super().check(num_envs)
        for name in ("batch_size", "updates_per_step", "target_network_frequency", "n_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % world_size():
            raise ValueError(f"a batch of {self.batch_size} cannot be split between {world_size()} processes")
        if self.buffer_size // world_size() < num_envs * self.n_step:
            raise ValueError(
                f"a buffer of {self.buffer_size} does not hold the {self.n_step} time steps of {num_envs} env copies "
                "that a target requires"
            )


def epsilon_at(step: Tensor, config: DQNConfig, total_steps: int) -> Tensor:
    """Return the probability of a random action after `step` env steps (0-d): linear, then constant."""
    progress = (step / max(config.exploration_fraction * total_steps, 1)).clamp(max=1)
    return config.start_e + progress * (config.end_e - config.start_e)


def dqn_loss(
    network: nn.Module,
    target_network: nn.Module,
    batch: Batch,
    huber_delta: float = 1.0,
    guidance: Guidance = NO_GUIDANCE,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (Huber loss of the double-Q error, what to log).

    y = R + gamma^n * Q'(s', argmax over legal a of Q(s', a)), without the second term where the episode
    terminated. Source: arXiv:1509.06461, eq. 4; arXiv:1710.02298, section 3.
    """
    with torch.no_grad():
        next_inputs = guidance.inputs(batch.next_advice)
        next_q_values = target_network(batch.next_obs, next_inputs)
        next_action = masked_argmax(network(batch.next_obs, next_inputs), batch.next_action_mask)
        next_value = gather_action(next_q_values, next_action)
        if guidance.stores_advice:
            next_value = guidance.bootstrap(next_value, next_q_values, batch.next_action_mask, batch.next_advice)
        target = batch.reward + batch.discount * next_value
    q_values = network(batch.obs, guidance.inputs(batch.advice))
    q_value = gather_action(q_values, batch.action)
    assert q_value.shape == target.shape == batch.reward.shape, "one value for each transition"
    td_loss = F.huber_loss(q_value, target, delta=huber_delta)
    loss = td_loss + guidance.loss(q_values, batch) if guidance.stores_advice else td_loss
    return loss, {"losses/td_loss": td_loss.detach(), "losses/q_values": q_value.detach().mean()}


class DQN:
    """A student that learns action values from a buffer of past transitions."""

    steps_per_update = 1
    compiled_methods = ("update_minibatch",)
    has_policy = False

    def __init__(
        self, config: DQNConfig, env: Env, total_steps: int, seed: int, guidance: Guidance | None = None
    ) -> None:
        spec, device, first_env_id = env.spec, env.device, env.first_env_id
        self.guidance = guidance or Guidance(self.has_policy, device)
        self.config = config
        self.total_steps = total_steps
        self.all_envs = env.num_envs * world_size()
        extra_inputs = self.guidance.num_inputs(spec.num_actions)
        self.network = Network(config, spec.obs_shape, spec.num_actions, seed, extra_inputs=extra_inputs).to(device)
        self.target_network = copy.deepcopy(self.network)
        self.optimizer = Adam(self.network, config.max_grad_norm)
        self.replay = ReplayBuffer(config.buffer_size // world_size(), env, self.guidance)
        self.rng = CounterRNG(
            seed, torch.arange(first_env_id, first_env_id + env.num_envs, device=device), EXPLORATION_STREAM
        )
        rows, rank = config.batch_size // world_size(), first_env_id // env.num_envs
        self.batch_rng = CounterRNG(seed, torch.arange(rank * rows, (rank + 1) * rows, device=device), SAMPLING_STREAM)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)  # time steps acted in
        self.updates = torch.zeros((), dtype=torch.int64, device=device)
        self.num_observed = 0  # time steps stored, as the host counts them
        self.was_pretrained = False  # then it learns from its first transition on

    @torch.no_grad()
    def act(self, obs: Tensor, action_mask: Tensor) -> Decision:
        self.steps += 1
        return self.decide(obs, action_mask, EMPTY)

    @torch.no_grad()
    def decide(self, obs: Tensor, action_mask: Tensor, advice: Tensor) -> Decision:
        time_step = self.steps - 1
        u = self.rng.uniform(time_step, 2)
        explores = u[:, 0] < epsilon_at(time_step * self.all_envs, self.config, self.total_steps)
        q_values = self.network(obs, self.guidance.inputs(advice))
        greedy = masked_argmax(q_values, action_mask)
        action = torch.where(explores, sample_legal(action_mask, u[:, 1]), greedy)
        return Decision(action, greedy, q_values, gather_action(q_values, greedy))

    @torch.no_grad()
    def greedy(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        return masked_argmax(self.network(obs), action_mask)

    @torch.no_grad()
    def explore(self, obs: Tensor, action_mask: Tensor, u: Tensor) -> Tensor:
        explores = u[:, 0] < epsilon_at(self.steps * self.all_envs, self.config, self.total_steps)
        return torch.where(explores, sample_legal(action_mask, u[:, 1]), self.greedy(obs, action_mask))

    def observe(
        self,
        step: Step,
        decision: Decision,
        action: Tensor,
        next_step: Step,
        reward: Tensor,
        advice: Tensor = EMPTY,
        followed: Tensor = EMPTY,
        bonus: Tensor = EMPTY,
    ) -> None:
        columns = {}
        if self.guidance.stores_advice:
            columns = {"advice": advice, "followed": followed, "bonus": bonus}
        self.replay.add(
            step,
            next_step,
            action=action,
            reward=reward,
            terminated=next_step.terminated,
            truncated=next_step.truncated,
            **columns,
        )

    def update(self, step: Step) -> dict[str, Tensor]:
        self.num_observed += 1
        stats: dict[str, Tensor] = {}
        learning_starts = 0 if self.was_pretrained else self.config.learning_starts
        is_ready = self.num_observed * self.all_envs >= learning_starts
        if is_ready and self.num_observed >= self.config.n_step:
            for _ in range(self.config.updates_per_step):
                stats = self.update_minibatch()
        return stats

    def update_minibatch(self) -> dict[str, Tensor]:
        """Go one step down the loss of a sample, and move the target network when it is time."""
        config = self.config
        batch = self.replay.sample(self.batch_rng.uniform(self.updates, 1)[:, 0], config.n_step, config.gamma)
        loss, stats = dqn_loss(self.network, self.target_network, batch, config.huber_delta, self.guidance)
        step = self.steps * self.all_envs
        learning_rate = learning_rate_at(step, config.learning_rate, config.anneal_lr, self.total_steps)
        grad_norm = self.optimizer.step(loss, learning_rate)
        self.updates += 1
        is_time = self.updates % config.target_network_frequency == 0
        polyak_update(self.target_network, self.network, config.tau * is_time)
        return stats | {"losses/grad_norm": grad_norm, "charts/learning_rate": learning_rate}

    def pretrain(self, obs: Tensor, action_mask: Tensor, advice: Tensor) -> None:
        loss = margin_loss(self.network(obs, self.guidance.inputs(advice)), action_mask, advice)
        self.optimizer.step(loss, self.config.learning_rate)
        self.was_pretrained = True
        polyak_update(self.target_network, self.network, torch.ones((), device=obs.device))

    def state_dict(self) -> dict[str, object]:
        return {
            "network": self.network.state_dict(),
            "target_network": self.target_network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "steps": self.steps,
            "updates": self.updates,
            "num_observed": self.num_observed,
            "was_pretrained": self.was_pretrained,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.target_network.load_state_dict(state["target_network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.steps.copy_(state["steps"])
        self.updates.copy_(state["updates"])
        self.num_observed = state["num_observed"]
        self.was_pretrained = state.get("was_pretrained", False)  # of version 1.0.0
