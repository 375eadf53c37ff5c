"""Find the server that a tutor answers from, or start one here as a child process.

A child costs some 30 to 90 seconds until it answers, on two cores without a GPU. It ends with this
program, however that ends: on leaving the `with` block, and by the kernel if we are killed.
"""

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tutors.base import TutorError
from tutors.llm.client import Client, RequestError
from tutors.llm.models import Model

HERE = Path(__file__).parents[2]
STARTS_WITHIN = 900.0  # seconds that a child may take: it may have to fetch and load the weights
STOPS_WITHIN = 15.0
PR_SET_PDEATHSIG = 1  # from linux/prctl.h

Say = Callable[[str], None]  # shows one line of progress


@contextmanager
def server_for(model: Model, client: Client, start: bool, wait: float, log: Path, say: Say) -> Iterator[None]:
    """See to it that a server answers at `client.url` while the block runs.

    Args:
        start: whether a server may be started here if none answers.
        wait: seconds to wait for a server that is not ours to start.
        log: where a child's output goes.

    Raises:
        TutorError: no server can be had.
    """
    if listed(client) is not None:
        yield
        return
    command = serve_command(model, client.url) if start else None
    if command is None:
        wait_for(client, wait, say, lambda: None)
        if listed(client) is None:
            raise TutorError(f"no server answers at {client.url}\n{ways_out(model, client.url)}")
        yield
        return
    say(f"starting vLLM for {model.name}; its output goes to {log}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | surroundings(),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        wait_for(client, STARTS_WITHIN, say, child.poll)
        if listed(client) is None:
            raise TutorError(f"vLLM did not start: {last_error(log)}\n{ways_out(model, client.url)}")
        yield
    finally:
        stop(child)


def listed(client: Client) -> dict[str, str] | None:
    """Return the models that the server lists, or None where there is no server."""
    try:
        return client.models()
    except RequestError as error:
        if error.kind == "certificate":
            raise TutorError(f"{client.url} shows a certificate that this machine does not trust") from None
        raise TutorError(f"{client.url} is not a server of language models: /v1/models says {error.kind}") from None


def wait_for(client: Client, wait: float, say: Say, ended: Callable[[], int | None]) -> None:
    """Wait until the server answers, `wait` seconds are over, or what we wait for has ended."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < wait and ended() is None:
        if listed(client) is not None:
            return
        say(f"waiting for {client.url}: {passed:.0f} s")
        time.sleep(min(1.0, wait))


def serve_command(model: Model, url: str) -> list[str] | None:
    """Return how a server is started here, or None where vLLM is not installed or `url` is elsewhere."""
    python = HERE / ".venv-vllm" / "bin" / "python"
    if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    if python.exists():
        program = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model"]
    elif found := shutil.which("vllm"):
        program = [found, "serve"]
    else:
        return None
    return [*program, *serve_flags(model, url)]


def serve_flags(model: Model, url: str) -> list[str]:
    """Return what follows `vllm serve`: only this machine may ask, and the model's own sampling is off."""
    parts = urlsplit(url)
    port = str(parts.port or (443 if parts.scheme == "https" else 80))
    here = ["--host", "127.0.0.1", "--port", port, "--generation-config", "vllm"]
    return [model.model, "--served-model-name", model.name, *here, *model.serve]


def surroundings() -> dict[str, str]:
    """Return the variables that a child gets on top of ours."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
    }


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent does. Linux; elsewhere `stop` must do."""
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a child and all that it started: politely, then not."""
    try:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(STOPS_WITHIN)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    finally:  # also when a second Ctrl-C cuts the waiting short
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def last_error(log: Path) -> str:
    """Return the line of a child's output that says most about its end."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1][:300]


def ways_out(model: Model, url: str) -> str:
    """Say what a person can do when a tutor cannot be had."""
    serve = shlex.join(["vllm", "serve", *serve_flags(model, url)])
    tiny = "  --tutor tiny: a small language model of this repository, which `make setup` can serve on any machine\n"
    return (
        f"ways out:\n  serve it, and say where with --tutor-url if it is not here:\n    {serve}\n"
        f"{tiny if model.name != 'tiny' else ''}"
        "  --tutor scripted: a search in place of a language model"
    )
