"""HTTP to a server of language models: deadlines, bounded retries, no redirects; the only file that opens a socket."""

import asyncio
import ipaddress
import json
import math
import os
import re
import select
import time
from base64 import b64encode
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import aiohttp
import tenacity

from tutors.base import TutorError
from tutors.display import HIDDEN, encodable, without_password
from tutors.llm.stream import join_stream

API_KEY_VARIABLE = "TUTOR_API_KEY"
MAX_TRIES = 3  # of one request
LIST_DEADLINE_S = 2.0  # for the list of served models, where nothing else is said
MIN_RETRY_WAIT_S = 0.1
MAX_RETRY_WAIT_S = 3600.0  # whatever Retry-After asks for
STARTING = frozenset({"status_408", "status_425", "status_429", "status_502", "status_503", "status_504"})
MAX_MODEL_CHARS = 1000  # of a model's name in a server's list
MAX_WORDS = 300  # characters of what a server says about a failure
QUOTA = re.compile(r"quota|billing|credit|balance|payment", re.IGNORECASE)  # of an account
RATE_LIMIT = re.compile(r"per.?(second|minute|hour|day)|rate.?limit|(retry|try again) in", re.IGNORECASE)  # passes
VERSION = re.compile(r"/v\d+\w*(/|$)")  # in the path of an API's base URL, as other clients take it
MAX_REPLY_BYTES = 64 << 20
KEEPALIVE_S = 4.0  # an idle connection is not used again after it: vLLM closes its end after 5 s

Result = TypeVar("Result")


class RequestError(Exception):
    """A request failed, in a way that needs no person to act.

    Args:
        kind: an identifier, counted under tutor/no_advice/<kind>.
        is_retryable: whether a second try may succeed.
        retry_wait_s: seconds to wait before it.
        words: what the server says about it.
    """

    def __init__(
        self, kind: str, is_retryable: bool = False, retry_wait_s: float = MIN_RETRY_WAIT_S, words: str = ""
    ) -> None:
        super().__init__(f"{kind}: {words}" if words else kind)
        self.words = words
        self.kind = kind
        self.is_retryable = is_retryable
        self.retry_wait_s = retry_wait_s


class SilentConnector(aiohttp.TCPConnector):
    """Keeps no connection on which something waits to be read: it would be taken for the reply to the next request."""

    async def _get(self, key: Any, traces: list[Any]) -> Any:
        while (connection := await super()._get(key, traces)) is not None:
            transport, protocol = connection.transport, connection.protocol
            assert transport is not None, "it is open"
            assert protocol is not None, "it is open"
            poll = select.poll()
            poll.register(transport.get_extra_info("socket"), select.POLLIN)
            if not poll.poll(0) and not protocol.should_close:
                return connection
            connection.close()
        return None


