"""Study files: the conditions, runs and arguments that they describe, and what is refused."""

import contextlib
import json
import math
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.spec import NO_TUTOR, Condition, RunSpec, StudyOptions, StudySpec, TutorSpec, read_study
from tests.helpers.paths import ROOT
from tests.helpers.studies import PRETRAINED, TINY, write_study
from training.cli import parse
from training.config import Config, defaults_from_flags

CONFIGS = ROOT / "experiments" / "configs"


def study_of(**others: Any) -> StudySpec:
    few: dict[str, Any] = {"algos": ("dqn", "ppo"), "envs": ("connect4", "snake"), "reuse": (3.0, math.inf)}
    few |= {"tutors": (TutorSpec("llama"), TutorSpec("scripted", 0.9)), "seeds": (5, 6)}
    few |= {"guidance": ("override", "blend", "demonstrate"), "steps": {"connect4": 3000, "snake": 500}}
    return StudySpec(**(few | others))


def test_tutor_spec_is_parsed_once_and_shown_as_written() -> None:
    assert TutorSpec.parse("scripted:0.9") == TutorSpec("scripted", 0.9)
    assert TutorSpec.parse("scripted:0.9").arguments() == ["--tutor", "scripted", "--tutor-accuracy", "0.9"]
    for text in ("scripted", "scripted:0", "scripted:0.6", "scripted:1", "llama", "recorded:/tmp/a:b"):
        assert str(TutorSpec.parse(text)) == text
    assert TutorSpec.parse("recorded:/tmp/a:b").arguments() == ["--tutor", "recorded:/tmp/a:b"]
    for text in ("scripted:often", "scripted:2", "scripted:"):
        with pytest.raises(ValueError, match="number between 0 and 1"):
            TutorSpec.parse(text)


def test_baselines_come_first_and_methods_that_a_student_cannot_use_are_left_out() -> None:
    conditions = study_of().conditions()
    pairs = [(env, algo) for env in ("connect4", "snake") for algo in ("dqn", "ppo")]
    assert conditions[:4] == [Condition(*pair, NO_TUTOR, "none", math.inf) for pair in pairs]
    methods = {"dqn": ("override", "demonstrate"), "ppo": ("override", "blend")}
    tutored = {Condition(*pair, tutor, method, reuse) for pair in pairs for tutor in study_of().tutors
               for method in methods[pair[1]] for reuse in (3, math.inf)}  # fmt: skip
    assert set(conditions[4:]) == tutored
    assert len(conditions) == 4 + len(tutored) == 36
    assert {one.baseline() for one in conditions} == set(conditions[:4])


def test_variants_are_a_further_factor_of_tutored_runs() -> None:
    study = study_of(variants={"plain": "--no-symmetry"}, guidance=("override",))
    found = [one for one in study.conditions() if (one.env, one.algo) == ("snake", "dqn")]
    assert [one.variant for one in found if one.is_baseline()] == [""]
    assert [one.variant for one in found if not one.is_baseline()] == ["", "", "plain", "plain"] * 2
    arguments = [study.arguments(RunSpec(one, 5), Path("x"), None) for one in found]
    assert ["--no-symmetry" in one for one in arguments] == [one.variant == "plain" for one in found]


def test_runs_come_seed_by_seed_with_unique_names() -> None:
    study = study_of(tutors=(TutorSpec("recorded:/tmp/advice"), TutorSpec("scripted", 0.9)))
    runs, conditions = study.runs(), study.conditions()
    assert runs == [RunSpec(one, 5) for one in conditions] + [RunSpec(one, 6) for one in conditions]
    names = [run.name() for run in runs]
    assert len(set(names)) == len(names)
    assert not any(mark in name for name in names for mark in "/: ")
    assert names[0] == "connect4_dqn_none_none_inf_seed5"


@pytest.mark.parametrize(
    ("tutor", "reuse", "expected"),
    [
        ("none", math.inf, ""),
        ("llama", 3, "--tutor llama --guidance override --reuse 3"),
        ("llama", math.inf, "--tutor llama --guidance override --reuse inf --advice-store '/my store'"),
        ("scripted:0.9", 3, "--tutor scripted --tutor-accuracy 0.9 --guidance override --reuse 3"),
        ("scripted", 0, "--tutor scripted --guidance override --reuse 0"),
        ("recorded:/a b", 3, "--tutor 'recorded:/a b' --guidance override --reuse 3"),
    ],
)
def test_arguments_are_those_of_the_condition(tutor: str, reuse: float, expected: str) -> None:
    study = study_of(num_evals=4, eval_episodes=7, flags={"snake": "--env-kwargs size=6", "ppo": "--hidden 8 8"})
    guidance = "none" if tutor == "none" else "override"
    run = RunSpec(Condition("connect4", "dqn", TutorSpec.parse(tutor), guidance, reuse), 6)
    common = "--algo dqn --env connect4 --total-steps 3000 --seed 6 --eval-every 750 --log-every 750 --eval-episodes 7"
    arguments = study.arguments(run, Path("/my runs/x"), Path("/my store"))
    assert arguments == [*shlex.split(f"{common} {expected}"), "--run-dir", "/my runs/x"]


