"""What curves are compared with, beside values that are known."""

from dataclasses import replace

import pytest

from envs.blackjack import Blackjack
from envs.blackjack_exact import optimum
from experiments.references import references
from training.config import Config
from tutors import TutorConfig

SCRIPTED = TutorConfig(tutor="scripted", tutor_depth=2)


def test_connect4_has_random_play_the_tutor_and_the_best_possible() -> None:
    found = references(Config(env="connect4", tutoring=SCRIPTED))
    assert found["best possible"] == 1
    assert -1 <= found["random play"] < -0.8 < 0.5 < found["tutor alone"] <= 1
    assert [*references(Config(env="connect4"))] == ["random play", "best possible"]


def test_blackjack_has_the_optimum_which_a_perfect_tutor_reaches() -> None:
    best = optimum(Blackjack()).hand
    found = references(Config(env="blackjack", tutoring=SCRIPTED))
    assert found["optimal play"] == best
    assert best - 0.015 < found["tutor alone"] <= best
    assert found["random play"] == pytest.approx(-0.39, abs=0.02)


def test_a_tutor_that_does_not_play_here_is_known_by_its_probes() -> None:
    config = Config(env="snake", env_kwargs=("size=6",), tutoring=replace(SCRIPTED, tutor="llama"))
    assert references(config, [1.0, 2.0])["tutor in its probe episodes"] == 1.5
    assert "tutor in its probe episodes" not in references(config)
    assert references(config)["best possible"] == 35


def test_a_game_that_is_gone_has_none() -> None:
    assert references(Config(env="gone:Game")) == {}
