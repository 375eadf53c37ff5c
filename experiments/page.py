"""A report as one page of HTML: tables and pictures scroll on a phone, table heads lead to definitions."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from xml.etree.ElementTree import Element

import markdown
from markdown.treeprocessors import Treeprocessor

STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: 0.2rem 0.7rem; text-align: left; vertical-align: top }
th a { color: inherit; text-decoration: underline dotted }
li:target { background: #fff3cd }
code { background: #f3f3f3; padding: 0 0.2rem; overflow-wrap: anywhere }
img { max-width: 100% }
h1, p, li { overflow-wrap: anywhere }
h2 { margin-top: 2.5rem }
@media (max-width: 48rem) {
  table { width: max-content; max-width: 44rem }
  .scroll img { max-width: none; width: 56rem }
}"""


def html(text: str, pictures: Sequence[Path], heads: Mapping[str, str] | None = None) -> str:
    """Return a report in Markdown as one page of HTML.

    Args:
        pictures: the files that the text shows; they become part of the page.
        heads: the term that defines what is in a column, by its head. A definition is an item of a list that begins
            with its term in bold.
    """
    title = escape(text.splitlines()[0].removeprefix("# "))
    for one in pictures:
        text = text.replace(f"]({one.name})", f"](data:image/png;base64,{base64.b64encode(one.read_bytes()).decode()})")
    converter = markdown.Markdown(extensions=["tables"])
    converter.preprocessors.deregister("html_block")  # HTML in the text is text
    converter.inlinePatterns.deregister("html")
    converter.treeprocessors.register(Layout(heads or {}), "layout", 15)  # after the texts of cells are parsed
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8">{viewport}<title>{title}</title>'
    return f"{head}<style>\n{STYLE}\n</style>\n{converter.convert(text)}\n</html>\n"


class Layout(Treeprocessor):
    """Puts tables and pictures into boxes that scroll, and links table heads to definitions."""

    def __init__(self, heads: Mapping[str, str]) -> None:
        super().__init__()
        self.heads = heads

    def run(self, root: Element) -> None:
        """Change the tree of the page."""
        defined = set()
        for item in root.iter("li"):
            if len(item) and item[0].tag == "strong" and not (item.text or "").strip():
                term = "".join(item[0].itertext())
                defined.add(term)
                item.set("id", anchor(term))
        for cell in root.iter("th"):
            term = self.heads.get(cell.text or "", "")
            if term in defined and not len(cell):
                link = Element("a", href=f"#{anchor(term)}")
                link.text, cell.text = cell.text, None
                cell.append(link)
        for at, block in enumerate(list(root)):
            if block.tag == "table":
                box = Element("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "table"})
                box.append(block)
                root[at] = box
            elif block.tag == "p" and len(block) == 1 and block[0].tag == "img":
                block.set("class", "scroll")


def anchor(term: str) -> str:
    """Return the id of a definition."""
    return "definition-" + re.sub(r"[^a-z0-9]+", "-", term.lower()).strip("-")
