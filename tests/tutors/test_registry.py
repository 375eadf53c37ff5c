"""Which names `--tutor` takes, and that one line makes a tutor an option."""

import pytest

import envs
from tests.helpers.small_runs import small_config
from tutors.config import TutorConfig
from tutors.factory import open_advisor
from tutors.llm.models import known_models
from tutors.registry import LOCAL_TUTORS, check_tutor
from tutors.scripted import ScriptedTutor


@pytest.mark.parametrize("name", ["none", *LOCAL_TUTORS, "recorded:advice.sqlite", *known_models()])
def test_check_tutor_takes_each_name(name: str) -> None:
    check_tutor(TutorConfig(tutor=name))


def test_check_tutor_names_the_closest_of_all_kinds() -> None:
    with pytest.raises(ValueError, match=r"no tutor is called 'scipted'.*deepseek.*none.*did you mean 'scripted'"):
        check_tutor(TutorConfig(tutor="scipted"))


def test_check_tutor_refuses_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="--async-tutor"):
        check_tutor(TutorConfig(tutor="scripted", async_tutor=True, reuse=0))


def test_local_tutor_of_one_line_is_an_option(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOCAL_TUTORS, "mine", lambda config, view, seed: ScriptedTutor(view, depth=1, seed=seed))
    config = small_config("ppo", "connect4", tmp_path, tutor="mine")
    config.check()
    game = envs.make_game("connect4")
    with open_advisor(config.tutoring, game, 1, tmp_path, "cpu") as advisor:
        assert isinstance(advisor.tutor, ScriptedTutor)
