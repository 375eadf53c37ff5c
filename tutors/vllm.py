"""Ask a model that a vLLM server serves, many positions at a time; the only file that opens a socket.

One question costs one prompt of some 150 to 250 tokens and one answered token: the log-probabilities of
the labels come back, and softmax over the legal ones is the advice. Nothing is parsed and no move is
illegal. A failure is silence for the positions concerned, counted by kind in `stats`; only what a person
must mend (a wrong key, a model that is not served, a server too old) is raised, as TutorError.
"""

import asyncio
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Awaitable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import tenacity
import torch

from envs.base import State
from tutors.base import Advice, TutorError, View, Warner
from tutors.breaker import OPENS_AFTER, Breaker
from tutors.models import Model

CHUNK = 1024  # prompts a request
TRIES = 3
LONGEST_PAUSE = 10.0  # seconds before a second try, whatever the server asks for
LARGEST_ANSWER = 64 << 20  # bytes
IDLE = 4.0  # seconds after which a connection is not used again: vLLM closes its end after 5

Answer = dict[str, float] | str  # log-probabilities by token, or the kind of silence


class RequestError(Exception):
    """A request that came to nothing, of one kind."""

    def __init__(self, kind: str, again: bool = False, pause: float = 0.1) -> None:
        super().__init__(kind)
        self.kind, self.again, self.pause = kind, again, pause


