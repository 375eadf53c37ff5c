"""DQN against slow definitions and probe games whose solutions are known.

The loss is written out once more row by row on Python numbers, the networks are held against copies made before. The
values of the probe games in tests/helpers/probes.py are known: what is learned is compared with them, and must stay so.
"""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from agents.base import UNGUIDED, Heard, Proposal, frozen_copy
from agents.dqn import DQN, DQNConfig, dqn_loss, epsilon_at
from agents.networks import Network, polyak_update
from agents.policy import masked_argmax
from agents.replay_buffer import Batch, Felt
from envs.base import Env, Game, Step, VecEnv
from envs.rng import SAMPLING_STREAM, CounterRNG
from tests.agents.test_replay_buffer import through_a_file
from tests.helpers.probes import Clock, Counter, Credit, Echo, Walk

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


def train(agent: DQN, env: Env, steps: int, step: Step | None = None) -> Step:
    step = env.reset() if step is None else step
    for _ in range(steps):
        proposal = agent.act(step)
        after = env.step(proposal.action)
        agent.observe(step, proposal, proposal.action, after)
        agent.update(after)
        step = after
    return step


def weights(agent: DQN) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in agent.network.state_dict().items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(ours[name].equal(theirs[name]) for name in ours)


def random_batch(rows: int = 300, actions: int = 5, obs: int = 3, seed: int = 0) -> Batch:
    """Rewards large enough for both branches of the Huber loss, half of the games terminated, the others of n steps."""
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
    """A network that is told nothing besides."""

    def forward(self, obs: torch.Tensor, besides: torch.Tensor | None = None) -> torch.Tensor:
        assert besides is None
        return super().forward(obs)


def two_networks(actions: int = 5, obs: int = 3) -> tuple[nn.Module, nn.Module]:
    """Networks of different minds: the largest value of one is seldom that of the other."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return tuple(Small(nn.Linear(obs, 16), nn.Tanh(), nn.Linear(16, actions)) for _ in range(2))


def aim_by_definition(network: nn.Module, target: nn.Module, batch: Batch, row: int) -> float:
    """y = R, and where the game went on + gamma^n Q'(s', a*) for the legal a* of the largest Q(s', a*)."""
    reward, discount = batch.reward[row].item(), batch.discount[row].item()
    if discount == 0:
        return reward
    ours = network(batch.next_obs[row : row + 1])[0].tolist()
    theirs = target(batch.next_obs[row : row + 1])[0].tolist()
    action_mask = [action for action, may in enumerate(batch.next_action_mask[row].tolist()) if may]
    return reward + discount * theirs[max(action_mask, key=lambda action: ours[action])]


def huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_its_definition_row_by_row(seed: int) -> None:
    network, target = two_networks()
    batch = random_batch(seed=seed)
    assert len(batch.discount.unique()) == 5
    errors = [
        network(batch.obs[row : row + 1])[0, batch.action[row]].item() - aim_by_definition(network, target, batch, row)
        for row in range(len(batch.reward))
    ]
    assert min(map(abs, errors)) < 1 < max(map(abs, errors)), "both branches are used"
    loss, stats = dqn_loss(network, target, batch)
    assert loss.item() == pytest.approx(sum(map(huber, errors)) / len(errors), rel=1e-5)
    assert stats["losses/td_loss"].item() == loss.item()
    values = network(batch.obs).gather(1, batch.action[:, None])
    assert stats["losses/q_values"].item() == pytest.approx(values.mean().item(), rel=1e-5)
    assert not any(stat.requires_grad for stat in stats.values())


def test_with_a_large_delta_the_loss_is_half_the_squared_error() -> None:
    network, target = two_networks()
    batch = random_batch()
    value = network(batch.obs).gather(1, batch.action[:, None])[:, 0]
    aims = [aim_by_definition(network, target, batch, row) for row in range(len(batch.reward))]
    assert (value - torch.tensor(aims)).abs().max() > 1, "delta 1 would make a difference"
    loss, _ = dqn_loss(network, target, batch, huber_delta=100.0)
    torch.testing.assert_close(loss, 0.5 * (value - torch.tensor(aims)).square().mean())


def test_an_illegal_action_is_never_chosen_though_its_value_is_the_largest() -> None:
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
    # legal are 1 and 2; the student prefers 2, which the target holds for worth 3
    assert dqn_loss(network, target, batch)[0].item() == pytest.approx(huber(1.0 - 3.0))
    batch = batch._replace(discount=torch.tensor([0.0]))
    assert dqn_loss(network, target, batch)[0].item() == pytest.approx(huber(1.0 - 0.0))


def test_no_gradient_flows_into_what_is_aimed_at() -> None:
    network, target = two_networks()
    batch = random_batch()
    dqn_loss(network, target, batch)[0].backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    gotten = [parameter.grad.clone() for parameter in network.parameters()]
    aims = [aim_by_definition(network, target, batch, row) for row in range(len(batch.reward))]
    values = network(batch.obs).gather(1, batch.action[:, None])[:, 0]
    expected = torch.autograd.grad(nn.functional.huber_loss(values, torch.tensor(aims)), network.parameters())
    for ours, theirs in zip(gotten, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_is_the_same_in_any_order_of_rows() -> None:
    network, target = two_networks()
    batch = random_batch()
    order = torch.randperm(len(batch.reward), generator=torch.Generator().manual_seed(0))
    other = Batch(*(column[order] for column in batch[:7]))
    torch.testing.assert_close(dqn_loss(network, target, batch)[0], dqn_loss(network, target, other)[0])


def test_best_legal_is_the_largest_of_the_legal_values() -> None:
    values = torch.tensor([[1.0, 9.0, 3.0], [-5.0, -1.0, -9.0], [0.0, 0.0, 0.0], [1.0, -9.0, 3.0]])
    action_mask = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 0]]).bool()
    assert masked_argmax(values, action_mask).tolist() == [2, 0, 1, 1]
    assert values[0, 1] == 9, "the values are not modified"


