"""Evaluate a trained student alone, its tutor, or random play; record, play or match the student.

`python evaluate.py RUN` runs the student of a run's newest checkpoint without advice and without exploration.
`python evaluate.py RUN --record FILE` records an episode, `--play` lets you play against the student, and
`--against RUN` matches it with another run's student.
"""

import json
import math
import sys
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from agents import Agent
from envs.base import Env
from envs.rng import QUERY_STREAM, CounterRNG
from training.checkpoint import load_checkpoint
from training.cli import run_program
from training.config import EVALUATION_SEED, Config, evaluation_env, find_device, load_config, make_agent, make_env
from training.evaluation import Result, evaluate_student, random_policy, run_episodes, tutor_policy
from training.versus import match, play_in_terminal
from training.video import check_video_path, episode_images, write_video
from tutors import TutorConfig, make_tutor, open_advisor
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor, advisor_summary
from tutors.base import TutorError
from tutors.positions import NUM_ENVS, sample_positions, student_play
from tutors.prefill import DEADLINE_S, Fill, fill
from tutors.prompts import VIEWS, make_view
from tutors.report import Report, report
from tutors.store import AdviceStore, identity_of, without_password

EXAMPLES = """\
  python evaluate.py runs/NAME --policy tutor --episodes 2000
  python evaluate.py runs/NAME --record episode.gif
  python evaluate.py runs/NAME --against runs/OTHER
"""
MODE = tyro.conf.create_mutex_group(required=False)


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run directory. Only --report works without one."""
    policy: Literal["student", "tutor", "random"] = "student"
    """Policy to evaluate."""
    episodes: int = 1000
    """Number of episodes; with --against, in each role."""
    env: str | None = None
    """--report without RUN: environment; connect4 if not given."""
    env_kwargs: tuple[str, ...] = ()
    """Options of the environment that replace those of training, such as opponent=negamax:4."""
    record: Annotated[Path | None, MODE] = None
    """Record an episode of the student, with the tutor's advice, as an animation (.gif), a video (.mp4) or its last
    position (.png)."""
    play: Annotated[bool, MODE] = False
    """Play Connect Four against the student in the terminal."""
    against: Annotated[Path | None, MODE] = None
    """Run directory of a second student of Connect Four: match both students, each as the other's opponent."""
    report: Annotated[bool, MODE] = False
    """Compare the tutor's advice with an expert's, in all views of the env or in that of --view."""
    fill: Annotated[bool, MODE] = False
    """Ask a tutor about the positions that the run's student meets most often, and keep its answers in --advice-store.
    The tutor may be another than the run's."""
    seed: int = 0
    """--record, --play: number of the episode."""
    hint: bool = False
    """--play: show the tutor's advice."""
    positions: int = 1000
    """--report, --fill: number of distinct positions to ask about, in each view."""
    picture: Path | None = None
    """--report: file for the PNG; report.png in the run directory, or here without RUN, if not given."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda if available."""
    json: bool = False
    """Print the result as a line of JSON."""
    tutoring: Annotated[TutorConfig, tyro.conf.arg(name="tutor")] = field(default_factory=TutorConfig)

    def config(self) -> Config:
        """Return the run that this is about; without RUN, one of the game and the tutor that are named.

        Raises:
            ValueError: there is no run, or it would have to be another one.
        """
        named = self.tutoring
        if self.run is None:
            if not self.report:
                raise ValueError(
                    "which run? Name a run directory: evaluate.py RUN. Without one, only a tutor can be evaluated: "
                    "evaluate.py --policy tutor --report --env connect4 --tutor tiny"
                )
            return Config(env=self.env or Config.env, tutoring=named)
        config = load_config(self.run)
        if self.fill and self.env is None and named.tutor != "none":
            return replace(config, tutoring=named)
        if (
            self.env is not None
            or replace(named, tutor_url=(), tutor_key_file=None, advice_store=None) != TutorConfig()
        ):
            raise ValueError(
                f"the game and the tutor are those of {self.run}: beside it, of their flags only --env-kwargs, "
                "--tutor-url, --tutor-key-file and --advice-store can be given"
            )
        other = {
            name: getattr(named, name)
            for name in ("tutor_url", "tutor_key_file", "advice_store")
            if getattr(named, name)
        }
        return replace(config, tutoring=replace(config.tutoring, **other))


