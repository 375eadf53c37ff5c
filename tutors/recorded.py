"""A tutor that repeats what an advice store holds: no model, no network, the same advice in every comparison.

Positions that the store does not know get no advice. A thousand positions take about a millisecond.
"""

import logging
from collections import Counter
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from envs.base import Spec, State
from tutors.base import Advice, Tutor, Warner
from tutors.display import MAX_NAME_CHARS, printable, printable_list, without_password
from tutors.llm.weights import local_models
from tutors.prompts.base import PromptView
from tutors.store import AdviceStore, question_of, reason, recorded_identities

HASH_CHARS = 12
PREFIX = "recorded:"  # of the tutor's name; the store's file or URL follows


class RecordedTutor(Tutor):
    """Repeats the answers of a store.

    Args:
        url: the store's file, or the URL of its database.
        spec: of the game.
        view: how its positions are written as prompts; only answers to the same prompts count.
        who: which tutor, if the store has the answers of several: a part of its `describe`.

    Raises:
        ValueError: the store does not exist, or holds no such answers, or those of several tutors.
    """

    def __init__(self, url: str, spec: Spec, view: PromptView, who: str | None = None) -> None:
        question = question_of(spec, view)
        found, shown = recorded_identities(url), without_password(url)
        fitting = [one for one in found if all(one.get(name) == value for name, value in question.items())]
        if not fitting:
            games = printable_list(sorted({f"{one.get('game')} {one.get('view')}" for one in found}), "none")
            raise ValueError(f"{shown} has no answers about {spec.name} {view.name}, only {games}")
        meant = [one for one in fitting if who is None or who in f"{describe(one, question)} {one.get('tutor')}"]
        if len(meant) != 1:
            tutors = "; ".join(sorted(printable(describe(one, question), 4 * MAX_NAME_CHARS) for one in fitting))
            raise ValueError(
                f"{shown} has answers of {tutors}: name one, or what only it has in its name, as --tutor-model"
            )
        self.view, self.name = view, "recorded"
        self.identity: dict[str, Any] = {name: value for name, value in meant[0].items() if name not in question}
        self.store = AdviceStore(url, meant[0])
        self.stats: Counter[str] = Counter()
        self.warn = Warner(logging.getLogger(__name__))

    def advise(self, state: State) -> Advice:
        keys = self.view.key(state)
        self.stats["asked"] += len(keys)
        try:
            advice = self.store.find(keys.cpu())
        except SQLAlchemyError as error:
            self.warn("store", f"no advice: the recorded answers cannot be read ({reason(error)})")
            self.stats["no_advice/store"] += len(keys)
            return Advice.no_advice(len(keys), len(self.view.labels))
        if unknown := int((~advice.valid).sum()):
            self.stats["no_advice/not_recorded"] += unknown
        return advice

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def describe(identity: dict[str, Any], question: dict[str, Any]) -> str:
    """Return a tutor and its settings in a few words, such as `model (mode label, permutations 1)`.

    Weights in a folder, of which a store has the hash, are called as in models.toml, with the hash's beginning.
    """
    omitted = {*question, "tutor", "template"}
    rest = [f"{name} {value}" for name, value in identity.items() if name not in omitted]
    who = str(identity.get("tutor"))
    if name := local_models().get(who):
        who = f"{name} {who[:HASH_CHARS]}"
    return f"{who} ({', '.join(rest)})" if rest else who