def test_flags_are_by_env_by_algo_or_by_both() -> None:
    flags = {"snake": "--env-kwargs 'size=6' time_limit=9", "ppo": "--hidden 8", "dqn snake": "--gamma 1"}
    study = study_of(flags=flags, tutor_flags={"dqn": "--theta 5"})
    found = [study.arguments(run, Path("x"), Path("y")) for run in study.runs()]
    env, algo = ["--env-kwargs", "size=6", "time_limit=9"], ["--hidden", "8"]
    assert [one[14:-2] for one in found[:4]] == [[], algo, [*env, "--gamma", "1"], env + algo]
    for run, arguments in zip(study.runs(), found, strict=True):
        assert ("--theta" in arguments) == (run.condition.algo == "dqn" and not run.condition.is_baseline())


def test_steps_may_differ_by_student() -> None:
    study = study_of(steps={"connect4": 3000, "snake": 500, "ppo snake": 900})
    steps = {(run.condition.env, run.condition.algo): study.total_steps(run) for run in study.runs()}
    assert steps == {("connect4", "dqn"): 3000, ("connect4", "ppo"): 3000, ("snake", "dqn"): 500, ("snake", "ppo"): 900}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_evals = 3", "num_evals = ", "cannot be read"),
        ("num_evals = 3", "num_eval = 3", "no key of a study is called 'num_eval'; there are.*mean 'num_evals'"),
        ("num_evals = 3", "points = 3", "has the key 'points' of version 0.7: it is 'num_evals' now"),
        ("algos", "students", "has the key 'students' of version 0.7: it is 'algos' now"),
        ("envs = [", "games = [", "has the key 'games' of version 0.7: it is 'envs' now"),
        ("[flags]", "[begin]", "has the key 'begin' of version 0.7: it is 'pretrain' now"),
        ("seeds = [1, 2]\n", "", "has no seeds"),
        ('["ppo"]', '["dqm"]', "mean 'dqn'"),
        ('envs = ["connect4"]', 'envs = ["conect4"]', "mean 'connect4'"),
        ('"override"', '"overide"', "no guidance is called 'overide'.*mean 'override'"),
        ('"scripted:0.9"', '"scripted:often"', "accuracy of a scripted tutor"),
        ("ppo = ", "pqo = ", r"no env or algo in \[flags\] is called 'pqo'.*mean 'ppo'"),
        ("ppo = ", '"ppo snake" = ', r"no env or algo in \[flags\] is called 'ppo snake'.*mean 'ppo connect4'"),
        ("--num-steps 8", "--tutor-url x", r"\[flags\] contains --tutor-url"),
        ("3_000", "2", r"\[steps\] gives connect4 fewer env steps"),
        ("connect4 = 3_000", "snake = 3_000", r"\[steps\] gives connect4 fewer env steps"),
        ("[1, 2]", "[]", "at least one seed"),
        ("num_evals = 3", "num_evals = 0", "at least one seed, one evaluation"),
        ("episodes = 20", "episodes = 0", "one episode of it"),
        ("[1, 2]", "[1, 1]", "lists a factor's value twice"),
        ('"scripted:0.9"', '"scripted:0.9", "scripted:0.90"', "lists a factor's value twice"),
        ("3_000", '"many"', "of the wrong type"),
        ('"--num-steps 8"', "500", "of the wrong type"),
        ('"--num-steps 8"', '"\'"', "No closing quotation"),
    ],
)
def test_studies_that_cannot_be_run_are_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert TINY.count(old) == 1
    with pytest.raises(ValueError, match=message):
        read_study(write_study(tmp_path, TINY.replace(old, new)))


