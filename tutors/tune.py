"""Which way of asking suits a model: the best of many, and whether it is better than chance.

All ways are asked about a few positions, the better half of them about more, and so on: successive halving (Karnin et
al. 2013). The best of many is the luckiest too, so it is judged by positions that had no part in its choice.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from envs.base import State, select_rows
from tutors.advisor import Advisor
from tutors.base import Advice, TutorError
from tutors.config import TutorConfig
from tutors.llm.tutor import VllmTutor
from tutors.report import TutorReport, ask, summarize

CHOICE_SHARE = 0.5  # of the positions, by which the best candidate is chosen; the others judge it
NUM_ROUNDS = 3  # each but the first with twice the positions and half the candidates
MAX_P_VALUE = 0.01  # of what counts as better than chance
MIN_POSITIONS = 16


class Sample(NamedTuple):
    """Positions to ask about in one view, in random order."""

    state: State
    expert: Tensor  # the expert's best actions, of `expert_best`


Connect = Callable[[TutorConfig], tuple[Advisor, Sample]]  # opens one way of asking


@dataclass
class Candidate:
    """One way of asking, and what is known of it."""

    config: TutorConfig
    advisor: Advisor
    sample: Sample
    advice: list[Advice] = field(default_factory=list)  # about the first positions of the sample

    @property
    def max_prompts(self) -> int:
        """Prompts that one position may cost."""
        is_text = self.config.tutor_mode == "text"
        return self.config.tutor_tries if is_text else self.config.label_permutations

    def measure(self, start: int, stop: int) -> TutorReport:
        """Return the measures of the positions from `start` to `stop`; those not asked about before are asked about."""
        asked = sum(len(part.valid) for part in self.advice)
        if asked < stop:
            self.advice.append(ask(self.advisor, select_rows(self.sample.state, torch.arange(asked, stop))))
        advice = Advice(*(torch.cat(part)[start:stop] for part in zip(*self.advice, strict=True)))
        rows = select_rows(self.sample.state, torch.arange(start, stop))
        return summarize(self.advisor, rows, advice, self.sample.expert[start:stop])


class Outcome(NamedTuple):
    """What one way of asking came to, in the positions by which the best was chosen."""

    config: TutorConfig
    report: TutorReport


class Tuning(NamedTuple):
    """What all ways of asking came to."""

    outcomes: list[Outcome]  # the best first; those that were left behind early were asked about fewer positions
    verdict: TutorReport  # of the best, in positions that had no part in its choice
    refused: dict[str, int]  # why some could not be asked, and how many

    @property
    def is_better_than_chance(self) -> bool:
        """Whether random legal actions would hardly agree as often as the best candidate."""
        return self.verdict.answered > 0 and self.verdict.p_value <= MAX_P_VALUE


def tune(
    base: TutorConfig, views: Sequence[str | None], connect: Connect, max_prompts: int, say: Callable[[str], None]
) -> Tuning:
    """Find the best way of asking.

    Args:
        base: the tutor; what the candidates have in common.
        views: names of the views that are tried.
        connect: makes one candidate's advisor, and its positions.
        max_prompts: of all candidates together.
        say: shows one line of progress.

    Raises:
        ValueError: there are too few positions, or prompts.
        TutorError: the model cannot be asked at all.
    """
    candidates, refused = connect_all(base, views, connect)
    costs = [one.max_prompts for one in candidates]
    limit = max(len(one.sample.expert) for one in candidates)
    limit = bisect_right(range(limit + 1), max_prompts, key=lambda count: planned_prompts(costs, count)) - 1
    sizes = {id(one): min(limit, len(one.sample.expert)) for one in candidates}  # a view may have few positions
    if min(sizes.values()) < MIN_POSITIONS:
        raise ValueError(
            f"{len(candidates)} ways of asking are compared in {MIN_POSITIONS} positions at least, which takes up to "
            f"{planned_prompts(costs, MIN_POSITIONS):,} queries: --positions or --max-queries is too small"
        )
    say(
        f"{len(candidates)} ways of asking, in up to {limit:,} positions: "
        f"{planned_prompts(costs, limit):,} queries at most"
    )
    outcomes: list[Outcome] = []
    remaining = candidates
    for number in range(NUM_ROUNDS):
        reports = {id(one): one.measure(0, round_ends(sizes[id(one)])[number]) for one in remaining}
        remaining.sort(key=lambda one: rank(reports[id(one)]), reverse=True)  # of equal ones the cheaper stays first
        kept = math.ceil(len(remaining) / 2) if number < NUM_ROUNDS - 1 else 0
        outcomes = [Outcome(one.config, reports[id(one)]) for one in remaining[kept:]] + outcomes
        best, remaining = remaining[0], remaining[:kept]
    size = sizes[id(best)]
    return Tuning(outcomes, best.measure(num_choosing(size), size), refused)


def connect_all(
    base: TutorConfig, views: Sequence[str | None], connect: Connect
) -> tuple[list[Candidate], dict[str, int]]:
    """Return the candidates, those that cost less first, and why others cannot be asked.

    Every server answers with text: where that fails, there is nothing to tune.
    """
    texts, refused = [], dict[str, int]()
    for config in (replace(base, tutor_mode="text", view=view) for view in views):
        texts.append(Candidate(config, *connect(config)))
        if has_thinking(texts[-1]):
            config = replace(config, no_thinking=True)
            texts.insert(0, Candidate(config, *connect(config)))
    labels: list[Candidate] = []
    for config in label_configs(base, views, texts[0].advisor.view.symmetry.shape[1]):
        try:
            new = Candidate(config, *connect(config))
            if not any(asks_the_same(new, one) for one in labels):  # digits, which letters had given way to
                labels.append(new)
        except (TutorError, ValueError) as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
    return [*labels, *texts], refused


def label_configs(base: TutorConfig, views: Sequence[str | None], num_actions: int) -> Iterator[TutorConfig]:
    """Yield all ways of label mode, those that cost less first."""
    label_sets: tuple[Literal["digits"] | None, ...] = (None, "digits")
    for permutations, calibrate, label_set, view in itertools.product(
        (1, num_actions), (False, True), label_sets, views
    ):
        yield replace(base, view=view, label_permutations=permutations, calibrate=calibrate, label_set=label_set)


def asks_the_same(one: Candidate, other: Candidate) -> bool:
    """Return whether two candidates ask the same questions, and read the answers in the same way."""
    first, second = one.advisor, other.advisor
    return one.config.view == other.config.view and first.tutor.identity == second.tutor.identity


def has_thinking(candidate: Candidate) -> bool:
    """Return whether the model's template begins its thinking, or can switch it off."""
    tutor = candidate.advisor.tutor
    return isinstance(tutor, VllmTutor) and bool(tutor.model.closing or tutor.model.unthinking_template)


def rank(report: TutorReport) -> tuple[bool, float]:
    """Return what puts the candidates in order: the gain over chance, of those that give any advice."""
    return report.answered > 0, report.gain


def num_choosing(positions: int) -> int:
    """Return the number of positions by which the best candidate is chosen."""
    return int(CHOICE_SHARE * positions)


def round_ends(positions: int) -> list[int]:
    """Return how many positions the candidates of each round have been asked about at its end."""
    return [num_choosing(positions) >> NUM_ROUNDS - 1 - number for number in range(NUM_ROUNDS)]


def planned_prompts(costs: Sequence[int], positions: int) -> int:
    """Return the maximum number of prompts that tuning with so many positions sends.

    Args:
        costs: maximum prompts a position, of each candidate.
        positions: of each view.
    """
    costs, total, asked = sorted(costs, reverse=True), 0, 0
    for stop in round_ends(positions):
        total += (stop - asked) * sum(costs)
        costs, asked = costs[: math.ceil(len(costs) / 2)], stop
    return total + (positions - asked) * costs[0]
