"""Flags that cannot act are refused with what would make them act; those that can are not."""

import pytest

import evaluate
from tests.helpers.commands import tutors
from training.cli import parse
from training.config import Config, defaults_from_flags
from training.flag_effects import REQUIREMENTS, check_effects

IDLE = {
    "--guidance distill --tutor-accuracy 0.5": "--guidance has no effect here: add --tutor NAME",
    "--query-strategy importance --query-budget 5 --tutor none": "add --tutor NAME",
    "--tutor scripted --tutor-mode text": "--tutor-mode has no effect here: it is of a tutor that is a served model",
    "--tutor scripted --label-permutations 2": "--label-permutations has no effect here: it is of a served model",
    "--tutor tiny --tutor-accuracy 0.5": "it is of --tutor scripted",
    "--tutor scripted:0.5 --env snake --tutor-depth 2": "it is of --env connect4",
    "--tutor tiny --tutor-tokens 64": "it is of a served model with --tutor-mode text",
    "--tutor tiny --tutor-mode text --calibrate": "with --tutor-mode label",
    "--tutor scripted --tutor-model x": "it is of a served or recorded model",
    "--tutor scripted --episodes 30": "such as --guidance modulate",
    "--tutor scripted --guidance override --trust gap": "it is of a guidance that has a strength",
    "--tutor scripted --guidance distill --trust none --pretrain-updates 9": "it is of --trust gap",
    "--tutor scripted --guidance distill --guidance-end 1": "add --trust none",
    "--tutor scripted --guidance modulate --query-budget 9": "makes no queries in training",
    "--tutor scripted --query-strategy early --theta 9": "it is of --query-strategy chance",
}
ACTING = (
    "--tutor scripted --guidance distill --guidance-start 2 --pretrain-updates 9",
    "--tutor scripted --guidance distill --trust none --guidance-end 1 --guidance-fraction 0.3",
    "--tutor tiny --label-permutations 2 --calibrate --min-label-mass 0.1 --tutor-url http://127.0.0.1:9",
    "--tutor tiny --tutor-mode text --tutor-samples 3 --tutor-tokens 64",
    "--tutor tiny --guidance modulate --tutor-samples 3 --episodes 9",
    "--tutor recorded:runs/a.sqlite --tutor-model x --reuse 3",
    "--tutor scripted:0.5 --tutor-depth 2 --tutor-stochastic --consult-to 0.5",
    "--tutor none",
    "--algo ppo --num-envs 64",
)


def check(flags: str) -> None:
    args = flags.split()
    check_effects(parse(args, Config, defaults=defaults_from_flags), args)


@pytest.mark.parametrize("flags", IDLE)
def test_flag_that_cannot_act_is_refused_with_what_would_make_it_act(flags: str) -> None:
    with pytest.raises(ValueError, match=IDLE[flags]):
        check(flags)


@pytest.mark.parametrize("flags", ACTING)
def test_flags_that_act_are_taken(flags: str) -> None:
    check(flags)


def test_requirements_name_fields_of_the_config() -> None:
    config = Config()
    known = {*vars(config.tutoring), *vars(config.guiding)}
    for one in REQUIREMENTS:
        assert set(one.names) <= known


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--seed 3", "--seed has no effect here: it is of --record and --play"),
        ("--scale 3 --play", "--scale has no effect here: it is of --record"),
        ("--hint", "it is of --play"),
        ("--record a.gif --episodes 9", "--episodes has no effect here"),
        ("--play --json", "--json has no effect here"),
        ("--against x --policy random", "--policy has no effect here: leave out --record, --play and --against"),
        ("--against x --env-kwargs opponent=random", "--env-kwargs has no effect here"),
        ("--policy student --tutor-url http://127.0.0.1:9", "no tutor is asked"),
        ("--policy random --advice-store x.sqlite", "no tutor is asked"),
    ],
)
def test_flag_of_an_evaluation_that_cannot_act_is_refused(flags: str, said: str) -> None:
    args = ["runs/x", *flags.split()]
    with pytest.raises(ValueError, match=said):
        evaluate.check_flags(parse(args, evaluate.Evaluation), args)


@pytest.mark.parametrize(
    "flags",
    [
        *(
            "",
            "--policy tutor --tutor-url http://127.0.0.1:9",
            "--record a.gif --seed 3 --scale 2",
            "--play --hint --seed 1",
        ),
        *("--against y --episodes 50 --json", "--episodes 9 --device cpu --env-kwargs opponent=random"),
    ],
)
def test_flags_of_an_evaluation_that_act_are_taken(flags: str) -> None:
    args = ["runs/x", *flags.split()]
    evaluate.check_flags(parse(args, evaluate.Evaluation), args)


@pytest.mark.parametrize("command", ["report", "fill"])
@pytest.mark.parametrize("flag", ["--reuse 3", "--theta 9", "--query-budget 5", "--async-tutor"])
def test_flag_of_a_run_is_refused_where_a_tutor_is_measured_or_asked_beforehand(command: str, flag: str) -> None:
    done = tutors(command, "--tutor", "scripted", *flag.split())
    assert done.returncode == 2
    assert f"{flag.split()[0]} has no effect here: it is of train.py" in done.stderr
