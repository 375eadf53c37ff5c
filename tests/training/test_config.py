"""Settings: to config.json and back, what is refused, and the defaults of students."""

import json
import math
import os
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents import AGENTS, A2CConfig
from agents.guidance import GuidanceConfig
from envs.opponents import Negamax, tactical
from experiments.analysis import SUMMARY
from tests.helpers.paths import GOLDEN, ROOT
from tests.helpers.programs import program
from training.config import (
    Config,
    config_from_json,
    default_config,
    defaults_from_flags,
    evaluation_env,
    load_config,
)
from training.config_json import read_fields
from tutors import TutorConfig

URL = "postgresql+psycopg://me:canary@here/advice"


@pytest.mark.parametrize("algo", AGENTS)
def test_config_json_round_trip_is_equal(algo: str) -> None:
    config = default_config(algo, "snake")
    assert config_from_json(config.to_json()) == config
    tutor = TutorConfig("tiny", tutor_url=("http://a", "http://b"), tutor_key_file=Path("key"), reuse=3.0, theta=5)
    guidance = GuidanceConfig("distill")
    config = replace(
        config, run_dir=Path("runs/a"), resume=Path("runs/b"), env_kwargs=("size=6",), tutoring=tutor, guiding=guidance
    )
    assert config_from_json(config.to_json()) == config
    assert json.loads(Config().to_json())["tutoring"]["reuse"] == "inf", "JSON has no infinity"


