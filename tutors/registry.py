"""The tutors that need no server, by name: one line here makes a tutor an option of every program."""

from collections.abc import Callable

from envs.registry import unknown_name_message
from tutors.base import Tutor
from tutors.config import TutorConfig
from tutors.function import is_function_name, load_function
from tutors.llm.models import SERVED, is_model, known_models
from tutors.prompts.base import PromptView
from tutors.recorded import PREFIX
from tutors.scripted import ScriptedTutor


def make_scripted(config: TutorConfig, view: PromptView, seed: int) -> Tutor:
    """Return the scripted tutor; `seed` decides in which positions it errs."""
    return ScriptedTutor(
        view, config.tutor_accuracy, config.tutor_depth, seed, config.tutor_stochastic, config.tutor_all_best
    )


LOCAL_TUTORS: dict[str, Callable[[TutorConfig, PromptView, int], Tutor]] = {"scripted": make_scripted}


def check_tutor(config: TutorConfig) -> None:
    """Raise ValueError for an unknown tutor, or settings that cannot be used."""
    is_known = config.tutor == "none" or config.tutor in LOCAL_TUTORS or is_model(config.tutor)
    if is_function_name(config.tutor) and not config.tutor.startswith(PREFIX):
        load_function(config.tutor)
    elif not is_known and not config.tutor.startswith(PREFIX):
        own = (f"{PREFIX}STORE", "module:function")
        names = ["none", *LOCAL_TUTORS, *own, *known_models(), SERVED, "ORGANISATION/MODEL", "FOLDER"]
        raise ValueError(unknown_name_message("tutor", config.tutor, names))
    config.check()
