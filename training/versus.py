"""A student of Connect Four against another student, or against a person in the terminal."""

import math
from collections.abc import Callable

import torch

import envs
from agents import Agent
from envs.base import Env
from envs.connect4 import Connect4
from envs.opponents import SelfPlay
from envs.rendering import DRAWINGS
from training.evaluation import Result, mean_interval, run_episodes, student_policy
from tutors.advisor import Advisor

OUTCOMES = {1: "you win", 0: "a draw", -1: "the student wins"}


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


def play_in_terminal(agent: Agent, seed: int, advisor: Advisor | None, read: Callable[[str], str] = input) -> None:
    """Play one episode against a person; an empty line, q or Ctrl-D ends it. With an advisor, show its advice."""
    env = student_as_opponent(agent, 1, seed)
    step, states = env.reset(), []
    while not step.terminated:
        states.append(step.state)
        board = DRAWINGS["connect4"].text(env.spec, states).split("\n\n")[0]
        print(f"\n{board}\n1 2 3 4 5 6 7   you are x")
        if advisor is not None:
            print(advice_line(advisor, step.state))
        column = read_column(step.action_mask[0], read)
        if column is None:
            return
        step = env.step(torch.tensor([column]))
    board = DRAWINGS["connect4"].text(env.spec, [step.final_state]).split("\n\n")[0]
    print(f"\n{board}\n{OUTCOMES[int(step.reward)]}")


def advice_line(advisor: Advisor, state: dict[str, torch.Tensor]) -> str:
    """Return the tutor's advice in a line: columns with at least 1 %."""
    probs = advisor.advise(state, torch.ones(1, dtype=torch.bool)).probs[0].tolist()
    return "tutor: " + "  ".join(f"{column} {share:.0%}" for column, share in enumerate(probs, 1) if share >= 0.01)


def read_column(action_mask: torch.Tensor, read: Callable[[str], str]) -> int | None:
    """Return the column, from 0, that a person names, or None to quit; ask again after anything else."""
    while True:
        try:
            text = read("column: ").strip()
        except EOFError:  # Ctrl-D
            return None
        if text in ("", "q"):
            return None
        if text in tuple("1234567") and action_mask[int(text) - 1]:
            return int(text) - 1
        print("enter a column that is not full, 1 to 7, or q to quit")
