"""What a tutor had answered before its call ended, by a refused key or a signal, is in the store and in the table."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.guidance import GuidanceConfig
from tests.helpers.advisors import SPEC
from tests.helpers.episodes import BLUNDER, VIEW, episode
from tests.helpers.llm_tutors import MODEL, connected_tutor, positions
from tests.helpers.scripted_server import Handler, Server, serving
from training.episode_review import Review, find_critical_steps, fit_preferences
from training.stop_signal import Interruption, StopSignal
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.async_advisor import AsyncAdvisor
from tutors.base import TutorError
from tutors.episode_analyst import VllmAnalyst
from tutors.findings import FindingsTable
from tutors.llm.pool import EndpointPool
from tutors.llm.text_generation import TextGeneration
from tutors.store import AdviceStore, identity_of

COUNT, PAID = 6, 4  # questions, and those that are answered
REFUSAL = {"error": {"message": "Incorrect API key provided"}}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


class Ending:
    """Answers the questions that hold one of some texts; another one, once those are answered, ends it all."""

    def __init__(self, paid: list[str], is_signal: bool, *servers: Server) -> None:
        self.paid = paid
        self.is_signal = is_signal
        self.first = threading.Lock()
        self.over = threading.Event()
        for server in servers:
            server.misbehave = self

    def __call__(self, handler: Handler, body: dict[str, Any]) -> bool:
        prompts = body["prompt"] if "prompt" in body else [body["messages"][0]["content"]]
        if all(any(text in prompt for text in self.paid) for prompt in prompts):
            return False
        if len(prompts) > 1:  # a batch is halved until each prompt stands alone
            handler.reply(400, {"error": {"message": "bad"}})
            return True
        time.sleep(0.3)  # what is answered has come
        if self.is_signal:
            if self.first.acquire(blocking=False):
                os.kill(os.getpid(), signal.SIGINT)
            self.over.wait(5)
        handler.reply(401, REFUSAL)
        return True


@pytest.mark.parametrize("is_vllm", [True, False], ids=["halved batch", "chat"])
@pytest.mark.parametrize("end", [TutorError, KeyboardInterrupt, Interruption])
@pytest.mark.parametrize("servers", [1, 2])
def test_answers_before_an_exception_are_stored_and_in_the_table(
    servers: int, end: type[BaseException], is_vllm: bool, server: Server, tmp_path: Path
) -> None:
    server.is_vllm = is_vllm
    state = positions(COUNT)
    texts = [prompt.removeprefix(VIEW.instructions) for prompt in VIEW.render(state)]
    with serving() as other, ExitStack() as stack:
        other.is_vllm = is_vllm
        tutor = stack.enter_context(connected_tutor(*[server.url, other.url][:servers]))
        store = stack.enter_context(closing(AdviceStore(tmp_path / "a", identity_of(SPEC, VIEW, tutor.identity))))
        table = AdviceTable(7, math.inf, capacity=1 << 10)
        ending = Ending(texts[:PAID], end is not TutorError, server, other)
        everybody = torch.ones(COUNT, dtype=torch.bool)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        advisor = Advisor(VIEW, tutor, table, store)
        if end is Interruption:
            stack.enter_context(stack.enter_context(StopSignal()).interrupting())
        with pytest.raises(end):
            advisor.advise(state, everybody)
        ending.over.set()
        assert table.get(VIEW.key(state), everybody).valid.tolist() == [True] * PAID + [False] * (COUNT - PAID)
        assert store.count() == PAID
        assert (advisor.counts["queried"], advisor.counts["answered"]) == (COUNT, PAID)


def test_answers_before_an_exception_in_the_tutor_s_thread_are_stored_and_in_the_table(
    server: Server, tmp_path: Path
) -> None:
    state = positions(COUNT)
    texts = [prompt.removeprefix(VIEW.instructions) for prompt in VIEW.render(state)]
    everybody = torch.ones(COUNT, dtype=torch.bool)
    server.is_vllm = False  # each question is a request
    with connected_tutor(server.url) as tutor:
        Ending(texts[:PAID], False, server)
        store = AdviceStore(tmp_path / "advice.sqlite", identity_of(SPEC, VIEW, tutor.identity))
        table = AdviceTable(7, math.inf, capacity=1 << 10)
        advisor = AsyncAdvisor(VIEW, tutor, table, store)
        advisor.allocate(state)
        advisor.advise(state, everybody)
        until = time.monotonic() + 20
        advisor.step()
        while advisor.thread.outbox.empty() and time.monotonic() < until:
            time.sleep(0.01)
        with closing(store), pytest.raises(TutorError, match="key"):
            advisor.step()
        advisor.close()
        assert table.get(VIEW.key(state), everybody).valid.tolist() == [True] * PAID + [False] * (COUNT - PAID)


def test_texts_before_a_refused_second_try_are_kept(server: Server) -> None:
    """The first try answers all but two positions; the second one, about these, is refused."""
    state = positions(COUNT)

    def answer(index: int, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "text": "<action>D</action>" if index < PAID else "hm", "finish_reason": "stop"}

    def refuse(handler: Handler, body: dict[str, Any]) -> bool:
        if not body.get("temperature"):
            return False
        handler.reply(401, REFUSAL)
        return True

    with connected_tutor(server.url, mode=TextGeneration(VIEW, False)) as tutor:
        server.answer, server.misbehave = answer, refuse  # type: ignore[method-assign]
        with pytest.raises(TutorError, match="key"):
            tutor.advise(state)
        advice = tutor.rescue()
        assert advice is not None
        assert advice.valid.tolist() == [True] * PAID + [False] * (COUNT - PAID)
        assert tutor.rescue() is None, "once"


@pytest.mark.parametrize("kind", ["critical steps", "pairs"])
def test_answers_of_an_analyst_before_an_exception_are_kept(kind: str, server: Server, tmp_path: Path) -> None:
    server.text = json.dumps({"critical": [{"step": 1, "reason": "", "action": "B", "reward": 0.5}]})
    games = [episode(BLUNDER), episode(BLUNDER[:5])]

    answered: list[str] = []

    def refuse(handler: Handler, body: dict[str, Any]) -> bool:
        """Answer the first of them."""
        asked = [prompt for prompt in body["prompt"] if "Step 1" in prompt]
        if not asked or (len(asked) == 1 and not answered):
            answered.extend(asked)
            return False
        handler.reply(*((400, {"error": {"message": "bad"}}) if len(asked) > 1 else (401, REFUSAL)))
        return True

    server.misbehave = refuse
    pool = EndpointPool([server.url])
    with closing(pool):
        analyst = VllmAnalyst(VIEW, MODEL, pool, 100, 2)
        method = GuidanceConfig("preferences" if kind == "pairs" else "modulate").make("ppo", True, "cpu", 1, 1.0)
        review = Review(analyst, games, method, FindingsTable(VIEW, "", "cpu"), 1, tmp_path)
        with pytest.raises(TutorError, match="key"):
            (fit_preferences if kind == "pairs" else find_critical_steps)(review)
    answers = json.loads((tmp_path / "answers.json").read_text())["answers"]
    if kind == "pairs":
        assert {answer is not None for *_, answer in answers} == {True, False}
    else:
        assert [len(found) for found in answers[0]] == [1, 0]
