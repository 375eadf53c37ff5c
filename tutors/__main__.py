"""Measure a tutor, fill an advice store, or look after one.

`python -m tutors report --env connect4 --tutor tiny` compares a tutor's advice with an expert's; with --tune it finds
the flags with which the tutor does best.
`python -m tutors fill --env blackjack --tutor deepseek --advice-store FILE` asks about a game before any run does.
`python -m tutors store info FILE` shows what a store holds; `python -m tutors store --help` has the other commands.
"""

if __name__ == "__main__":
    from training.interrupts import exit_on_interrupt  # before PyTorch is imported

    exit_on_interrupt()

import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from annotated_types import Interval

from envs.base import Env, Spec
from training.checkpoint import check_fit, load_checkpoint
from training.cli import run_program
from training.config import EVALUATION_SEED, Config, evaluation_env, find_device, load_config, make_agent, make_env
from training.flag_effects import Requirement, check_requirements
from training.hints import missing_passwords, train_command, tutor_flags
from training.reserved_stdout import emit
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.approval import measure_approval
from tutors.config import QUERY_FIELDS, TutorConfig
from tutors.display import printable_lines, without_password
from tutors.factory import make_tutor
from tutors.llm.models import is_model
from tutors.positions import NUM_ENVS, sample_positions, student_play
from tutors.prefill import DEADLINE_S, RUNS, FillRequest, fill
from tutors.prompts import make_view, views_of
from tutors.prompts.base import PromptView
from tutors.report import TutorReport, expert_best, measure_tutor
from tutors.status_lines import StatusLines
from tutors.store import AdviceStore, identity_of
from tutors.store.__main__ import main as run_store_command
from tutors.terminal import TerminalConsole
from tutors.tune import Sample, Tuning, tune

REPORT_POSITIONS = 1000
TUNING_POSITIONS = 200
TUNED_FLAGS = ("tutor_mode", "label_permutations", "label_set", "calibrate", "no_thinking")
UNTUNED = {name: getattr(TutorConfig(), name) for name in TUNED_FLAGS}
RUN_FLAGS = ("tutor_url", "tutor_key_file", "advice_store")  # of a tutor, that may replace those of a run


@dataclass(frozen=True)
class ReportOptions:
    """Compare a tutor's advice with an expert's, in the prompt views of an env or in that of --view."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run directory, whose env and tutor are reported on; default: those of --env and --tutor."""
    env: str | None = None
    """Environment: blackjack, connect4 or snake; default: connect4."""
    env_kwargs: tuple[str, ...] = ()
    """Options of the environment as NAME=VALUE; with RUN they replace its own."""
    positions: Annotated[int, Interval(ge=1, le=10**7)] | None = None
    """Number of different positions to ask about, in each view; default: 1000, with --tune 200."""
    tune: bool = False
    """Search for the flags with which a language model does best: label or text mode, permutations, label sets,
    calibration, views, thinking on or off. Half of the positions choose the best, the others judge it."""
    max_queries: Annotated[int, Interval(ge=1, le=10**9)] = 20_000
    """Maximum prompts of --tune, for which fewer positions are asked about if need be."""
    approval_episodes: Annotated[int, Interval(ge=2, le=10**5)] | None = None
    """Number of episodes, of play of every strength, by which it is shown whether the tutor's approval ranks good ones
    above bad ones; asks about all of their positions. Default: none."""
    picture: Path | None = None
    """File for the PNG; default: report.png in the run directory, or in runs/ without RUN."""
    device: str = "auto"
    """Device where positions are played: cpu, cuda or auto."""
    json: bool = False
    """One line of JSON in place of the tables."""
    tutoring: Annotated[TutorConfig, tyro.conf.arg(name="")] = field(default_factory=TutorConfig)

    def config(self) -> Config:
        """Return the run whose tutor is reported on; without RUN, one with the env and the tutor that are named.

        Raises:
            ValueError: there is no run, or flags contradict it.
        """
        if self.run is None:
            if self.tutoring.tutor == "none":
                raise ValueError("report requires a tutor: name it with --tutor, or name a run directory")
            return Config(env=self.env or Config.env, tutoring=self.tutoring)
        config = load_config(self.run)
        unset = {name: getattr(TutorConfig(), name) for name in RUN_FLAGS}
        if self.env is not None or replace(self.tutoring, **unset) != TutorConfig():
            raise ValueError(
                f"env and tutor are those of {self.run}: with a run directory, of their flags only --env-kwargs, "
                "--tutor-url, --tutor-key-file and --advice-store can be given"
            )
        if config.tutoring.tutor == "none":
            raise ValueError(f"{self.run} has no tutor: leave out the run directory and name a tutor with --tutor")
        given = {name: getattr(self.tutoring, name) for name in RUN_FLAGS if getattr(self.tutoring, name)}
        return replace(config, tutoring=replace(config.tutoring, **given))


