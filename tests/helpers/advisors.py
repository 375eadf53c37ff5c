"""A tutor that keeps a list of what it was asked, and real positions of Connect Four for an advisor.

The tutor's answer to each position is a function of its key, so that a wrong row, a mirrored action or another
position's advice is seen at once.
"""

from collections import Counter

import torch
from torch import Tensor

import envs
from envs.base import State
from envs.connect4 import mirror
from envs.rng import sample_legal, splitmix64
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.base import Advice, Tutor
from tutors.prompts import make_view
from tutors.store import AdviceStore

VIEW = make_view(envs.make_game("connect4"))
SPEC = envs.make("connect4", 1).spec
TAGS = {"vllm/requests_waiting": 3.0}  # what the recording tutor reports


class RecordingTutor(Tutor):
    """Answers by key, gives no advice about every key that is a multiple of `mute`, and keeps the keys."""

    name = "recording"

    def __init__(self, mute: int = 0) -> None:
        self.mute = mute
        self.identity = {"tutor": "recording"}
        self.asked: list[int] = []
        self.stats: Counter[str] = Counter()

    def report(self) -> dict[str, float]:
        return TAGS

    def advise(self, state: State) -> Advice:
        keys, action_mask = VIEW.key(state)[:, 0], VIEW.action_mask(state)
        self.asked += keys.tolist()
        self.stats["asked"] += len(keys)
        valid = keys % self.mute != 0 if self.mute else torch.ones_like(keys, dtype=torch.bool)
        self.stats["no_advice/mute"] += int((~valid).sum())
        return Advice(answer_to(keys, action_mask) * valid[:, None], valid, valid.float())


def answer_to(keys: Tensor, action_mask: Tensor | None = None) -> Tensor:
    """A distribution that belongs to one key only, over the legal actions of the canonical position."""
    weights = (splitmix64(keys[:, None] + torch.arange(7)) & 0xFFFF).float() + 1
    if action_mask is not None:
        weights *= action_mask
    return weights / weights.sum(1, keepdim=True)


def answers(keys: Tensor) -> Advice:
    """The advice about some keys."""
    valid = torch.ones(len(keys), dtype=torch.bool)
    return Advice(answer_to(keys[:, 0]), valid, valid.float())


def expected(state: State) -> Tensor:
    """The answer about each position in its own actions, by mirroring one position at a time."""
    rows = []
    for mine, theirs in zip(state["mine"], state["theirs"], strict=True):
        one = {"mine": mine[None], "theirs": theirs[None]}
        other = {"mine": mirror(mine[None]), "theirs": mirror(theirs[None])}
        key, flipped = VIEW.key(one)[:, 0], VIEW.key(other)[:, 0]
        is_flipped = bool(flipped < key)
        answer = answer_to(flipped if is_flipped else key, VIEW.action_mask(other if is_flipped else one))[0]
        rows.append(answer.flip(0) if is_flipped else answer)
    return torch.stack(rows)


def states(steps: int, num_envs: int = 64, seed: int = 1) -> list[State]:
    env = envs.make("connect4", num_envs, seed, opponent="random")
    step, found = env.reset(), []
    for turn in range(steps):
        found.append({name: tensor.clone() for name, tensor in env.state.items()})
        step = env.step(sample_legal(step.action_mask, torch.rand(num_envs, generator=torch.manual_seed(turn))))
    return found


def canonical_keys(state: State, rows: Tensor) -> list[int]:
    return VIEW.key(VIEW.canonicalize(state)[0])[rows, 0].tolist()


def make_advisor(budget: float, tutor: Tutor, store: AdviceStore | None = None) -> Advisor:
    return Advisor(VIEW, tutor, AdviceTable(7, budget, capacity=1 << 14), store)


def some(num_envs: int, seed: int) -> Tensor:
    """Seven in ten rows, at random."""
    return torch.rand(num_envs, generator=torch.manual_seed(seed)) < 0.7
