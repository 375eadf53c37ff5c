"""Flags: what a command line becomes, which names of versions 0.x are refused, and what the help shows."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
import tyro

import benchmarks.__main__
import experiments.__main__
import tutors.__main__
from agents import A2CConfig, DQNConfig, PPOConfig
from experiments.demo import DemoOptions
from training.cli import RENAMED, commands_of, expand, flags, parse, refuse_unknown_command
from training.config import COMMON_FLAGS, EXAMPLES, Config, defaults_from_flags

PUBLIC = {  # the names that version 1.0 changed, by those of 0.7
    "--folder": "--run-dir",
    "--nowait": "--async-tutor",
    "--asking": "--query-strategy",
    "--asking-threshold": "--query-threshold",
    "--ask-budget": "--query-budget",
    "--ask-per-step": "--query-budget-per-step",
    "--tutor-fresh": "--tutor-stochastic",
    "--strength-from": "--guidance-start",
    "--strength-to": "--guidance-end",
    "--strength-over": "--guidance-fraction",
    "--which": "--episode-selection",
    "--accelerate": "--compile-mode",
    "--who": "--policy",
    "--report": "python -m tutors report",
    "--fill": "python -m tutors fill",
}


@dataclass(frozen=True)
class Inner:
    """Options within options."""

    inner_size: int = 3


@dataclass(frozen=True)
class Outer:
    """Options with a nested class."""

    first_flag: str = "a"
    """First help text."""
    hidden_flag: int = 1
    """Second help text."""
    inner: Annotated[Inner, tyro.conf.arg(name="inner")] = field(default_factory=Inner)


@pytest.mark.parametrize(("old", "new"), PUBLIC.items())
@pytest.mark.parametrize("spelled", ["{}", "{}=x"])
def test_old_flag_is_refused_with_its_new_name(old: str, new: str, spelled: str) -> None:
    assert RENAMED[old] == new
    for flag in (old, "--" + old[2:].replace("-", "_")):
        with pytest.raises(ValueError, match=f"{old} was renamed in version 1.0: use {new}$"):
            parse([spelled.format(flag)], Outer)


def test_every_renamed_flag_is_a_public_one() -> None:
    assert RENAMED == PUBLIC


def test_flags_are_those_of_nested_classes_too() -> None:
    assert list(flags(Outer)) == ["--first-flag", "--hidden-flag", "--inner", "--inner-size"]
    assert set(flags(Inner | Outer)) == set(flags(Outer))
    assert {"--run-dir", "--tutor-url", "--guidance", "--num-minibatches", "--buffer-size"} <= set(flags(Config))


def test_parse_starts_from_defaults_of_the_command_line() -> None:
    assert parse(["--inner-size", "5"], Outer, defaults=lambda args: Outer(args[1])) == Outer("5", inner=Inner(5))
    assert parse(["--algo", "ppo", "--run-dir", "x"], Config, defaults=defaults_from_flags).algo == "ppo"


@pytest.mark.parametrize("asked", ["-h", "--help", "--help-all"])
def test_help_shows_common_flags_and_help_all_every_flag(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([asked], Outer, "About it.", lambda args: Outer("b"), common=("first_flag",), examples="  example 1\n")
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "About it." in printed
    assert "First help text. (default: b)" in printed
    assert printed.endswith("examples:\n  example 1\n\n")
    every = asked == "--help-all"
    assert [name in printed for name in ("--hidden-flag", "--inner-size", "inner options")] == [every] * 3
    assert ("--help-all shows all of them, in the groups run, inner." in printed) != every


def test_train_help_begins_with_ten_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], Config, defaults=defaults_from_flags, common=COMMON_FLAGS, examples=EXAMPLES)
    printed = capsys.readouterr().out
    shown = re.findall(r"^\W*(--[a-z-]+) [A-Z[]", printed, re.MULTILINE)  # a flag and the kind of its value
    assert len(shown) == 10
    assert {"--algo", "--env", "--tutor", "--guidance", "--run-dir", "--resume"} <= set(shown)
    assert printed.count("python train.py --") == 3


def test_train_help_all_has_groups_and_the_flags_of_the_chosen_student(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help-all", "--algo", "ppo"], Config, defaults=defaults_from_flags, common=COMMON_FLAGS)
    printed = capsys.readouterr().out
    title_line = r"^\W+(\w+) options \W+$"
    titles = re.findall(title_line, printed, re.MULTILINE)
    assert titles == ["run", "tutor", "query", "guidance", "agent"]
    groups = dict(zip(titles, re.split(title_line, printed, flags=re.MULTILINE)[2::2], strict=True))
    every = set(flags(Config)) - {"--tutoring", "--guiding", "--agent"}
    flag_line = (
        r"^\W+ (--[a-z0-9-]+)(?![\w,-])"  # not a line of text that begins with a flag, as "--run-dir, a new run"
    )
    shown = [flag for group in groups.values() for flag in re.findall(flag_line, group, re.MULTILINE)]
    assert len(set(shown)) == len(shown)
    every -= {flag for flag in every if flag.replace("--", "--no-") in shown}  # what is on may be turned off
    assert every - set(shown) <= {flag for flag in flags(DQNConfig | A2CConfig) if flag not in set(flags(PPOConfig))}
    for title, flag in (("run", "--seed"), ("tutor", "--tutor-url"), ("query", "--reuse"), ("query", "--theta")):
        assert f"{flag} " in groups[title]
    assert "--trust " in groups["guidance"]
    assert "--num-minibatches" in printed
    assert "--buffer-size" not in printed
    assert "{None}" not in printed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--total-steps 1e6", "--total-steps 1000000"),
        ("--total-steps=20k --seed 3", "--total-steps 20000 --seed 3"),
        ("--total_steps 2.5M", "--total_steps 2500000"),
        ("--total-timesteps 1_000", "--total-steps 1000"),
        ("--lr 1e-3", "--learning-rate 1e-3"),
        ("--num-envs 64 --query-budget 5k", "--num-envs 64 --query-budget 5000"),
        ("--algo PPO --env Connect4", "--algo ppo --env connect4"),
        ("--env gym:CartPole-v1 --algo=DQN", "--env gym:CartPole-v1 --algo dqn"),
        ("--tutor scripted:0.6 --reuse 3", "--tutor-accuracy 0.6 --tutor scripted --reuse 3"),
        (
            "--tutor DeepSeek-Llama --guidance Distill --device GPU",
            "--tutor deepseek-llama --guidance distill --device cuda",
        ),
        ("--env gym:CartPole-v1 --tutor mine:ask", "--env gym:CartPole-v1 --tutor mine:ask"),
        ("--tutor recorded:runs/a.sqlite", "--tutor recorded:runs/a.sqlite"),
        ("--total-steps 1.5", "--total-steps 1.5"),
        ("--total-steps many --force", "--total-steps many --force"),
    ],
)
def test_expand_returns_what_the_flags_take(typed: str, meant: str) -> None:
    assert " ".join(expand(typed.split(), Config)) == meant


def test_parse_takes_what_people_type() -> None:
    typed = "--algo PPO --lr 1e-3 --total-steps 20k --tutor scripted:0.6 --env-kwargs opponent=random depth=2"
    config = parse(typed.split(), Config, defaults=defaults_from_flags)
    assert (config.algo, config.agent.learning_rate, config.total_steps) == ("ppo", 1e-3, 20_000)
    assert (config.tutoring.tutor, config.tutoring.tutor_accuracy) == ("scripted", 0.6)
    assert config.env_kwargs == ("opponent=random", "depth=2")


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["--version"], Config)
    assert end.value.code == 0
    assert capsys.readouterr().out.strip().count(".") == 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--algo ppo --buffer-size 1000", "--buffer-size is a flag of dqn, not of ppo"),
        ("--algo dqn --num_steps=8", "--num-steps is a flag of ppo and a2c, not of dqn"),
        ("--algo a2c --clip-coef 0.1", "--clip-coef is a flag of ppo, not of a2c"),
    ],
)
def test_flag_of_another_student_is_named_as_such(typed: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        parse(typed.split(), Config, defaults=defaults_from_flags)


def test_scripted_tutor_keeps_its_accuracy_where_no_flag_has_it() -> None:
    assert expand(["--tutor", "scripted:0.6"], DemoOptions) == ["--tutor", "scripted:0.6"]


@pytest.mark.parametrize(
    ("program", "typed", "closest"),
    [
        (tutors.__main__.Command, "reprot", "report"),
        (tutors.__main__.Command, "stroe", "store"),
        (experiments.__main__.Command, "reports", "report"),
        (benchmarks.__main__.Command, "game", "games"),
    ],
)
def test_mistyped_subcommand_is_refused_with_the_closest(program: Any, typed: str, closest: str) -> None:
    with pytest.raises(ValueError, match=rf"^no command is called '{typed}'; there are .*did you mean '{closest}'\?$"):
        parse([typed, "--env", "connect4"], program)


def test_program_without_subcommands_takes_any_word() -> None:
    assert commands_of(Outer) == []
    refuse_unknown_command(["runs/first"], [])


def test_flag_before_a_subcommand_is_left_to_the_parser() -> None:
    refuse_unknown_command(["--help"], ["report"])
    refuse_unknown_command([], ["report"])
    refuse_unknown_command(["report", "fill"], ["report"])
