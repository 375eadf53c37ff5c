"""Whole bodies of replies, sound ones that something was done to, with any status: an answer or a counted failure."""

import asyncio
import json
import math
from random import Random
from typing import Any

import pytest
import torch

import envs
from tests.helpers.fuzzing import cases
from tutors.base import TutorError
from tutors.llm.api import ChatAPI, CompletionsAPI, LabelRequest, TextRequest, oddity_of
from tutors.llm.client import MAX_WORDS, Client, RequestError, parse_reply
from tutors.llm.label_logprobs import LabelLogprobs
from tutors.llm.models import Model
from tutors.llm.text_generation import TextGeneration
from tutors.prompts import make_view

VIEW = make_view(envs.make_game("snake"), "full")
LETTERS = ("A", "B", "C", "D")
IDS = {letter: 65 + number for number, letter in enumerate(LETTERS)}
APIS = (ChatAPI(), CompletionsAPI(Model("m", "m", "{words}"), IDS))
STATUSES = [200] * 6 + [204, 301, 400, 401, 402, 403, 404, 413, 422, 429, 500, 503, 599]
ODD: list[Any] = [
    *(None, True, 0, -1, 1e308, -1e308, 10**400, math.nan, math.inf, "", "A", "\ud800", "\x00\x1b[31m", [], {}, [[]]),
    *("x" * 5000, {"message": {"content": [{"text": None}]}}, "<action>A</action>", "NaN", [None] * 50, {"index": 0}),
]


def sound(rng: Random) -> dict[str, Any]:
    """A reply of the kinds that servers send."""
    tops = [{"token": letter, "logprob": -rng.random() * 9} for letter in (*LETTERS, " A", "The")]
    logprobs = {
        "content": [{"top_logprobs": tops}],
        "top_logprobs": [{f"token_id:{IDS[one]}": -1.4 for one in LETTERS}],
    }
    text = rng.choice(["<action>A</action>", "<think>x</think><action>D</action>", "A", "no idea"])
    choices = [
        {"index": row, "text": text, "message": {"content": text}, "logprobs": logprobs, "finish_reason": "stop"}
        for row in range(rng.randint(0, 3))
    ]
    reply = {"model": "m", "choices": choices, "usage": {"prompt_tokens": 5}, "data": [{"id": "m", "root": "r"}]}
    return reply if rng.random() < 0.8 else {"error": {"message": "no", "code": 3}}


def damaged(rng: Random, value: Any) -> Any:
    """The same JSON with something odd in one place."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(ODD)
    copy = dict(value) if isinstance(value, dict) else list(value)
    place = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    copy[place] = damaged(rng, copy[place])  # type: ignore[call-overload, index]
    return copy


def body(rng: Random) -> bytes:
    """A body: JSON, JSON with flipped or missing bytes, or anything."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randint(0, 60))
    reply: Any = sound(rng)
    for _ in range(rng.randint(0, 3)):
        reply = damaged(rng, reply)
    raw = json.dumps(reply).encode()
    if kind < 0.2:
        return raw[: rng.randint(0, len(raw))]
    if kind < 0.35 and raw:
        at = rng.randrange(len(raw))
        return raw[:at] + rng.randbytes(rng.randint(1, 3)) + raw[at + 1 :]
    return raw if kind < 0.98 else b"[" * 20_000 + raw


@pytest.mark.process
def test_ten_thousand_random_bodies_are_an_answer_or_a_counted_failure() -> None:
    answered, failures = 0, list[tuple[bool, int, str]]()
    for rng in cases("server bodies", 10_000):
        status, raw, mask = rng.choice(STATUSES), body(rng), torch.ones(1, 4, dtype=torch.bool)
        try:
            reply = parse_reply(status, raw, 0.1, "http://h", ("canary",))
        except RequestError as error:
            failures.append((error.kind.isidentifier(), status, error.words))
            continue
        except TutorError as error:
            failures.append((status in (401, 402, 403, 429), status, str(error)))
            continue
        assert status == 200
        for api in APIS:
            for request, mode in (
                (LabelRequest(LETTERS), LabelLogprobs(VIEW)),
                (TextRequest(9, n=2), TextGeneration(VIEW, thinks=False, samples=2)),
            ):
                outputs = api.parse(reply, 1, request)
                oddity_of(outputs, request)
                (probs, valid, mass), (failure,) = mode.parse(outputs, mask)
                assert valid == (failure is None)
                assert not valid or math.isclose(probs.sum(), 1, abs_tol=1e-5)
                assert 0 <= mass <= 1
                answered += bool(valid)
    assert answered > 1000
    assert len(failures) > 1000
    for is_due, status, words in failures:
        assert is_due, (status, words)
        assert words.isprintable()
        assert len(words) <= MAX_WORDS + 200


def test_random_lists_of_models_are_names_or_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    client, raw = Client("http://h"), b""

    async def fetch(*_arguments: object) -> tuple[int, bytes, float]:
        return 200, raw, 0.1

    monkeypatch.setattr(client, "fetch", fetch)
    listed, kinds = 0, set[str]()
    with asyncio.Runner() as runner:
        for rng in cases("lists of models", 300):
            raw = body(rng)
            try:
                models = runner.run(client.list_models())
            except RequestError as error:
                kinds.add(error.kind)
                continue
            listed += 1
            assert all(name.encode() and len(name) <= 1000 for name in (*models, *models.values()) if name)
    assert listed > 50
    assert kinds == {"not_json", "error_in_200", "no_list_of_models"}