def test_the_guidance_that_does_nothing_takes_the_student_s_own_action() -> None:
    proposal = Proposal(torch.tensor([3, 1]), torch.tensor([0, 0]), torch.zeros(2, 4), torch.zeros(2))
    heard = Heard(torch.ones(2, 4) / 4, torch.tensor([True, True]))
    choice = UNGUIDED.choose(proposal, heard, torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 5))
    assert choice.action.equal(proposal.action)


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
def test_exploration_falls_linearly_and_then_stays(step: int, epsilon: float) -> None:
    config = DQNConfig(start_e=1.0, end_e=0.05, exploration_fraction=0.3)
    assert epsilon_at(torch.tensor(step), config, 1000).item() == pytest.approx(epsilon, abs=1e-6)


def test_exploration_may_begin_and_end_anywhere() -> None:
    config = DQNConfig(start_e=0.6, end_e=0.2, exploration_fraction=1.0)
    values = [epsilon_at(torch.tensor(step), config, 100).item() for step in (0, 50, 100, 200)]
    assert values == pytest.approx([0.6, 0.4, 0.2, 0.2])


def test_a_student_explores_by_the_env_steps_of_all_games() -> None:
    rows, game = 2000, Echo(4)
    config = replace(CONFIG, start_e=1.0, end_e=0.0, exploration_fraction=0.5, buffer_size=rows)
    agent = make(game, rows, config, total_steps=8 * rows)  # so exploration is over after 4 moments
    step = VecEnv(game, rows).reset()
    for epsilon in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        proposal = agent.act(step)
        strayed = (proposal.action != proposal.greedy).float().mean().item()
        # of 4 legal actions a random one is another than the greedy one in 3 cases of 4
        assert abs(strayed - 0.75 * epsilon) <= math.sqrt(math.log(2 / 1e-9) / (2 * rows)) * (epsilon > 0)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_a_student_acts_legally(epsilon: float) -> None:
    game = Echo(5, walls=True)
    agent = make(game, 500, replace(CONFIG, start_e=epsilon, end_e=epsilon))
    step = VecEnv(game, 500).reset()
    assert not step.action_mask.all()
    with torch.no_grad():
        agent.network.head.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 8.0, 0.0]))  # what is often illegal seems best
    for _ in range(5):
        proposal = agent.act(step)
        for action in (proposal.action, proposal.greedy):
            assert action.dtype == torch.int64
            assert step.action_mask.gather(1, action[:, None]).all()


