"""Self-play: when the opponent becomes the student of today, and what a checkpoint keeps of it."""

import torch

import envs
from agents.base import Agent
from envs.base import Env
from training.config import Config, default_config, make_agent
from training.self_play import SelfPlayOpponent


def self_play(refresh: int) -> tuple[Env, Agent, SelfPlayOpponent]:
    """A student whose network changes by hand, in an env where it is its own opponent."""
    config: Config = default_config("ppo", "connect4")
    env = envs.make("connect4", 16, opponent="self", refresh=refresh)
    agent = make_agent(config, env)
    return env, agent, SelfPlayOpponent(env.game.opponent, agent, "cpu")


def change(agent: Agent) -> None:
    """Learn something."""
    with torch.no_grad():
        for parameter in agent.network.parameters():
            parameter.add_(0.1)


def is_student(opponent: SelfPlayOpponent) -> bool:
    """Whether the opponent is the student of today."""
    ours, theirs = opponent.agent.network.parameters(), opponent.frozen_copy.network.parameters()
    return all(one.equal(other) for one, other in zip(ours, theirs, strict=True))


def test_opponent_plays_at_random_until_the_first_refresh() -> None:
    env, agent, opponent = self_play(refresh=3)
    epsilons = []
    for update in range(1, 8):
        change(agent)
        opponent.refresh(update)
        epsilons.append(round(float(env.game.opponent.epsilon), 2))
        assert is_student(opponent) == (update % 3 == 0)
    assert epsilons == [1.0, 1.0, *[0.05] * 5]
    assert env.game.opponent.policy == opponent.frozen_copy.greedy


def test_opponent_is_loaded_as_it_was_saved() -> None:
    *_, opponent = self_play(refresh=1)
    assert opponent.state_dict() is None
    opponent.refresh(1)
    saved = {name: tensor.clone() for name, tensor in opponent.state_dict().items()}
    env, _, other = self_play(refresh=1)
    other.load_state_dict(None)
    assert float(env.game.opponent.epsilon) == 1.0
    other.load_state_dict(saved)
    assert all(tensor.equal(saved[name]) for name, tensor in other.frozen_copy.network.state_dict().items())
    assert round(float(env.game.opponent.epsilon), 2) == 0.05
