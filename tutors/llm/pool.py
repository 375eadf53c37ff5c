"""The servers that answer for one tutor: they share an event loop, and the prompts."""

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tutors.base import TutorError
from tutors.llm.api import Failure, Output, Request
from tutors.llm.breaker import MAX_FAILURES
from tutors.llm.client import Client, RequestError, is_local
from tutors.llm.endpoint import Endpoint, EndpointState, ModelIdentity, fingerprint
from tutors.llm.models import Model
from tutors.llm.server_metrics import metrics_since, read_metrics, sum_metrics

Result = TypeVar("Result")


class EndpointPool:
    """One or several servers of one model, asked as if they were one.

    Args:
        urls: of the servers.
        deadline_s: seconds that one call of `generate` may take, all tries together.
        key_file: holds the servers' API key, if it is not in the variable TUTOR_API_KEY.

    Raises:
        ValueError: a URL is no http(s) URL, or the key file holds no key.
    """

    def __init__(self, urls: Sequence[str], deadline_s: float = 60.0, key_file: Path | None = None) -> None:
        self.clients = [Client(url, key_file) for url in urls]
        self.deadline_s = deadline_s
        self.runner = asyncio.Runner()
        self.endpoints: list[Endpoint] = []  # one a client, once connected
        self.model = Model("", "", "")  # that is asked, once connected: with its template
        self.identity = ModelIdentity("", uses_chat=False)
        self.content_free_outputs: list[Output] = []  # of the first server that was connected
        self.last_metrics: list[dict[str, float]] = [{} for _ in urls]  # each server's at the last `metrics`

    @property
    def is_local(self) -> bool:
        """Whether a server runs on this machine."""
        return any(is_local(client.url) for client in self.clients)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` on the pool's event loop until it is done."""
        return self.runner.run(work)

    def connect(
        self,
        model: Model,
        request: Request,
        content_free_prompts: Sequence[str],
        stats: Counter[str],
        optional: bool = False,
    ) -> None:
        """Connect every server for one kind of request; the first that answers decides which model is meant.

        Args:
            model: the model that must be served, and its template.
            request: the kind of request.
            content_free_prompts: see `Endpoint`.
            stats: see `Endpoint`.
            optional: go on without the servers that do not answer; they are connected once they do.

        Raises:
            TutorError: a server does not answer, serves another model, or cannot answer such a request.
        """
        self.endpoints = [Endpoint(client, model, request, content_free_prompts, stats) for client in self.clients]
        self.content_free_outputs = []
        identity: ModelIdentity | None = None
        for endpoint in self.endpoints:
            try:
                self.run(endpoint.connect(identity, self.deadline_s))
            except RequestError as error:
                if not optional:
                    raise TutorError(f"{endpoint.client.url} does not answer a first prompt: {error}") from None
                endpoint.breaker.failures = MAX_FAILURES  # open, and probed at the next prompt
            else:
                assert endpoint.served is not None
                identity = identity or endpoint.served.identity
                model = endpoint.model
        if identity is None and not model.template:
            raise TutorError(f"{model.name} has no entry in models.toml: its server must answer at the start")
        self.model = model
        self.identity = identity or ModelIdentity(fingerprint(model.model), uses_chat=False)
        self._keep_content_free_outputs()

    def generate(
        self,
        prompts: Sequence[str],
        request: Request,
        group_size: int = 1,
        timeout_s: float | None = None,
        outputs: dict[int, Output] | None = None,
    ) -> list[Output]:
        """Return one output a prompt, in their order. A server's failures are outputs.

        Args:
            prompts: texts, before a template is applied.
            request: what is asked for.
            group_size: so many prompts in a row go to one server, always the same one, whose prefix cache knows them.
            timeout_s: seconds until what has not come is a failure; `deadline_s` if not given.
            outputs: where each output is put under its prompt's index as soon as it is there. What it holds when this
                call ends with an exception was paid for.

        Raises:
            TutorError: it will not work until a person acts.
        """
        outputs = {} if outputs is None else outputs
        until = time.monotonic() + (self.deadline_s if timeout_s is None else timeout_s)
        for endpoint in self.endpoints:
            if endpoint.should_probe:
                self.run(endpoint.probe(self.identity, self.deadline_s))
        self._keep_content_free_outputs()
        if not any(endpoint.is_available for endpoint in self.endpoints):
            is_wrong = any(endpoint.state is EndpointState.WRONG_MODEL for endpoint in self.endpoints)
            outputs.update(dict.fromkeys(range(len(prompts)), Failure("other_model" if is_wrong else "breaker")))
        else:
            self.run(self._generate(prompts, request, group_size, until - time.monotonic(), outputs))
        return [outputs[index] for index in range(len(prompts))]

    def metrics(self) -> dict[str, float]:
        """Return vLLM's own numbers since the last call, summed over the servers that have any."""
        ready = [number for number, endpoint in enumerate(self.endpoints) if endpoint.is_available]
        parts = []
        for number, now in zip(ready, self.run(self._read_metrics(ready)), strict=True):
            parts.append(metrics_since(self.last_metrics[number], now))
            self.last_metrics[number] |= now
        return sum_metrics(parts)

    def cancel(self) -> None:
        """Make a call that another thread waits for end at once, with an exception."""
        loop = self.runner.get_loop()
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])

    def close(self) -> None:
        """Close every connection, and the event loop."""
        self.run(self._close())
        self.runner.close()

    async def _generate(
        self, prompts: Sequence[str], request: Request, group_size: int, timeout_s: float, outputs: dict[int, Output]
    ) -> None:
        """Put one output a prompt into `outputs`; at least one server is available."""
        if len(self.endpoints) == 1:
            await self.endpoints[0].generate(dict(enumerate(prompts)), request, timeout_s, outputs)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for endpoint, indices in self._route(prompts, group_size):
                    part = {index: prompts[index] for index in indices}
                    group.create_task(endpoint.generate(part, request, timeout_s, outputs))
        except* TutorError as errors:
            raise errors.exceptions[0] from None

    def _route(self, prompts: Sequence[str], group_size: int) -> list[tuple[Endpoint, list[int]]]:
        """Return each available server with the indices of its prompts, by a hash of each group's first prompt."""
        count = len(self.endpoints)
        available = [endpoint.is_available for endpoint in self.endpoints]
        indices: list[list[int]] = [[] for _ in self.endpoints]
        for start in range(0, len(prompts), group_size):
            first = zlib.crc32(prompts[start].encode(errors="replace"))
            chosen = next(number % count for number in range(first, first + count) if available[number % count])
            indices[chosen] += range(start, min(start + group_size, len(prompts)))
        return [(endpoint, rows) for endpoint, rows in zip(self.endpoints, indices, strict=True) if rows]

    def _keep_content_free_outputs(self) -> None:
        """Keep those of the first server that is connected."""
        if not self.content_free_outputs:
            served = (endpoint.served for endpoint in self.endpoints if endpoint.served is not None)
            self.content_free_outputs = next((model.content_free_outputs for model in served), [])

    async def _read_metrics(self, numbers: Sequence[int]) -> list[dict[str, float]]:
        return list(await asyncio.gather(*(read_metrics(self.clients[number]) for number in numbers)))

    async def _close(self) -> None:
        for client in self.clients:
            await client.close()