def test_without_exploration_a_student_is_greedy() -> None:
    game = Echo(5, walls=True)
    agent = make(game, 500, replace(CONFIG, start_e=0.0, end_e=0.0))
    step = VecEnv(game, 500).reset()
    values = agent.network(step.obs).tolist()
    expected = [
        max((value, -action) for action, value in enumerate(row) if may[action])[1] * -1
        for row, may in zip(values, step.action_mask.tolist(), strict=True)
    ]
    for proposal in (agent.act(step), agent.act(step)):
        assert proposal.action.tolist() == proposal.greedy.tolist() == expected
    assert agent.greedy(step.obs, step.action_mask).tolist() == expected


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_a_proposal_says_what_the_student_makes_of_the_position(epsilon: float) -> None:
    game = Echo(5, walls=True)
    agent = make(game, 500, replace(CONFIG, start_e=epsilon, end_e=epsilon))
    step = VecEnv(game, 500).reset()
    proposal = agent.act(step)
    assert proposal.scores.equal(agent.network(step.obs))
    best = [
        max(v for v, may in zip(*row, strict=True) if may)
        for row in zip(proposal.scores.tolist(), step.action_mask.tolist(), strict=True)
    ]
    assert proposal.value.tolist() == best
    assert not any(tensor.requires_grad for tensor in proposal)


def test_what_is_remembered_is_the_action_that_was_taken_though_it_was_not_the_student_s_own() -> None:
    agent, env = make(Echo(4)), VecEnv(Echo(4), 16)
    step = env.reset()
    proposal = agent.act(step)
    taken = (torch.maximum(proposal.action, proposal.greedy) + 1) % 4
    taken = torch.where((taken == proposal.action) | (taken == proposal.greedy), (taken + 1) % 4, taken)
    agent.observe(step, proposal, taken, env.step(taken))
    batch = agent.replay.sample((torch.arange(16) + 0.5) / 16, 1, 0.9)
    assert batch.action.equal(taken)
    assert batch.obs.equal(step.obs)


def test_what_is_frozen_does_not_learn() -> None:
    agent, env = make(Echo(8)), VecEnv(Echo(8), 16)
    obs, action_mask = torch.rand(200, 8), torch.rand(200, 8) < 0.8
    action_mask[:, 0] = True
    copy, before = frozen_copy(agent), agent.greedy(obs, action_mask)
    assert copy.greedy(obs, action_mask).equal(before)
    train(agent, env, 60)
    assert copy.greedy(obs, action_mask).equal(before)
    assert not agent.greedy(obs, action_mask).equal(before)


def test_with_exploration_1_all_legal_actions_are_equally_likely() -> None:
    rows, game = 4000, Echo(4)
    agent = make(game, rows, replace(CONFIG, start_e=1.0, end_e=1.0))
    action = agent.act(VecEnv(game, rows).reset()).action
    for column in range(4):
        share = (action == column).float().mean().item()
        assert abs(share - 0.25) < math.sqrt(math.log(2 / 1e-9) / (2 * rows))


def test_every_moment_has_its_own_luck() -> None:
    game = Echo(4)
    agent = make(game, 200, replace(CONFIG, start_e=1.0, end_e=1.0))
    step = VecEnv(game, 200).reset()
    first, second = agent.act(step).action, agent.act(step).action
    assert not first.equal(second)
    agent.greedy(step.obs, step.action_mask)
    again = make(game, 200, replace(CONFIG, start_e=1.0, end_e=1.0))
    assert [again.act(step).action.equal(action) for action in (first, second)] == [True, True]


