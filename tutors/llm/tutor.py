"""A tutor that is a served language model: asked by one or several servers, many positions at a time.

What a question costs, and what is made of its answer, is the way of asking's (label.py, text.py); who is asked, and
whether, is the line's (line.py). A failure is silence for the positions concerned, counted by kind in `stats`; only
what a person must mend (a wrong key, a model that is not served, a server that cannot answer so) is raised, as
TutorError.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from envs.base import State
from envs.rng import shift_right, splitmix64
from tutors.base import Advice, TutorError, Warner
from tutors.llm.api import Answer, Chat, Trouble
from tutors.llm.breaker import OPENS_AFTER
from tutors.llm.client import Client, RequestError
from tutors.llm.endpoint import Line, fingerprint
from tutors.llm.label_logprobs import LabelWay, Verdict
from tutors.llm.models import Model
from tutors.llm.server_metrics import add, read_metrics, since
from tutors.llm.text_generation import TextWay, is_worth_another_try
from tutors.prompts.base import PromptView


class VllmTutor:
    """A served language model.

    Args:
        view: the words, the labels and which are legal.
        model: who is asked, and in which template.
        clients: the servers. A question goes to the same one whenever it is asked: its beginning is cached there.
        way: how it is asked.
        optional: go on where no server answers at the start, and ask once one does.

    Raises:
        TutorError: a server does not answer, serves another model, or cannot answer this way.
    """

    def __init__(
        self, view: PromptView, model: Model, clients: Sequence[Client], way: LabelWay | TextWay, optional: bool = False
    ) -> None:
        self.view, self.model, self.way = view, model, way
        self.name = model.name
        self.stats: Counter[str] = Counter()  # asked: prompts; requests; prompt_tokens; answer_tokens; no_advice/<kind>
        self.warn = Warner(logging.getLogger(__name__))
        self.lines = [Line(client, model, way.wanted(0), way.blanks(), self.stats) for client in clients]
        self.settled: tuple[str, bool | None] = ("", None)  # whose answers these are, and whether in a chat's words
        self.learned = False  # whether the way knows what is answered to a blank
        self.seen: list[dict[str, float]] = [{} for _ in self.lines]  # each server's own counts at the last report
        for line in self.lines:
            self._expect_one_model()
            try:
                line.meet()
            except RequestError as error:
                if not optional:
                    raise TutorError(f"{line.client.url} does not answer a first question: {error.kind}") from None
                line.breaker.failures = OPENS_AFTER
        self.stats.clear()
        self.report()  # what the servers counted before does not concern us
        template = model.brief if isinstance(way, LabelWay) else model.template
        met = next((line for line in self.lines if line.served), None)
        chats = met is not None and isinstance(met.dialect, Chat)
        if chats:
            template = "the server's own"
            way.thinks = False  # whether the model thinks is the server's affair: it may not show it at all
        who = fingerprint(model.model) if met is None else met.fingerprint
        self.identity = {"tutor": who, "template": template, **way.identity}
        self.settled = (who, chats)  # also for a server that comes later

    def advise(self, state: State) -> Advice:
        advice = Advice.no_advice(len(next(iter(state.values()))), len(self.view.labels))
        self._expect_one_model()
        is_open = [line.is_open() for line in self.lines]
        if not self.learned:
            self.learned = self._learn_blanks()
        if not any(is_open):
            self._count("other_model" if any(line.is_strange for line in self.lines) else "breaker", len(advice.valid))
            return advice
        for row, (verdict, mass) in enumerate(self._verdicts(state, is_open)):
            advice.label_mass[row] = mass  # also where that is too little: the mean must show it
            if isinstance(verdict, Trouble):
                self._count(verdict)
                continue
            advice.probs[row] = torch.tensor(verdict)
            advice.valid[row] = True
        return advice

    def cancel(self) -> None:
        """Make a call that another thread waits for come back at once, with an exception."""
        loop = self.lines[0].client.runner.get_loop()
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])

    def report(self) -> dict[str, float]:
        """Return the servers' own numbers since the last report, summed over those that have any."""
        parts = []
        for line, before in zip(self.lines, self.seen, strict=True):
            if line.served and not line.breaker.is_open:
                now = read_metrics(line.client)
                parts.append(since(before, now))
                before.update(now)
        return add(parts)

    def _count(self, kind: str, rows: int = 1) -> None:
        """Count rows that get no advice."""
        self.stats[f"no_advice/{kind}"] += rows
        self.warn(kind, f"the tutor is silent ({kind}): training goes on without its advice")

    def _verdicts(self, state: State, is_open: list[bool]) -> list[tuple[Verdict, float]]:
        """Return what the tutor holds of each position, and the label mass; some lines are open."""
        rows_of_line: list[list[int]] = [[] for _ in self.lines]
        for row, first in enumerate(self._shards(state)):
            turn = next(turn for turn in range(len(self.lines)) if is_open[(first + turn) % len(self.lines)])
            rows_of_line[(first + turn) % len(self.lines)].append(row)
        rounds = self._rounds(self.way.questions(state), self.view.action_mask(state).tolist(), rows_of_line)
        return self.lines[0].client.run(rounds)

    async def _rounds(
        self, questions: list[list[str]], action_mask: list[list[bool]], rows_of_line: list[list[int]]
    ) -> list[tuple[Verdict, float]]:
        """Ask, and ask again what came to nothing, all within one deadline."""
        orders = len(questions[0])
        verdicts: list[Any] = [None] * len(questions)
        client = self.lines[0].client
        deadline = asyncio.get_running_loop().time() + client.deadline
        for attempt in range(self.way.tries):
            answers: list[Answer] = [Trouble("deadline")] * (len(questions) * orders)
            wanted = self.way.wanted(attempt)
            asking = []
            for line, rows in zip(self.lines, rows_of_line, strict=True):
                if rows:
                    words = [text for row in rows for text in questions[row]]
                    places = [row * orders + order for row in rows for order in range(orders)]
                    asking.append(line.ask(words, wanted, answers, places))
            left = deadline - asyncio.get_running_loop().time()
            in_time = True
            try:
                await client.within(left, asyncio.gather(*asking))
            except RequestError:
                in_time = False
            for line, rows in zip(self.lines, rows_of_line, strict=True):
                for row in rows:
                    verdicts[row] = self.way.judge(answers[row * orders : (row + 1) * orders], action_mask[row])
                if any(verdicts[row][0] == "deadline" for row in rows):
                    line.breaker.failed()
            rows_of_line = [[row for row in rows if is_worth_another_try(verdicts[row][0])] for rows in rows_of_line]
            if not in_time or not any(rows_of_line):
                break
        return verdicts

    def _shards(self, state: State) -> list[int]:
        """Return the number of the server that each position belongs to."""
        keys = self.view.key(state)
        return (shift_right(splitmix64(keys[:, 0] ^ splitmix64(keys[:, 1])), 1) % len(self.lines)).tolist()

    def _expect_one_model(self) -> None:
        """Tell all lines whom the first one that was met has met: a late server may serve another model."""
        met = (line for line in self.lines if line.served)
        known = next(((line.fingerprint, isinstance(line.dialect, Chat)) for line in met), None)
        for line in self.lines:
            line.expected, line.chats = known or self.settled

    def _learn_blanks(self) -> bool:
        """Tell the way what a server has answered to the blanks, once one has."""
        known = [line.first for line in self.lines if line.served]
        if known:
            self.way.learn_blanks(known[0])
        return bool(known)
