"""How the tiny tutor is made: positions of mixed play in every game, labelled by search, told in every view's words.

The result is a folder in Hugging Face's format, which vLLM serves, and `card.json` with what was measured.
"""

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

import envs
from envs.base import Env, State, cat_states, num_rows, select_rows
from envs.blackjack_exact import CELLS, optimum, value_of
from envs.rng import QUERY_STREAM, CounterRNG, sample_legal
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.base import Advice, Tutor
from tutors.prompts import VIEWS, make_view
from tutors.prompts.base import PromptView
from tutors.tiny.model import Llama, Shape
from tutors.tiny.tokens import make_tokenizer, save_tokenizer

GAMES = 4096  # at once, while positions are gathered
ROUND = 100  # steps between two looks at how many different positions there are
WORTH = 20  # how much worse than the best a move can count, among values of a few units
HELD_OUT = 10_000  # positions of a large game that the model never learns from; of a small one it learns all
SNAKES = 30  # games that are scored; each is cut short after 1,000 steps
WEIGHTS = {("connect4", "board"): 84, ("snake", "full"): 12, ("snake", "local"): 2, ("blackjack", "table"): 2}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the model becomes."""

    out: Path = Path("tutors/tiny/weights")
    positions: int = 800_000  # to learn from, each of a large game seen once, shared out by WEIGHTS
    depth: int = 4  # discs that the labelling search looks ahead
    temperature: float = 1.0  # of the labels: softmax(value / temperature)
    batch: int = 128
    learning_rate: float = 3e-3  # at its height, of both optimizers
    weight_decay: float = 0.05
    report_every: int = 1000  # batches; each report also saves
    seed: int = 1


class Reader(Tutor):
    """The model as it reads one view: asked like the served one, the question in, a letter out. It is a tutor."""

    name = "reader"

    def __init__(self, model: Llama, tokenizer: Tokenizer, view: PromptView) -> None:
        self.model, self.tokenizer, self.view = model, tokenizer, view
        self.beginning = torch.tensor(tokenizer.encode(view.instructions).ids)
        self.labels = torch.tensor([tokenizer.token_to_id(label) for label in view.labels])
        self.identity = {"tutor": "reader"}
        self.stats: Counter[str] = Counter()
        tokenizer.enable_padding(pad_id=0)

    def logits(self, state: State) -> Tensor:
        """Return the logits of all tokens as the answer about each position, (B, vocabulary) float32."""
        ends = [words.removeprefix(self.view.instructions) for words in self.view.render(state)]
        encoded = self.tokenizer.encode_batch(ends)
        tokens = torch.tensor([end.ids for end in encoded])
        last = torch.tensor([sum(end.attention_mask) - 1 for end in encoded])
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(self.beginning, tokens, last)
        return logits.float()

    @torch.no_grad()
    def advise(self, state: State) -> Advice:
        """Return softmax over the legal labels of each position as it is told."""
        parts = [
            self.logits(select_rows(state, rows))[:, self.labels] for rows in torch.arange(num_rows(state)).split(1000)
        ]
        probs = torch.cat(parts).masked_fill(~self.view.action_mask(state), -torch.inf).softmax(1)
        sure = torch.ones(len(probs))
        return Advice(probs, sure.bool(), sure)


@dataclass
class Lesson:
    """What is learned of one view."""

    game: Any
    reader: Reader
    learn: State  # positions as they are told
    held_out: State  # those that the agreement is measured on
    depth: int

    @property
    def name(self) -> str:
        """How the card calls it."""
        return f"{self.reader.view.game} {self.reader.view.name}"

    def expected(self, state: State) -> Tensor:
        """Return the search's values of each action."""
        return self.reader.view.expert_values(state, self.depth)

    def agreement(self, rows: int) -> float:
        """Return in what share of the first `rows` positions the best legal label is a best move of the search."""
        state = select_rows(self.held_out, torch.arange(min(rows, num_rows(self.held_out))))
        chosen = self.reader.advise(state).probs.argmax(1, keepdim=True)
        return self._best(state).gather(1, chosen).float().mean().item()

    def chance(self) -> float:
        """Return the agreement of random play."""
        return (self._best(self.held_out).sum(1) / self.reader.view.action_mask(self.held_out).sum(1)).mean().item()

    def _best(self, state: State) -> Tensor:
        values = self.expected(state).float().masked_fill(~self.reader.view.action_mask(state), -torch.inf)
        return best(values)


