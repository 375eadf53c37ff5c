"""One server of a language model: which model it serves, through which API, and whether it may be asked now.

Requests stop while the server fails again and again (its breaker is open), and while it serves another model than at
the start, since nobody knows whose advice that would be. Probes find out when it is READY again.
"""

import asyncio
import hashlib
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tutors.base import TutorError, Warner
from tutors.display import printable, printable_list
from tutors.llm.api import (
    API,
    ChatAPI,
    CompletionsAPI,
    Failure,
    LabelRequest,
    Output,
    Request,
    change_for,
    changed,
    oddity_of,
)
from tutors.llm.breaker import Breaker
from tutors.llm.client import KEEPALIVE_S, MIN_RETRY_WAIT_S, Client, RequestError, with_deadline
from tutors.llm.label_logprobs import softmax_or_zeros
from tutors.llm.models import MARK, SERVED, Model, fill_template, with_rendered_template

MAX_CONCURRENT_REQUESTS = 64  # to one server
NUM_INSPECTED = 8  # outputs of a reply that are searched for what a server does otherwise
MAX_CHANGES = 6  # of a request, as the server asks for them
REFUSED_PROMPT = frozenset({"status_400", "status_413", "status_422"})  # the server cannot read it, or it is too long
MAX_PROBABILITY_CHANGE = 0.2  # of a label between two replies of one model: batching changes logits slightly
MAX_USAGE_TOKENS = 1 << 40  # of one reply that are believed: a larger number could not be logged as a float
SPACE_BEHIND_SPECIAL = re.compile(r"(<[^<>\s]+>) ")  # token
LATEST = ":latest"  # the tag of a model of Ollama's that has no other
WEIGHTS_SAMPLE_BYTES = 1 << 20  # at either end of a file of weights, hashed to tell it from others

logger = logging.getLogger(__name__)


class EndpointState(Enum):
    """Whether a server may be asked."""

    UNKNOWN = "it has not been reached yet"
    READY = "it may be asked"
    DOWN = "it failed again and again"
    WRONG_MODEL = "it serves another model than the one it is asked for"


class ModelIdentity(NamedTuple):
    """Whose answers these are: what several servers, and a server before and after a restart, must agree on."""

    fingerprint: str
    uses_chat: bool  # whether the server renders the prompts itself
    template: str = ""  # that the server rendered; empty for one of models.toml


@dataclass(frozen=True)
class ServedModel:
    """What is found out about a server when it is connected."""

    name: str  # under which the model is served
    identity: ModelIdentity
    api: API
    reply_name: Any  # the model's name in the server's replies
    content_free_outputs: list[Output]  # by which the model is recognised


class WrongModelError(TutorError):
    """Another model is served than the one that is asked for."""


class LabelsError(TutorError):
    """The model cannot be asked for these labels: they are no single tokens, or not how its answers begin."""


