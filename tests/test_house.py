"""The house as DESIGN.md draws it: who may import whom, how long a file is, and that everything says what it is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("envs", "agents", "tutors")
PROGRAMS = (
    "train.py",
    "evaluate.py",
    "benchmark.py",
    "lookups.py",
    "loops.py",
    "questions.py",
    "sweep.py",
    "study.py",
    "grid.py",
    "jobs.py",
    "cluster.py",
    "findings.py",
    "writeup.py",
    "measures.py",
    "demo.py",
    "run.py",
    "resume.py",
    "pause.py",
    "progress.py",
    "film.py",
    "watch.py",
    "log.py",
)
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FILES += [ROOT / name for name in PROGRAMS]
LONGEST = 320  # lines

ARROWS = {  # the first that fits counts; what is not of this house may always be imported
    "envs/*": ("envs",),
    "agents/*": ("agents", "envs.base", "envs.luck"),
    "tutors/views/*": ("envs", "tutors.base", "tutors.views"),
    "tutors/guidance/*": ("tutors", "agents.base", "agents.networks", "agents.optimizer", "envs.base", "envs.names"),
    "tutors/store/*": ("tutors", "envs"),
    "tutors/tiny/*": ("tutors", "envs"),
    "tutors/*": ("tutors", "envs.base", "envs.luck", "envs.closest", "envs.names"),
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
    allowed = next((to for fits, to in ARROWS.items() if path.match(f"{ROOT}/{fits}") or deep(path, fits)), None)
    if allowed is None:
        assert name_of(path) in PROGRAMS
        return
    house = {name for name in imports(path) if name.split(".")[0] in (*FOLDERS, "run", "train", "evaluate", "demo")}
    strangers = {name for name in house if not within(name, allowed)}
    assert not strangers, f"{name_of(path)} may import {allowed}, not {strangers}"


def deep(path: Path, pattern: str) -> bool:
    return name_of(path).startswith(pattern.removesuffix("*"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_client_opens_sockets_and_nobody_imports_vllm(path: Path) -> None:
    names = imports(path)
    assert not any(within(name, ("vllm",)) for name in names), "vLLM runs in a process of its own"
    if name_of(path) != "tutors/client.py":
        assert not any(within(name, tuple(SOCKETS)) for name in names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_begins_by_saying_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "no module docstring"
    assert docstring.splitlines()[0].endswith((".", ":", "?", "`.")), "its first line is a sentence"


def test_the_readme_names_every_file() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [name_of(path) for path in FILES if not path.name.startswith("__") and path.name not in readme]
    assert not missing, f"README.md's tree does not name {missing}"