class Client:
    """HTTP to one server. The session is opened by the first request, on the event loop that runs it.

    Args:
        url: of the server, such as http://127.0.0.1:8000, or of its API, such as https://api.example.com/v1. A user and
            a password in it are sent as HTTP's basic authentication, and shown nowhere.
        key_file: holds the API key, if it is not in the variable TUTOR_API_KEY.

    Raises:
        ValueError: `url` is no http(s) URL, or there is a key that cannot be sent.
    """

    def __init__(self, url: str, key_file: Path | None = None) -> None:
        self.url, self.api_url = base_urls(url)
        key = key_of_environment() if key_file is None else read_key(key_file)
        user, password = credentials_of(url)
        if key and (user or password):
            raise ValueError(f"the URL of {self.url} has a password, and there is an API key: only one can be sent")
        self.key = key
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        if user or password:
            self.headers = {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
        self.secrets = tuple(filter(None, (password or user, self.headers.get("Authorization", "").split(" ")[-1])))
        self.session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        if self.session is not None:
            await self.session.close()
            self.session = None

    async def list_models(self, timeout_s: float = LIST_DEADLINE_S, may_lack: bool = False) -> dict[str, str] | None:
        """Return each served model's name with the id or folder that it was loaded from, None if no server answers.

        Args:
            timeout_s: seconds until no server answers.
            may_lack: whether a server that answers without such a list, whatever it says, lists nothing.

        Raises:
            RequestError: something answers, but not as a server of language models does.
            TutorError: the server refuses the key.
        """
        try:
            return await self._list_models(timeout_s)
        except (RequestError, TutorError) as error:
            is_there = isinstance(error, TutorError) or error.kind not in (
                "refused",
                "reset",
                "deadline",
                "certificate",
            )
            is_starting = isinstance(error, RequestError) and error.kind in STARTING
            if may_lack and is_there and not is_starting:
                return {}
            if isinstance(error, RequestError) and (error.is_retryable or error.kind == "deadline"):
                return None
            raise

    async def _list_models(self, timeout_s: float) -> dict[str, str]:
        """Return each served model's name with the id or folder that it was loaded from. Raises as `request` does."""
        body = await with_deadline(timeout_s, self.request("GET", "/v1/models"))
        try:
            models = {as_name(model["id"]): as_name(model.get("root") or model["id"]) for model in body["data"]}
        except (KeyError, TypeError, AttributeError, RecursionError):
            raise RequestError("no_list_of_models") from None
        return models

    async def post(self, path: str, body: dict[str, Any], until: float = math.inf) -> dict[str, Any]:
        """Return the JSON reply to `body`, tried at most MAX_TRIES times. Raises as `request` does.

        What a server asks to wait for is waited for, unless that were longer than `until` on the monotonic clock.
        """
        retry = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, RequestError) and error.is_retryable),
            stop=lambda attempt: (
                tenacity.stop_after_attempt(MAX_TRIES)(attempt) or time.monotonic() + retry_wait_s(attempt) > until
            ),
            wait=retry_wait_s,
            reraise=True,
        )
        return await retry(self.request, "POST", path, body)

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON reply to one request.

        Raises:
            RequestError: it failed; a second try may succeed.
            TutorError: it will fail until a person acts.
        """
        status, raw, retry_after_s = await self.fetch(method, path, body)
        return parse_reply(status, raw, retry_after_s, self.url, self.secrets)

    async def get_text(self, path: str) -> str:
        """Return the text of a page.

        Raises:
            RequestError: there is no such page.
        """
        status, raw, _ = await self.fetch("GET", path)
        if status != 200:
            raise RequestError(f"status_{status}")
        return raw.decode(errors="replace")

    async def fetch(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes, float]:
        """Return (status, body, seconds to wait before a second try) of the reply to one request.

        Raises:
            RequestError: there is no reply.
        """
        if self.session is None:
            self.session = aiohttp.ClientSession(
                headers=self.headers,
                connector=SilentConnector(keepalive_timeout=KEEPALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None),  # `with_deadline` bounds the whole call
                trust_env=False,
            )
        try:
            url = self.api_url + path.removeprefix("/v1") if path.startswith("/v1/") else self.url + path
            request = self.session.request(method, url, json=body, allow_redirects=False)
            async with request as response:
                raw = bytearray()  # bytes would be copied with every piece
                async for piece in response.content.iter_any():
                    raw += piece
                    if len(raw) > MAX_REPLY_BYTES:
                        raw.clear()  # else the traceback keeps it until the next garbage collection
                        raise RequestError("too_large")
                status, retry_after = response.status, response.headers.get("Retry-After")
        except aiohttp.ClientConnectorCertificateError:
            raise RequestError("certificate") from None
        except aiohttp.ClientConnectorError:
            raise RequestError("refused", is_retryable=True) from None
        except (aiohttp.ClientError, OSError):
            raise RequestError("reset", is_retryable=True) from None
        return status, bytes(raw), parse_retry_after(retry_after)


async def with_deadline(seconds: float, work: Awaitable[Result]) -> Result:
    """Await `work` for at most `seconds`, a total over everything that it waits for.

    Raises:
        RequestError: `deadline`.
    """
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise RequestError("deadline") from None


def is_local(url: str) -> bool:
    """Return whether `url` is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def base_urls(url: str) -> tuple[str, str]:
    """Return a server's URL, and the one that the paths of its API begin with: with /v1, unless `url` has a version.

    Neither has the user and the password of `url`.

    Raises:
        ValueError: `url` is no http(s) URL.
    """
    text = url.strip()
    if "://" not in text and re.fullmatch(r"(localhost|[^/@]*:\d+)(/.*)?", text):
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query
    except ValueError:  # the port is no number, or too large
        is_url = False
    if not is_url:
        shown = without_password(text if "://" in text or "@" not in text else f"{HIDDEN}@{text.rpartition('@')[2]}")
        raise ValueError(f"a tutor's URL looks like http://127.0.0.1:8000, not {shown.partition('?')[0]!r}")
    path = re.sub(r"/(chat/completions|completions|models)$", "", parts.path.rstrip("/"))
    api_path = path if VERSION.search(path) else f"{path}/v1"
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return address + path.removesuffix("/v1"), address + api_path


