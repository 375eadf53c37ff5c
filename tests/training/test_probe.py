"""Probe episodes: counted against games whose episodes are known; whose actions they are, and whose random numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import envs
from agents import AGENTS, Agent
from agents.guidance.trust import Returns
from envs.base import Env, Step, VecEnv
from envs.rng import EXPLORATION_STREAM, CounterRNG
from tests.helpers.probes import Clock, Counter
from tests.helpers.students import save_and_load
from training import probe as probe_module
from training.config import Config, default_config
from training.probe import MAX_COPIES, MIN_HORIZON, Advise, Probe, Result
from training.self_play import SelfPlayOpponent

CONFIG = default_config("ppo", "connect4")


def student(env: Env, algo: str = "ppo", **settings: Any) -> Agent:
    """Return a new student; it knows nothing, and decides by the seed of its weights."""
    agent, config = AGENTS[algo]
    return agent(config(hidden=(8,), network="mlp", **settings), env, 1000, 3)


def make_probe(game: Any, max_steps: int, config: Config = CONFIG) -> tuple[Probe, Agent]:
    """Return a probe of a game, and a student."""
    env = VecEnv(game, 4, config.seed)
    return Probe(config, env, max_steps), student(env)


def advise_by_copy(actions: list[int]) -> Advise:
    """Return an advisor that always names the same action in a copy, and none where that is -1."""
    wanted = torch.tensor(actions)

    def advise(step: Step, running: Tensor) -> Tensor:
        columns = torch.arange(step.action_mask.shape[1])
        return (columns == wanted[:, None]).float()

    return advise


class Recorder:
    """Keeps the initial step and all actions of an env."""

    def __init__(self, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
        self.actions: list[Tensor] = []
        env_step, reset = env.step, env.reset

        def step(action: Tensor) -> Step:
            self.actions.append(action)
            return env_step(action)

        def start() -> Step:
            self.initial = reset()
            return self.initial

        monkeypatch.setattr(env, "step", step)
        monkeypatch.setattr(env, "reset", start)


@pytest.mark.parametrize(
    ("max_steps", "copies", "horizon"),
    [(1, 1, 1), (15, 1, 15), (16, 1, 16), (63, 3, 21), (1024, 64, 16), (6400, 64, 100)],
)
def test_probe_has_fewer_copies_rather_than_shorter_episodes(max_steps: int, copies: int, horizon: int) -> None:
    probe, _ = make_probe(Clock(), max_steps)
    assert (probe.env.num_envs, probe.horizon) == (copies, horizon)
    assert copies <= MAX_COPIES
    assert horizon >= MIN_HORIZON or copies == 1


@pytest.mark.parametrize(("max_steps", "length"), [(3, 3), (5, 5), (15, 5)])
def test_probe_counts_episodes_up_to_the_horizon(max_steps: int, length: int) -> None:
    """Each time step pays 1, and the clock ends the episode after five."""
    probe, agent = make_probe(Clock(), max_steps)
    ((returns, steps, advised),), _ = probe.play(agent, advise_by_copy([1]))
    assert returns == (1, length, length**2)
    assert steps == advised == length


def test_probe_counts_the_env_steps_and_returns_of_copies_that_play_on() -> None:
    """Four times action 1 end an episode, which pays 1; action 0 never does. Then the next episode is not counted."""
    probe, agent = make_probe(Counter(), 4 * MIN_HORIZON)
    running: list[list[bool]] = []
    by_copy = advise_by_copy([1, 0, 1, 0])

    def advise(step: Step, plays: Tensor) -> Tensor:
        running.append(plays.tolist())
        return by_copy(step, plays)

    ((returns, steps, advised),), _ = probe.play(agent, advise)
    assert returns == (4, 2, 2)
    assert steps == advised == 2 * 4 + 2 * MIN_HORIZON
    assert running == [[True] * 4] * 4 + [[False, True, False, True]] * (MIN_HORIZON - 4)


def test_probe_ends_when_all_episodes_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, agent = make_probe(Counter(), 4 * MIN_HORIZON)
    recorder = Recorder(probe.env, monkeypatch)
    probe.play(agent, advise_by_copy([1, 1, 1, 1]))
    assert len(recorder.actions) == 4


def test_probe_counts_as_advised_only_where_there_was_advice() -> None:
    probe, agent = make_probe(Clock(), 4 * MIN_HORIZON)
    ((_, steps, advised),), _ = probe.play(agent, advise_by_copy([1, -1, 0, -1]))
    assert (steps, advised) == (20, 10)
    ((_, steps, advised),), _ = probe.play(agent, None)
    assert (steps, advised) == (20, 0)


def test_copies_in_turn_take_no_advice_below_their_confidence() -> None:
    """Advice is 0.6 sure in copies 0 and 1, 0.9 in 2 and 3: of four episodes of five steps, three are advised.

    Where it is, each time step pays 1.
    """
    probe, agent = make_probe(Clock(), 4 * MIN_HORIZON)
    sure = torch.tensor([0.6, 0.6, 0.9, 0.9])

    def advise(step: Step, running: Tensor) -> Tensor:
        return torch.stack([1 - sure, sure], 1)

    (everywhere, sometimes), demonstrations = probe.play(agent, advise, [0.0, 0.75])
    assert everywhere == Result(Returns(2, 10, 50), 10, 10)
    assert (sometimes.returns.number, sometimes.steps, sometimes.advised) == (2, 10, 5)
    assert sorted(demonstrations.advice.amax(1).tolist()) == pytest.approx([0.0] * 5 + [0.6] * 5 + [0.9] * 10)
    (first,), demonstrations = probe.play(agent, advise, [0.75], copies=3)
    assert (first.returns.number, first.steps, first.advised) == (3, 15, 5)
    assert len(demonstrations.obs) == 15


def connect4_probe(algo: str, seed: int = 1, **settings: Any) -> tuple[Probe, Agent]:
    env = envs.make("connect4", 8, seed)
    return Probe(replace(CONFIG, seed=seed), env, 8 * MIN_HORIZON), student(env, algo, **settings)


@pytest.mark.parametrize("algo", AGENTS)
def test_copy_without_advice_plays_the_students_own_action(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advice in other copies changes nothing in it: it acts as where the student plays alone."""
    probe, agent = connect4_probe(algo)
    alone = Recorder(probe.env, monkeypatch)
    probe.play(agent, None)
    other, _ = connect4_probe(algo)
    led = Recorder(other.env, monkeypatch)
    leads = torch.arange(8) % 2 == 1

    def advise(step: Step, running: Tensor) -> Tensor:
        best = (step.action_mask & (step.action_mask.cumsum(1) == 1)).float()  # the first legal column
        return best * leads[:, None]

    other.play(agent, advise)
    number = min(len(alone.actions), len(led.actions))
    ours, theirs = (torch.stack(recorder.actions[:number]) for recorder in (alone, led))
    assert ours[:, ~leads].equal(theirs[:, ~leads])
    assert not ours[:, leads].equal(theirs[:, leads])
    own = agent.explore(led.initial.obs, led.initial.action_mask, other.rng.uniform(2, 8))  # after two resets
    assert theirs[0, ~leads].equal(own[~leads])


