"""What PPO and A2C share, against records that the tests keep, and in games whose solutions are known.

Returns are worked out by walking forward from each time step; guided losses row by row in Python floats. The probe
games are those of tests/helpers/probes.py: solved, and kept solved ten times as long.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.a2c import A2C, A2CConfig, a2c_loss
from agents.adam import learning_rate_at
from agents.base import frozen_copy
from agents.guidance import GuidanceConfig
from agents.on_policy import OnPolicy, OnPolicyConfig
from agents.policy import masked_argmax
from agents.ppo import PPO, PPOConfig, ppo_loss
from agents.rollout_buffer import Batch
from envs.base import Env, Game, Step, VecEnv
from tests.helpers.policy_losses import FixedNetwork, entropy_by_definition, log_probs_by_definition, mean, random_batch
from tests.helpers.probes import Clock, Counter, Credit, Echo, Walk
from tests.helpers.students import all_equal, rollout, save_and_load, train, uniforms, weights_of

SMALL = {"hidden": (32,), "learning_rate": 3e-3, "num_steps": 8}
PPO_CONFIG = PPOConfig(**SMALL)
A2C_CONFIG = A2CConfig(**SMALL)
BOTH = pytest.mark.parametrize(("kind", "config"), [(PPO, PPO_CONFIG), (A2C, A2C_CONFIG)], ids=["ppo", "a2c"])
LOSSES = pytest.mark.parametrize(
    ("loss", "config"), [(ppo_loss, PPO_CONFIG), (a2c_loss, A2C_CONFIG)], ids=["ppo", "a2c"]
)


def make(
    kind: type[OnPolicy], config: Any, game: Game, num_envs: int = 16, total_steps: int = 10**6, seed: int = 0
) -> tuple[Any, Env]:
    env = VecEnv(game, num_envs, seed)
    return kind(config, env, total_steps, seed), env


@LOSSES
def test_actor_critic_loss_with_other_illegal_logits_is_the_same_and_has_no_gradient_there(
    loss: Callable, config: OnPolicyConfig
) -> None:
    network, batch = random_batch()
    other = FixedNetwork(torch.where(batch.action_mask, network.logits, 50.0).detach(), network.value.detach())
    ours, theirs = loss(network, batch, config)[0], loss(other, batch, config)[0]
    assert theirs.item() == ours.item()
    ours.backward()
    assert (network.logits.grad[~batch.action_mask] == 0).all()
    free = batch.action_mask & (batch.action_mask.sum(1) > 1)[:, None]
    assert (network.logits.grad[free] != 0).float().mean() > 0.5
    assert network.logits.grad.isfinite().all()


@pytest.mark.parametrize("guidance", ["none", "blend", "mask", "kl"])
@LOSSES
def test_actor_critic_loss_gradient_is_its_slope(loss: Callable, config: OnPolicyConfig, guidance: str) -> None:
    network, batch = random_batch(rows=6)
    network, batch = network.double(), Batch(*(one.double() if one.is_floating_point() else one for one in batch))
    method = GuidanceConfig(guidance).make("ppo", True, "cpu", 1, 0.9)
    method.strength = torch.tensor(0.7).double()
    config = replace(config, ent_coef=0.3)
    if guidance == "mask":  # an action that the mask excludes has no finite log-probability
        batch = batch._replace(followed=torch.zeros_like(batch.followed))
    grads = torch.autograd.grad(loss(network, batch, config, method)[0], list(network.parameters()))
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        slopes = torch.zeros_like(parameter)
        with torch.no_grad():
            for at in range(parameter.numel()):
                results = []
                for move in (1e-6, -1e-6):
                    parameter.view(-1)[at] += move
                    results.append(loss(network, batch, config, method)[0].item())
                    parameter.view(-1)[at] -= move
                slopes.view(-1)[at] = (results[0] - results[1]) / 2e-6
        torch.testing.assert_close(grad, slopes, rtol=1e-4, atol=1e-7)


@LOSSES
def test_actor_critic_loss_with_blend_learns_the_mixture(loss: Callable, config: OnPolicyConfig) -> None:
    """The log-probability and the entropy of w p_tutor + (1 - w) p_student, and of the student where no advice is."""
    network, batch = random_batch()
    config = replace(config, ent_coef=0.03, vf_coef=0.7)
    method = GuidanceConfig("blend").make("ppo", True, "cpu", 1, 0.9)
    method.strength.fill_(0.6)
    own = log_probs_by_definition(network.logits.tolist(), batch.action_mask.tolist())
    policies = []
    for row, log_probs in enumerate(own):
        advice, policy = batch.advice[row].tolist(), [math.exp(one) for one in log_probs]
        if sum(advice) > 0:
            legal = max(int(batch.action_mask[row].sum()), 2)
            undecided = -sum(p * math.log(p) for p in advice if p > 0) / math.log(legal)
            weight = 0.6 * (1 - undecided)
            policy = [weight * p + (1 - weight) * q for p, q in zip(advice, policy, strict=True)]
        policies.append([math.log(one) if one > 0 else -math.inf for one in policy])
    found, stats = loss(network, batch, config, method)
    mean_entropy = mean([entropy_by_definition(policy) for policy in policies])
    assert stats["losses/entropy"].item() == pytest.approx(mean_entropy, rel=1e-4)
    chosen = [policy[action] for policy, action in zip(policies, batch.action.tolist(), strict=True)]
    if loss is ppo_loss:
        ratios = [math.exp(one - old) for one, old in zip(chosen, batch.log_prob.tolist(), strict=True)]
        coef = config.clip_coef
        terms = [
            min(ratio * gain, min(max(ratio, 1 - coef), 1 + coef) * gain)
            for ratio, gain in zip(ratios, batch.advantage.tolist(), strict=True)
        ]
    else:
        terms = [one * gain for one, gain in zip(chosen, batch.advantage.tolist(), strict=True)]
    errors = [(one - two) ** 2 / 2 for one, two in zip(network.value.tolist(), batch.returns.tolist(), strict=True)]
    assert found.item() == pytest.approx(-mean(terms) + 0.7 * mean(errors) - 0.03 * mean_entropy, rel=1e-4)


@LOSSES
def test_actor_critic_loss_with_distill_adds_the_guidance_s_loss(loss: Callable, config: OnPolicyConfig) -> None:
    network, batch = random_batch()
    method = GuidanceConfig("distill").make("ppo", True, "cpu", 1, 0.9)
    method.strength.fill_(0.6)
    own = log_probs_by_definition(network.logits.tolist(), batch.action_mask.tolist())
    terms = [
        -sum(p * q for p, q in zip(advice, log_probs, strict=True) if p > 0)
        for advice, log_probs in zip(batch.advice.tolist(), own, strict=True)
    ]
    plain, guided = (loss(network, batch, config, *rest)[0].item() for rest in ((), (method,)))
    assert guided - plain == pytest.approx(0.6 * mean(terms), rel=1e-3)


@LOSSES
def test_actor_critic_loss_gives_advice_to_the_network_only_where_it_is_an_input(
    loss: Callable, config: OnPolicyConfig
) -> None:
    network, batch = random_batch()
    loss(network, batch, config, GuidanceConfig("distill").make("ppo", True, "cpu", 1, 0.9))
    assert network.extra_inputs is None
    loss(network, batch, config, GuidanceConfig("hint").make("ppo", True, "cpu", 1, 0.9))
    assert network.extra_inputs is not None
    assert network.extra_inputs[:, :-1].equal(batch.advice)


@BOTH
def test_on_policy_seed_decides_actions_and_shuffles(kind: type, config: Any) -> None:
    step = VecEnv(Echo(8), 200).reset()
    first, again, other = (make(kind, config, Echo(8), 200, seed=seed)[0] for seed in (0, 0, 1))
    for agent in (again, other):
        agent.network.load_state_dict(first.network.state_dict())
    actions = [agent.act(step.obs, step.action_mask).action for agent in (first, again, other)]
    assert actions[0].equal(actions[1])
    assert not actions[0].equal(actions[2])
    streams = [rng.uniform(0, 8)[:200] for rng in (first.rng, first.shuffle_rng, VecEnv(Echo(8), 200, seed=0).rng)]
    assert all(not one.equal(two) for one, two in itertools.combinations(streams, 2))


@BOTH
def test_on_policy_shard_acts_as_those_env_copies_do_in_the_whole(kind: type, config: Any) -> None:
    whole, env = make(kind, config, Echo(8), 16)
    shard = VecEnv(Echo(8), 6, 0, first_env_id=10)
    part, ours, theirs = kind(config, shard, 10**6, 0), shard.reset(), env.reset()
    for _ in range(3):
        action = whole.act(theirs.obs, theirs.action_mask).action
        assert part.act(ours.obs, ours.action_mask).action.equal(action[10:])
        theirs, ours = env.step(action), shard.step(action[10:])
    assert not set(part.shuffle_rng.base.tolist()) & set(whole.shuffle_rng.base[: 10 * 8].tolist())


@BOTH
def test_act_samples_the_policy_with_new_noise_at_every_call(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Echo(8, walls=True), 4000)
    with torch.no_grad():
        agent.network.policy.head.bias.copy_(torch.linspace(-1, 1, 8))
    step = env.reset()
    first, second = (agent.act(step.obs, step.action_mask) for _ in range(2))
    assert first.scores.equal(second.scores)
    assert not first.action.equal(second.action)
    expected = log_probs_by_definition(agent.network(step.obs)[0].tolist(), step.action_mask.tolist())
    expected = torch.tensor(expected).exp()
    torch.testing.assert_close(first.scores.exp(), expected)
    assert step.action_mask.gather(1, first.action[:, None]).all()
    assert first.greedy.equal(masked_argmax(first.scores, step.action_mask))
    assert first.greedy.equal(agent.greedy(step.obs, step.action_mask))
    assert first.value.equal(agent.network.get_value(step.obs))
    bound = math.sqrt(math.log(2 / 1e-9) / (2 * 4000))
    for action in range(8):
        assert abs((first.action == action).float().mean() - expected[:, action].mean()) < bound
    assert not any(tensor.requires_grad for tensor in first)


def test_learning_rate_falls_to_0_over_the_run_or_stays() -> None:
    def at(step: int, anneal: bool) -> float:
        return learning_rate_at(torch.tensor(step), 0.25, anneal, 1000).item()

    steps = (0, 500, 750, 1000, 1200)
    assert [at(step, True) for step in steps] == [0.25, 0.125, 0.0625, 0.0, 0.0]
    assert [at(step, False) for step in steps] == [0.25] * 5


@BOTH
def test_update_uses_the_learning_rate_of_the_step_at_which_its_rollout_started(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Echo(4), total_steps=16 * 8 * 4)
    step, rates = env.reset(), []
    for _ in range(4):
        step = rollout(agent, env, step, agent.steps_per_update)
        before = weights_of(agent)
        rates.append(agent.update(step)["charts/learning_rate"].item())
        assert not all_equal(weights_of(agent), before)
    assert rates == pytest.approx([3e-3 * left for left in (1.0, 0.75, 0.5, 0.25)])


@BOTH
def test_observe_stores_the_executed_action_with_its_log_prob_and_the_shaped_reward(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Echo(8, walls=True))
    step, overridden = train(agent, env, 2), 0
    for at in range(agent.steps_per_update):
        decision = agent.act(step.obs, step.action_mask)
        worst = decision.scores.masked_fill(~step.action_mask, math.inf).argmin(1)
        action = torch.where(torch.arange(16) % 2 == 0, worst, decision.action)  # as of a tutor in every other env copy
        overridden += (action != decision.action).sum().item()
        next_step = env.step(action)
        reward = next_step.reward + torch.linspace(0, 1, 16)
        agent.observe(step, decision, action, next_step, reward)

        logits, value = agent.network(step.obs)
        policy = log_probs_by_definition(logits.tolist(), step.action_mask.tolist())
        expected = [row[one] for row, one in zip(policy, action.tolist(), strict=True)]
        stored = agent.rollout
        torch.testing.assert_close(stored.log_prob[at], torch.tensor(expected))
        torch.testing.assert_close(stored.value[at], value.detach())
        assert stored.obs[at].equal(step.obs)
        assert stored.action_mask[at].equal(step.action_mask)
        assert stored.action[at].equal(action)
        assert stored.reward[at].equal(reward)
        assert stored.terminated[at].equal(next_step.terminated)
        assert stored.truncated[at].equal(next_step.truncated)
        assert not stored.advice.numel(), "no guidance that stores advice"
        step = next_step.as_initial()
    assert overridden > 16


@BOTH
def test_observe_with_a_guidance_stores_its_three_columns_and_the_log_prob_of_its_policy(
    kind: type, config: Any
) -> None:
    env = VecEnv(Echo(8, walls=True), 16, 0)
    method = GuidanceConfig("blend").make("ppo", True, "cpu", 16, 0.9)
    method.strength.fill_(0.5)
    agent = kind(config, env, 10**6, 0, method)
    step = env.reset()
    for at in range(3):
        decision = agent.act(step.obs, step.action_mask)
        advice = step.action_mask * uniforms(at, 16, 8)
        advice = advice / advice.sum(1, keepdim=True) * (torch.arange(16) % 3 > 0)[:, None]
        action, followed = method.act(decision, advice, step.action_mask, uniforms(50 + at, 16, 9))
        next_step, bonus = env.step(action), uniforms(90 + at, 16)
        agent.observe(step, decision, action, next_step, next_step.reward, advice, followed, bonus)
        acting = method.policy(decision.scores, step.action_mask, advice, followed)
        assert agent.rollout.log_prob[at].equal(acting.gather(1, action[:, None])[:, 0])
        assert not acting.allclose(decision.scores)
        for name, value in (("advice", advice), ("followed", followed), ("bonus", bonus)):
            assert getattr(agent.rollout, name)[at].equal(value), name
        step = next_step.as_initial()
    assert agent.rollout.followed[:3].any()
    assert not agent.rollout.followed[:3].all()


def test_compute_advantages_with_a_bonus_learns_from_what_it_is_worth_now() -> None:
    env = VecEnv(Walk(), 16, 0)
    method = GuidanceConfig("modulate-r").make("ppo", True, "cpu", 16, 0.9)
    agent = PPO(replace(PPO_CONFIG, norm_adv=False), env, 10**6, 0, method)
    step = rollout_with_bonus(agent, env)
    plain, bonus = agent.rollout.reward.clone(), agent.rollout.bonus.clone()
    assert bonus.any()
    found = []
    for strength in (0.0, 0.5):
        method.strength.fill_(strength)
        agent.rollout.reward.copy_(plain)
        agent.compute_advantages(step)
        found.append(agent.rollout.returns.clone())
    method.strength.zero_()
    agent.rollout.reward.copy_(plain + 0.5 * 0.2 * bonus)
    agent.compute_advantages(step)
    torch.testing.assert_close(found[1], agent.rollout.returns)
    assert not found[0].allclose(found[1])


def rollout_with_bonus(agent: Any, env: Env) -> Step:
    """Fill a rollout with bonuses, and return the step that follows."""
    step = env.reset()
    for at in range(agent.steps_per_update):
        decision = agent.act(step.obs, step.action_mask)
        next_step = env.step(decision.action)
        stored = (torch.zeros(16, 2), torch.zeros(16, dtype=torch.bool), uniforms(at, 16) - 0.5)
        agent.observe(step, decision, decision.action, next_step, next_step.reward / 100, *stored)
        step = next_step.as_initial()
    return step


def returns_by_walking(
    agent: Any, transitions: list[tuple[Step, Step]], gamma: float, gae_lambda: float
) -> list[list[float]]:
    """Return returns found by walking forward from each time step, with V of where each action led."""
    table = []
    for at in range(len(transitions)):
        row = []
        for env_id in range(len(transitions[0][0].obs)):
            value = agent.network.get_value(transitions[at][0].obs)[env_id].item()
            total, factor = value, 1.0
            for step, next_step in transitions[at:]:
                future = agent.network.get_value(next_step.final_obs)[env_id].item()
                if next_step.terminated[env_id]:
                    future = 0.0
                value = agent.network.get_value(step.obs)[env_id].item()
                total += factor * (next_step.reward[env_id].item() + gamma * future - value)
                factor *= gamma * gae_lambda
                if next_step.terminated[env_id] or next_step.truncated[env_id]:
                    break
            row.append(total)
        table.append(row)
    return table


class Mixed(Walk):
    """Walk, but a walker who has taken two long steps in a row is done; so episodes end in both ways."""

    def step(self, state: dict[str, Tensor], action: Tensor, u: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        now, reward, _ = super().step(state, action, u)
        return now, reward / 100, (now["at"] - now["clock"]) % 10 == 2


@pytest.mark.parametrize("game", [Mixed(), Walk(), Credit(), Echo(4)], ids=["mixed", "walk", "credit", "echo"])
@BOTH
def test_returns_bootstrap_where_an_episode_was_truncated_and_not_where_it_terminated(
    game: Game, kind: type, config: Any
) -> None:
    """Credit and Echo have no time limit: there the next time step's value stands in, and must be the same."""
    agent, env = make(kind, replace(config, norm_adv=False, gae_lambda=0.9, gamma=0.8), game, num_envs=5)
    with torch.no_grad():
        for parameter in agent.network.value.parameters():
            parameter += 0.05  # so that a value is never 0
    step, transitions = env.reset(), []
    for _ in range(agent.steps_per_update):
        decision = agent.act(step.obs, step.action_mask)
        next_step = env.step(decision.action)
        agent.observe(step, decision, decision.action, next_step, next_step.reward)
        transitions.append((step, next_step))
        step = next_step.as_initial()
    truncated = torch.stack([next_step.truncated for _, next_step in transitions])
    terminated = torch.stack([next_step.terminated for _, next_step in transitions])
    assert truncated.any() == (game.spec.time_limit is not None)
    assert terminated.any() == (type(game) is not Walk)
    with torch.no_grad():
        expected = torch.tensor(returns_by_walking(agent, transitions, 0.8, 0.9))
    values = agent.rollout.value.clone()
    agent.compute_advantages(step)
    torch.testing.assert_close(agent.rollout.returns, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(agent.rollout.advantage, expected - values, rtol=1e-4, atol=1e-4)


@BOTH
def test_final_value_is_computed_only_where_an_episode_was_truncated(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Walk(), num_envs=3)
    step = env.reset()
    decision = agent.act(step.obs, step.action_mask)
    goes_on = env.step(decision.action)
    assert not goes_on.truncated.any()
    assert agent.final_value(decision, goes_on) is decision.value
    ends = goes_on._replace(truncated=torch.tensor([False, True, False]))
    assert agent.final_value(decision, ends).equal(agent.network.get_value(ends.final_obs))


@BOTH
def test_advantages_are_normalized_over_the_whole_rollout_only_with_norm_adv(kind: type, config: Any) -> None:
    found = {}
    for norm_adv in (False, True):
        agent, env = make(kind, replace(config, norm_adv=norm_adv, adv_floor=1e-8), Credit())
        agent.compute_advantages(rollout(agent, env, env.reset(), agent.steps_per_update))
        found[norm_adv] = agent.rollout.advantage, agent.rollout.returns
    plain = found[False][0]
    expected = (plain - plain.mean()) / plain.std(correction=0)
    torch.testing.assert_close(found[True][0], expected, rtol=1e-3, atol=1e-3)
    assert found[True][1].equal(found[False][1]), "the value's targets stay as they are"
    floored, env = make(kind, replace(config, norm_adv=True, adv_floor=50.0), Credit())
    floored.compute_advantages(rollout(floored, env, env.reset(), floored.steps_per_update))
    torch.testing.assert_close(floored.rollout.advantage, (plain - plain.mean()) / 50, rtol=1e-3, atol=1e-5)


@BOTH
def test_shuffle_returns_a_new_permutation_at_every_call(kind: type, config: Any) -> None:
    agent, _ = make(kind, config, Echo(4))
    orders = [agent.shuffle().tolist() for _ in range(5)]
    assert all(sorted(order) == list(range(16 * 8)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(16 * 8)]}) == 6
    other, _ = make(kind, config, Echo(4), seed=1)
    assert other.shuffle().tolist() != orders[0]


