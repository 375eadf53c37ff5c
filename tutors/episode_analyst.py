"""Review a student's episodes: find the critical steps, or say which of two episodes is the better one.

A served model answers the first in JSON under a schema, which vLLM enforces, and the second with a letter, whose
log-probabilities are the answer. Answers are checked here all the same, and asked for again where they are invalid;
what is still invalid after the last try is no answer, counted by kind. A script that searches is the control.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from envs.rng import bits_to_uniform, splitmix64
from tutors.display import encodable
from tutors.episodes import (
    CRITICAL_GAP,
    Episode,
    EpisodeStatistics,
    expert_values,
    max_length,
    render_episode,
    rules_text,
    value_gaps,
)
from tutors.llm.api import Failure, LabelRequest, Output, Request, TextRequest
from tutors.llm.models import Model
from tutors.llm.pool import EndpointPool
from tutors.llm.thinking import outside_thinking
from tutors.prompts.base import ANSWER, PromptView

MAX_CRITICAL_STEPS = 5  # of an episode
MAX_REASON_LENGTH = 200  # characters of a reason
LETTERS = ("A", "B")
TEMPERATURE = 0.7  # of a second try or sample: at 0 a model would give the same answer again
TASK = (
    "Below is a game that a student played, step by step. Find the critical steps: those at which the choice strongly "
    f"changed what came later. Name at most {MAX_CRITICAL_STEPS}. For each give its number, a short reason, the letter "
    "of the action that would have been best there, and a reward between -1 and 1 for what the student did there: "
    "negative if it was a mistake, positive if it was good. Answer in JSON:\n"
    '{"critical": [{"step": 3, "reason": "it had to block", "action": "A", "reward": -0.8}]}'
)
CHOICE = "Below are two games, A and B, that a student played. In which one did it choose better? Answer with A or B."


class CriticalStep(NamedTuple):
    """A step whose choice strongly changed what came later."""

    step: int  # from 0
    action: int  # the best one there, in the canonical position
    reward: float  # in [-1, 1], for what the student did
    reason: str


class Analyst(Protocol):
    """Reviews episodes."""

    name: str
    stats: Counter[str]  # asked: prompts sent; no_advice/<kind>: episodes without an answer

    def find_critical_steps(self, episodes: Sequence[Episode], sample: int = 0) -> list[list[CriticalStep]]:
        """Return the critical steps of each episode; none where there is no answer. Samples differ by their number."""

    def compare_pairs(self, pairs: Sequence[tuple[Episode, Episode]]) -> list[float | None]:
        """Return the probability that the first of two episodes is the better one; None where there is no answer."""

    def rescue(self) -> list[Any]:
        """Return what a call that an exception ended would have returned then; nothing if there was no answer yet."""


class ScriptedAnalyst:
    """Names the steps at which the student lost most by an expert's values, each with probability `accuracy`.

    Otherwise it names any step, any legal action and any reward. Of two episodes it prefers the one that lost less a
    step, and with probability 1 - `accuracy` either one at random.
    """

    name = "scripted"

    def __init__(self, view: PromptView, accuracy: float, depth: int, seed: int) -> None:
        self.view = view
        self.accuracy = accuracy
        self.depth = depth
        self.seed = seed
        self.stats: Counter[str] = Counter()

    def find_critical_steps(self, episodes: Sequence[Episode], sample: int = 0) -> list[list[CriticalStep]]:
        self.stats["asked"] += len(episodes)
        return [
            self._critical_steps(number, episode) for number, episode in enumerate(episodes, sample * len(episodes))
        ]

    def compare_pairs(self, pairs: Sequence[tuple[Episode, Episode]]) -> list[float | None]:
        self.stats["asked"] += len(pairs)
        answers: list[float | None] = []
        for number, pair in enumerate(pairs):
            first, second = (
                value_gaps(expert_values(self.view, one, self.depth), one.actions)[1].mean() for one in pair
            )
            u_right, u_coin, *_ = self._uniforms(number, MAX_CRITICAL_STEPS)
            if u_right < self.accuracy:
                answers.append(0.5 if first == second else float(first < second))
            else:
                answers.append(float(u_coin < 0.5))
        return answers

    def rescue(self) -> list[Any]:
        return []

    def _critical_steps(self, number: int, episode: Episode) -> list[CriticalStep]:
        values = expert_values(self.view, episode, self.depth)
        gap, lost = value_gaps(values, episode.actions)
        found = []
        for rank, step in enumerate(lost.argsort(descending=True, stable=True)[:MAX_CRITICAL_STEPS].tolist()):
            if lost[step] <= CRITICAL_GAP * gap.max():
                break
            u_right, u_step, u_action, u_reward = self._uniforms(number, rank)
            if u_right < self.accuracy:
                share = float(lost[step] / lost.max())
                found.append(CriticalStep(step, int(values[step].argmax()), -share, "the search would not do that"))
            else:
                random_step = int(u_step * len(lost))
                legal = (values[random_step] > -torch.inf).nonzero()[:, 0].tolist()
                action = legal[int(u_action * len(legal))]
                found.append(CriticalStep(random_step, action, 2 * u_reward - 1, "a guess"))
        return found

    def _uniforms(self, number: int, rank: int) -> list[float]:
        """Return four numbers in [0, 1), others for each step that is named of each question."""
        start = splitmix64(torch.tensor([self.seed])) + (number * (MAX_CRITICAL_STEPS + 1) + rank) * 4
        return bits_to_uniform(splitmix64(start + torch.arange(4))).tolist()


class VllmAnalyst:
    """A served language model.

    Args:
        view: how episodes are put into words.
        model: the model that is asked, and its template.
        pool: its servers, closed by whoever made it.
        max_tokens: of an answer in JSON.
        max_tries: how often a question is asked until its answer is right.

    Raises:
        TutorError: a server does not answer, or serves another model.
    """

    def __init__(self, view: PromptView, model: Model, pool: EndpointPool, max_tokens: int, max_tries: int) -> None:
        self.view = view
        self.model = model
        self.pool = pool
        self.max_tokens = max_tokens
        self.max_tries = max_tries
        self.name = model.name
        self.stats: Counter[str] = Counter()
        self.answers: list[Any] = []  # of the current call, or failures
        self.no_answer: Any = None  # what stands for a failure

    def find_critical_steps(self, episodes: Sequence[Episode], sample: int = 0) -> list[list[CriticalStep]]:
        statistics = EpisodeStatistics(self.view, episodes)
        head = f"{rules_text(self.view)}\n\n{TASK}"
        prompts = [f"{head}\n\n{render_episode(self.view, episode, statistics)}" for episode in episodes]
        schema = json.dumps(schema_of(self.view.labels, max_length(episodes)))
        rows = list(range(len(episodes)))
        self._connect(TextRequest(max_tokens=1), len(episodes), [])
        for attempt in range(self.max_tries):
            seed = sample * self.max_tries + attempt
            temperature = TEMPERATURE if seed else 0.0
            request = TextRequest(self.max_tokens, temperature=temperature, seed=seed, json_schema=schema)
            self._ask(prompts, rows, request, lambda output, row: read(str(output[0]), self.view, episodes[row]))
            rows = [row for row in rows if isinstance(self.answers[row], Failure)]
            if not rows:
                break
        return self._given()

    def compare_pairs(self, pairs: Sequence[tuple[Episode, Episode]]) -> list[float | None]:
        prompts = []
        for pair in pairs:
            games = "\n\n".join(
                f"Game {name}\n\n{render_episode(self.view, one)}" for name, one in zip(LETTERS, pair, strict=True)
            )
            prompts.append(f"{rules_text(self.view)}\n\n{CHOICE}\n\n{games}\n\n{ANSWER}")
        request = LabelRequest(LETTERS)
        self._connect(request, len(pairs), None)
        self._ask(prompts, range(len(pairs)), request, lambda output, _row: first_label_probability(output))
        return self._given()

    def rescue(self) -> list[Any]:
        given = self._given()
        return [] if all(answer == self.no_answer for answer in given) else given

    def _connect(self, request: LabelRequest | TextRequest, count: int, no_answer: Any) -> None:
        self.answers, self.no_answer = [Failure("deadline")] * count, no_answer
        self.pool.connect(self.model, request, [self.view.content_free_prompt()], self.stats)
        self.model = self.pool.model
        self.name = self.model.name

    def _ask(
        self, prompts: Sequence[str], rows: Sequence[int], request: Request, parse: Callable[[Any, int], Any]
    ) -> None:
        """Put the answers to the prompts at `rows` into `answers`, of an exception those that came before it."""
        received: dict[int, Output] = {}
        try:
            self.pool.generate([prompts[row] for row in rows], request, outputs=received)
        finally:
            for number, output in received.items():
                row = rows[number]
                self.answers[row] = output if isinstance(output, Failure) else parse(output, row)

    def _given(self) -> list[Any]:
        """Return the answers, and count the failures."""
        self.stats.update(f"no_advice/{answer.kind}" for answer in self.answers if isinstance(answer, Failure))
        return [self.no_answer if isinstance(answer, Failure) else answer for answer in self.answers]


def first_label_probability(logprobs: tuple[float, ...] | tuple[str, ...]) -> float | Failure:
    """Return the probability of the first label among all; a failure where none is possible."""
    probability = torch.tensor(logprobs, dtype=torch.float64).softmax(0)[0].item()
    return Failure("low_label_mass") if math.isnan(probability) else probability


def schema_of(labels: Sequence[str], steps: int) -> dict[str, Any]:
    """Return the JSON schema of an answer about an episode of at most `steps` steps."""
    finding = {
        "step": {"type": "integer", "minimum": 1, "maximum": steps},
        "reason": {"type": "string", "maxLength": MAX_REASON_LENGTH},
        "action": {"type": "string", "enum": list(labels)},
        "reward": {"type": "number", "minimum": -1, "maximum": 1},
    }
    item = {"type": "object", "properties": finding, "required": list(finding), "additionalProperties": False}
    named = {"critical": {"type": "array", "maxItems": MAX_CRITICAL_STEPS, "items": item}}
    return {"type": "object", "properties": named, "required": ["critical"], "additionalProperties": False}


def read(text: str, view: PromptView, episode: Episode) -> list[CriticalStep] | Failure:
    """Return the critical steps that an answer names, or why it is invalid; a step that is named twice counts once.

    Only the text after the model's thinking counts, from the first brace to the last.
    """
    answer = outside_thinking(text)
    if answer is None:
        return Failure("unfinished")
    text = answer
    try:
        named = json.loads(text[text.index("{") : text.rindex("}") + 1], strict=False)["critical"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Failure("not_json")
    if not isinstance(named, list):
        return Failure("not_json")
    action_mask, found = view.action_mask(episode.positions), dict[int, CriticalStep]()
    for one in named[:MAX_CRITICAL_STEPS]:
        if not isinstance(one, dict):
            return Failure("not_json")
        step, action, reward = one.get("step"), one.get("action"), one.get("reward")
        if not isinstance(step, int) or isinstance(step, bool) or not 1 <= step <= len(episode.actions):
            return Failure("no_such_step")
        if action not in view.labels or not action_mask[step - 1, view.labels.index(action)]:
            return Failure("illegal_action")
        if not isinstance(reward, int | float) or isinstance(reward, bool) or not -1 <= reward <= 1:
            return Failure("reward_out_of_range")
        reason = one.get("reason")
        words = encodable(reason[:MAX_REASON_LENGTH]) if isinstance(reason, str) else ""
        found.setdefault(step - 1, CriticalStep(step - 1, view.labels.index(action), float(reward), words))
    return list(found.values())
