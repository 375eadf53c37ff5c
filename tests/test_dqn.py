"""DQN against slow definitions and probe games whose solutions are known.

The loss is written out once more row by row on Python numbers, the replay ring is held against a plain
list, the networks against copies made before. The probe games are Echo (name the column that is shown)
and Credit (only the first of two moves decides the reward of the second).
"""

import copy
import io
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from agents.base import Guidance, Proposal, best_legal
from agents.dqn import DQN, DQNConfig, dqn_loss, epsilon_at
from agents.networks import follow, make_network
from agents.replay import Batch, Replay
from envs.base import Env, Game, Spec, State, Step

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


class Echo:
    """One-hot of a hidden column is seen; naming it pays 1, and every game is over at once.

    With `walls` the columns beside the hidden one are illegal.
    """

    def __init__(self, columns: int = 4, walls: bool = False) -> None:
        self.spec = Spec("echo", 1, (columns,), columns, deal_luck=1, play_luck=0, time_limit=None)
        self.walls = walls

    def deal(self, luck: Tensor) -> State:
        return {"hidden": (luck[:, 0] * self.spec.num_actions).long()}

    def play(self, state: State, action: Tensor, luck: Tensor) -> tuple[State, Tensor, Tensor]:
        return state, (action == state["hidden"]).float(), torch.ones_like(action, dtype=torch.bool)

    def look(self, state: State) -> tuple[Tensor, Tensor]:
        columns = torch.arange(self.spec.num_actions)
        distance = (columns - state["hidden"][:, None]).abs()
        return (distance == 0).float(), (distance != 1) | torch.tensor(not self.walls)


class Credit:
    """A cue of two is seen; the first move should name it, the second move pays 1 if the first did so."""

    spec = Spec("credit", 1, (5,), 2, deal_luck=1, play_luck=0, time_limit=None)

    def deal(self, luck: Tensor) -> State:
        cue = (luck[:, 0] * 2).long()
        return {"cue": cue, "first": torch.full_like(cue, -1)}

    def play(self, state: State, action: Tensor, luck: Tensor) -> tuple[State, Tensor, Tensor]:
        second = state["first"] >= 0
        reward = (second & (state["first"] == state["cue"])).float()
        return {"cue": state["cue"], "first": torch.where(second, state["first"], action)}, reward, second

    def look(self, state: State) -> tuple[Tensor, Tensor]:
        cue = nn.functional.one_hot(state["cue"], 2)
        first = nn.functional.one_hot(state["first"] + 1, 3)
        return torch.cat([cue, first], 1).float(), torch.ones(len(cue), 2, dtype=torch.bool)


class Walk:
    """A counter from a random start that goes on for ever; a clock of three steps cuts it short."""

    spec = Spec("walk", 1, (2,), 2, deal_luck=1, play_luck=0, time_limit=3)

    def deal(self, luck: Tensor) -> State:
        return {"at": (luck[:, 0] * 100).long() * 10, "clock": torch.zeros(len(luck), dtype=torch.int64)}

    def play(self, state: State, action: Tensor, luck: Tensor) -> tuple[State, Tensor, Tensor]:
        at = state["at"] + 1 + action
        return {"at": at, "clock": state["clock"] + 1}, at.float(), torch.zeros_like(action, dtype=torch.bool)

    def look(self, state: State) -> tuple[Tensor, Tensor]:
        obs = torch.stack([state["at"], state["clock"]], 1).float()
        return obs, (state["clock"][:, None] + torch.arange(2)) % 3 != 1


def make(game: Game, num_envs: int = 16, config: DQNConfig = CONFIG, total_steps: int = 4000, seed: int = 0) -> DQN:
    return DQN(config, game.spec, num_envs, total_steps, seed, "cpu")


def train(agent: DQN, env: Env, steps: int, step: Step | None = None) -> Step:
    step = env.reset() if step is None else step
    for _ in range(steps):
        action = agent.act(step).action
        after = env.step(action)
        agent.observe(step, action, after)
        agent.update()
        step = after
    return step


def weights(agent: DQN) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in agent.network.state_dict().items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(ours[name].equal(theirs[name]) for name in ours)


