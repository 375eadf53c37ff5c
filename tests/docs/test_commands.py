"""README.md and docs/ against the programs: commands, flags, and lists of what there is."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from agents.guidance import METHODS
from docs import generate
from training.cli import parse
from training.config import Config, defaults_from_flags
from training.flag_effects import check_effects
from tutors.store.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = generate.pages()
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")
SUBCOMMANDS = {  # words after a program that choose what it does
    "-m tutors": (
        "report",
        "fill",
        "store info",
        "store export",
        "store push",
        "store import",
        "store merge",
        "store vacuum",
    ),
    "-m experiments": ("run", "report", "search", "plot", "push", "demo"),
    "-m benchmarks": ("games", "training", "thresholds", "tutor", "table", "loop", "gpu"),
    "-m tutors.tiny": ("",),
    "train.py": ("--algo dqn", "--algo ppo", "--algo a2c"),
    "evaluate.py": ("",),
}
OTHERS = ("ray ", "tensorboard ", "vllm ", "pip ")  # programs whose flags are not checked
HELP = """
import contextlib, io, json, runpy, sys
texts = []
for words in json.load(sys.stdin):
    said, is_module = io.TextIOWrapper(io.BytesIO(), "utf-8"), words[0] == "-m"
    name, sys.argv = words[int(is_module)], words[int(is_module):]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            (runpy.run_module if is_module else runpy.run_path)(name, run_name="__main__")
        except (Exception, SystemExit) as error:
            print(error)
    said.flush()
    texts.append(said.buffer.getvalue().decode())