def test_students_own_action_is_sampled_from_its_policy() -> None:
    env = envs.make("blackjack", 4096, 1)
    agent = student(env)
    step = env.reset()
    decision = agent.act(step.obs, step.action_mask)
    action = agent.explore(step.obs, step.action_mask, CounterRNG(1, torch.arange(4096), 9).uniform(0, 3))
    expected = float(decision.scores.exp()[:, 1].mean())
    assert float(action.float().mean()) == pytest.approx(expected, abs=0.04)
    assert not action.equal(decision.action)


def test_students_own_action_by_values_is_as_explorative_as_in_training() -> None:
    """At random as long as training explores everywhere, its best one in three of four steps at the end."""
    env = envs.make("connect4", 512, 1)
    agent: Any = student(env, "dqn", start_e=1.0, end_e=0.25, exploration_fraction=0.5)
    step = env.reset()
    u = CounterRNG(1, torch.arange(512), 9).uniform(0, 8)
    shares = []
    for time_steps in (0, 1000):
        agent.steps.fill_(time_steps)
        action = agent.explore(step.obs, step.action_mask, u)
        shares.append(float((action != agent.greedy(step.obs, step.action_mask)).float().mean()))
    assert shares[0] == pytest.approx(6 / 7, abs=0.07)
    assert shares[1] == pytest.approx(0.25 * 6 / 7, abs=0.07)


