"""How the tiny tutor is made: positions of mixed play, labelled by search, told in the view's words.

The result is a folder in Hugging Face's format, which vLLM serves, and `card.json` with what was measured.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

import envs
from envs.base import State, rows_of
from envs.luck import ADVISING, Luck, pick
from tutors.base import View
from tutors.tiny.model import Llama, Shape
from tutors.tiny.tokens import make_tokenizer, save_tokenizer
from tutors.views import make_view

GAMES = 4096  # at once, while positions are gathered
WORTH = 20  # a win or a loss, among values of a few units
HELD_OUT = 10_000  # positions that the model never learns from


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the model becomes."""

    out: Path = Path("tutors/tiny/weights")
    positions: int = 560_000  # to learn from, each seen once
    depth: int = 4  # discs that the labelling search looks ahead
    temperature: float = 1.0  # of the labels: softmax(value / temperature)
    batch: int = 128
    learning_rate: float = 3e-3  # at its height, of both optimizers
    weight_decay: float = 0.05
    report_every: int = 500  # batches; each report also saves
    seed: int = 1


def cook(recipe: Recipe) -> dict[str, object]:
    """Make the tiny tutor, write it to `recipe.out`, and return its card."""
    torch.manual_seed(recipe.seed)
    began = time.monotonic()
    view = make_view("connect4")
    state = gather(view, recipe.positions + HELD_OUT, recipe.seed)
    learn, held_out = split(state, HELD_OUT)
    print(f"{len(learn['mine']):,} positions to learn from, {HELD_OUT:,} held out")
    some = rows_of(learn, torch.arange(min(10_000, len(learn["mine"]))))
    tokenizer = make_tokenizer(view.words(some), view.labels)
    model = Llama(Shape(tokenizer.get_vocab_size()))
    size = sum(parameter.numel() for parameter in model.parameters())
    student = Reader(model, tokenizer, view)
    expected = view.values(held_out, recipe.depth)
    by_chance = best(expected).float().sum(1) / view.legal(held_out).float().sum(1)
    card: dict[str, object] = {
        "recipe": {name: str(value) for name, value in asdict(recipe).items() if name != "out"},
        "parameters": size,
        "random_agreement": round(by_chance.mean().item(), 4),
    }
    for batch, loss in train(student, learn, recipe):
        last = batch == batches(recipe)
        if last or batch % recipe.report_every == 0:
            card |= {
                "batches": batch,
                "held_out_agreement": round(agreement(student, held_out, expected), 4),
                "seconds": round(time.monotonic() - began),
            }
            if last:
                card["mean_return"] = {name: round(score(student, name), 4) for name in envs.OPPONENTS}
            save(model, tokenizer, recipe.out, card)
            print(
                f"batch {batch}: loss {loss:.4f}, best move found {card['held_out_agreement']:.1%}",
                flush=True,
            )
    return card


def gather(view: View, count: int, seed: int) -> State:
    """Return at least `count` different canonical positions from play of every strength.

    In game i the student takes a move of a shallow search with a probability that grows with i, and any
    legal move otherwise; half of the games are played against each opponent.
    """
    found: dict[str, Tensor] = {}
    turns = [envs.make("connect4", GAMES, seed, opponent=name) for name in envs.OPPONENTS]
    skill = torch.linspace(0, 1, GAMES)
    luck = Luck(seed, torch.arange(GAMES), ADVISING)
    for turn in range(100_000):
        env = turns[turn % len(turns)]
        state, _ = view.canonical(env.state)
        found = {name: torch.cat([found[name], state[name]]) if found else state[name] for name in state}
        if turn % 50 == 49:
            keys, first = torch.unique(view.key(found)[:, 0], return_inverse=True)
            rows = torch.zeros_like(keys).scatter_(0, first, torch.arange(len(first)))
            found = rows_of(found, rows)
            if len(rows) >= count:
                break
        chance = luck.draw(torch.tensor(turn), 2)
        clever = best(view.values(env.state, 2)) & (chance[:, :1] < skill[:, None])
        allowed = torch.where(clever.any(1, keepdim=True), clever, view.legal(env.state))
        env.step(pick(allowed, chance[:, 1]))
    return found


def split(state: State, held_out: int) -> tuple[State, State]:
    """Shuffle positions and set `held_out` of them aside."""
    order = torch.randperm(len(state["mine"]))
    return rows_of(state, order[held_out:]), rows_of(state, order[:held_out])


def best(values: Tensor) -> Tensor:
    """Which actions have the largest value of their row. (B, A) bool."""
    return values == values.amax(1, keepdim=True)