def random_batch(rows: int = 300, actions: int = 5, obs: int = 3, seed: int = 0) -> Batch:
    """Rewards large enough for both branches of the Huber loss, half of the games terminated."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.rand, generator=generator)
    legal = draw(rows, actions) < 0.4
    legal[torch.arange(rows), (draw(rows) * actions).long()] = True
    return Batch(
        obs=draw(rows, obs) * 2 - 1,
        action=(draw(rows) * actions).long(),
        reward=draw(rows) * 6 - 3,
        terminated=draw(rows) < 0.5,
        next_obs=draw(rows, obs) * 2 - 1,
        next_legal=legal,
    )


def two_networks(actions: int = 5, obs: int = 3) -> tuple[nn.Module, nn.Module]:
    """Networks of different minds: the largest value of one is seldom that of the other."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return tuple(nn.Sequential(nn.Linear(obs, 16), nn.Tanh(), nn.Linear(16, actions)) for _ in range(2))


def aim_by_definition(network: nn.Module, target: nn.Module, batch: Batch, row: int, gamma: float) -> float:
    """y = r, and where the game went on + gamma Q'(s', a*) for the legal a* of the largest Q(s', a*)."""
    reward = batch.reward[row].item()
    if batch.terminated[row]:
        return reward
    ours = network(batch.next_obs[row : row + 1])[0].tolist()
    theirs = target(batch.next_obs[row : row + 1])[0].tolist()
    legal = [action for action, may in enumerate(batch.next_legal[row].tolist()) if may]
    return reward + gamma * theirs[max(legal, key=lambda action: ours[action])]


def huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
def test_the_loss_equals_its_definition_row_by_row(gamma: float) -> None:
    network, target = two_networks()
    batch = random_batch()
    errors = [
        network(batch.obs[row : row + 1])[0, batch.action[row]].item()
        - aim_by_definition(network, target, batch, row, gamma)
        for row in range(len(batch.reward))
    ]
    assert min(map(abs, errors)) < 1 < max(map(abs, errors)), "both branches are used"
    loss, stats = dqn_loss(network, target, batch, gamma)
    assert loss.item() == pytest.approx(sum(map(huber, errors)) / len(errors), rel=1e-5)
    assert stats["losses/td_loss"].item() == loss.item()
    values = network(batch.obs).gather(1, batch.action[:, None])
    assert stats["losses/q_values"].item() == pytest.approx(values.mean().item(), rel=1e-5)
    assert not any(stat.requires_grad for stat in stats.values())


def test_an_illegal_action_is_never_chosen_though_its_value_is_the_largest() -> None:
    network, target = nn.Linear(1, 3), nn.Linear(1, 3)
    with torch.no_grad():
        for ours, values in ((network, [9.0, 1.0, 2.0]), (target, [70.0, 5.0, 3.0])):
            ours.weight.zero_()
            ours.bias.copy_(torch.tensor(values))
    batch = Batch(
        obs=torch.zeros(1, 1),
        action=torch.tensor([1]),
        reward=torch.tensor([0.0]),
        terminated=torch.tensor([False]),
        next_obs=torch.zeros(1, 1),
        next_legal=torch.tensor([[False, True, True]]),
    )
    # legal are 1 and 2; the student prefers 2, which the target holds for worth 3
    assert dqn_loss(network, target, batch, 1.0)[0].item() == pytest.approx(huber(1.0 - 3.0))
    batch = batch._replace(terminated=torch.tensor([True]))
    assert dqn_loss(network, target, batch, 1.0)[0].item() == pytest.approx(huber(1.0 - 0.0))


