"""Packages import each other along the arrows of docs/concepts/architecture.md; every file says what it is."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FOLDERS = ("envs", "agents", "tutors", "training", "tutored", "experiments", "benchmarks")
PROGRAMS = ("train.py", "evaluate.py")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FILES += [ROOT / name for name in PROGRAMS]

ARROWS = {  # the first that fits counts; third-party packages may always be imported
    "envs/*": ("envs",),
    "agents/*": ("agents", "envs.base", "envs.rng", "envs.registry"),
    "tutors/__main__.py": ("training", "tutors", "agents", "envs"),
    "tutors/store/__main__.py": ("training", "tutors", "agents", "envs"),
    "tutors/tiny/__main__.py": ("training", "tutors", "agents", "envs"),
    "tutors/prompts/*": ("envs", "tutors.prompts"),
    "tutors/*": ("tutors", "envs", "agents.policy"),
    "training/*": ("training", "tutors", "agents", "envs"),
    "tutored/*": ("tutored", "training", "tutors", "agents", "envs", "train"),
    "benchmarks/*": ("benchmarks", "training", "tutors", "agents", "envs", "train", "evaluate"),
    "experiments/*": ("experiments", "training", "tutors", "agents", "envs", "train", "evaluate"),
    "*": ("training", "tutors", "agents", "envs"),
}
SOCKETS = {"aiohttp", "socket", "requests", "httpx", "urllib.request", "http.client", "openai"}


def imports(path: Path) -> set[str]:
    """All modules that a file imports, and `module.name` for what it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    allowed = next(to for fits, to in ARROWS.items() if name_of(path).startswith(fits.removesuffix("*")))
    house = {name for name in imports(path) if name.split(".")[0] in (*FOLDERS, "train", "evaluate")}
    strangers = {name for name in house if not within(name, allowed)}
    assert not strangers, f"{name_of(path)} may import {allowed}, not {strangers}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_client_opens_sockets_and_nobody_imports_vllm(path: Path) -> None:
    names = imports(path)
    assert not any(within(name, ("vllm",)) for name in names), "vLLM runs in a process of its own"
    if name_of(path) not in ("tutors/llm/client.py", "benchmarks/peers.py"):  # what the peers open is timed beside ours
        assert not any(within(name, tuple(SOCKETS)) for name in names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_begins_with_a_docstring(path: Path) -> None:
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "no module docstring"
    assert docstring.splitlines()[0].endswith((".", ":", "?", "`.")), "its first line is a sentence"


def test_the_loop_in_the_docs_is_that_of_the_program() -> None:
    page = (ROOT / "docs" / "concepts" / "architecture.md").read_text()
    code = re.search(r"```python\n(def rollout_step.*?)```", page, re.DOTALL)
    assert code is not None
    program = without_blank_lines((ROOT / "train.py").read_text())
    for function in re.split(r"\n\n(?=def )", code[1].strip()):
        assert without_blank_lines(textwrap.indent(function, "    ")) in program


def without_blank_lines(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.strip())


def test_each_stop_in_the_docs_is_in_its_file() -> None:
    page = (ROOT / "docs" / "concepts" / "architecture.md").read_text()
    rows = re.findall(r"^\| \d+ \| (.*?) \| (.*?) \|", page, re.MULTILINE)
    assert len(rows) == 16
    for stop, files in rows:
        places = re.findall(r"`([\w/.]+)`", files)
        folder = Path(places[0]).parent
        paths = [ROOT / (place if "/" in place else folder / place) for place in places]
        assert all(path.exists() for path in paths), files
        sources = [one for path in paths for one in (path.rglob("*.py") if path.is_dir() else [path])]
        text = "".join(source.read_text() for source in sources)
        for name in re.findall(r"`\w+\.(\w+)`", stop):
            if name not in ("step", "observe"):  # of env and agent, beside others in the row
                assert f"def {name}(" in text, f"{stop} in {files}"