class Endpoint:
    """One server.

    Args:
        client: HTTP to it.
        model: the model that must be served, and its template.
        request: the kind of request that it will get.
        content_free_prompts: prompts without a position, sent first; their outputs tell the model from others.
        stats: counts prompts (asked), requests, prompt_tokens and answer_tokens.
    """

    def __init__(
        self,
        client: Client,
        model: Model,
        request: Request,
        content_free_prompts: Sequence[str],
        stats: Counter[str],
    ) -> None:
        self.client = client
        self.model = model
        self.request = request
        self.content_free_prompts = list(content_free_prompts)
        self.stats = stats
        self.breaker = Breaker()
        self.warn = Warner(logger)
        self.served: ServedModel | None = None  # None until it is connected
        self.has_wrong_model = False
        self.changes: list[dict[str, Any]] = []  # of every request: what the server asked for at the start
        self.has_said_oddity = False  # what the server does otherwise than it is asked
        self.last_reply_at = -math.inf  # time.monotonic()

    @property
    def state(self) -> EndpointState:
        """Whether the server may be asked, as far as is known."""
        if self.has_wrong_model:
            return EndpointState.WRONG_MODEL
        if self.served is None:
            return EndpointState.UNKNOWN
        return EndpointState.DOWN if self.breaker.is_open else EndpointState.READY

    @property
    def is_available(self) -> bool:
        """Whether prompts may be sent."""
        return self.state is EndpointState.READY

    @property
    def should_probe(self) -> bool:
        """Whether it is time to see which model is there: after some idle seconds, or while the breaker is open."""
        is_idle = time.monotonic() - self.last_reply_at > KEEPALIVE_S
        return self.breaker.should_probe or (is_idle and not self.breaker.is_open)

    async def connect(self, expected: ModelIdentity | None, timeout_s: float) -> None:
        """Find the model among those served, and the API through which it answers requests of this kind.

        Args:
            expected: the identity that it must have, None for any.
            timeout_s: seconds for the first requests.

        Raises:
            RequestError: it does not work now, perhaps later.
            WrongModelError: another model is served.
            TutorError: it will not work until a person acts.
        """
        served = await self._list_models(timeout_s)
        if not served and self.model.is_named:  # the first prompt shows whether it is there
            served = {self.model.name: self.model.model}
        asked = (self.model.name, self.model.model)
        names = [name for name in (*asked, *map(other_tag, asked)) if name in served]
        if self.model.name == SERVED and len(served) == 1:
            names = list(served)
            self.model = replace(self.model, name=names[0], model=served[names[0]])
        if not names:
            raise WrongModelError(
                f"{self.client.url} serves {printable_list(served)}, not {self.model.name} "
                f"({self.model.model}); name a served model with --tutor-model, or ask another server"
            )
        found = fingerprint(served[names[0]])
        if expected is not None and found != expected.fingerprint:
            raise WrongModelError(
                f"{self.client.url} serves {printable(found)}, not {printable(expected.fingerprint)}: "
                "all servers must serve one model"
            )
        if not self.model.template:
            self.model = await with_deadline(timeout_s, self._render_template(names[0]))
        connected = await with_deadline(timeout_s, self._choose_api(names[0], found))
        if expected is not None and connected.identity != expected:
            raise WrongModelError(
                f"{self.client.url} offers another API or chat template than this run's answers came by"
            )
        self.served = connected
        self.last_reply_at = time.monotonic()

    async def probe(self, expected: ModelIdentity | None, timeout_s: float) -> None:
        """Update `state`: connect, or check that the model is still the same.

        Raises:
            TutorError: it will not work until a person acts.
        """
        try:
            if self.served is None:
                await self.connect(expected, timeout_s)
            else:
                await self._check_model(self.served, timeout_s)
        except RequestError:
            self.breaker.record_failure()
        except WrongModelError as error:
            self._set_wrong_model(str(error))
        else:
            self.has_wrong_model = False
            if self.breaker.is_open:
                self.breaker.half_open()

    async def generate(
        self, prompts: Mapping[int, str], request: Request, timeout_s: float, outputs: dict[int, Output]
    ) -> None:
        """Put one output a prompt into `outputs`, under its number and as soon as it is there.

        Those that take longer than `timeout_s` are failures.

        Raises:
            TutorError: it will not work until a person acts.
        """
        assert self.served is not None, "connect comes first"
        size, numbers = self.served.api.max_prompts, list(prompts)
        chunks = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        slots = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)
        until = time.monotonic() + timeout_s

        async def ask(chunk: Sequence[int]) -> None:
            async with slots:
                await self._ask({number: prompts[number] for number in chunk}, request, until, outputs)

        tasks = [asyncio.create_task(ask(chunk)) for chunk in chunks]
        try:
            _, late = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        if late:
            self.breaker.record_failure()
        for number in prompts:
            outputs.setdefault(number, Failure("deadline"))

    async def _ask(self, prompts: dict[int, str], request: Request, until: float, outputs: dict[int, Output]) -> None:
        """Put the outputs of one request into `outputs`.

        One that the server calls bad is halved to find the bad prompt. A bad prompt alone counts as a failure of the
        server: where nothing else is asked, its breaker opens.
        """
        if self.breaker.is_open:
            outputs.update(dict.fromkeys(prompts, Failure("breaker")))
            return
        self.stats["asked"] += len(prompts)
        self.stats["requests"] += 1
        try:
            received = await self._post(list(prompts.values()), request, until)
            outputs.update(zip(prompts, received, strict=True))
        except RequestError as error:
            if error.kind in REFUSED_PROMPT and len(prompts) > 1:
                numbered, half = list(prompts.items()), len(prompts) // 2
                for part in (numbered[:half], numbered[half:]):
                    await self._ask(dict(part), request, until, outputs)
                return
            if error.kind == "status_404":
                self._set_wrong_model(f"{self.client.url} no longer serves {self.model.name}")
            else:
                self.breaker.record_failure()
                if error.retry_wait_s > MIN_RETRY_WAIT_S and time.monotonic() + error.retry_wait_s > until:
                    self.breaker.pause(error.retry_wait_s)
            failure = Failure("other_model" if self.has_wrong_model else error.kind, error.words)
            outputs.update(dict.fromkeys(prompts, failure))

    async def _post(self, prompts: Sequence[str], request: Request, until: float) -> list[Output]:
        """Return the outputs of one request, unless another model has answered it."""
        assert self.served is not None
        api = self.served.api
        body = changed(api.body(self.served.name, prompts, request), self.changes)
        reply = await self.client.post(api.path, body, until)
        reply_name = reply.get("model")
        if isinstance(reply_name, str) and reply_name != self.served.reply_name:
            self._set_wrong_model(f"{self.client.url} answers as {printable(reply_name)!r}")
            return [Failure("other_model")] * len(prompts)
        self.breaker.record_success()
        self.last_reply_at = time.monotonic()
        self.stats["prompt_tokens"] += usage_tokens(reply, "prompt_tokens")
        self.stats["answer_tokens"] += usage_tokens(reply, "completion_tokens")
        outputs = api.parse(reply, len(prompts), request)
        self._say_oddity(outputs, request)
        return outputs

    async def _list_models(self, timeout_s: float) -> dict[str, str]:
        """Return the names of the models served, with what each was loaded from.

        Raises:
            RequestError: no server is there, or none of language models.
        """
        served = await self.client.list_models(timeout_s, self.model.is_named)
        if served is None:
            raise RequestError("refused")
        return served

    async def _choose_api(self, name: str, found: str) -> ServedModel:
        """Return the model with the first API that answers the content-free prompts."""
        wants_labels = isinstance(self.request, LabelRequest)
        label_ids = await self._label_ids(name)
        apis: list[API] = [ChatAPI()] if label_ids is None else [CompletionsAPI(self.model, label_ids), ChatAPI()]
        reason = "no_answer"
        for api in apis:
            self.changes.clear()
            try:
                outputs, reply_name = await self._ask_content_free(api, name)
            except TutorError as error:
                if api is apis[-1]:
                    raise
                reason = str(error)
                continue
            except RequestError as error:
                if error.is_retryable or error.kind == "deadline":
                    raise
                reason = str(error)
                continue
            failures = [output for output in outputs if isinstance(output, Failure)]
            if not wants_labels:  # a text that tokens ended shows that the server answers
                failures = [failure for failure in failures if failure.kind != "unfinished"]
            if failures:
                reason = failures[0].kind
            elif isinstance(self.request, LabelRequest) and not has_labels(outputs, self.request.min_mass):
                reason = "hardly any label among the most likely tokens"
            else:
                uses_chat = isinstance(api, ChatAPI)
                if wants_labels and uses_chat:
                    self.warn("chat", f"{self.client.url} returns top log-probabilities only: rare labels count as 0")
                rendered = self.model.answer_template if self.model.has_special_tokens and not uses_chat else ""
                return ServedModel(name, ModelIdentity(found, uses_chat, rendered), api, reply_name, outputs)
        if wants_labels:
            raise LabelsError(
                f"{self.client.url} does not return the log-probabilities of labels ({reason}): that requires vLLM "
                "0.26 or later, or a chat API with top log-probabilities. To ask for text instead: --tutor-mode text"
            )
        raise TutorError(f"{self.client.url} does not answer a prompt ({reason})")

    async def _ask_content_free(self, api: API, name: str) -> tuple[list[Output], Any]:
        """Return the outputs of the content-free prompts, and the model's name in the reply; nothing is counted."""
        outputs: list[Output] = []
        for start in range(0, len(self.content_free_prompts), api.max_prompts):
            prompts = self.content_free_prompts[start : start + api.max_prompts]
            reply = await self._post_adapted(api.path, api.body(name, prompts, self.request))
            outputs += api.parse(reply, len(prompts), self.request)
        self._say_oddity(outputs, self.request)
        return outputs, reply.get("model")

    def _say_oddity(self, outputs: Sequence[Output], request: Request) -> None:
        """Warn once of what the server does otherwise than it was asked."""
        if not self.has_said_oddity and (oddity := oddity_of(outputs[:NUM_INSPECTED], request)):
            self.has_said_oddity = True
            logger.warning(f"{self.client.url} {oddity}")

    async def _post_adapted(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to `body`; where the server's words show how, it is asked in another form from now on."""
        for _ in range(MAX_CHANGES):
            sent = changed(body, self.changes)
            try:
                return await self.client.post(path, sent)
            except RequestError as error:
                change = change_for(sent, error.words) if error.kind in REFUSED_PROMPT else None
                if change is None:
                    raise
                self.changes.append(change)
                self.warn(str(change), f"{self.client.url} is asked with another {', '.join(change)}: {error.words}")
        return await self.client.post(path, changed(body, self.changes))

    async def _render_template(self, name: str) -> Model:
        """Return the model with the chat template that the server renders; without one where it does not say.

        The server returns the tokens of a rendered message, and their text. The text counts if it has these tokens,
        perhaps without the space that SentencePiece writes behind a special token.
        """
        rendered = []
        for thinking in ({}, {"chat_template_kwargs": {"enable_thinking": False}}):
            message = {"messages": [{"role": "user", "content": MARK}], "add_generation_prompt": True} | thinking
            token_ids = await self._tokenize(name, message)
            decoded = None if token_ids is None else await self._detokenize(name, token_ids)
            for text in () if decoded is None else dict.fromkeys((decoded, SPACE_BEHIND_SPECIAL.sub(r"\1", decoded))):
                if await self._tokenize(name, {"prompt": text, "add_special_tokens": False}) == token_ids:
                    rendered.append(text)
                    break
            else:
                return self.model
        return with_rendered_template(self.model, *rendered) or self.model

    async def _label_ids(self, name: str) -> dict[str, int] | None:
        """Return the token id of each label after a prompt, none for text; None where the server is not vLLM.

        A space may stand before the labels.

        Raises:
            LabelsError: a label is no single token.
        """
        if not self.model.template:
            return None
        prompt = fill_template(self.model.answer_template, self.content_free_prompts[0])
        options = {"add_special_tokens": False} if self.model.has_special_tokens else {}
        prompt_ids = await self._tokenize(name, {"prompt": prompt} | options)
        if prompt_ids is None:
            return None
        labels = self.request.labels if isinstance(self.request, LabelRequest) else ()
        for before_label in dict.fromkeys((self.model.before_label, " ")):
            label_ids: dict[str, int] = {}
            for label in labels:
                token_ids = await self._tokenize(name, {"prompt": prompt + before_label + label} | options) or []
                if (
                    token_ids[:-1] == prompt_ids and token_ids[-1] not in label_ids.values()
                ):  # one is for all unknown text
                    label_ids[label] = token_ids[-1]
                elif (token_id := await self._token_after(name, prompt_ids, before_label + label)) is not None:
                    label_ids[label] = token_id
                else:
                    count = len(token_ids) - len(prompt_ids)
                    break
            else:
                self.model = replace(self.model, before_label=before_label)
                return label_ids
        read = f"as {count} tokens" if count > 1 else "like another label"
        raise LabelsError(
            f"{name} reads the label {label!r} {read} after its prompt; it must be one token of its own. To ask "
            "for text instead: --tutor-mode text"
        )

    async def _token_after(self, name: str, prompt_ids: list[int], text: str) -> int | None:
        """Return the one token that is `text` where it follows a prompt's tokens, None if there is none.

        A tokenizer may split a prompt's end, such as two line breaks, otherwise where a letter follows in one text.
        """
        token_ids = await self._tokenize(name, {"prompt": f"\n{text}", "add_special_tokens": False})
        if token_ids is None:
            return None
        before, after = [await self._detokenize(name, ids) for ids in (prompt_ids, [*prompt_ids, token_ids[-1]])]
        return token_ids[-1] if before is not None and after == before + text else None

    async def _detokenize(self, name: str, token_ids: list[int]) -> str | None:
        """Return the text of tokens, None where the server does not say."""
        reply = await self._post_or_none("/detokenize", {"model": name, "tokens": token_ids})
        text = None if reply is None else reply.get("prompt")
        return text if isinstance(text, str) else None

    async def _tokenize(self, name: str, what: dict[str, Any]) -> list[int] | None:
        """Return the token ids of a prompt or of messages in the served model, None where the server does not say."""
        reply = await self._post_or_none("/tokenize", {"model": name} | what)
        token_ids = None if reply is None else reply.get("tokens")
        is_list = isinstance(token_ids, list) and token_ids and all(isinstance(token, int) for token in token_ids)
        return token_ids if is_list else None

    async def _post_or_none(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return the reply to a request that only vLLM answers, None where it is refused."""
        try:
            return await self.client.post(path, body)
        except TutorError:
            return None
        except RequestError as error:
            if error.is_retryable and not error.kind.startswith("status_"):
                raise
            return None

    async def _check_model(self, served: ServedModel, timeout_s: float) -> None:
        """Check that the model is the one that was connected.

        Raises:
            RequestError: no server is there.
            WrongModelError: it is another one.
        """
        listed = await self._list_models(timeout_s)
        is_listed = fingerprint(listed.get(served.name, "")) == served.identity.fingerprint
        if not is_listed and (listed or not self.model.is_named):
            raise WrongModelError(f"{self.client.url} serves {printable_list(listed)}")
        self.last_reply_at = time.monotonic()
        if not isinstance(self.request, LabelRequest):
            return  # generated text costs too much, and varies
        outputs, _ = await with_deadline(timeout_s, self._ask_content_free(served.api, served.name))
        for output, known in zip(outputs, served.content_free_outputs, strict=True):
            if probability_change(output, known) > MAX_PROBABILITY_CHANGE:
                raise WrongModelError(f"{self.client.url} answers otherwise than before, under the same name")

    def _set_wrong_model(self, what: str) -> None:
        """Stop requests until the model is back."""
        self.has_wrong_model = True
        self.breaker.open()
        self.warn("other_model", f"{what}: its advice is not used, and not kept, until {self.model.name} is back")


def has_labels(outputs: Sequence[Output], min_mass: float) -> bool:
    """Return whether a label is possible in every output, and the labels' mean probability is at least `min_mass`."""
    masses = [0.0 if isinstance(output, Failure) else sum(math.exp(float(log)) for log in output) for output in outputs]
    return min(masses) > 0 and sum(masses) >= min_mass * len(masses)


def other_tag(name: str) -> str:
    """Return how Ollama lists a model that is named without a tag, or the name that another server has for it."""
    return name.removesuffix(LATEST) if name.endswith(LATEST) else name + LATEST


def usage_tokens(reply: dict[str, Any], name: str) -> int:
    """Return a count of tokens in a reply's `usage`, 0 where it is none that can be believed."""
    usage = reply.get("usage")
    tokens = usage.get(name) if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and 0 <= tokens <= MAX_USAGE_TOKENS else 0


def probability_change(output: Output, known: Output) -> float:
    """Return the largest difference between two outputs as distributions over the labels; infinite for a failure."""
    if isinstance(output, Failure) or isinstance(known, Failure):
        return math.inf
    probs = softmax_or_zeros(torch.tensor([output, known], dtype=torch.float64))
    return (probs[0] - probs[1]).abs().max().item()


def fingerprint(root: str) -> str:
    """Return what tells a model's answers from another's: its id, or a hash of its weights for a local folder."""
    weights = Path(root) / "model.safetensors"
    try:
        is_local = bool(root) and weights.is_file()
    except (OSError, ValueError):  # no name of a file
        is_local = False
    if not is_local:
        return root
    size = weights.stat().st_size
    with weights.open("rb") as file:
        first = file.read(WEIGHTS_SAMPLE_BYTES)
        file.seek(max(size - WEIGHTS_SAMPLE_BYTES, 0))
        return hashlib.sha256(first + file.read(WEIGHTS_SAMPLE_BYTES) + str(size).encode()).hexdigest()
