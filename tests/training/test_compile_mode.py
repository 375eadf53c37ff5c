"""What `--compile-mode auto` becomes: by the student, the env and the length of a run alone, and kept by a resume."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents import AGENTS
from experiments.spec import read_study
from tests.helpers.paths import ROOT
from tests.helpers.small_runs import small_config
from train import Trainer, train
from training import compile_mode
from training.cli import parse
from training.compile_mode import BREAK_EVEN, CACHE, keep_compiled, missing_for_compiling, resolve_compile_mode
from training.config import Config, config_from_json, default_config, defaults_from_flags, load_config

PPO_BLACKJACK = BREAK_EVEN["ppo", "blackjack"]


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be lacking, on a machine without a C++ compiler too."""
    monkeypatch.setattr(compile_mode, "missing_for_compiling", lambda: None)


def config_of(algo: str, env: str, **options: Any) -> Config:
    return replace(default_config(algo, env), device="cpu", **options)


@pytest.mark.parametrize(("algo", "env"), BREAK_EVEN)
def test_auto_compiles_from_the_break_even_on(algo: str, env: str) -> None:
    steps = BREAK_EVEN[algo, env]
    found = [resolve_compile_mode(config_of(algo, env, total_steps=one)) for one in (1, steps - 1, steps, 10**15)]
    assert found == ["eager", "eager", "compile", "compile"]


def test_auto_depends_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """On no clock, no other option, and on no CUDA device: recordings have not been measured."""
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("a clock was read"))
    for steps, mode in ((PPO_BLACKJACK - 1, "eager"), (PPO_BLACKJACK, "compile")):
        config = config_of("ppo", "blackjack", total_steps=steps)
        for other in (config, replace(config, num_envs=1024, seed=7, eval_every=1), replace(config, device="cuda")):
            assert resolve_compile_mode(other) == mode


def test_auto_is_eager_where_nothing_was_measured() -> None:
    for algo in AGENTS:
        for env in ("gym:CartPole-v1", "envs.cartpole:CartPole"):
            assert resolve_compile_mode(config_of(algo, env, total_steps=10**15)) == "eager"


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_a_mode_that_is_given_is_kept(mode: str) -> None:
    for steps in (1, 10**15):
        config = config_of("ppo", "blackjack", total_steps=steps, compile_mode=mode)
        assert resolve_compile_mode(config) == mode


def test_without_a_compiler_auto_is_eager_and_other_modes_say_what_is_lacking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compile_mode, "missing_for_compiling", missing_for_compiling)
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    config = config_of("ppo", "blackjack", total_steps=PPO_BLACKJACK)
    assert resolve_compile_mode(config) == "eager"
    with pytest.raises(ValueError, match=r"--compile-mode compile requires a C\+\+ compiler, .*no-compiler, which was"):
        resolve_compile_mode(replace(config, compile_mode="compile"))
    monkeypatch.setenv("CXX", "sh")  # a program that there is
    monkeypatch.setattr(compile_mode.sysconfig, "get_path", lambda name: str(tmp_path))
    assert missing_for_compiling() == "Python's headers, python3-dev"
    (tmp_path / "Python.h").touch()
    assert missing_for_compiling() is None


STUDIES = sorted((ROOT / "experiments" / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", [one for one in STUDIES if one.stem != "alone"], ids=lambda path: path.stem)
def test_published_studies_stay_eager(path: Path) -> None:
    """Their results were made so. The curves of alone.toml were compiled."""
    study = read_study(path)
    for algo in study.algos:
        for env in study.envs:
            config = config_of(algo, env, total_steps=study.steps_for(algo, env))
            assert resolve_compile_mode(config) == "eager"


@pytest.mark.train
def test_what_auto_becomes_is_printed_written_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(Trainer, "compile", lambda trainer: modes.append(trainer.config.compile_mode))
    monkeypatch.setitem(BREAK_EVEN, ("ppo", "connect4"), 2048)
    config = small_config("ppo", "connect4", tmp_path / "run", tutor="none")
    train(config)
    assert "tutor none, cpu, 1 thread, compile" in capsys.readouterr().out
    assert load_config(tmp_path / "run").compile_mode == "compile"
    monkeypatch.setitem(BREAK_EVEN, ("ppo", "connect4"), 10**9)
    again = parse(["--resume", str(tmp_path / "run"), "--force"], Config, defaults=defaults_from_flags)
    train(replace(again, total_steps=4096))
    train(replace(config, resume=tmp_path / "run", total_steps=6144, force=True))  # which says auto
    assert modes == ["compile"] * 3
    train(replace(config, run_dir=tmp_path / "new"))
    assert modes[3:] == ["eager"]
    assert load_config(tmp_path / "new").compile_mode == "eager"


@pytest.mark.train
def test_a_run_of_version_1_1_which_has_auto_goes_on_eagerly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("ppo", "connect4", tmp_path / "run", tutor="none")
    train(config)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"compile_mode": "auto"}))
    assert config_from_json(path.read_text()).compile_mode == "auto"
    monkeypatch.setitem(BREAK_EVEN, ("ppo", "connect4"), 1)
    train(replace(config, resume=tmp_path / "run", total_steps=4096, force=True))
    assert load_config(tmp_path / "run").compile_mode == "eager"


def test_what_is_compiled_is_kept_in_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled()
    assert os.environ[CACHE] == str(tmp_path / "tutored" / "inductor")
    assert (tmp_path / "tutored" / "inductor").is_dir()
    monkeypatch.setenv(CACHE, "elsewhere")
    keep_compiled()
    assert os.environ[CACHE] == "elsewhere", "which was asked for"


def test_where_no_folder_can_be_made_pytorch_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled()
    assert CACHE not in os.environ
