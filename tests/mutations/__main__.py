"""Seed one bug after the other into a copy of the program and see that the test named for it fails.

`python -m tests.mutations [WORDS]` tries all bugs, or those whose name or file holds one of the words; it prints a line
a bug and exits with 1 if a bug survived, with 2 if tests fail without one.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported
sys.dont_write_bytecode = True  # of a source that is another one a moment later

import pytest  # noqa: E402

import train  # noqa: E402, F401 (and with it all libraries, so that no child imports them again)
from tests.helpers.paths import ROOT  # noqa: E402
from tests.mutations.bugs import BUGS, Bug  # noqa: E402

TIMEOUT_S = 300  # of one test; a test that never ends has failed


def main(words: list[str]) -> int:
    """Return the exit code."""
    chosen = [bug for bug in BUGS if not words or any(word in f"{bug.file} {bug.name}" for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        ignored = shutil.ignore_patterns(".*", "runs", "results", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, folder, ignore=ignored)
        failing = [tests for tests in sorted({bug.tests for bug in chosen}) if not passes(folder, f"tests/{tests}")]
        if failing:
            print(f"without a bug these fail already: {', '.join(failing)}")
            return 2
        for number, bug in enumerate(chosen, 1):
            survived = survives(bug, folder)
            survivors += survived
            print(f"{number:3} {'SURVIVED' if survived else 'caught  '} {bug.file}: {bug.name}", flush=True)
    print(f"{len(chosen)} bugs, {len(chosen) - survivors} caught, {survivors} survived")
    return 1 if survivors else 0


def survives(bug: Bug, folder: Path) -> bool:
    """Return whether its tests pass with this bug in the copy at `folder`."""
    path = folder / bug.file
    source = path.read_text()
    path.write_text(bug.seeded(source))
    try:
        return passes(folder, f"tests/{bug.tests}")
    finally:
        path.write_text(source)


def passes(folder: Path, tests: str) -> bool:
    """Return whether a test file passes there, in a child of this process."""
    child = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, tests))
    child.start()
    child.join()
    assert child.exitcode in (0, 1, 2), f"{tests} ended with {child.exitcode}"  # 2: it cannot even be imported
    return child.exitcode == 0


def run_tests(folder: Path, tests: str) -> None:
    """Run a test file of the copy at `folder`, and exit with pytest's code."""
    os.chdir(folder)
    sys.path[0] = str(folder)
    for name in list(sys.modules):  # what is the program's own is imported from the copy
        if (ROOT / name.partition(".")[0]).is_dir() or (ROOT / f"{name}.py").is_file():
            del sys.modules[name]
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    flags = f"-x -q -p no:cacheprovider --timeout {TIMEOUT_S}".split()
    sys.exit(int(pytest.main([*flags, "-m", "not serve and not gpu", tests])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
