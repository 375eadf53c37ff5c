"""How the tiny tutor is trained: on positions of mixed play in every game, in every view, labelled by search.

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
from typing import Annotated, Any

import torch
from annotated_types import Interval
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
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.tiny.model import Llama, Shape
from tutors.tiny.tokens import make_tokenizer, save_tokenizer

NUM_ENVS = 4096  # at once, while positions are gathered
STEPS_PER_CHECK = 100  # steps between two counts of the different positions
MAX_VALUE_GAP = 20  # value behind the best move at which labels are clipped; values differ by a few units
NUM_HELD_OUT = 10_000  # positions of a large game that are not trained on; of a small one all are
NUM_SNAKE_EPISODES = 30  # evaluation episodes, of at most 1,000 steps
POSITION_SHARES = {("connect4", "board"): 84, ("snake", "full"): 12, ("snake", "local"): 2, ("blackjack", "table"): 2}


@dataclass(frozen=True)
class Recipe:
    """All settings of the training."""

    out: Path = Path("runs/tiny")  # what `--tutor tiny` serves is in tutors/tiny/weights, under version control
    # to learn from, each of a large game seen once, shared out by POSITION_SHARES
    positions: Annotated[int, Interval(ge=1, le=10**9)] = 800_000
    depth: Annotated[int, Interval(ge=1, le=42)] = 4  # discs that the labelling search looks ahead
    temperature: Annotated[float, Interval(gt=0, le=1e6)] = 1.0  # of the labels: softmax(value / temperature)
    batch: Annotated[int, Interval(ge=1, le=10**6)] = 128
    learning_rate: Annotated[float, Interval(gt=0, le=1e38)] = 3e-3  # at its height, of both optimizers
    weight_decay: Annotated[float, Interval(ge=0, le=1e6)] = 0.05
    report_every: Annotated[int, Interval(ge=1, le=10**9)] = 1000  # batches; each report also saves
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 1


class LocalTutor(Tutor):
    """The model in PyTorch, without a server, as the tutor of one view."""

    name = "reader"

    def __init__(self, model: Llama, tokenizer: Tokenizer, view: PromptView) -> None:
        self.model, self.tokenizer, self.view = model, tokenizer, view
        self.prefix = torch.tensor(tokenizer.encode(view.instructions).ids)
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
            logits = self.model(self.prefix, tokens, last)
        return logits.float()

    @torch.no_grad()
    def advise(self, state: State) -> Advice:
        """Return the softmax over the legal labels of each position."""
        parts = [
            self.logits(select_rows(state, rows))[:, self.labels] for rows in torch.arange(num_rows(state)).split(1000)
        ]
        probs = torch.cat(parts).masked_fill(~self.view.action_mask(state), -torch.inf).softmax(1)
        sure = torch.ones(len(probs))
        return Advice(probs, sure.bool(), sure)


@dataclass
class ViewTask:
    """One view's positions, and the tutor on them."""

    game: Any
    tutor: LocalTutor
    learn: State  # canonical positions
    held_out: State  # on which the agreement is measured
    depth: int

    @property
    def name(self) -> str:
        """The view's name on the model card."""
        return f"{self.tutor.view.game} {self.tutor.view.name}"

    def expected(self, state: State) -> Tensor:
        """Return the search's value of each action, (B, A)."""
        return self.tutor.view.expert_values(state, self.depth)

    def agreement(self, rows: int) -> float:
        """Return in what share of the first `rows` positions the best legal label is a best move of the search."""
        state = select_rows(self.held_out, torch.arange(min(rows, num_rows(self.held_out))))
        chosen = self.tutor.advise(state).probs.argmax(1, keepdim=True)
        return self._best(state).gather(1, chosen).float().mean().item()

    def chance(self) -> float:
        """Return the agreement of random play."""
        legal = self.tutor.view.action_mask(self.held_out).sum(1)
        return (self._best(self.held_out).sum(1) / legal).mean().item()

    def _best(self, state: State) -> Tensor:
        values = self.expected(state).float().masked_fill(~self.tutor.view.action_mask(state), -torch.inf)
        return is_best(values)


