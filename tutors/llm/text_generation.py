"""Ask for free text, as the papers do: the model may think, and its answer stands inside `<action></action>`.

One question costs a prompt and up to some hundred tokens of answer; a model that thinks wants a thousand. An answer
without a legal letter is asked for again, with some temperature and another seed, and after so many tries the tutor is
silent. Of several samples the shares of the letters are the advice.
"""

import re
from collections.abc import Sequence

from envs.base import State
from tutors.llm.api import Answer, Text, Trouble, Wanted
from tutors.llm.label_logprobs import Verdict
from tutors.prompts.base import ANSWER, LETTER_ONLY, PromptView

TAGGED = "Give the letter of one option as <action>LETTER</action>."
TEMPERATURE = 0.7  # of several samples, and of a second try: at 0 a model would say the same again
LONGEST = 100_000  # characters of an answer that are looked at
AGAIN = frozenset({"unfinished", "no_action", "two_actions", "unknown_action", "illegal_action"})


class TextWay:
    """Free text.

    Args:
        view: the words and the letters.
        thinks: whether the prompt begins the model's thinking, so that an answer only counts after its end.
        tokens: of one answer, thinking included.
        samples: answers to each question.
        tries: how often a question without a legal answer is asked.

    Raises:
        ValueError: one of the numbers makes no sense.
    """

    def __init__(self, view: PromptView, thinks: bool, tokens: int = 512, samples: int = 1, tries: int = 3) -> None:
        if min(tokens, samples, tries) < 1:
            raise ValueError(f"{tokens} tokens, {samples} samples and {tries} tries: each must be at least 1")
        self.view, self.thinks, self.tokens, self.samples, self.tries = view, thinks, tokens, samples, tries
        self.identity = {"mode": "text", "tokens": tokens, "samples": samples, "tries": tries}

    def wanted(self, attempt: int) -> Wanted:
        """Return what a server is asked for the first time (0), and again."""
        warm = self.samples > 1 or attempt > 0
        return Text(self.tokens, self.samples, TEMPERATURE if warm else 0.0, attempt)

    def questions(self, state: State) -> list[list[str]]:
        """Return the words of each position, asking for an answer in tags."""
        return [[tagged(words)] for words in self.view.render(state)]

    def blanks(self) -> list[str]:
        """Return a question that any answer to shows that there can be answers."""
        return [tagged(self.view.content_free_prompt())]

    def learn_blanks(self, answers: Sequence[Answer]) -> None:
        """Learn nothing: a text without a position says nothing about letters."""

    def judge(self, answers: Sequence[Answer], action_mask: list[bool]) -> tuple[Verdict, float]:
        """Return the actions' shares of the legal answers, or the first trouble; and the share of legal answers."""
        (texts,) = answers
        if isinstance(texts, Trouble):
            return texts, 0.0
        read = [read_action(str(text), self.view.labels, self.thinks) for text in texts]
        counts = [0] * len(action_mask)
        trouble: Trouble | None = None
        for action in read:
            if isinstance(action, int) and action_mask[action]:
                counts[action] += 1
            else:
                trouble = trouble or (action if isinstance(action, Trouble) else Trouble("illegal_action"))
        found = sum(counts)
        if not found:
            return trouble or Trouble("no_answer"), 0.0
        return [count / found for count in counts], found / self.samples


def is_worth_another_try(verdict: Verdict) -> bool:
    """Return whether an answer came that only said nothing legal."""
    return isinstance(verdict, Trouble) and verdict in AGAIN


def tagged(words: str) -> str:
    """Return a question that asks for tags in place of a letter."""
    return f"{words.replace(f' {LETTER_ONLY}', '').removesuffix(ANSWER).rstrip()}\n\n{TAGGED}"


def read_action(text: str, labels: Sequence[str], thinks: bool) -> int | Trouble:
    """Return the action that an answer names, or what is wrong with it.

    Only what follows the last `</think>` counts, and only what stands in tags there. A letter may be small or in quotes
    where it stands alone, and have words beside it where it is a capital ("B) hit"). Two answers that differ are none.
    """
    text = text[-LONGEST:]
    _, closed, answer = text.rpartition("</think>")
    if (thinks and not closed) or "<think>" in answer:
        return Trouble("unfinished")
    said = re.findall(r"<action>([^<]*)</action>", answer, re.IGNORECASE)
    if not said:
        return Trouble("no_action")
    actions = {action_of(one, labels) for one in said}
    if len(actions) > 1:
        return Trouble("two_actions")
    (action,) = actions
    return Trouble("unknown_action") if action is None else action


def action_of(said: str, labels: Sequence[str]) -> int | None:
    """Return the action of the only letter that is named, None where that is not clear."""
    alone = re.fullmatch(r"[\W_]*([^\W_])[\W_]*", said)  # no sign fits twice: linear in the text
    words = {alone[1].upper()} if alone else set(re.findall(r"\w+", said))
    named = words.intersection(labels)
    return labels.index(named.pop()) if len(named) == 1 else None
