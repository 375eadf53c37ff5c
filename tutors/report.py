"""What a tutor's advice is worth, measured on a sample of positions before a long run pays for it.

Costs one query for each position, in calls of POSITIONS_PER_CALL as a run makes them, and two searches by the view's
expert. A position without advice is counted as such, and takes part in no other measure but the label mass.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from envs.base import State, num_rows, select_rows
from tutors.advisor import Advisor
from tutors.base import Advice, no_advice_counts
from tutors.positions import best_actions
from tutors.prompts.base import PromptView

POSITIONS_PER_CALL = 100  # each call has the deadline of one step of a run
NUM_BINS = 10  # of the reliability curve
Z_95 = 1.96  # standard errors on both sides of a mean that make its 95 % interval


@dataclass(frozen=True)
class TutorReport:
    """The measures of one tutor in one view of one game. A mean over no positions is nan."""

    game: str
    view: str
    positions: int
    answered: int
    agreement: float  # share of the answers whose advised action is one of the expert's best
    interval: tuple[float, float]  # of the agreement, 95 %
    chance: float  # the agreement of a random legal action
    p_value: float  # the probability that random legal actions agree as often
    constant: float  # the agreement of whoever names one and the same letter always, the best one for that
    calibration_error: float
    entropy: float  # nats
    entropy_share: float  # of log(number of legal actions), the entropy of a uniform answer
    label_mass: float  # over all positions, answered or not
    no_advice: dict[str, int]  # positions by kind of failure
    stored: int  # answers that the advice store had, which cost nothing
    prompts: int
    prompt_tokens: int
    answer_tokens: int
    seconds_per_1000: float  # of positions that the tutor was asked about
    curve: dict[str, list[float]]  # see `reliability`; one number a bin
    letters: dict[str, dict[str, float]]  # see `letter_bias`; by letter
    approval: float = math.nan  # how it ranks episodes, see `measure_approval`; nan where that was not asked for
    approval_interval: tuple[float, float] = (0.0, 1.0)  # 95 %
    approval_episodes: int = 0

    @property
    def gain(self) -> float:
        """The agreement above chance, as a mean over all positions: where there is no advice, nothing is gained."""
        return self.answered / self.positions * (self.agreement - self.chance) if self.answered else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON represents it: null in place of nan."""
        return without_nan(asdict(self))


def measure_tutor(advisor: Advisor, state: State, depth: int) -> TutorReport:
    """Ask about all positions, compare the answers with an expert's, and return the measures.

    Args:
        advisor: a new one, on the CPU, as the positions are.
        state: the game's positions, B rows, no two of which have the same prompt.
        depth: how far the expert looks ahead.
    """
    return summarize(advisor, state, ask(advisor, state), expert_best(advisor.view, state, depth))


def expert_best(view: PromptView, state: State, depth: int) -> Tensor:
    """Return which actions of the canonical positions an expert finds best, (B, A) bool; the slow part of a report."""
    canonical, _ = view.canonicalize(state)
    return best_actions(view.expert_values(canonical, depth), view.action_mask(canonical))


def ask(advisor: Advisor, state: State) -> Advice:
    """Return advice about all positions."""
    calls = [select_rows(state, rows) for rows in torch.arange(num_rows(state)).split(POSITIONS_PER_CALL)]
    answers = [advisor.advise(call, torch.ones(num_rows(call), dtype=torch.bool)) for call in calls]
    return Advice(*(torch.cat(part) for part in zip(*answers, strict=True)))


