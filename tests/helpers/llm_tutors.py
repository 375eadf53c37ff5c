"""Tutors of a scripted server, and positions to ask them about."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import envs
from envs.base import State, select_rows
from envs.rng import sample_legal
from tests.helpers.scripted_server import FAVOURITE, Handler
from tutors.base import TutorError, no_advice_counts
from tutors.llm.breaker import Breaker
from tutors.llm.endpoint import Endpoint
from tutors.llm.label_logprobs import LabelLogprobs
from tutors.llm.models import Model
from tutors.llm.pool import EndpointPool
from tutors.llm.tutor import AnswerMode, VllmTutor
from tutors.prompts import make_view
from tutors.prompts.base import PromptView

VIEW = make_view(envs.make_game("connect4"))
MODEL = Model("tiny", "tiny", "<s>{words}</s>")
Misbehave = Callable[[Handler, dict[str, Any]], bool]


def connect_tutor(
    *urls: str,
    mode: AnswerMode | None = None,
    model: Model = MODEL,
    deadline_s: float = 60,
    optional: bool = False,
) -> VllmTutor:
    """A tutor that is asked at `urls` about Connect Four, in label mode if no other is given; close its pool."""
    pool = EndpointPool(urls, deadline_s)
    try:
        return VllmTutor(VIEW, model, pool, mode or LabelLogprobs(VIEW), optional)
    except TutorError:
        pool.close()
        raise


@contextmanager
def connected_tutor(*urls: str, **options: Any) -> Iterator[VllmTutor]:
    """A tutor as of `connect_tutor`, for as long as the block lasts."""
    tutor = connect_tutor(*urls, **options)
    try:
        yield tutor
    finally:
        tutor.pool.close()


def endpoint(tutor: VllmTutor) -> Endpoint:
    """The first server of a tutor."""
    return tutor.pool.endpoints[0]


def breaker(tutor: VllmTutor) -> Breaker:
    """The breaker of a tutor's first server."""
    return endpoint(tutor).breaker


def failures(tutor: VllmTutor) -> dict[str, int]:
    """The number of positions without advice, by kind."""
    return no_advice_counts(tutor.stats)


def always(status: int, body: object, **headers: str) -> Misbehave:
    """A server that answers every request in the same way."""

    def misbehave(handler: Handler, _body: dict[str, Any]) -> bool:
        handler.reply(status, body, **headers)
        return True

    return misbehave


def positions(count: int, moves: int = 3) -> State:
    """`count` different canonical positions of Connect Four after a few random moves."""
    env = envs.make("connect4", 50 * count, seed=count)
    step = env.reset()
    for _ in range(moves):
        step = env.step(
            sample_legal(step.action_mask, torch.rand(len(step.action_mask), generator=torch.manual_seed(0)))
        )
    state, _ = VIEW.canonicalize(env.state)
    distinct, which = VIEW.key(state)[:, 0].unique(return_inverse=True)
    rows = torch.zeros_like(distinct).scatter_(0, which, torch.arange(len(which)))
    return select_rows(state, rows[:count])


def positions_of(game: str, name: str | None = None, moves: int = 3, count: int = 12) -> tuple[PromptView, State]:
    """A view, and `count` different canonical positions after a few random moves."""
    env = envs.make(game, 300, seed=5)
    view = make_view(env.game, name)
    step = env.reset()
    generator = torch.manual_seed(0)
    for _ in range(moves):
        u = torch.rand(len(step.action_mask), generator=generator)
        step = env.step(sample_legal(step.action_mask, u))
    state, _ = view.canonicalize(env.state)
    distinct, which = view.key(state).unique(dim=0, return_inverse=True)
    rows = torch.zeros(len(distinct), dtype=torch.int64).scatter_(0, which, torch.arange(len(which)))
    return view, select_rows(state, rows[:count])


def position_with_full_favourite_column() -> State:
    """One position in which the scripted server's favourite column is full."""
    mine = theirs = 0
    for row in range(6):
        cell = 1 << FAVOURITE * 7 + row
        mine, theirs = (mine | cell, theirs) if row % 2 else (mine, theirs | cell)
    return {"mine": torch.tensor([mine]), "theirs": torch.tensor([theirs])}
