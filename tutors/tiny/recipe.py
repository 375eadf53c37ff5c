"""How the tiny tutor is made: positions of mixed play, labelled by search, told in the view's words.

The result is a folder in Hugging Face's format, which vLLM serves, and `card.json` with what was measured.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

import envs
import envs.connect4 as c4
from envs.base import State, rows_of
from envs.luck import ADVISING, Luck, pick
from tutors.base import View
from tutors.tiny.model import Llama, Shape
from tutors.tiny.tokens import make_tokenizer, save_tokenizer
from tutors.views import make_view

GAMES = 4096  # at once, while positions are gathered
WORTH, SCALE = 20, 5  # values beyond ±WORTH, wins and losses, are told as that; one lesson is in units of SCALE
HELD_OUT = 10_000  # positions that the model never learns from


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the model becomes."""

    out: Path = Path("tutors/tiny/weights")
    positions: int = 1_500_000  # to learn from, each seen once per epoch
    epochs: int = 1
    depth: int = 4  # discs that the labelling search looks ahead
    temperature: float = 1.0  # of the labels: softmax(value / temperature)
    batch: int = 256
    learning_rate: float = 2e-3
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
    tokenizer = make_tokenizer(view.words(rows_of(learn, torch.arange(10_000))), view.labels)
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
            print(f"batch {batch}: loss {loss:.4f}, best move found {card['held_out_agreement']:.1%}", flush=True)
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


FACTS = 4
MUON = False


def facts(state: State) -> Tensor:
    mine, theirs = state["mine"], state["theirs"]
    here = c4.playable(mine | theirs)
    above = here << 1 & c4.BOARD
    return torch.stack([c4.columns_of(c4.completing(side) & cell) for cell in (here, above) for side in (mine, theirs)], 2).float()


class Reader:
    """A model with its tokenizer, asked like the served one: the question in, a letter out."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, view: View) -> None:
        self.model, self.tokenizer, self.view = model, tokenizer, view
        self.beginning = torch.tensor(tokenizer.encode(view.rules).ids)
        self.labels = torch.tensor([tokenizer.token_to_id(label) for label in view.labels])
        self.options = torch.tensor([tokenizer.token_to_id(f" {label}") for label in view.labels])
        tokenizer.enable_padding(pad_id=0)

    facts = staticmethod(facts)

    def read(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Return (logits of the answer (B, vocabulary), tokens (B, S), what became of them (B, S, width))."""
        ends = [words.removeprefix(self.view.rules) for words in self.view.words(state)]
        encoded = self.tokenizer.encode_batch(ends)
        tokens = torch.tensor([end.ids for end in encoded])
        last = torch.tensor([sum(end.attention_mask) - 1 for end in encoded])
        with torch.autocast("cpu", torch.bfloat16):
            x = self.model(self.beginning, tokens)
            logits = self.model.logits(x[torch.arange(len(x)), last])
        return logits.float(), tokens, x.float()

    @torch.no_grad()
    def choose(self, state: State) -> Tensor:
        """Return the best legal label of each canonical position, (B,) int64."""
        parts = [
            self.read(rows_of(state, rows))[0][:, self.labels]
            for rows in torch.arange(len(state["mine"])).split(1000)
        ]
        return torch.cat(parts).masked_fill(~self.view.legal(state), -torch.inf).argmax(1)


def batches(recipe: Recipe) -> int:
    """How many batches the training takes."""
    return recipe.epochs * (recipe.positions // recipe.batch)


def train(reader: Reader, state: State, recipe: Recipe):
    """Yield (batches so far, loss) after every batch: cross-entropy to the search's soft choice."""
    parameters = [p for p in reader.model.parameters() if p.ndim > 1]
    norms = [p for p in reader.model.parameters() if p.ndim <= 1]
    grader = nn.Linear(reader.model.shape.width, 1 + FACTS)
    parameters += grader.parameters()
    groups = [{"params": parameters}, {"params": norms, "weight_decay": 0.0}]
    if MUON:
        mats = [p for n, p in reader.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        ids = {id(p) for p in mats}
        groups = [{"params": [p for p in parameters if id(p) not in ids]}, {"params": norms, "weight_decay": 0.0}]
        muon = torch.optim.Muon(mats, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=True)
    batch = 0
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(state["mine"])).split(recipe.batch):
            if batch == batches(recipe):
                return
            for group in optimizer.param_groups + (muon.param_groups if MUON else []):
                group["lr"] = recipe.learning_rate * schedule(batch / batches(recipe))
            chosen = rows_of(state, rows)
            loss = lesson(reader, grader, chosen, recipe)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reader.model.parameters(), 1.0)
            optimizer.step()
            if MUON: muon.step(); muon.zero_grad()
            optimizer.zero_grad()
            batch += 1
            yield batch, loss.item()


def lesson(reader: Reader, grader: nn.Linear, state: State, recipe: Recipe) -> Tensor:
    """Return the loss: cross-entropy of the answer to the search's choice, and an error at every option.

    At the letter of each option the model must already tell the option's value, through `grader`, which
    is thrown away afterwards. Seven lessons a position instead of one.
    """
    logits, tokens, x = reader.read(state)
    values = reader.view.values(state, recipe.depth)
    values = values.clamp(-WORTH, WORTH).double().masked_fill(~reader.view.legal(state), -torch.inf)
    answer = F.cross_entropy(logits[:, reader.labels], choice(values, recipe.temperature).float())
    mass = (logits.logsumexp(1) - logits[:, reader.labels].logsumexp(1)).mean()
    option = tokens[:, :, None] == reader.options  # (B, S, A)
    known = option.any(2)
    told = (values.float().clamp(min=-WORTH)[:, None, :] * option).sum(2)
    said = grader(x)  # (B, S, 1 + facts)
    error = F.smooth_l1_loss(said[..., 0], told / SCALE, reduction="none")
    facts = torch.einsum("baf,bsa->bsf", reader.facts(state), option.float())
    error = error + F.binary_cross_entropy_with_logits(said[..., 1:], facts, reduction="none").sum(2)
    return answer + mass + (error * known).sum() / known.sum()


def choice(values: Tensor, temperature: float) -> Tensor:
    """Mix a soft choice with the best moves alone, half and half, so that order and winner both count."""
    winners = best(values).double()
    return ((values / temperature).softmax(1) + winners / winners.sum(1, keepdim=True)) / 2


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