def test_a_truncated_game_keeps_its_future_in_the_loss() -> None:
    env = VecEnv(Walk(), 4, seed=1)
    agent = make(Walk(), 4, replace(CONFIG, learning_starts=10**9))
    train(agent, env, 3)  # the third moment ends all four games by the clock
    batch = agent.replay.sample((torch.arange(12) + 0.5) / 12, 1, 1.0)
    batch = Batch(*(column[batch.next_obs[:, 1] == 3] for column in batch[:7]))
    assert len(batch.reward) == 4
    network, target = two_networks(actions=2, obs=2)
    future = [
        batch.reward[row].item() + target(batch.next_obs[row])[0].item()  # of the last position 0 alone is legal
        for row in range(4)
    ]
    values = network(batch.obs).gather(1, batch.action[:, None])[:, 0].tolist()
    expected = sum(huber(value - aim) for value, aim in zip(values, future, strict=True)) / 4
    assert dqn_loss(network, target, batch)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 0.5, 0.0, 0.005])
def test_the_target_goes_its_share_of_the_way(tau: float) -> None:
    target, source = two_networks()
    before, aim = copy.deepcopy(target), copy.deepcopy(source)
    polyak_update(target, source, tau)
    for new, old, there, kept in zip(
        target.parameters(), before.parameters(), aim.parameters(), source.parameters(), strict=True
    ):
        torch.testing.assert_close(new, (1 - tau) * old + tau * there)
        assert kept.equal(there), "the source does not move"
        assert new.requires_grad
    if tau in (0.0, 1.0):
        assert equal(target.state_dict(), (before if tau == 0 else aim).state_dict())


def test_the_target_moves_every_so_many_updates_and_not_between() -> None:
    game = Echo(4)
    agent = make(game, 16, replace(CONFIG, learning_starts=16, target_network_frequency=5))
    env = VecEnv(game, 16)
    step, before = env.reset(), copy.deepcopy(agent.target.state_dict())
    assert equal(before, agent.network.state_dict()), "they begin as one"
    for update in range(1, 16):
        step = train(agent, env, 1, step)
        assert agent.updates == update
        assert not equal(agent.network.state_dict(), before), "the student learns"
        if update % 5 == 0:
            assert equal(agent.target.state_dict(), agent.network.state_dict())
            before = copy.deepcopy(agent.target.state_dict())
        assert equal(agent.target.state_dict(), before)


def test_a_new_student_has_no_preference_and_layers_as_wide_as_was_asked_for() -> None:
    network = make(Echo(4), config=replace(CONFIG, hidden=(16, 8))).network
    assert isinstance(network, Network)
    assert network(torch.eye(4)).abs().max() < 0.2
    layers = [*(layer for layer in network.body if isinstance(layer, nn.Linear)), network.head]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(4, 16), (16, 8), (8, 4)]


def test_nothing_is_learned_before_learning_starts() -> None:
    agent, env = make(Echo(4), 16, replace(CONFIG, learning_starts=33)), VecEnv(Echo(4), 16)
    before, step = weights(agent), env.reset()
    for moment in range(1, 5):
        proposal = agent.act(step)
        after = env.step(proposal.action)
        agent.observe(step, proposal, proposal.action, after)
        learned = agent.update(after)
        assert (learned == {}) == equal(weights(agent), before) == (moment < 3), (
            "33 env steps are 3 moments of 16 games"
        )
        assert agent.updates == max(0, moment - 2)
        step = after
    assert {"losses/td_loss", "losses/q_values", "losses/grad_norm", "charts/learning_rate"} == set(learned)
    assert all(stat.ndim == 0 for stat in learned.values())


def test_nothing_is_learned_before_a_target_s_moments_are_there() -> None:
    agent, env = make(Echo(4), 16, replace(CONFIG, learning_starts=0, n_step=4)), VecEnv(Echo(4), 16)
    step = env.reset()
    for moment in range(1, 7):
        step = train(agent, env, 1, step)
        assert agent.updates == max(0, moment - 3)


