"""Ask a tutor about a game before any student plays: every answer is kept, and no run has to wait for it.

Costs one query for each position that the store does not know. A second call asks again where there was no advice.
"""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import envs
from envs.base import State, num_rows, select_rows
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor, advisor_summary
from tutors.base import TutorError
from tutors.config import TutorConfig
from tutors.display import without_password
from tutors.factory import make_tutor
from tutors.positions import NUM_ENVS, Play, mixed_play, most_visited
from tutors.prompts import make_view
from tutors.status_lines import StatusLines
from tutors.store import AdviceStore, identity_of
from tutors.store.database import open_database, retry_while_locked
from tutors.terminal import TerminalConsole

RUNS = Path("runs")  # not under version control
STORE = RUNS / "advice.sqlite"  # where none is named
POSITIONS_PER_CALL = 1024  # queries sent at once
DEADLINE_S = 600.0  # seconds that they may take


class FillRequest(NamedTuple):
    """What is asked about, and which tutor."""

    env: str
    env_kwargs: tuple[str, ...]  # NAME=VALUE
    positions: int  # at most: all of a small game, those of a large one that play visits most often
    seed: int  # of the play and of a scripted tutor's errors
    tutoring: TutorConfig


def fill(request: FillRequest, play: Play = mixed_play) -> str:
    """Ask about what `play` visits most often, keep all answers, and return a summary in one line.

    Raises:
        ValueError: a name is unknown, or the store cannot be used.
        TutorError: the tutor is not available, or gave no advice at all.
    """
    tutoring = request.tutoring
    if tutoring.tutor == "none":
        raise ValueError("fill requires a tutor: name it with --tutor")
    if request.positions < 1:
        raise ValueError(f"positions is {request.positions}; it must be at least 1")
    url = tutoring.advice_store or str(STORE)
    env = envs.make(request.env, NUM_ENVS, request.seed, **envs.parse_options(request.env_kwargs))
    view = make_view(env.game, tutoring.view, not tutoring.no_symmetry)
    console = TerminalConsole(stderr=True)
    if tutoring.advice_store is None:
        RUNS.mkdir(exist_ok=True)
    with ExitStack() as stack:
        tutor = make_tutor(tutoring, view, env.spec, request.seed, RUNS / "vllm.log", StatusLines(console.print), stack)
        store = AdviceStore(url, identity_of(env.spec, view, tutor.identity))
        stack.callback(store.close)
        stack.enter_context(open_database(url))
        shown = without_password(url)
        console.print(
            f"looking for positions of {env.spec.name} {view.name}; answers are kept in {shown}",
            markup=False,
            soft_wrap=True,
        )
        state = most_visited(env, view, request.positions, play(env, view, request.seed))
        table = AdviceTable(env.spec.num_actions, math.inf, 2 * num_rows(state))
        advisor = Advisor(view, tutor, table, store)
        query_all(advisor, state, console)
        summary = advisor_summary(tutor.name, advisor.counters())
    stored, queried, answered = (advisor.counts[name] for name in ("stored", "queried", "answered"))
    if queried and not answered:
        raise TutorError(f"the tutor answered none of {queried:,} queries: {summary['no_advice']}")
    extent = "all that play visited" if num_rows(state) < request.positions else "those visited most often"
    return (
        f"{num_rows(state):,} positions of {env.spec.name} {view.name}, {extent}: {stored:,} were stored, "
        f"{answered:,} of {queried:,} were answered now, for {summary['prompt_tokens']:,} prompt tokens, "
        f"{summary['answer_tokens']:,} answer tokens and {summary['seconds']} s; all in {shown}"
    )


def query_all(advisor: Advisor, state: State, console: Console) -> None:
    """Ask about all positions, many at once; what was answered is written before more is asked."""
    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=num_rows(state))
        for rows in torch.arange(num_rows(state)).split(POSITIONS_PER_CALL):
            advisor.advise(select_rows(state, rows), torch.ones(len(rows), dtype=torch.bool))
            assert advisor.store is not None
            retry_while_locked(advisor.store.flush)
            progress.advance(task, len(rows))
