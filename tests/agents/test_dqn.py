"""DQN against slow definitions and probe games whose solutions are known.

The loss is written out once more row by row in Python floats, networks are compared with copies made before. The values
of the probe games in tests/helpers/probes.py are known: what is learned is compared with them, and must stay so.
"""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from agents.base import frozen_copy
from agents.dqn import DQN, DQNConfig, dqn_loss, epsilon_at
from agents.guidance import Guidance, GuidanceConfig
from agents.guidance.base import Transitions
from agents.networks import Network, polyak_update
from agents.replay_buffer import Batch
from envs.base import Game, VecEnv
from envs.rng import SAMPLING_STREAM, CounterRNG
from tests.helpers.probes import Clock, Counter, Credit, Echo, Walk
from tests.helpers.students import all_equal, bin_centers, save_and_load, train, uniforms, weights_of

CONFIG = DQNConfig(
    updates_per_step=1,
    learning_rate=3e-3,
    gamma=0.9,
    buffer_size=4096,
    learning_starts=64,
    batch_size=64,
    target_network_frequency=20,
    hidden=(32,),
)


def make(game: Game, num_envs: int = 16, config: DQNConfig = CONFIG, total_steps: int = 4000, seed: int = 0) -> DQN:
    return DQN(config, VecEnv(game, num_envs), total_steps, seed)


def random_batch(rows: int = 300, actions: int = 5, obs: int = 3, seed: int = 0) -> Batch:
    """Rewards large enough for both branches of the Huber loss, half of the rows terminated, the others of n steps."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, generator=generator)
    action_mask = draw(rows, actions) < 0.4
    action_mask[torch.arange(rows), (draw(rows) * actions).long()] = True
    return Batch(
        obs=draw(rows, obs) * 2 - 1,
        action=(draw(rows) * actions).long(),
        reward=draw(rows) * 6 - 3,
        discount=(draw(rows) < 0.5) * 0.9 ** (draw(rows) * 4).floor(),
        next_obs=draw(rows, obs) * 2 - 1,
        next_action_mask=action_mask,
        action_mask=action_mask,
    )


class Small(nn.Sequential):
    """A network without extra inputs."""

    def forward(self, obs: torch.Tensor, extra_inputs: torch.Tensor | None = None) -> torch.Tensor:
        assert extra_inputs is None
        return super().forward(obs)


def two_networks(actions: int = 5, obs: int = 3) -> tuple[nn.Module, nn.Module]:
    """Return networks that differ: the largest value of one is seldom that of the other."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return tuple(Small(nn.Linear(obs, 16), nn.Tanh(), nn.Linear(16, actions)) for _ in range(2))


def target_by_definition(network: nn.Module, target: nn.Module, batch: Batch, row: int) -> float:
    """y = R, and where the episode went on + gamma^n Q'(s', a*) for the legal a* of the largest Q(s', a*)."""
    reward, discount = batch.reward[row].item(), batch.discount[row].item()
    if discount == 0:
        return reward
    ours = network(batch.next_obs[row : row + 1])[0].tolist()
    theirs = target(batch.next_obs[row : row + 1])[0].tolist()
    action_mask = [action for action, is_legal in enumerate(batch.next_action_mask[row].tolist()) if is_legal]
    return reward + discount * theirs[max(action_mask, key=lambda action: ours[action])]


def huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5


@pytest.mark.parametrize("seed", range(3))
def test_dqn_loss_equals_its_definition_row_by_row(seed: int) -> None:
    network, target = two_networks()
    batch = random_batch(seed=seed)
    assert len(batch.discount.unique()) == 5
    errors = [
        network(batch.obs[row : row + 1])[0, batch.action[row]].item()
        - target_by_definition(network, target, batch, row)
        for row in range(len(batch.reward))
    ]
    assert min(map(abs, errors)) < 1 < max(map(abs, errors)), "both branches are used"
    loss, stats = dqn_loss(network, target, batch)
    assert loss.item() == pytest.approx(sum(map(huber, errors)) / len(errors), rel=1e-5)
    assert stats["losses/td_loss"].item() == loss.item()
    values = network(batch.obs).gather(1, batch.action[:, None])
    assert stats["losses/q_values"].item() == pytest.approx(values.mean().item(), rel=1e-5)
    assert not any(stat.requires_grad for stat in stats.values())


