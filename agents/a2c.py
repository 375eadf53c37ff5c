"""A2C, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783): one step on each short rollout.

Deliberate deviations from the paper, with its value in brackets:
1. All env copies step together and learn together (threads that do not wait for each other).
2. Adam (RMSProp with shared statistics).
3. Illegal actions have probability 0, in acting and in the loss (all actions are legal in Atari games).
4. Generalised advantages; `gae_lambda` 1 gives the paper's sums of `num_steps` rewards (those sums).
5. Policy and value share nothing in dense networks, all but their heads in convolutional ones (the same).
6. A truncated episode keeps its future: V of its last state (time-outs are not mentioned).
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from agents.guidance.base import NO_GUIDANCE, Guidance
from agents.networks import ActorCritic
from agents.on_policy import Loss, OnPolicy, OnPolicyConfig, actor_critic_loss
from agents.rollout_buffer import Batch


@dataclass(frozen=True)
class A2CConfig(OnPolicyConfig):
    """Hyper-parameters, by CleanRL's names."""

    num_steps: Annotated[int, Interval(ge=1, le=10**6)] = 8
    gae_lambda: Annotated[float, Interval(ge=0, le=1)] = 1.0
    norm_adv: bool = False


def a2c_loss(network: ActorCritic, batch: Batch, config: A2CConfig, guidance: Guidance = NO_GUIDANCE) -> Loss:
    """Return (the loss, what to log).

    L = -mean(log pi(a) A) + vf_coef * mean((V - R)^2) / 2 - ent_coef * mean(entropy). Source: arXiv:1602.01783,
    section 4.
    """

    def policy_gradient(log_prob: Tensor) -> Loss:
        return -(log_prob * batch.advantage).mean(), {}

    return actor_critic_loss(network, batch, config, guidance, policy_gradient)


class A2C(OnPolicy):
    """A student whose policy takes one step on each rollout."""

    def loss(self, batch: Batch) -> Loss:
        return a2c_loss(self.network, batch, self.config, self.guidance)
