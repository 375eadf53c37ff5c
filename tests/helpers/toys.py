"""Toy language models: a few hundred thousand random weights, with the architectures and tokenizers of the families."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tutors.llm.models import Model, find_model
from tutors.tiny.model import Shape

LETTERS = "ABCDEFG"
MAX_MODEL_LEN = 4096


class Family(NamedTuple):
    """What a toy shares with its family."""

    architecture: str
    model_type: str
    bos_token: str
    special_tokens: tuple[str, ...]
    chat_template: str  # the published one, for one user message; empty if there is none


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        "llama",
        "<|begin_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "{{- bos_token }}{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|>' }}{%- for message in messages %}"
        "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
        " + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
    ),
    "vicuna": Family("LlamaForCausalLM", "llama", "<s>", (), ""),
    "deepseek": Family(
        "Qwen2ForCausalLM",
        "qwen2",
        "<｜begin▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        "{{ bos_token }}{%- for message in messages %}{{ '<｜User｜>' + message['content'] }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{%- endif %}",
    ),
}


def make_toy(name: str, folder: Path) -> Model:
    """Write a toy of a family, which vLLM serves with random weights, to `folder`, and return its entry."""
    family = FAMILIES[name]
    folder.mkdir()
    tokenizer = spaced_tokenizer(family) if name == "vicuna" else byte_tokenizer(family)
    bos_token_id = tokenizer.token_to_id(family.bos_token)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{family.bos_token} $A", special_tokens=[(family.bos_token, bos_token_id)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": family.bos_token,
        "eos_token": "<end>",
    }
    if family.chat_template:
        tokenizer_config["chat_template"] = family.chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    shape = Shape(tokenizer.get_vocab_size(), width=64, layers=2, heads=2, hidden=128, positions=MAX_MODEL_LEN)
    config = shape.as_hugging_face() | {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "bos_token_id": bos_token_id,
        "eos_token_id": tokenizer.token_to_id("<end>"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    serve = ("--max-model-len", str(MAX_MODEL_LEN), "--enforce-eager", "--load-format", "dummy", "--block-size", "32")
    return replace(find_model(name), model=str(folder), serve=serve)


def byte_tokenizer(family: Family) -> Tokenizer:
    """A byte-level BPE tokenizer without merges, of the kind of Llama 3 and Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([family.bos_token, "<end>", *family.special_tokens])
    return tokenizer


def spaced_tokenizer(family: Family) -> Tokenizer:
    """A sentencepiece-like tokenizer, of the kind of Llama 2: "A" after a space is a token of its own."""
    alphabet = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    merged = [f"▁{letter}" for letter in LETTERS]
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *merged])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", letter) for letter in LETTERS]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([family.bos_token, "<end>", *family.special_tokens])
    return tokenizer
