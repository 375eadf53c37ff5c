"""What is shown of text that comes from elsewhere: no secrets."""

import re
from pathlib import Path

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
