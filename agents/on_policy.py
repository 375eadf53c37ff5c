"""What PPO and A2C share: a stochastic policy, a rollout of the last `num_steps` time steps, its advantages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from agents.adam import Adam, learning_rate_at
from agents.distributed import all_reduce_mean, world_size
from agents.gae import gae, normalize
from agents.guidance.base import EMPTY, Guidance
from agents.networks import ActorCritic, NetworkConfig
from agents.policy import Decision, entropy, gather_action, masked_argmax, masked_log_softmax, sample_action
from agents.rollout_buffer import Batch, RolloutBuffer
from envs.base import Env, Step
from envs.rng import EXPLORATION_STREAM, SAMPLING_STREAM, CounterRNG, can_read


@dataclass(frozen=True)
class OnPolicyConfig(NetworkConfig):
    """Hyper-parameters, by CleanRL's names."""

    learning_rate: Annotated[float, Interval(gt=0, le=1e38)] = 5e-4
    anneal_lr: bool = True  # whether the learning rate falls to 0 over the run
    num_steps: Annotated[int, Interval(ge=1, le=10**6)] = 32  # time steps of all env copies in a rollout
    gamma: Annotated[float, Interval(ge=0, le=1)] = 0.99  # discount of one step
    gae_lambda: Annotated[float, Interval(ge=0, le=1)] = 0.95
    norm_adv: bool = True  # advantages of mean 0 and standard deviation 1 in each rollout
    adv_floor: Annotated[float, Interval(ge=0, le=1e6)] = (
        0.1  # the least standard deviation that advantages are divided by: see agents/gae.py
    )
    ent_coef: Annotated[float, Interval(ge=0, le=1e6)] = 0.01  # weight of the entropy in the loss
    vf_coef: Annotated[float, Interval(ge=0, le=1e6)] = 0.5  # weight of the value's error
    max_grad_norm: Annotated[float, Interval(gt=0, le=1e38)] = 0.5

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
                f"{self.num_steps} time steps of {num_envs} env copies cannot be split into "
                f"{self.num_minibatches} minibatches"
            )


Loss = tuple[Tensor, dict[str, Tensor]]  # a 0-d tensor, and what to log


def actor_critic_loss(
    network: ActorCritic,
    batch: Batch,
    config: OnPolicyConfig,
    guidance: Guidance,
    policy_loss: Callable[[Tensor], Loss],
) -> Loss:
    """Return (the loss, what to log).

    L = policy_loss(log pi(a)) + vf_coef * mean((V - R)^2) / 2 - ent_coef * mean(entropy) + the guidance's loss.
    """
    logits, value = network(batch.obs, guidance.inputs(batch.advice))
    own = masked_log_softmax(logits, batch.action_mask)
    log_probs = own
    if guidance.stores_advice:
        log_probs = guidance.policy(own, batch.action_mask, batch.advice, batch.followed)
    log_prob = gather_action(log_probs, batch.action)
    assert log_prob.shape == value.shape == batch.advantage.shape == batch.returns.shape, "one of each a row"
    actor_loss, stats = policy_loss(log_prob)
    value_loss = 0.5 * (value - batch.returns).square().mean()
    mean_entropy = entropy(log_probs).mean()
    loss = actor_loss + config.vf_coef * value_loss - config.ent_coef * mean_entropy
    if guidance.stores_advice:
        loss = loss + guidance.loss(own, batch)
    return loss, {
        "losses/policy_loss": actor_loss.detach(),
        "losses/value_loss": value_loss.detach(),
        "losses/entropy": mean_entropy.detach(),
        **stats,
    }