json.dump(texts, sys.__stdout__)
"""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def by_hand(page: Path) -> str:
    """A page without what is generated, and without the names that commands once had."""
    text = generate.BLOCK.sub("", page.read_text())
    return re.sub(r"^## Commands before 1\.0$.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each Python command of a page, from the program on."""
    text = by_hand(page)
    lines = [line for block in SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(python [^`]+)`", FENCE.sub("", text))
    for line in lines:
        words = shlex.split(line.replace("…", ""), comments=True)
        words = words[: words.index("|")] if "|" in words else words
        if words and words[0] == "python":
            yield words[1:]
        elif words and words[0] == "torchrun":
            yield words[next(at for at, word in enumerate(words) if word.endswith(".py")) :]


def choice(words: list[str]) -> str:
    """Which program is called, with the words that choose what it does."""
    program = " ".join(words[: 1 + (words[0] == "-m")])
    rest = " ".join(words[1 + (words[0] == "-m") :])
    assert program in SUBCOMMANDS, f"there is no program {program}"
    found = [one for one in SUBCOMMANDS[program] if f"{rest} ".startswith(f"{one} ") or not one]
    if program == "train.py":
        found = [one for one in SUBCOMMANDS[program] if one in rest] or ["--algo dqn"]
    assert found, f"{program} has no subcommand {rest.split()[:1]}"
    return f"{program} {found[0]}".strip()


@cache
def help_texts() -> dict[str, str]:
    """What `--help` says, by program with and without subcommand: of one child, since each imports PyTorch."""
    calls = [f"{program} {one}".strip() for program, all_of in SUBCOMMANDS.items() for one in ("", *all_of)]
    asked = json.dumps([[*call.split(), "--help-all" if call.startswith("train.py") else "--help"] for call in calls])
    done = subprocess.run(
        [sys.executable, "-c", HELP], input=asked, capture_output=True, text=True, cwd=ROOT, check=True
    )
    return dict(zip(calls, json.loads(done.stdout), strict=True))


def listed() -> dict[str, set[str]]:
    """The subcommands that each program's own help lists."""
    texts = {program: help_texts()[program] for program in SUBCOMMANDS}
    return {program: set(re.findall(r"^│ +• (\S+)", text, re.MULTILINE)) for program, text in texts.items()}


@cache
def helps() -> dict[str, set[str]]:
    """The flags that each program says it has, by program and subcommand."""
    return {call: set(FLAG.findall(text)) for call, text in help_texts().items()}


def test_tutorial_resumes_a_run_that_is_not_finished() -> None:
    """A run of an earlier section is, and its `--resume` would be refused."""
    sections = (ROOT / "docs" / "tutorial.md").read_text().split("\n## ")
    resumed = [(one, run) for one in sections for run in re.findall(r"--resume (\S+)", one)]
    assert resumed
    for section, run in resumed:
        assert re.search(rf"train\.py .*--run-dir {re.escape(run)}$", section, re.MULTILINE), (
            f"{run} is not stopped here"
        )


@pytest.mark.process
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist_with_their_flags(page: Path) -> None:
    for words in commands(page):
        known = helps()[choice(words)]
        assert "--help" in known, f"{name_of(page)}: {choice(words)} is no program"
        unknown = {word for word in words if FLAG.fullmatch(word)} - known - {"--help-all"}
        assert not unknown, f"{name_of(page)}: {' '.join(words)} has no {unknown}"


@pytest.mark.process
@pytest.mark.parametrize("program", [program for program in SUBCOMMANDS if program.startswith("-m")])
def test_help_of_a_program_lists_its_subcommands(program: str) -> None:
    assert listed()[program] == {one.split()[0] for one in SUBCOMMANDS[program] if one}


def test_subcommands_of_a_store_are_those_of_the_pages() -> None:
    assert {f"store {name}" for name in COMMANDS} == {one for one in SUBCOMMANDS["-m tutors"] if " " in one}


@pytest.mark.process
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_in_the_text_exist(page: Path) -> None:
    known = set().union(*helps().values()) | {"--help-all"}
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", by_hand(page)))
    ours = " ".join(span for span in spans if not span.startswith(OTHERS))
    assert set(FLAG.findall(ours)) <= known


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for page in PAGES for target in re.findall(r"(?:^|`)make ([a-z]+)", by_hand(page), re.MULTILINE)}
    assert named
    assert named <= targets


def test_readme_has_at_most_200_lines_and_names_every_package() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 200
    tree = re.search(r"^## Where things are\n\n```\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert tree is not None
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    folders = {Path(file).parts[0] for file in tracked if "/" in file and not file.startswith(".")}
    packages = {Path(file).parts[1] for file in tracked if re.fullmatch(r"(agents|tutors)/\w+/__init__\.py", file)}
    programs = {file for file in tracked if re.fullmatch(r"\w+\.py", file)}
    missing = [name for name in (*folders, *packages) if f"{name}/" not in tree[1]]
    missing += [name for name in programs if name not in tree[1]]
    assert not missing


def first_cells(page: str) -> set[str]:
    """What stands in backticks in the first cells of a page's tables."""
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_reference_lists_every_guidance_method() -> None:
    assert set(METHODS) <= first_cells("reference/guidance.md")


def test_reference_lists_every_model() -> None:
    models = tomllib.loads((ROOT / "tutors" / "llm" / "models.toml").read_text())
    assert set(models) <= first_cells("reference/tutors.md")


def test_reference_lists_every_tag() -> None:
    """A tag is a string literal in the code; kinds of failures are parts of a tag."""
    listed = first_cells("reference/metrics.md")
    tags = set()
    for folder in ("agents", "tutors", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    tags |= set(re.findall(r"^(?:charts|losses|eval|policy|tutor|vllm|time)/\w+$", node.value))
    made_into_a_rate = {"vllm/prefix_cache_hits", "vllm/prefix_cache_queries"}
    assert len(tags) > 20
    assert tags - made_into_a_rate <= listed
    assert "tutor/no_advice/KIND" in listed


@pytest.mark.process
def test_reference_lists_every_flag_of_a_run() -> None:
    listed = first_cells("reference/commands.md")
    run, agent = helps()["train.py --algo a2c"], by_name("agents")
    assert {flag for flag in run if flag not in agent} <= listed | {"--help"}


def test_reference_lists_every_flag_of_an_evaluation() -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()
    rows = re.findall(r"^\| (`--.+?) \|", re.split("^## ", text, flags=re.MULTILINE)[2], re.MULTILINE)
    assert set(FLAG.findall(" ".join(rows))) == {one for one in helps()["evaluate.py"] if one != "--help"}


def by_name(folder: str) -> set[str]:
    """The flags that hyper-parameters become: fields of the dataclasses of a package."""
    names = set()
    for path in (ROOT / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                flag = node.target.id.replace("_", "-")
                names |= {f"--{flag}", f"--no-{flag}"}
    return names


OWN = {"sure:Sure": "distill", "middle:advise": "scripted"}  # what pages teach to write, and what there is


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_training_commands_have_no_flag_without_effect(page: Path) -> None:
    for program, *words in commands(page):
        if program == "train.py" and not {"--resume", "--help", "--help-all", "--version"} & set(words):
            args = [OWN.get(word, word.replace("NAME", "tiny")) for word in words]
            check_effects(parse(args, Config, defaults=defaults_from_flags), args)