def evaluate(evaluation: Evaluation) -> Result:
    """Return how good a policy is.

    Raises:
        ValueError: there is no run, or an option is unknown.
        TutorError: the tutor is not available.
    """
    config = evaluation.config()
    assert evaluation.run is not None, "only a report works without a run"
    device = find_device(evaluation.device)
    env = evaluation_env(config, evaluation.episodes, device, evaluation.env_kwargs)
    rng = CounterRNG(config.seed + EVALUATION_SEED, torch.arange(evaluation.episodes, device=device), QUERY_STREAM)
    if evaluation.policy == "random":
        return run_episodes(random_policy(rng), env)
    if evaluation.policy == "student":
        return evaluate_student(saved_student(evaluation.run, config, device), env)
    with run_advisor(evaluation.run, config, env) as advisor:
        if advisor is None:
            raise ValueError(f"{evaluation.run} had no tutor")
        result = run_episodes(tutor_policy(advisor, rng), env)
        failures = advisor_summary(advisor.tutor.name, advisor.counters())["no_advice"]
        if failures:
            print_aside(f"no advice, random actions instead: {failures}")
        if not advisor.counts["answered"] + advisor.counts["stored"]:
            raise TutorError("the tutor did not answer a single question")
        return result


def run_advisor(run: Path, config: Config, env: Env) -> AbstractContextManager[Advisor | None]:
    """Return the advisor of a run, which waits for its tutor; None if the run had no tutor."""
    tutoring = replace(config.tutoring, tutor_optional=False, async_tutor=False)
    return open_advisor(tutoring, env.game, config.seed, run, str(env.device), print_aside)


def record(evaluation: Evaluation) -> str:
    """Record an episode of the student, and return what was written.

    Raises:
        ValueError: the env cannot be drawn, or the file cannot be written.
        TutorError: the tutor is not available.
    """
    config, path = evaluation.config(), evaluation.record
    assert evaluation.run is not None
    assert path is not None
    check_video_path(path)
    env = evaluation_env(replace(config, seed=config.seed + evaluation.seed), 1, "cpu", evaluation.env_kwargs)
    agent = saved_student(evaluation.run, config, "cpu")
    with run_advisor(evaluation.run, config, env) as advisor:
        images = episode_images(agent, env, advisor)
    write_video(images, path)
    return f"{path}: {'the last of ' if path.suffix == '.png' else ''}{len(images)} positions"


def play_against_student(evaluation: Evaluation) -> None:
    """Play Connect Four against the student.

    Raises:
        ValueError: the student has learned another game.
        TutorError: a hint is asked for and the tutor is not available.
    """
    config = evaluation.config()
    assert evaluation.run is not None
    agent = connect4_student(evaluation.run, config)
    if not evaluation.hint:
        play_in_terminal(agent, evaluation.seed, None)
        return
    with run_advisor(evaluation.run, config, evaluation_env(config, 1, "cpu")) as advisor:
        play_in_terminal(agent, evaluation.seed, advisor)


def match_students(evaluation: Evaluation) -> Result:
    """Return the mean return of the run's student against another run's.

    Raises:
        ValueError: one of them has learned another game.
    """
    assert evaluation.run is not None
    assert evaluation.against is not None
    runs = (evaluation.run, evaluation.against)
    configs = [load_config(run) for run in runs]
    first, second = (connect4_student(run, config) for run, config in zip(runs, configs, strict=True))
    seed, other_seed = (config.seed + EVALUATION_SEED for config in configs)
    return match(first, second, evaluation.episodes, (seed, other_seed))


def connect4_student(run: Path, config: Config) -> Agent:
    """Return the student of a run of Connect Four."""
    if config.env != "connect4":
        raise ValueError(f"the student of {run} has learned {config.env}; --play and --against require connect4")
    return saved_student(run, config, "cpu")


def saved_student(run: Path, config: Config, device: str) -> Agent:
    """Return the student of a run's newest checkpoint."""
    agent = make_agent(config, make_env(config, device))
    agent.load_state_dict(load_checkpoint(run / "checkpoints", device)["agent"])
    return agent


def fill_for(evaluation: Evaluation) -> str:
    """Ask a tutor about the positions that a run's student meets most often, and return what it came to.

    Raises:
        ValueError: there is no run, or no store to fill.
        TutorError: the tutor cannot be had.
    """
    config = evaluation.config()
    if evaluation.run is None or config.tutoring.advice_store is None:
        raise ValueError("what is filled, and for whose student? evaluate.py RUN --fill --advice-store FILE")
    trained = load_config(evaluation.run)
    agent = saved_student(evaluation.run, trained, "cpu")
    options = (*config.env_kwargs, *evaluation.env_kwargs)
    patient = replace(config.tutoring, tutor_deadline=max(config.tutoring.tutor_deadline, DEADLINE_S))
    return fill(Fill(config.env, options, evaluation.positions, config.seed, patient), student_play(agent.greedy))


