"""Text mode, as in the papers: the model may think, and its answer stands in `<action></action>`.

One position costs a prompt and up to some hundred generated tokens; a model that thinks requires a thousand. A text
without a legal action is asked for again, at a higher temperature and with another seed, `max_tries` times. Advice is
the share of each action among several samples.
"""

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from envs.base import State
from tutors.base import Advice
from tutors.llm.api import CutText, Failure, Output, TextRequest
from tutors.llm.label_logprobs import ParsedOutputs
from tutors.llm.models import Model
from tutors.llm.thinking import outside_thinking
from tutors.prompts.base import ANSWER, LETTER_ONLY, PromptView

ACTION_TAG_PROMPT = "Give the letter of one option as <action>LETTER</action>."
TEMPERATURE = 0.7  # of several samples, and of a second try: at 0 a model would repeat itself
OPEN_END = r"|</?a?c?t?i?o?n?\s*\Z|\Z"  # of a last tag whose end a server took for the text's
MAX_PARSED_CHARS = 100_000  # of a text, from its end
RETRYABLE_KINDS = frozenset({"unfinished", "no_action", "unknown_action", "illegal_action"})


class TextGeneration:
    """Text mode.

    Args:
        view: the prompts and the labels.
        thinks: whether the template begins the model's thinking, so that an action only counts after its end.
        max_tokens: of one text, thinking included.
        samples: texts for each prompt.
        max_tries: how often a position is asked about until an action is legal.
        no_thinking: whether the thinking that the template begins is closed, or switched off.

    Raises:
        ValueError: a number is below 1.
    """

    alternative = None
    prompts_per_position = 1
    unfinished_hint = "--tutor-tokens allows for longer answers"

    def __init__(
        self,
        view: PromptView,
        thinks: bool,
        max_tokens: int = 512,
        samples: int = 1,
        max_tries: int = 3,
        no_thinking: bool = False,
    ) -> None:
        if min(max_tokens, samples, max_tries) < 1:
            raise ValueError(f"{max_tokens} tokens, {samples} samples and {max_tries} tries: each must be at least 1")
        self.view = view
        self.thinks = thinks and not no_thinking
        self.max_tokens = max_tokens
        self.samples = samples
        self.max_tries = max_tries
        self.no_thinking = no_thinking
        self.identity = {"mode": "text", "tokens": max_tokens, "samples": samples, "tries": max_tries}
        self.identity |= {"thinking": False} if no_thinking else {}

    def for_server(self, model: Model, uses_chat: bool) -> "TextGeneration":
        """Return the mode for a served model; where the server renders the prompts, thinking may not be shown."""
        mode = copy.copy(self)
        mode.thinks = bool(model.closing) and not uses_chat and not self.no_thinking
        return mode

    def template(self, model: Model) -> str:
        """Return the template that prompts are rendered in."""
        return model.answer_template if self.no_thinking else model.template

    def request(self, attempt: int) -> TextRequest:
        """Return what a server is asked for at the first try (0), and at later ones."""
        temperature = TEMPERATURE if self.samples > 1 or attempt > 0 else 0.0
        return TextRequest(self.max_tokens, self.samples, temperature, seed=attempt, no_thinking=self.no_thinking)

    def render(self, state: State) -> list[str]:
        """Return one prompt a position."""
        return [with_action_tag(prompt) for prompt in self.view.render(state)]

    def content_free_prompts(self) -> list[str]:
        """Return one prompt without a position: any output shows that the server answers."""
        return [with_action_tag(self.view.content_free_prompt())]

    def parse(
        self, outputs: Sequence[Output], action_mask: Tensor, content_free: Sequence[Output] = ()
    ) -> ParsedOutputs:
        """Return the advice in the outputs of B positions' prompts.

        A position without a legal action has the first text's failure. The label mass is the share of legal actions.

        Args:
            outputs: B, in the order of `render`.
            action_mask: (B, A) bool.
            content_free: not used: a text about no position says nothing about labels.
        """
        counts = torch.zeros(action_mask.shape, dtype=torch.float64)
        failures: list[Failure | None] = []
        for row, (output, mask) in enumerate(zip(outputs, action_mask.tolist(), strict=True)):
            actions, failure = self._legal_actions(output, mask)
            for action in actions:
                counts[row, action] += 1
            failures.append(None if actions else failure)
        total = counts.sum(1, keepdim=True)  # (B, 1)
        probs = counts / total.clamp(min=1)
        return ParsedOutputs(Advice(probs.float(), total[:, 0] > 0, (total[:, 0] / self.samples).float()), failures)

    def _legal_actions(self, output: Output, mask: Sequence[bool]) -> tuple[list[int], Failure | None]:
        """Return the legal actions that the texts of one prompt name, and the first failure."""
        if isinstance(output, Failure):
            return [], output
        parsed = [parse_action(text, self.view.labels, self.thinks) for text in output if isinstance(text, str)]
        checked = [
            Failure("illegal_action") if isinstance(action, int) and not mask[action] else action for action in parsed
        ]
        failures = [action for action in checked if isinstance(action, Failure)]
        return [action for action in checked if isinstance(action, int)], next(iter(failures), None)


def with_action_tag(prompt: str) -> str:
    """Return a prompt that asks for an action in tags in place of a label."""
    return f"{prompt.replace(f' {LETTER_ONLY}', '').removesuffix(ANSWER).rstrip()}\n\n{ACTION_TAG_PROMPT}"


def parse_action(text: str, labels: Sequence[str], thinks: bool) -> int | Failure:
    """Return the action that a text names, or what is wrong with it.

    Outside the model's thinking, the last tags that name a label count; the last tag may be open, unless the text was
    cut. A label may be lower case or in quotes where it stands alone, and have words beside it where it is upper
    case ("B) hit").
    """
    answer = outside_thinking(text[-MAX_PARSED_CHARS:], thinks)
    if answer is None:
        return Failure("unfinished")
    is_cut = isinstance(text, CutText)
    tagged = re.findall(rf"<action>([^<]*)(?:</action>{'' if is_cut else OPEN_END})", answer, re.IGNORECASE)
    actions = [action for content in tagged if (action := action_of(content, labels)) is not None]
    if actions:
        return actions[-1]
    return Failure("unfinished" if is_cut else "unknown_action" if tagged else "no_action")


def action_of(content: str, labels: Sequence[str]) -> int | None:
    """Return the action of the only label in a tag's content, None where that is not clear."""
    alone = re.fullmatch(r"[\W_]*([^\W_])[\W_]*", content)  # no character fits twice: linear in the text
    words = {alone[1].upper()} if alone else set(re.findall(r"\w+", content))
    named = words.intersection(labels)
    return labels.index(named.pop()) if len(named) == 1 else None
