"""Seed one bug after the other into a copy of the program and see that the test named for it fails.

`python -m tests.mutations [WORDS]` tries all bugs, or those whose name or file holds one of the words; it prints a line
a bug and exits with 1 if a bug survived.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.mutations.bugs import BUGS, Bug

TIMEOUT_S = 300  # of one test; a test that never ends has failed


def main(words: list[str]) -> int:
    """Return the exit code."""
    chosen = [bug for bug in BUGS if not words or any(word in f"{bug.file} {bug.name}" for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        ignored = shutil.ignore_patterns(".*", "runs", "results", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, folder, ignore=ignored)
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
    """Return whether a test file passes there."""
    flags = f"-x -q -p no:cacheprovider --timeout {TIMEOUT_S}".split()
    command = [sys.executable, "-m", "pytest", *flags, "-m", "not serve and not gpu", tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 2), done.stdout + done.stderr  # 2: with the bug it cannot even be imported
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
