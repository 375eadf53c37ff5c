"""What a tutor's advice is worth, measured on a sample of positions before a long run pays for it.

Costs one question for each position, in calls of STEP as a run makes them, and two searches by the view's expert. A
position about which the tutor is silent is counted as such, and takes part in no other measure but the label mass.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from envs.base import Env, State, cat_states, num_rows, select_rows, state_to
from envs.rng import QUERY_STREAM, SAMPLING_STREAM, CounterRNG, sample_legal
from tutors.advisor import Advisor
from tutors.base import Advice, no_advice_counts
from tutors.prompts.base import PromptView

GAMES = 256  # at once, while positions are gathered
ROUND = 100  # steps between two looks at how many different positions there are
PLENTY = 4  # times as many different positions as are wanted are gathered before some are drawn
PLAY_DEPTH = 2  # how far the expert looks ahead while it only plays
STEP = 100  # positions a call: each call has the deadline of one step of a run
BINS = 10  # of the reliability curve
SURE = 1.96  # standard errors on both sides of a mean that make its 95 % interval


@dataclass(frozen=True)
class Report:
    """The measures of one tutor in one view of one game. A mean over no positions at all is nan."""

    game: str
    view: str
    positions: int
    answered: int
    agreement: float  # share of the answers whose advised action is one of the expert's best
    interval: tuple[float, float]  # of the agreement, 95 %
    chance: float  # the agreement of an answer that names any legal action
    calibration_error: float
    entropy: float  # nats
    entropy_share: float  # of log(number of legal actions), the entropy of an answer that knows nothing
    label_mass: float  # over all positions, answered or not
    no_advice: dict[str, int]  # positions by what went wrong
    stored: int  # answers that the advice store had: they cost nothing
    prompts: int
    prompt_tokens: int
    answer_tokens: int
    seconds_per_1000: float  # positions asked about; answers from the store do not count
    curve: dict[str, list[float]]  # see `reliability`; a number a bin
    letters: dict[str, dict[str, float]]  # see `letter_bias`; by letter

    def as_json(self) -> dict[str, Any]:
        """Return everything in JSON's own terms: null where there is no number."""
        return without_nan(asdict(self))


def gather(env: Env, view: PromptView, count: int, seed: int) -> State:
    """Return `count` positions of mixed play, as the game knows them, on the CPU; all that came up if there are fewer.

    No two positions are told in the same words, and all different ones that came up are equally likely to be among
    those returned: more than wanted are gathered, over many games, until there are PLENTY times as many or a round of
    play brings none that is new.

    Args:
        env: the games; they are dealt afresh.
        view: how they are told; it has an expert.
        count: of positions, at least 1.
        seed: of the play and of the draw.
    """
    play, known = mixed_play(env, view, seed), 0
    pool: list[State] = []
    while True:
        pool = [distinct(view, [*pool, *itertools.islice(play, ROUND)])[0]]
        found = num_rows(pool[0])
        if found >= PLENTY * count or found == known:
            break
        known = found
    order = (
        CounterRNG(seed, torch.arange(found, device=env.device), SAMPLING_STREAM)
        .uniform(0, 1)[:, 0]
        .argsort(stable=True)
    )
    return state_to(select_rows(pool[0], order[:count]), "cpu")


def mixed_play(env: Env, view: PromptView, seed: int) -> Iterator[State]:
    """Deal the games afresh, play them without end, and yield all positions of each moment, as the game knows them.

    Half of all actions are the expert's best and half are any legal ones: in game i of n an action is the expert's with
    probability i / (n - 1), so that play of every strength takes part. Without an expert all are any legal ones.
    """
    rng = CounterRNG(seed, torch.arange(env.num_envs, device=env.device), QUERY_STREAM)
    skill = torch.linspace(0, 1, env.num_envs, device=env.device)
    step = env.reset()
    for turn in itertools.count():
        yield step.state
        chance = rng.uniform(turn, 2)
        actions = step.action_mask
        if view.has_expert:
            clever = expert_actions(view, step.state) & step.action_mask & (chance[:, :1] < skill[:, None])
            actions = torch.where(clever.any(1, keepdim=True), clever, step.action_mask)
        step = env.step(sample_legal(actions, chance[:, 1]))


def expert_actions(view: PromptView, state: State) -> Tensor:
    """Return which of the game's own actions a quick expert finds best, (N, A) bool."""
    told, turned = view.canonicalize(state)
    best = best_actions(view.expert_values(told, PLAY_DEPTH), view.action_mask(told))
    return best.gather(1, view.symmetry.to(best.device)[turned])


def distinct(view: PromptView, parts: list[State]) -> tuple[State, Tensor]:
    """Join B positions and keep the first of all that are told in the same words, in the order of their keys.

    Returns (what is kept, which of these each of the B is told like (B,) int64).
    """
    joined = cat_states(parts)
    keys, which = torch.unique(view.key(view.canonicalize(joined)[0]), dim=0, return_inverse=True)
    rows = torch.full_like(keys[:, 0], len(which))
    rows.scatter_reduce_(0, which, torch.arange(len(which), device=which.device), "amin")
    return select_rows(joined, rows), which