@dataclass(frozen=True)
class FillOptions:
    """Ask a tutor about the positions of an env that play visits most often, and keep its answers.

    They go to --advice-store, or to runs/advice.sqlite.
    """

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run directory, whose student plays; the tutor is the run's unless --tutor names another. Default: mixed play."""
    env: str | None = None
    """Environment: blackjack, connect4 or snake; module:Class for one of your own; default: connect4."""
    env_kwargs: tuple[str, ...] = ()
    """Options of the environment as NAME=VALUE."""
    positions: Annotated[int, Interval(ge=1, le=10**7)] = 1000
    """Maximum number of positions."""
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] | None = None
    """Seed of the play and of a scripted tutor's errors, as in the runs to follow; default: 1, or the run's."""
    tutoring: Annotated[TutorConfig, tyro.conf.arg(name="")] = field(default_factory=TutorConfig)


def report(options: ReportOptions) -> None:
    """Print the measures of a tutor's advice, and write their picture."""
    from tutors.report_plots import (
        approval_lines,
        draw,
        letters_table,
        measures_table,
    )  # matplotlib takes a second to load

    config = options.config()
    if options.tune:
        report_tuning(options, config)
        return
    picture = picture_path(options)
    found = measure_views(options, config, picture.parent / "vllm.log")
    tutor = without_password(config.tutoring.tutor)
    if options.json:
        emit(json.dumps({"tutor": tutor, "reports": [one.as_json() for one in found]}))
    else:
        TerminalConsole().print(measures_table(found, tutor), letters_table(found), *approval_lines(found))
    draw(found, tutor, picture)
    show_status(f"the picture is in {picture}")


def report_tuning(options: ReportOptions, config: Config) -> None:
    """Print how each way of asking a tutor does, and the command with the best, if that is better than chance."""
    from tutors.report_plots import tuning_table, tuning_verdict

    tuning = tune_tutor(options, config)
    tutor = without_password(config.tutoring.tutor)
    views = {one.config.view for one in tuning.outcomes}
    unnamed = next(iter(views)) if len(views) == 1 else None
    ways = [tutor_flags(one.config, replace(one.config, view=unnamed, **UNTUNED)) for one in tuning.outcomes]
    kept = {name: getattr(config.tutoring, name) for name in ("tutor_optional", "async_tutor")}
    flags = tutor_flags(replace(tuning.outcomes[0].config, **kept))
    env_kwargs = (*config.env_kwargs, *options.env_kwargs)
    flags = ["--env", config.env, *(("--env-kwargs", *env_kwargs) if env_kwargs else ()), *flags]
    command = train_command(*flags) + missing_passwords(config) if tuning.is_better_than_chance else None
    if options.json:
        candidates = [{"flags": way, **one.report.as_json()} for way, one in zip(ways, tuning.outcomes, strict=True)]
        verdict = {"is_better_than_chance": tuning.is_better_than_chance, "verdict": tuning.verdict.as_json()}
        emit(json.dumps({"tutor": tutor, "candidates": candidates, **verdict, "command": command}))
        return
    console = TerminalConsole()
    console.print(tuning_table(tuning, [" ".join(way) or "the default ones" for way in ways], tutor))
    for reason, count in tuning.refused.items():
        console.print(f"Not asked in {count} other ways: {printable_lines(reason)}", markup=False)
    console.print(tuning_verdict(tuning), markup=False)
    if command is not None:
        console.print(f"To train with it:\n{command}", markup=False, soft_wrap=True)


