"""How good a student is alone; for comparison its tutor alone, and random play.

`python evaluate.py RUN` plays the student of a run's newest checkpoint without advice or exploration.
`python evaluate.py --who tutor --report --env connect4 --tutor tiny` needs no run: it says what advice is worth.
`python evaluate.py RUN --fill --advice-store FILE` asks about what a run's student meets most often.
"""

import json
import math
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console

from agents import Agent
from envs.rng import QUERY_STREAM, CounterRNG
from training.checkpoint import load_checkpoint
from training.cli import run_program
from training.config import EVALUATION_SEED, Config, evaluation_env, find_device, load_config, make_agent, make_env
from training.evaluation import Result, judge, play, random_play, tutor_alone
from tutors import TutorConfig, make_tutor, open_advisor
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor, advisor_summary
from tutors.base import TutorError
from tutors.positions import NUM_ENVS, sample_positions, student_play
from tutors.prefill import DEADLINE_S, Fill, fill
from tutors.prompts import VIEWS, make_view
from tutors.report import Report, report
from tutors.store import AdviceStore, identity_of, without_password


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """A run's folder; only --report can do without."""
    who: Literal["student", "tutor", "random"] = "student"
    """Who plays."""
    env: str | None = None
    """--report without RUN: the game; connect4 if not given."""
    env_kwargs: tuple[str, ...] = ()
    """Options of the game that take the place of those of training, such as opponent=negamax:4."""
    episodes: int = 1000
    """Games to play."""
    report: bool = False
    """Play nothing: compare the tutor's answers with an expert's, in all views of the game or in that of --view."""
    fill: bool = False
    """Play for positions alone: ask a tutor about those that the run's student meets most often, and keep its answers
    in --advice-store. The tutor may be another than the run's."""
    positions: int = 1000
    """--report, --fill: different positions to ask about, in each view."""
    picture: Path | None = None
    """--report: where the PNG goes; report.png in the run's folder, or here without RUN, if not given."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    json: bool = False
    """Print one line of JSON."""
    tutoring: Annotated[TutorConfig, tyro.conf.arg(name="")] = field(default_factory=TutorConfig)

    def config(self) -> Config:
        """Return the run that this is about; without RUN, one of the game and the tutor that are named.

        Raises:
            ValueError: there is no run, or it would have to be another one.
        """
        named = self.tutoring
        if self.run is None:
            if not self.report:
                raise ValueError(
                    "whose student? Name a run's folder: evaluate.py RUN. Without one a tutor can be judged: "
                    "evaluate.py --who tutor --report --env connect4 --tutor tiny"
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
    """Return how well whoever it is does.

    Raises:
        ValueError: the run's folder holds no run, or a name is not known.
        TutorError: the tutor cannot be had.
    """
    config = evaluation.config()
    assert evaluation.run is not None, "only a report can do without a run"
    device = find_device(evaluation.device)
    env = evaluation_env(config, evaluation.episodes, device, evaluation.env_kwargs)
    rng = CounterRNG(config.seed + EVALUATION_SEED, torch.arange(evaluation.episodes, device=device), QUERY_STREAM)
    if evaluation.who == "random":
        return play(random_play(rng), env)
    if evaluation.who == "student":
        return judge(saved_student(evaluation.run, config, device), env)
    wanted = replace(config.tutoring, tutor_optional=False, async_tutor=False)
    with open_advisor(wanted, env.game, config.seed, evaluation.run, device, say_aside) as desk:
        if desk is None:
            raise ValueError(f"{evaluation.run} had no tutor")
        result = play(tutor_alone(desk, rng), env)
        told = advisor_summary(desk.tutor.name, desk.counters())
        if told["no_advice"]:
            print(f"no advice, random actions instead: {told['no_advice']}", file=sys.stderr)
        if not desk.counts["answered"] + desk.counts["stored"]:
            raise TutorError("the tutor did not answer a single question")
        return result


def saved_student(run: Path, config: Config, device: str) -> Agent:
    """Return the student of a run as it was saved last."""
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
    if evaluation.who != "tutor":
        raise ValueError(f"--report is about a tutor, not about {evaluation.who}: add --who tutor")
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
            tutor = make_tutor(tutoring, view, env.spec, config.seed, log, say_aside, stack)
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
        print(json.dumps({"who": "tutor", "tutor": tutor, "reports": [one.as_json() for one in told]}))
    else:
        console = Console(highlight=False)
        console.print(measures_table(told, tutor), letters_table(told))
    draw(told, tutor, picture)
    say_aside(f"the picture is in {picture}")


def say_aside(line: str) -> None:
    """Show progress where it does not mix with the result."""
    print(line, file=sys.stderr)


def main(evaluation: Evaluation) -> None:
    """Print the result."""
    if evaluation.report:
        show_reports(evaluation)
        return
    if evaluation.fill:
        print(fill_for(evaluation))
        return
    result = evaluate(evaluation)
    if evaluation.json:
        known = {name: None if math.isnan(value) else value for name, value in asdict(result).items()}
        print(json.dumps({"who": evaluation.who, **known}))
    else:
        print(f"{evaluation.who}: mean return {result}")


if __name__ == "__main__":
    run_program(main, Evaluation, description=__doc__)
