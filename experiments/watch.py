"""Students to look at: a game as a picture, a match of two, or a game against one.

`python -m experiments.watch record RUN game.mp4`, `… match RUN OTHER` or `… play RUN`.
"""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image, ImageDraw

import envs
from agents import Agent
from envs.base import Env
from envs.opponents import SelfPlay
from envs.rendering import CELL, DRAWINGS
from evaluate import saved_student
from training.cli import run_program
from training.config import EVALUATION_SEED, Config, evaluation_env, load_config
from training.evaluation import Result, play, student
from training.video import INK, PAPER, check_film, positions, write_film
from tutors import TutorConfig, open_advisor
from tutors.advisor import Advisor

BAR = (66, 110, 180)
Run = Annotated[Path, tyro.conf.Positional]


@dataclass(frozen=True)
class Record:
    """A game of a student alone, as a film (.mp4, .gif) or its last position (.png), the tutor's advice beside it."""

    run: Run
    """The run's folder."""
    out: Run
    """Where the picture goes."""
    seed: int = 0
    """Which game."""
    tutor_url: tuple[str, ...] = ()
    """Where the run's tutor answers."""


@dataclass(frozen=True)
class Match:
    """Two students of Connect Four, each as the other's opponent."""

    run: Run
    """The first one's run."""
    other: Run
    """The second one's."""
    episodes: int = 1000
    """Games each way."""


@dataclass(frozen=True)
class Play:
    """You against a student of Connect Four, in the terminal."""

    run: Run
    """Its run."""
    hint: bool = False
    """Show what the run's tutor would do."""
    seed: int = 0
    """Who begins, and what the student's rare slips are."""


def loaded(run: Path) -> tuple[Config, Agent]:
    """Return what a run was told, and its student.

    Raises:
        ValueError: there is no run, or it has no checkpoint.
    """
    config = load_config(run)
    return config, saved_student(run, config, "cpu")


@contextmanager
def tutor_of(run: Path, config: Config, env: Env, told: TutorConfig) -> Iterator[Advisor | None]:
    """Yield the desk of a run's tutor; None where it had none."""
    quiet = replace(told, tutor_optional=False, async_tutor=False)
    with open_advisor(quiet, env.game, config.seed, run, "cpu", lambda line: print(line, file=sys.stderr)) as desk:
        yield desk


@contextmanager
def to_file(path: Path) -> Iterator[None]:
    """Raise ValueError if a picture cannot be written there."""
    try:
        yield
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{path} cannot be written: {error}") from error


def record(told: Record) -> None:
    """Play a game and write its picture.

    Raises:
        ValueError: nobody has said how the game is drawn, or what is asked for is no film or cannot be written.
    """
    check_film(told.out)
    config, agent = loaded(told.run)
    env = evaluation_env(replace(config, seed=config.seed + told.seed), 1, "cpu")
    if env.spec.name not in DRAWINGS:
        raise ValueError(f"nobody has said how {env.spec.name} is drawn: see envs/rendering.py")
    states, frames, everybody = positions(agent, env), [], torch.ones(1, dtype=torch.bool)
    with tutor_of(told.run, config, env, replace(config.tutoring, tutor_url=told.tutor_url)) as desk:
        for at, state in enumerate(states):
            asked = desk is not None and at < len(states) - 1
            advised = desk.advise(state, everybody).probs[0] if asked else None
            frames.append(frame(env, states[: at + 1], advised, desk))
    with to_file(told.out):
        write_film(frames, told.out)
    print(f"{told.out}: {'the last of ' if told.out.suffix == '.png' else ''}{len(states)} positions")


def frame(env: Env, states: list, advised: torch.Tensor | None, desk: Advisor | None) -> Image.Image:
    """Return a position as a picture, beside it a bar for each action as long as the tutor's belief in it."""
    board = Image.fromarray(DRAWINGS[env.spec.name].image(env.spec, states))
    if desk is None:
        return board
    image = Image.new("RGB", (board.width + 5 * CELL, max(board.height, env.spec.num_actions * CELL)), PAPER)
    image.paste(board)
    pen = ImageDraw.Draw(image)
    for action, label in enumerate(desk.view.labels if advised is not None else ()):
        left, top, share = board.width + CELL, action * CELL, float(advised[action])
        pen.text((left - CELL // 2, top + CELL // 2), label, fill=INK, font_size=CELL // 2, anchor="mm")
        pen.rectangle((left, top + 6, left + int(3.5 * CELL * share), top + CELL - 6), fill=BAR)
    return image


def match(told: Match) -> Result:
    """Return what the first student wins a game, the mean of both ways: each is the one that slips now and then, once.

    Raises:
        ValueError: one of them has not learned Connect Four.
    """
    sides = [loaded(run) for run in (told.run, told.other)]
    ways = ((0, 1), (1, 0))
    games = [against(sides[other], told.episodes, sides[one][0].seed + EVALUATION_SEED) for one, other in ways]
    results = [play(student(sides[one][1]), env) for (one, _), env in zip(ways, games, strict=True)]
    error = math.hypot(*(one.stderr for one in results)) / 2
    return Result((results[0].mean_return - results[1].mean_return) / 2, error, 2 * told.episodes)


def against(side: tuple[Config, Agent], num_envs: int, seed: int) -> Env:
    """Return games of Connect Four in which a student is the opponent."""
    config, agent = side
    if config.env != "connect4":
        raise ValueError(f"the student of {config.run_dir} has learned {config.env}: matches are of connect4")
    env = envs.make("connect4", num_envs, seed, opponent="self")
    opponent = env.game.opponent
    assert isinstance(opponent, SelfPlay)
    opponent.policy = agent.greedy
    return env


def by_hand(told: Play, read: Callable[[str], str] = input) -> None:
    """Play one game in the terminal; an empty line, q or Ctrl-D ends it."""
    config, agent = loaded(told.run)
    env = against((config, agent), 1, told.seed)
    step, states = env.reset(), []
    with tutor_of(told.run, config, env, config.tutoring if told.hint else TutorConfig()) as desk:
        while True:
            states.append(step.state)
            print(f"\n{DRAWINGS['connect4'].text(env.spec, states).split(chr(10) * 2)[0]}\n1 2 3 4 5 6 7   you are x")
            if desk is not None:
                probs = desk.advise(step.state, torch.ones(1, dtype=torch.bool)).probs[0].tolist()
                print(
                    "the tutor: " + "  ".join(f"{at} {share:.0%}" for at, share in enumerate(probs, 1) if share >= 0.01)
                )
            try:
                said = read("column: ").strip()
            except EOFError:  # Ctrl-D
                said = "q"
            if said in ("", "q"):
                return
            if said not in tuple("1234567") or not step.action_mask[0, int(said) - 1]:
                print("a column that is not full, 1 to 7; q to end")
                states.pop()
                continue
            step = env.step(torch.tensor([int(said) - 1]))
            if step.terminated | step.truncated:
                print(f"\n{DRAWINGS['connect4'].text(env.spec, [step.final_state])[:83]}")
                print({1: "you win", 0: "a draw", -1: "the student wins"}[int(step.reward)])
                return


def main(told: Record | Match | Play) -> None:
    """Do what was asked for."""
    if isinstance(told, Record):
        record(told)
    elif isinstance(told, Match):
        print(f"{told.run} against {told.other}: {match(told)}")
    else:
        by_hand(told)


if __name__ == "__main__":
    run_program(main, Record | Match | Play, description=__doc__)