def tune_tutor(options: ReportOptions, config: Config) -> Tuning:
    """Return how each way of asking a tutor does.

    Raises:
        ValueError: the tutor is no language model, a name is unknown, or a view has no expert.
        TutorError: the tutor is not available.
    """
    tutoring = replace(config.tutoring, tutor_optional=False, async_tutor=False, **UNTUNED)
    if not is_model(tutoring.tutor):
        raise ValueError(f"--tune is of a language model, and --tutor {tutoring.tutor} can be asked in one way only")
    env = evaluation_env(config, NUM_ENVS, find_device(options.device), options.env_kwargs)
    log = picture_path(options).parent / "vllm.log"
    names = [tutoring.view] if tutoring.view else view_names(env.spec.name, with_rewordings=True)
    views = {name: expert_view(tutoring, env, name) for name in names}
    samples: dict[str | None, Sample] = {}  # by the name of their view
    with ExitStack() as stack:

        def connect(way: TutorConfig) -> tuple[Advisor, Sample]:
            count, view = options.positions or TUNING_POSITIONS, views[way.view]
            advisor = connect_advisor(replace(config, tutoring=way), env.spec, view, count, log, stack)
            if way.view not in samples:
                state = sample_positions(env, view, count, config.seed + EVALUATION_SEED)
                samples[way.view] = Sample(state, expert_best(view, state, way.tutor_depth))
            return advisor, samples[way.view]

        return tune(tutoring, names, connect, options.max_queries, show_status)


def measure_views(options: ReportOptions, config: Config, log: Path) -> list[TutorReport]:
    """Return the measures of a tutor's advice in each view of the env; of a run, in the view that it uses.

    Answers are kept, and found again, only in the store of --advice-store: a report is for new answers.

    Raises:
        ValueError: a name is unknown, or a view has no expert.
        TutorError: the tutor is not available.
    """
    tutoring = replace(config.tutoring, tutor_optional=False, async_tutor=False)
    env = evaluation_env(config, NUM_ENVS, find_device(options.device), options.env_kwargs)
    is_one_view = tutoring.view is not None or options.run is not None
    count = options.positions or REPORT_POSITIONS
    found = []
    with ExitStack() as stack:  # one for all views: a server that is started for the first serves the others
        for name in [tutoring.view] if is_one_view else view_names(env.spec.name, with_rewordings=False):
            view = expert_view(tutoring, env, name)
            advisor = connect_advisor(replace(config, tutoring=tutoring), env.spec, view, count, log, stack)
            positions = sample_positions(env, view, count, config.seed + EVALUATION_SEED)
            report = measure_tutor(advisor, positions, tutoring.tutor_depth)
            if options.approval_episodes is not None:
                played = evaluation_env(
                    config, options.approval_episodes, find_device(options.device), options.env_kwargs
                )
                auc, interval, episodes = measure_approval(advisor, played, config.seed + EVALUATION_SEED)
                report = replace(report, approval=auc, approval_interval=interval, approval_episodes=episodes)
            found.append(report)
    return found


def view_names(env: str, with_rewordings: bool) -> list[str | None]:
    """Return the names of the views of an env, None where it has none of ours."""
    views = views_of(env).items()
    return [name for name, view in views if with_rewordings or not view.is_rewording] or [None]


def expert_view(tutoring: TutorConfig, env: Env, name: str | None) -> PromptView:
    """Return the view called `name`.

    Raises:
        ValueError: the name is unknown, or the view has no expert.
    """
    view = make_view(env.game, name, not tutoring.no_symmetry)
    if not view.has_expert:
        raise ValueError(f"the view {view.name} of {view.game} has no expert to compare a tutor with")
    return view


def connect_advisor(config: Config, spec: Spec, view: PromptView, count: int, log: Path, stack: ExitStack) -> Advisor:
    """Return an advisor that asks the config's tutor about up to `count` positions in a view; `stack` closes it.

    Raises:
        ValueError: no tutor has that name, or its settings do not suit the view.
        TutorError: the tutor is not available.
    """
    tutor = make_tutor(config.tutoring, view, spec, config.seed, log, StatusLines(show_status), stack)
    store = None
    if config.tutoring.advice_store is not None:
        store = AdviceStore(config.tutoring.advice_store, identity_of(spec, view, tutor.identity))
        stack.callback(store.close)
    return Advisor(view, tutor, AdviceTable(spec.num_actions, math.inf, count), store)