def test_dqn_loss_with_a_large_delta_is_half_the_squared_error() -> None:
    network, target = two_networks()
    batch = random_batch()
    value = network(batch.obs).gather(1, batch.action[:, None])[:, 0]
    targets = [target_by_definition(network, target, batch, row) for row in range(len(batch.reward))]
    assert (value - torch.tensor(targets)).abs().max() > 1, "delta 1 would make a difference"
    loss, _ = dqn_loss(network, target, batch, huber_delta=100.0)
    torch.testing.assert_close(loss, 0.5 * (value - torch.tensor(targets)).square().mean())


class Constant(Guidance):
    """Adds 3 to each next state's value and the mean of the followed rows' scores to the loss."""

    stores_advice = True

    def bootstrap(self, value: Tensor, q_values: Tensor, action_mask: Tensor, next_advice: Tensor) -> Tensor:
        assert q_values.shape == action_mask.shape == next_advice.shape
        return value + 3 * next_advice[:, 0]

    def loss(self, scores: Tensor, batch: Transitions) -> Tensor:
        return (scores.mean(1) * batch.followed).mean()


def test_dqn_loss_with_guidance_uses_its_bootstrap_and_adds_its_loss() -> None:
    network, target_network = two_networks()
    batch = random_batch()
    rows = len(batch.reward)
    next_advice = (uniforms(1, rows, 5) < 0.5).float()
    batch = batch._replace(advice=uniforms(2, rows, 5), followed=uniforms(3, rows) < 0.5, next_advice=next_advice)
    targets = torch.tensor([target_by_definition(network, target_network, batch, row) for row in range(rows)])
    targets = targets + batch.discount * 3 * next_advice[:, 0]
    q_values = network(batch.obs).detach()
    value = q_values.gather(1, batch.action[:, None])[:, 0]
    errors = [huber(error) for error in (value - targets).tolist()]
    loss, stats = dqn_loss(network, target_network, batch, guidance=Constant(False, "cpu"))
    assert stats["losses/td_loss"].item() == pytest.approx(math.fsum(errors) / rows, rel=1e-5)
    added = float((q_values.mean(1) * batch.followed).mean())
    assert loss.item() == pytest.approx(math.fsum(errors) / rows + added, rel=1e-5)


def test_dqn_loss_never_bootstraps_from_an_illegal_action() -> None:
    network, target = (Small(nn.Linear(1, 3)) for _ in range(2))
    with torch.no_grad():
        for ours, values in ((network, [9.0, 1.0, 2.0]), (target, [70.0, 5.0, 3.0])):
            ours[0].weight.zero_()
            ours[0].bias.copy_(torch.tensor(values))
    batch = Batch(
        obs=torch.zeros(1, 1),
        action=torch.tensor([1]),
        reward=torch.tensor([0.0]),
        discount=torch.tensor([1.0]),
        next_obs=torch.zeros(1, 1),
        next_action_mask=torch.tensor([[False, True, True]]),
        action_mask=torch.ones(1, 3, dtype=torch.bool),
    )
    # legal are 1 and 2; the student prefers 2, which the target network values at 3
    assert dqn_loss(network, target, batch)[0].item() == pytest.approx(huber(1.0 - 3.0))
    batch = batch._replace(discount=torch.tensor([0.0]))
    assert dqn_loss(network, target, batch)[0].item() == pytest.approx(huber(1.0 - 0.0))


