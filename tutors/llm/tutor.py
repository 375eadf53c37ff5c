"""A tutor that is a served language model: prompts are rendered, outputs generated in batches, and parsed into advice.

What a prompt costs, and how its output becomes advice, depends on the answer mode: label log-probabilities
(label_logprobs.py) or generated text (text_generation.py). Server errors never stop training: the positions concerned
get no advice and are counted under no_advice/<kind>. Only what a person must mend (a wrong key, a model that is not
served, a server that cannot answer such requests) is raised, as TutorError.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from envs.base import State
from tutors.base import Advice, Tutor, Warner
from tutors.llm.api import Failure, Output
from tutors.llm.endpoint import LabelsError
from tutors.llm.label_logprobs import LabelLogprobs, ParsedOutputs
from tutors.llm.models import Model
from tutors.llm.pool import EndpointPool
from tutors.llm.text_generation import RETRYABLE_KINDS, TextGeneration
from tutors.prompts.base import PromptView

AnswerMode = LabelLogprobs | TextGeneration


class VllmTutor(Tutor):
    """A served language model.

    Args:
        view: the prompts, the labels and which actions are legal.
        model: the model that is asked, and its template.
        pool: its servers, closed by whoever made it.
        mode: what the servers are asked for.
        optional: go on where no server answers at the start, and ask once one does.

    Raises:
        TutorError: a server does not answer, serves another model, or cannot answer in this mode.
    """

    takes_long = True

    def __init__(
        self, view: PromptView, model: Model, pool: EndpointPool, mode: AnswerMode, optional: bool = False
    ) -> None:
        self.view = view
        self.pool = pool
        self.stats: Counter[str] = Counter()  # asked: prompts; requests; prompt_tokens; answer_tokens; no_advice/<kind>
        self.warn = Warner(logging.getLogger(__name__))
        mode = self._connect(model, mode, optional)
        pool.metrics()  # what the servers counted before is not ours
        found_before_label = pool.model.before_label.removeprefix(model.before_label)  # of which no entry knows
        self.model = model = pool.model
        self.name = model.name
        uses_chat = pool.identity.uses_chat
        self.mode = mode.for_server(model, uses_chat)
        template = "the server's own" if uses_chat else mode.template(model) + found_before_label
        self.identity = {"tutor": pool.identity.fingerprint, "template": template, **mode.identity}
        self.shares_cpu = pool.is_local
        self.rescued: Advice | None = None

    def _connect(self, model: Model, mode: AnswerMode, optional: bool) -> AnswerMode:
        """Connect the servers, and return the mode in which they can answer. Raises as `EndpointPool.connect` does."""
        try:
            self.pool.connect(model, mode.request(0), mode.content_free_prompts(), self.stats, optional)
        except LabelsError as error:
            if mode.alternative is None:
                raise
            with suppress(LabelsError):
                alternative = self._connect(model, mode.alternative, optional)
                self.warn("labels", f"{model.name} is asked for digits in place of letters: {error}")
                return alternative
            raise
        return mode

    def advise(self, state: State) -> Advice:
        parsed = self._generate(state)
        for failure in parsed.failures:
            if failure is not None:
                self.stats[f"no_advice/{failure.kind}"] += 1
                hint = f"; {self.mode.unfinished_hint}" if failure.kind == "unfinished" else ""
                what = f"{failure.kind}: {failure.words}" if failure.words else failure.kind
                self.warn(failure.kind, f"no advice from the tutor ({what}); training goes on without it{hint}")
        return parsed.advice

    def rescue(self) -> Advice | None:
        advice, self.rescued = self.rescued, None
        return advice

    def cancel(self) -> None:
        self.pool.cancel()

    def report(self) -> dict[str, float]:
        """Return vLLM's own numbers since the last report."""
        return self.pool.metrics()

    def _generate(self, state: State) -> ParsedOutputs:
        """Return what the servers answer about B positions; texts without a legal action are asked for again."""
        mode = self.mode
        prompts = mode.render(state)
        action_mask = self.view.action_mask(state).cpu()
        until = time.monotonic() + self.pool.deadline_s
        outputs: list[Output] = [Failure("stopped")] * len(prompts)
        self.rescued = None

        def parse() -> ParsedOutputs:
            return mode.parse(outputs, action_mask, self.pool.content_free_outputs)

        try:
            self._ask(prompts, range(len(prompts)), 0, self.pool.deadline_s, outputs)
            parsed = parse()
            for attempt in range(1, mode.max_tries):
                timeout_s = until - time.monotonic()
                rows = [row for row, failure in enumerate(parsed.failures) if is_retryable(failure)]
                if not rows or timeout_s <= 0:
                    break
                self._ask(prompts, rows, attempt, timeout_s, outputs)
                parsed = parse()
        except BaseException:
            self.rescued = parse().advice
            raise
        return parsed

    def _ask(
        self, prompts: Sequence[str], rows: Sequence[int], attempt: int, timeout_s: float, outputs: list[Output]
    ) -> None:
        """Put the outputs of the prompts at `rows` into `outputs`, of an exception those that came before it."""
        received: dict[int, Output] = {}
        mode = self.mode
        try:
            asked = [prompts[row] for row in rows]
            self.pool.generate(asked, mode.request(attempt), mode.prompts_per_position, timeout_s, received)
        finally:
            for number, output in received.items():
                outputs[rows[number]] = output


def is_retryable(failure: Failure | None) -> bool:
    """Return whether a text came that names no legal action."""
    return failure is not None and failure.kind in RETRYABLE_KINDS