def report(desk: Advisor, state: State, depth: int) -> Report:
    """Ask about all positions, compare the answers with an expert's, and return what comes out.

    Args:
        desk: a new one, where the tutor answers; on the CPU, as the positions are.
        state: the games' positions, no two of which are told in the same words, B rows.
        depth: how far the expert looks ahead.
    """
    view = desk.view
    told, turned = view.canonicalize(state)
    calls = [select_rows(state, rows) for rows in torch.arange(num_rows(state)).split(STEP)]
    answers = [desk.advise(call, torch.ones(num_rows(call), dtype=torch.bool)) for call in calls]
    advice = Advice(*(torch.cat(part) for part in zip(*answers, strict=True)))
    given = advice.valid
    probs = torch.zeros_like(advice.probs).scatter(1, view.symmetry[turned], advice.probs)[given]  # as told, by letter
    action_mask = view.action_mask(told)[given]
    best = best_actions(view.expert_values(told, depth)[given], action_mask)
    top, advised = probs.max(1)
    agreed = best.gather(1, advised[:, None])[:, 0]
    curve = reliability(top, agreed)
    unsure = entropy(probs)
    choices = action_mask.sum(1)
    several = choices > 1
    bias, within = letter_bias(probs, best)
    expert = shares(best)
    asked, stats = desk.counts["told"], desk.tutor.stats
    return Report(
        game=view.game,
        view=view.name,
        positions=len(given),
        answered=len(agreed),
        agreement=agreed.float().mean().item(),
        interval=wilson(int(agreed.sum()), len(agreed)),
        chance=(best.sum(1) / choices).mean().item(),
        calibration_error=calibration_error(*curve),
        entropy=unsure.mean().item(),
        entropy_share=(unsure[several] / choices[several].log()).mean().item(),
        label_mass=advice.label_mass.mean().item(),
        no_advice=no_advice_counts(stats),
        stored=desk.counts["stored"],
        prompts=stats["asked"],
        prompt_tokens=stats["prompt_tokens"],
        answer_tokens=stats["answer_tokens"],
        seconds_per_1000=1000 * desk.sums["seconds"] / asked if asked else math.nan,
        curve=dict(zip(("count", "confidence", "agreement"), (part.tolist() for part in curve), strict=True)),
        letters={
            letter: dict(zip(("advised", "expert", "bias", "within"), numbers, strict=True))
            for letter, *numbers in zip(
                view.labels, *(part.tolist() for part in (probs.mean(0), expert.mean(0), bias, within)), strict=True
            )
        },
    )


def best_actions(values: Tensor, action_mask: Tensor) -> Tensor:
    """Return which legal actions no legal one surpasses, (B, A) bool, for `values` and `action_mask`, both (B, A)."""
    values = values.float().masked_fill(~action_mask, -torch.inf)
    return (values == values.amax(1, keepdim=True)) & action_mask


def shares(best: Tensor) -> Tensor:
    """Return the distribution that is uniform over each row's best actions. (B, A) float32, for (B, A) bool."""
    return best / best.sum(1, keepdim=True)


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share; that of no trials is all there is.

    Unlike the normal approximation it stays within [0, 1], and is no point where all trials are hits.
    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not trials:
        return 0.0, 1.0
    share, square = hits / trials, SURE**2 / trials
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def reliability(top: Tensor, agreed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (how many answers, their mean top probability, the share that agreed) of each bin, all (BINS,) float32.

    Bin m of M holds the answers whose top probability lies in ((m - 1) / M, m / M]; the means of an empty bin are nan.

    Args:
        top: the probability of the advised action, (B,) float32.
        agreed: whether it is one of the best, (B,) bool.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    edges = torch.arange(1, BINS, device=top.device) / BINS
    which = torch.bucketize(top, edges)
    count = torch.zeros(BINS, device=top.device).index_add(0, which, torch.ones_like(top))
    confidence = torch.zeros_like(count).index_add(0, which, top) / count
    accuracy = torch.zeros_like(count).index_add(0, which, agreed.float()) / count
    return count, confidence, accuracy


def calibration_error(count: Tensor, confidence: Tensor, accuracy: Tensor) -> float:
    """Return the expected calibration error of a reliability curve, (BINS,) each; nan of no answers.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    gap = (accuracy - confidence).abs().nan_to_num()
    return (count * gap).sum().item() / count.sum().item() if count.any() else math.nan


def entropy(probs: Tensor) -> Tensor:
    """Return how unsure each answer is, in nats. (B,) for distributions (B, A)."""
    return torch.special.entr(probs).sum(1)


def letter_bias(probs: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Return (how much more probability each letter gets than it should, half its 95 % interval), both (A,).

    What it should get is the expert's: as much on average as where all of a position's best actions share it equally.
    So a letter that is best more often is not called liked, and one that the tutor says whatever is asked is. Who is
    often wrong is biased too, towards what it takes for good: the letter or the action. `--label-permutations`
    tells the two apart: letters are then those of the first order, and what averaging leaves is a liking for actions.

    Args:
        probs: the advice as it is told, (B, A).
        best: the expert's best actions, (B, A) bool.
    """
    difference = probs - shares(best)
    bias = difference.mean(0)
    spread = (difference - bias).square().mean(0).sqrt()
    return bias, SURE * spread / math.sqrt(max(len(probs), 1))


def without_nan(told: Any) -> Any:
    """Return the same numbers, lists and dictionaries with None for nan."""
    if isinstance(told, dict):
        return {name: without_nan(value) for name, value in told.items()}
    if isinstance(told, list | tuple):
        return [without_nan(value) for value in told]
    return None if isinstance(told, float) and math.isnan(told) else told
