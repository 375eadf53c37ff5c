"""The tiny tutor's tokenizer: whole words, and a board four and three cells at a time.

Few tokens a position are what makes the model cheap to train and to ask on two cores.
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

CELL = "[.XO]"
PIECES = "|".join(
    (
        rf"{CELL}(?: {CELL}){{3}}",  # the left four cells of a row of seven
        rf"(?: {CELL}){{3}}\n",  # the other three
        r" ?[A-Za-z]+",
        r"\n+",
        r" ?[^\sA-Za-z]",
        r"\s",
    )
)
SPECIAL = ["<pad>", "<end>", "<unknown>"]


def make_tokenizer(prompts: Iterable[str], labels: Iterable[str]) -> Tokenizer:
    """Return a tokenizer that knows every word of `prompts`, every piece of a board, and the labels."""
    cells = [" ".join(cells) for cells in product(".XO", repeat=4)]
    cells += [" " + " ".join(cells) + "\n" for cells in product(".XO", repeat=3)]
    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([*prompts, *labels, *cells], trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files from which Transformers and vLLM load it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{\n  "tokenizer_class": "PreTrainedTokenizerFast",\n  "pad_token": "<pad>",\n'
        '  "eos_token": "<end>",\n  "unk_token": "<unknown>",\n'
        '  "clean_up_tokenization_spaces": false\n}\n'
    )
