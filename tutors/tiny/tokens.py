"""The tiny tutor's tokenizer: whole words, and a board a few cells at a time, wherever they lie in the same way.

Few tokens a position are what makes the model cheap to train and to ask on two cores.
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

DISC, SIGN = "[.XO]", r"[.^>v<@*]"  # the cells of Connect Four and of Snake
PIECES = "|".join(
    (
        rf"{DISC}(?: {DISC}){{3}}(?=(?: {DISC}){{3}}\n)",  # the left four cells of a row of seven discs
        rf"(?: {DISC}){{3}}\n",  # the other three
        rf" ?{SIGN}(?: {SIGN}){{2}}\n?",  # three cells of a row of signs
        r" ?[A-Za-z]+",
        r"\n+",
        r" ?[^\sA-Za-z]",
        r"\s",
    )
)
SPECIAL = ["<pad>", "<end>", "<unknown>"]


def make_tokenizer(prompts: Iterable[str], labels: Iterable[str]) -> Tokenizer:
    """Return a tokenizer that knows every word of `prompts`, every piece of a board, and the labels."""
    cells = [" ".join(cells) + " . . .\n" for cells in product(".XO", repeat=4) if set(cells) not in ({"X"}, {"O"})]
    cells += [" " + " ".join(cells) + "\n" for cells in product(".XO", repeat=3)]
    signs = [" ".join(signs) for signs in product(".^>v<@*", repeat=3)]
    cells += [start + three + end for three in signs for start, end in (("", ""), (" ", ""), (" ", "\n"))]
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
