"""Who reads a student's games: names the steps that mattered, or says which of two games was played better.

A served model answers the first in JSON under a schema, which vLLM enforces, and the second with a letter, whose
log-probabilities are the answer. What it says is checked here all the same, and asked for again where it is not right;
what still is not after so many tries is silence, counted by kind. A script that searches is the control.
"""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import torch

from envs.base import State, num_rows
from envs.rng import bits_to_uniform, splitmix64
from tutors.base import Advice, TutorError
from tutors.episodes import MATTERS, Episode, expert_values, gaps, longest, rules_of, tell
from tutors.llm.api import Answer, Labels, Text, Trouble, Wanted
from tutors.llm.client import Client, RequestError
from tutors.llm.endpoint import Line
from tutors.llm.label_logprobs import softmax
from tutors.llm.models import Model
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
    stats: Counter[str]  # asked: prompts sent; no_advice/<kind>: games without an answer

    def critical(self, episodes: Sequence[Episode]) -> list[list[Finding]]:
        """Return the steps of each game that mattered; none where the analyst is silent."""

    def prefers(self, pairs: Sequence[tuple[Episode, Episode]]) -> list[float | None]:
        """Return the chance that the first of two games was played better; None where the analyst is silent."""


class Reader:
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

    def report(self) -> dict[str, float]:
        """Return nothing."""
        return {}


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
        view: how games are told.
        model: who is asked, and in which template.
        clients: the servers, which share the questions.
        tokens: of an answer in JSON.
        tries: how often a question is asked until its answer is right.

    Raises:
        TutorError: a server does not answer, or serves another model.
    """

    def __init__(self, view: PromptView, model: Model, clients: Sequence[Client], tokens: int, tries: int) -> None:
        self.view, self.model, self.clients, self.tokens, self.tries = view, model, clients, tokens, tries
        self.name = model.name
        self.stats: Counter[str] = Counter()

    def critical(self, episodes: Sequence[Episode]) -> list[list[Finding]]:
        words = [f"{rules_of(self.view)}\n\n{TASK}\n\n{tell(self.view, episode)}" for episode in episodes]
        found: list[list[Finding] | Trouble] = [Trouble("deadline")] * len(episodes)
        lines, left = None, list(range(len(episodes)))
        schema = json.dumps(schema_of(self.view.labels, longest(episodes)))
        for attempt in range(self.tries):
            wanted = Text(self.tokens, 1, TEMPERATURE if attempt else 0.0, attempt, schema)
            lines = lines or self._lines(Text(1))
            answers = self._ask(lines, [words[row] for row in left], wanted)
            for row, answer in zip(left, answers, strict=True):
                found[row] = answer if isinstance(answer, Trouble) else read(str(answer[0]), self.view, episodes[row])
            left = [row for row in left if isinstance(found[row], Trouble)]
            if not left:
                break
        return [[] if isinstance(one, Trouble) else one for one in self._counted(found)]

    def prefers(self, pairs: Sequence[tuple[Episode, Episode]]) -> list[float | None]:
        words = []
        for pair in pairs:
            games = "\n\n".join(
                f"Game {name}\n\n{tell(self.view, one)}" for name, one in zip(LETTERS, pair, strict=True)
            )
            words.append(f"{rules_of(self.view)}\n\n{CHOICE}\n\n{games}\n\n{ANSWER}")
        wanted = Labels(LETTERS)
        answers = self._ask(self._lines(wanted), words, wanted)
        said = [one if isinstance(one, Trouble) else softmax([float(log) for log in one])[0] for one in answers]
        troubles = [Trouble("nan") if isinstance(one, float) and math.isnan(one) else one for one in said]
        return [None if isinstance(one, Trouble) else one for one in self._counted(troubles)]

    def _counted(self, answers: list[Any]) -> list[Any]:
        """Return the answers, and count what is silence."""
        self.stats.update(f"no_advice/{one}" for one in answers if isinstance(one, Trouble))
        return answers

    def _lines(self, wanted: Wanted) -> list[Line]:
        """Return the servers, each met with a first question of this kind."""
        lines = [
            Line(client, self.model, wanted, [self.view.content_free_prompt()], Counter()) for client in self.clients
        ]
        for line in lines:
            try:
                line.meet()
            except RequestError as error:
                raise TutorError(f"{line.client.url} does not answer a first question: {error.kind}") from None
            line.stats = self.stats
        return lines

    def _ask(self, lines: list[Line], words: list[str], wanted: Wanted) -> list[Answer]:
        """Return the answers to all questions, each asked once."""
        answers: list[Answer] = [Trouble("deadline")] * len(words)

        async def ask() -> None:
            parts = [list(range(len(words)))[turn :: len(lines)] for turn in range(len(lines))]
            await asyncio.gather(
                *(
                    line.ask([words[row] for row in rows], wanted, answers, rows)
                    for line, rows in zip(lines, parts, strict=True)
                )
            )

        client = lines[0].client
        with suppress(RequestError):  # what came in time is there
            client.run(client.within(client.deadline, ask()))
        return answers


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


def read(text: str, view: PromptView, episode: Episode) -> list[Finding] | Trouble:
    """Return the findings of an answer, or what is wrong with it; a step that is named twice counts once.

    What follows a thought's end counts, from the first brace to the last.
    """
    text = text.rpartition("</think>")[2]
    try:
        named = json.loads(text[text.index("{") : text.rindex("}") + 1], strict=False)["critical"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Trouble("not_json")
    if not isinstance(named, list):
        return Trouble("not_json")
    action_mask, found = view.action_mask(episode.told), dict[int, Finding]()
    for one in named[:MOST]:
        if not isinstance(one, dict):
            return Trouble("not_json")
        step, action, reward = one.get("step"), one.get("action"), one.get("reward")
        if not isinstance(step, int) or isinstance(step, bool) or not 1 <= step <= len(episode.actions):
            return Trouble("no_such_step")
        if action not in view.labels or not action_mask[step - 1, view.labels.index(action)]:
            return Trouble("illegal_action")
        if not isinstance(reward, int | float) or isinstance(reward, bool) or not -1 <= reward <= 1:
            return Trouble("reward_out_of_range")
        reason = str(one.get("reason", ""))[:LONGEST]
        found.setdefault(step - 1, Finding(step - 1, view.labels.index(action), float(reward), reason))
    return list(found.values())
