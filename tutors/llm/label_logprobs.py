"""Label mode: advice is the softmax over the log-probabilities of the legal actions' labels as the next token.

One position costs one prompt of some 150 to 250 tokens and one generated token. Nothing is parsed and no action is
illegal. Models prefer some labels, whatever they stand for; two corrections, at a price:

permutations  A position is asked about several times, each time with the labels assigned to the actions in another
              order, and the answers are averaged. Costs that many prompts. Source: Zheng et al. 2024, arXiv:2309.03882.
calibration   The answer to the rules without a position is divided out: p / p_content_free, over the legal actions.
              Costs one prompt a run. Source: Zhao et al. 2021, arXiv:2102.09690, with W = diag(p)^-1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from envs.base import State
from tutors.base import Advice
from tutors.llm.api import Failure, LabelRequest, Output
from tutors.llm.models import Model
from tutors.prompts.base import DIGITS, PromptView

MIN_CONTENT_FREE_LOGPROB = -20.0  # a rarer label is divided by this: it would become certain otherwise


class ParsedOutputs(NamedTuple):
    """What the outputs about B positions come to."""

    advice: Advice  # its label mass also where that is too little: the logged mean must show it
    failures: list[Failure | None]  # B: why there is no advice; None where there is


class LabelLogprobs:
    """Label mode.

    Args:
        view: the prompts and the labels.
        permutations: P, the number of orders of the labels that a position is asked about with, at most one an action.
        calibrate: whether the answer to the content-free prompt is divided out.
        min_mass: the legal labels' probability below which there is no advice.
        label_set: letters (the view's own labels) or digits; None: digits where letters are no single tokens.

    Raises:
        ValueError: the view cannot change its labels, or has no so many orders.
    """

    max_tries = 1
    unfinished_hint = "a model that thinks requires --tutor-mode text"

    def __init__(
        self,
        view: PromptView,
        permutations: int = 1,
        calibrate: bool = False,
        min_mass: float = 0.01,
        label_set: str | None = None,
    ) -> None:
        can_have_digits = view.relabels and len(view.labels) <= len(DIGITS)
        self.alternative = None  # where these labels are no single tokens
        if label_set is None and can_have_digits:
            self.alternative = LabelLogprobs(view, permutations, calibrate, min_mass, "digits")
        view = view.with_digits() if label_set == "digits" else view
        num_actions = len(view.labels)
        if not 1 <= permutations <= num_actions:
            raise ValueError(f"{permutations} permutations of {num_actions} labels; possible are 1 to {num_actions}")
        self.labels = view.labels
        self.calibrate = calibrate
        self.min_mass = min_mass
        self.prompts_per_position = permutations
        shifts = torch.arange(permutations) * num_actions // permutations
        self.label_of_action = (torch.arange(num_actions) + shifts[:, None]) % num_actions  # (P, A) int64
        relabelled = [
            view.relabelled(tuple(view.labels[label] for label in order)) for order in self.label_of_action[1:].tolist()
        ]
        self.views = [view, *relabelled]
        self.identity = {"mode": "label", "permutations": permutations, "calibrated": calibrate}
        self.identity |= {"label_set": "digits"} if label_set == "digits" else {}

    def for_server(self, model: Model, uses_chat: bool) -> "LabelLogprobs":
        """Return the mode for a served model: it is the same for all."""
        return self

    def template(self, model: Model) -> str:
        """Return the template that prompts are rendered in."""
        return model.answer_template

    def request(self, attempt: int) -> LabelRequest:
        """Return what a server is asked for."""
        return LabelRequest(self.labels, self.min_mass)

    def render(self, state: State) -> list[str]:
        """Return P prompts a position, one for each order of the labels."""
        prompts_by_view = [view.render(state) for view in self.views]
        return [prompt for prompts in zip(*prompts_by_view, strict=True) for prompt in prompts]

    def content_free_prompts(self) -> list[str]:
        """Return the P prompts without a position."""
        return [view.content_free_prompt() for view in self.views]

    def parse(
        self, outputs: Sequence[Output], action_mask: Tensor, content_free: Sequence[Output] = ()
    ) -> ParsedOutputs:
        """Return the advice in the outputs of B positions' prompts.

        Args:
            outputs: B * P, in the order of `render`.
            action_mask: (B, A) bool.
            content_free: P, of the content-free prompts; required if the mode calibrates.
        """
        positions = [
            outputs[start : start + self.prompts_per_position]
            for start in range(0, len(outputs), self.prompts_per_position)
        ]
        failures = [next((output for output in prompts if isinstance(output, Failure)), None) for prompts in positions]
        impossible = [(-math.inf,) * len(self.labels)] * self.prompts_per_position
        logprobs = torch.tensor(
            [prompts if failure is None else impossible for prompts, failure in zip(positions, failures, strict=True)],
            dtype=torch.float64,
        )  # (B, P, A), in the order of the labels
        logprobs = logprobs.gather(2, self.label_of_action.expand_as(logprobs))  # in the order of the actions
        logprobs = logprobs.masked_fill(~action_mask[:, None], -math.inf)
        label_mass = logprobs.exp().sum(2).clamp(max=1).mean(1)  # (B,): rounding may make a sum more than 1
        if self.calibrate and content_free:  # there are none before a server has answered, and no outputs
            prior = torch.tensor(content_free, dtype=torch.float64).clamp(min=MIN_CONTENT_FREE_LOGPROB)  # (P, A)
            logprobs = logprobs - prior.gather(1, self.label_of_action)
        probs = softmax_or_zeros(logprobs).mean(1)  # (B, A)
        total = probs.sum(1)
        valid = (label_mass >= self.min_mass) & (total > 0)
        probs = (probs / total[:, None]).masked_fill(~valid[:, None], 0.0)
        failures = [
            failure if is_valid or failure is not None else Failure("low_label_mass")
            for failure, is_valid in zip(failures, valid.tolist(), strict=True)
        ]
        return ParsedOutputs(Advice(probs.float(), valid, label_mass.float()), failures)


def softmax_or_zeros(logprobs: Tensor) -> Tensor:
    """Return the softmax over the last dimension; zeros where all are minus infinity."""
    return logprobs.softmax(-1).nan_to_num(0.0)
