"""HTTP to the server of a language model: deadlines, bounded tries, no redirects; the only file that opens a socket."""

import asyncio
import json
import os
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import tenacity

from tutors.base import TutorError

KEY = "TUTOR_API_KEY"  # the variable that may hold a server's key
TRIES = 3
LONGEST_PAUSE = 10.0  # seconds before a second try, whatever the server asks for
LARGEST_ANSWER = 64 << 20  # bytes
IDLE = 4.0  # seconds after which a connection is not used again: vLLM closes its end after 5


class RequestError(Exception):
    """A request that came to nothing, of one kind."""

    def __init__(self, kind: str, again: bool = False, pause: float = 0.1) -> None:
        super().__init__(kind)
        self.kind, self.again, self.pause = kind, again, pause


class Client:
    """HTTP to one server: total deadlines, bounded tries, no redirects, an event loop.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        deadline: seconds that one call may take, all tries together.
        key_file: holds the key that the server wants, if it is not in the variable TUTOR_API_KEY.
        beside: another client, whose event loop this one shares, so that both can be waited for at once.

    Raises:
        ValueError: the URL is none, or the key cannot be read.
    """

    def __init__(
        self, url: str, deadline: float = 60.0, key_file: Path | None = None, beside: "Client | None" = None
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a tutor's URL looks like http://127.0.0.1:8000, not {url!r}")
        self.url, self.deadline = url.rstrip("/"), deadline
        key = os.environ.get(KEY) if key_file is None else read_key(key_file)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.runner: asyncio.Runner = asyncio.Runner() if beside is None else beside.runner
        self.owns_runner = beside is None
        self.session: aiohttp.ClientSession | None = None

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` on this client's event loop until it is done."""
        return self.runner.run(work)

    def close(self) -> None:
        """Close every connection and, if it is ours, the loop."""
        if self.session is not None:
            self.runner.run(self.session.close())
        if self.owns_runner:
            self.runner.close()

    def models(self, deadline: float = 2.0) -> dict[str, str] | None:
        """Return the names of the models served and what each really is, or None where no server answers.

        Raises:
            RequestError: something answers, but not as vLLM does.
        """
        try:
            return self.run(self.within(deadline, self.list_models()))
        except RequestError as error:
            if error.again or error.kind == "deadline":
                return None
            raise

    async def list_models(self) -> dict[str, str]:
        """Return the names of the models served, each with the id or folder that it was loaded from."""
        body = await self.once("GET", "/v1/models")
        try:
            return {str(model["id"]): str(model.get("root") or model["id"]) for model in body["data"]}
        except (KeyError, TypeError, AttributeError):
            raise RequestError("no_list_of_models") from None

    async def within(self, deadline: float, work: Awaitable[Any]) -> Any:
        """Run `work` for at most `deadline` seconds; a total, not one per read."""
        try:
            async with asyncio.timeout(deadline):
                return await work
        except TimeoutError:
            raise RequestError("deadline") from None

    async def post(self, path: str, body: dict[str, object]) -> Any:
        """Return the JSON answer to `body`, tried at most TRIES times."""
        retry = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, RequestError) and error.again),
            stop=tenacity.stop_after_attempt(TRIES),
            wait=pause_of,
            reraise=True,
        )
        return await retry(self.once, "POST", path, body)

    async def once(self, method: str, path: str, body: dict[str, object] | None = None) -> Any:
        """Return the JSON answer to one request.

        Raises:
            RequestError: it did not work.
            TutorError: it cannot work before a person mends something.
        """
        status, raw, pause = await self.fetch(method, path, body)
        return read(status, raw, pause, self.url)

    async def text(self, path: str) -> str:
        """Return what a page says.

        Raises:
            RequestError: it is not there.
        """
        status, raw, _ = await self.fetch("GET", path)
        if status != 200:
            raise RequestError(f"status_{status}")
        return raw.decode(errors="replace")

    async def fetch(self, method: str, path: str, body: dict[str, object] | None = None) -> tuple[int, bytes, float]:
        """Return (status, body, seconds to wait before a second try) of the answer to one request.

        Raises:
            RequestError: none came.
        """
        if self.session is None:
            connector = aiohttp.TCPConnector(keepalive_timeout=IDLE)
            timeout = aiohttp.ClientTimeout(total=None)  # `within` bounds the whole call
            self.session = aiohttp.ClientSession(
                headers=self.headers, connector=connector, timeout=timeout, trust_env=False
            )
        try:
            request = self.session.request(method, self.url + path, json=body, allow_redirects=False)
            async with request as response:
                raw = bytearray()  # bytes would be copied with every piece
                async for piece in response.content.iter_any():
                    raw += piece
                    if len(raw) > LARGEST_ANSWER:
                        raise RequestError("too_large")
                status, pause = response.status, response.headers.get("Retry-After")
        except aiohttp.ClientConnectorError as error:
            kind = "certificate" if isinstance(error, aiohttp.ClientConnectorCertificateError) else "refused"
            raise RequestError(kind, again=kind == "refused") from None
        except (aiohttp.ClientError, OSError):
            raise RequestError("reset", again=True) from None
        return status, bytes(raw), seconds(pause)


def read_key(path: Path) -> str:
    """Return the key that a file holds.

    Raises:
        ValueError: it holds none that can be sent.
    """
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"the key's file {path} cannot be read") from None
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"the key's file {path} holds no key")
    return key


def read(status: int, raw: bytes, pause: float, url: str) -> Any:
    """Return what a server's answer holds, or raise what it means."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if status in (401, 403):
        raise TutorError(
            f"{url} refuses the key: put the right one into the variable {KEY}, or a file (--tutor-key-file)"
        )
    if status in (429, 503):
        raise RequestError(f"status_{status}", again=True, pause=pause)
    if status >= 500:
        raise RequestError(f"status_{status}", again=True)
    if status != 200:
        raise RequestError(f"status_{status}")
    if not isinstance(body, dict):
        raise RequestError("not_json")
    if body.get("error") is not None:
        raise RequestError("error_in_200")
    return body


def pause_of(attempt: tenacity.RetryCallState) -> float:
    """Return the seconds to wait after a try that failed."""
    error = attempt.outcome and attempt.outcome.exception()
    return error.pause if isinstance(error, RequestError) else 0.0


def seconds(text: str | None) -> float:
    """Return how long Retry-After asks to wait, at least a tenth of a second and at most LONGEST_PAUSE."""
    try:
        return min(max(0.1, float(text or 0)), LONGEST_PAUSE)  # in this order, NaN is a tenth
    except ValueError:
        return 1.0  # a date: wait a little
