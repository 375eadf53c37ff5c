"""The examples of docs/how-to and docs/reference run: Python blocks from top to bottom, and training commands.

A block with a title is a file in the reader's folder. All other Python blocks of a page are one program.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [page for kind in ("how-to", "reference") for page in sorted((ROOT / "docs" / kind).glob("*.md"))]
FENCE = re.compile(r'^```python(?: title="([\w.]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONAL = {"use-as-a-library": "stable_baselines3"}  # what a page requires besides
EXTENSIONS = ("add-a-game", "add-a-prompt-view", "add-a-guidance-method", "add-a-tutor")


def blocks(page: Path) -> list[tuple[str, str]]:
    """The Python blocks of a page: (title or nothing, code)."""
    return FENCE.findall(page.read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reader's folder, with every file that the pages tell to write."""
    for page in PAGES:
        for title, code in blocks(page):
            if title:
                (tmp_path / title).write_text(code)
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a reader's folder, with the repository importable."""
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]; import runpy; sys.argv = sys.argv[1:]; "
    if arguments[0] == "-m":
        _, module, *arguments = arguments  # type: ignore[assignment]
        code += f"sys.argv.insert(0, {module!r}); runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    else:
        code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.process
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_python_examples_run(page: Path, folder: Path) -> None:
    if page.stem in OPTIONAL:
        pytest.importorskip(OPTIONAL[page.stem], reason=f"{OPTIONAL[page.stem]} is not installed")
    program = folder / "example.py"
    program.write_text("\n".join(code for title, code in blocks(page) if not title))
    done = python(folder, str(program))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", EXTENSIONS)
def test_a_page_about_extending_has_an_example(page: str) -> None:
    found = blocks(ROOT / "docs" / "how-to" / f"{page}.md")
    assert any(title for title, _ in found)
    assert any("assert" in code for title, code in found if not title)


@pytest.mark.process
@pytest.mark.train
@pytest.mark.parametrize("page", EXTENSIONS)
def test_commands_about_extending_run(page: str, folder: Path) -> None:
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    commands = [line for block in SHELL.findall(text) for line in block.splitlines()]
    assert commands
    for number, command in enumerate(commands):
        _, program, *arguments = shlex.split(command)
        if program == "-m":
            done = python(folder, "-m", *arguments)
            assert done.returncode == 0, done.stderr
            continue
        run_dir = folder / f"run{number}"
        arguments += [
            "--num-envs",
            "16",
            "--eval-episodes",
            "16",
            "--run-dir",
            str(run_dir),
            "--progress",
            "quiet",
        ]
        arguments[arguments.index("--total-steps") + 1] = "512"
        done = python(folder, str(ROOT / program.removeprefix("~/tutored/")), *arguments)
        assert done.returncode == 0, done.stderr
        summary = json.loads((run_dir / "summary.json").read_text())
        assert 512 <= summary["global_step"] < 1024  # a tutor's probe episodes count, too
        assert "--tutor" not in arguments or summary["tutor"]["asked"] > 0


@pytest.mark.process
@pytest.mark.parametrize("game", ["nim:Nim()", "drawn_nim:DrawnNim()", "corridor:Corridor()"])
def test_own_games_make_no_tensor_on_another_device(game: str, folder: Path) -> None:
    """On the meta device, where a tensor of the CPU that is mixed in is an error, as it is on CUDA."""
    module, _, made = game.partition(":")
    program = folder / "elsewhere.py"
    program.write_text(f"import torch\nfrom {module} import *\ngame = {made}\n" + ELSEWHERE)
    done = python(folder, str(program))
    assert done.returncode == 0, done.stderr


ELSEWHERE = """
def uniforms(columns):
    return torch.rand(5, columns, device="meta")

state = game.reset(uniforms(game.spec.num_reset_uniforms))
action = torch.zeros(5, dtype=torch.int64, device="meta")
after, reward, terminated = game.step(state, action, uniforms(game.spec.num_step_uniforms))
tensors = [*state.values(), *after.values(), reward, terminated, *game.observe(state), *game.observe(after)]
assert all(tensor.device.type == "meta" for tensor in tensors)
"""
