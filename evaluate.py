"""Evaluate a trained student alone, its tutor, or random play; record, play or match the student.

`python evaluate.py RUN` runs the student of a run's newest checkpoint without advice and without exploration.
`python evaluate.py RUN --record FILE` records an episode, `--play` lets you play against the student, and
`--against RUN` matches it with another run's student.
"""

if __name__ == "__main__":
    from training.interrupts import exit_on_interrupt  # before PyTorch is imported

    exit_on_interrupt()

import json
import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from annotated_types import Interval

from agents import Agent
from envs.base import Env
from envs.rendering import DRAWINGS
from envs.rng import QUERY_STREAM, CounterRNG
from training.cli import run_program
from training.config import EVALUATION_SEED, Config, evaluation_env, find_device, load_config
from training.demonstrations import write_demonstrations
from training.evaluation import (
    Policy,
    Result,
    describe_game,
    evaluate_student,
    random_policy,
    run_episodes,
    student_policy,
    tutor_policy,
)
from training.flag_effects import Requirement, check_requirements
from training.play import play_in_terminal
from training.reserved_stdout import emit
from training.student import load_agent
from training.versus import match, student_as_opponent
from training.video import check_video_path, episode_images, write_video
from tutors import open_advisor
from tutors.advisor import Advisor, advisor_summary
from tutors.base import TutorError
from tutors.display import printable_lines
from tutors.status_lines import StatusLines

EXAMPLES = """\
  python evaluate.py runs/NAME --policy tutor --episodes 2000
  python evaluate.py runs/NAME --record episode.gif
  python evaluate.py runs/NAME --policy tutor --minari connect4/tutor-v0
  python evaluate.py runs/NAME --against runs/OTHER
"""
MAX_SCALE = 8  # of the pictures of a recorded episode
MATCHED = "+1: the first one wins, −1: the second one"
MODE = tyro.conf.create_mutex_group(required=False)


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory."""
    policy: Literal["student", "tutor", "random"] = "student"
    """Policy to evaluate."""
    episodes: Annotated[int, Interval(ge=1, le=10**7)] = 1000
    """Number of episodes; with --against, in each role."""
    env_kwargs: tuple[str, ...] = ()
    """Options of the environment that replace those of training, such as opponent=negamax:4."""
    record: Annotated[Path | None, MODE] = None
    """Record an episode of the student, with the tutor's advice, as an animation (.gif), a video (.mp4) or its last
    position (.png)."""
    play: Annotated[bool, MODE] = False
    """Play in the terminal: Connect Four against the student, Snake and Blackjack beside it."""
    minari: Annotated[str | None, MODE] = None
    """Keep the episodes as a dataset of Minari, under such a name as connect4/tutor-v0: demonstrations for others."""
    against: Annotated[Path | None, MODE] = None
    """Run directory of a second student of Connect Four: match both students, each as the other's opponent."""
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 0
    """--record, --play: number of the episode."""
    scale: Annotated[int, Interval(ge=1, le=MAX_SCALE)] = 2
    """--record: size of the pictures, from 1 to 8."""
    hint: bool = False
    """--play: show the tutor's advice."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda if available."""
    json: bool = False
    """Print the result as a line of JSON."""
    tutor_url: tuple[str, ...] = ()
    """URLs of the servers of the run's tutor; those of training if not given."""
    tutor_key_file: Path | None = None
    """File with the servers' API key; that of training if not given."""
    advice_store: str | None = None
    """Advice store, a file or a database URL; that of training if not given."""

    def config(self) -> Config:
        """Return the run's config, with the tutor's servers and store as given here.

        Raises:
            ValueError: there is no run.
        """
        config = load_config(self.run)
        tutoring = replace(
            config.tutoring,
            tutor_url=self.tutor_url or config.tutoring.tutor_url,
            tutor_key_file=self.tutor_key_file or config.tutoring.tutor_key_file,
            advice_store=self.advice_store or config.tutoring.advice_store,
        )
        return replace(config, tutoring=tutoring)


def evaluate(evaluation: Evaluation) -> Result:
    """Return how good a policy is.

    Raises:
        ValueError: there is no run, or an option is unknown.
        TutorError: the tutor is not available.
    """
    config = evaluation.config()
    device = find_device(evaluation.device)
    env = evaluation_env(config, evaluation.episodes, device, evaluation.env_kwargs)
    rng = CounterRNG(config.seed + EVALUATION_SEED, torch.arange(evaluation.episodes, device=device), QUERY_STREAM)

    def run(policy: Policy) -> Result:
        if evaluation.minari is None:
            return run_episodes(policy, env)
        options = replace(config, env_kwargs=(*config.env_kwargs, *evaluation.env_kwargs))
        return write_demonstrations(policy, env, options, evaluation.minari, evaluation.policy)

    if evaluation.policy == "random":
        return run(random_policy(rng))
    if evaluation.policy == "student":
        agent = load_agent(evaluation.run, config, device)
        return evaluate_student(agent, env) if evaluation.minari is None else run(student_policy(agent))
    with run_advisor(evaluation.run, config, env) as advisor:
        if advisor is None:
            raise ValueError(f"{evaluation.run} had no tutor")
        result = run(tutor_policy(advisor, rng))
        counters = advisor.counters()
        failures = advisor_summary(advisor.tutor.name, counters)["no_advice"]
        if failures:
            print_aside(f"no advice, random actions instead: {failures}")
        if not any(counters.get(source) for source in ("answered", "stored", "hits")):
            raise TutorError("the tutor gave advice about none of the positions")
        return result


