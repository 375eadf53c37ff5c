"""The main job in a few minutes: a DQN student learns Connect Four with advice from a language model.

Serves the tiny tutor with vLLM, trains one student with its advice and one without, for the same number of
steps, and puts them beside the tutor alone and random play.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from evaluate import Evaluation, evaluate
from train import train
from training.cli import run_program
from training.config import default_config
from training.evaluation import Result
from training.resume import new_run_dir
from tutors import DEFAULT_URL, TutorConfig
from tutors.llm.models import find_model
from tutors.llm.server import running_server

console = Console(highlight=False)


@dataclass(frozen=True)
class Demo:
    """How long, and with whom."""

    total_steps: int = 80_000
    """Env steps of each student."""
    tutor: str = "tiny"
    """A language model of tutors/llm/models.toml, or scripted."""
    opponent: str = "tactical"
    """Whom the students play."""
    episodes: int = 1000
    """Games each of the four plays for the table."""
    seed: int = 1
    """Of everything that is left to chance."""


def demo(told: Demo) -> None:
    """Train both students, evaluate all four, and print the table."""
    common = replace(
        default_config("dqn", "connect4"),
        total_steps=told.total_steps,
        env_kwargs=(f"opponent={told.opponent}",),
        seed=told.seed,
        eval_every=max(told.total_steps // 4, 1),
    )
    tutored = replace(common, tutoring=TutorConfig(tutor=told.tutor))
    tutored, alone = (replace(config, run_dir=new_run_dir(config)) for config in (tutored, common))
    with ExitStack() as stack:
        if told.tutor != "scripted":
            log = tutored.run_dir / "vllm.log"
            with console.status("") as status:
                model = find_model(told.tutor)
                stack.enter_context(running_server(model, DEFAULT_URL, 0, log, status.update))
        summary = train(tutored)
        train(alone)
        who = {
            "tutored student, alone": Evaluation(tutored.run_dir, "student"),
            "untutored student": Evaluation(alone.run_dir, "student"),
            f"tutor alone ({told.tutor})": Evaluation(tutored.run_dir, "tutor"),
            "random play": Evaluation(tutored.run_dir, "random"),
        }
        results = {name: evaluate(replace(one, episodes=told.episodes)) for name, one in who.items()}
    show(results, told, summary["tutor"])


def show(results: dict[str, Result], told: Demo, tutor: dict[str, Any]) -> None:
    """Print the table, what the advice cost, and where to look next."""
    steps = f"{told.total_steps:,}"
    table = Table(title=f"Connect Four against {told.opponent}, {steps} steps")
    table.add_column("who plays")
    table.add_column("mean return", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, result in results.items():
        low, high = result.interval()
        table.add_row(name, f"{result.mean_return:+.3f}", f"{low:+.3f} to {high:+.3f}")
    console.print(table)
    console.print(
        f"The student asked for advice {tutor['consulted']:,} times: the table answered {tutor['hits']:,}, "
        f"the model was asked {tutor['asked']:,} questions, and the rest shared one of these with another game "
        f"in the same step. Without an answer: {sum(tutor['no_advice'].values()):,}."
    )
    console.print("To see the curves: .venv/bin/tensorboard --logdir runs, then http://localhost:6006/#custom_scalars")


if __name__ == "__main__":
    run_program(demo, Demo, description=__doc__)