def summarize(advisor: Advisor, state: State, advice: Advice, expert: Tensor) -> TutorReport:
    """Return the measures of advice about B positions; the costs are those of all that the advisor asked.

    Args:
        advisor: that asked.
        state: the positions, as the game represents them.
        advice: about them, in the game's own actions.
        expert: of `expert_best`.
    """
    view = advisor.view
    canonical, transform = view.canonicalize(state)
    valid = advice.valid
    by_letter = torch.zeros_like(advice.probs).scatter(1, view.symmetry[transform], advice.probs)
    probs = by_letter[valid]  # of the canonical positions' actions
    action_mask = view.action_mask(canonical)[valid]
    best = expert[valid]
    top, advised = probs.max(1)
    agreed = best.gather(1, advised[:, None])[:, 0]
    curve = reliability(top, agreed)
    entropies = entropy(probs)
    num_legal = action_mask.sum(1)
    has_choice = num_legal > 1
    bias, within = letter_bias(probs, best)
    due = uniform_over(best)
    chances = best.sum(1) / num_legal
    queried, stats = advisor.counts["queried"], advisor.tutor.stats
    return TutorReport(
        game=view.game,
        view=view.name,
        positions=len(valid),
        answered=len(agreed),
        agreement=agreed.float().mean().item(),
        interval=wilson(int(agreed.sum()), len(agreed)),
        chance=chances.mean().item(),
        p_value=p_value(int(agreed.sum()), chances),
        constant=best.float().mean(0).max().item(),
        calibration_error=calibration_error(*curve),
        entropy=entropies.mean().item(),
        entropy_share=(entropies[has_choice] / num_legal[has_choice].log()).mean().item(),
        label_mass=advice.label_mass.mean().item(),
        no_advice=no_advice_counts(stats),
        stored=advisor.counts["stored"],
        prompts=stats["asked"],
        prompt_tokens=stats["prompt_tokens"],
        answer_tokens=stats["answer_tokens"],
        seconds_per_1000=1000 * advisor.sums["seconds"] / queried if queried else math.nan,
        curve=dict(zip(("count", "confidence", "agreement"), (part.tolist() for part in curve), strict=True)),
        letters={
            letter: dict(zip(("advised", "expert", "bias", "within"), numbers, strict=True))
            for letter, *numbers in zip(
                view.labels, *(part.tolist() for part in (probs.mean(0), due.mean(0), bias, within)), strict=True
            )
        },
    )


def uniform_over(best: Tensor) -> Tensor:
    """Return the distribution that is uniform over each row's best actions. (B, A) float32, for (B, A) bool."""
    return best / best.sum(1, keepdim=True)


def wilson(hits: float, trials: float) -> tuple[float, float]:
    """Return the 95 % interval of a share; [0, 1] without trials. Effective numbers need not be whole.

    Unlike the normal approximation it stays within [0, 1], and has a width even where all trials are hits.
    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not trials:
        return 0.0, 1.0
    share, square = hits / trials, Z_95**2 / trials
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def p_value(hits: int, chances: Tensor) -> float:
    """Return the probability of at least `hits` successes, each with a chance of its own, (B,).

    A normal approximation with a correction for continuity.
    """
    variance = (chances * (1 - chances)).sum().item()
    excess = hits - 0.5 - chances.sum().item()
    return 0.5 * math.erfc(excess / math.sqrt(2 * variance)) if variance > 0 else 1.0


def reliability(top: Tensor, agreed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each bin's (number of answers, mean top probability, share that agreed), all (NUM_BINS,) float32.

    Bin m of M holds the answers whose top probability lies in ((m - 1) / M, m / M]; the means of an empty bin are nan.

    Args:
        top: the probability of the advised action, (B,) float32.
        agreed: whether it is one of the best, (B,) bool.

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    edges = torch.arange(1, NUM_BINS, device=top.device) / NUM_BINS
    which = torch.bucketize(top, edges)
    count = torch.zeros(NUM_BINS, device=top.device).index_add(0, which, torch.ones_like(top))
    confidence = torch.zeros_like(count).index_add(0, which, top) / count
    accuracy = torch.zeros_like(count).index_add(0, which, agreed.float()) / count
    return count, confidence, accuracy


def calibration_error(count: Tensor, confidence: Tensor, accuracy: Tensor) -> float:
    """Return the expected calibration error of a reliability curve, (NUM_BINS,) each; nan of no answers.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    gap = (accuracy - confidence).abs().nan_to_num()
    return (count * gap).sum().item() / count.sum().item() if count.any() else math.nan


def entropy(probs: Tensor) -> Tensor:
    """Return each answer's entropy in nats, (B,) for distributions (B, A)."""
    return torch.special.entr(probs).sum(1)


def letter_bias(probs: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """Return (each letter's mean probability beyond the expert's, half its 95 % interval), both (A,).

    The expert shares the probability equally among all of a position's best actions, so that a letter which is best
    more often does not count as preferred, and one that the tutor names whatever is asked does. A tutor that is often
    wrong is biased too, towards the letter or the action that it prefers. `--label-permutations` tells the two apart:
    letters are then those of the first order, and what averaging leaves is a preference for actions.

    Args:
        probs: the advice about canonical positions, (B, A).
        best: the expert's best actions, (B, A) bool.
    """
    difference = probs - uniform_over(best)
    bias = difference.mean(0)
    std = (difference - bias).square().mean(0).sqrt()
    return bias, Z_95 * std / math.sqrt(max(len(probs), 1))


def without_nan(value: Any) -> Any:
    """Return the same numbers, lists and dictionaries with None in place of nan."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