class OnPolicy:
    """A student that learns from the last rollout and then forgets it.

    Subclasses fill `loss`, and `epochs`: how often a rollout is learned from.
    """

    epochs = 1
    compiled_methods = ("compute_advantages", "shuffle", "update_minibatch")
    has_policy = True

    def __init__(self, config: Any, env: Env, total_steps: int, seed: int, guidance: Guidance | None = None) -> None:
        spec, device, num_envs, first_env_id = env.spec, env.device, env.num_envs, env.first_env_id
        self.guidance = guidance or Guidance(self.has_policy, device)
        self.config = config
        self.spec = spec
        self.num_envs = num_envs
        self.total_steps = total_steps
        self.steps_per_update: int = config.num_steps
        extra_inputs = self.guidance.num_inputs(spec.num_actions)
        self.network = ActorCritic(config, spec.obs_shape, spec.num_actions, seed, extra_inputs).to(device)
        self.optimizer = Adam(self.network, config.max_grad_norm)
        self.rollout = RolloutBuffer(config.num_steps, num_envs, spec, device, self.guidance.stores_advice)
        env_ids = torch.arange(first_env_id, first_env_id + num_envs, device=device)
        rows = torch.arange(
            first_env_id * config.num_steps, (first_env_id + num_envs) * config.num_steps, device=device
        )
        self.rng = CounterRNG(seed, env_ids, EXPLORATION_STREAM)
        self.shuffle_rng = CounterRNG(seed, rows, SAMPLING_STREAM)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)  # time steps acted in
        self.num_shuffles = torch.zeros((), dtype=torch.int64, device=device)
        self.learning_rate = torch.zeros((), device=device)

    @torch.no_grad()
    def act(self, obs: Tensor, action_mask: Tensor) -> Decision:
        self.steps += 1
        return self.decide(obs, action_mask, EMPTY)

    @torch.no_grad()
    def decide(self, obs: Tensor, action_mask: Tensor, advice: Tensor) -> Decision:
        logits, value = self.network(obs, self.guidance.inputs(advice))
        log_probs = masked_log_softmax(logits, action_mask)
        action = sample_action(log_probs, action_mask, self.rng.uniform(self.steps - 1, self.spec.num_actions))
        return Decision(action, masked_argmax(log_probs, action_mask), log_probs, value)

    @torch.no_grad()
    def greedy(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        return masked_argmax(self.network(obs)[0], action_mask)

    @torch.no_grad()
    def explore(self, obs: Tensor, action_mask: Tensor, u: Tensor) -> Tensor:
        return sample_action(masked_log_softmax(self.network(obs)[0], action_mask), action_mask, u[:, :-1])

    @torch.no_grad()
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
        log_probs, columns = decision.scores, {}
        if self.rollout.stores_advice:
            log_probs = self.guidance.policy(log_probs, step.action_mask, advice, followed)
            columns = {"advice": advice, "followed": followed, "bonus": bonus}
        self.rollout.add(
            obs=step.obs,
            action_mask=step.action_mask,
            action=action,
            log_prob=gather_action(log_probs, action),
            value=decision.value,
            reward=reward,
            terminated=next_step.terminated,
            truncated=next_step.truncated,
            next_value=self.final_value(decision, next_step),
            **columns,
        )

    def final_value(self, decision: Decision, next_step: Step) -> Tensor:
        """Return V(final_obs) (N,) if an episode was truncated; if none was, it is not used and may be any number.

        A compiler and a GPU cannot know that, unless there is no time limit.
        """
        truncated = next_step.truncated
        if self.spec.time_limit is None or (can_read(truncated.device) and not any(truncated.tolist())):
            return decision.value
        return self.network.get_value(next_step.final_obs)

    def update(self, step: Step) -> dict[str, Tensor]:
        self.compute_advantages(step)
        stats: dict[str, Tensor] = {}
        for _ in range(self.epochs):
            for rows in self.shuffle().chunk(self.config.num_minibatches):
                stats = self.update_minibatch(rows)
        return stats | {"charts/learning_rate": self.learning_rate.clone()}

    @torch.no_grad()
    def compute_advantages(self, step: Step) -> None:
        """Write the rollout's advantages and returns, and set the learning rate; `step` follows the rollout."""
        config, rollout = self.config, self.rollout
        flags = (rollout.terminated, rollout.truncated)
        next_values = torch.cat([rollout.value[1:], self.network.get_value(step.obs)[None]])
        if self.spec.time_limit is not None:
            next_values = torch.where(flags[0] | flags[1], rollout.next_value, next_values)
        rewards = self.guidance.shaped(rollout.reward, rollout.bonus) if rollout.stores_advice else rollout.reward
        advantages, returns = gae(rewards, rollout.value, next_values, *flags, config.gamma, config.gae_lambda)
        weight = torch.ones_like(advantages)
        if rollout.stores_advice:
            advantages, weight = self.guidance.advantage(advantages, rollout)
        sums = torch.stack([weight.mean(), (weight * advantages).mean(), (weight * advantages * advantages).mean()])
        share, mean, square = all_reduce_mean(sums).unbind()
        share = share.clamp(min=1 / weight.numel())
        if config.norm_adv:
            advantages = normalize(advantages, mean / share, square / share, config.adv_floor)
        rollout.advantage.copy_(weight * advantages / share)  # so that a mean over all is one over those that count
        rollout.returns.copy_(returns)
        rollout.pos.zero_()
        start = (self.steps - config.num_steps) * self.num_envs * world_size()  # env steps before this rollout
        self.learning_rate.copy_(learning_rate_at(start, config.learning_rate, config.anneal_lr, self.total_steps))

    @torch.no_grad()
    def shuffle(self) -> Tensor:
        """Return all rows of the rollout, (T * N,) int64, in a new order."""
        u = self.shuffle_rng.uniform(self.num_shuffles, 1)[:, 0]
        self.num_shuffles += 1
        return (u * 2**24).int().argsort(stable=True)  # of whole numbers: ten times as fast on a CPU

    def update_minibatch(self, rows: Tensor) -> dict[str, Tensor]:
        """Go one step down the loss of these rows (B,) of the rollout."""
        loss, stats = self.loss(self.rollout.batch(rows))
        return stats | {"losses/grad_norm": self.optimizer.step(loss, self.learning_rate)}

    def loss(self, batch: Batch) -> Loss:
        """Return (the loss, what to log)."""
        raise NotImplementedError

    def pretrain(self, obs: Tensor, action_mask: Tensor, advice: Tensor) -> None:
        logits, value = self.network(obs, self.guidance.inputs(advice))
        cross_entropy = -(advice * masked_log_softmax(logits, action_mask)).sum(1).mean()
        self.optimizer.step(cross_entropy + 0.0 * value.sum(), self.config.learning_rate)  # the value learns later

    def state_dict(self) -> dict[str, object]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "num_shuffles": self.num_shuffles,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps.copy_(state["steps"])
        self.num_shuffles.copy_(state["num_shuffles"])
        self.rollout.pos.zero_()
