"""Ask a model that a vLLM server serves, many positions at a time.

One question costs one prompt of some 150 to 250 tokens and one answered token: the log-probabilities of
the labels come back, and softmax over the legal ones is the advice. Nothing is parsed and no move is
illegal. A failure is silence for the positions concerned, counted by kind in `stats`; only what a person
must mend (a wrong key, a model that is not served, a server too old) is raised, as TutorError.
"""

import asyncio
import hashlib
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from envs.base import State
from tutors.base import Advice, TutorError, View, Warner
from tutors.breaker import OPENS_AFTER, Breaker
from tutors.client import Client, RequestError
from tutors.models import Model

CHUNK = 1024  # prompts a request

Answer = dict[str, float] | str  # log-probabilities by token, or the kind of silence


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
        self.stats: Counter[str] = Counter()  # asked: prompts; requests; silent/<kind>
        self.breaker = Breaker()
        self.warn = Warner(logging.getLogger(__name__))
        self.served = ""  # under which name; empty until the server has been probed
        self.label_ids: list[int] = []
        try:
            self._probe(client.models())
        except RequestError as error:
            if not optional:
                raise TutorError(f"{client.url} does not answer a first question: {error.kind}") from None
            self.breaker.failures = OPENS_AFTER

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
            if not isinstance(said, str):
                advice.label_mass[row] = said[1]  # also where that is too little: the mean must show it
                if said[1] < self.min_label_mass:
                    said = "low_label_mass"
            if isinstance(said, str):
                self._silent(said)
                continue
            advice.probs[row] = torch.tensor(said[0])
            advice.given[row] = True
        return advice

    def _probe(self, served: dict[str, str] | None) -> None:
        """Find the model among those served, learn its label tokens, and prove that it answers as asked.

        Raises:
            RequestError: not now, perhaps later.
            TutorError: not before a person mends something.
        """
        if served is None:
            raise RequestError("refused")
        names = [name for name in (self.model.name, self.model.model) if name in served]
        if not names:
            raise TutorError(
                f"{self.client.url} serves {', '.join(served) or 'nothing'}, not {self.model.name} "
                f"({self.model.model}); name a served model with --tutor-model, or ask another server"
            )
        name = names[0]
        self.label_ids = [self._label_id(name, label) for label in self.view.labels]
        prompt = self.model.prompt(self.view.rules)
        body = self.client.run(self._post("/v1/completions", self._body(name, [prompt])))
        answer = sort_answers(body, 1)[0]
        everything = [True] * len(self.label_ids)
        if isinstance(answer, str) or isinstance(weigh(answer, self.label_ids, everything), str):
            raise TutorError(
                f"{self.client.url} does not return the log-probabilities of given tokens; "
                "it takes vLLM 0.26 or later (logprob_token_ids)"
            )
        self.served, self.identity = name, fingerprint(served[name])

    def _label_id(self, name: str, label: str) -> int:
        """Return the token that the served model has for `label`."""
        question = {"model": name, "prompt": label, "add_special_tokens": False}
        tokens = self.client.run(self._post("/tokenize", question)).get("tokens")
        if not isinstance(tokens, list):
            raise TutorError(f"{self.client.url} does not say how it reads {label!r}; it is not vLLM")
        if len(tokens) != 1:
            raise TutorError(f"{name} reads the label {label!r} as {len(tokens)} tokens; a label must be one")
        return tokens[0]

    def _look(self) -> None:
        """See whether the server is back."""
        try:
            served = self.client.models()
            if served is None or not self.served:
                self._probe(served)
            self.breaker.recovered()
        except RequestError:
            self.breaker.failed()

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
                names = ", ".join(await self.client.list_models())
                raise TutorError(f"{self.client.url} serves {names}, no longer {self.served}") from None
            if failed.kind != "status_400":
                self.breaker.failed()
            said = [failed.kind] * len(rows)
        for row, answer in zip(rows, said, strict=True):
            answers[row] = answer

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


def fingerprint(root: str) -> str:
    """Return what tells a model's answers from another's: its id, or for a folder here a hash of its weights."""
    weights = Path(root) / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else root


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
