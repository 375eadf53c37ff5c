"""What `python -m` says to a module that is no program, over all modules."""

import subprocess
import sys

import pytest

from envs.module_guard import PACKAGES, PROGRAMS, refuse_library
from tests.helpers.paths import ROOT

RUN_BY_OURS = {
    "benchmarks.games",
    "benchmarks.loop",
    "benchmarks.peers",
    "benchmarks.training",
    "tutors.llm.convert_gguf",
}
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = [".".join(path.with_suffix("").parts) for path in FILES if not path.stem.startswith("__")]


def start(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Behave as where Python has parsed its command line and looks for the module."""
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    monkeypatch.setattr(sys, "argv", ["-m" if "-m" in words[:2] else words[0], *words[2:]])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)


@pytest.mark.parametrize("module", MODULES)
def test_module_that_is_no_program_is_refused(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start(monkeypatch, "-m", module)
    if module in RUN_BY_OURS:
        refuse_library()
        return
    with pytest.raises(SystemExit, match="2"):
        refuse_library()
    assert capsys.readouterr().err == f"error: {module} is no program; the programs are {PROGRAMS}, each with --help\n"


@pytest.mark.parametrize(
    "words", [("-m", "train"), ("-m", "tutors"), ("-m", "pytest", "tests"), ("-m", "envs.nothing"), ("train.py",),
              ("own.py", "-x", "-m", "envs.snake"), ("-u", "-m", "experiments", "run")],
)  # fmt: skip
def test_programs_run(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, *words)
    refuse_library()


@pytest.mark.process
def test_guess_ends_with_code_2() -> None:
    guessed = [sys.executable, "-m", "training.play"]
    done = subprocess.run(guessed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: training.play is no program")
