"""Refuse `python -m MODULE` for a module that is no program, which Python would import in silence, with exit code 0."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("envs", "agents", "tutors", "training", "tutored", "experiments", "benchmarks")
IS_PROGRAM = '\nif __name__ == "__main__":'
PROGRAMS = "python train.py, python evaluate.py, python -m tutors, python -m experiments and python -m benchmarks"


def refuse_library() -> None:
    """Exit with code 2 if `python -m` was given a module of this repository that is no program."""
    name = main_module()
    path = ROOT / f"{name.replace('.', '/')}.py"
    if name.partition(".")[0] in PACKAGES and path.is_file() and IS_PROGRAM not in path.read_text(encoding="utf-8"):
        print(f"error: {name} is no program; the programs are {PROGRAMS}, each with --help", file=sys.stderr)
        sys.exit(2)


def main_module() -> str:
    """Return what follows `python -m` where this process was started so, else nothing."""
    is_module = sys.argv[:1] == ["-m"] or getattr(sys.modules["__main__"], "__spec__", None) is not None
    given = sys.orig_argv
    return given[given.index("-m") + 1] if is_module and "-m" in given[:-1] else ""