def test_dqn_loss_has_no_gradient_in_the_target() -> None:
    network, target = two_networks()
    batch = random_batch()
    dqn_loss(network, target, batch)[0].backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    gotten = [parameter.grad.clone() for parameter in network.parameters()]
    targets = [target_by_definition(network, target, batch, row) for row in range(len(batch.reward))]
    values = network(batch.obs).gather(1, batch.action[:, None])[:, 0]
    expected = torch.autograd.grad(nn.functional.huber_loss(values, torch.tensor(targets)), network.parameters())
    for ours, theirs in zip(gotten, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dqn_loss_is_the_same_in_any_order_of_rows() -> None:
    network, target = two_networks()
    batch = random_batch()
    order = torch.randperm(len(batch.reward), generator=torch.Generator().manual_seed(0))
    other = Batch(*(column[order] for column in batch[:7]))
    torch.testing.assert_close(dqn_loss(network, target, batch)[0], dqn_loss(network, target, other)[0])


@pytest.mark.parametrize(
    ("step", "epsilon"),
    [
        (0, 1.0),
        (1, 1 - 0.95 / 300),
        (150, 0.525),
        (299, 0.05 + 0.95 / 300),
        (300, 0.05),
        (301, 0.05),
        (9999, 0.05),
    ],
)
def test_epsilon_falls_linearly_and_then_stays(step: int, epsilon: float) -> None:
    config = DQNConfig(start_e=1.0, end_e=0.05, exploration_fraction=0.3)
    assert epsilon_at(torch.tensor(step), config, 1000).item() == pytest.approx(epsilon, abs=1e-6)


def test_epsilon_may_start_and_end_anywhere() -> None:
    config = DQNConfig(start_e=0.6, end_e=0.2, exploration_fraction=1.0)
    values = [epsilon_at(torch.tensor(step), config, 100).item() for step in (0, 50, 100, 200)]
    assert values == pytest.approx([0.6, 0.4, 0.2, 0.2])


def test_act_explores_by_the_env_steps_of_all_env_copies() -> None:
    rows, game = 2000, Echo(4)
    config = replace(CONFIG, start_e=1.0, end_e=0.0, exploration_fraction=0.5, buffer_size=rows)
    agent = make(game, rows, config, total_steps=8 * rows)  # so exploration is over after 4 time steps
    step = VecEnv(game, rows).reset()
    for epsilon in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        decision = agent.act(step.obs, step.action_mask)
        explored = (decision.action != decision.greedy).float().mean().item()
        # of 4 legal actions a random one is another than the greedy one in 3 cases of 4
        assert abs(explored - 0.75 * epsilon) <= math.sqrt(math.log(2 / 1e-9) / (2 * rows)) * (epsilon > 0)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_act_is_legal(epsilon: float) -> None:
    game = Echo(5, walls=True)
    agent = make(game, 500, replace(CONFIG, start_e=epsilon, end_e=epsilon))
    step = VecEnv(game, 500).reset()
    assert not step.action_mask.all()
    with torch.no_grad():
        agent.network.head.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 8.0, 0.0]))  # the best values are often illegal
    for _ in range(5):
        decision = agent.act(step.obs, step.action_mask)
        for action in (decision.action, decision.greedy):
            assert action.dtype == torch.int64
            assert step.action_mask.gather(1, action[:, None]).all()


def test_act_without_exploration_is_greedy() -> None:
    game = Echo(5, walls=True)
    agent = make(game, 500, replace(CONFIG, start_e=0.0, end_e=0.0))
    step = VecEnv(game, 500).reset()
    values = agent.network(step.obs).tolist()
    expected = [
        max((value, -action) for action, value in enumerate(row) if legal[action])[1] * -1
        for row, legal in zip(values, step.action_mask.tolist(), strict=True)
    ]
    for decision in (agent.act(step.obs, step.action_mask), agent.act(step.obs, step.action_mask)):
        assert decision.action.tolist() == decision.greedy.tolist() == expected
    assert agent.greedy(step.obs, step.action_mask).tolist() == expected


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_decision_holds_action_values_and_the_best_legal_one(epsilon: float) -> None:
    game = Echo(5, walls=True)
    agent = make(game, 500, replace(CONFIG, start_e=epsilon, end_e=epsilon))
    step = VecEnv(game, 500).reset()
    decision = agent.act(step.obs, step.action_mask)
    assert decision.scores.equal(agent.network(step.obs))
    best = [
        max(v for v, is_legal in zip(*row, strict=True) if is_legal)
        for row in zip(decision.scores.tolist(), step.action_mask.tolist(), strict=True)
    ]
    assert decision.value.tolist() == best
    assert not any(tensor.requires_grad for tensor in decision)


