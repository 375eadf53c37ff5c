"""The two ways in which servers of language models are spoken to, and what their answers hold.

vLLM takes many prompts in one request, rendered by us, and returns the log-probability of any token. Every other
OpenAI-compatible server takes a conversation, which it renders itself, and returns some top log-probabilities.

An answer is what a reader may rely on: log-probabilities that are numbers, texts that are strings; or the kind of
trouble. What a server sends is data, whatever it is.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tutors.llm.models import Model, fill

TOP = 20  # log-probabilities that a chat server is asked for, the most that most of them give
NOTHING = -1000.0  # a log-probability from which on a label counts as impossible: vLLM writes -9999 for minus infinity


class Trouble(str):
    """Why there is no answer: the kind of silence that comes of it."""

    __slots__ = ()


@dataclass(frozen=True)
class Labels:
    """Ask for the log-probability of each of these letters as the next token."""

    letters: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """Ask for so many texts a prompt."""

    tokens: int  # at most, each
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    schema: str = ""  # a JSON schema that the server must keep to


Wanted = Labels | Text
Answer = tuple[float, ...] | tuple[str, ...] | Trouble  # a log-probability for each letter, or texts


class Dialect(Protocol):
    """How a server is asked."""

    path: str
    chunk: int  # prompts a request

    def body(self, model: str, words: Sequence[str], wanted: Wanted) -> dict[str, Any]:
        """Return the request that asks these questions."""

    def read(self, reply: dict[str, Any], count: int, wanted: Wanted) -> list[Answer]:
        """Return the answers to `count` questions in the order of asking."""


class Completions:
    """vLLM's: `/v1/completions`, many prompts a request, any token's log-probability (0.26 or later).

    Args:
        model: whose templates the prompts are rendered with.
        ids: the served model's token for each letter.
    """

    path, chunk = "/v1/completions", 1024

    def __init__(self, model: Model, ids: dict[str, int]) -> None:
        self.model, self.ids = model, ids

    def body(self, model: str, words: Sequence[str], wanted: Wanted) -> dict[str, Any]:
        if isinstance(wanted, Labels):
            return {
                "model": model,
                "prompt": [fill(self.model.brief, text) for text in words],
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": 1,
                "logprob_token_ids": [self.ids[letter] for letter in wanted.letters],
                "return_tokens_as_token_ids": True,
            }
        template = self.model.brief if wanted.schema else self.model.template  # thinking is no JSON
        prompts = [fill(template, text) for text in words]
        bound = {"structured_outputs": {"json": json.loads(wanted.schema)}} if wanted.schema else {}
        return {"model": model, "prompt": prompts, "n": wanted.samples} | sampling(wanted) | bound

    def read(self, reply: dict[str, Any], count: int, wanted: Wanted) -> list[Answer]:
        samples = 1 if isinstance(wanted, Labels) else wanted.samples
        choices = sort_choices(reply, count * samples)
        if isinstance(wanted, Labels):
            keys = [f"token_id:{self.ids[letter]}" for letter in wanted.letters]
            return [logs_of(dig(choice, "logprobs", "top_logprobs", 0), keys) for choice in choices]
        texts = [text_of(dig(choice, "text")) for choice in choices]
        return [gather(texts[start : start + samples]) for start in range(0, len(texts), samples)]


class Chat:
    """Everybody's: `/v1/chat/completions`, one conversation a request; labels only as far as the top log-probs go."""

    path, chunk = "/v1/chat/completions", 1

    def body(self, model: str, words: Sequence[str], wanted: Wanted) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": words[0]}]}
        if isinstance(wanted, Labels):
            return asked | {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": TOP}
        bound: dict[str, Any] = {}
        if wanted.schema:
            named = {"name": "answer", "schema": json.loads(wanted.schema), "strict": True}
            bound = {"response_format": {"type": "json_schema", "json_schema": named}}
        return asked | {"n": wanted.samples} | sampling(wanted) | bound

    def read(self, reply: dict[str, Any], count: int, wanted: Wanted) -> list[Answer]:
        if isinstance(wanted, Text):
            choices = sort_choices(reply, wanted.samples)
            return [gather([text_of(dig(choice, "message", "content")) for choice in choices])]
        top = dig(sort_choices(reply, 1)[0], "logprobs", "content", 0, "top_logprobs")
        if not isinstance(top, list):
            return [top if isinstance(top, Trouble) else Trouble("malformed")]
        logs = dict.fromkeys(wanted.letters, -math.inf)  # a letter that is not among the top is taken for impossible
        for entry in top:
            letter, log = dig(entry, "token"), dig(entry, "logprob")
            if not isinstance(letter, str) or isinstance(letter, Trouble) or not is_log(log):
                return [Trouble("malformed")]
            letter = letter.strip()  # with and without a space before it: two tokens, one letter
            if letter in logs:
                logs[letter] = add_logs(logs[letter], as_float(log))
        return [tuple(logs.values())]


def sampling(wanted: Text) -> dict[str, Any]:
    """Return the settings that both dialects write alike."""
    return {"max_tokens": wanted.tokens, "temperature": wanted.temperature, "seed": wanted.seed}


def sort_choices(reply: dict[str, Any], count: int) -> list[Any]:
    """Return the choice of each index; Trouble where there is none, or two."""
    sorted_: list[Any] = [Trouble("no_answer")] * count
    choices = reply.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        index = dig(choice, "index")
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < count:
            is_first = sorted_[index] == "no_answer" and isinstance(sorted_[index], Trouble)
            sorted_[index] = choice if is_first else Trouble("malformed")
    return sorted_


def dig(found: Any, *path: str | int) -> Any:
    """Return what lies at `path` within JSON, the Trouble that was met on the way, or that there is no such path."""
    for step in path:
        if isinstance(found, Trouble):
            return found
        try:
            found = found[step]
        except (TypeError, KeyError, IndexError):
            return Trouble("malformed")
    return found


def is_log(log: Any) -> bool:
    """Whether this is a log-probability: a number, not above 0 but for rounding."""
    return isinstance(log, int | float) and not isinstance(log, bool) and log <= 1e-3


def as_float(log: float) -> float:
    """Return a log-probability, which may be a whole number too large for a float."""
    return float(log) if log > NOTHING else -math.inf


def logs_of(found: Any, keys: list[str]) -> Answer:
    """Return the log-probabilities under `keys`."""
    logs = [dig(found, key) for key in keys]
    troubles = [log for log in logs if not is_log(log)]
    if troubles:
        return troubles[0] if isinstance(troubles[0], Trouble) else Trouble("malformed")
    return tuple(as_float(log) for log in logs)


def text_of(found: Any) -> str:
    """Return a text, or the Trouble in its place."""
    return found if isinstance(found, str) else Trouble("malformed")


def gather(texts: list[str]) -> Answer:
    """Return the texts that came, or the first Trouble where none did."""
    came = tuple(text for text in texts if not isinstance(text, Trouble))
    return came or Trouble(texts[0])


def add_logs(left: float, right: float) -> float:
    """Return the log of the sum of two probabilities."""
    high, low = max(left, right), min(left, right)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
