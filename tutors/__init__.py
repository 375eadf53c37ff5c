"""Everything that gives, keeps, rations and applies advice."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from envs.base import Game
from tutors.base import Tutor, View
from tutors.client import Client
from tutors.desk import Desk
from tutors.models import find_model
from tutors.scripted import ScriptedTutor
from tutors.server import Say, server_for
from tutors.store import AdviceStore, identity_of
from tutors.table import AdviceTable
from tutors.views import make_view
from tutors.vllm import VllmTutor

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class TutorConfig:
    """Who is asked, how, and how far."""

    tutor: str = "none"
    """none, scripted, or a language model of tutors/models.toml: llama, vicuna, deepseek, tiny."""
    view: str | None = None
    """How the game is told, such as full or local for snake; module:Class for a view of your own."""
    tutor_url: str | None = None
    """Where a vLLM server answers. Without it, one is sought at http://127.0.0.1:8000 and started if need be."""
    tutor_model: str | None = None
    """The name of another served model, asked with the tutor's chat template."""
    tutor_wait: float = 10.0
    """Seconds to wait for a server that is not started here."""
    tutor_deadline: float = 60.0
    """Seconds that the questions of one step may take; then the tutor is silent."""
    tutor_optional: bool = False
    """Train without advice as long as no server answers."""
    min_label_mass: float = 0.01
    """The tutor is silent where it gives the legal labels less probability than this."""
    tutor_accuracy: float = 1.0
    """How often the scripted tutor names a best move on purpose; else it names any legal one."""
    tutor_depth: int = 4
    """How many discs the scripted tutor looks ahead."""
    reuse: float = math.inf
    """How often an answer is used again: 0, k (the paper: 3) or inf."""
    consult_from: float = 1.0
    """Consult probability at the first step (P_init)."""
    consult_to: float = 0.1
    """Consult probability from step theta on (P_final)."""
    theta: int | None = None
    """Env steps over which it falls; half of the run if not given."""
    advice_store: str | None = None
    """A file or a database's URL that keeps all answers; advice.sqlite in the run's folder if not given."""


@contextmanager
def open_desk(
    config: TutorConfig, game: Game, seed: int, folder: Path, device: str, say: Say = print
) -> Iterator[Desk | None]:
    """Yield a desk at which the tutor that `config` names answers, or None where it names none.

    Starts a server if the tutor needs one, and lets go of everything afterwards.

    Args:
        game: what the questions are about.
        seed: decides what a scripted tutor is wrong about.
        folder: of the run, for the advice store and a server's output.
        say: shows one line of progress.

    Raises:
        ValueError: no tutor has that name, or the store cannot be used.
        TutorError: the tutor cannot be had.
    """
    if config.tutor == "none":
        yield None
        return
    view = make_view(game, config.view)
    table = AdviceTable(game.spec.num_actions, config.reuse, device=device)
    with ExitStack() as stack:
        tutor, template = hire(config, view, seed, folder / "vllm.log", say, stack)
        identity = identity_of(game.spec, view, tutor.identity, template)
        store = AdviceStore(config.advice_store or folder / "advice.sqlite", identity)
        stack.callback(store.close)
        yield Desk(view, tutor, table, store)


def hire(config: TutorConfig, view: View, seed: int, log: Path, say: Say, stack: ExitStack) -> tuple[Tutor, str]:
    """Return (the tutor, the template of its questions); `stack` lets go of it."""
    if config.tutor == "scripted":
        return ScriptedTutor(view, config.tutor_accuracy, config.tutor_depth, seed), "{words}"
    model = find_model(config.tutor, config.tutor_model)
    client = Client(config.tutor_url or DEFAULT_URL, config.tutor_deadline)
    stack.callback(client.close)
    if not config.tutor_optional:
        start = config.tutor_url is None
        stack.enter_context(server_for(model, client, start, config.tutor_wait, log, say))
    return VllmTutor(view, model, client, config.min_label_mass, config.tutor_optional), model.template