def credentials_of(url: str) -> tuple[str, str]:
    """Return the user and the password in a URL, empty where it has none, or hides them as a run's config.json does."""
    parts = urlsplit(url.strip())
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return ("", "") if HIDDEN in (user, password) else (user, password)


def key_of_environment() -> str | None:
    """Return the API key in the variable TUTOR_API_KEY, None where it is empty.

    Raises:
        ValueError: it cannot be sent.
    """
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    return check_key(key, f"the variable {API_KEY_VARIABLE}") if key else None


def read_key(path: Path) -> str:
    """Return the API key in a file.

    Raises:
        ValueError: there is none that can be sent.
    """
    try:
        key = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"the key file {path} cannot be read") from None
    return check_key(key, f"the key file {path}")


def check_key(key: str, source: str) -> str:
    """Return `key`.

    Raises:
        ValueError: it cannot be sent in a header.
    """
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"{source} holds no key: a key is one line of printable ASCII characters")
    return key


def parse_reply(status: int, raw: bytes, retry_after_s: float, url: str, secrets: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON object of a reply. Raises as `Client.request` does."""
    words = server_words(raw, secrets) if status != 200 else ""
    if status in (401, 403):
        raise TutorError(
            f"{url} refuses the API key: set {API_KEY_VARIABLE}, or name a file that holds the key (--tutor-key-file)"
            f"{words and f'. It says: {words}'}"
        )
    if status == 402 or (status == 429 and retry_after_s == MIN_RETRY_WAIT_S and is_out_of_quota(raw)):
        raise TutorError(f"{url} answers nothing more for this key: its quota is used up (status {status}: {words})")
    if status in (408, 429) or status >= 500:
        raise RequestError(f"status_{status}", is_retryable=True, retry_wait_s=retry_after_s, words=words)
    if status != 200:
        raise RequestError(f"status_{status}", words=words)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = join_stream(raw)
    if not isinstance(body, dict):
        raise RequestError("not_json")
    if body.get("error"):  # some servers write that there is none: null, false, ""
        raise RequestError("error_in_200", words=server_words(raw, secrets))
    return body


def as_name(value: object) -> str:
    """Return a model's name, or what it was loaded from: encodable, and of a length that a name can have."""
    return encodable(str(value)[:MAX_MODEL_CHARS])


def retry_wait_s(attempt: tenacity.RetryCallState) -> float:
    """Return the seconds to wait after a failed attempt."""
    error = attempt.outcome and attempt.outcome.exception()
    return error.retry_wait_s if isinstance(error, RequestError) else 0.0


def server_words(raw: bytes, secrets: Sequence[str] = ()) -> str:
    """Return what a server says of a failure: short, printable, without our secrets; nothing where it is a web page."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    for name in ("error", "message", "detail"):  # {"error": {"message": …}}, {"error": …}, {"message": …}, FastAPI's
        body = body.get(name, body) if isinstance(body, dict) else body
    text = body if isinstance(body, str) else raw[: 4 * MAX_WORDS].decode(errors="replace")
    if text.lstrip().startswith("<"):
        return ""
    for secret in secrets:
        text = text.replace(secret, "…")
    return " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * MAX_WORDS]).split())[:MAX_WORDS]


def is_out_of_quota(raw: bytes) -> bool:
    """Return whether a 429 speaks of an account in place of a rate."""
    text = raw[: 4 * MAX_WORDS].decode(errors="replace")
    return QUOTA.search(text) is not None and RATE_LIMIT.search(text) is None


def parse_retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks to wait, from MIN_RETRY_WAIT_S to MAX_RETRY_WAIT_S."""
    try:
        seconds = float(value or 0)
    except ValueError:
        seconds = seconds_until(value or "")
    return min(max(MIN_RETRY_WAIT_S, seconds), MAX_RETRY_WAIT_S)  # in this order, NaN is the minimum


def seconds_until(date: str) -> float:
    """Return the seconds until an HTTP date, 1 where it is none."""
    try:
        when = parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError):
        return 1.0
    return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