def test_demonstrations_are_exactly_the_rows_that_were_played(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, agent = connect4_probe("ppo")
    expected: list[tuple[Tensor, ...]] = []

    def advise(step: Step, running: Tensor) -> Tensor:
        advice = step.action_mask / step.action_mask.sum(1, keepdim=True) * (torch.arange(8) != 3)[:, None]
        expected.append((step.obs[running], step.action_mask[running], advice[running]))
        return advice

    ((_, steps, advised),), demonstrations = probe.play(agent, advise)
    assert len(demonstrations.obs) == steps > advised > 0
    for found, rows in zip(demonstrations, zip(*expected, strict=True), strict=True):
        assert found.equal(torch.cat(rows))
    assert int((demonstrations.advice.sum(1) > 0).sum()) == advised


def test_probe_of_the_same_seed_is_the_same_and_the_next_one_is_another() -> None:
    def advise(step: Step, running: Tensor) -> Tensor:
        return torch.zeros(step.action_mask.shape)

    played = []
    for seed in (1, 1, 2):
        probe, agent = connect4_probe("ppo", seed)
        played.append([probe.play(agent, advise)[1].obs for _ in range(2)])
    assert all(one.equal(other) for one, other in zip(*played[:2], strict=True))
    assert not same(*played[0])
    assert not same(played[0][0], played[2][0])


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.equal(other)


def test_probe_goes_on_from_its_state_dict() -> None:
    (probe, agent), (other, _) = connect4_probe("ppo"), connect4_probe("ppo")
    probe.play(agent, None)
    other.load_state_dict(save_and_load(probe.state_dict()))
    silent = advise_by_copy([-1] * 8)
    assert other.play(agent, silent)[1].obs.equal(probe.play(agent, silent)[1].obs)


def test_probe_shares_no_episode_with_training_and_leaves_its_env_alone() -> None:
    """Neither starts nor the student's noise are those of the same copies and time steps in training."""
    env: Any = envs.make("snake", 64, 1, size=6)
    config = replace(default_config("ppo", "snake"), env_kwargs=("size=6",))
    probe, agent = Probe(config, env, 64 * MIN_HORIZON), student(env)
    before, steps = {name: tensor.clone() for name, tensor in env.state.items()}, int(env.steps)
    starts = [same_number_of_resets.reset().obs for same_number_of_resets in (env, probe.env)]
    assert (starts[0] != starts[1]).flatten(1).any(1).float().mean() > 0.5
    env.load_state_dict({"state": before, "elapsed_steps": env.elapsed_steps, "steps": torch.tensor(steps)})
    probe.play(agent, None)
    assert int(env.steps) == steps
    assert all(env.state[name].equal(before[name]) for name in before)
    exploration = CounterRNG(config.seed, torch.arange(64), EXPLORATION_STREAM)
    assert not any(probe.rng.uniform(step, 4).equal(exploration.uniform(step, 4)) for step in range(5))


def test_probe_changes_nothing_of_the_student() -> None:
    for algo in AGENTS:
        probe, agent = connect4_probe(algo)
        before = [tensor.clone() for tensor in agent.network.state_dict().values()]
        counted = int(agent.state_dict()["steps"])  # type: ignore[call-overload]
        probe.play(agent, None)
        assert all(map(torch.equal, agent.network.state_dict().values(), before))
        assert int(agent.state_dict()["steps"]) == counted  # type: ignore[call-overload]


def test_probe_of_a_gymnasium_env_plays_copies_of_its_own() -> None:
    """Each time step pays 1: returns are the numbers of time steps."""
    config = replace(CONFIG, env="gym:CartPole-v1")
    env = envs.make(config.env, 2, 1)
    before = env.reset().obs.clone()
    probe = Probe(config, env, 4 * 20)
    for advise in (None, advise_by_copy([0, 1, 0, 1, -1])):
        ((returns, steps, advised),), demonstrations = probe.play(student(env), advise)
        assert returns.number == probe.env.num_envs == 5
        assert returns.total == steps == len(demonstrations.obs)
        assert 5 * 8 <= steps <= 5 * probe.horizon
        assert bool(advised) == (advise is not None)
    assert env.state["obs"].equal(before)


def test_probe_in_self_play_is_against_the_opponent_of_today() -> None:
    """The opponent is made to play the last column that has room, once it has been refreshed."""
    config = replace(CONFIG, env_kwargs=("opponent=self", "refresh=1"))
    env: Any = envs.make("connect4", 4, 1, opponent="self", refresh=1)
    agent = student(env)
    opponent = SelfPlayOpponent(env.game.opponent, agent, "cpu")
    probe = Probe(config, env, 4 * MIN_HORIZON)
    last_columns = []
    for update in (0, 1):
        if update:
            opponent.refresh(update)
            opponent.epsilon.fill_(1e-9)
            env.game.opponent.policy = lambda obs, action_mask: (action_mask * torch.arange(1, 8)).argmax(1)
        ((returns, steps, _),), demonstrations = probe.play(agent, advise_by_copy([-1] * 4))
        assert (returns.number, len(demonstrations.obs)) == (4, steps)
        theirs = demonstrations.obs[:, 1].sum(1)  # discs in each column, (steps, 7)
        last_columns.append(float(theirs[:, 6].sum() / theirs.sum()))
    assert last_columns[0] < 0.4
    assert last_columns[1] > 0.5


def test_ranks_play_as_many_copies_each_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """63 episodes cannot be shared evenly between two ranks."""
    starts = []
    for number in range(2):
        monkeypatch.setattr(probe_module, "rank", lambda number=number: number)
        monkeypatch.setattr(probe_module, "world_size", lambda: 2)
        probe, _ = make_probe(Clock(), 63 * MIN_HORIZON)
        starts.append(range(probe.env.first_env_id, probe.env.first_env_id + probe.env.num_envs))
    assert starts == [range(31), range(31, 62)]
