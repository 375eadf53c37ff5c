"""PPO and A2C against slow definitions, against each other, and in games whose solutions are known.

The losses are worked out once more row by row in Python floats; sampling is counted; a rollout is held against a
record that the test keeps while it plays. PPO in its plainest form must be A2C. The probe games are those of
tests/helpers/probes.py: solved, and kept solved ten times as long.
"""

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.a2c import A2C, A2CConfig, a2c_loss
from agents.adam import learning_rate_at
from agents.base import frozen_copy
from agents.on_policy import Batch, OnPolicy, OnPolicyConfig
from agents.policy import entropy, masked_argmax, masked_log_softmax, sample_action
from agents.ppo import PPO, PPOConfig, ppo_loss
from envs.base import Env, Game, Step, VecEnv
from tests.helpers.probes import Clock, Counter, Credit, Echo, Walk

SMALL = {"hidden": (32,), "learning_rate": 3e-3, "num_steps": 8}
PPO_CONFIG = PPOConfig(**SMALL)
A2C_CONFIG = A2CConfig(**SMALL)
BOTH = pytest.mark.parametrize(("kind", "config"), [(PPO, PPO_CONFIG), (A2C, A2C_CONFIG)], ids=["ppo", "a2c"])
LARGEST = 1 - 2.0**-24  # of all luck


def make(
    kind: type[OnPolicy], config: Any, game: Game, num_envs: int = 16, total_steps: int = 10**6, seed: int = 0
) -> tuple[Any, Env]:
    env = VecEnv(game, num_envs, seed)
    return kind(config, env, total_steps, seed), env


def play(agent: Any, env: Env, step: Step, moments: int) -> Step:
    """Play on without learning."""
    for _ in range(moments):
        proposal = agent.act(step)
        after = env.step(proposal.action)
        agent.observe(step, proposal, proposal.action, after)
        step = after.as_initial()
    return step


def train(agent: Any, env: Env, updates: int, step: Step | None = None) -> Step:
    step = env.reset() if step is None else step
    for _ in range(updates):
        step = play(agent, env, step, agent.horizon)
        agent.update(step)
    return step


def weights(agent: Any) -> list[Tensor]:
    return [tensor.clone() for tensor in agent.network.state_dict().values()]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(one.equal(other) for one, other in zip(ours, theirs, strict=True))


