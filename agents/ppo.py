"""PPO (Schulman et al. 2017, arXiv:1707.06347): a policy that takes several careful steps on each rollout.

Deliberate deviations from the paper, with its value in brackets:
1. Illegal actions have probability 0, in acting and in the loss (all actions are legal in Atari games).
2. Policy and value share nothing in dense networks, all but their heads in convolutional ones (the same).
3. A truncated episode keeps its future: V of its last state (time-outs are not mentioned).
4. Advantages are normalised over the whole rollout, with a floor under their standard deviation (not mentioned;
   CleanRL does it in each minibatch and without a floor).
5. The value's error is not clipped: Andrychowicz et al. 2020, arXiv:2006.05990, section 3.3, found no gain in it.
6. With `target_kl`, steps of the rollout after the limit move nothing, as the learning rate is 0 then (CleanRL
   leaves the loop, for which the device would have to be asked).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from agents.distributed import all_reduce_mean
from agents.guidance.base import NO_GUIDANCE, Guidance
from agents.networks import ActorCritic
from agents.on_policy import Loss, OnPolicy, OnPolicyConfig, actor_critic_loss
from agents.rollout_buffer import Batch
from envs.base import Env


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    """Hyper-parameters, by CleanRL's names."""

    # parts of a rollout, one learned from after the other
    num_minibatches: Annotated[int, Interval(ge=1, le=10**6)] = 4
    update_epochs: Annotated[int, Interval(ge=1, le=10**4)] = 4  # passes over a rollout
    # how far the policy's ratio may go from 1 and still count
    clip_coef: Annotated[float, Interval(gt=0, le=1e6)] = 0.2
    # stop learning from a rollout when the policy is 1.5 times as far away; nats
    target_kl: Annotated[float, Interval(gt=0, le=1e6)] | None = None

    def check(self, num_envs: int) -> None:
        super().check(num_envs)
        if self.update_epochs < 1:
            raise ValueError(f"update_epochs is {self.update_epochs}; it must be at least 1")


def ppo_loss(network: ActorCritic, batch: Batch, config: PPOConfig, guidance: Guidance = NO_GUIDANCE) -> Loss:
    """Return (the loss, what to log).

    L = -mean(min(r A, clip(r, 1 - c, 1 + c) A)) + vf_coef * mean((V - R)^2) / 2 - ent_coef * mean(entropy).
    Source: arXiv:1707.06347, eq. 7 and 9. The KL's estimate is mean(r - 1 - log r): Schulman, "Approximating KL
    Divergence", 2020.
    """

    def clipped_surrogate(log_prob: Tensor) -> Loss:
        log_ratio = log_prob - batch.log_prob
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
        surrogate = torch.minimum(ratio * batch.advantage, clipped * batch.advantage)
        return -surrogate.mean(), {
            "losses/approx_kl": (ratio - 1 - log_ratio).detach().mean(),
            "losses/clipfrac": ((ratio - 1).abs() > config.clip_coef).float().mean(),
        }

    return actor_critic_loss(network, batch, config, guidance, clipped_surrogate)


class PPO(OnPolicy):
    """A student whose policy moves a little way in each of several passes over a rollout."""

    def __init__(
        self, config: PPOConfig, env: Env, total_steps: int, seed: int, guidance: Guidance | None = None
    ) -> None:
        super().__init__(config, env, total_steps, seed, guidance)
        self.epochs = config.update_epochs

    def update_minibatch(self, rows: Tensor) -> dict[str, Tensor]:
        stats = super().update_minibatch(rows)
        if self.config.target_kl is not None:
            is_near = all_reduce_mean(stats["losses/approx_kl"].clone()) <= 1.5 * self.config.target_kl
            self.learning_rate.mul_(is_near)
        return stats

    def loss(self, batch: Batch) -> Loss:
        return ppo_loss(self.network, batch, self.config, self.guidance)