def test_observe_stores_the_executed_action_and_the_shaped_reward() -> None:
    agent, env = make(Echo(4)), VecEnv(Echo(4), 16)
    step = env.reset()
    decision = agent.act(step.obs, step.action_mask)
    executed = (torch.maximum(decision.action, decision.greedy) + 1) % 4
    executed = torch.where((executed == decision.action) | (executed == decision.greedy), (executed + 1) % 4, executed)
    next_step = env.step(executed)
    agent.observe(step, decision, executed, next_step, next_step.reward + 7)
    batch = agent.replay.sample(bin_centers(16), 1, 0.9)
    assert batch.reward.equal(next_step.reward + 7)
    assert batch.action.equal(executed)
    assert batch.obs.equal(step.obs)


def test_observe_with_a_guidance_stores_its_three_columns() -> None:
    env = VecEnv(Echo(4), 16)
    agent = DQN(CONFIG, env, 4000, 0, GuidanceConfig("distill").make("dqn", False, "cpu", 16, 0.9))
    step = env.reset()
    decision = agent.act(step.obs, step.action_mask)
    next_step = env.step(decision.action)
    advice, followed, bonus = uniforms(1, 16, 4), uniforms(2, 16) < 0.5, uniforms(3, 16)
    agent.observe(step, decision, decision.action, next_step, next_step.reward, advice, followed, bonus)
    batch = agent.replay.sample(bin_centers(16), 1, 0.9)
    assert batch.advice.equal(advice)
    assert batch.followed.equal(followed)
    assert agent.replay.bonus[0].equal(bonus)


def test_frozen_copy_does_not_learn() -> None:
    agent, env = make(Echo(8)), VecEnv(Echo(8), 16)
    obs, action_mask = torch.rand(200, 8), torch.rand(200, 8) < 0.8
    action_mask[:, 0] = True
    copy, before = frozen_copy(agent), agent.greedy(obs, action_mask)
    assert copy.greedy(obs, action_mask).equal(before)
    train(agent, env, 60)
    assert copy.greedy(obs, action_mask).equal(before)
    assert not agent.greedy(obs, action_mask).equal(before)


def test_act_with_epsilon_1_draws_all_legal_actions_equally_often() -> None:
    rows, game = 4000, Echo(4)
    agent = make(game, rows, replace(CONFIG, start_e=1.0, end_e=1.0))
    step = VecEnv(game, rows).reset()
    action = agent.act(step.obs, step.action_mask).action
    for column in range(4):
        share = (action == column).float().mean().item()
        assert abs(share - 0.25) < math.sqrt(math.log(2 / 1e-9) / (2 * rows))


def test_act_has_new_noise_at_every_call() -> None:
    game = Echo(4)
    agent = make(game, 200, replace(CONFIG, start_e=1.0, end_e=1.0))
    step = VecEnv(game, 200).reset()
    first, second = agent.act(step.obs, step.action_mask).action, agent.act(step.obs, step.action_mask).action
    assert not first.equal(second)
    agent.greedy(step.obs, step.action_mask)
    again = make(game, 200, replace(CONFIG, start_e=1.0, end_e=1.0))
    assert [again.act(step.obs, step.action_mask).action.equal(action) for action in (first, second)] == [True, True]


def test_dqn_loss_bootstraps_where_an_episode_was_truncated() -> None:
    env = VecEnv(Walk(), 4, seed=1)
    agent = make(Walk(), 4, replace(CONFIG, learning_starts=10**9))
    train(agent, env, 3)  # the third time step truncates all four episodes
    batch = agent.replay.sample(bin_centers(12), 1, 1.0)
    batch = Batch(*(column[batch.next_obs[:, 1] == 3] for column in batch[:7]))
    assert len(batch.reward) == 4
    network, target = two_networks(actions=2, obs=2)
    future = [
        batch.reward[row].item() + target(batch.next_obs[row])[0].item()  # in the last state 0 alone is legal
        for row in range(4)
    ]
    values = network(batch.obs).gather(1, batch.action[:, None])[:, 0].tolist()
    expected = sum(huber(value - target_value) for value, target_value in zip(values, future, strict=True)) / 4
    assert dqn_loss(network, target, batch)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 0.5, 0.0, 0.005])