def test_as_many_updates_are_made_as_were_asked_for_each_on_its_own_batch() -> None:
    config = replace(CONFIG, learning_starts=1, updates_per_step=3, n_step=2, gamma=0.75)
    agent, env = make(Echo(4), 16, config, seed=7), VecEnv(Echo(4), 16)
    seen = []
    sample = agent.replay.sample

    def watched(rng: Tensor, n_step: int, gamma: float, felt: Felt) -> Batch:
        seen.append((rng.clone(), n_step, gamma))
        return sample(rng, n_step, gamma, felt)

    agent.replay.sample = watched
    train(agent, env, 3)  # of which the first is not yet a target's
    assert agent.updates == 6
    assert {(n_step, gamma) for _, n_step, gamma in seen} == {(2, 0.75)}
    rng = CounterRNG(7, torch.arange(CONFIG.batch_size), SAMPLING_STREAM)
    assert len({tuple(rng.tolist()) for rng, _, _ in seen}) == 6
    for update, (drawn, _, _) in enumerate(seen):
        assert drawn.equal(rng.uniform(update, 1)[:, 0])


def test_the_gradient_is_cut_to_its_longest_and_logged_as_it_was() -> None:
    agent, env = make(Echo(4), 16, replace(CONFIG, learning_starts=1, max_grad_norm=1e-3)), VecEnv(Echo(4), 16)
    train(agent, env, 1)
    norm = agent.optimizer.mean.norm().item() / 0.1  # Adam's mean of gradients after the first is a tenth of it
    assert norm == pytest.approx(1e-3, rel=1e-2)
    assert agent.learn()["losses/grad_norm"] > 1e-3, "what is logged is the norm before it is cut"


def test_the_first_move_of_each_weight_is_as_long_as_the_learning_rate() -> None:
    """So it is with Adam wherever the gradient is not tiny (arXiv:1412.6980, section 2.1)."""
    agent, env = make(Echo(4), 16, replace(CONFIG, learning_starts=1, learning_rate=7e-3)), VecEnv(Echo(4), 16)
    before = agent.network.head.bias.detach().clone()
    train(agent, env, 1)
    assert (agent.network.head.bias - before).abs().max().item() == pytest.approx(7e-3, rel=1e-3)


@pytest.mark.parametrize("n_step", [1, 3])
def test_two_equal_runs_are_equal_to_the_bit_and_another_seed_is_not(n_step: int) -> None:
    runs = []
    for seed in (0, 0, 1):
        agent = make(Credit(), config=replace(CONFIG, n_step=n_step), seed=seed)
        train(agent, VecEnv(Credit(), 16, seed=0), 60)
        runs.append(weights(agent))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_each_seed_begins_with_weights_and_exploration_of_its_own() -> None:
    step = VecEnv(Echo(4), 200).reset()
    agents = [make(Echo(4), 200, seed=seed) for seed in (0, 0, 1)]
    assert equal(weights(agents[0]), weights(agents[1]))
    assert not agents[0].network.body[1].weight.equal(agents[2].network.body[1].weight)
    actions = [agent.act(step).action for agent in agents]
    assert actions[0].equal(actions[1])
    assert not actions[0].equal(actions[2])


def test_the_global_random_numbers_neither_matter_nor_change() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    agent = make(Echo(4))
    train(agent, VecEnv(Echo(4), 16), 10)
    assert torch.random.get_rng_state().equal(before)
    torch.manual_seed(6)
    other = make(Echo(4))
    train(other, VecEnv(Echo(4), 16), 10)
    assert equal(weights(agent), weights(other))