def changed(path: str, value: Any) -> str:
    """A config.json in which one setting is replaced, or removed if `value` is None."""
    config = json.loads(default_config("ppo", "connect4").to_json())
    *parents, name = path.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    if value is None:
        del inner[name]
    else:
        inner[name] = value
    return json.dumps(config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("total_steps", "many", "total_steps is 'many'; it must be of type int"),
        ("total_steps", 1.5, "total_steps is 1.5; it must be of type int"),
        ("force", 1, "force is 1; it must be of type bool"),
        ("env", 3, "env is 3; it must be of type str"),
        ("run_dir", 3, "run_dir is 3; it must be of type Path"),
        ("progress", "loud", "progress is 'loud'; it must be of type Literal"),
        ("agent.hidden", [64, "64"], r"agent.hidden\[1\] is '64'; it must be of type int"),
        ("agent.hidden", 64, "agent.hidden is 64; it must be of type tuple"),
        ("agent.gamma", "high", "agent.gamma is 'high'; it must be of type float"),
        ("tutoring.theta", "x", "tutoring.theta is 'x'; it must be of type int"),
        ("tutoring", [], r"tutoring is \[\]; it must be of type TutorConfig"),
        ("guiding.guidance", None, "guiding.guidance is missing"),
        ("seeds", 3, "seeds is no setting of this version"),
        ("agent.buffer_size", 3, "agent.buffer_size is no setting of this version"),
        ("algo", "dqm", "algo is 'dqm'; it must be one of dqn, ppo, a2c"),
        ("format", 7, "of version 0.x"),
        ("format", None, "of version 0.x"),
    ],
)
def test_config_json_error_names_the_field(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_json(changed(path, value))


def test_run_of_the_last_version_is_read() -> None:
    """What is new since then has a value for it."""
    text = (GOLDEN / "v1.1.0" / "config.json").read_text()
    config = config_from_json(text)
    assert (config.track, config.tutoring.tutor, config.total_steps) == (None, "scripted", 100_000)
    assert config.tutoring.label_set is None
    assert not config.tutoring.no_thinking


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_text_that_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json cannot be read: "):
        load_config(tmp_path)
    with pytest.raises(ValueError, match=r"is no run directory: it has no config\.json"):
        load_config(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("runs", "; the newest run in it is runs/new"),
        ("alone", "; did you mean runs/alone?"),
        ("runs/alnoe", "; did you mean runs/alone?"),
        ("else/tutord", "; did you mean else/tutored?"),
        ("runs/alone/checkpoints", "; it is a part of runs/alone"),
        ("runs/alone/checkpoints/step_1.pt", "; it is a part of runs/alone"),
        ("runs/alone/config.json", "; it is a part of runs/alone"),
        ("runs/report.png", ""),
        ("nowhere", ""),
        ("x" * 300, ""),
    ],
)
def test_path_that_is_no_run_leads_to_the_run_that_was_meant(
    typed: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for at, run in enumerate(("runs/new", "runs/alone", "else/tutored")):
        (Path(run) / "checkpoints").mkdir(parents=True)
        (Path(run) / "config.json").write_text("{}")
        os.utime(Path(run) / "config.json", (1000 - at, 1000 - at))
    Path("runs/report.png").touch()
    Path("runs/alone/checkpoints/step_1.pt").touch()
    with pytest.raises(ValueError, match=re.escape(f"{typed} is no run directory: it has no config.json{hint}") + "$"):
        load_config(Path(typed))


def test_an_integer_is_a_float_where_one_is_expected() -> None:
    assert config_from_json(changed("save_minutes", 3)).save_minutes == 3.0
    assert config_from_json(changed("tutoring.reuse", "inf")).tutoring.reuse == math.inf


@pytest.mark.parametrize(("written", "read"), [(True, "wandb"), (False, None)])
def test_a_config_of_version_1_1_was_tracked_by_weights_and_biases_or_not(written: bool, read: str | None) -> None:
    values = json.loads(Config().to_json())
    assert config_from_json(json.dumps(values | {"track": written})).track == read


@pytest.mark.parametrize(
    "tutor", [TutorConfig(advice_store=URL), TutorConfig(f"recorded:{URL}"), TutorConfig("tiny", tutor_url=(URL,))]
)
def test_config_json_has_no_password(tutor: TutorConfig) -> None:
    text = Config(tutoring=tutor).to_json()
    assert "canary" not in text
    assert URL.replace("canary", "***") in text


@pytest.mark.process
def test_run_of_version_0_7_is_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v0.7.0", tmp_path / "run")
    for command in (("train.py", "--resume", str(tmp_path / "run")), ("evaluate.py", str(tmp_path / "run"))):
        done = program(*command)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {tmp_path / 'run' / 'config.json'} cannot be read: it is of version 0.x")


def test_defaults_are_those_of_the_student_and_the_env() -> None:
    for algo, envs in tomllib.loads((ROOT / "agents" / "defaults.toml").read_text()).items():
        for env, settings in envs.items():
            config = defaults_from_flags(["--seed", "4", f"--env={env}", "--algo", algo])
            assert (config.algo, config.env) == (algo, env)
            for name, value in settings.items():
                if name != "chosen":
                    found = getattr(config, name) if hasattr(config, name) else getattr(config.agent, name)
                    assert found == (tuple(value) if isinstance(value, list) else value)
    assert defaults_from_flags([]).algo == Config.algo
    assert defaults_from_flags(["--env", "gym:Acrobot-v1", "--algo", "a2c"]).agent == A2CConfig()


def test_self_play_is_evaluated_against_another_opponent() -> None:
    config = Config(env_kwargs=("opponent=self", "refresh=5"))
    assert evaluation_env(config, 2, "cpu").game.opponent is tactical
    assert isinstance(evaluation_env(config, 2, "cpu", ("opponent=negamax:2",)).game.opponent, Negamax)


@pytest.mark.parametrize("tutor", ["scripted", "none"])
def test_config_of_version_1_0_keeps_what_a_tutored_run_did(tutor: str) -> None:
    written = Config(tutoring=TutorConfig(tutor), guiding=GuidanceConfig("distill"))
    values = json.loads(written.to_json())
    for name in ("trust", "pretrain_updates", "no_audit"):
        del values["guiding"][name]
    del values["tutoring"]["tutor_all_best"]
    config = config_from_json(json.dumps(values))
    before = GuidanceConfig("distill", trust="none", pretrain_updates=0, no_audit=True)
    assert config.guiding == (written.guiding if tutor == "none" else before)
    assert config.tutoring == written.tutoring


@pytest.mark.parametrize(
    ("algo", "settings", "total_steps", "reason"),
    [
        ("dqn", {"learning_starts": 5000}, 5000, "dqn begins to learn after --learning-starts 5,000 env steps"),
        ("dqn", {"learning_starts": 5000}, 5001, None),
        ("ppo", {"num_steps": 32}, 2047, "one update of ppo takes 2,048 env steps"),
        ("ppo", {"num_steps": 32}, 2048, None),
        ("a2c", {"num_steps": 8}, 511, "one update of a2c takes 512 env steps"),
    ],
)
def test_run_that_is_too_short_to_learn_says_so(
    algo: str, settings: dict[str, Any], total_steps: int, reason: str | None
) -> None:
    config = replace(default_config(algo, "connect4"), total_steps=total_steps, num_envs=64)
    said = replace(config, agent=replace(config.agent, **settings)).shortness()
    assert said is None if reason is None else said is not None and reason in said


def problem_with(text: str) -> str | None:
    """Why a config.json is refused, or None."""
    try:
        config_from_json(text)
    except ValueError as error:
        return str(error)
    return None


ODD = [
    None,
    True,
    0,
    -1,
    3,
    10**400,
    1.5,
    math.nan,
    1e308,
    -math.inf,
    "",
    "x",
    "1",
    "\0",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
]


def paths_in(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The names of all fields, of groups too."""
    found = []
    for name, value in values.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += paths_in(value, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("algo", ["dqn", "ppo", "a2c"])
def test_config_json_with_an_odd_value_anywhere_is_read_or_refused_by_field(algo: str) -> None:
    """All fields, with values of all types and sizes."""
    whole = json.loads(default_config(algo, "connect4").to_json())
    for path in paths_in(whole):
        if path.startswith("versions"):
            continue
        for value in ODD:
            values = json.loads(json.dumps(whole))
            *parents, name = path.split(".")
            inner = values
            for parent in parents:
                inner = inner[parent]
            inner[name] = value
            problem = problem_with(json.dumps(values))
            assert problem is None or path in problem or path == "format", f"{path}: {problem}"
            assert len(problem or "") < 300


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"\x00", b"null", b'{"format": 1}'])
@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_file_of_a_run_that_is_damaged_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be read: ")):
        load_config(tmp_path) if name == "config.json" else read_fields(path, SUMMARY)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"wall_seconds": "1"}, "wall_seconds is '1'; it must be of type float"),
        ({"wall_seconds": 10**400}, "wall_seconds is 1000"),
        ({"wall_seconds": 1, "tutor": []}, r"tutor is \[\]; it must be of type dict"),
        ({"wall_seconds": 1, "trust": 3}, "trust is 3; it must be of type dict"),
        ({}, "wall_seconds is None"),
    ],
)
def test_summary_error_names_the_field(content: dict[str, Any], problem: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=problem):
        read_fields(tmp_path / "summary.json", SUMMARY)
