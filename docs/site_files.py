"""What the docs site has besides docs/: the files of the repository that its pages link to, in a folder of their own.

On GitHub a link such as ../../results/study/trust/curves.png leads out of docs/; on the site it leads to a copy.
Sources and tables are copied as they are, and reports in Markdown become pages. `properdocs.yml` names this file as a
hook.
"""

import os
import re
from pathlib import Path
from typing import Any

from properdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "repository"  # of the site
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to, and those that these link to."""
    to_read = [Path(file.abs_src_path) for file in files if file.src_uri.endswith(".md") and file.abs_src_path]
    known = set(to_read)
    while to_read:
        page = to_read.pop()
        for _, link, _ in LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if "://" in link or target in known or not target.is_file() or is_inside(target, config):
                continue
            known.add(target)
            files.append(File.generated(config, place_of(target), abs_src_path=str(target)))
            if target.suffix == ".md":
                to_read.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links that leave docs/ lead to the copies; a folder has none, and its link becomes text."""
    source = Path(page.file.abs_src_path)

    def moved(found: re.Match[str]) -> str:
        text, link, anchor = found.groups()
        target = (source.parent / link).resolve()
        if "://" in link or not target.exists() or (is_inside(target, config) and is_inside(source, config)):
            return found[0]
        if target.is_dir():
            return text.strip("[]")
        place = str(target.relative_to(config.docs_dir)) if is_inside(target, config) else place_of(target)
        return f"{text}({os.path.relpath(place, os.path.dirname(page.file.src_uri) or '.')}{anchor or ''})"  # noqa: PTH120

    return LINK.sub(moved, markdown)


def place_of(target: Path) -> str:
    """Return where a file of the repository is on the site."""
    return f"{FOLDER}/{target.relative_to(ROOT)}"


def is_inside(path: Path, config: Any) -> bool:
    """Return whether a file lies in docs/."""
    return path.is_relative_to(config.docs_dir)