class Reader:
    """A model with its tokenizer, asked like the served one: the question in, a letter out."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, view: View) -> None:
        self.model, self.tokenizer, self.view = model, tokenizer, view
        self.beginning = torch.tensor(tokenizer.encode(view.rules).ids)
        self.labels = torch.tensor([tokenizer.token_to_id(label) for label in view.labels])
        tokenizer.enable_padding(pad_id=0)

    def logits(self, state: State) -> Tensor:
        """Return the logits of all tokens as the answer about each position, (B, vocabulary) float32."""
        ends = [words.removeprefix(self.view.rules) for words in self.view.words(state)]
        encoded = self.tokenizer.encode_batch(ends)
        tokens = torch.tensor([end.ids for end in encoded])
        last = torch.tensor([sum(end.attention_mask) - 1 for end in encoded])
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(self.beginning, tokens, last)
        return logits.float()

    @torch.no_grad()
    def choose(self, state: State) -> Tensor:
        """Return the best legal label of each canonical position, (B,) int64."""
        parts = [
            self.logits(rows_of(state, rows))[:, self.labels] for rows in torch.arange(len(state["mine"])).split(1000)
        ]
        return torch.cat(parts).masked_fill(~self.view.legal(state), -torch.inf).argmax(1)


def batches(recipe: Recipe) -> int:
    """How many batches the training takes."""
    return recipe.positions // recipe.batch


def train(reader: Reader, state: State, recipe: Recipe) -> Iterator[tuple[int, float]]:
    """Yield (batches so far, loss) after every batch: cross-entropy to the search's choice.

    Matrices learn by Muon (Jordan et al. 2024), the rest by AdamW; CHANGELOG.md has what AdamW alone does.
    """
    model, optimizers = reader.model, make_optimizers(reader.model, recipe)
    order = torch.randperm(recipe.positions)[: batches(recipe) * recipe.batch]
    for batch, rows in enumerate(order.split(recipe.batch)):
        chosen = rows_of(state, rows)
        values, legal = reader.view.values(chosen, recipe.depth), reader.view.legal(chosen)
        wanted = torch.zeros(len(rows), model.shape.vocabulary)
        wanted[:, reader.labels] = choice(values, legal, recipe.temperature)
        loss = F.cross_entropy(reader.logits(chosen), wanted)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * schedule(batch / batches(recipe))
            optimizer.step()
            optimizer.zero_grad()
        yield batch + 1, loss.item()


def make_optimizers(model: Llama, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.model.layers.parameters() if p.ndim == 1]
    rest += [*model.model.embed_tokens.parameters(), *model.model.norm.parameters()]
    decay = recipe.weight_decay
    return [
        torch.optim.Muon(matrices, recipe.learning_rate, decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, recipe.learning_rate, (0.9, 0.98), weight_decay=0.0),
    ]


def choice(values: Tensor, legal: Tensor, temperature: float) -> Tensor:
    """Mix softmax(value / temperature) with the best moves alone, half and half: order and winner both count."""
    soft = (values.clamp(-WORTH, WORTH) / temperature).masked_fill(~legal, -torch.inf).softmax(1)
    winners = best(values).float()
    return (soft + winners / winners.sum(1, keepdim=True)) / 2


def schedule(progress: float) -> float:
    """The share of the learning rate at `progress` in [0, 1]: up in a twentieth, then a cosine to 0."""
    if progress < 0.05:
        return progress / 0.05
    return 0.5 + 0.5 * math.cos(math.pi * (progress - 0.05) / 0.95)


def agreement(reader: Reader, state: State, expected: Tensor) -> float:
    """Share of positions where the reader's best legal label is one of the search's best moves."""
    return best(expected).gather(1, reader.choose(state)[:, None]).float().mean().item()


def score(reader: Reader, opponent: str, games: int = 1000) -> float:
    """The reader's mean return, alone, over each of `games` copies' first game."""
    env = envs.make("connect4", games, seed=2, opponent=opponent)
    env.reset()
    total, playing = torch.zeros(games), torch.ones(games, dtype=torch.bool)
    while playing.any():
        state, turned = reader.view.canonical(env.state)
        action = reader.view.symmetry[turned, reader.choose(state)]
        step = env.step(action)
        total += step.reward * playing
        playing &= ~(step.terminated | step.truncated)
    return total.mean().item()


def save(model: Llama, tokenizer: Tokenizer, folder: Path, card: dict[str, object]) -> None:
    """Write what vLLM needs, in bfloat16, and the card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.shape.as_hugging_face(), indent=2) + "\n")
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_padding()
    save_tokenizer(plain, folder)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
