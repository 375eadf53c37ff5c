"""A tutor that repeats what an advice store holds: no model, no network, the same advice in every comparison.

It is silent about positions that the store does not know, and answers in a millisecond or so about each thousand.
"""

import logging
from collections import Counter
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from envs.base import Spec, State
from tutors.base import Advice, Tutor, Warner
from tutors.prompts.base import PromptView
from tutors.store import AdviceStore, question_of, reason, recorded_identities, without_password

PREFIX = "recorded:"  # of the tutor's name; the store's file or URL follows


class RecordedTutor(Tutor):
    """Repeats the answers of a store.

    Args:
        url: the store's file, or the URL of its database.
        spec: of the game.
        view: how it is told; only answers to questions in the same words count.
        who: whose answers are meant, where the store has those of several: a piece of what `describe` says of it.

    Raises:
        ValueError: the store is not there, or holds no such answers, or those of several tutors.
    """

    def __init__(self, url: str, spec: Spec, view: PromptView, who: str | None = None) -> None:
        question = question_of(spec, view)
        found, shown = recorded_identities(url), without_password(url)
        fitting = [one for one in found if all(one.get(name) == told for name, told in question.items())]
        if not fitting:
            games = sorted({f"{one['game']} {one['view']}" for one in found})
            raise ValueError(f"{shown} has no answers about {spec.name} {view.name}, only {', '.join(games) or 'none'}")
        meant = [one for one in fitting if who is None or who in describe(one, question)]
        if len(meant) != 1:
            tutors = "; ".join(sorted(describe(one, question) for one in fitting))
            raise ValueError(
                f"{shown} has answers of {tutors}: name one, or what only it has in its name, as --tutor-model"
            )
        self.view, self.name = view, "recorded"
        self.identity: dict[str, Any] = {name: told for name, told in meant[0].items() if name not in question}
        self.store = AdviceStore(url, meant[0])
        self.stats: Counter[str] = Counter()
        self.warn = Warner(logging.getLogger(__name__))

    def advise(self, state: State) -> Advice:
        keys = self.view.key(state)
        self.stats["asked"] += len(keys)
        try:
            advice = self.store.find(keys.cpu())
        except SQLAlchemyError as error:
            self.warn("store", f"the recorded advice cannot be read ({reason(error)}): the tutor is silent")
            self.stats["no_advice/store"] += len(keys)
            return Advice.no_advice(len(keys), len(self.view.labels))
        if unknown := int((~advice.valid).sum()):
            self.stats["no_advice/not_recorded"] += unknown
        return advice

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()


def describe(identity: dict[str, Any], question: dict[str, Any]) -> str:
    """Return whose answers these are and how they were asked for, in a few words."""
    passed_over = {*question, "tutor", "template"}
    rest = [f"{name} {told}" for name, told in identity.items() if name not in passed_over]
    who = str(identity.get("tutor"))
    return f"{who} ({', '.join(rest)})" if rest else who
