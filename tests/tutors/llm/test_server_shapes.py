"""Replies in the shapes that llama.cpp, LM Studio, SGLang, TGI, Ollama, OpenAI really send, through a whole tutor."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.llm_tutors import VIEW, connected_tutor, failures, positions
from tests.helpers.scripted_server import Handler, serving
from tests.helpers.scripted_server import choice as vllm_choice
from tutors.base import TutorError
from tutors.llm.models import find_model
from tutors.llm.stream import join_stream
from tutors.llm.text_generation import TextGeneration

SHARES = {"D": 0.5, "A": 0.25, "B": 0.1, "E": 0.05, "The": 0.02}
Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


def entries(**more: Any) -> list[dict[str, Any]]:
    """The top log-probabilities of a token, each entry with more fields."""
    return [{"token": token, "logprob": math.log(share), **more} for token, share in SHARES.items()]


def reply(content: Any, logprobs: Any, **message: Any) -> dict[str, Any]:
    """A chat's reply."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "length"}
    return {"object": "chat.completion", "model": "m", "choices": [choice | {"logprobs": logprobs}]}


def at_most_five(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """TGI and others: no more than 5 top log-probabilities."""
    if body.get("top_logprobs", 0) > 5:
        return 422, {
            "error": "Input validation error: `top_logprobs` must be >= 0 and <= 5",
            "error_type": "validation",
        }
    return 200, reply("D", {"content": [{"token": "D", "logprob": -0.69, "top_logprobs": entries()}]})


def new_parameter(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """OpenAI's newer models."""
    if "max_tokens" in body:
        words = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return 400, {"error": {"message": words, "param": "max_tokens", "code": "unsupported_parameter"}}
    first = {"token": "D", "logprob": -0.69, "bytes": [68], "top_logprobs": entries(bytes=[68])}
    return 200, reply("D", {"content": [first], "refusal": None}, refusal=None, annotations=[])


def always(content: Any, logprobs: Any, **message: Any) -> Reply:
    return lambda body: (200, reply(content, logprobs, **message))


LABEL_SHAPES: dict[str, Reply] = {
    "llama.cpp": always(
        "D",
        {
            "content": [
                {"id": 35, "token": "D", "logprob": -0.69, "bytes": [68], "top_logprobs": entries(id=1, bytes=[1])}
            ]
        },
    ),
    "sglang": always(
        "D",
        {"content": [{"token": "D", "logprob": -0.69, "bytes": [68], "top_logprobs": entries(token_id=3)}]},
        reasoning_content=None,
        tool_calls=None,
    ),
    "lm studio": always("D", {"content": [{"token": "D", "logprob": -0.69, "top_logprobs": entries()}]}, tool_calls=[]),
    "tgi": at_most_five,
    "openai": new_parameter,
}


def misbehave(shape: Reply) -> Callable[[Handler, dict[str, Any]], bool]:
    """A server that answers so."""

    def answer(handler: Handler, body: dict[str, Any]) -> bool:
        status, content = shape(body)
        handler.reply(status, content)
        return True

    return answer


@pytest.mark.parametrize("shape", LABEL_SHAPES.values(), ids=LABEL_SHAPES)
@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B-Instruct", "/models/a.gguf", "llama3.2:1b"])
def test_labels_are_read_in_the_shape_of_each_server(shape: Reply, name: str) -> None:
    with serving() as server:
        server.is_vllm, server.models, server.misbehave = False, (name,), misbehave(shape)
        with connected_tutor(server.url, model=find_model("tiny", name)) as tutor:
            advice = tutor.advise(positions(3))
            assert advice.valid.all()
            assert advice.probs.argmax(1).eq(3).all()
            assert failures(tutor) == {}
        assert {body["model"] for body in server.asked} == {name}


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        (None, {}),
        ({"content": None}, {}),
        ({"content": []}, {}),
        ({"content": [{"token": "D", "logprob": 0.0, "top_logprobs": []}]}, {}),
        ({"content": [{"token": "The", "logprob": -0.1, "top_logprobs": entries()}]}, {"reasoning_content": "The"}),
    ],
    ids=["null", "no content", "empty", "no top", "thinking"],
)
def test_server_without_labels_is_refused_naming_text_mode(logprobs: Any, message: dict[str, Any]) -> None:
    with serving() as server:
        server.is_vllm, server.misbehave = False, misbehave(always(None if message else "D", logprobs, **message))
        with pytest.raises(TutorError, match="--tutor-mode text"):
            connected_tutor(server.url).__enter__()


@pytest.mark.parametrize(
    "content", ["<action>D</action>", [{"type": "text", "text": "<action>D</action>"}]], ids=["text", "parts"]
)
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_text_beside_its_thinking_is_read(content: Any, field: str) -> None:
    with serving() as server:
        server.is_vllm = False
        server.misbehave = misbehave(always(content, None, **{field: "<action>A</action> is wrong."}))
        with connected_tutor(server.url, mode=TextGeneration(VIEW, thinks=False)) as tutor:
            advice = tutor.advise(positions(2))
            assert advice.probs[:, 3].eq(1).all()