def test_polyak_update_goes_its_share_of_the_way(tau: float) -> None:
    target, source = two_networks()
    before, aim = copy.deepcopy(target), copy.deepcopy(source)
    polyak_update(target, source, tau)
    for new, old, there, source_now in zip(
        target.parameters(), before.parameters(), aim.parameters(), source.parameters(), strict=True
    ):
        torch.testing.assert_close(new, (1 - tau) * old + tau * there)
        assert source_now.equal(there), "the source does not move"
        assert new.requires_grad
    if tau in (0.0, 1.0):
        assert all_equal(target.state_dict(), (before if tau == 0 else aim).state_dict())


def test_target_network_moves_at_its_frequency_and_not_between() -> None:
    game = Echo(4)
    agent = make(game, 16, replace(CONFIG, learning_starts=16, target_network_frequency=5))
    env = VecEnv(game, 16)
    step, before = env.reset(), copy.deepcopy(agent.target_network.state_dict())
    assert all_equal(before, agent.network.state_dict()), "they start equal"
    for update in range(1, 16):
        step = train(agent, env, 1, step)
        assert agent.updates == update
        assert not all_equal(agent.network.state_dict(), before), "the student learns"
        if update % 5 == 0:
            assert all_equal(agent.target_network.state_dict(), agent.network.state_dict())
            before = copy.deepcopy(agent.target_network.state_dict())
        assert all_equal(agent.target_network.state_dict(), before)


def test_dqn_starts_without_a_preference_and_with_the_configured_layers() -> None:
    network = make(Echo(4), config=replace(CONFIG, hidden=(16, 8))).network
    assert isinstance(network, Network)
    assert network(torch.eye(4)).abs().max() < 0.2
    layers = [*(layer for layer in network.body if isinstance(layer, nn.Linear)), network.head]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(4, 16), (16, 8), (8, 4)]


def test_update_before_learning_starts_learns_nothing() -> None:
    agent, env = make(Echo(4), 16, replace(CONFIG, learning_starts=33)), VecEnv(Echo(4), 16)
    before, step = weights_of(agent), env.reset()
    for time_step in range(1, 5):
        decision = agent.act(step.obs, step.action_mask)
        next_step = env.step(decision.action)
        agent.observe(step, decision, decision.action, next_step, next_step.reward)
        learned = agent.update(next_step)
        assert (learned == {}) == all_equal(weights_of(agent), before) == (time_step < 3), (
            "33 env steps are 3 time steps of 16 env copies"
        )
        assert agent.updates == max(0, time_step - 2)
        step = next_step
    assert {"losses/td_loss", "losses/q_values", "losses/grad_norm", "charts/learning_rate"} == set(learned)
    assert all(stat.ndim == 0 for stat in learned.values())


def test_update_before_n_steps_are_stored_learns_nothing() -> None:
    agent, env = make(Echo(4), 16, replace(CONFIG, learning_starts=0, n_step=4)), VecEnv(Echo(4), 16)
    step = env.reset()
    for time_step in range(1, 7):
        step = train(agent, env, 1, step)
        assert agent.updates == max(0, time_step - 3)


def test_update_makes_the_configured_updates_each_on_its_own_batch() -> None:
    config = replace(CONFIG, learning_starts=1, updates_per_step=3, n_step=2, gamma=0.75)
    agent, env = make(Echo(4), 16, config, seed=7), VecEnv(Echo(4), 16)
    seen = []
    sample = agent.replay.sample

    def watched(u: Tensor, n_step: int, gamma: float) -> Batch:
        seen.append((u.clone(), n_step, gamma))
        return sample(u, n_step, gamma)

    agent.replay.sample = watched
    train(agent, env, 3)  # of which the first has no target yet
    assert agent.updates == 6
    assert {(n_step, gamma) for _, n_step, gamma in seen} == {(2, 0.75)}
    rng = CounterRNG(7, torch.arange(CONFIG.batch_size), SAMPLING_STREAM)
    assert len({tuple(u.tolist()) for u, _, _ in seen}) == 6
    for update, (u, _, _) in enumerate(seen):
        assert u.equal(rng.uniform(update, 1)[:, 0])


