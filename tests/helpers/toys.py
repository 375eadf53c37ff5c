"""Language models of some hundred thousand random weights, in the architectures and with the tokens of the families."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tutors.llm.models import Model, find_model
from tutors.tiny.model import Shape

LETTERS = "ABCDEFG"
POSITIONS = 4096


class Family(NamedTuple):
    """What makes a toy one of its family."""

    architecture: str
    model_type: str
    begin: str  # its first special token
    special: tuple[str, ...]
    chat_template: str  # the published one, where it says what to do with one message of a user; empty: there is none


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
    """Write what vLLM needs to serve a toy of a family with random weights, and return it as a tutor's model."""
    family = FAMILIES[name]
    folder.mkdir()
    tokenizer = pieces_of_words(family) if name == "vicuna" else pieces_of_bytes(family)
    begin = tokenizer.token_to_id(family.begin)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{family.begin} $A", special_tokens=[(family.begin, begin)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": family.begin, "eos_token": "<end>"}
    if family.chat_template:
        told["chat_template"] = family.chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    shape = Shape(tokenizer.get_vocab_size(), width=64, layers=2, heads=2, hidden=128, positions=POSITIONS)
    config = shape.as_hugging_face() | {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "bos_token_id": begin,
        "eos_token_id": tokenizer.token_to_id("<end>"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    serve = ("--max-model-len", str(POSITIONS), "--enforce-eager", "--load-format", "dummy", "--block-size", "32")
    return replace(find_model(name), model=str(folder), serve=serve)


def pieces_of_bytes(family: Family) -> Tokenizer:
    """A tokenizer of bytes, as Llama 3's and Qwen's would be if nothing had been merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([family.begin, "<end>", *family.special])
    return tokenizer


def pieces_of_words(family: Family) -> Tokenizer:
    """A tokenizer like Llama 2's: a space belongs to what follows it, so "A" after a space is a token of its own."""
    alphabet = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    merged = [f"▁{letter}" for letter in LETTERS]
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *merged])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", letter) for letter in LETTERS]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([family.begin, "<end>", *family.special])
    return tokenizer
