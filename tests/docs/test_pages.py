"""README.md and docs/: every link leads somewhere, and generated blocks are what results/ says today."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r"https?:|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)} links to {link}, but there is no such heading"


def test_every_page_is_linked_from_another() -> None:
    linked = set()
    for page in PAGES:
        files = (link.partition("#")[0] for link in LINK.findall(page.read_text()))
        linked |= {(page.parent / file).resolve() for file in files if file and "://" not in file}
    orphans = [name_of(page) for page in (ROOT / "docs").rglob("*.md") if page not in linked]
    assert not orphans


@pytest.mark.parametrize("page", generate.pages(), ids=name_of)
def test_generated_blocks_are_current(page: Path) -> None:
    text = page.read_text()
    assert generate.filled(text) == text, f"{name_of(page)} is not current; run `make docs`"


def test_a_page_that_is_not_current_is_found(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "results" / "tiny-tutor.md").read_text()
    changed = page.replace("connect4 board", "connect4 bored")
    assert changed != page
    assert generate.filled(changed) == page


def test_check_agrees_with_the_files() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_every_block_is_shown_somewhere() -> None:
    shown = {block[2] for page in generate.pages() for block in generate.BLOCK.finditer(page.read_text())}
    assert set(generate.BLOCKS) == shown