def test_gradient_is_clipped_and_its_norm_logged_before_that() -> None:
    agent, env = make(Echo(4), 16, replace(CONFIG, learning_starts=1, max_grad_norm=1e-3)), VecEnv(Echo(4), 16)
    train(agent, env, 1)
    norm = agent.optimizer.exp_avg.norm().item() / 0.1  # Adam's average of gradients is a tenth of the first
    assert norm == pytest.approx(1e-3, rel=1e-2)
    assert agent.update_minibatch()["losses/grad_norm"] > 1e-3, "what is logged is the norm before it is clipped"


def test_first_update_moves_weights_by_the_learning_rate() -> None:
    """So it is with Adam wherever the gradient is not tiny (arXiv:1412.6980, section 2.1)."""
    agent, env = make(Echo(4), 16, replace(CONFIG, learning_starts=1, learning_rate=7e-3)), VecEnv(Echo(4), 16)
    before = agent.network.head.bias.detach().clone()
    train(agent, env, 1)
    assert (agent.network.head.bias - before).abs().max().item() == pytest.approx(7e-3, rel=1e-3)


@pytest.mark.parametrize("n_step", [1, 3])
def test_dqn_runs_of_one_seed_are_equal_to_the_bit_and_of_another_are_not(n_step: int) -> None:
    runs = []
    for seed in (0, 0, 1):
        agent = make(Credit(), config=replace(CONFIG, n_step=n_step), seed=seed)
        train(agent, VecEnv(Credit(), 16, seed=0), 60)
        runs.append(weights_of(agent))
    assert all_equal(runs[0], runs[1])
    assert not all_equal(runs[0], runs[2])


def test_dqn_seed_decides_weights_and_exploration() -> None:
    step = VecEnv(Echo(4), 200).reset()
    agents = [make(Echo(4), 200, seed=seed) for seed in (0, 0, 1)]
    assert all_equal(weights_of(agents[0]), weights_of(agents[1]))
    assert not agents[0].network.body[1].weight.equal(agents[2].network.body[1].weight)
    actions = [agent.act(step.obs, step.action_mask).action for agent in agents]
    assert actions[0].equal(actions[1])
    assert not actions[0].equal(actions[2])


def test_dqn_neither_uses_nor_changes_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    agent = make(Echo(4))
    train(agent, VecEnv(Echo(4), 16), 10)
    assert torch.random.get_rng_state().equal(before)
    torch.manual_seed(6)
    other = make(Echo(4))
    train(other, VecEnv(Echo(4), 16), 10)
    assert all_equal(weights_of(agent), weights_of(other))


@pytest.mark.parametrize("game", [Echo(4), Credit(), Walk()], ids=["echo", "credit", "walk"])
def test_dqn_resumed_from_a_checkpoint_is_the_unbroken_run(game: Game) -> None:
    config = replace(CONFIG, target_network_frequency=7, tau=0.5, buffer_size=16 * 20, n_step=2)
    whole = make(game, 16, config, total_steps=16 * 60)
    train(whole, VecEnv(game, 16, seed=2), 34)
    assert whole.updates >= 30

    first, env = make(game, 16, config, total_steps=16 * 60), VecEnv(game, 16, seed=2)
    step = train(first, env, 17)
    saved = save_and_load(first.state_dict())
    train(first, VecEnv(game, 16, seed=3), 3)  # what happens after saving is not in the file
    second = make(game, 16, config, total_steps=16 * 60, seed=0)
    second.load_state_dict(saved)
    train(second, env, 17, step)
    assert second.updates == whole.updates
    assert all_equal(weights_of(second), weights_of(whole))
    assert all_equal(second.target_network.state_dict(), whole.target_network.state_dict())
    assert all_equal(second.optimizer.state_dict(), whole.optimizer.state_dict())
    assert second.steps.equal(whole.steps)
    assert second.num_observed == whole.num_observed


