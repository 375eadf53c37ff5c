"""The whole project in a few minutes: a DQN student learns Connect Four with advice from a language model.

Serves the tiny tutor with vLLM, trains one student without its advice while the server starts, then one with it for the
same number of env steps, and compares them with the tutor alone and with random play.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Interval
from rich.table import Table

from evaluate import Evaluation, evaluate
from experiments.spec import TutorSpec
from train import train
from training.config import default_config
from training.evaluation import Result
from training.hints import command
from training.resume import new_run_dir
from tutors import DEFAULT_URL, TutorConfig
from tutors.llm.models import find_model
from tutors.llm.server import starting_server
from tutors.terminal import TerminalConsole

console = TerminalConsole()


@dataclass(frozen=True)
class DemoOptions:
    """Train a tutored and an untutored student of Connect Four, and compare them with the tutor and random play."""

    total_steps: Annotated[int, Interval(ge=1, le=10**15)] = 80_000
    """Env steps of each student."""
    tutor: str = "tiny"
    """Tutor: a language model of tutors/llm/models.toml, or scripted."""
    opponent: str = "tactical"
    """Opponent of the students."""
    episodes: Annotated[int, Interval(ge=1, le=10**7)] = 1000
    """Episodes of each of the four players for the table."""
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 1
    """Seed of both runs."""


def demo(options: DemoOptions) -> None:
    """Train both students, evaluate all four, and print the table."""
    common = replace(
        default_config("dqn", "connect4"),
        total_steps=options.total_steps,
        env_kwargs=(f"opponent={options.opponent}",),
        seed=options.seed,
        eval_every=max(options.total_steps // 4, 1),
    )
    tutor = TutorSpec.parse(options.tutor)
    accuracy = TutorConfig.tutor_accuracy if tutor.accuracy is None else tutor.accuracy
    tutored = replace(common, tutoring=TutorConfig(tutor=tutor.name, tutor_accuracy=accuracy))
    tutored_dir, alone_dir = new_run_dir(tutored), new_run_dir(common)
    with ExitStack() as stack:
        status = console.status("")
        wait: Callable[[], None] | None = None
        if tutor.name != "scripted":
            model, log = find_model(options.tutor), tutored_dir / "vllm.log"
            wait = stack.enter_context(starting_server(model, DEFAULT_URL, 0, log, status.update))
        train(replace(common, run_dir=alone_dir))  # while the server starts
        if wait is not None:
            with status:
                wait()
        summary = train(replace(tutored, run_dir=tutored_dir))
        players = {
            "tutored student, alone": Evaluation(tutored_dir, "student"),
            "untutored student": Evaluation(alone_dir, "student"),
            f"tutor alone ({options.tutor})": Evaluation(tutored_dir, "tutor"),
            "random play": Evaluation(tutored_dir, "random"),
        }
        results = {name: evaluate(replace(one, episodes=options.episodes)) for name, one in players.items()}
    show(results, options, summary["tutor"])


def show(results: dict[str, Result], options: DemoOptions, tutor: Any) -> None:
    """Print the scores, what the advice cost, and how to see the curves."""
    steps = f"{options.total_steps:,}"
    table = Table(title=f"Connect Four against {options.opponent}, {steps} steps")
    table.add_column("player")
    table.add_column("mean return", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, result in results.items():
        table.add_row(name, f"{result.mean_return:+.3f}", f"{result.low:+.3f} to {result.high:+.3f}")
    console.print(table)
    no_advice = sum(tutor.get("no_advice", tutor.get("silent", {})).values())
    console.print(
        f"The student consulted its tutor in {tutor['consulted']:,} positions: the advice table answered "
        f"{tutor['hits']:,}, the model {tutor['asked']:,} questions, and the rest shared a question with another env "
        f"copy in the same step. Without an answer: {no_advice:,}."
    )
    tensorboard = command("tensorboard.main", "--logdir", "runs")
    console.print(f"To see the curves: {tensorboard}, then http://localhost:6006/#custom_scalars", soft_wrap=True)
