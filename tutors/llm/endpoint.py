"""The line to one server: who answers there, in which dialect, and whether it is worth asking now.

A line is closed where the server fails again and again (its breaker is open), and where another model answers than the
one that was met first: whose advice that would be, nobody knows. It is looked at now and then, and opens by itself.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutors.base import TutorError, Warner
from tutors.llm.api import Answer, Chat, Completions, Dialect, Labels, Trouble, Wanted
from tutors.llm.breaker import OPENS_AFTER, Breaker
from tutors.llm.client import IDLE, Client, RequestError
from tutors.llm.label_logprobs import softmax
from tutors.llm.models import Model, fill

AT_ONCE = 64  # requests under way where each holds one question
SAME = 0.2  # how far a model's answer may lie from its first to the same question: batches change logits slightly
MOST_TOKENS = 1 << 40  # of one answer that are believed: a number too large for a float could not be logged
SAMPLE = 1 << 20  # bytes at either end of a file of weights that tell it from others

logger = logging.getLogger(__name__)


class StrangeModelError(TutorError):
    """Another model is served than the one that is meant."""


class Line:
    """One server.

    Args:
        client: how it is reached.
        model: who is to answer there, and in which template.
        wanted: what it will be asked for.
        blanks: questions by whose answers it is known again.
        stats: counts prompts (asked), requests, prompt_tokens and answer_tokens.
    """

    def __init__(
        self, client: Client, model: Model, wanted: Wanted, blanks: Sequence[str], stats: Counter[str]
    ) -> None:
        self.client, self.model, self.wanted, self.blanks, self.stats = client, model, wanted, list(blanks), stats
        self.breaker = Breaker()
        self.warn = Warner(logger)
        self.served = ""  # under which name; empty until the server has been met
        self.dialect: Dialect
        self.first: list[Answer] = []  # its first answers to the blanks
        self.answerer: Any = None  # who it says has answered
        self.fingerprint = ""
        self.expected = ""  # whose advice this must be, where that is known from elsewhere
        self.chats: bool | None = None  # whether it must be asked in a chat's words, where that is known
        self.is_strange = False  # another model answers
        self.heard_at = -math.inf  # when it last answered

    def meet(self) -> None:
        """Find the model among those served, and the dialect in which it answers as is wanted.

        Raises:
            RequestError: not now, perhaps later.
            TutorError: not before a person mends something.
        """
        served = self._list()
        names = [name for name in (self.model.name, self.model.model) if name in served]
        if not names:
            raise StrangeModelError(
                f"{self.client.url} serves {', '.join(served) or 'nothing'}, not {self.model.name} "
                f"({self.model.model}); name a served model with --tutor-model, or ask another server"
            )
        found = fingerprint(served[names[0]])
        if self.expected and found != self.expected:
            raise StrangeModelError(f"{self.client.url} serves {found}, others {self.expected}: one model is meant")
        dialect, first = self.client.run(self._within(self._try_dialects(names[0])))
        if self.chats is not None and isinstance(dialect, Chat) != self.chats:
            raise StrangeModelError(f"{self.client.url} must be asked in other words than those of this run's answers")
        self.dialect, self.first = dialect, first
        self.served, self.fingerprint, self.heard_at = names[0], found, time.monotonic()

    def is_open(self) -> bool:
        """Return whether questions may go out. After a silence of some seconds it is seen first who is there."""
        if self.breaker.wants_a_look or (not self.breaker.is_open and time.monotonic() - self.heard_at > IDLE):
            self._look()
        return not self.breaker.is_open

    async def ask(self, words: Sequence[str], wanted: Wanted, answers: list[Answer], places: Sequence[int]) -> None:
        """Put the answers to `words` at these places of `answers`; what takes too long leaves them as they are."""
        room = asyncio.Semaphore(AT_ONCE)

        async def work(part: slice) -> None:
            async with room:
                await self._ask(words[part], wanted, answers, places[part])

        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(words), self.dialect.chunk):
                    group.create_task(work(slice(start, start + self.dialect.chunk)))
        except* TutorError as errors:
            raise errors.exceptions[0] from None

    async def _ask(self, words: Sequence[str], wanted: Wanted, answers: list[Answer], places: Sequence[int]) -> None:
        """Ask in one request. One that the server calls bad is halved until the bad question is found."""
        said: list[Answer] = [Trouble("breaker")] * len(words)
        if not self.breaker.is_open:
            self.stats["asked"] += len(words)
            self.stats["requests"] += 1
            try:
                said = await self._request(words, wanted)
            except RequestError as failed:
                if failed.kind == "status_400" and len(words) > 1:
                    half = len(words) // 2
                    await self._ask(words[:half], wanted, answers, places[:half])
                    await self._ask(words[half:], wanted, answers, places[half:])
                    return
                if failed.kind == "status_404":
                    self._estrange(f"{self.client.url} no longer serves {self.served}")
                elif failed.kind != "status_400":
                    self.breaker.failed()
                said = [Trouble("other_model" if self.is_strange else failed.kind)] * len(words)
        for place, answer in zip(places, said, strict=True):
            answers[place] = answer

    async def _request(self, words: Sequence[str], wanted: Wanted) -> list[Answer]:
        """Return the answers to one request, which only the model that was met first may give."""
        reply = await self.client.post(self.dialect.path, self.dialect.body(self.served, words, wanted))
        answerer = reply.get("model")
        if isinstance(answerer, str) and answerer != self.answerer:
            self._estrange(f"{self.client.url} answers as {answerer[:80]!a}")
            return [Trouble("other_model")] * len(words)
        self.breaker.worked()
        self.heard_at = time.monotonic()
        usage = reply.get("usage")
        for name, count in (("prompt_tokens", "prompt_tokens"), ("completion_tokens", "answer_tokens")):
            spent = usage.get(name) if isinstance(usage, dict) else None
            self.stats[count] += spent if isinstance(spent, int) and 0 <= spent <= MOST_TOKENS else 0
        return self.dialect.read(reply, len(words), wanted)

    def _list(self) -> dict[str, str]:
        """Return the models served: their names, and what each was loaded from.

        Raises:
            RequestError: no server is there, or none of language models.
        """
        served = self.client.models()
        if served is None:
            raise RequestError("refused")
        return served

    async def _try_dialects(self, name: str) -> tuple[Dialect, list[Answer]]:
        """Return the first dialect in which the blanks are answered, and the answers."""
        ids = await self._label_ids(name)
        kind = "no_answer"
        for dialect in ([] if ids is None else [Completions(self.model, ids)]) + [Chat()]:
            try:
                answers, self.answerer = await self._ask_blanks(dialect, name)
            except RequestError as error:
                if error.again or error.kind == "deadline":
                    raise
                kind = error.kind
                continue
            kinds = [str(answer) for answer in answers if isinstance(answer, Trouble)]
            if not kinds and (not isinstance(self.wanted, Labels) or all(map(has_mass, answers))):
                if isinstance(self.wanted, Labels) and isinstance(dialect, Chat):
                    self.warn(
                        "chat", f"{self.client.url} shows the most likely tokens only: rare letters count as never"
                    )
                return dialect, answers
            kind = kinds[0] if kinds else "no letter among the most likely tokens"
        if isinstance(self.wanted, Labels):
            raise TutorError(
                f"{self.client.url} does not return the log-probabilities of letters ({kind}): that takes vLLM 0.26 or "
                "later, or a chat with top log-probabilities. To ask for words instead: --tutor-mode text"
            )
        raise TutorError(f"{self.client.url} does not answer a question ({kind})")

    async def _ask_blanks(self, dialect: Dialect, name: str) -> tuple[list[Answer], Any]:
        """Return the answers to the blanks, and who says that they are his; nothing of it is counted."""
        answers: list[Answer] = []
        for start in range(0, len(self.blanks), dialect.chunk):
            part = self.blanks[start : start + dialect.chunk]
            reply = await self.client.post(dialect.path, dialect.body(name, part, self.wanted))
            answers += dialect.read(reply, len(part), self.wanted)
        return answers, reply.get("model")

    async def _label_ids(self, name: str) -> dict[str, int] | None:
        """Return the served model's token for each letter where an answer begins; None where it is not vLLM's."""
        before = fill(self.model.brief, self.blanks[0])
        begun = await self._tokens(name, before)
        if begun is None or not isinstance(self.wanted, Labels):
            return None if begun is None else {}
        ids = {}
        for letter in self.wanted.letters:
            tokens = await self._tokens(name, before + self.model.before_label + letter) or []
            if tokens[:-1] != begun:
                count = len(tokens) - len(begun)
                raise TutorError(
                    f"{name} reads the label {letter!r} as {count} tokens after its prompt; it must be one"
                )
            ids[letter] = tokens[-1]
        return ids

    async def _tokens(self, name: str, text: str) -> list[int] | None:
        """Return a text as the served model reads it, None where the server does not say."""
        try:
            tokens = (await self.client.post("/tokenize", {"model": name, "prompt": text})).get("tokens")
        except RequestError as error:
            if error.again:
                raise
            return None
        is_list = isinstance(tokens, list) and tokens and all(isinstance(token, int) for token in tokens)
        return tokens if is_list else None

    def _look(self) -> None:
        """See who is there, and open or close the line accordingly. A refused key is raised, as TutorError."""
        try:
            if self.served:
                self._recognise()
            else:
                self.meet()
        except RequestError:
            self.breaker.failed()
        except StrangeModelError as error:
            self._estrange(str(error))
        else:
            if self.breaker.is_open:
                self.breaker.recovered()
            self.is_strange = False

    def _recognise(self) -> None:
        """Check that the model is the one that was met first.

        Raises:
            RequestError: nobody is there.
            TutorError: it is another one.
        """
        served = self._list()
        if fingerprint(served.get(self.served, "")) != self.fingerprint:
            raise StrangeModelError(f"{self.client.url} serves {', '.join(served) or 'nothing'}")
        self.heard_at = time.monotonic()
        if not isinstance(self.wanted, Labels):
            return  # a text costs too much, and varies
        answers, _ = self.client.run(self._within(self._ask_blanks(self.dialect, self.served)))
        for answer, known in zip(answers, self.first, strict=True):
            if isinstance(answer, Trouble) or isinstance(known, Trouble) or distance(answer, known) > SAME:
                raise StrangeModelError(f"{self.client.url} answers otherwise than before, under the same name")

    async def _within(self, work: Any) -> Any:
        return await self.client.within(self.client.deadline, work)

    def _estrange(self, what: str) -> None:
        """Close the line until the model is back."""
        self.is_strange = True
        self.breaker.failures = max(self.breaker.failures, OPENS_AFTER - 1)
        self.breaker.failed()
        self.warn("other_model", f"{what}: its advice is not used, and not kept, until {self.model.name} is back")


def has_mass(answer: Answer) -> bool:
    """Return whether any letter is possible at all."""
    return any(log > -math.inf for log in answer if isinstance(log, float))


def distance(answer: Answer, known: Answer) -> float:
    """Return how far two answers lie apart at most, as distributions over the letters."""
    pairs = zip(softmax([float(log) for log in answer]), softmax([float(log) for log in known]), strict=True)
    return max(abs(left - right) for left, right in pairs)


def fingerprint(root: str) -> str:
    """Return what tells a model's answers from another's: its id, or for a folder here a hash of its weights."""
    weights = Path(root) / "model.safetensors"
    if not root or not weights.is_file():
        return root
    size = weights.stat().st_size
    with weights.open("rb") as file:
        begin = file.read(SAMPLE)
        file.seek(max(size - SAMPLE, 0))
        return hashlib.sha256(begin + file.read(SAMPLE) + str(size).encode()).hexdigest()