def reports(evaluation: Evaluation) -> list[Report]:
    """Return what the tutor's advice is worth, in each view of the game; of a run, in the view that it uses.

    Answers are kept, and found again, only in the store of --advice-store: to ask afresh is what a report is for.

    Raises:
        ValueError: there is no tutor to report on, or a name is not known.
        TutorError: the tutor cannot be had.
    """
    if evaluation.policy != "tutor":
        raise ValueError(f"--report is about a tutor, not about {evaluation.policy}: add --policy tutor")
    if evaluation.positions < 1:
        raise ValueError(f"positions is {evaluation.positions}; it must be at least 1")
    config = evaluation.config()
    tutoring = replace(config.tutoring, tutor_optional=False, async_tutor=False)
    if tutoring.tutor == "none":
        raise ValueError(f"{evaluation.run} had no tutor" if evaluation.run else "whose advice? Name it with --tutor")
    seed = config.seed + EVALUATION_SEED
    env = evaluation_env(config, NUM_ENVS, find_device(evaluation.device), evaluation.env_kwargs)
    alone = tutoring.view is not None or evaluation.run is not None
    names = [tutoring.view] if alone else list(VIEWS.get(env.spec.name, {})) or [None]
    log = picture_of(evaluation).parent / "vllm.log"
    found = []
    with ExitStack() as stack:  # one for all views: a server that is started for the first serves the others
        for name in names:
            view = make_view(env.game, name, not tutoring.no_symmetry)
            if not view.has_expert:
                raise ValueError(f"the view {view.name} of {view.game} has no expert to compare a tutor with")
            tutor = make_tutor(tutoring, view, env.spec, config.seed, log, print_aside, stack)
            store = None
            if tutoring.advice_store is not None:
                store = AdviceStore(tutoring.advice_store, identity_of(env.spec, view, tutor.identity))
                stack.callback(store.close)
            positions = sample_positions(env, view, evaluation.positions, seed)
            table = AdviceTable(env.spec.num_actions, math.inf, evaluation.positions)
            found.append(report(Advisor(view, tutor, table, store), positions, tutoring.tutor_depth))
    return found


def picture_of(evaluation: Evaluation) -> Path:
    """Return where a report's picture goes.

    Raises:
        ValueError: there is no such folder. Found out before a question is paid for.
    """
    path = evaluation.picture or (evaluation.run or Path()) / "report.png"
    if not path.parent.is_dir():
        raise ValueError(f"the picture {path} cannot be written: there is no folder {path.parent}")
    return path


def show_reports(evaluation: Evaluation) -> None:
    """Print a report's measures, and write its picture."""
    from tutors.report_plots import draw, letters_table, measures_table  # matplotlib takes a second to load

    told, picture = reports(evaluation), picture_of(evaluation)
    tutor = without_password(evaluation.config().tutoring.tutor)
    if evaluation.json:
        print(json.dumps({"policy": "tutor", "tutor": tutor, "reports": [one.as_json() for one in told]}))
    else:
        console = Console(highlight=False)
        console.print(measures_table(told, tutor), letters_table(told))
    draw(told, tutor, picture)
    print_aside(f"the picture is in {picture}")


def print_aside(line: str) -> None:
    """Print progress on stderr, where it does not mix with the result."""
    print(line, file=sys.stderr)


def main(evaluation: Evaluation) -> None:
    """Do what the options say, and print the result."""
    if evaluation.report:
        show_reports(evaluation)
    elif evaluation.fill:
        print(fill_for(evaluation))
    elif evaluation.record is not None:
        print(record(evaluation))
    elif evaluation.play:
        play_against_student(evaluation)
    elif evaluation.against is not None:
        show(f"{evaluation.run} against {evaluation.against}", match_students(evaluation), evaluation.json)
    else:
        show(evaluation.policy, evaluate(evaluation), evaluation.json)


def show(policy: str, result: Result, as_json: bool) -> None:
    """Print the mean return of a policy."""
    if as_json:
        values = {name: None if math.isnan(value) else value for name, value in asdict(result).items()}
        print(json.dumps({"policy": policy, **values}))
    else:
        print(f"{policy}: mean return {result}")


if __name__ == "__main__":
    run_program(main, Evaluation, description=__doc__, examples=EXAMPLES)
