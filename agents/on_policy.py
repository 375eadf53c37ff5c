"""What PPO and A2C share: a stochastic policy, a rollout of the last `num_steps` moments, its advantages."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.adam import Adam, learning_rate_at
from agents.base import NOTHING, Extras, Guidance, Proposal
from agents.distributed import all_reduce_mean, world_size
from agents.gae import gae, normalize
from agents.networks import ActorCritic, NetworkConfig
from agents.policy import gather_action, masked_argmax, masked_log_softmax, sample_action
from envs.base import Env, Step
from envs.rng import EXPLORATION, SAMPLING, CounterRNG


@dataclass(frozen=True)
class OnPolicyConfig(NetworkConfig):
    """Hyper-parameters, in CleanRL's words."""

    learning_rate: float = 5e-4
    anneal_lr: bool = True  # whether the learning rate falls to 0 over the run
    num_steps: int = 32  # moments of all games in a rollout
    gamma: float = 0.99  # discount of one step
    gae_lambda: float = 0.95
    norm_adv: bool = True  # advantages of mean 0 and spread 1 in each rollout
    adv_floor: float = 0.1  # no spread is taken for smaller than this: see normalise in agents/gae.py
    ent_coef: float = 0.01  # weight of the entropy in the loss
    vf_coef: float = 0.5  # weight of the value's error
    max_grad_norm: float = 0.5

    @property
    def num_minibatches(self) -> int:
        """Parts of a rollout, one learned from after the other."""
        return 1

    def check(self, num_envs: int) -> None:
        super().check(num_envs)
        for name in ("num_steps", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_steps * num_envs % self.num_minibatches:
            raise ValueError(
                f"{self.num_steps} moments of {num_envs} games cannot be split into {self.num_minibatches} minibatches"
            )


class Batch(NamedTuple):
    """B moments of a rollout."""

    obs: Tensor  # (B, *obs_shape) float32
    action_mask: Tensor  # (B, A) bool
    action: Tensor  # (B,) int64
    log_prob: Tensor  # (B,) float32, of the action under the policy that acted
    advantage: Tensor  # (B,) float32, 0 where the policy does not learn from the action
    returns: Tensor  # (B,) float32
    extras: Extras = NOTHING  # what a method of guidance keeps, (B, …) each


class Rollout(NamedTuple):
    """T moments of N games, in buffers that never move."""

    obs: Tensor  # (T, N, *obs_shape) float32
    action_masks: Tensor  # (T, N, A) bool
    actions: Tensor  # (T, N) int64
    log_probs: Tensor  # (T, N) float32
    values: Tensor  # (T, N) float32
    rewards: Tensor  # (T, N) float32
    terminations: Tensor  # (T, N) bool
    truncations: Tensor  # (T, N) bool
    next_values: Tensor  # (T, N) float32: V(final_obs), known while it is played only where there is a clock


class OnPolicy:
    """A student that learns from what it has just lived through, and then forgets it.

    Subclasses fill `loss`, and `epochs`: how often a rollout is learned from.
    """

    epochs = 1
    parts = ("prepare", "shuffle", "learn")
    has_policy = True

    def __init__(self, config: Any, env: Env, total_steps: int, seed: int, guidance: Guidance | None = None) -> None:
        self.guidance = guidance or Guidance(self.has_policy, env.device)
        spec, device, num_envs, first_env_id = env.spec, env.device, env.num_envs, env.first_env_id
        self.config, self.spec, self.num_envs, self.total_steps = config, spec, num_envs, total_steps
        self.horizon: int = config.num_steps
        besides = self.guidance.inputs(spec.num_actions)
        self.network = ActorCritic(config, spec.obs_shape, spec.num_actions, seed, besides).to(device)
        self.optimizer = Adam(self.network, config.max_grad_norm)
        shape = (config.num_steps, num_envs)
        number, flag = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
        self.rollout = Rollout(
            obs=torch.zeros(*shape, *spec.obs_shape, device=device),
            action_masks=torch.zeros(*shape, spec.num_actions, dtype=torch.bool, device=device),
            actions=number.long(),
            log_probs=number.clone(),
            values=number.clone(),
            rewards=number.clone(),
            terminations=flag.clone(),
            truncations=flag.clone(),
            next_values=number.clone(),
        )
        self.extras = {
            name: torch.zeros(*shape, *rest, dtype=dtype, device=device)
            for name, (rest, dtype) in self.guidance.extras(spec.num_actions).items()
        }
        self.advantages, self.returns = number.clone(), number.clone()
        games = torch.arange(first_env_id, first_env_id + num_envs, device=device)
        rows = torch.arange(
            first_env_id * config.num_steps, (first_env_id + num_envs) * config.num_steps, device=device
        )
        self.rng = CounterRNG(seed, games, EXPLORATION)
        self.shuffle_rng = CounterRNG(seed, rows, SAMPLING)
        self.place = torch.zeros((), dtype=torch.int64, device=device)  # moments in the rollout
        self.steps = torch.zeros((), dtype=torch.int64, device=device)  # moments acted in
        self.orders = torch.zeros((), dtype=torch.int64, device=device)  # orders that rollouts were learned in
        self.learning_rate = torch.zeros((), device=device)

    @torch.no_grad()
    def act(self, step: Step) -> Proposal:
        self.steps += 1
        return self.think(step, None)

    @torch.no_grad()
    def think(self, step: Step, besides: Tensor | None) -> Proposal:
        logits, value = self.network(step.obs, besides)
        log_probs = masked_log_softmax(logits, step.action_mask)
        action = sample_action(log_probs, step.action_mask, self.rng.uniform(self.steps - 1, self.spec.num_actions))
        return Proposal(action, masked_argmax(log_probs, step.action_mask), log_probs, value)

    @torch.no_grad()
    def greedy(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        return masked_argmax(self.network(obs)[0], action_mask)

    @torch.no_grad()
    def observe(self, step: Step, proposal: Proposal, action: Tensor, after: Step, extras: Extras = NOTHING) -> None:
        moment = Rollout(
            step.obs,
            step.action_mask,
            action,
            gather_action(proposal.scores, action),
            proposal.value,
            after.reward,
            after.terminated,
            after.truncated,
            # without a clock no game is ever truncated: the next moment's value will do, and is free
            proposal.value if self.spec.time_limit is None else self.network.judge(after.final_obs),
        )
        for buffer, value in zip(self.rollout, moment, strict=True):
            buffer.index_copy_(0, self.place[None], value[None])
        for name, value in extras.items():
            self.extras[name].index_copy_(0, self.place[None], value[None])
        self.place += 1

    def update(self, step: Step) -> dict[str, Tensor]:
        self.prepare(step)
        stats: dict[str, Tensor] = {}
        for _ in range(self.epochs):
            for rows in self.shuffle().chunk(self.config.num_minibatches):
                stats = self.learn(rows)
        return stats | {"charts/learning_rate": self.learning_rate.clone()}

    @torch.no_grad()
    def prepare(self, step: Step) -> None:
        """Work out what the rollout comes to, and set the learning rate."""
        told, kept = self.config, self.rollout
        flags = (kept.terminations, kept.truncations)
        next_values = torch.cat([kept.values[1:], self.network.judge(step.obs)[None]])
        if self.spec.time_limit is not None:
            next_values = torch.where(flags[0] | flags[1], kept.next_values, next_values)
        rewards = self.guidance.felt(kept.rewards, self.extras)
        advantages, returns = gae(rewards, kept.values, next_values, *flags, told.gamma, told.gae_lambda)
        advantages = self.guidance.advantage(advantages, self.extras)
        counts = self.guidance.counts(self.extras)
        own = torch.ones_like(advantages) if counts is None else counts.float()
        sums = torch.stack([own.mean(), (own * advantages).mean(), (own * advantages * advantages).mean()])
        share, mean, square = all_reduce_mean(sums).unbind()
        share = share.clamp(min=1 / own.numel())
        if told.norm_adv:
            advantages = normalize(advantages, mean / share, square / share, told.adv_floor)
        self.advantages.copy_(own * advantages / share)  # so that a mean over all is one over those that count
        self.returns.copy_(returns)
        self.place.zero_()
        begun = (self.steps - told.num_steps) * self.num_envs * world_size()  # env steps before this rollout
        self.learning_rate.copy_(learning_rate_at(begun, told.learning_rate, told.anneal_lr, self.total_steps))

    @torch.no_grad()
    def shuffle(self) -> Tensor:
        """Return all rows of the rollout, (T * N,) int64, in a new order."""
        u = self.shuffle_rng.uniform(self.orders, 1)[:, 0]
        self.orders += 1
        return (u * 2**24).int().argsort(stable=True)  # of whole numbers: ten times as fast on a CPU

    def learn(self, rows: Tensor) -> dict[str, Tensor]:
        """Go one step down the loss of these rows (B,) of the rollout."""
        kept = self.rollout
        columns = (kept.obs, kept.action_masks, kept.actions, kept.log_probs, self.advantages, self.returns)
        extras = {name: column.flatten(0, 1)[rows] for name, column in self.extras.items()}
        loss, stats = self.loss(Batch._make([*(column.flatten(0, 1)[rows] for column in columns), extras]))
        return stats | {"losses/grad_norm": self.optimizer.step(loss, self.learning_rate)}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (what to go down, what to log)."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, object]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "orders": self.orders,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps.copy_(state["steps"])
        self.orders.copy_(state["orders"])
        self.place.zero_()
