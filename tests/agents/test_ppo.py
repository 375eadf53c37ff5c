"""PPO's loss worked out row by row in Python floats, and its passes over a rollout, minibatch by minibatch."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.ppo import PPO, PPOConfig, ppo_loss
from agents.rollout_buffer import Batch
from envs.base import Env, Game, VecEnv
from tests.helpers.policy_losses import FixedNetwork, mean, random_batch, terms_by_definition
from tests.helpers.probes import Credit, Echo, Walk
from tests.helpers.students import all_equal, rollout, train, weights_of

CONFIG = PPOConfig(hidden=(32,), learning_rate=3e-3, num_steps=8)


def make(config: PPOConfig, game: Game, seed: int = 0) -> tuple[Any, Env]:
    env = VecEnv(game, 16, seed)
    return PPO(config, env, 10**6, seed), env


@pytest.mark.parametrize("clip_coef", [0.1, 0.3])
def test_ppo_loss_equals_its_definition_row_by_row(clip_coef: float) -> None:
    network, batch = random_batch()
    config = replace(CONFIG, clip_coef=clip_coef, ent_coef=0.03, vf_coef=0.7)
    surrogates, cases = [], set()
    for _, ratio, advantage, _, _ in (rows := terms_by_definition(network, batch)):
        # eq. 7 by cases: moving further the way that the advantage points gains nothing beyond the clip
        too_far = ratio > 1 + clip_coef if advantage > 0 else ratio < 1 - clip_coef
        edge = 1 + clip_coef if advantage > 0 else 1 - clip_coef
        surrogates.append((edge if too_far else ratio) * advantage)
        cases.add((advantage > 0, too_far, abs(ratio - 1) > clip_coef))
    assert len(cases) == 6, "for both signs: inside the clip, beyond it the good way, beyond it the bad way"
    value_loss, mean_entropy = mean([row[3] for row in rows]), mean([row[4] for row in rows])

    loss, stats = ppo_loss(network, batch, config)
    assert loss.item() == pytest.approx(-mean(surrogates) + 0.7 * value_loss - 0.03 * mean_entropy, rel=1e-4)
    expected = {
        "losses/policy_loss": -mean(surrogates),
        "losses/value_loss": value_loss,
        "losses/entropy": mean_entropy,
        "losses/approx_kl": mean([ratio - 1 - math.log(ratio) for _, ratio, *_ in rows]),
        "losses/clipfrac": mean([float(abs(ratio - 1) > clip_coef) for _, ratio, *_ in rows]),
    }
    assert {name: stat.item() for name, stat in stats.items()} == pytest.approx(expected, rel=1e-4)
    assert not any(stat.requires_grad for stat in stats.values())


def test_ppo_loss_beyond_the_clip_has_no_gradient() -> None:
    logits = torch.tensor([[0.0, 0.0]] * 4)
    network = FixedNetwork(logits, torch.zeros(4))
    # the policy says 1/2; it was 1/4 (ratio 2) in the first two rows and 1 (ratio 1/2) in the others
    log_prob = torch.tensor([0.25, 0.25, 1.0, 1.0]).log()
    batch = Batch(
        obs=torch.zeros(4, 1),
        action_mask=torch.ones(4, 2, dtype=torch.bool),
        action=torch.zeros(4, dtype=torch.int64),
        log_prob=log_prob,
        advantage=torch.tensor([1.0, -1.0, 1.0, -1.0]),
        returns=torch.zeros(4),
    )
    ppo_loss(network, batch, replace(CONFIG, ent_coef=0.0))[0].backward()
    # d(-r A / 4)/dz = -r A (1 - 1/2) / 4 where the clip does not hold
    assert network.logits.grad[:, 0].tolist() == pytest.approx([0.0, 0.25, -0.0625, 0.0])


@pytest.mark.parametrize("game", [Echo(8, walls=True), Credit()], ids=["echo", "credit"])
def test_ppo_ratio_in_the_first_minibatch_is_1(game: Game) -> None:
    agent, env = make(replace(CONFIG, num_minibatches=4), game)
    step = rollout(agent, env, train(agent, env, 2), agent.steps_per_update)
    agent.compute_advantages(step)
    first, *others = (agent.update_minibatch(rows) for rows in agent.shuffle().chunk(4))
    assert first["losses/approx_kl"].abs() < 1e-6
    assert first["losses/clipfrac"] == 0
    assert all(stats["losses/approx_kl"] > 1e-6 for stats in others), "later ones meet a policy that has moved"


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (1, 4), (3, 4), (2, 128)])
def test_ppo_update_learns_from_each_row_once_an_epoch(epochs: int, minibatches: int) -> None:
    config = replace(CONFIG, update_epochs=epochs, num_minibatches=minibatches)
    agent, env = make(config, Walk())
    step = rollout(agent, env, env.reset(), agent.steps_per_update)
    stored = agent.rollout
    seen, update_minibatch, loss = [], agent.update_minibatch, agent.loss

    def watched(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rows = seen[-1]
        for name in ("obs", "action_mask", "action", "log_prob", "advantage", "returns"):
            column = getattr(stored, name)
            for at, row in enumerate(rows.tolist()):
                assert getattr(batch, name)[at].equal(column[row // 16, row % 16]), "one row of all columns"
        return loss(batch)

    agent.update_minibatch, agent.loss = lambda rows: seen.append(rows) or update_minibatch(rows), watched
    agent.update(step)
    assert len(seen) == epochs * minibatches
    for epoch in range(epochs):
        rows = torch.cat(seen[epoch * minibatches : (epoch + 1) * minibatches])
        assert sorted(rows.tolist()) == list(range(16 * 8))
    assert stored.pos == 0, "the next rollout starts at the first row"


def test_ppo_update_beyond_target_kl_moves_no_weight_until_the_next_rollout() -> None:
    config = replace(CONFIG, learning_rate=0.03, target_kl=1e-3, update_epochs=3, anneal_lr=False)
    agent, env = make(config, Echo(8))
    step = env.reset()
    for _ in range(2):
        step = rollout(agent, env, step, agent.steps_per_update)
        states, kls = [weights_of(agent)], []
        update_minibatch = PPO.update_minibatch.__get__(agent)

        def watched(
            rows: Tensor, update: Callable = update_minibatch, states: list = states, kls: list = kls
        ) -> dict[str, Tensor]:
            stats = update(rows)
            states.append(weights_of(agent))
            kls.append(stats["losses/approx_kl"].item())
            return stats

        agent.update_minibatch = watched
        agent.update(step)
        limit = next(at for at, kl in enumerate(kls) if kl > 1.5 * 1e-3)
        assert 0 < limit < 11, "the first minibatch is within it, and a later one is not"
        moved = [not all_equal(one, other) for one, other in itertools.pairwise(states)]
        assert moved == [True] * (limit + 1) + [False] * (11 - limit)


def test_ppo_update_within_target_kl_or_without_one_moves_the_weights_at_every_step() -> None:
    for config in (CONFIG, replace(CONFIG, target_kl=1e9)):
        agent, env = make(config, Echo(8))
        agent.compute_advantages(rollout(agent, env, env.reset(), agent.steps_per_update))
        for rows in agent.shuffle().chunk(4):
            before = weights_of(agent)
            agent.update_minibatch(rows)
            assert not all_equal(weights_of(agent), before)


@pytest.mark.train
@pytest.mark.parametrize("seed", range(8))
def test_ppo_with_the_default_adv_floor_keeps_a_solved_echo_for_300_updates(seed: int) -> None:
    """Echo is solved after 2 of the 300. With a floor of 1e-8 four of these eight seeds lost it on the way."""
    game = Echo(8)
    env = VecEnv(game, 16, seed)
    agent = PPO(PPOConfig(hidden=(64,), learning_rate=3e-3, anneal_lr=False, num_steps=16), env, 10**6, seed)
    obs, action_mask = game.observe({"hidden": torch.arange(8)})
    step = train(agent, env, 10)
    for _ in range(291):
        assert agent.greedy(obs, action_mask).tolist() == list(range(8))
        step = train(agent, env, 1, step)
