"""What is shown of text that comes from elsewhere: printable, short, as text in every format, and without secrets.

Servers, models, stores and files of settings may hold anything: escape sequences of a terminal, markup, megabytes.
"""

import re
from collections.abc import Iterable
from pathlib import Path

MAX_NAME_CHARS = 80  # of a name that is shown
MAX_NAMES = 12  # of a list that is shown
MAX_TEXT_CHARS = 4000  # of a message
MARKUP = re.compile(r"[\\`*<>&|~$]|\](?=[(\[:])")  # what Markdown, its tables or HTML in it take for more than text
HIDDEN = "***"  # in place of a secret
USER_OF_HTTP = re.compile(r"(https?://)[^/?#:@\s]+@", re.IGNORECASE)  # without a password it is a token
PASSWORD = re.compile(r"://([^:/@?#]*):.*@", re.DOTALL)  # may hold any sign, if it was not quoted
SECRET_PARAMETER = re.compile(
    r"([?&#;](?:[\w-]*(?:passw(?:or)?d|passphrase|pwd|token|secret|api[_-]?key|signature|credentials?)|key|sig|auth)=)"
    r"[^&#;]*",
    re.IGNORECASE,
)


def without_password(url: str | Path) -> str:
    """Return a URL, or a word that holds one, with *** for its secrets, wherever they stand; a path as it is."""
    text = PASSWORD.sub(rf"://\1:{HIDDEN}@", str(url))
    text = USER_OF_HTTP.sub(rf"\1{HIDDEN}@", text)
    return SECRET_PARAMETER.sub(rf"\1{HIDDEN}", text)


def encodable(text: str) -> str:
    """Return text without lone surrogates, which JSON can hold and no encoding can."""
    return text.encode(errors="replace").decode()


def printable(text: object, limit: int = MAX_NAME_CHARS) -> str:
    """Return text as one line that a terminal and any encoding can show: the rest is escaped as in Python, or cut."""
    line = str(text)
    shown = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in line[:limit])
    return "".join(shown) + ("…" if len(line) > limit else "")


def printable_lines(text: object, limit: int = MAX_TEXT_CHARS) -> str:
    """Return text of several lines as `printable` does."""
    whole = str(text)
    lines = whole[:limit].expandtabs().split("\n")
    return "\n".join(printable(line, len(line)) for line in lines) + ("…" if len(whole) > limit else "")


def printable_list(names: Iterable[object], nothing: str = "nothing") -> str:
    """Return names with commas between them, the first ones of many."""
    shown = [printable(name) for name in names]
    rest = f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else ""
    return ", ".join(shown[:MAX_NAMES]) + rest if shown else nothing


def picture_text(text: object, limit: int = MAX_NAME_CHARS) -> str:
    """Return a name for a picture, in which Matplotlib takes $ for mathematics."""
    return printable(text, limit).replace("$", r"\$")


def markdown_text(text: object, limit: int = MAX_TEXT_CHARS) -> str:
    """Return text for a place in Markdown where it must be no more than text, a table's cell included."""
    return MARKUP.sub(lambda sign: f"&#{ord(sign[0])};", printable(text, limit))
