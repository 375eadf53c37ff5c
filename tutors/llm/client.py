"""HTTP to a server of language models: deadlines, bounded retries, no redirects; the only file that opens a socket."""

import asyncio
import ipaddress
import json
import os
from collections.abc import Awaitable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import tenacity

from tutors.base import TutorError

API_KEY_VARIABLE = "TUTOR_API_KEY"
MAX_TRIES = 3  # of one request
LIST_DEADLINE_S = 2.0  # for the list of served models
MIN_RETRY_WAIT_S = 0.1
MAX_RETRY_WAIT_S = 10.0  # whatever Retry-After asks for
MAX_REPLY_BYTES = 64 << 20
KEEPALIVE_S = 4.0  # an idle connection is not used again after it: vLLM closes its end after 5 s

Result = TypeVar("Result")


class RequestError(Exception):
    """A request failed, in a way that needs no person to act.

    Args:
        kind: an identifier, counted under tutor/no_advice/<kind>.
        is_retryable: whether a second try may succeed.
        retry_wait_s: seconds to wait before it.
    """

    def __init__(self, kind: str, is_retryable: bool = False, retry_wait_s: float = MIN_RETRY_WAIT_S) -> None:
        super().__init__(kind)
        self.kind = kind
        self.is_retryable = is_retryable
        self.retry_wait_s = retry_wait_s


class Client:
    """HTTP to one server. The session is opened by the first request, on the event loop that runs it.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        key_file: holds the API key, if it is not in the variable TUTOR_API_KEY.

    Raises:
        ValueError: `url` is no http(s) URL, or the key file holds no key.
    """

    def __init__(self, url: str, key_file: Path | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a tutor's URL looks like http://127.0.0.1:8000, not {url!r}")
        self.url = url.rstrip("/")
        key = os.environ.get(API_KEY_VARIABLE) if key_file is None else read_key(key_file)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
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

    async def list_models(self) -> dict[str, str] | None:
        """Return each served model's name with the id or folder that it was loaded from, None if no server answers.

        Raises:
            RequestError: something answers, but not as a server of language models does.
            TutorError: the server refuses the key.
        """
        try:
            body = await with_deadline(LIST_DEADLINE_S, self.request("GET", "/v1/models"))
        except RequestError as error:
            if error.is_retryable or error.kind == "deadline":
                return None
            raise
        try:
            return {str(model["id"]): str(model.get("root") or model["id"]) for model in body["data"]}
        except (KeyError, TypeError, AttributeError):
            raise RequestError("no_list_of_models") from None

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON reply to `body`, tried at most MAX_TRIES times. Raises as `request` does."""
        retry = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, RequestError) and error.is_retryable),
            stop=tenacity.stop_after_attempt(MAX_TRIES),
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
        return parse_reply(status, raw, retry_after_s, self.url)

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
                connector=aiohttp.TCPConnector(keepalive_timeout=KEEPALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None),  # `with_deadline` bounds the whole call
                trust_env=False,
            )
        try:
            request = self.session.request(method, self.url + path, json=body, allow_redirects=False)
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


def read_key(path: Path) -> str:
    """Return the API key in a file.

    Raises:
        ValueError: there is none that can be sent.
    """
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"the key file {path} cannot be read") from None
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"the key file {path} holds no key")
    return key


def parse_reply(status: int, raw: bytes, retry_after_s: float, url: str) -> dict[str, Any]:
    """Return the JSON object of a reply. Raises as `Client.request` does."""
    if status in (401, 403):
        raise TutorError(
            f"{url} refuses the API key: set {API_KEY_VARIABLE}, or name a file that holds the key (--tutor-key-file)"
        )
    if status in (429, 503):
        raise RequestError(f"status_{status}", is_retryable=True, retry_wait_s=retry_after_s)
    if status >= 500:
        raise RequestError(f"status_{status}", is_retryable=True)
    if status != 200:
        raise RequestError(f"status_{status}")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise RequestError("not_json")
    if body.get("error") is not None:
        raise RequestError("error_in_200")
    return body


def retry_wait_s(attempt: tenacity.RetryCallState) -> float:
    """Return the seconds to wait after a failed attempt."""
    error = attempt.outcome and attempt.outcome.exception()
    return error.retry_wait_s if isinstance(error, RequestError) else 0.0


def parse_retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks to wait, from MIN_RETRY_WAIT_S to MAX_RETRY_WAIT_S."""
    try:
        return min(max(MIN_RETRY_WAIT_S, float(value or 0)), MAX_RETRY_WAIT_S)  # in this order, NaN is the minimum
    except ValueError:
        return 1.0  # a date