@BOTH
def test_on_policy_runs_of_one_seed_are_equal_to_the_bit_and_of_another_are_not(kind: type, config: Any) -> None:
    runs = []
    for seed in (0, 0, 1):
        agent, _ = make(kind, config, Walk(), seed=seed)
        train(agent, VecEnv(Walk(), 16, seed=0), 4)
        runs.append(weights_of(agent))
    assert all_equal(runs[0], runs[1])
    assert not any(one.equal(other) for one, other in zip(runs[0], runs[2], strict=True))


@BOTH
def test_on_policy_neither_uses_nor_changes_the_global_generator(kind: type, config: Any) -> None:
    runs = []
    for global_seed in (5, 6):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        agent, env = make(kind, config, Echo(4))
        train(agent, env, 3)
        assert torch.random.get_rng_state().equal(before)
        runs.append(weights_of(agent))
    assert all_equal(*runs)


@pytest.mark.parametrize("game", [Echo(4, walls=True), Credit(), Walk()], ids=["echo", "credit", "walk"])
@BOTH
def test_on_policy_resumed_from_a_checkpoint_is_the_unbroken_run(game: Game, kind: type, config: Any) -> None:
    whole, env = make(kind, config, game, total_steps=16 * 8 * 12)
    train(whole, env, 8)
    first, env = make(kind, config, game, total_steps=16 * 8 * 12)
    step = train(first, env, 4)
    saved = save_and_load(first.state_dict())
    train(first, VecEnv(game, 16, seed=3), 2)  # what happens after saving is not in the file

    other, elsewhere = make(kind, config, game, total_steps=16 * 8 * 12, seed=1)
    rollout(other, elsewhere, train(other, elsewhere, 1), 3)
    other.rng, other.shuffle_rng = first.rng, first.shuffle_rng  # functions of the run's seed, not state
    other.load_state_dict(saved)
    train(other, env, 4, step)
    assert all_equal(weights_of(other), weights_of(whole))
    ours, theirs = other.state_dict(), whole.state_dict()
    assert all_equal(ours["optimizer"], theirs["optimizer"])
    assert ours["steps"].equal(theirs["steps"])
    assert ours["num_shuffles"].equal(theirs["num_shuffles"])