class Client:
    """HTTP to one server: total deadlines, bounded tries, no redirects, one event loop of its own.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        deadline: seconds that one call may take, all tries together.
    """

    def __init__(self, url: str, deadline: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a tutor's URL looks like http://127.0.0.1:8000, not {url!r}")
        self.url, self.deadline = url.rstrip("/"), deadline
        key = os.environ.get("TUTOR_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.runner = asyncio.Runner()
        self.session: aiohttp.ClientSession | None = None

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` on this client's event loop until it is done."""
        return self.runner.run(work)

    def close(self) -> None:
        """Close every connection and the loop."""
        if self.session is not None:
            self.runner.run(self.session.close())
        self.runner.close()

    def models(self, deadline: float = 2.0) -> list[str] | None:
        """Return the names of the models served, or None where no server answers.

        Raises:
            RequestError: something answers, but not as vLLM does.
        """
        try:
            body = self.run(self.within(deadline, self.once("GET", "/v1/models")))
            return [str(model["id"]) for model in body["data"]]
        except RequestError as error:
            if error.again or error.kind == "deadline":
                return None
            raise
        except (KeyError, TypeError):
            raise RequestError("no_list_of_models") from None

    async def within(self, deadline: float, work: Awaitable[Any]) -> Any:
        """Run `work` for at most `deadline` seconds; a total, not one per read."""
        try:
            async with asyncio.timeout(deadline):
                return await work
        except TimeoutError:
            raise RequestError("deadline") from None

    async def post(self, path: str, body: dict[str, object]) -> Any:
        """Return the JSON answer to `body`, tried at most TRIES times."""
        retry = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, RequestError) and error.again),
            stop=tenacity.stop_after_attempt(TRIES),
            wait=pause_of,
            reraise=True,
        )
        return await retry(self.once, "POST", path, body)

    async def once(self, method: str, path: str, body: dict[str, object] | None = None) -> Any:
        """Return the JSON answer to one request.

        Raises:
            RequestError: it did not work.
            TutorError: it cannot work before a person mends something.
        """
        if self.session is None:
            connector = aiohttp.TCPConnector(keepalive_timeout=IDLE)
            timeout = aiohttp.ClientTimeout(total=None)  # `within` bounds the whole call
            self.session = aiohttp.ClientSession(
                headers=self.headers, connector=connector, timeout=timeout, trust_env=False
            )
        try:
            request = self.session.request(method, self.url + path, json=body, allow_redirects=False)
            async with request as response:
                raw = await response.content.read(LARGEST_ANSWER + 1)
                while chunk := await response.content.read(LARGEST_ANSWER + 1):
                    raw += chunk
                    if len(raw) > LARGEST_ANSWER:
                        raise RequestError("too_large")
                status, pause = response.status, response.headers.get("Retry-After")
        except aiohttp.ClientConnectorError as error:
            kind = "certificate" if isinstance(error, aiohttp.ClientConnectorCertificateError) else "refused"
            raise RequestError(kind, again=kind == "refused") from None
        except (aiohttp.ClientError, OSError):
            raise RequestError("reset", again=True) from None
        return read(status, raw, seconds(pause), self.url)


def read(status: int, raw: bytes, pause: float, url: str) -> Any:
    """Return what a server's answer holds, or raise what it means."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if status in (401, 403):
        raise TutorError(f"{url} refuses the key: put the right one into the variable TUTOR_API_KEY")
    if status in (429, 503):
        raise RequestError(f"status_{status}", again=True, pause=pause)
    if status >= 500:
        raise RequestError(f"status_{status}", again=True)
    if status != 200:
        raise RequestError(f"status_{status}")
    if not isinstance(body, dict):
        raise RequestError("not_json")
    if "error" in body:
        raise RequestError("error_in_200")
    return body


def pause_of(attempt: tenacity.RetryCallState) -> float:
    """Return the seconds to wait after a try that failed."""
    error = attempt.outcome and attempt.outcome.exception()
    return error.pause if isinstance(error, RequestError) else 0.0


def seconds(text: str | None) -> float:
    """Return how long Retry-After asks to wait, at least a tenth of a second and at most LONGEST_PAUSE."""
    try:
        return min(max(float(text or 0), 0.1), LONGEST_PAUSE)
    except ValueError:
        return 1.0  # a date: wait a little


class VllmTutor:
    """A served language model, asked for the log-probabilities of the labels.

    Args:
        view: the words, the labels and which are legal.
        model: how it is asked.
        client: the server.
        min_label_mass: silence where less of the model's probability than this is on legal labels.
        optional: go on where no server answers at the start, and ask once one does.

    Raises:
        TutorError: no server answers, it serves another model, or it is too old to answer this way.
    """

    def __init__(
        self,
        view: View,
        model: Model,
        client: Client,
        min_label_mass: float = 0.01,
        optional: bool = False,
    ) -> None:
        self.view, self.model, self.client, self.min_label_mass = view, model, client, min_label_mass
        self.name, self.identity = model.name, model.model
        self.stats: Counter[str] = Counter()  # asked, requests, tokens; silent/<kind>
        self.breaker = Breaker()
        self.warn = Warner(logging.getLogger(__name__))
        self.served = ""  # under which name; empty until the server has been probed
        self.label_ids: list[int] = []
        if (served := client.models()) is not None:
            self._probe(served)
        elif optional:
            self.breaker.failures = OPENS_AFTER
        else:
            raise TutorError(f"no server answers at {client.url}")

    def advise(self, state: State) -> Advice:
        words = self.view.words(state)
        advice = Advice.silence(len(words), len(self.view.labels))
        if self.breaker.wants_a_look:
            self._look()
        if self.breaker.is_open:
            self._silent("breaker", len(words))
            return advice
        answers = self.client.run(self._ask_all([self.model.prompt(text) for text in words]))
        for row, (answer, legal) in enumerate(zip(answers, self.view.legal(state).tolist(), strict=True)):
            said = answer if isinstance(answer, str) else weigh(answer, self.label_ids, legal)
            if not isinstance(said, str) and said[1] < self.min_label_mass:
                said = "low_label_mass"
            if isinstance(said, str):
                self._silent(said)
                continue
            advice.probs[row] = torch.tensor(said[0])
            advice.given[row] = True
            advice.label_mass[row] = said[1]
        return advice

    def close(self) -> None:
        self.client.close()

    def _probe(self, served: list[str]) -> None:
        """Find the model among those served, learn its label tokens, and prove that it answers as asked."""
        names = [name for name in (self.model.name, self.model.model) if name in served]
        if not names:
            raise TutorError(
                f"{self.client.url} serves {', '.join(served) or 'nothing'}, not {self.model.name} "
                f"({self.model.model}); name a served model with --tutor-model, or ask another server"
            )
        name = names[0]
        self.label_ids = [self._label_id(name, label) for label in self.view.labels]
        prompt = self.model.prompt(self.view.rules)
        try:
            body = self.client.run(self._post("/v1/completions", self._body(name, [prompt])))
            answer = sort_answers(body, 1)[0]
        except RequestError as failed:
            raise TutorError(f"{self.client.url} does not answer a first question: {failed.kind}") from None
        everything = [True] * len(self.label_ids)
        if isinstance(answer, str) or isinstance(weigh(answer, self.label_ids, everything), str):
            raise TutorError(
                f"{self.client.url} does not return the log-probabilities of given tokens; "
                "it takes vLLM 0.26 or later (logprob_token_ids)"
            )
        self.served = name

    def _label_id(self, name: str, label: str) -> int:
        """Return the token that the served model has for `label`."""
        question = {"model": name, "prompt": label, "add_special_tokens": False}
        try:
            tokens = self.client.run(self._post("/tokenize", question))["tokens"]
        except (RequestError, KeyError) as error:
            raise TutorError(f"{self.client.url} does not say how it reads {label!r}: {error}") from None
        if len(tokens) != 1:
            raise TutorError(f"{name} reads the label {label!r} as {len(tokens)} tokens; a label must be one")
        return tokens[0]

    def _look(self) -> None:
        """See whether the server is back."""
        try:
            served = self.client.models()
        except RequestError:
            served = None
        if served is None:
            self.breaker.failed()
        else:
            if not self.served:
                self._probe(served)
            self.breaker.recovered()

    async def _post(self, path: str, body: dict[str, object]) -> Any:
        return await self.client.within(self.client.deadline, self.client.post(path, body))

    async def _ask_all(self, prompts: list[str]) -> list[Answer]:
        """Return an answer to each prompt, all within one deadline."""
        answers: list[Answer] = ["deadline"] * len(prompts)
        chunks = [range(at, min(at + CHUNK, len(prompts))) for at in range(0, len(prompts), CHUNK)]
        try:
            asking = asyncio.gather(*(self._ask(prompts, rows, answers) for rows in chunks))
            await self.client.within(self.client.deadline, asking)
        except RequestError:
            self.breaker.failed()
        return answers

    async def _ask(self, prompts: list[str], rows: range, answers: list[Answer]) -> None:
        """Fill in the answers of `rows`. A request that the server calls bad is halved until the bad row is found."""
        try:
            body = self._body(self.served, [prompts[row] for row in rows])
            self.stats["asked"] += len(rows)
            self.stats["requests"] += 1
            reply = await self.client.post("/v1/completions", body)
            self.breaker.worked()
            said = sort_answers(reply, len(rows))
        except RequestError as failed:
            if failed.kind == "status_400" and len(rows) > 1:
                middle = len(rows) // 2
                await self._ask(prompts, rows[:middle], answers)
                await self._ask(prompts, rows[middle:], answers)
                return
            if failed.kind == "status_404":
                raise TutorError(await self._not_served()) from None
            if failed.kind != "status_400":
                self.breaker.failed()
            said = [failed.kind] * len(rows)
        for row, answer in zip(rows, said, strict=True):
            answers[row] = answer

    async def _not_served(self) -> str:
        """Say which models there are instead of the one that was asked."""
        body = await self.client.once("GET", "/v1/models")
        names = ", ".join(model["id"] for model in body["data"])
        return f"{self.client.url} serves {names}, no longer {self.served}"

    def _body(self, name: str, prompts: list[str]) -> dict[str, object]:
        """Return the request: one token of answer, and the log-probability of every label in its place."""
        return {
            "model": name,
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": self.label_ids,
            "return_tokens_as_token_ids": True,
        }

    def _silent(self, kind: str, rows: int = 1) -> None:
        """Count silence, and say so once a minute for each kind."""
        self.stats[f"silent/{kind}"] += rows
        self.warn(kind, f"the tutor is silent ({kind}): training goes on without its advice")


def sort_answers(body: dict[str, Any], count: int) -> list[Answer]:
    """Return the first token's log-probabilities of each of `count` prompts, in the order of asking."""
    answers: list[Answer] = ["no_answer"] * count
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        try:
            row, answer = choice["index"], choice["logprobs"]["top_logprobs"][0]
        except (TypeError, KeyError, IndexError):
            continue
        if isinstance(row, int) and 0 <= row < count:
            answers[row] = answer if answers[row] == "no_answer" and isinstance(answer, dict) else "malformed"
    return answers


def weigh(answer: dict[str, float], label_ids: list[int], legal: list[bool]) -> tuple[list[float], float] | str:
    """Return (softmax over the legal labels, their probability together), or the kind of silence."""
    logs = []
    for token, allowed in zip(label_ids, legal, strict=True):
        log = answer.get(f"token_id:{token}")
        if not isinstance(log, int | float) or isinstance(log, bool) or not log <= 1e-3:
            return "malformed"
        logs.append(float(log) if allowed else -math.inf)
    best = max(logs)
    if best < -1000:  # vLLM writes -9999 for minus infinity
        return "low_label_mass"
    weights = [math.exp(log - best) for log in logs]
    total = sum(weights)
    return [weight / total for weight in weights], min(total * math.exp(best), 1.0)
