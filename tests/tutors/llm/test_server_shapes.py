"""Replies in the shapes that llama.cpp, LM Studio, SGLang, TGI and OpenAI really send, through a whole tutor."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.llm_tutors import VIEW, connected_tutor, failures, positions
from tests.helpers.scripted_server import Handler, serving
from tutors.base import TutorError
from tutors.llm.models import find_model
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