@BOTH
def test_frozen_copy_does_not_learn(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Echo(8))
    obs, action_mask = torch.eye(8), torch.ones(8, 8, dtype=torch.bool)
    copy, before = frozen_copy(agent), agent.greedy(obs, action_mask)
    assert copy.greedy(obs, action_mask).equal(before)
    train(agent, env, 40)
    assert not agent.greedy(obs, action_mask).equal(before)
    assert copy.greedy(obs, action_mask).equal(before)
    assert not any(weight.requires_grad for weight in copy.network.parameters())


@BOTH
def test_update_returns_finite_0d_tensors_without_gradients(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Echo(4))
    stats = agent.update(rollout(agent, env, env.reset(), agent.steps_per_update))
    assert {"losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm"} < set(stats)
    assert all(stat.ndim == 0 and not stat.requires_grad and stat.isfinite() for stat in stats.values())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PPOConfig(num_steps=0), "num_steps is 0; it must be at least 1"),
        (PPOConfig(num_minibatches=0), "num_minibatches is 0; it must be at least 1"),
        (PPOConfig(update_epochs=0), "update_epochs is 0; it must be at least 1"),
        (
            PPOConfig(num_steps=5, num_minibatches=4),
            "5 time steps of 3 env copies cannot be split into 4 minibatches",
        ),
        (
            PPOConfig(num_steps=1, num_minibatches=4),
            "1 time steps of 3 env copies cannot be split into 4 minibatches",
        ),
        (A2CConfig(num_steps=0), "num_steps is 0; it must be at least 1"),
        (A2CConfig(num_steps=-2), "num_steps is -2; it must be at least 1"),
    ],
)
def test_config_check_with_impossible_sizes_raises(config: OnPolicyConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check(3)


@pytest.mark.parametrize(
    "config", [PPOConfig(), PPOConfig(num_steps=4, num_minibatches=12), A2CConfig(), A2CConfig(num_steps=1)]
)
def test_config_check_with_possible_sizes_passes(config: OnPolicyConfig) -> None:
    config.check(3)
    assert config.num_steps * 3 % config.num_minibatches == 0


PROBES = {  # the game, states of it, the best action in each, and what each is worth at gamma 0.9
    "echo": (Echo(8), {"hidden": list(range(8))}, list(range(8)), [1.0] * 8),
    "walled echo": (Echo(8, walls=True), {"hidden": list(range(8))}, list(range(8)), [1.0] * 8),
    "credit": (Credit(), {"cue": [0, 1], "first": [-1, -1]}, [0, 1], [0.9, 0.9]),
    "counter": (Counter(), {"count": [0, 1, 2, 3]}, [1, 1, 1, 1], [0.729, 0.81, 0.9, 1.0]),
    "clock": (Clock(), {"passed": [0]}, [1], [1 / (1 - 0.9)]),
}
LEARN = {"hidden": (32,), "anneal_lr": False, "gamma": 0.9, "gae_lambda": 0.9, "num_steps": 8}
LEARNERS = {  # with updates that suffice in the echoes and elsewhere: of six seeds the slowest needs two thirds of them
    "ppo": (PPO, PPOConfig(learning_rate=3e-3, **LEARN), 15, 5),
    "a2c": (A2C, A2CConfig(learning_rate=1e-2, **LEARN), 40, 15),
}


@pytest.mark.train
@pytest.mark.parametrize("probe", list(PROBES))
@pytest.mark.parametrize("learner", list(LEARNERS))
def test_on_policy_solves_a_probe_game_and_keeps_it_solved_ten_times_as_long(learner: str, probe: str) -> None:
    kind, config, *enough = LEARNERS[learner]
    updates = enough[0] if "echo" in probe else enough[1]
    game, states, best, worth = PROBES[probe]
    agent, env = make(kind, config, game)
    obs, action_mask = game.observe({name: torch.tensor(numbers) for name, numbers in states.items()})
    step = train(agent, env, updates)
    assert agent.greedy(obs, action_mask).tolist() == best
    for _ in range(9 * updates):
        step = train(agent, env, 1, step)
        assert agent.greedy(obs, action_mask).tolist() == best
    torch.testing.assert_close(agent.network.get_value(obs), torch.tensor(worth), rtol=0.1, atol=0)