def test_a_missing_study_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.toml cannot be read"):
        read_study(tmp_path / "gone.toml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_train_accepts_the_arguments_of_every_study_in_configs(path: Path, tmp_path: Path) -> None:
    study = read_study(path)
    last = {(run.condition.env, run.condition.algo): run for run in study.runs()}
    for run in last.values():
        if (first := study.pretraining(run)) is not None:
            directory = tmp_path / first.name()
            directory.mkdir()
            config = parse(study.arguments(first, directory, None), Config, defaults=defaults_from_flags)
            (directory / "config.json").write_text(config.to_json())
        config = parse(study.arguments(run, tmp_path / run.name(), None), Config, defaults=defaults_from_flags)
        config.check()
        assert (config.algo, config.env) == (run.condition.algo, run.condition.env)


def test_paper_study_is_the_published_grid_with_baselines_and_unlimited_reuse() -> None:
    conditions = read_study(CONFIGS / "paper.toml").conditions()
    paper = {Condition(env, algo, TutorSpec(tutor), "override", reuse) for env in ("blackjack", "snake", "connect4")
             for algo in ("dqn", "ppo", "a2c") for tutor in ("llama", "vicuna", "deepseek")
             for reuse in (0, 3, math.inf)}  # fmt: skip
    assert set(conditions[9:]) == paper
    assert len(conditions) == 9 + 54 + 27
    assert all(one == one.baseline() for one in conditions[:9])


def test_runs_may_continue_a_pretrained_student(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, PRETRAINED))
    runs = study.runs()
    pretraining, others = runs[:2], runs[2:]
    assert [run.is_pretraining for run in runs] == [True] * 2 + [False] * len(others)
    assert [run.condition for run in others] == study.conditions() * 2
    for run in runs:
        arguments = study.arguments(run, tmp_path / run.name(), tmp_path / "store")
        steps, interval = (int(arguments[arguments.index(name) + 1]) for name in ("--total-steps", "--eval-every"))
        assert (steps, interval) == (1200 if run in pretraining else 3000, 600)
        if run in others:
            source = Path(arguments[arguments.index("--resume") + 1])
            (first,) = (one for one in pretraining if one.name() == source.name)
            assert (first.seed, first.condition.algo) == (run.seed, run.condition.algo)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TINY.replace('"override"', '"modulate"'), r"modulate requires a pretrained student"),
        (f"{TINY}\n[pretrain]\nconnect4 = 3_000\n", "fewer env steps than theirs"),
        (f"{TINY}\n[pretrain]\nsnake = 10\n", "requires envs of the study"),
    ],
)
def test_pretraining_that_cannot_be_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(write_study(tmp_path, text))


def test_options_select_a_part_of_a_study(tmp_path: Path) -> None:
    whole = StudyOptions(CONFIGS / "guidance.toml")
    options = replace(whole, envs=("connect4",), algos=("dqn",), tutors=("scripted:1",), seeds=(2, 3))
    part = options.subset()
    assert {run.condition.env for run in part.runs()} == {"connect4"}
    assert {run.seed for run in part.runs()} == {2, 3}
    assert set(part.conditions()) < set(whole.subset().conditions())
    first = part.runs()[0]
    assert part.arguments(first, tmp_path, tmp_path) == whole.subset().arguments(first, tmp_path, tmp_path)
    assert parse(options.arguments(), StudyOptions) == options
    assert whole.runs_dir() == Path("runs/study/guidance")
    with pytest.raises(ValueError, match=r"no one of the tutors of .* is called 'scripted:2'; .* did you mean"):
        replace(whole, tutors=("scripted:2",)).subset()
    with pytest.raises(ValueError, match=r"no one of the seeds of .* is called '9'"):
        replace(whole, seeds=(9,)).subset()


ODD = [
    "true",
    "-1",
    "1.5",
    "nan",
    "1" + "0" * 40,
    '"x"',
    "[]",
    "[[]]",
    "{}",
    "{ a = 1 }",
    "1979-05-27",
    '[1, "a"]',
    '[""]',
]


@pytest.mark.parametrize("key", ["algos", "envs", "tutors", "guidance", "reuse", "seeds", "num_evals", "eval_episodes",
                                 "flags", "tutor_flags", "variants", "steps", "pretrain"])  # fmt: skip
def test_study_with_an_odd_value_anywhere_is_read_or_refused(key: str, tmp_path: Path) -> None:
    whole = tomllib.loads(TINY)
    for text in ODD:
        values = {name: json.dumps(value) for name, value in whole.items() if not isinstance(value, dict)}
        tables = {
            name: "{ " + ", ".join(f"{json.dumps(one)} = {json.dumps(two)}" for one, two in value.items()) + " }"
            for name, value in whole.items()
            if isinstance(value, dict)
        }
        content = "\n".join(f"{name} = {value}" for name, value in (values | tables | {key: text}).items())
        with contextlib.suppress(ValueError):
            read_study(write_study(tmp_path, content))


def test_study_is_read_in_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    path = write_study(tmp_path, TINY)
    before = read_study(path)
    path.write_bytes("# é\n".encode() + path.read_bytes())
    assert read_study(path) == before
    path.write_bytes(b"# \xff\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"toml cannot be read: "):
        read_study(path)
