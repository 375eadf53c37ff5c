"""Models that are known by their name alone, with real tokenizers of each kind and chat templates of each kind.

The server answers /tokenize and /detokenize as vLLM does, with toy tokenizers that are trained here.
"""

from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer

from tests.helpers.llm_tutors import connected_tutor, positions
from tests.helpers.scripted_server import Server, serving
from tests.helpers.tokenizer_kinds import KINDS, LETTERS, TEMPLATES
from tutors.llm.models import Model

OWN = Model("org/model", "org/model", "")


def speak(server: Server, tokenizer: Tokenizer, template: str) -> None:
    """Let the server tokenize as vLLM does."""

    def tokenize(body: dict[str, Any]) -> list[int]:
        if "messages" in body:
            kwargs = body.get("chat_template_kwargs", {})
            text = jinja2.Template(template, keep_trailing_newline=True).render(messages=body["messages"], **kwargs)
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        return list(tokenizer.encode(body["prompt"], add_special_tokens=body.get("add_special_tokens", True)).ids)

    def detokenize(token_ids: list[int]) -> str:
        return str(tokenizer.decode(token_ids, skip_special_tokens=False))

    server.tokenize, server.detokenize = tokenize, detokenize  # type: ignore[method-assign]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_model_of_any_kind_is_asked_by_its_name_alone(kind: str, template: str) -> None:
    tokenizer = KINDS[kind]()
    text, end = TEMPLATES[template]
    with serving() as server:
        server.models = ("org/model",)
        speak(server, tokenizer, text)
        with connected_tutor(server.url, model=OWN) as tutor:
            server.asked.clear()
            tutor.advise(positions(2))
            assert not tutor.pool.identity.uses_chat
            (body,) = server.asked
            assert body["add_special_tokens"] is False
            assert body["prompt"][0].endswith(end)
            tokens = [tokenizer.id_to_token(token) for token in body["logprob_token_ids"]]
            assert [token.lstrip("▁Ġ") for token in tokens] == list(LETTERS)
            prompt_ids = tokenizer.encode(body["prompt"][0], add_special_tokens=False).ids
            rendered = tokenizer.decode(prompt_ids, skip_special_tokens=False)
            for letter, token in zip(LETTERS, body["logprob_token_ids"], strict=True):
                following = tokenizer.decode([*prompt_ids, token], skip_special_tokens=False)
                assert following in (rendered + letter, f"{rendered} {letter}")
