"""The docs site: it is built without a warning, its menu has every page, and every link leads somewhere."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.helpers.paths import ROOT

pytest.importorskip("properdocs", reason="properdocs is not installed")


class Links(HTMLParser):
    """What a page links to and shows, and the names of its places."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            if name in ("id", "name") and value is not None:
                self.places.add(value)


def build(site: Path, config: Path = ROOT / "properdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "properdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.process
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {page: Links(page) for page in tmp_path.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 40
    for page, found in pages.items():
        for link in found.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{page.relative_to(tmp_path)} links to {link}"
            if url.fragment and target in pages:
                assert url.fragment in pages[target].places, f"{page.relative_to(tmp_path)} links to {link}"


def named(part: object) -> set[str]:
    """The pages in a part of the menu."""
    if isinstance(part, str):
        return {part}
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    return {name for one in parts for name in named(one)}


def test_the_menu_has_every_page() -> None:
    menu = yaml.safe_load((ROOT / "properdocs.yml").read_text())["nav"]
    assert named(menu) == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


@pytest.mark.process
def test_a_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text("[gone](gone.md)")
    text = (ROOT / "properdocs.yml").read_text().partition("\nnav:")[0] + "\nnav: [README.md]\n"
    config = tmp_path / "properdocs.yml"
    config.write_text(text.replace("docs/site_files.py", str(ROOT / "docs" / "site_files.py")))
    done = build(tmp_path / "site", config)
    assert done.returncode == 1
    assert "gone.md" in done.stderr
