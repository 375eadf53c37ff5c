"""Everything that gives, keeps, rations and applies advice."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from envs.base import Game, Spec
from tutors.advice_table import AdviceTable
from tutors.advisor import Desk
from tutors.base import Tutor, View
from tutors.episode_analyst import Analyst, ScriptedAnalyst, VllmAnalyst
from tutors.llm.client import Client
from tutors.llm.label_logprobs import LabelWay
from tutors.llm.models import Model, find_model
from tutors.llm.server import Say, server_for
from tutors.llm.text_generation import TextWay
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view
from tutors.query import check_asking
from tutors.recorded import PREFIX, RecordedTutor
from tutors.scripted import ScriptedTutor
from tutors.store import AdviceStore, identity_of

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class TutorConfig:
    """Who is asked, how, and how far."""

    tutor: str = "none"
    """none, scripted, llama, vicuna, deepseek, deepseek-llama, tiny (tutors/llm/models.toml), or recorded:STORE."""
    view: str | None = None
    """How the game is told, such as full or local for snake; module:Class for a view of your own."""
    tutor_url: tuple[str, ...] = ()
    """Where servers answer. Without it, one is sought at http://127.0.0.1:8000 and started if need be."""
    tutor_model: str | None = None
    """Another served model, asked in the tutor's template; or whose answers a recorded tutor repeats."""
    tutor_key_file: Path | None = None
    """A file with the key that the servers want, if it is not in the variable TUTOR_API_KEY."""
    tutor_mode: Literal["label", "text"] = "label"
    """label: a letter, by its log-probabilities; text: free text with <action></action>, after thinking if need be."""
    label_permutations: int = 1
    """label: ask with the letters dealt in so many ways, and average; up to the number of actions."""
    calibrate: bool = False
    """label: divide out what the model answers without a position."""
    tutor_tokens: int = 512
    """text: tokens of an answer at most, thinking included."""
    tutor_samples: int = 1
    """text: answers to each question, whose shares are the advice."""
    tutor_tries: int = 3
    """text: maximum number of attempts at a question that gets no legal answer."""
    tutor_wait: float = 10.0
    """Seconds to wait for a server that is not started here."""
    tutor_deadline: float = 60.0
    """Seconds that the questions of one step may take; later answers are not used."""
    tutor_optional: bool = False
    """Train without advice as long as no server answers."""
    min_label_mass: float = 0.01
    """Minimum probability of all legal labels together; below it there is no advice."""
    tutor_accuracy: float = 1.0
    """How often the scripted tutor names a best move on purpose; else it names any legal one."""
    tutor_fresh: bool = False
    """The scripted tutor errs anew each time it is asked, as a language model does that samples its answers."""
    tutor_depth: int = 4
    """How many discs the scripted tutor looks ahead."""
    reuse: float = math.inf
    """How often an answer is used again: 0, k (the paper: 3) or inf."""
    consult_from: float = 1.0
    """Consult probability at the first step (P_init)."""
    consult_to: float | None = None
    """Consult probability from step theta on (P_final): 0.1 if not given, 1 with a guidance that fades by itself."""
    theta: int | None = None
    """Env steps over which it falls; half of the run if not given."""
    nowait: bool = False
    """Play on while the tutor is asked: its answers serve later steps."""
    asking: str = "chance"
    """Where advice is wanted: chance (the consult probability), early, importance, mistake, uncertainty or visited."""
    asking_threshold: float | None = None
    """Of importance and mistake (0.2 if not given), uncertainty (0.5) and visited (3 visits)."""
    ask_budget: int | None = None
    """Questions of the whole run at most; what the table holds is none."""
    ask_per_step: int | None = None
    """Questions of one step of all games at most, those of the highest scores."""
    no_symmetry: bool = False
    """Tell positions as they lie: a mirrored board is a question of its own."""
    advice_store: str | None = None
    """A file or a database's URL that keeps all answers; advice.sqlite in the run's folder if not given."""

    def check(self) -> None:
        """Raise ValueError for what cannot be had."""
        check_asking(self.asking, self.asking_threshold, self.ask_budget, self.ask_per_step)
        if self.asking == "mistake" and self.nowait:
            raise ValueError("--asking mistake must see the answer before it knows what it cost: leave out --nowait")
        if self.tutor not in ("none", "scripted") and not self.tutor.startswith(PREFIX):
            find_model(self.tutor, self.tutor_model)
        if self.nowait and self.reuse == 0:
            raise ValueError("--nowait follows answers from the table alone, and --reuse 0 keeps none there")


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
    view = make_view(game, config.view, not config.no_symmetry)
    table = AdviceTable(game.spec.num_actions, config.reuse, device=device)
    with ExitStack() as stack:
        tutor = hire(config, view, game.spec, seed, folder / "vllm.log", say, stack)
        store = AdviceStore(
            config.advice_store or folder / "advice.sqlite",
            identity_of(game.spec, view, tutor.identity),
            config.min_label_mass if config.tutor_mode == "label" else 0.0,
        )
        stack.callback(store.close)
        cancel = tutor.cancel if isinstance(tutor, VllmTutor) else do_nothing
        desk = Desk(view, tutor, table, store, config.nowait, cancel)
        stack.callback(desk.close)
        desk.fill_table()
        yield desk


def do_nothing() -> None:
    """Cancel what cannot be waited for."""


def hire(config: TutorConfig, view: View, spec: Spec, seed: int, log: Path, say: Say, stack: ExitStack) -> Tutor:
    """Return the tutor; `stack` lets go of it."""
    if config.tutor == "scripted":
        return ScriptedTutor(view, config.tutor_accuracy, config.tutor_depth, seed, config.tutor_fresh)
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
    return VllmTutor(view, model, reach(config, model, log, say, stack), way, config.tutor_optional)


def hire_analyst(config: TutorConfig, view: View, seed: int, log: Path, say: Say, stack: ExitStack) -> Analyst:
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
    return VllmAnalyst(view, model, reach(config, model, log, say, stack), config.tutor_tokens, config.tutor_tries)


def reach(config: TutorConfig, model: Model, log: Path, say: Say, stack: ExitStack) -> list[Client]:
    """Return the way to each server, which is started if need be; `stack` lets go of all."""
    clients: list[Client] = []
    for url in config.tutor_url or (DEFAULT_URL,):
        beside = clients[0] if clients else None
        clients.append(Client(url, config.tutor_deadline, config.tutor_key_file, beside))
        stack.callback(clients[-1].close)
        if not config.tutor_optional:
            stack.enter_context(server_for(model, clients[-1], not config.tutor_url, config.tutor_wait, log, say))
    return clients