def cook(recipe: Recipe) -> dict[str, object]:
    """Make the tiny tutor, write it to `recipe.out`, and return its card."""
    torch.manual_seed(recipe.seed)
    began = time.monotonic()
    counts = {place: recipe.positions * weight // sum(WEIGHTS.values()) for place, weight in WEIGHTS.items()}
    views = {(game, name): make_view(envs.make_game(game), name) for game in VIEWS for name in VIEWS[game]}
    told = {place: gather(view, counts[place] + HELD_OUT, recipe.seed) for place, view in views.items()}
    some = [words for place, view in views.items() for words in view.render(first(told[place], 10_000))]
    tokenizer = make_tokenizer(some, sorted({label for view in views.values() for label in view.labels}))
    model = Llama(Shape(tokenizer.get_vocab_size()))
    lessons = {
        place: Lesson(envs.make_game(place[0]), Reader(model, tokenizer, view), *split(told[place]), recipe.depth)
        for place, view in views.items()
    }
    card: dict[str, object] = {
        "recipe": {name: str(value) for name, value in asdict(recipe).items() if name != "out"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    plan = [place for place, count in counts.items() for _ in range(count // recipe.batch)]
    for batch, loss in train(lessons, plan, recipe):
        last = batch == len(plan)
        if last or batch % recipe.report_every == 0:
            reports = {lesson.name: report(lesson, last) for lesson in lessons.values()}
            card |= {"batches": batch, "seconds": round(time.monotonic() - began), "views": reports}
            save(model, tokenizer, recipe.out, card)
            found = ", ".join(f"{name} {values['agreement']:.1%}" for name, values in reports.items())
            print(f"batch {batch} of {len(plan)}: loss {loss:.4f}, best move found: {found}", flush=True)
    return card


def gather(view: PromptView, count: int, seed: int) -> State:
    """Return at least `count` different positions as they are told, from play of every strength.

    In game i the student takes a move of a shallow search with a probability that grows with i, and any
    legal move otherwise; Connect Four is played against each opponent in turn. Where a game has fewer positions, all
    that came up.
    """
    turns = [envs.make(view.game, GAMES, seed)]
    if view.game == "connect4":
        turns.append(envs.make(view.game, GAMES, seed, opponent="random"))
    found: list[State] = []
    skill = torch.linspace(0, 1, GAMES)
    rng = CounterRNG(seed, torch.arange(GAMES), QUERY_STREAM)
    back = view.symmetry.argsort(1)
    for turn in itertools.count(1):
        env = turns[turn % len(turns)]
        told, turned = view.canonicalize(env.state)
        found.append(told)
        if turn % ROUND == 0:
            known, found = num_rows(found[0]), [distinct(view, found)]
            if num_rows(found[0]) >= count or num_rows(found[0]) == known:
                return found[0]
        chance = rng.uniform(turn, 2)
        action_mask = view.action_mask(told)
        clever = best(view.expert_values(told, 2).masked_fill(~action_mask, -(1 << 20))) & (
            chance[:, :1] < skill[:, None]
        )
        move = sample_legal(torch.where(clever.any(1, keepdim=True), clever, action_mask), chance[:, 1])
        env.step(back[turned].gather(1, move[:, None])[:, 0])
    raise AssertionError("counting does not end")


def distinct(view: PromptView, parts: list[State]) -> State:
    """Join positions and drop those that are told in the same words as another."""
    joined = cat_states(parts)
    keys, which = torch.unique(view.key(joined), dim=0, return_inverse=True)
    rows = torch.zeros(len(keys), dtype=torch.int64).scatter_(0, which, torch.arange(len(which)))
    return select_rows(joined, rows)


def first(state: State, rows: int) -> State:
    """Return the first rows, or all if there are fewer."""
    return select_rows(state, torch.arange(min(rows, num_rows(state))))


def split(state: State) -> tuple[State, State]:
    """Shuffle positions and set HELD_OUT of them aside; of a small game's both are all."""
    order = torch.randperm(num_rows(state))
    if len(order) < 2 * HELD_OUT:
        return select_rows(state, order), select_rows(state, order)
    return select_rows(state, order[HELD_OUT:]), select_rows(state, order[:HELD_OUT])


def best(values: Tensor) -> Tensor:
    """Which actions have the largest value of their row. (B, A) bool."""
    return values == values.amax(1, keepdim=True)


def train(lessons: dict, plan: list, recipe: Recipe) -> Iterator[tuple[int, float]]:
    """Yield (batches so far, loss) after every batch of `plan`, in random order: cross-entropy to the search's choice.

    Matrices learn by Muon (Jordan et al. 2024), the rest by AdamW; CHANGELOG.md has what AdamW alone does.
    """
    model = next(iter(lessons.values())).reader.model
    optimizers = make_optimizers(model, recipe)
    read = dict.fromkeys(lessons, 0)
    for batch, at in enumerate(torch.randperm(len(plan)).tolist()):
        lesson = lessons[plan[at]]
        rows = torch.arange(read[plan[at]], read[plan[at]] + recipe.batch) % num_rows(lesson.learn)
        read[plan[at]] += recipe.batch
        chosen = select_rows(lesson.learn, rows)
        wanted = torch.zeros(len(rows), model.shape.vocabulary)
        action_mask = lesson.reader.view.action_mask(chosen)
        wanted[:, lesson.reader.labels] = choice(lesson.expected(chosen), action_mask, recipe.temperature)
        loss = F.cross_entropy(lesson.reader.logits(chosen), wanted)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * schedule(batch / len(plan))
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


def choice(values: Tensor, action_mask: Tensor, temperature: float) -> Tensor:
    """Mix softmax(value / temperature) with the best moves alone, half and half: order and winner both count.

    What is worse than the best by more than WORTH is as bad as that.
    """
    values = values.float().masked_fill(~action_mask, -torch.inf)
    behind = (values - values.amax(1, keepdim=True)).clamp(min=-WORTH)
    soft = (behind / temperature).masked_fill(~action_mask, -torch.inf).softmax(1)
    winners = best(values).float()
    return (soft + winners / winners.sum(1, keepdim=True)) / 2


def schedule(progress: float) -> float:
    """The share of the learning rate at `progress` in [0, 1]: up in a twentieth, then a cosine to 0."""
    if progress < 0.05:
        return progress / 0.05
    return 0.5 + 0.5 * math.cos(math.pi * (progress - 0.05) / 0.95)


def report(lesson: Lesson, last: bool) -> dict[str, object]:
    """Return what the card says of one view; at the end also how the model plays alone."""
    rows = HELD_OUT if last else 2000
    values: dict[str, object] = {"agreement": round(lesson.agreement(rows), 4)}
    if last:
        values |= {"positions": num_rows(lesson.learn), "chance": round(lesson.chance(), 4), **alone(lesson)}
    return values


def alone(lesson: Lesson) -> dict[str, float]:
    """Return what the model comes to when it plays a view's game itself."""
    if lesson.reader.view.game == "blackjack":
        chosen = lesson.reader.advise(lesson.learn).probs[:, 1].round().double()
        policy = torch.zeros(CELLS, dtype=torch.float64)
        policy[tuple(lesson.learn[name] for name in ("sum", "open", "usable"))] = chosen
        return {"regret": round(optimum(lesson.game).hand - value_of(lesson.game, policy), 6)}
    if lesson.reader.view.game == "snake":
        return {"fruits": round(score(lesson, envs.make("snake", SNAKES, seed=2, time_limit=1000)), 2)}
    games = {name: envs.make("connect4", 1000, seed=2, opponent=name) for name in ("random", "tactical")}
    return {name: round(score(lesson, env), 4) for name, env in games.items()}


def score(lesson: Lesson, env: Env) -> float:
    """Return the reader's mean return over each copy's first game. What was asked once is kept in a table."""
    view = lesson.reader.view
    desk = Advisor(view, lesson.reader, AdviceTable(len(view.labels), math.inf), None)
    env.reset()
    total, playing = torch.zeros(env.num_envs), torch.ones(env.num_envs, dtype=torch.bool)
    while playing.any():
        step = env.step(desk.advise(env.state, playing).probs.argmax(1))
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