@pytest.mark.parametrize(
    ("listed", "named"), [("llama3.2:latest", "llama3.2"), ("llama3.2", "llama3.2:latest"), ("a/b:latest", "a/b")]
)
def test_ollamas_tag_need_not_be_typed(listed: str, named: str) -> None:
    with serving() as server:
        server.models = (listed,)
        with connected_tutor(server.url, model=find_model("tiny", named)) as tutor:
            assert tutor.advise(positions(1)).valid.all()
            assert tutor.identity["tutor"] == listed, "one identity, however it is named"
        assert {body["model"] for body in server.asked} == {listed}


def test_another_tag_is_another_model() -> None:
    with serving() as server:
        server.models = ("llama3.2:1b", "llama3.2:latest")
        with connected_tutor(server.url, model=find_model("tiny", "llama3.2")) as tutor:
            assert tutor.identity["tutor"] == "llama3.2:latest"
        server.models = ("llama3.2:1b",)
        with pytest.raises(TutorError, match=r"serves llama3\.2:1b, not llama3\.2 "):
            connected_tutor(server.url, model=find_model("tiny", "llama3.2")).__enter__()


def stream(*chunks: dict[str, Any], end: str = "data: [DONE]\n\n") -> bytes:
    """Chunks as server-sent events, behind a comment that keeps the connection open."""
    return (": ping\n\n" + "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end).encode()


def chat_chunks(*pieces: str) -> list[dict[str, Any]]:
    """A chat's answer in pieces; the first has the log-probabilities of labels."""
    logs = {"content": [{"token": "D", "logprob": -0.69, "top_logprobs": entries()}]}
    deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]
    chunks = [
        {"object": "chat.completion.chunk", "model": "m", "choices": [{"index": 0, "delta": delta, "logprobs": log}]}
        for delta, log in zip(deltas, [None, logs, *[None] * len(pieces)], strict=False)
    ]
    last = {"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = {"model": "m", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    return [*chunks, last, usage]


def test_labels_of_a_stream_that_nobody_asked_for_are_read() -> None:
    with serving() as server:
        server.is_vllm = False
        server.misbehave = lambda handler, body: not handler.send_raw(200, stream(*chat_chunks("D")))
        with connected_tutor(server.url) as tutor:
            assert tutor.advise(positions(2)).probs.argmax(1).eq(3).all()
            assert tutor.stats["prompt_tokens"] == 14


def test_text_of_a_stream_that_nobody_asked_for_is_read() -> None:
    with serving() as server:
        server.is_vllm = False
        chunks = chat_chunks("<act", "ion>", "D</action>")
        server.misbehave = lambda handler, body: not handler.send_raw(200, stream(*chunks))
        with connected_tutor(server.url, mode=TextGeneration(VIEW, thinks=False)) as tutor:
            assert tutor.advise(positions(2)).probs[:, 3].eq(1).all()


def test_completions_of_many_prompts_in_a_stream_are_read() -> None:
    def one_choice_a_chunk(handler: Handler, body: dict[str, Any]) -> bool:
        choices = [vllm_choice(row, body) | {"finish_reason": "length"} for row in range(len(body["prompt"]))]
        handler.send_raw(200, stream(*({"model": body["model"], "choices": [one]} for one in choices[::-1])))
        return True

    with serving() as server:
        server.misbehave = one_choice_a_chunk
        with connected_tutor(server.url) as tutor:
            assert tutor.advise(positions(5)).probs.argmax(1).eq(3).all()


@pytest.mark.parametrize(
    "raw",
    [
        stream(*chat_chunks("D")[:2], end=""),
        stream({"error": {"message": "out of memory"}}),
        stream(end="data: {\n\n"),
        stream(end="data: [1]\n\n"),
        stream({"choices": "many"}),
        stream({"choices": [{"index": [], "delta": 3}]}),
        stream(),
        b"data: \xff\n\n",
    ],
    ids=["broken off", "error", "no JSON", "a list", "no choices", "no delta", "empty", "no text"],
)
def test_stream_that_is_no_reply_is_no_advice(raw: bytes) -> None:
    with serving() as server:
        server.is_vllm = False
        server.text = "<action>D</action>"
        with connected_tutor(server.url, mode=TextGeneration(VIEW, thinks=False)) as tutor:
            server.misbehave = lambda handler, body: not handler.send_raw(200, raw)
            assert not tutor.advise(positions(1)).valid.any()
            assert set(failures(tutor)) <= {"not_json", "error_in_200"}


def test_stream_without_its_end_is_whole_where_each_choice_has_finished() -> None:
    joined = join_stream(stream(*chat_chunks("D", " it is"), end=""))
    assert joined is not None
    (choice,) = joined["choices"]
    assert choice["message"] == {"role": "assistant", "content": "D it is"}
    assert (choice["finish_reason"], joined["usage"]["prompt_tokens"]) == ("stop", 7)
