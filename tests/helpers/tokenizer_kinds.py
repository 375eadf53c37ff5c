"""Tokenizers and chat templates of each kind, trained here, and toy models that have them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.helpers.llm_tutors import VIEW, positions
from tutors.tiny.model import Llama, Shape
from tutors.tiny.recipe import save

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
LETTERS = "ABCDEFG"
TIKTOKEN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEMPLATES = {  # and how the prompts for a label end
    "chatml": ("<|user|>\n{{ messages[-1]['content'] }}<|end|>\n<|assistant|>\n", "<|assistant|>\n"),
    "blank lines": ("<s><|user|>\n\n{{ messages[-1]['content'] }}<|end|><|assistant|>\n\n", "<|assistant|>\n\n"),
    "no system role": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<s>[INST] {{ messages[-1]['content'] }} [/INST]",
        " [/INST]",
    ),
    "thinking begun": ("<s><|user|>{{ messages[-1]['content'] }}<|assistant|><think>\n", "<think>\n\n</think>\n\n"),
    "thinking switched": (
        "<|user|>{{ messages[-1]['content'] }}<|end|><|assistant|>\n"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
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


def spaced_only() -> Tokenizer:
    """A kind in which a capital letter is a token after a space only; elsewhere it is unknown, as all others are."""
    characters = [*map(chr, range(97, 123)), *"0123456789.,:;'()[]<>|/-\n▁", *(f"▁{chr(n)}" for n in range(65, 91))]
    pieces = [("<unk>", -20.0), ("QUESTION", -2.0), ("INST", -2.0), *((piece, -4.0) for piece in characters)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return with_special_tokens(tokenizer)


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    """The tokenizer after it has seen some prompts."""
    texts = [f"{words} {' '.join(LETTERS)} \n" for words in VIEW.render(positions(20))]
    tokenizer.train_from_iterator(texts, trainer)
    return with_special_tokens(tokenizer)


def with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with special tokens, of which one begins every text."""
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(None),
    "tiktoken": lambda: byte_level(TIKTOKEN),
    "sentencepiece": lambda: sentencepiece(True),
    "sentencepiece without a prefix": lambda: sentencepiece(False),
    "letters after a space only": spaced_only,
}


def write_model(kind: str, template: str, folder: Path) -> None:
    """Write a toy of random weights, as a user's own model lies in a folder: nothing says how it is served or asked."""
    tokenizer = KINDS[kind]()
    torch.manual_seed(1)
    shape = Shape(tokenizer.get_vocab_size(), width=64, layers=2, heads=2, hidden=128, positions=2048)
    save(Llama(shape), tokenizer, folder, {})
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": tokenizer.token_to_id("<s>"), "eos_token_id": tokenizer.token_to_id("</s>")}
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "clean_up_tokenization_spaces": False,
                "chat_template": TEMPLATES[template][0],
            }
        )
    )
