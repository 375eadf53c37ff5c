"""Ask for one letter: the log-probabilities of the labels come back, and softmax over the legal ones is the advice.

One question costs one prompt of some 150 to 250 tokens and one token of answer. Nothing is parsed and no answer is
illegal. Models have a liking for some letters, whatever they stand for; two cures, at a price:

permutations  A question is asked several times with the letters dealt anew, and the answers are averaged: an action
              bears another letter each time. Costs that many prompts. Source: Zheng et al. 2024, arXiv:2309.03882.
calibration   What the model answers to the rules without a position is divided out: p / p_blank, over the legal
              actions. Costs one prompt a run. Source: Zhao et al. 2021, arXiv:2102.09690, with W = diag(p)^-1.
"""

import math
from collections.abc import Sequence

from envs.base import State
from tutors.llm.api import Answer, Labels, Trouble, Wanted
from tutors.prompts.base import PromptView

RAREST = -20.0  # log-probability of a letter in a blank below which nothing is divided out: it would become certain
Verdict = list[float] | Trouble  # a distribution over the legal actions, or why there is none


class LabelWay:
    """Label log-probabilities.

    Args:
        view: the words and the letters.
        permutations: how many ways of dealing the letters a question is asked with, at most one an action.
        calibrate: whether what is answered without a position is divided out.
        min_mass: silence where less of the model's probability than this is on legal letters.

    Raises:
        ValueError: the view cannot deal its letters anew, or not in so many ways.
    """

    tries = 1
    thinks = False

    def __init__(
        self, view: PromptView, permutations: int = 1, calibrate: bool = False, min_mass: float = 0.01
    ) -> None:
        count = len(view.labels)
        if not 1 <= permutations <= count:
            raise ValueError(f"{permutations} permutations of {count} letters; there can be 1 to {count}")
        self.letters, self.calibrate, self.min_mass = view.labels, calibrate, min_mass
        turns = [turn * count // permutations for turn in range(permutations)]
        self.orders = [[(action + turn) % count for action in range(count)] for turn in turns]
        self.views = [view] + [
            view.relabelled(tuple(view.labels[letter] for letter in order)) for order in self.orders[1:]
        ]
        self.blank = [[0.0] * count for _ in self.orders]  # log-probabilities of the letters without a position
        self.identity = {"mode": "label", "permutations": permutations, "calibrated": calibrate}

    def wanted(self, attempt: int) -> Wanted:
        """Return what a server is asked for."""
        return Labels(self.letters)

    def questions(self, state: State) -> list[list[str]]:
        """Return the words of each position, once for each order of the letters."""
        return [list(told) for told in zip(*(view.render(state) for view in self.views), strict=True)]

    def blanks(self) -> list[str]:
        """Return the questions without a position, which are asked first."""
        return [view.content_free_prompt() for view in self.views]

    def learn_blanks(self, answers: Sequence[Answer]) -> None:
        """Take note of the answers to `blanks`."""
        if self.calibrate:
            self.blank = [[max(float(log), RAREST) for log in answer] for answer in answers]

    def judge(self, answers: Sequence[Answer], action_mask: list[bool]) -> tuple[Verdict, float]:
        """Return what the answers about one position come to, and the label mass."""
        total, mass = [0.0] * len(action_mask), 0.0
        for answer, order, blank in zip(answers, self.orders, self.blank, strict=True):
            if isinstance(answer, Trouble):
                return answer, 0.0
            logs = [float(answer[letter]) if may else -math.inf for letter, may in zip(order, action_mask, strict=True)]
            share = sum(math.exp(log) for log in logs)
            mass += min(share, 1.0) / len(self.orders)
            probs = softmax([log - blank[letter] for log, letter in zip(logs, order, strict=True)])
            total = [one + part / len(self.orders) for one, part in zip(total, probs, strict=True)]
        if mass < self.min_mass or not sum(total):
            return Trouble("low_label_mass"), mass
        return [one / sum(total) for one in total], mass


def softmax(logs: list[float]) -> list[float]:
    """Return the distribution that is proportional to exp(logs); zeros where all are minus infinity."""
    best = max(logs)
    if best == -math.inf:
        return [0.0] * len(logs)
    weights = [math.exp(log - best) for log in logs]
    return [weight / sum(weights) for weight in weights]
