"""A2C's loss worked out row by row in Python floats; PPO in its plainest form must be A2C."""

from dataclasses import replace

import pytest
import torch

from agents.a2c import A2C, A2CConfig, a2c_loss
from agents.ppo import PPO, PPOConfig
from envs.base import Game, VecEnv
from tests.helpers.policy_losses import mean, random_batch, terms_by_definition
from tests.helpers.probes import Clock, Credit, Echo, Walk
from tests.helpers.students import rollout, train, weights_of

SMALL = {"hidden": (32,), "learning_rate": 3e-3, "num_steps": 8}
CONFIG = A2CConfig(**SMALL)


def test_a2c_loss_equals_its_definition_row_by_row() -> None:
    network, batch = random_batch()
    rows = terms_by_definition(network, batch)
    policy_loss = -mean([log_prob * advantage for log_prob, _, advantage, _, _ in rows])
    value_loss, mean_entropy = mean([row[3] for row in rows]), mean([row[4] for row in rows])
    loss, stats = a2c_loss(network, batch, replace(CONFIG, ent_coef=0.03, vf_coef=0.7))
    assert loss.item() == pytest.approx(policy_loss + 0.7 * value_loss - 0.03 * mean_entropy, rel=1e-4)
    expected = {"losses/policy_loss": policy_loss, "losses/value_loss": value_loss, "losses/entropy": mean_entropy}
    assert {name: stat.item() for name, stat in stats.items()} == pytest.approx(expected, rel=1e-4)
    assert not any(stat.requires_grad for stat in stats.values())


def test_a2c_update_learns_from_all_rows_once_in_one_batch() -> None:
    env = VecEnv(Walk(), 16, 0)
    agent = A2C(CONFIG, env, 10**6, 0)
    step = rollout(agent, env, env.reset(), agent.steps_per_update)
    seen, update_minibatch = [], agent.update_minibatch
    agent.update_minibatch = lambda rows: seen.append(rows) or update_minibatch(rows)
    agent.update(step)
    assert [sorted(rows.tolist()) for rows in seen] == [list(range(16 * 8))]


@pytest.mark.parametrize("norm_adv", [False, True])
@pytest.mark.parametrize(
    "game", [Echo(4, walls=True), Credit(), Walk(), Clock()], ids=["echo", "credit", "walk", "clock"]
)
def test_ppo_of_one_step_without_a_clip_is_a2c(game: Game, norm_adv: bool) -> None:
    shared = SMALL | {"norm_adv": norm_adv, "gae_lambda": 0.9, "ent_coef": 0.02}
    one, other = VecEnv(game, 16, 0), VecEnv(game, 16, 0)
    ppo = PPO(PPOConfig(**shared, update_epochs=1, num_minibatches=1, clip_coef=1e9), one, 10**6, 0)
    a2c = A2C(A2CConfig(**shared), other, 10**6, 0)
    initial = weights_of(a2c)
    train(ppo, one, 5)
    train(a2c, other, 5)
    torch.testing.assert_close(weights_of(ppo), weights_of(a2c), rtol=1e-4, atol=1e-5)
    assert max((new - old).abs().max().item() for new, old in zip(weights_of(a2c), initial, strict=True)) > 1e-2
