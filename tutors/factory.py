"""Build a tutor, an advisor or an episode analyst from a TutorConfig, and start servers where none answers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from envs.base import Game, Spec
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.base import Tutor
from tutors.config import TutorConfig
from tutors.episode_analyst import Analyst, ScriptedAnalyst, VllmAnalyst
from tutors.llm.client import Client
from tutors.llm.label_logprobs import LabelWay
from tutors.llm.models import Model, find_model
from tutors.llm.server import Say, server_for
from tutors.llm.text_generation import TextWay
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.recorded import PREFIX, RecordedTutor
from tutors.scripted import ScriptedTutor
from tutors.store import AdviceStore, identity_of

DEFAULT_URL = "http://127.0.0.1:8000"


@contextmanager
def open_advisor(
    config: TutorConfig, game: Game, seed: int, folder: Path, device: str, say: Say = print
) -> Iterator[Advisor | None]:
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
    view = make_view(game, config.view, not config.no_symmetry)
    table = AdviceTable(game.spec.num_actions, config.reuse, device=device)
    with ExitStack() as stack:
        tutor = make_tutor(config, view, game.spec, seed, folder / "vllm.log", say, stack)
        store = AdviceStore(
            config.advice_store or folder / "advice.sqlite",
            identity_of(game.spec, view, tutor.identity),
            config.min_label_mass if config.tutor_mode == "label" else 0.0,
        )
        stack.callback(store.close)
        cancel = tutor.cancel if isinstance(tutor, VllmTutor) else do_nothing
        desk = Advisor(view, tutor, table, store, config.async_tutor, cancel)
        stack.callback(desk.close)
        desk.fill_table()
        yield desk


def do_nothing() -> None:
    """Cancel what cannot be waited for."""


def make_tutor(
    config: TutorConfig, view: PromptView, spec: Spec, seed: int, log: Path, say: Say, stack: ExitStack
) -> Tutor:
    """Return the tutor; `stack` lets go of it."""
    if config.tutor == "scripted":
        return ScriptedTutor(view, config.tutor_accuracy, config.tutor_depth, seed, config.tutor_stochastic)
    if config.tutor.startswith(PREFIX):
        tutor = RecordedTutor(config.tutor.removeprefix(PREFIX), spec, view, config.tutor_model)
        stack.callback(tutor.close)
        return tutor
    model = find_model(config.tutor, config.tutor_model)
    way: LabelWay | TextWay
    if config.tutor_mode == "label":
        way = LabelWay(view, config.label_permutations, config.calibrate, config.min_label_mass)
    else:
        way = TextWay(view, bool(model.closing), config.tutor_tokens, config.tutor_samples, config.tutor_tries)
    return VllmTutor(view, model, connect_servers(config, model, log, say, stack), way, config.tutor_optional)


def make_analyst(config: TutorConfig, view: PromptView, seed: int, log: Path, say: Say, stack: ExitStack) -> Analyst:
    """Return who reads a student's games; `stack` lets go of it.

    Raises:
        ValueError: nobody has that name, or who has cannot read games.
        TutorError: the tutor cannot be had.
    """
    if config.tutor == "scripted":
        return ScriptedAnalyst(view, config.tutor_accuracy, config.tutor_depth, seed)
    if config.tutor == "none" or config.tutor.startswith(PREFIX):
        raise ValueError(f"--tutor {config.tutor} cannot read a student's games")
    model = find_model(config.tutor, config.tutor_model)
    return VllmAnalyst(
        view, model, connect_servers(config, model, log, say, stack), config.tutor_tokens, config.tutor_tries
    )


def connect_servers(config: TutorConfig, model: Model, log: Path, say: Say, stack: ExitStack) -> list[Client]:
    """Return the way to each server, which is started if need be; `stack` lets go of all."""
    clients: list[Client] = []
    for url in config.tutor_url or (DEFAULT_URL,):
        beside = clients[0] if clients else None
        clients.append(Client(url, config.tutor_deadline, config.tutor_key_file, beside))
        stack.callback(clients[-1].close)
        if not config.tutor_optional:
            stack.enter_context(server_for(model, clients[-1], not config.tutor_url, config.tutor_wait, log, say))
    return clients