def test_no_gradient_flows_into_what_is_aimed_at() -> None:
    network, target = two_networks()
    batch = random_batch()
    dqn_loss(network, target, batch, 0.9)[0].backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    gotten = [parameter.grad.clone() for parameter in network.parameters()]
    aims = [aim_by_definition(network, target, batch, row, 0.9) for row in range(len(batch.reward))]
    values = network(batch.obs).gather(1, batch.action[:, None])[:, 0]
    expected = torch.autograd.grad(nn.functional.huber_loss(values, torch.tensor(aims)), network.parameters())
    for ours, theirs in zip(gotten, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_is_the_same_in_any_order_of_rows() -> None:
    network, target = two_networks()
    batch = random_batch()
    order = torch.randperm(len(batch.reward), generator=torch.Generator().manual_seed(0))
    other = Batch(*(column[order] for column in batch))
    torch.testing.assert_close(dqn_loss(network, target, batch, 0.9)[0], dqn_loss(network, target, other, 0.9)[0])


def test_best_legal_is_the_largest_of_the_legal_values() -> None:
    values = torch.tensor([[1.0, 9.0, 3.0], [-5.0, -1.0, -9.0], [0.0, 0.0, 0.0], [1.0, -9.0, 3.0]])
    legal = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 0]]).bool()
    assert best_legal(values, legal).tolist() == [2, 0, 1, 1]
    assert values[0, 1] == 9, "the values are not modified"


def test_the_guidance_that_does_nothing_takes_the_student_s_own_action() -> None:
    proposal = Proposal(torch.tensor([3, 1]), torch.tensor([0, 0]))
    action = Guidance().choose(proposal, torch.ones(2, 4) / 4, torch.tensor([True, True]))
    assert action.equal(proposal.action)


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
    step = Env(game, rows).reset()
    for epsilon in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        proposal = agent.act(step)
        strayed = (proposal.action != proposal.greedy).float().mean().item()
        # of 4 legal actions a random one is another than the greedy one in 3 cases of 4
        assert abs(strayed - 0.75 * epsilon) <= math.sqrt(math.log(2 / 1e-9) / (2 * rows)) * (epsilon > 0)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_a_student_acts_legally(epsilon: float) -> None:
    game = Echo(5, walls=True)
    agent = make(game, 500, replace(CONFIG, start_e=epsilon, end_e=epsilon))
    step = Env(game, 500).reset()
    assert not step.legal.all()
    with torch.no_grad():
        agent.network[-1].bias.copy_(torch.tensor([0.0, 9.0, 0.0, 8.0, 0.0]))  # what is often illegal seems best
    for _ in range(5):
        proposal = agent.act(step)
        for action in proposal:
            assert action.dtype == torch.int64
            assert step.legal.gather(1, action[:, None]).all()


def test_without_exploration_a_student_is_greedy() -> None:
    game = Echo(5, walls=True)
    agent = make(game, 500, replace(CONFIG, start_e=0.0, end_e=0.0))
    step = Env(game, 500).reset()
    values = agent.network(step.obs).tolist()
    expected = [
        max((value, -action) for action, value in enumerate(row) if may[action])[1] * -1
        for row, may in zip(values, step.legal.tolist(), strict=True)
    ]
    for proposal in (agent.act(step), agent.act(step)):
        assert proposal.action.tolist() == proposal.greedy.tolist() == expected
    assert agent.greedy(step.obs, step.legal).tolist() == expected


def test_with_exploration_1_all_legal_actions_are_equally_likely() -> None:
    rows, game = 4000, Echo(4)
    agent = make(game, rows, replace(CONFIG, start_e=1.0, end_e=1.0))
    action = agent.act(Env(game, rows).reset()).action
    for column in range(4):
        share = (action == column).float().mean().item()
        assert abs(share - 0.25) < math.sqrt(math.log(2 / 1e-9) / (2 * rows))


def test_every_moment_has_its_own_luck() -> None:
    game = Echo(4)
    agent = make(game, 200, replace(CONFIG, start_e=1.0, end_e=1.0))
    step = Env(game, 200).reset()
    first, second = agent.act(step).action, agent.act(step).action
    assert not first.equal(second)
    agent.greedy(step.obs, step.legal)
    again = make(game, 200, replace(CONFIG, start_e=1.0, end_e=1.0))
    assert [again.act(step).action.equal(action) for action in (first, second)] == [True, True]