def picture_path(options: ReportOptions) -> Path:
    """Return where a report's picture goes.

    Raises:
        ValueError: there is no such directory, which is found out before any query is paid for.
    """
    if options.picture is None and options.run is None:
        RUNS.mkdir(exist_ok=True)
    path = options.picture or (options.run or RUNS) / "report.png"
    if not path.parent.is_dir():
        raise ValueError(f"the picture {path} cannot be written: there is no folder {path.parent}")
    return path


def fill_store(options: FillOptions) -> str:
    """Ask about what play visits most often, keep all answers, and return a summary in one line.

    Raises:
        ValueError: a name is unknown, there is no run, or the store cannot be used.
        TutorError: the tutor is not available, or gave no advice at all.
    """
    tutoring = options.tutoring
    if options.run is None:
        patient = replace(tutoring, tutor_deadline=max(tutoring.tutor_deadline, DEADLINE_S))
        seed = 1 if options.seed is None else options.seed
        return fill(FillRequest(options.env or Config.env, options.env_kwargs, options.positions, seed, patient))
    if options.env is not None:
        raise ValueError(f"the env is that of {options.run}: leave out --env")
    if tutoring.advice_store is None:
        raise ValueError("with a run directory, fill requires a store: name it with --advice-store")
    config = load_config(options.run)
    if tutoring.tutor == "none":
        given = {name: getattr(tutoring, name) for name in RUN_FLAGS if getattr(tutoring, name)}
        tutoring = replace(config.tutoring, **given)
    agent = make_agent(config, make_env(config, "cpu"))
    state = load_checkpoint(options.run / "checkpoints", "cpu")
    with check_fit(options.run):
        agent.load_state_dict(state["agent"])
    patient = replace(tutoring, tutor_deadline=max(tutoring.tutor_deadline, DEADLINE_S))
    seed = config.seed if options.seed is None else options.seed
    env_kwargs = (*config.env_kwargs, *options.env_kwargs)
    request = FillRequest(config.env, env_kwargs, options.positions, seed, patient)
    return fill(request, student_play(agent.greedy))


@dataclass(frozen=True)
class StoreOptions:
    """Inspect advice stores, export, import and merge them; `store --help` shows the commands."""


def show_status(line: str) -> None:
    """Show progress where it does not mix with the result."""
    print(printable_lines(line), file=sys.stderr)


def run_command(options: ReportOptions | FillOptions) -> None:
    """Run a command."""
    if isinstance(options, ReportOptions):
        report(options)
    else:
        print(printable_lines(fill_store(options)))


Command: Any = (
    Annotated[ReportOptions, tyro.conf.subcommand("report")]
    | Annotated[FillOptions, tyro.conf.subcommand("fill")]
    | Annotated[StoreOptions, tyro.conf.subcommand("store")]  # for the help: `main` hands its arguments on
)


REQUIREMENTS = (
    Requirement(
        [*TUNED_FLAGS, "picture", "approval_episodes"],
        lambda options: not getattr(options, "tune", False),
        "leave out --tune",
    ),
    Requirement(["max_queries"], lambda options: getattr(options, "tune", False), "add --tune"),
    Requirement([*QUERY_FIELDS, "async_tutor"], lambda options: False, "it is of train.py"),
    Requirement(["tutor_optional"], lambda options: isinstance(options, FillOptions), "a report requires its tutor"),
)


def check_flags(options: ReportOptions | FillOptions, args: Sequence[str]) -> None:
    """Raise ValueError for a flag that has no effect."""
    check_requirements(options, args, Command, REQUIREMENTS)


def main() -> None:
    """Run what the command line says."""
    if sys.argv[1:2] == ["store"]:
        del sys.argv[1]
        run_store_command()
    else:
        run_program(run_command, Command, description=__doc__, check=check_flags)


if __name__ == "__main__":
    main()