@pytest.mark.parametrize("game", [Echo(4), Credit(), Walk()], ids=["echo", "credit", "walk"])
def test_training_30_times_is_training_15_times_saving_loading_and_15_more(game: Game) -> None:
    config = replace(CONFIG, target_network_frequency=7, tau=0.5, buffer_size=16 * 20, n_step=2)
    whole = make(game, 16, config, total_steps=16 * 60)
    train(whole, VecEnv(game, 16, seed=2), 34)
    assert whole.updates >= 30

    first, env = make(game, 16, config, total_steps=16 * 60), VecEnv(game, 16, seed=2)
    step = train(first, env, 17)
    saved = through_a_file(first.state_dict())
    train(first, VecEnv(game, 16, seed=3), 3)  # what happens after saving is not in the file
    second = make(game, 16, config, total_steps=16 * 60, seed=0)
    second.load_state_dict(saved)
    train(second, env, 17, step)
    assert second.updates == whole.updates
    assert equal(weights(second), weights(whole))
    assert equal(second.target.state_dict(), whole.target.state_dict())
    assert equal(second.optimizer.state_dict(), whole.optimizer.state_dict())
    assert second.steps.equal(whole.steps)
    assert second.seen == whole.seen


@pytest.mark.parametrize(("buffer_size", "n_step"), [(15, 1), (47, 3)])
def test_a_buffer_that_does_not_hold_a_target_s_moments_is_refused(buffer_size: int, n_step: int) -> None:
    replace(CONFIG, buffer_size=buffer_size + 1, n_step=n_step).check(16)
    with pytest.raises(ValueError, match=f"buffer of {buffer_size} does not hold the {n_step} moments of 16 games"):
        replace(CONFIG, buffer_size=buffer_size, n_step=n_step).check(16)


@pytest.mark.parametrize("name", ["batch_size", "updates_per_step", "target_network_frequency", "n_step"])
def test_a_count_below_one_is_refused_by_its_name(name: str) -> None:
    CONFIG.check(16)
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        replace(CONFIG, **{name: 0}).check(16)


def test_so_many_updates_follow_each_step_of_all_games() -> None:
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
    """The student's values are those of the game, and it plays what they say."""
    game, state, values = SOLUTIONS[name]
    obs, action_mask = game.observe(state)
    torch.testing.assert_close(agent.network(obs).detach(), values, atol=0.15, rtol=0.03)
    decided = values.topk(2).values.diff().abs()[:, 0] > 0
    assert agent.greedy(obs, action_mask)[decided].equal(values.argmax(1)[decided])


@pytest.mark.parametrize(
    ("name", "n_step"),
    [
        ("echo", 1),
        ("credit", 1),
        ("clock", 1),
        pytest.param("counter", 1, marks=pytest.mark.slow),
        pytest.param("credit", 3, marks=pytest.mark.slow),
    ],
)
def test_a_probe_game_is_solved_and_stays_solved_ten_times_as_long(name: str, n_step: int) -> None:
    """Of three steps only Credit, where exploration in the second move earns no less."""
    game, moments = SOLUTIONS[name][0], 200
    config = replace(CONFIG, gamma=GAMMA, n_step=n_step, end_e=0.1, target_network_frequency=5)
    agent, env = make(game, 16, config, total_steps=16 * 10 * moments), VecEnv(game, 16)
    step = None
    for _ in range(10):
        step = train(agent, env, moments, step)
        assert_solved(agent, name)


def test_a_student_of_three_steps_needs_no_estimate_for_what_three_steps_bring() -> None:
    """Its target network never moves from nothing: without it, one step never sees what the first move earns."""
    game, state, values = SOLUTIONS["credit"]
    first = game.observe(state)[0][:2]
    for n_step, expected in ((1, torch.zeros(2, 2)), (2, values[:2]), (3, values[:2])):
        config = replace(CONFIG, gamma=GAMMA, n_step=n_step, target_network_frequency=10**9)
        agent = make(game, 16, config, total_steps=16 * 250)
        train(agent, VecEnv(game, 16), 250)
        torch.testing.assert_close(agent.network(first).detach(), expected, atol=0.1, rtol=0)


def test_batch_luck_differs_from_game_luck() -> None:
    agent = make(Echo(4), 64, replace(CONFIG, batch_size=64))
    env = VecEnv(Echo(4), 64, seed=0)
    streams = [rng.uniform(0, 2) for rng in (agent.rng, agent.batch_rng, env.rng)]
    assert all(not one.equal(other) for one in streams for other in streams if one is not other)