def moment(number: int, num_envs: int) -> tuple[Step, Tensor, Step]:
    """A moment in which every number tells when it was, in which game, and which column it belongs to."""
    games = torch.arange(num_envs)
    name = (100 * number + games).float()
    flags = (games + number) % 2 == 0
    legal = torch.stack([flags, ~flags], 1)
    nothing = torch.zeros(num_envs, dtype=torch.bool)
    step = Step(name[:, None] + 0.25, ~legal, name, nothing, nothing, name[:, None] + 0.75, ~legal)
    after = Step(name[:, None] + 0.875, ~legal, -name, flags, ~flags, name[:, None] + 0.5, legal)
    return step, (games + number) % 2, after


def expected_row(number: int, game: int) -> tuple:
    """(obs, action, reward, terminated, next_obs, next_legal) as `moment` makes them."""
    name, flag = 100 * number + game, (game + number) % 2 == 0
    return name + 0.25, (game + number) % 2, -name, flag, name + 0.5, (flag, not flag)


def rows_in(batch: Batch) -> list[tuple]:
    return [
        (obs[0], action, reward, terminated, next_obs[0], tuple(legal))
        for obs, action, reward, terminated, next_obs, legal in zip(*(column.tolist() for column in batch), strict=True)
    ]


def everything(replay: Replay) -> list[tuple]:
    """All rows that even numbers in [0, 1) reach, four tries a row."""
    tries = 4 * len(replay)
    return rows_in(replay.sample(torch.arange(tries) / tries))


@pytest.mark.parametrize(
    ("buffer_size", "moments"), [(12, 1), (12, 3), (12, 4), (12, 5), (12, 9), (14, 9), (3, 2), (1, 2)]
)
def test_the_ring_holds_the_latest_moments_and_nothing_else(buffer_size: int, moments: int) -> None:
    num_envs = 3
    replay = Replay(buffer_size, num_envs, (1,), 2, "cpu")
    for number in range(1, moments + 1):
        replay.add(*moment(number, num_envs))
    kept = range(max(1, moments + 1 - max(1, buffer_size // num_envs)), moments + 1)
    expected = [expected_row(number, game) for number in kept for game in range(num_envs)]
    assert len(replay) == len(expected)
    assert sorted(set(everything(replay))) == sorted(expected)


def test_all_written_rows_are_equally_likely() -> None:
    replay = Replay(30, 3, (1,), 2, "cpu")
    for number in range(1, 8):
        replay.add(*moment(number, 3))
    found = everything(replay)
    assert {found.count(row) for row in set(found)} == {4}


def test_the_ends_of_the_luck_are_written_rows() -> None:
    replay = Replay(30, 3, (1,), 2, "cpu")
    replay.add(*moment(1, 3))
    ends = rows_in(replay.sample(torch.tensor([0.0, 1 - 2.0**-24])))
    assert ends == [expected_row(1, 0), expected_row(1, 2)]


def test_a_ring_survives_saving_and_goes_on() -> None:
    replay, other = Replay(12, 3, (1,), 2, "cpu"), Replay(12, 3, (1,), 2, "cpu")
    for number in range(1, 7):
        replay.add(*moment(number, 3))
    other.load_state_dict(through_a_file(replay.state_dict()))
    for number in range(7, 9):
        assert everything(other) == everything(replay)
        replay.add(*moment(number, 3))
        other.add(*moment(number, 3))
    assert everything(other) == everything(replay)


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_what_is_remembered_is_where_the_action_led_and_not_the_fresh_deal() -> None:
    env = Env(Walk(), 4, seed=1)
    agent = make(Walk(), 4, replace(CONFIG, learning_starts=10**9))
    step = env.reset()
    for _ in range(9):
        action = agent.act(step).action
        after = env.step(action)
        agent.observe(step, action, after)
        step = after
    batch = Batch(*(column[: len(agent.replay)] for column in agent.replay.data))
    assert len(batch.reward) == 36
    led_to = batch.obs[:, 0] + 1 + batch.action
    assert batch.next_obs[:, 0].equal(led_to)
    assert batch.reward.equal(led_to)
    assert (batch.next_obs[:, 1] == 3).sum() == 12, "the clock ran out three times in four games"
    assert not batch.terminated.any(), "a game cut short has a future"
    for clock in (1, 2, 3):
        legal = batch.next_legal[batch.next_obs[:, 1] == clock]
        assert (legal == torch.tensor([(clock + action) % 3 != 1 for action in range(2)])).all()


def test_a_truncated_game_keeps_its_future_in_the_loss() -> None:
    env, config = Env(Walk(), 4, seed=1), replace(CONFIG, learning_starts=10**9)
    agent = make(Walk(), 4, config)
    train(agent, env, 3)  # the third moment ends all four games by the clock
    batch = Batch(*(column[8:12] for column in agent.replay.data))
    assert (batch.next_obs[:, 1] == 3).all()
    network, target = two_networks(actions=2, obs=2)
    future = [aim_by_definition(network, target, batch, row, 1.0) for row in range(4)]
    values = network(batch.obs).gather(1, batch.action[:, None])[:, 0].tolist()
    expected = sum(huber(value - aim) for value, aim in zip(values, future, strict=True)) / 4
    assert future != batch.reward.tolist()
    assert dqn_loss(network, target, batch, 1.0)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 0.5, 0.0, 0.005])
def test_the_target_goes_its_share_of_the_way(tau: float) -> None:
    target, source = two_networks()
    before, aim = copy.deepcopy(target), copy.deepcopy(source)
    follow(target, source, tau)
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
    env = Env(game, 16)
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


def test_a_new_network_has_no_preference_and_orthogonal_layers() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_network((2, 3, 4), (16, 8), 5, seed=1)
    assert network(torch.rand(7, 2, 3, 4)).shape == (7, 5)
    assert network(torch.rand(7, 2, 3, 4)).abs().max() < 0.2
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(24, 16), (16, 8), (8, 5)]
    for layer, gain in zip(linears, (2.0, 2.0, 1e-4), strict=True):
        assert (layer.bias == 0).all()
        torch.testing.assert_close(layer.weight @ layer.weight.T, gain * torch.eye(layer.out_features))
    assert sum(isinstance(layer, nn.ReLU) for layer in network) == 2


