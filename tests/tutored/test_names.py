"""The names that `import tutored` hands on, and what importing them loads."""

import configparser
import re
import subprocess
import sys

import pytest

import tutored
from tests.helpers.paths import ROOT

OPTIONAL = """
import sys
import tutored
assert "torch" not in sys.modules, "nothing is imported before a name is used"
names = [getattr(tutored, name) for name in tutored.__all__]
import evaluate
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_every_name_is_there_and_another_one_is_not() -> None:
    assert sorted(tutored.PLACES) == sorted(tutored.__all__) == dir(tutored)
    for name in tutored.__all__:
        assert getattr(tutored, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        tutored.trian  # noqa: B018


@pytest.mark.process
def test_no_optional_library_is_imported() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    listed = " ".join(extras[name] for name in extras if name not in ("dev", "postgres"))
    optional = {re.sub(r"\W", "_", name) for name in re.findall(r"[a-z][a-z0-9-]*", listed)} | {"psycopg"}
    assert {"wandb", "stable_baselines3", "optuna", "vllm"} <= optional
    done = subprocess.run([sys.executable, "-c", OPTIONAL], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torch" in done.stdout.split()
    assert not optional & set(done.stdout.split())


@pytest.mark.process
def test_every_name_of_the_page_is_public_and_the_other_way_round() -> None:
    page = (ROOT / "docs" / "how-to" / "use-as-a-library.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(tutored.__all__)
