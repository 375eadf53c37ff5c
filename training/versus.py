"""A student of Connect Four as another player's opponent: another student's, or a person's."""

import math

import envs
from agents import Agent
from envs.base import Env
from envs.connect4 import Connect4
from envs.opponents import SelfPlay
from training.evaluation import Result, mean_interval, run_episodes, student_policy


def student_as_opponent(agent: Agent, num_envs: int, seed: int) -> Env:
    """Return copies of Connect Four in which a student is the opponent."""
    env = envs.make("connect4", num_envs, seed, opponent="self")
    opponent = env.game.opponent
    assert isinstance(opponent, SelfPlay)
    opponent.policy = agent.greedy
    return env


def match(first: Agent, second: Agent, episodes: int, seeds: tuple[int, int]) -> Result:
    """Return the mean return of `first` against `second`, over `episodes` in each role.

    The env's opponent takes a random action now and then; each student has that role once.
    """
    forth = run_episodes(student_policy(first), student_as_opponent(second, episodes, seeds[0]))
    back = run_episodes(student_policy(second), student_as_opponent(first, episodes, seeds[1]))
    mean, stderr = (forth.mean_return - back.mean_return) / 2, math.hypot(forth.stderr, back.stderr) / 2
    low, high = mean_interval(mean, stderr, 2 * episodes, Connect4.spec.return_range)
    return Result(mean, stderr, 2 * episodes, low, high)
