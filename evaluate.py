"""How good a student is alone; for comparison its tutor alone, and random play.

`python evaluate.py RUN` plays the student of a run's newest checkpoint without advice or exploration.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from agents import Agent
from agents.checkpoint import load_checkpoint
from envs.base import Env, Step
from envs.blackjack import Blackjack
from envs.exact import value_of_greedy
from envs.luck import ADVISING, Luck, pick
from run import EVALUATION_SEED, config_from_json, evaluation_env, find_device, make_agent, make_env, run_program
from tutors import open_desk
from tutors.base import TutorError
from tutors.desk import Desk

Policy = Callable[[Env, Step], Tensor]  # the actions (N,) to take in the games as they stand


@dataclass(frozen=True)
class Result:
    """The mean return of a number of games; of none where it could be worked out without playing."""

    mean_return: float
    stderr: float
    episodes: int

    def interval(self) -> tuple[float, float]:
        """The mean's 95 % interval, by the normal approximation."""
        return self.mean_return - 1.96 * self.stderr, self.mean_return + 1.96 * self.stderr

    def __str__(self) -> str:
        if not self.episodes:
            return f"{self.mean_return:+.6f}, exactly"
        low, high = self.interval()
        return f"{self.mean_return:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}], {self.episodes:,} games"


def play(policy: Policy, env: Env) -> Result:
    """Play each copy's first game to its end. One game a copy: many short games cannot crowd out long ones."""
    step = env.reset()
    returns = torch.zeros(env.num_envs, device=env.device)
    playing = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    while playing.any():
        step = env.step(policy(env, step))
        returns += step.reward * playing
        playing &= ~(step.terminated | step.truncated)
    spread = returns.std().item() if env.num_envs > 1 else math.nan
    return Result(returns.mean().item(), spread / math.sqrt(env.num_envs), env.num_envs)


def student(agent: Agent) -> Policy:
    """The student alone: no advice, no exploration."""
    return lambda env, step: agent.greedy(step.obs, step.legal)


def judge(agent: Agent, env: Env) -> Result:
    """Return how good the student is alone: by playing, or exactly where the game is Blackjack."""
    if isinstance(env.game, Blackjack):
        return Result(value_of_greedy(env.game, agent.greedy, env.device), 0.0, 0)
    return play(student(agent), env)


def tutor_alone(desk: Desk, luck: Luck) -> Policy:
    """The tutor's best action everywhere; a random legal one where it is silent."""

    def policy(env: Env, step: Step) -> Tensor:
        advice = desk.advise(env.state, torch.ones_like(step.terminated))
        return torch.where(advice.given, advice.probs.argmax(1), random_play(luck)(env, step))

    return policy


def random_play(luck: Luck) -> Policy:
    """All legal actions equally likely."""
    return lambda env, step: pick(step.legal, luck.draw(env.steps, 1)[:, 0])


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's folder."""
    who: Literal["student", "tutor", "random"] = "student"
    """Who plays."""
    env_kwargs: tuple[str, ...] = ()
    """Options of the game that take the place of those of training, such as opponent=negamax:4."""
    episodes: int = 1000
    """Games to play."""
    tutor_url: tuple[str, ...] = ()
    """Where the tutor's servers are; as in training if not given."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    json: bool = False
    """Print one line of JSON."""


def evaluate(evaluation: Evaluation) -> Result:
    """Return how well whoever it is does.

    Raises:
        ValueError: the run's folder holds no run, or a name is not known.
        TutorError: the tutor cannot be had.
    """
    path = evaluation.run / "config.json"
    if not path.is_file():
        raise ValueError(f"{evaluation.run} is not a run: there is no {path}")
    config = config_from_json(path.read_text())
    device = find_device(evaluation.device)
    env = evaluation_env(config, evaluation.episodes, device, evaluation.env_kwargs)
    luck = Luck(config.seed + EVALUATION_SEED, torch.arange(evaluation.episodes, device=device), ADVISING)
    if evaluation.who == "random":
        return play(random_play(luck), env)
    if evaluation.who == "student":
        agent = make_agent(config, make_env(config, device))
        agent.load_state_dict(load_checkpoint(evaluation.run / "checkpoints", device)["agent"])
        return judge(agent, env)
    url = evaluation.tutor_url or config.tutoring.tutor_url
    wanted = replace(config.tutoring, tutor_url=url, tutor_optional=False)
    with open_desk(wanted, env.game, config.seed, evaluation.run, device, say_aside) as desk:
        if desk is None:
            raise ValueError(f"{evaluation.run} had no tutor")
        result = play(tutor_alone(desk, luck), env)
        told = desk.summary()
        if told["silent"]:
            print(f"the tutor was silent, and random play took its place: {told['silent']}", file=sys.stderr)
        if not desk.counts["answered"] + desk.counts["stored"]:
            raise TutorError("the tutor did not answer a single question")
        return result


def say_aside(line: str) -> None:
    """Show progress where it does not mix with the result."""
    print(line, file=sys.stderr)


def main(evaluation: Evaluation) -> None:
    """Print the result."""
    result = evaluate(evaluation)
    if evaluation.json:
        print(json.dumps({"who": evaluation.who, **asdict(result)}))
    else:
        print(f"{evaluation.who}: mean return {result}")


if __name__ == "__main__":
    run_program(main, Evaluation, description=__doc__)
