"""Asks a tutor about a game before anybody plays: every answer is kept, and no run has to wait for it.

Costs one question for each position that the store does not know. Silence is asked about again by a second call.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import envs
from envs.base import Env, State, num_rows, select_rows, state_to
from envs.rng import QUERY_STREAM, CounterRNG, sample_legal
from tutors import TutorConfig, make_tutor
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.base import TutorError
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.report import GAMES, ROUND, distinct, mixed_play
from tutors.store import AdviceStore, identity_of, without_password
from tutors.store.database import usable, when_unlocked

STORE = "advice.sqlite"
CALL = 1024  # questions sent at once
DEADLINE = 600.0  # seconds that they may take
MOMENTS = 100  # times as many positions are met as are asked about, so that frequent ones are known from rare ones
WANDERS = 0.1  # of a student's actions: without chance it would play few games
QUIET = 4  # rounds of play without a new position after which no more is expected


@dataclass(frozen=True)
class Fill:
    """Ask about all positions of a small game, or about those of a large one that mixed play meets most often."""

    env: str = "connect4"
    """The game: blackjack, connect4 or snake; module:Class for one of your own."""
    env_kwargs: tuple[str, ...] = ()
    """The game's options as NAME=VALUE."""
    positions: int = 1000
    """At most so many are asked about."""
    seed: int = 1
    """Of the play that meets positions, and of a scripted tutor's mistakes; as in the runs that are to come."""
    tutoring: Annotated[TutorConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: TutorConfig(advice_store=STORE, tutor_deadline=DEADLINE)
    )


Play = Callable[[Env, PromptView, int], Iterator[State]]  # from a seed, without end


def fill(told: Fill, play: Play = mixed_play) -> str:
    """Ask about what `step` meets most often, keep all answers, and return in one line what it came to.

    Raises:
        ValueError: a name is not known, or the store does not work.
        TutorError: the tutor cannot be had, or did not answer at all.
    """
    tutoring = told.tutoring
    if tutoring.tutor == "none":
        raise ValueError("whose answers? Name the tutor with --tutor")
    if told.positions < 1:
        raise ValueError(f"positions is {told.positions}; it must be at least 1")
    where = tutoring.advice_store or STORE
    env = envs.make(told.env, GAMES, told.seed, **envs.parse_options(told.env_kwargs))
    view = make_view(env.game, tutoring.view, not tutoring.no_symmetry)
    console = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        tutor = make_tutor(tutoring, view, env.spec, told.seed, Path("vllm.log"), console.print, stack)
        store = AdviceStore(where, identity_of(env.spec, view, tutor.identity))
        stack.callback(store.close)
        stack.enter_context(usable(where))
        console.print(f"looking for positions of {env.spec.name} {view.name}")
        state = most_met(env, view, told.positions, play(env, view, told.seed))
        desk = Advisor(view, tutor, AdviceTable(env.spec.num_actions, math.inf, 2 * num_rows(state)), store)
        ask(desk, state, console)
        summary, asked = desk.summary(), desk.counts["told"]
    if asked and not desk.counts["answered"]:
        raise TutorError(f"the tutor answered none of {asked:,} questions: {summary['no_advice']}")
    everything = "all that play met" if num_rows(state) < told.positions else "those met most often"
    return (
        f"{num_rows(state):,} positions of {env.spec.name} {view.name}, {everything}: {desk.counts['stored']:,} were "
        f"stored, {desk.counts['answered']:,} of {asked:,} were answered now, for {summary['prompt_tokens']:,} prompt "
        f"tokens, {summary['answer_tokens']:,} answer tokens and {summary['seconds']} s; all in "
        f"{without_password(where)}"
    )


def wandering(greedy: Callable[[Tensor, Tensor], Tensor]) -> Play:
    """Return the play of who takes `greedy(obs, legal)`, but for one action in ten, which is any legal one."""

    def play(env: Env, view: PromptView, seed: int) -> Iterator[State]:
        rng = CounterRNG(seed, torch.arange(env.num_envs, device=env.device), QUERY_STREAM)
        step = env.reset()
        while True:
            yield step.state
            chance = rng.uniform(env.steps, 2)
            own = greedy(step.obs, step.action_mask)
            step = env.step(torch.where(chance[:, 0] < WANDERS, sample_legal(step.action_mask, chance[:, 1]), own))

    return play


def most_met(env: Env, view: PromptView, most: int, play: Iterator[State]) -> State:
    """Return the positions that play meets most often, as the game knows them, the most frequent first.

    Where there are fewer than `most`, play goes on until some rounds bring nothing new. No two are told in the
    same words.
    """
    moments, quiet, known = 0, 0, 0
    pool: list[State] = []
    times = torch.zeros(0, dtype=torch.int64, device=env.device)
    while moments < MOMENTS * most or (known < most and quiet < QUIET):
        state, which = distinct(view, [*pool, *itertools.islice(play, ROUND)])
        pool, found = [state], num_rows(state)
        new = torch.ones(ROUND * env.num_envs, dtype=torch.int64, device=env.device)
        moments += len(new)
        times = torch.zeros(found, dtype=torch.int64, device=env.device).index_add_(0, which, torch.cat([times, new]))
        quiet, known = (quiet + 1 if found == known else 0), found
    order = times.argsort(descending=True, stable=True)[:most]
    return state_to(select_rows(pool[0], order), "cpu")


def ask(desk: Advisor, state: State, console: Console) -> None:
    """Ask about all positions, many at once; what was answered is written before more is asked."""
    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=num_rows(state))
        for rows in torch.arange(num_rows(state)).split(CALL):
            desk.advise(select_rows(state, rows), torch.ones(len(rows), dtype=torch.bool))
            assert desk.store is not None
            when_unlocked(desk.store.flush)
            progress.advance(task, len(rows))