def make_tiny(recipe: Recipe) -> dict[str, object]:
    """Train the tiny tutor, write it to `recipe.out`, and return its model card."""
    torch.manual_seed(recipe.seed)
    began = time.monotonic()
    shares = sum(POSITION_SHARES.values())
    counts = {place: recipe.positions * share // shares for place, share in POSITION_SHARES.items()}
    views = {(game, name): make_view(envs.make_game(game), name) for game, name in POSITION_SHARES}
    positions = {
        place: sample_positions(view, counts[place] + NUM_HELD_OUT, recipe.seed) for place, view in views.items()
    }
    some = [words for place, view in views.items() for words in view.render(first_rows(positions[place], 10_000))]
    tokenizer = make_tokenizer(some, sorted({label for view in views.values() for label in view.labels}))
    model = Llama(Shape(tokenizer.get_vocab_size()))
    tasks = {
        place: ViewTask(
            envs.make_game(place[0]), LocalTutor(model, tokenizer, view), *hold_out(positions[place]), recipe.depth
        )
        for place, view in views.items()
    }
    card: dict[str, object] = {
        "recipe": {name: str(value) for name, value in asdict(recipe).items() if name != "out"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    plan = [place for place, count in counts.items() for _ in range(count // recipe.batch)]
    for batch, loss in train(tasks, plan, recipe):
        last = batch == len(plan)
        if last or batch % recipe.report_every == 0:
            reports = {task.name: view_report(task, last) for task in tasks.values()}
            card |= {"batches": batch, "seconds": round(time.monotonic() - began), "views": reports}
            save(model, tokenizer, recipe.out, card)
            found = ", ".join(f"{name} {values['agreement']:.1%}" for name, values in reports.items())
            print(f"batch {batch} of {len(plan)}: loss {loss:.4f}, best move found: {found}", flush=True)
    return card


def sample_positions(view: PromptView, count: int, seed: int) -> State:
    """Return at least `count` different canonical positions, from play of every strength.

    In game i the student takes a move of a shallow search with a probability that grows with i, and any
    legal move otherwise; Connect Four is played against each opponent in turn. Where a game has fewer positions, all
    that came up.
    """
    turns = [envs.make(view.game, NUM_ENVS, seed)]
    if view.game == "connect4":
        turns.append(envs.make(view.game, NUM_ENVS, seed, opponent="random"))
    found: list[State] = []
    skill = torch.linspace(0, 1, NUM_ENVS)
    rng = CounterRNG(seed, torch.arange(NUM_ENVS), QUERY_STREAM)
    back = view.symmetry.argsort(1)
    for turn in itertools.count(1):
        env = turns[turn % len(turns)]
        positions, transform = view.canonicalize(env.state)
        found.append(positions)
        if turn % STEPS_PER_CHECK == 0:
            known, found = num_rows(found[0]), [distinct_positions(view, found)]
            if num_rows(found[0]) >= count or num_rows(found[0]) == known:
                return found[0]
        chance = rng.uniform(turn, 2)
        action_mask = view.action_mask(positions)
        clever = is_best(view.expert_values(positions, 2).masked_fill(~action_mask, -(1 << 20))) & (
            chance[:, :1] < skill[:, None]
        )
        move = sample_legal(torch.where(clever.any(1, keepdim=True), clever, action_mask), chance[:, 1])
        env.step(back[transform].gather(1, move[:, None])[:, 0])
    raise AssertionError("counting does not end")


def distinct_positions(view: PromptView, parts: list[State]) -> State:
    """Concatenate positions, and drop those with the same prompt as another."""
    joined = cat_states(parts)
    keys, which = torch.unique(view.key(joined), dim=0, return_inverse=True)
    rows = torch.zeros(len(keys), dtype=torch.int64).scatter_(0, which, torch.arange(len(which)))
    return select_rows(joined, rows)


def first_rows(state: State, rows: int) -> State:
    """Return the first rows, or all if there are fewer."""
    return select_rows(state, torch.arange(min(rows, num_rows(state))))


def hold_out(state: State) -> tuple[State, State]:
    """Return shuffled positions to train on, and NUM_HELD_OUT others; of a small game, all in both."""
    order = torch.randperm(num_rows(state))
    if len(order) < 2 * NUM_HELD_OUT:
        return select_rows(state, order), select_rows(state, order)
    return select_rows(state, order[NUM_HELD_OUT:]), select_rows(state, order[:NUM_HELD_OUT])


def is_best(values: Tensor) -> Tensor:
    """Return which actions have the largest value of their row, (B, A) bool."""
    return values == values.amax(1, keepdim=True)


def train(tasks: dict, plan: list, recipe: Recipe) -> Iterator[tuple[int, float]]:
    """Yield (batches so far, loss) after every batch of `plan`, in random order: cross-entropy to the search's choice.

    Matrices learn by Muon (Jordan et al. 2024), the rest by AdamW; CHANGELOG.md has what AdamW alone does.
    """
    model = next(iter(tasks.values())).tutor.model
    optimizers = make_optimizers(model, recipe)
    read = dict.fromkeys(tasks, 0)
    for batch, at in enumerate(torch.randperm(len(plan)).tolist()):
        task = tasks[plan[at]]
        rows = torch.arange(read[plan[at]], read[plan[at]] + recipe.batch) % num_rows(task.learn)
        read[plan[at]] += recipe.batch
        chosen = select_rows(task.learn, rows)
        wanted = torch.zeros(len(rows), model.shape.vocabulary)
        action_mask = task.tutor.view.action_mask(chosen)
        wanted[:, task.tutor.labels] = target_distribution(task.expected(chosen), action_mask, recipe.temperature)
        loss = F.cross_entropy(task.tutor.logits(chosen), wanted)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * learning_rate_scale(batch / len(plan))
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


def target_distribution(values: Tensor, action_mask: Tensor, temperature: float) -> Tensor:
    """Mix softmax(value / temperature) with the best moves alone, half and half: order and winner both count.

    A value more than MAX_VALUE_GAP below the best counts as that far below.
    """
    values = values.float().masked_fill(~action_mask, -torch.inf)
    behind = (values - values.amax(1, keepdim=True)).clamp(min=-MAX_VALUE_GAP)
    soft = (behind / temperature).masked_fill(~action_mask, -torch.inf).softmax(1)
    winners = is_best(values).float()
    return (soft + winners / winners.sum(1, keepdim=True)) / 2


def learning_rate_scale(progress: float) -> float:
    """The share of the learning rate at `progress` in [0, 1]: up in a twentieth, then a cosine to 0."""
    if progress < 0.05:
        return progress / 0.05
    return 0.5 + 0.5 * math.cos(math.pi * (progress - 0.05) / 0.95)


def view_report(task: ViewTask, last: bool) -> dict[str, object]:
    """Return the model card's entry of one view; at the end with the results of its own play."""
    rows = NUM_HELD_OUT if last else 2000
    values: dict[str, object] = {"agreement": round(task.agreement(rows), 4)}
    if last:
        values |= {"positions": num_rows(task.learn), "chance": round(task.chance(), 4), **play_metrics(task)}
    return values


def play_metrics(task: ViewTask) -> dict[str, float]:
    """Return the results of the model's own play in a view's game."""
    if task.tutor.view.game == "blackjack":
        chosen = task.tutor.advise(task.learn).probs[:, 1].round().double()
        policy = torch.zeros(CELLS, dtype=torch.float64)
        policy[tuple(task.learn[name] for name in ("sum", "open", "usable"))] = chosen
        return {"regret": round(optimum(task.game).hand - value_of(task.game, policy), 6)}
    if task.tutor.view.game == "snake":
        return {"fruits": round(mean_return(task, envs.make("snake", NUM_SNAKE_EPISODES, seed=2, time_limit=1000)), 2)}
    games = {name: envs.make("connect4", 1000, seed=2, opponent=name) for name in ("random", "tactical")}
    return {name: round(mean_return(task, env), 4) for name, env in games.items()}


def mean_return(task: ViewTask, env: Env) -> float:
    """Return the tutor's mean return over the first episode of each env copy. A table keeps its answers."""
    view = task.tutor.view
    advisor = Advisor(view, task.tutor, AdviceTable(len(view.labels), math.inf), None)
    env.reset()
    total, playing = torch.zeros(env.num_envs), torch.ones(env.num_envs, dtype=torch.bool)
    while playing.any():
        step = env.step(advisor.advise(env.state, playing).probs.argmax(1))
        total += step.reward * playing
        playing &= ~(step.terminated | step.truncated)
    return total.mean().item()


def save(model: Llama, tokenizer: Tokenizer, folder: Path, card: dict[str, object]) -> None:
    """Write what vLLM requires, in bfloat16, and the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.shape.as_hugging_face(), indent=2) + "\n")
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_padding()
    save_tokenizer(plain, folder)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
