"""The two HTTP APIs that servers of language models speak: how a request is written, and what its reply holds.

vLLM's completions API takes many prompts a request, in our template, and returns the log-probability of any token.
Every other OpenAI-compatible server takes one conversation a request, renders it itself, and returns a few of the top
log-probabilities.

A reply is data, whatever it holds: an `Output` is checked here, or it is a `Failure`.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from tutors.display import encodable
from tutors.llm.models import Model, fill_template
from tutors.llm.thinking import begins_thinking

MAX_PROMPTS_PER_REQUEST = 1024  # of the completions API
MAX_TOP_LOGPROBS = 20  # that most chat servers return
IMPOSSIBLE_LOGPROB = -1000.0  # at or below it a label counts as impossible: vLLM writes -9999 for minus infinity
MAX_LOGPROB = 1e-3  # a log-probability above 0 by more than rounding is malformed
MAX_TOTAL = 1.01  # of the probabilities of different tokens, with rounding
FEW_TOP_LOGPROBS = 5  # that a server returns which refuses more and does not say how many
OPTIONAL_PARAMETERS = ("temperature", "seed", "n", "response_format", "structured_outputs", "chat_template_kwargs")
WORD_LABELS = frozenset({"A", "I"})  # that begin a sentence as well
MAX_WORD_SHARE = 2 / 3  # of the labels' probability that word labels may hold where the answer begins with a word
CUT = frozenset({"length", "max_tokens", "model_length"})  # finish reasons of a text that max_tokens ended
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")  # of a message, in which servers return thinking
SPACE_MARKS = str.maketrans("▁ĠĊĉč", "     ")  # how SentencePiece and byte-level tokenizers write white space
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>|\\x([0-9A-Fa-f]{2})")  # a byte of SentencePiece's, of OpenAI's

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Failure:
    """Why there is no output, or no advice."""

    kind: str  # an identifier: counted under tutor/no_advice/<kind>
    words: str = field(default="", compare=False)  # of the server, where it says more


class CutText(str):
    """A text that ended at its maximum of tokens."""


@dataclass(frozen=True)
class LabelRequest:
    """Ask for the log-probability of each label as the next token."""

    labels: tuple[str, ...]
    min_mass: float = 0.0  # that the labels must have together in the first answers, else the model answers otherwise


@dataclass(frozen=True)
class TextRequest:
    """Ask for generated text; the fields are those of vLLM's SamplingParams."""

    max_tokens: int
    n: int = 1  # texts for each prompt
    temperature: float = 0.0
    seed: int = 0
    json_schema: str = ""  # that the server must enforce
    no_thinking: bool = False  # the thinking that the template begins is closed, or switched off

    def sampling_params(self) -> dict[str, Any]:
        """Return the settings that both APIs write in the same way."""
        return {"n": self.n, "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}


Request = LabelRequest | TextRequest
Output = tuple[float, ...] | tuple[str, ...] | Failure  # of one prompt: a log-probability for each label, or texts


class API(Protocol):
    """How requests are written and replies are read."""

    path: str
    max_prompts: int  # in one request

    def body(self, model: str, prompts: Sequence[str], request: Request) -> dict[str, Any]:
        """Return the JSON body that asks `model` about `prompts`."""

    def parse(self, reply: dict[str, Any], num_prompts: int, request: Request) -> list[Output]:
        """Return one output a prompt, in the order of the prompts."""


class CompletionsAPI:
    """vLLM's `/v1/completions` (0.26 or later): many prompts a request, the log-probability of any token.

    Args:
        model: whose template the prompts are rendered in.
        label_ids: the token id of each label in the served model's vocabulary.
    """

    path, max_prompts = "/v1/completions", MAX_PROMPTS_PER_REQUEST

    def __init__(self, model: Model, label_ids: dict[str, int]) -> None:
        self.model = model
        self.label_ids = label_ids

    def body(self, model: str, prompts: Sequence[str], request: Request) -> dict[str, Any]:
        if isinstance(request, LabelRequest):
            return self._start(model, self.model.answer_template, prompts) | {
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": 1,
                "logprob_token_ids": [self.label_ids[label] for label in request.labels],
                "return_tokens_as_token_ids": True,
            }
        # A schema binds the very next token, so the thinking that a template begins must be closed before it.
        is_closed = request.no_thinking or request.json_schema
        template = self.model.answer_template if is_closed else self.model.template
        body = self._start(model, template, prompts)
        if request.json_schema:
            body["structured_outputs"] = {"json": json.loads(request.json_schema)}
        return body | request.sampling_params()

    def _start(self, model: str, template: str, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the body with the prompts in a template; vLLM adds special tokens where they are not in it."""
        body: dict[str, Any] = {"model": model, "prompt": [fill_template(template, prompt) for prompt in prompts]}
        return body | {"add_special_tokens": False} if self.model.has_special_tokens else body

    def parse(self, reply: dict[str, Any], num_prompts: int, request: Request) -> list[Output]:
        if isinstance(request, LabelRequest):
            labels, keys = request.labels, [f"token_id:{self.label_ids[label]}" for label in request.labels]
            return list(parse_choices(reply, num_prompts, lambda choice: completion_logprobs(choice, keys, labels)))
        n = 1 if ignores_n(reply, num_prompts, request.n) else request.n
        texts = parse_choices(reply, num_prompts * n, lambda choice: text_of(choice, choice["text"]))
        return [join_samples(texts[start : start + n]) for start in range(0, len(texts), n)]


class ChatAPI:
    """OpenAI's `/v1/chat/completions`: one conversation a request, labels only among the top log-probabilities."""

    path, max_prompts = "/v1/chat/completions", 1

    def body(self, model: str, prompts: Sequence[str], request: Request) -> dict[str, Any]:
        (prompt,) = prompts
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        if isinstance(request, LabelRequest):
            return body | {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": MAX_TOP_LOGPROBS}
        if request.json_schema:
            schema = {"name": "answer", "schema": json.loads(request.json_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.no_thinking:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        return body | request.sampling_params()

    def parse(self, reply: dict[str, Any], num_prompts: int, request: Request) -> list[Output]:
        assert num_prompts == 1, "a chat request holds one conversation"
        if isinstance(request, LabelRequest):
            labels = request.labels
            return list(parse_choices(reply, 1, lambda choice: chat_logprobs(choice, labels)))
        return [
            join_samples(parse_choices(reply, request.n, lambda choice: text_of(choice, choice["message"]["content"])))
        ]


def change_for(body: dict[str, Any], words: str) -> dict[str, Any] | None:
    """Return the change of a body that the words of a server that refuses it ask for, None where they ask for none.

    A change is what stands in place of a parameter: another name, a bound of its number, or nothing.
    """
    if re.search(r"context|too (large|long)", words, re.IGNORECASE) and "top_logprobs" not in words:
        return None  # the prompt is too long
    numbers = [int(number) for number in re.findall(r"(?<![\w.])\d{1,6}(?![\w.]*\w)", words)]
    if "max_tokens" in body and "max_completion_tokens" in words:
        return {"max_tokens": "max_completion_tokens"}
    if names_parameter(words, "top_logprobs") and "top_logprobs" in body:
        lower = max((number for number in numbers if 0 < number < body["top_logprobs"]), default=FEW_TOP_LOGPROBS)
        return {"top_logprobs": lower} if lower < body["top_logprobs"] else None
    for name in ("max_tokens", "max_completion_tokens"):
        higher = [number for number in numbers if number > 1]
        if body.get(name) == 1 and names_parameter(words, name, "max_output_tokens", "token") and higher:
            return {name: min(higher)}
    named = [name for name in OPTIONAL_PARAMETERS if name in body and names_parameter(words, name)]
    return dict.fromkeys(named) or None


def names_parameter(words: str, *names: str) -> bool:
    """Return whether a server's words name one of a request's parameters; one letter counts in quotes."""
    return any(
        re.search(rf"(?<!\w){name}s?(?!\w)" if len(name) > 1 else rf"['\"`.]{name}['\"`]|^{name}(?!\w)", words)
        for name in names
    )


def changed(body: dict[str, Any], changes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a request's body with `changes` made."""
    for change in changes:
        for name, new in change.items():
            if name in body:
                value = body[name]
                body = {key: kept for key, kept in body.items() if key != name}
                if isinstance(new, str):
                    body |= {new: value}
                elif new is not None:
                    body |= {name: min(value, new) if name == "top_logprobs" else max(value, new)}
    return body


class MalformedError(Exception):
    """A reply does not hold what was asked for."""


def parse_choices(reply: dict[str, Any], count: int, parse: Callable[[Any], Parsed]) -> list[Parsed | Failure]:
    """Return what `parse` makes of the choice of each index, 0 to `count` - 1.

    Where no choice has an index, their order counts. A missing choice is the failure `no_answer`. One that comes twice,
    or that `parse` cannot read, is `malformed`.
    """
    choices = reply.get("choices")
    by_index: dict[int, list[Any]] = {}
    if isinstance(choices, list) and not any(isinstance(choice, dict) and "index" in choice for choice in choices):
        by_index = {index: [choice] for index, choice in enumerate(choices)}
        choices = []
    for choice in choices if isinstance(choices, list) else []:
        index = choice.get("index") if isinstance(choice, dict) else None
        if type(index) is int:  # True is an int as well
            by_index.setdefault(index, []).append(choice)
    parsed: list[Parsed | Failure] = []
    for index in range(count):
        found = by_index.get(index, [])
        try:
            parsed.append(parse(found[0]) if len(found) == 1 else Failure("malformed" if found else "no_answer"))
        except (MalformedError, TypeError, KeyError, IndexError, AttributeError):  # no such path in the JSON
            parsed.append(Failure("malformed"))
    return parsed


def ignores_n(reply: dict[str, Any], num_prompts: int, n: int) -> bool:
    """Return whether a server that was asked for `n` texts for each of several prompts returns one for each."""
    choices = reply.get("choices")
    if n == 1 or num_prompts == 1 or not isinstance(choices, list) or len(choices) != num_prompts:
        return False
    indices = [choice.get("index", place) if isinstance(choice, dict) else None for place, choice in enumerate(choices)]
    return sorted(index for index in indices if type(index) is int) == list(range(num_prompts))


def oddity_of(outputs: Sequence[Output], request: Request) -> str | None:
    """Return what a server does otherwise than it was asked, where answers can be read all the same."""
    if isinstance(request, LabelRequest):
        totals = (sum(math.exp(float(log)) for log in output) for output in outputs if not isinstance(output, Failure))
        if max(totals, default=0.0) > MAX_TOTAL:
            return (
                "returns log-probabilities whose probabilities add up to more than 1: only their ratios count, and "
                "--min-label-mass has no effect"
            )
    elif request.n > 1 and any(not isinstance(output, Failure) and len(output) < request.n for output in outputs):
        return f"returns fewer texts than the {request.n} of --tutor-samples: the advice is the share among those"
    return None


def completion_logprobs(choice: Any, keys: Sequence[str], labels: Sequence[str]) -> tuple[float, ...] | Failure:
    """Return the log-probabilities of `labels`, whose tokens are `keys`, in a choice of the completions API."""
    top = choice["logprobs"]["top_logprobs"][0]
    logprobs = {label: as_logprob(top[key]) for label, key in zip(labels, keys, strict=True)}
    text = choice.get("text")
    return Failure("unfinished") if isinstance(text, str) and is_prose(text, logprobs) else tuple(logprobs.values())


def chat_logprobs(choice: Any, labels: Sequence[str]) -> tuple[float, ...] | Failure:
    """Return the log-probabilities of `labels` in a choice of the chat API.

    Tokens that name the same label, such as those with and without a space before it, have their probabilities added. A
    label that is not among the top counts as impossible. Where the first token is not the answer's, nothing is known.
    """
    message = choice.get("message")
    if isinstance(message, dict) and (
        any(message.get(field) for field in REASONING_FIELDS) or not message.get("content", True)
    ):
        return Failure("unfinished")
    top = choice["logprobs"]["content"][0]["top_logprobs"]
    if not isinstance(top, list):
        raise MalformedError
    logprobs = dict.fromkeys(labels, -math.inf)
    likeliest, highest = "", -math.inf
    for entry in top:
        text, logprob = token_text(entry), as_logprob(entry["logprob"])
        if logprob > highest:
            likeliest, highest = text, logprob
        label = label_of(text, labels)
        if label is not None:
            logprobs[label] = logaddexp(logprobs[label], logprob)
    return Failure("unfinished") if is_prose(likeliest, logprobs) else tuple(logprobs.values())


def text_of(choice: Any, content: Any) -> str | Failure:
    """Return the text of a choice, `unfinished` where its tokens ended before one began.

    Content may be a list of parts, of which those of text count; null with a finish reason is empty.
    """
    reason = choice.get("finish_reason")
    if isinstance(content, list):
        content = "".join(as_text(part["text"]) for part in content if part.get("type", "text") == "text")
    if content is None and isinstance(reason, str):
        content = ""
    text = as_text(content)
    if isinstance(reason, str) and reason.lower() in CUT:
        return CutText(text) if text.strip() else Failure("unfinished")
    return text


def token_text(entry: Any) -> str:
    """Return the text that a token of a chat's log-probabilities stands for, with spaces in place of their marks."""
    token = as_text(entry["token"])
    if BYTE_TOKEN.search(token):
        token = BYTE_TOKEN.sub(lambda byte: chr(int(byte[1] or byte[2], 16)), token.removeprefix("bytes:"))
        token = token.encode("latin-1", "replace").decode(errors="replace")
    return token.removesuffix("</w>").translate(SPACE_MARKS)


def label_of(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that a token names: alone but for signs and space around it, in capitals or not."""
    alone = re.fullmatch(r"[\W_]*([^\W_])[\W_]*", text)
    label = alone[1].upper() if alone else ""
    return label if label in labels else None


def is_prose(text: str, logprobs: dict[str, float]) -> bool:
    """Return whether `text`, the likeliest next token, begins thinking or a sentence in place of a label.

    In a sentence a label that is an English word proves nothing, where the others have little beside it.
    """
    if begins_thinking(text):
        return True
    if not text.strip().isalpha() or label_of(text, tuple(logprobs)) is not None:
        return False
    words = sum(math.exp(logprob) for label, logprob in logprobs.items() if label in WORD_LABELS)
    return words > MAX_WORD_SHARE * sum(map(math.exp, logprobs.values()))


def join_samples(texts: Sequence[str | Failure]) -> Output:
    """Return the texts that came for one prompt, or the first failure where none did."""
    received = tuple(text for text in texts if isinstance(text, str))
    failures = [text for text in texts if isinstance(text, Failure)]
    return received or failures[0]


def as_logprob(value: Any) -> float:
    """Return a log-probability of a reply: not above 0, minus infinity from IMPOSSIBLE_LOGPROB on.

    Raises:
        MalformedError: it is no number, or not a log-probability.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not value <= MAX_LOGPROB:  # NaN is not
        raise MalformedError
    return float(value) if value > IMPOSSIBLE_LOGPROB else -math.inf  # a huge integer would not fit a float


def as_text(value: Any) -> str:
    """Return a text of a reply, encodable.

    Raises:
        MalformedError: it is no text.
    """
    if not isinstance(value, str):
        raise MalformedError
    return encodable(value)


def logaddexp(left: float, right: float) -> float:
    """Return log(exp(left) + exp(right)), also where both are minus infinity."""
    high, low = max(left, right), min(left, right)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
