"""Models that are known by their name alone, with real tokenizers of each kind and chat templates of each kind.

The server answers /tokenize and /detokenize as vLLM does, with toy tokenizers that are trained here.
"""

from collections.abc import Callable
from typing import Any

import jinja2
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.helpers.llm_tutors import VIEW, connected_tutor, positions
from tests.helpers.scripted_server import Server, serving
from tutors.llm.models import Model

OWN = Model("org/model", "org/model", "")
SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
LETTERS = "ABCDEFG"
TIKTOKEN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEMPLATES = {  # and how the prompts for a label end
    "chatml": ("<|user|>\n{{ m }}<|end|>\n<|assistant|>\n", "<|assistant|>\n"),
    "blank lines": ("<s><|user|>\n\n{{ m }}<|end|><|assistant|>\n\n", "<|assistant|>\n\n"),
    "no system role": ("<s>[INST] {{ m }} [/INST]", " [/INST]"),
    "thinking begun": ("<s><|user|>{{ m }}<|assistant|><think>\n", "<think>\n\n</think>\n\n"),
    "thinking switched": (
        "<|user|>{{ m }}<|end|><|assistant|>\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
        "<think>\n\n</think>\n\n",
    ),
}


def byte_level(pattern: str | None) -> Tokenizer:
    """GPT-2's kind, or with a pattern tiktoken's: white space and letters are split by a regular expression."""
    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))


def sentencepiece(prefix: bool) -> Tokenizer:
    """SentencePiece's kind: spaces are part of tokens, the first of which has one; bytes for what is unknown."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    ends = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=["<unk>", *tokens], limit_alphabet=80, show_progress=False
    )
    return trained(tokenizer, trainer)


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    """The tokenizer after it has seen some prompts, with special tokens, of which one begins every text."""
    texts = [f"{words} {' '.join(LETTERS)} \n" for words in VIEW.render(positions(20))]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(None),
    "tiktoken": lambda: byte_level(TIKTOKEN),
    "sentencepiece": lambda: sentencepiece(True),
    "sentencepiece without a prefix": lambda: sentencepiece(False),
}


def speak(server: Server, tokenizer: Tokenizer, template: str) -> None:
    """Let the server tokenize as vLLM does."""

    def tokenize(body: dict[str, Any]) -> list[int]:
        if "messages" in body:
            kwargs = body.get("chat_template_kwargs", {})
            text = jinja2.Template(template, keep_trailing_newline=True).render(
                m=body["messages"][0]["content"], **kwargs
            )
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