@pytest.mark.parametrize(("buffer_size", "n_step"), [(15, 1), (47, 3)])
def test_config_check_with_a_buffer_smaller_than_a_target_raises(buffer_size: int, n_step: int) -> None:
    replace(CONFIG, buffer_size=buffer_size + 1, n_step=n_step).check(16)
    with pytest.raises(
        ValueError, match=f"buffer of {buffer_size} does not hold the {n_step} time steps of 16 env copies"
    ):
        replace(CONFIG, buffer_size=buffer_size, n_step=n_step).check(16)


@pytest.mark.parametrize("name", ["batch_size", "updates_per_step", "target_network_frequency", "n_step"])
def test_config_check_with_a_count_below_1_raises(name: str) -> None:
    CONFIG.check(16)
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        replace(CONFIG, **{name: 0}).check(16)


def test_updates_per_step_follow_each_step_of_all_env_copies() -> None:
    game = Echo(4)
    agent = make(game, 16, replace(CONFIG, learning_starts=16, updates_per_step=3))
    train(agent, VecEnv(game, 16), 4)
    assert agent.updates == 12


GAMMA = 0.8
SOLUTIONS = {  # states, and what each action is worth in them
    "echo": (Echo(8), {"hidden": torch.arange(8)}, torch.eye(8)),
    "counter": (
        Counter(),
        {"count": torch.arange(4)},
        torch.tensor([[GAMMA**4, GAMMA ** (3 - count)] for count in range(4)]),
    ),
    "credit": (
        Credit(),
        {"cue": torch.tensor([0, 1, 0, 1]), "first": torch.tensor([-1, -1, 1, 1])},
        torch.tensor([[GAMMA, 0], [0, GAMMA], [0, 0], [1, 1]]),
    ),
    "clock": (
        Clock(),
        {"passed": torch.arange(5)},
        torch.tensor([[GAMMA / (1 - GAMMA), 1 / (1 - GAMMA)]] * 5),
    ),
}


def assert_solved(agent: DQN, name: str) -> None:
    """Check that the student's values are those of the game, and that it acts by them."""
    game, state, values = SOLUTIONS[name]
    obs, action_mask = game.observe(state)
    torch.testing.assert_close(agent.network(obs).detach(), values, atol=0.15, rtol=0.03)
    decided = values.topk(2).values.diff().abs()[:, 0] > 0
    assert agent.greedy(obs, action_mask)[decided].equal(values.argmax(1)[decided])


@pytest.mark.train
@pytest.mark.parametrize(
    ("name", "n_step"),
    [
        ("echo", 1),
        ("credit", 1),
        ("clock", 1),
        ("counter", 1),
        ("credit", 3),
    ],
)
def test_dqn_solves_a_probe_game_and_keeps_it_solved_ten_times_as_long(name: str, n_step: int) -> None:
    """Of three steps only Credit, where exploration in the second step earns no less."""
    game, time_steps = SOLUTIONS[name][0], 200
    config = replace(CONFIG, gamma=GAMMA, n_step=n_step, end_e=0.1, target_network_frequency=5)
    agent, env = make(game, 16, config, total_steps=16 * 10 * time_steps), VecEnv(game, 16)
    step = None
    for _ in range(10):
        step = train(agent, env, time_steps, step)
        assert_solved(agent, name)


@pytest.mark.train
def test_dqn_of_n_steps_learns_their_rewards_without_a_target_network() -> None:
    """The target network never moves from 0: with one step, what the first action earns is never learned."""
    game, state, values = SOLUTIONS["credit"]
    first = game.observe(state)[0][:2]
    for n_step, expected in ((1, torch.zeros(2, 2)), (2, values[:2]), (3, values[:2])):
        config = replace(CONFIG, gamma=GAMMA, n_step=n_step, target_network_frequency=10**9)
        agent = make(game, 16, config, total_steps=16 * 250)
        train(agent, VecEnv(game, 16), 250)
        torch.testing.assert_close(agent.network(first).detach(), expected, atol=0.1, rtol=0)


def test_exploration_sampling_and_env_have_random_streams_of_their_own() -> None:
    agent = make(Echo(4), 64, replace(CONFIG, batch_size=64))
    env = VecEnv(Echo(4), 64, seed=0)
    streams = [rng.uniform(0, 2) for rng in (agent.rng, agent.batch_rng, env.rng)]
    assert all(not one.equal(other) for one in streams for other in streams if one is not other)
