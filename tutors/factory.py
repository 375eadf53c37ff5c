"""Build a tutor, an advisor or an episode analyst from a TutorConfig, and start servers where none answers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from envs.base import Game, Spec
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.async_advisor import AsyncAdvisor
from tutors.base import Tutor
from tutors.config import TutorConfig
from tutors.episode_analyst import Analyst, ScriptedAnalyst, VllmAnalyst
from tutors.function import FunctionTutor, is_function_name
from tutors.llm.label_logprobs import LabelLogprobs
from tutors.llm.models import Model, find_model
from tutors.llm.pool import EndpointPool
from tutors.llm.server import ShowStatus, running_server, wait_for_server
from tutors.llm.text_generation import TextGeneration
from tutors.llm.tutor import AnswerMode, VllmTutor
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.recorded import PREFIX, RecordedTutor
from tutors.registry import LOCAL_TUTORS, check_tutor
from tutors.status_lines import StatusLines
from tutors.store import AdviceStore, identity_of

DEFAULT_URL = "http://127.0.0.1:8000"
PRINT_STATUS = StatusLines(print)


@contextmanager
def open_advisor(
    config: TutorConfig, game: Game, seed: int, folder: Path, device: str, say: ShowStatus = PRINT_STATUS
) -> Iterator[Advisor | None]:
    """Yield an advisor with the tutor that `config` names, or None if it names none.

    Starts a server if the tutor needs one, and closes everything afterwards.

    Args:
        config: the tutor's settings.
        game: the game that advice is about.
        seed: decides in which positions a scripted tutor errs.
        folder: for the advice store and a server's log.
        device: of the advice table.
        say: shows one line of progress.

    Raises:
        ValueError: no tutor has that name, or the store cannot be used.
        TutorError: the tutor is not available.
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
        advisor = (AsyncAdvisor if config.async_tutor else Advisor)(view, tutor, table, store)
        stack.callback(advisor.close)
        advisor.fill_table()
        yield advisor


def make_tutor(
    config: TutorConfig, view: PromptView, spec: Spec, seed: int, log: Path, say: ShowStatus, stack: ExitStack
) -> Tutor:
    """Return the tutor that `config` names; `stack` closes it.

    Raises:
        ValueError: no tutor has that name, or the recorded one has no such answers.
        TutorError: the tutor is not available.
    """
    check_tutor(config)
    if config.tutor in LOCAL_TUTORS:
        return LOCAL_TUTORS[config.tutor](config, view, seed)
    if config.tutor.startswith(PREFIX):
        tutor = RecordedTutor(config.tutor.removeprefix(PREFIX), spec, view, config.tutor_model)
        stack.callback(tutor.close)
        return tutor
    if is_function_name(config.tutor):
        return FunctionTutor(view, config.tutor)
    model = find_model(config.tutor, config.tutor_model)
    mode: AnswerMode
    if config.tutor_mode == "label":
        mode = LabelLogprobs(view, config.label_permutations, config.calibrate, config.min_label_mass, config.label_set)
    else:
        thinks = bool(model.closing)
        lengths = config.tutor_tokens, config.tutor_samples, config.tutor_tries
        mode = TextGeneration(view, thinks, *lengths, no_thinking=config.no_thinking)
    pool = connect_servers(config, model, log, say, stack)
    return VllmTutor(view, model, pool, mode, config.tutor_optional)


def make_analyst(
    config: TutorConfig, view: PromptView, seed: int, log: Path, say: ShowStatus, stack: ExitStack
) -> Analyst:
    """Return the analyst that `config` names; `stack` closes it.

    Raises:
        ValueError: no analyst has that name, or the tutor of that name cannot analyse episodes.
        TutorError: the analyst is not available.
    """
    check_tutor(config)
    if config.tutor == "scripted":
        return ScriptedAnalyst(view, config.tutor_accuracy, config.tutor_depth, seed)
    if config.tutor == "none" or config.tutor.startswith(PREFIX) or is_function_name(config.tutor):
        raise ValueError(f"--tutor {config.tutor} cannot read a student's games")
    model = find_model(config.tutor, config.tutor_model)
    pool = connect_servers(config, model, log, say, stack)
    return VllmAnalyst(view, model, pool, config.tutor_tokens, config.tutor_tries)


def connect_servers(config: TutorConfig, model: Model, log: Path, say: ShowStatus, stack: ExitStack) -> EndpointPool:
    """Return the pool of the servers that `config` names, or of one that is started here; `stack` closes all.

    Raises:
        ValueError: a URL is no http(s) URL, or the key file holds no key.
        TutorError: a server does not answer in time.
    """
    pool = EndpointPool(config.tutor_url or (DEFAULT_URL,), config.tutor_deadline, config.tutor_key_file)
    stack.callback(pool.close)
    if config.tutor_optional:
        return pool
    if config.tutor_url:
        for url in config.tutor_url:
            wait_for_server(model, url, config.tutor_wait, say, config.tutor_key_file)
    else:
        stack.enter_context(running_server(model, DEFAULT_URL, config.tutor_wait, log, say, config.tutor_key_file))
    return pool