class Told(nn.Module):
    """A network whose answers are its parameters."""

    def __init__(self, logits: Tensor, value: Tensor) -> None:
        super().__init__()
        self.logits, self.told = nn.Parameter(logits), nn.Parameter(value)

    def forward(self, obs: Tensor, besides: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.logits, self.told


def random_batch(rows: int = 200, actions: int = 5, seed: int = 0) -> tuple[Told, Batch]:
    """Policies near and far from those that acted, about half of the actions illegal, advantages of both signs."""
    draw = partial(torch.rand, generator=torch.Generator().manual_seed(seed))
    action_mask = draw(rows, actions) < 0.4
    action = (draw(rows) * actions).long()
    action_mask[torch.arange(rows), action] = True
    network = Told(draw(rows, actions) * 4 - 2, draw(rows) * 2 - 1)
    acted = log_probabilities(network.logits.tolist(), action_mask.tolist())
    log_prob = torch.tensor([row[at] for row, at in zip(acted, action.tolist(), strict=True)])
    log_prob += (draw(rows) - 0.5) * 1.2
    return network, Batch(torch.zeros(rows, 1), action_mask, action, log_prob, draw(rows) * 4 - 2, draw(rows) * 4 - 2)


def log_probabilities(logits: list[list[float]], action_mask: list[list[bool]]) -> list[list[float]]:
    """log(e^z / the sum of e^z over legal actions); -inf for illegal ones."""
    rows = []
    for numbers, may in zip(logits, action_mask, strict=True):
        total = math.fsum(math.exp(number) for number, one in zip(numbers, may, strict=True) if one)
        rows.append([number - math.log(total) if one else -math.inf for number, one in zip(numbers, may, strict=True)])
    return rows


def entropy_by_definition(log_probs: list[float]) -> float:
    return -math.fsum(math.exp(one) * one for one in log_probs if one > -math.inf)


def parts_by_definition(network: Told, batch: Batch) -> list[tuple[float, float, float, float, float]]:
    """Of each row: log pi(a), pi(a) / what it was, the advantage, half the value's squared error, the entropy."""
    policies = log_probabilities(network.logits.tolist(), batch.action_mask.tolist())
    rows = []
    for row, policy in enumerate(policies):
        log_prob = policy[batch.action[row].item()]
        ratio = math.exp(log_prob) / math.exp(batch.log_prob[row].item())
        error = (network.told[row].item() - batch.returns[row].item()) ** 2 / 2
        rows.append((log_prob, ratio, batch.advantage[row].item(), error, entropy_by_definition(policy)))
    return rows


def mean(numbers: list[float]) -> float:
    return math.fsum(numbers) / len(numbers)


@pytest.mark.parametrize("clip_coef", [0.1, 0.3])
def test_ppo_s_loss_equals_its_definition_row_by_row(clip_coef: float) -> None:
    network, batch = random_batch()
    config = replace(PPO_CONFIG, clip_coef=clip_coef, ent_coef=0.03, vf_coef=0.7)
    gains, kinds = [], set()
    for _, ratio, advantage, _, _ in (rows := parts_by_definition(network, batch)):
        # eq. 7 by cases: moving further the way that the advantage points gains nothing beyond the clip
        too_far = ratio > 1 + clip_coef if advantage > 0 else ratio < 1 - clip_coef
        edge = 1 + clip_coef if advantage > 0 else 1 - clip_coef
        gains.append((edge if too_far else ratio) * advantage)
        kinds.add((advantage > 0, too_far, abs(ratio - 1) > clip_coef))
    assert len(kinds) == 6, "for both signs: inside the clip, beyond it the good way, beyond it the bad way"
    value_loss, spread = mean([row[3] for row in rows]), mean([row[4] for row in rows])

    loss, stats = ppo_loss(network, batch, config)
    assert loss.item() == pytest.approx(-mean(gains) + 0.7 * value_loss - 0.03 * spread, rel=1e-4)
    expected = {
        "losses/policy_loss": -mean(gains),
        "losses/value_loss": value_loss,
        "losses/entropy": spread,
        "losses/approx_kl": mean([ratio - 1 - math.log(ratio) for _, ratio, *_ in rows]),
        "losses/clipfrac": mean([float(abs(ratio - 1) > clip_coef) for _, ratio, *_ in rows]),
    }
    assert {name: stat.item() for name, stat in stats.items()} == pytest.approx(expected, rel=1e-4)
    assert not any(stat.requires_grad for stat in stats.values())


def test_a2c_s_loss_equals_its_definition_row_by_row() -> None:
    network, batch = random_batch()
    rows = parts_by_definition(network, batch)
    policy_loss = -mean([log_prob * advantage for log_prob, _, advantage, _, _ in rows])
    value_loss, spread = mean([row[3] for row in rows]), mean([row[4] for row in rows])
    loss, stats = a2c_loss(network, batch, replace(A2C_CONFIG, ent_coef=0.03, vf_coef=0.7))
    assert loss.item() == pytest.approx(policy_loss + 0.7 * value_loss - 0.03 * spread, rel=1e-4)
    expected = {"losses/policy_loss": policy_loss, "losses/value_loss": value_loss, "losses/entropy": spread}
    assert {name: stat.item() for name, stat in stats.items()} == pytest.approx(expected, rel=1e-4)
    assert not any(stat.requires_grad for stat in stats.values())


def test_a_row_beyond_the_clip_pulls_the_policy_no_further() -> None:
    logits = torch.tensor([[0.0, 0.0]] * 4)
    network = Told(logits, torch.zeros(4))
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
    ppo_loss(network, batch, replace(PPO_CONFIG, ent_coef=0.0))[0].backward()
    # d(-r A / 4)/dz = -r A (1 - 1/2) / 4 where the clip does not hold
    assert network.logits.grad[:, 0].tolist() == pytest.approx([0.0, 0.25, -0.0625, 0.0])


@pytest.mark.parametrize(("loss", "config"), [(ppo_loss, PPO_CONFIG), (a2c_loss, A2C_CONFIG)], ids=["ppo", "a2c"])
def test_illegal_logits_neither_matter_nor_feel_a_gradient(loss: Callable, config: OnPolicyConfig) -> None:
    network, batch = random_batch()
    other = Told(torch.where(batch.action_mask, network.logits, 50.0).detach(), network.told.detach())
    ours, theirs = loss(network, batch, config)[0], loss(other, batch, config)[0]
    assert theirs.item() == ours.item()
    ours.backward()
    assert (network.logits.grad[~batch.action_mask] == 0).all()
    free = batch.action_mask & (batch.action_mask.sum(1) > 1)[:, None]
    assert (network.logits.grad[free] != 0).float().mean() > 0.5
    assert network.logits.grad.isfinite().all()


def test_the_loss_s_gradient_is_its_slope() -> None:
    network, batch = random_batch(rows=6)
    network, batch = network.double(), Batch(*(one.double() if one.is_floating_point() else one for one in batch[:6]))
    for loss, config in ((ppo_loss, replace(PPO_CONFIG, ent_coef=0.3)), (a2c_loss, replace(A2C_CONFIG, ent_coef=0.3))):
        grads = torch.autograd.grad(loss(network, batch, config)[0], list(network.parameters()))
        for parameter, grad in zip(network.parameters(), grads, strict=True):
            slopes = torch.zeros_like(parameter)
            with torch.no_grad():
                for at in range(parameter.numel()):
                    results = []
                    for move in (1e-6, -1e-6):
                        parameter.view(-1)[at] += move
                        results.append(loss(network, batch, config)[0].item())
                        parameter.view(-1)[at] -= move
                    slopes.view(-1)[at] = (results[0] - results[1]) / 2e-6
            torch.testing.assert_close(grad, slopes, rtol=1e-4, atol=1e-7)


def test_the_entropy_of_a_masked_policy_is_that_of_its_legal_actions() -> None:
    action_mask = torch.tensor([[True, True, False, False], [False, True, False, False], [True, True, True, True]])
    logits = torch.tensor([[1.0, 1.0, 9.0, -9.0], [0.3, -2.0, 5.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = entropy(masked_log_softmax(logits, action_mask))
    torch.testing.assert_close(found, torch.tensor([math.log(2), 0.0, math.log(4)]))
    random, batch = random_batch()
    expected = map(entropy_by_definition, log_probabilities(random.logits.tolist(), batch.action_mask.tolist()))
    torch.testing.assert_close(
        entropy(masked_log_softmax(random.logits, batch.action_mask)), torch.tensor(list(expected))
    )


def test_each_legal_action_is_drawn_with_its_probability_and_an_illegal_one_never() -> None:
    rows, logits = 40_000, torch.tensor([2.0, 9.0, 0.0, -1.0, 1.0, 8.0])
    action_mask = torch.tensor([True, False, True, True, True, False])
    u = (torch.rand(rows, 6, generator=torch.Generator().manual_seed(4)) * 2**24).floor() / 2**24
    log_probs = masked_log_softmax(logits.expand(rows, -1), action_mask.expand(rows, -1))
    drawn = sample_action(log_probs, action_mask.expand(rows, -1), u)
    assert drawn.shape == (rows,)
    assert drawn.dtype == torch.int64
    sure = math.sqrt(math.log(2 / 1e-9) / (2 * rows))  # Hoeffding: one in a billion deviates further
    for action, log_prob in enumerate(log_probabilities([logits.tolist()], [action_mask.tolist()])[0]):
        share = (drawn == action).float().mean().item()
        assert abs(share - math.exp(log_prob)) < sure
        assert (share == 0) == (not action_mask[action])


def test_chances_of_one_in_a_thousand_are_kept() -> None:
    rows = 200_000
    logits = torch.tensor([1.0, 1e-3, 4e-3]).log().expand(rows, -1)
    action_mask = torch.ones(rows, 3, dtype=torch.bool)
    u = torch.rand(rows, 3, generator=torch.Generator().manual_seed(4))
    counts = sample_action(masked_log_softmax(logits, action_mask), action_mask, u).bincount(minlength=3).tolist()
    for count, share in zip(counts[1:], (1e-3 / 1.005, 4e-3 / 1.005), strict=True):
        assert abs(count - rows * share) < 6 * math.sqrt(rows * share)


@pytest.mark.parametrize("everywhere", [0.0, 2.0**-24, 0.5, 1 - 2.0**-23, LARGEST])
def test_the_ends_of_the_luck_draw_legal_actions(everywhere: float) -> None:
    draw = partial(torch.rand, generator=torch.Generator().manual_seed(5))
    action_mask = draw(500, 6) < 0.3
    action_mask[torch.arange(500), (draw(500) * 6).long()] = True
    for scale in (0.0, 1.0, 1e4):
        log_probs = masked_log_softmax((draw(500, 6) - 0.5) * scale, action_mask)
        drawn = sample_action(log_probs, action_mask, torch.full((500, 6), everywhere))
        assert action_mask[torch.arange(500), drawn].all()
        if everywhere < 0.9:  # the same noise for all: the likeliest wins
            assert log_probs.gather(1, drawn[:, None])[:, 0].equal(log_probs.max(1).values)
        mixed = torch.where(draw(500, 6) < 0.5, everywhere, draw(500, 6))
        assert action_mask[torch.arange(500), sample_action(log_probs, action_mask, mixed)].all()


def test_the_largest_luck_of_an_illegal_action_does_not_help_it() -> None:
    action_mask = torch.tensor([[False, True, True]])
    for u in ([LARGEST, 0.0, 0.0], [LARGEST, 0.5, 0.9], [LARGEST, LARGEST, LARGEST]):
        assert sample_action(
            masked_log_softmax(torch.tensor([[50.0, 0.0, 0.0]]), action_mask), action_mask, torch.tensor([u])
        ).item() in (1, 2)


def test_the_largest_luck_does_not_draw_what_is_as_good_as_impossible() -> None:
    """A chance of e^-60 is never met; drawn once, its ratio may overflow when the policy has moved."""
    action_mask = torch.ones(1, 2, dtype=torch.bool)
    log_probs = masked_log_softmax(torch.tensor([[30.0, -30.0]]), action_mask)
    for u in (0.5, LARGEST):
        assert sample_action(log_probs, action_mask, torch.tensor([[u, LARGEST]])).item() == 0


@BOTH
def test_each_seed_draws_and_learns_with_luck_of_its_own(kind: type, config: Any) -> None:
    step = VecEnv(Echo(8), 200).reset()
    first, again, other = (make(kind, config, Echo(8), 200, seed=seed)[0] for seed in (0, 0, 1))
    for agent in (again, other):
        agent.network.load_state_dict(first.network.state_dict())
    actions = [agent.act(step).action for agent in (first, again, other)]
    assert actions[0].equal(actions[1])
    assert not actions[0].equal(actions[2])
    streams = [rng.uniform(0, 8)[:200] for rng in (first.rng, first.shuffle_rng, VecEnv(Echo(8), 200, seed=0).rng)]
    assert all(not one.equal(two) for one, two in itertools.combinations(streams, 2))


@BOTH
def test_a_shard_of_the_games_is_played_as_in_the_whole(kind: type, config: Any) -> None:
    whole, env = make(kind, config, Echo(8), 16)
    shard = VecEnv(Echo(8), 6, 0, first_env_id=10)
    part, ours, theirs = kind(config, shard, 10**6, 0), shard.reset(), env.reset()
    for _ in range(3):
        action = whole.act(theirs).action
        assert part.act(ours).action.equal(action[10:])
        theirs, ours = env.step(action), shard.step(action[10:])
    assert not set(part.shuffle_rng.base.tolist()) & set(whole.shuffle_rng.base[: 10 * 8].tolist())


@BOTH
def test_a_student_draws_from_its_policy_with_luck_of_its_own_each_moment(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Echo(8, walls=True), 4000)
    with torch.no_grad():
        agent.network.policy.head.bias.copy_(torch.linspace(-1, 1, 8))
    step = env.reset()
    first, second = agent.act(step), agent.act(step)
    assert first.scores.equal(second.scores)
    assert not first.action.equal(second.action)
    expected = log_probabilities(agent.network(step.obs)[0].tolist(), step.action_mask.tolist())
    expected = torch.tensor(expected).exp()
    torch.testing.assert_close(first.scores.exp(), expected)
    assert step.action_mask.gather(1, first.action[:, None]).all()
    assert first.greedy.equal(masked_argmax(first.scores, step.action_mask))
    assert first.greedy.equal(agent.greedy(step.obs, step.action_mask))
    assert first.value.equal(agent.network.judge(step.obs))
    for action in range(8):
        sure = math.sqrt(math.log(2 / 1e-9) / (2 * 4000))
        assert abs((first.action == action).float().mean() - expected[:, action].mean()) < sure
    assert not any(tensor.requires_grad for tensor in first)


def test_the_learning_rate_falls_to_0_over_the_run_or_stays() -> None:
    def at(step: int, anneal: bool) -> float:
        return learning_rate_at(torch.tensor(step), 0.25, anneal, 1000).item()

    steps = (0, 500, 750, 1000, 1200)
    assert [at(step, True) for step in steps] == [0.25, 0.125, 0.0625, 0.0, 0.0]
    assert [at(step, False) for step in steps] == [0.25] * 5


@BOTH
def test_an_update_uses_the_learning_rate_of_its_step(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Echo(4), total_steps=16 * 8 * 4)
    step, rates = env.reset(), []
    for _ in range(4):
        step = play(agent, env, step, agent.horizon)
        before = weights(agent)
        rates.append(agent.update(step)["charts/learning_rate"].item())
        assert not equal(weights(agent), before)
    assert rates == pytest.approx([3e-3 * left for left in (1.0, 0.75, 0.5, 0.25)])  # of the moment a rollout began


@BOTH
def test_what_is_stored_is_the_action_that_was_executed_and_its_chance_under_the_policy_that_acted(
    kind: type, config: Any
) -> None:
    agent, env = make(kind, config, Echo(8, walls=True))
    step, overridden = train(agent, env, 2), 0
    for at in range(agent.horizon):
        proposal = agent.act(step)
        worst = proposal.scores.masked_fill(~step.action_mask, math.inf).argmin(1)
        action = torch.where(torch.arange(16) % 2 == 0, worst, proposal.action)  # a guidance in every other game
        overridden += (action != proposal.action).sum().item()
        after = env.step(action)
        agent.observe(step, proposal, action, after)

        logits, value = agent.network(step.obs)
        policy = log_probabilities(logits.tolist(), step.action_mask.tolist())
        expected = [row[one] for row, one in zip(policy, action.tolist(), strict=True)]
        kept = agent.rollout
        torch.testing.assert_close(kept.log_probs[at], torch.tensor(expected))
        torch.testing.assert_close(kept.values[at], value.detach())
        assert kept.obs[at].equal(step.obs)
        assert kept.action_masks[at].equal(step.action_mask)
        assert kept.actions[at].equal(action)
        assert kept.rewards[at].equal(after.reward)
        assert kept.terminations[at].equal(after.terminated)
        assert kept.truncations[at].equal(after.truncated)
        step = after.as_initial()
    assert overridden > 16


@pytest.mark.parametrize("game", [Echo(8, walls=True), Credit()], ids=["echo", "credit"])
def test_the_ratio_is_1_in_the_first_minibatch(game: Game) -> None:
    agent, env = make(PPO, replace(PPO_CONFIG, num_minibatches=4), game)
    step = train(agent, env, 2)
    step = play(agent, env, step, agent.horizon)
    agent.prepare(step)
    first, *others = (agent.learn(rows) for rows in agent.shuffle().chunk(4))
    assert first["losses/approx_kl"].abs() < 1e-6
    assert first["losses/clipfrac"] == 0
    assert all(stats["losses/approx_kl"] > 1e-6 for stats in others), "later ones meet a policy that has moved"


def walk_returns(agent: Any, played: list[tuple[Step, Step]], gamma: float, gae_lambda: float) -> list[list[float]]:
    """Returns by walking forward from each moment, with V asked of the position that each action led to."""
    table = []
    for at in range(len(played)):
        row = []
        for game in range(len(played[0][0].obs)):
            value = agent.network.judge(played[at][0].obs)[game].item()
            total, factor = value, 1.0
            for step, after in played[at:]:
                future = agent.network.judge(after.final_obs)[game].item()
                if after.terminated[game]:
                    future = 0.0
                error = after.reward[game].item() + gamma * future - agent.network.judge(step.obs)[game].item()
                total += factor * error
                factor *= gamma * gae_lambda
                if after.terminated[game] or after.truncated[game]:
                    break
            row.append(total)
        table.append(row)
    return table


class Mixed(Walk):
    """Walk, but a walker who has taken two long steps in a row is done; so games end in both ways."""

    def step(self, state: dict[str, Tensor], action: Tensor, u: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        now, reward, _ = super().step(state, action, u)
        return now, reward / 100, (now["at"] - now["clock"]) % 10 == 2


@pytest.mark.parametrize("game", [Mixed(), Walk(), Credit(), Echo(4)], ids=["mixed", "walk", "credit", "echo"])
@BOTH
def test_returns_bootstrap_from_where_a_game_was_cut_and_not_from_where_it_ended(
    game: Game, kind: type, config: Any
) -> None:
    """Credit and Echo have no clock: there the next moment's value stands in, and must be the same."""
    agent, env = make(kind, replace(config, norm_adv=False, gae_lambda=0.9, gamma=0.8), game, num_envs=5)
    with torch.no_grad():
        for parameter in agent.network.value.parameters():
            parameter += 0.05  # so that a value is never 0
    step, played = env.reset(), []
    for _ in range(agent.horizon):
        proposal = agent.act(step)
        after = env.step(proposal.action)
        agent.observe(step, proposal, proposal.action, after)
        played.append((step, after))
        step = after.as_initial()
    truncated = torch.stack([after.truncated for _, after in played])
    terminated = torch.stack([after.terminated for _, after in played])
    assert truncated.any() == (game.spec.time_limit is not None)
    assert terminated.any() == (type(game) is not Walk)
    with torch.no_grad():
        expected = torch.tensor(walk_returns(agent, played, 0.8, 0.9))
    values = agent.rollout.values.clone()
    agent.prepare(step)
    torch.testing.assert_close(agent.returns, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(agent.advantages, expected - values, rtol=1e-4, atol=1e-4)


@BOTH
def test_advantages_are_normalised_over_the_whole_rollout_only_where_it_was_asked_for(kind: type, config: Any) -> None:
    found = {}
    for norm_adv in (False, True):
        agent, env = make(kind, replace(config, norm_adv=norm_adv, adv_floor=1e-8), Credit())
        agent.prepare(play(agent, env, env.reset(), agent.horizon))
        found[norm_adv] = agent.advantages, agent.returns
    plain = found[False][0]
    expected = (plain - plain.mean()) / plain.std(correction=0)
    torch.testing.assert_close(found[True][0], expected, rtol=1e-3, atol=1e-3)
    assert found[True][1].equal(found[False][1]), "what the value aims at stays as it is"
    floored, env = make(kind, replace(config, norm_adv=True, adv_floor=50.0), Credit())
    floored.prepare(play(floored, env, env.reset(), floored.horizon))
    torch.testing.assert_close(floored.advantages, (plain - plain.mean()) / 50, rtol=1e-3, atol=1e-5)


@BOTH
def test_every_order_is_a_new_permutation(kind: type, config: Any) -> None:
    agent, _ = make(kind, config, Echo(4))
    orders = [agent.shuffle().tolist() for _ in range(5)]
    assert all(sorted(order) == list(range(16 * 8)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(16 * 8)]}) == 6
    other, _ = make(kind, config, Echo(4), seed=1)
    assert other.shuffle().tolist() != orders[0]


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (1, 4), (3, 4), (2, 128)])
def test_each_row_is_learned_from_once_an_epoch(epochs: int, minibatches: int) -> None:
    config = replace(PPO_CONFIG, update_epochs=epochs, num_minibatches=minibatches)
    agent, env = make(PPO, config, Walk())
    step = play(agent, env, env.reset(), agent.horizon)
    kept = agent.rollout
    seen, learn, loss = [], agent.learn, agent.loss

    def watched(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rows = seen[-1]
        columns = (kept.obs, kept.action_masks, kept.actions, kept.log_probs, agent.advantages, agent.returns)
        for found, column in zip(batch[:6], columns, strict=True):
            for place, row in enumerate(rows.tolist()):
                assert found[place].equal(column[row // 16, row % 16]), "one row of all columns"
        return loss(batch)

    agent.learn, agent.loss = lambda rows: seen.append(rows) or learn(rows), watched
    agent.update(step)
    assert len(seen) == epochs * minibatches
    for epoch in range(epochs):
        rows = torch.cat(seen[epoch * minibatches : (epoch + 1) * minibatches])
        assert sorted(rows.tolist()) == list(range(16 * 8))
    assert agent.place == 0, "the next rollout begins afresh"


def test_a2c_learns_from_all_rows_once_at_once() -> None:
    agent, env = make(A2C, A2C_CONFIG, Walk())
    step = play(agent, env, env.reset(), agent.horizon)
    seen, learn = [], agent.learn
    agent.learn = lambda rows: seen.append(rows) or learn(rows)
    agent.update(step)
    assert [sorted(rows.tolist()) for rows in seen] == [list(range(16 * 8))]


def test_beyond_the_target_kl_no_weight_moves_until_the_next_rollout() -> None:
    config = replace(PPO_CONFIG, learning_rate=0.03, target_kl=1e-3, update_epochs=3, anneal_lr=False)
    agent, env = make(PPO, config, Echo(8))
    step = env.reset()
    for _ in range(2):
        step = play(agent, env, step, agent.horizon)
        states, kls = [weights(agent)], []
        learn = PPO.learn.__get__(agent)

        def watched(rows: Tensor, learn: Callable = learn, states: list = states, kls: list = kls) -> dict[str, Tensor]:
            stats = learn(rows)
            states.append(weights(agent))
            kls.append(stats["losses/approx_kl"].item())
            return stats

        agent.learn = watched
        agent.update(step)
        limit = next(at for at, kl in enumerate(kls) if kl > 1.5 * 1e-3)
        assert 0 < limit < 11, "the first minibatch is within it, and a later one is not"
        moved = [not equal(one, other) for one, other in itertools.pairwise(states)]
        assert moved == [True] * (limit + 1) + [False] * (11 - limit)


def test_without_a_target_kl_every_step_moves_the_weights() -> None:
    for config in (PPO_CONFIG, replace(PPO_CONFIG, target_kl=1e9)):
        agent, env = make(PPO, config, Echo(8))
        step = play(agent, env, env.reset(), agent.horizon)
        agent.prepare(step)
        for rows in agent.shuffle().chunk(4):
            before = weights(agent)
            agent.learn(rows)
            assert not equal(weights(agent), before)


@pytest.mark.parametrize("norm_adv", [False, True])
@pytest.mark.parametrize(
    "game", [Echo(4, walls=True), Credit(), Walk(), Clock()], ids=["echo", "credit", "walk", "clock"]
)
def test_ppo_of_one_step_without_a_clip_is_a2c(game: Game, norm_adv: bool) -> None:
    told = SMALL | {"norm_adv": norm_adv, "gae_lambda": 0.9, "ent_coef": 0.02}
    ppo, one = make(PPO, PPOConfig(**told, update_epochs=1, num_minibatches=1, clip_coef=1e9), game)
    a2c, other = make(A2C, A2CConfig(**told), game)
    begun = weights(a2c)
    train(ppo, one, 5)
    train(a2c, other, 5)
    torch.testing.assert_close(weights(ppo), weights(a2c), rtol=1e-4, atol=1e-5)
    assert max((new - old).abs().max().item() for new, old in zip(weights(a2c), begun, strict=True)) > 1e-2


@BOTH
def test_two_equal_runs_are_equal_to_the_bit_and_another_seed_is_not(kind: type, config: Any) -> None:
    runs = []
    for seed in (0, 0, 1):
        agent, _ = make(kind, config, Walk(), seed=seed)
        train(agent, VecEnv(Walk(), 16, seed=0), 4)
        runs.append(weights(agent))
    assert equal(runs[0], runs[1])
    assert not any(one.equal(other) for one, other in zip(runs[0], runs[2], strict=True))


@BOTH
def test_the_global_random_numbers_neither_matter_nor_change(kind: type, config: Any) -> None:
    runs = []
    for global_seed in (5, 6):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        agent, env = make(kind, config, Echo(4))
        train(agent, env, 3)
        assert torch.random.get_rng_state().equal(before)
        runs.append(weights(agent))
    assert equal(*runs)


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("game", [Echo(4, walls=True), Credit(), Walk()], ids=["echo", "credit", "walk"])
@BOTH
def test_saving_loading_and_going_on_is_the_unbroken_run(game: Game, kind: type, config: Any) -> None:
    whole, env = make(kind, config, game, total_steps=16 * 8 * 12)
    train(whole, env, 8)
    begun, env = make(kind, config, game, total_steps=16 * 8 * 12)
    step = train(begun, env, 4)
    saved = through_a_file(begun.state_dict())
    train(begun, VecEnv(game, 16, seed=3), 2)  # what happens after saving is not in the file

    other, elsewhere = make(kind, config, game, total_steps=16 * 8 * 12, seed=1)
    play(other, elsewhere, train(other, elsewhere, 1), 3)
    other.rng, other.shuffle_rng = begun.rng, begun.shuffle_rng  # luck is a function of the run's seed, not state
    other.load_state_dict(saved)
    train(other, env, 4, step)
    assert equal(weights(other), weights(whole))
    ours, theirs = other.state_dict(), whole.state_dict()
    assert all(ours["optimizer"][name].equal(tensor) for name, tensor in theirs["optimizer"].items())
    assert ours["steps"].equal(theirs["steps"])
    assert ours["orders"].equal(theirs["orders"])


@BOTH
def test_a_frozen_student_stays_as_it_was(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Echo(8))
    obs, action_mask = torch.eye(8), torch.ones(8, 8, dtype=torch.bool)
    copy, before = frozen_copy(agent), agent.greedy(obs, action_mask)
    assert copy.greedy(obs, action_mask).equal(before)
    train(agent, env, 40)
    assert not agent.greedy(obs, action_mask).equal(before)
    assert copy.greedy(obs, action_mask).equal(before)
    assert not any(weight.requires_grad for weight in copy.network.parameters())


@BOTH
def test_what_is_logged_is_a_number_each_and_keeps_no_gradient(kind: type, config: Any) -> None:
    agent, env = make(kind, config, Echo(4))
    stats = agent.update(play(agent, env, env.reset(), agent.horizon))
    assert {"losses/policy_loss", "losses/value_loss", "losses/entropy", "losses/grad_norm"} < set(stats)
    assert all(stat.ndim == 0 and not stat.requires_grad and stat.isfinite() for stat in stats.values())


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (PPOConfig(num_steps=0), "num_steps is 0; it must be at least 1"),
        (PPOConfig(num_minibatches=0), "num_minibatches is 0; it must be at least 1"),
        (PPOConfig(update_epochs=0), "update_epochs is 0; it must be at least 1"),
        (PPOConfig(num_steps=5, num_minibatches=4), "5 moments of 3 games cannot be split into 4 minibatches"),
        (PPOConfig(num_steps=1, num_minibatches=4), "1 moments of 3 games cannot be split into 4 minibatches"),
        (A2CConfig(num_steps=0), "num_steps is 0; it must be at least 1"),
        (A2CConfig(num_steps=-2), "num_steps is -2; it must be at least 1"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(config: OnPolicyConfig, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        config.check(3)


@pytest.mark.parametrize(
    "config", [PPOConfig(), PPOConfig(num_steps=4, num_minibatches=12), A2CConfig(), A2CConfig(num_steps=1)]
)
def test_what_can_be_trained_with_is_not(config: OnPolicyConfig) -> None:
    config.check(3)
    assert config.num_steps * 3 % config.num_minibatches == 0


def accuracy(agent: Any, game: Game, states: dict[str, list[int]], best: list[int]) -> float:
    """Return the share of these positions in which the student's greedy action is the best one."""
    obs, action_mask = game.observe({name: torch.tensor(numbers) for name, numbers in states.items()})
    return (agent.greedy(obs, action_mask) == torch.tensor(best)).float().mean().item()


PROBES = {  # the game, positions in it, the best action in each, and what each is worth at gamma 0.9
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


@pytest.mark.parametrize("probe", list(PROBES))
@pytest.mark.parametrize("learner", list(LEARNERS))
def test_a_probe_game_is_solved_and_stays_solved_ten_times_as_long(learner: str, probe: str) -> None:
    kind, config, *enough = LEARNERS[learner]
    updates = enough[0] if "echo" in probe else enough[1]
    game, states, best, worth = PROBES[probe]
    agent, env = make(kind, config, game)
    step = train(agent, env, updates)
    assert accuracy(agent, game, states, best) == 1
    for _ in range(9 * updates):
        step = train(agent, env, 1, step)
        assert accuracy(agent, game, states, best) == 1
    obs, _ = game.observe({name: torch.tensor(numbers) for name, numbers in states.items()})
    torch.testing.assert_close(agent.network.judge(obs), torch.tensor(worth), rtol=0.1, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_with_the_floor_of_default_a_solved_echo_is_not_forgotten_in_300_updates(seed: int) -> None:
    """Echo is solved after 2 of the 300. With a floor of 1e-8 four of these eight seeds lost it on the way."""
    game, states, best, _ = PROBES["echo"]
    agent, env = make(PPO, PPOConfig(hidden=(64,), learning_rate=3e-3, anneal_lr=False, num_steps=16), game, seed=seed)
    step = train(agent, env, 10)
    for _ in range(291):
        assert accuracy(agent, game, states, best) == 1
        step = train(agent, env, 1, step)
