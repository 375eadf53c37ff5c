"""The tiny tutor's tokenizer: a token is a word, or a few cells of a board.

Few tokens a position make the model cheap to train and to serve on two cores.
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

DISC, SYMBOL = "[.XO]", r"[.^>v<@*]"  # the cells of Connect Four and of Snake
TOKEN_PATTERN = "|".join(
    (
        rf"{DISC}(?: {DISC}){{3}}(?=(?: {DISC}){{3}}\n)",  # the left four cells of a row of seven discs
        rf"(?: {DISC}){{3}}\n",  # the other three
        rf" ?{SYMBOL}(?: {SYMBOL}){{2}}\n?",  # three cells of a row of symbols
        r" ?[A-Za-z]+",
        r"\n+",
        r" ?[^\sA-Za-z]",
        r"\s",
    )
)
SPECIAL_TOKENS = ["<pad>", "<end>", "<unknown>"]


def make_tokenizer(prompts: Iterable[str], labels: Iterable[str]) -> Tokenizer:
    """Return a tokenizer whose vocabulary is every word of `prompts`, every part of a board, and the labels."""
    cells = [" ".join(cells) + " . . .\n" for cells in product(".XO", repeat=4) if set(cells) not in ({"X"}, {"O"})]
    cells += [" " + " ".join(cells) + "\n" for cells in product(".XO", repeat=3)]
    symbols = [" ".join(symbols) for symbols in product(".^>v<@*", repeat=3)]
    cells += [start + three + end for three in symbols for start, end in (("", ""), (" ", ""), (" ", "\n"))]
    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN_PATTERN), "isolated")
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL_TOKENS, show_progress=False)
    tokenizer.train_from_iterator([*prompts, *labels, *cells], trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files from which Transformers and vLLM load a tokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{\n  "tokenizer_class": "PreTrainedTokenizerFast",\n  "pad_token": "<pad>",\n'
        '  "eos_token": "<end>",\n  "unk_token": "<unknown>",\n'
        '  "clean_up_tokenization_spaces": false\n}\n'
    )