def run_advisor(run: Path, config: Config, env: Env) -> AbstractContextManager[Advisor | None]:
    """Return the advisor of a run, which waits for its tutor; None if the run had no tutor."""
    tutoring = replace(config.tutoring, tutor_optional=False, async_tutor=False)
    return open_advisor(tutoring, env.game, config.seed, run, str(env.device), StatusLines(print_aside))


def record(evaluation: Evaluation) -> str:
    """Record an episode of the student, and return what was written.

    Raises:
        ValueError: the env cannot be drawn, or the file cannot be written.
        TutorError: the tutor is not available.
    """
    config, path = evaluation.config(), evaluation.record
    assert path is not None
    check_video_path(path)
    env = evaluation_env(replace(config, seed=config.seed + evaluation.seed), 1, "cpu", evaluation.env_kwargs)
    agent = load_agent(evaluation.run, config, "cpu")
    with run_advisor(evaluation.run, config, env) as advisor:
        images = episode_images(agent, env, advisor, evaluation.scale)
    write_video(images, path)
    return f"{path}: {'the last of ' if path.suffix == '.png' else ''}{len(images)} positions"


def play(evaluation: Evaluation) -> None:
    """Let a person play the run's game: against its student, or beside it.

    Raises:
        ValueError: the game cannot be drawn.
        TutorError: a hint is asked for and the tutor is not available.
    """
    config = evaluation.config()
    seeded = replace(config, seed=config.seed + evaluation.seed)
    env = evaluation_env(seeded, 1, "cpu", evaluation.env_kwargs)
    if env.spec.name not in DRAWINGS:
        raise ValueError(f"{config.env} cannot be drawn, so it cannot be played: there are {', '.join(DRAWINGS)}")
    agent = load_agent(evaluation.run, config, "cpu")
    if config.env == "connect4":
        env = student_as_opponent(agent, 1, evaluation.seed)
    if not evaluation.hint:
        play_in_terminal(agent, env, None)
        return
    with run_advisor(evaluation.run, config, env) as advisor:
        if advisor is None:
            raise ValueError(f"--hint: {evaluation.run} had no tutor")
        play_in_terminal(agent, env, advisor)


def match_students(evaluation: Evaluation) -> Result:
    """Return the mean return of the run's student against another run's.

    Raises:
        ValueError: one of them has learned another game.
    """
    assert evaluation.against is not None
    runs = (evaluation.run, evaluation.against)
    configs = [load_config(run) for run in runs]
    first, second = (connect4_student(run, config) for run, config in zip(runs, configs, strict=True))
    seed, other_seed = (config.seed + EVALUATION_SEED for config in configs)
    return match(first, second, evaluation.episodes, (seed, other_seed))


def connect4_student(run: Path, config: Config) -> Agent:
    """Return the student of a run of Connect Four."""
    if config.env != "connect4":
        raise ValueError(f"the student of {run} has learned {config.env}; --against requires connect4")
    return load_agent(run, config, "cpu")


def print_aside(line: str) -> None:
    """Print progress on stderr, where it does not mix with the result."""
    print(printable_lines(line), file=sys.stderr)


def main(evaluation: Evaluation) -> None:
    """Do what the options say, and print the result."""
    if evaluation.record is not None:
        print(printable_lines(record(evaluation)))
    elif evaluation.play:
        play(evaluation)
    elif evaluation.against is not None:
        title = f"{evaluation.run} against {evaluation.against}"
        show(title, match_students(evaluation), evaluation.json, f"Connect Four, each student in both roles; {MATCHED}")
    else:
        result = evaluate(evaluation)
        show(evaluation.policy, result, evaluation.json, "" if evaluation.json else game_of(evaluation))


def game_of(evaluation: Evaluation) -> str:
    """Return what is played, against whom, and what a return counts."""
    return describe_game(evaluation_env(evaluation.config(), 1, "cpu", evaluation.env_kwargs))


def show(policy: str, result: Result, as_json: bool, game: str) -> None:
    """Print the mean return of a policy, below the game that it played."""
    if as_json:
        values = {name: None if math.isnan(value) else value for name, value in asdict(result).items()}
        emit(json.dumps({"policy": policy, **values}))
    else:
        print(f"{game}\n{policy}: mean return {result}")


def is_measured(evaluation: Evaluation) -> bool:
    """Return whether returns are measured; else an episode is recorded or played."""
    return evaluation.record is None and not evaluation.play


REQUIREMENTS = (
    Requirement(["seed"], lambda options: not is_measured(options), "it is of --record and --play"),
    Requirement(["scale"], lambda options: options.record is not None, "it is of --record"),
    Requirement(["hint"], lambda options: options.play, "it is of --play"),
    Requirement(["episodes", "json"], is_measured, "leave out --record and --play"),
    Requirement(
        ["policy", "device"],
        lambda options: is_measured(options) and options.against is None,
        "leave out --record, --play and --against",
    ),
    Requirement(["env_kwargs"], lambda options: options.against is None, "leave out --against"),
    Requirement(
        ["tutor_url", "tutor_key_file", "advice_store"],
        lambda options: options.policy == "tutor" or options.record is not None or options.hint,
        "no tutor is asked: add --policy tutor, --record or --hint",
    ),
)


def check_flags(evaluation: Evaluation, args: Sequence[str]) -> None:
    """Raise ValueError for a flag that has no effect."""
    check_requirements(evaluation, args, Evaluation, REQUIREMENTS)


if __name__ == "__main__":
    run_program(main, Evaluation, description=__doc__, examples=EXAMPLES, check=check_flags)
