"""A2C, the synchronous form of A3C (Mnih et al. 2016, arXiv:1602.01783): one step on each short rollout.

Deliberate deviations from the paper, with its value in brackets:
1. All games step together and learn together (threads that do not wait for each other).
2. Adam (RMSProp with shared statistics).
3. Illegal actions have probability 0, in acting and in the loss (all actions are legal in Atari games).
4. Generalised advantages; `gae_lambda` 1 gives the paper's sums of `num_steps` rewards (those sums).
5. Policy and value share nothing in dense networks, all but their heads in convolutional ones (the same).
6. A game cut short by its clock keeps its future: V of its last position (time-outs are not mentioned).
"""

from dataclasses import dataclass

from torch import Tensor

from agents.base import UNGUIDED, Guidance
from agents.networks import ActorCritic
from agents.on_policy import Batch, OnPolicy, OnPolicyConfig
from agents.policy import entropy, gather_action, masked_log_softmax


@dataclass(frozen=True)
class A2CConfig(OnPolicyConfig):
    """Hyper-parameters, in CleanRL's words."""

    num_steps: int = 8
    gae_lambda: float = 1.0
    norm_adv: bool = False


def a2c_loss(
    network: ActorCritic, batch: Batch, config: A2CConfig, guidance: Guidance = UNGUIDED
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (the loss, what to log).

    L = -mean(log pi(a) A) + vf_coef * mean((V - R)^2) / 2 - ent_coef * mean(entropy). Source: arXiv:1602.01783,
    section 4.
    """
    logits, value = network(batch.obs, guidance.see(batch.extras))
    own = masked_log_softmax(logits, batch.action_mask)
    log_probs = guidance.bend(own, batch.action_mask, batch.extras)
    log_prob = gather_action(log_probs, batch.action)
    assert log_prob.shape == value.shape == batch.advantage.shape == batch.returns.shape, "one of each a row"
    policy_loss = -(log_prob * batch.advantage).mean()
    value_loss = 0.5 * (value - batch.returns).square().mean()
    spread = entropy(log_probs).mean()
    loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * spread
    loss = loss + guidance.loss(own, batch.action_mask, batch.extras)
    return loss, {
        "losses/policy_loss": policy_loss.detach(),
        "losses/value_loss": value_loss.detach(),
        "losses/entropy": spread.detach(),
    }


class A2C(OnPolicy):
    """A student whose policy takes one step on each rollout."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return a2c_loss(self.network, batch, self.config, self.guidance)
