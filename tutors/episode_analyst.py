"""Who reads a student's games: names the steps that mattered, or says which of two games was played better.

A served model answers the first in JSON under a schema, which vLLM enforces, and the second with a letter, whose
log-probabilities are the answer. What it says is checked here all the same, and asked for again where it is not right;
what still is not after so many tries is no answer, counted by kind. A script that searches is the control.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from envs.base import State, num_rows
from envs.rng import bits_to_uniform, splitmix64
from tutors.base import Advice, Tutor
from tutors.episodes import MATTERS, Episode, expert_values, gaps, longest, rules_of, tell
from tutors.llm.api import Failure, LabelRequest, TextRequest
from tutors.llm.models import Model
from tutors.llm.pool import EndpointPool
from tutors.prompts.base import ANSWER, PromptView

MOST = 5  # steps of a game that are named
LONGEST = 200  # characters of a reason
LETTERS = ("A", "B")
TEMPERATURE = 0.7  # of a second try: at 0 a model would say the same again
TASK = (
    "Below is a game that a student played, step by step. Find the critical steps: those at which the choice strongly "
    f"changed what came later. Name at most {MOST}. For each give its number, a short reason, the letter of the action "
    "that would have been best there, and a reward between -1 and 1 for what the student did there: negative if it was "
    "a mistake, positive if it was good. Answer in JSON:\n"
    '{"critical": [{"step": 3, "reason": "it had to block", "action": "A", "reward": -0.8}]}'
)
CHOICE = "Below are two games, A and B, that a student played. In which one did it choose better? Answer with A or B."


class Finding(NamedTuple):
    """A step that mattered."""

    step: int  # from 0
    action: int  # what would have been best, as the view tells it
    reward: float  # in [-1, 1], for what the student did
    reason: str


class Analyst(Protocol):
    """Whoever reads games."""

    name: str
    stats: Counter[str]  # asked: prompts sent; no_advice/<kind>: episodes without an answer

    def critical(self, episodes: Sequence[Episode]) -> list[list[Finding]]:
        """Return the steps of each game that mattered; none where there is no answer."""

    def prefers(self, pairs: Sequence[tuple[Episode, Episode]]) -> list[float | None]:
        """Return the chance that the first of two games was played better; None where there is no answer."""


class Reader(Tutor):
    """In a tutor's place at the desk of a student whose games were read: nobody is asked about single positions.

    Args:
        view: how positions are told.
        name: of the analyst.
    """

    def __init__(self, view: PromptView, name: str) -> None:
        self.view, self.name = view, name
        self.identity = {"tutor": name}
        self.stats: Counter[str] = Counter()

    def advise(self, state: State) -> Advice:
        """Return no advice."""
        return Advice.no_advice(num_rows(state), len(self.view.labels))


class ScriptedAnalyst:
    """Names the steps at which the student lost most by an expert's values, each with probability `accuracy`.

    Else it names any step, any legal action and any reward. Of two games it prefers the one that lost less a step, and
    with probability 1 - `accuracy` the one that a coin says.
    """

    name = "scripted"

    def __init__(self, view: PromptView, accuracy: float, depth: int, seed: int) -> None:
        self.view, self.accuracy, self.depth, self.seed = view, accuracy, depth, seed
        self.stats: Counter[str] = Counter()

    def critical(self, episodes: Sequence[Episode]) -> list[list[Finding]]:
        self.stats["asked"] += len(episodes)
        found = []
        for number, episode in enumerate(episodes):
            values = expert_values(self.view, episode, self.depth)
            gap, lost = gaps(values, episode.actions)
            named = []
            for turn, step in enumerate(lost.argsort(descending=True, stable=True)[:MOST].tolist()):
                if lost[step] <= MATTERS * gap.max():
                    break
                right, where, what, worth = self._luck(number, turn)
                if right < self.accuracy:
                    share = float(lost[step] / lost.max())
                    named.append(Finding(step, int(values[step].argmax()), -share, "the search would not do that"))
                else:
                    step = int(where * len(lost))
                    action_mask = (values[step] > -torch.inf).nonzero()[:, 0].tolist()
                    named.append(Finding(step, action_mask[int(what * len(action_mask))], 2 * worth - 1, "a guess"))
            found.append(named)
        return found

    def prefers(self, pairs: Sequence[tuple[Episode, Episode]]) -> list[float | None]:
        self.stats["asked"] += len(pairs)
        said: list[float | None] = []
        for number, pair in enumerate(pairs):
            lost = [gaps(expert_values(self.view, one, self.depth), one.actions)[1].mean() for one in pair]
            right, coin, *_ = self._luck(number, MOST)
            if right < self.accuracy:
                said.append(0.5 if lost[0] == lost[1] else float(lost[0] < lost[1]))
            else:
                said.append(float(coin < 0.5))
        return said

    def _luck(self, number: int, turn: int) -> list[float]:
        """Return four numbers in [0, 1) of their own for each turn of each question."""
        begin = splitmix64(torch.tensor([self.seed])) + (number * (MOST + 1) + turn) * 4
        return bits_to_uniform(splitmix64(begin + torch.arange(4))).tolist()


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

    def critical(self, episodes: Sequence[Episode]) -> list[list[Finding]]:
        prompts = [f"{rules_of(self.view)}\n\n{TASK}\n\n{tell(self.view, episode)}" for episode in episodes]
        schema = json.dumps(schema_of(self.view.labels, longest(episodes)))
        found: list[list[Finding] | Failure] = [Failure("deadline")] * len(episodes)
        rows = list(range(len(episodes)))
        self._connect(TextRequest(max_tokens=1))
        for attempt in range(self.max_tries):
            temperature = TEMPERATURE if attempt else 0.0
            request = TextRequest(self.max_tokens, temperature=temperature, seed=attempt, json_schema=schema)
            outputs = self.pool.generate([prompts[row] for row in rows], request)
            for row, output in zip(rows, outputs, strict=True):
                found[row] = output if isinstance(output, Failure) else read(str(output[0]), self.view, episodes[row])
            rows = [row for row in rows if isinstance(found[row], Failure)]
            if not rows:
                break
        self._count_failures(found)
        return [[] if isinstance(one, Failure) else one for one in found]

    def prefers(self, pairs: Sequence[tuple[Episode, Episode]]) -> list[float | None]:
        prompts = []
        for pair in pairs:
            games = "\n\n".join(
                f"Game {name}\n\n{tell(self.view, one)}" for name, one in zip(LETTERS, pair, strict=True)
            )
            prompts.append(f"{rules_of(self.view)}\n\n{CHOICE}\n\n{games}\n\n{ANSWER}")
        request = LabelRequest(LETTERS)
        self._connect(request)
        outputs = self.pool.generate(prompts, request)
        answers = [output if isinstance(output, Failure) else first_label_probability(output) for output in outputs]
        self._count_failures(answers)
        return [None if isinstance(answer, Failure) else answer for answer in answers]

    def _connect(self, request: LabelRequest | TextRequest) -> None:
        self.pool.connect(self.model, request, [self.view.content_free_prompt()], self.stats)

    def _count_failures(self, answers: Sequence[object]) -> None:
        self.stats.update(f"no_advice/{answer.kind}" for answer in answers if isinstance(answer, Failure))


def first_label_probability(logprobs: tuple[float, ...] | tuple[str, ...]) -> float | Failure:
    """Return the probability of the first label among all; a failure where none is possible."""
    probability = torch.tensor(logprobs, dtype=torch.float64).softmax(0)[0].item()
    return Failure("low_label_mass") if math.isnan(probability) else probability


def schema_of(labels: Sequence[str], steps: int) -> dict[str, Any]:
    """Return the JSON schema of an answer about a game of at most so many steps."""
    finding = {
        "step": {"type": "integer", "minimum": 1, "maximum": steps},
        "reason": {"type": "string", "maxLength": LONGEST},
        "action": {"type": "string", "enum": list(labels)},
        "reward": {"type": "number", "minimum": -1, "maximum": 1},
    }
    item = {"type": "object", "properties": finding, "required": list(finding), "additionalProperties": False}
    named = {"critical": {"type": "array", "maxItems": MOST, "items": item}}
    return {"type": "object", "properties": named, "required": ["critical"], "additionalProperties": False}


def read(text: str, view: PromptView, episode: Episode) -> list[Finding] | Failure:
    """Return the findings of an answer, or what is wrong with it; a step that is named twice counts once.

    What follows a thought's end counts, from the first brace to the last.
    """
    text = text.rpartition("</think>")[2]
    try:
        named = json.loads(text[text.index("{") : text.rindex("}") + 1], strict=False)["critical"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Failure("not_json")
    if not isinstance(named, list):
        return Failure("not_json")
    action_mask, found = view.action_mask(episode.told), dict[int, Finding]()
    for one in named[:MOST]:
        if not isinstance(one, dict):
            return Failure("not_json")
        step, action, reward = one.get("step"), one.get("action"), one.get("reward")
        if not isinstance(step, int) or isinstance(step, bool) or not 1 <= step <= len(episode.actions):
            return Failure("no_such_step")
        if action not in view.labels or not action_mask[step - 1, view.labels.index(action)]:
            return Failure("illegal_action")
        if not isinstance(reward, int | float) or isinstance(reward, bool) or not -1 <= reward <= 1:
            return Failure("reward_out_of_range")
        reason = str(one.get("reason", ""))[:LONGEST]
        found.setdefault(step - 1, Finding(step - 1, view.labels.index(action), float(reward), reason))
    return list(found.values())