def test_nothing_is_learned_before_learning_starts() -> None:
    game = Echo(4)
    agent, env = make(game, 16, replace(CONFIG, learning_starts=33)), Env(game, 16)
    before = weights(agent)
    step = train(agent, env, 2)
    assert agent.updates == 0
    assert equal(weights(agent), before)
    assert agent.update() == {}
    train(agent, env, 1, step)
    assert agent.updates == 1
    assert not equal(weights(agent), before)


def test_as_many_updates_are_made_as_were_asked_for_each_on_its_own_batch() -> None:
    game = Echo(4)
    agent, env = make(game, 16, replace(CONFIG, learning_starts=1, updates_per_step=3)), Env(game, 16)
    seen = []
    sample = agent.replay.sample
    agent.replay.sample = lambda luck: seen.append(luck.clone()) or sample(luck)
    train(agent, env, 2)
    assert agent.updates == 6
    assert len({tuple(luck.tolist()) for luck in seen}) == 6
    assert all(len(luck) == CONFIG.batch_size for luck in seen)


def test_the_step_is_no_longer_than_the_gradient_s_norm_allows() -> None:
    game = Echo(4)
    agent, env = make(game, 16, replace(CONFIG, learning_starts=1, max_grad_norm=1e-3)), Env(game, 16)
    train(agent, env, 1)
    norm = torch.stack([parameter.grad.norm() for parameter in agent.network.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)
    assert agent.update()["losses/grad_norm"] > 1e-3, "what is logged is the norm before it is cut"


def test_two_equal_runs_are_equal_to_the_bit_and_another_seed_is_not() -> None:
    runs = []
    for seed in (0, 0, 1):
        agent = make(Echo(4), seed=seed)
        train(agent, Env(Echo(4), 16, seed=0), 30)
        runs.append(weights(agent))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_each_seed_begins_with_weights_and_exploration_of_its_own() -> None:
    step = Env(Echo(4), 200).reset()
    agents = [make(Echo(4), 200, seed=seed) for seed in (0, 0, 1)]
    assert equal(weights(agents[0]), weights(agents[1]))
    assert not agents[0].network[1].weight.equal(agents[2].network[1].weight)
    actions = [agent.act(step).action for agent in agents]
    assert actions[0].equal(actions[1])
    assert not actions[0].equal(actions[2])


def test_the_global_random_numbers_neither_matter_nor_change() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    agent = make(Echo(4))
    train(agent, Env(Echo(4), 16), 10)
    assert torch.random.get_rng_state().equal(before)
    torch.manual_seed(6)
    other = make(Echo(4))
    train(other, Env(Echo(4), 16), 10)
    assert equal(weights(agent), weights(other))


@pytest.mark.parametrize("game", [Echo(4), Credit(), Walk()], ids=["echo", "credit", "walk"])
def test_training_30_times_is_training_15_times_saving_loading_and_15_more(game: Game) -> None:
    config = replace(CONFIG, target_network_frequency=7, tau=0.5, buffer_size=16 * 20)
    whole = make(game, 16, config, total_steps=16 * 60)
    train(whole, Env(game, 16, seed=2), 34)
    assert whole.updates >= 30

    first, env = make(game, 16, config, total_steps=16 * 60), Env(game, 16, seed=2)
    step = train(first, env, 17)
    saved = through_a_file(first.state_dict())
    train(first, Env(game, 16, seed=3), 3)  # what happens after saving is not in the file
    second = make(game, 16, config, total_steps=16 * 60, seed=0)
    second.load_state_dict(saved)
    train(second, env, 17, step)
    assert second.updates == whole.updates
    assert equal(weights(second), weights(whole))
    assert equal(second.target.state_dict(), whole.target.state_dict())
    ours, theirs = (agent.optimizer.state_dict()["state"] for agent in (second, whole))
    assert all(ours[at][name].equal(theirs[at][name]) for at in theirs for name in theirs[at])
    assert second.steps.equal(whole.steps)


def test_a_buffer_that_holds_no_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer of 15"):
        replace(CONFIG, buffer_size=15).check(16)


@pytest.mark.parametrize("name", ["batch_size", "updates_per_step", "target_network_frequency"])
def test_a_count_below_one_is_refused_by_its_name(name: str) -> None:
    CONFIG.check(16)
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        replace(CONFIG, **{name: 0}).check(16)


def test_so_many_updates_follow_each_step_of_all_games() -> None:
    game = Echo(4)
    agent = make(game, 16, replace(CONFIG, learning_starts=16, updates_per_step=3))
    train(agent, Env(game, 16), 4)
    assert agent.updates == 12


def echo_accuracy(agent: DQN, columns: int) -> float:
    obs = torch.eye(columns)
    return (agent.greedy(obs, torch.ones(columns, columns).bool()) == torch.arange(columns)).float().mean().item()


def test_echo_is_solved_and_stays_solved_ten_times_as_long() -> None:
    game, env = Echo(8), Env(Echo(8), 16)
    agent = make(game, 16, replace(CONFIG, gamma=0.99), total_steps=16 * 2000)
    step = train(agent, env, 200)
    assert echo_accuracy(agent, 8) > 0.95
    for _ in range(9):
        step = train(agent, env, 200, step)
        assert echo_accuracy(agent, 8) > 0.95
    # a game that is over has no future: what is worth most is worth 1, not 1 / (1 - gamma)
    torch.testing.assert_close(agent.network(torch.eye(8)), torch.eye(8), atol=0.1, rtol=0)


def test_credit_for_the_second_reward_goes_to_the_first_move() -> None:
    agent = make(Credit(), 16, CONFIG, total_steps=16 * 800)
    train(agent, Env(Credit(), 16), 800)
    state = {"cue": torch.tensor([0, 1]), "first": torch.tensor([-1, -1])}
    obs, legal = Credit().look(state)
    assert agent.greedy(obs, legal).tolist() == [0, 1]
    torch.testing.assert_close(agent.network(obs), CONFIG.gamma * torch.eye(2), atol=0.1, rtol=0)


def test_batch_luck_differs_from_game_luck() -> None:
    agent = make(Echo(4), 64, replace(CONFIG, batch_size=64))
    env = Env(Echo(4), 64, seed=0)
    streams = [luck.draw(0, 2) for luck in (agent.luck, agent.batch_luck, env.luck)]
    assert all(not one.equal(other) for one in streams for other in streams if one is not other)
