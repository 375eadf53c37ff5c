"""A server as our child: found, started, shown, and ended with us however we end. Against a program that
plays vLLM's part; `test_serve.py` does it with the real one."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import serving
from tutors.base import TutorError
from tutors.llm import server as serving_here
from tutors.llm.client import Client
from tutors.llm.models import fill, find_model, known_models
from tutors.llm.server import serve_command, server_for

FAKE = """\
#!{python}
import os, sys, threading
sys.path.insert(0, {root!r})
from tests.helpers.scripted_server import serving
print("loading", flush=True)
if {broken}:
    sys.exit("OSError: no weights for " + sys.argv[2])
with serving(int(sys.argv[sys.argv.index("--port") + 1])) as server:
    open({pid!r}, "w").write(str(os.getpid()))
    threading.Event().wait()
"""


@pytest.fixture
def url() -> str:
    with serving() as gone:
        return gone.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    client = Client(url)
    yield client
    client.close()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch, broken=False)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, broken: bool) -> Path:
    """Put a `vllm` on the PATH that serves from a script; return where it writes its process id."""
    program, pid = folder / "vllm", folder / "pid"
    text = FAKE.format(python=sys.executable, root=str(ROOT), broken=broken, pid=str(pid))
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(serving_here, "HERE", folder)
    return pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_server_is_started_shown_and_stopped(fake: Path, client: Client, tmp_path: Path) -> None:
    said: list[str] = []
    with server_for(find_model("tiny"), client, True, 0, tmp_path / "log", said.append):
        pid = int(fake.read_text())
        assert client.models() == {"tiny": "tiny"}
        assert alive(pid)
    assert not alive(pid)
    assert any("starting vLLM" in line for line in said)
    assert "loading" in (tmp_path / "log").read_text()


def test_a_server_is_stopped_when_the_block_fails(fake: Path, client: Client, tmp_path: Path) -> None:
    def interrupted() -> None:
        with server_for(find_model("tiny"), client, True, 0, tmp_path / "log", print):
            assert alive(int(fake.read_text()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not alive(int(fake.read_text()))


def test_a_server_that_runs_already_is_used_and_left_alone(
    fake: Path, client: Client, url: str, tmp_path: Path
) -> None:
    with serving(int(url.rsplit(":", 1)[1])):
        with server_for(find_model("tiny"), client, True, 0, tmp_path / "log", print):
            pass
        assert client.models() == {"tiny": "tiny"}
    assert not fake.exists()


def test_a_server_that_does_not_come_up_says_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    install(tmp_path, monkeypatch, broken=True)
    model = find_model("deepseek")
    with (
        pytest.raises(TutorError) as error,
        server_for(model, client, True, 0, tmp_path / "log", print),
    ):
        pass
    text = str(error.value)
    assert f"OSError: no weights for {model.model}" in text
    assert "--tutor-url" in text
    assert "--tutor tiny" in text
    assert "--tutor scripted" in text
    assert len(text.splitlines()) <= 12


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_the_program_that_started_it(
    fake: Path, url: str, tmp_path: Path, how: signal.Signals
) -> None:
    program = f"""
        import dataclasses, threading
        from pathlib import Path
        import tutors.llm.server
        from training.config import run_program
        from tutors.llm.models import find_model
        from tutors.llm.client import Client
        tutors.llm.server.HERE = Path({str(tmp_path)!r})
        def main(told):
            client = Client({url!r})
            log = Path({str(tmp_path / "log")!r})
            with tutors.llm.server.server_for(find_model("tiny"), client, True, 0, log, print):
                print("ready", flush=True)
                threading.Event().wait()
        run_program(main, dataclasses.make_dataclass('Nothing', []), None)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's job in the background ignores it
    )
    with parent:
        while (line := parent.stdout.readline()).strip() != "ready":
            assert line, "it ended before the server was ready"
        pid = int(fake.read_text())
        parent.send_signal(how)
    assert wait_until(lambda: not alive(pid))
    assert parent.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]


def test_a_server_elsewhere_is_never_started(fake: Path) -> None:
    assert serve_command(find_model("tiny"), "http://127.0.0.1:8000")[0] == str(fake.parent / "vllm")
    assert serve_command(find_model("tiny"), "http://gpu.example:8000") is None


def test_a_server_of_ours_listens_to_this_machine_only(fake: Path) -> None:
    command = serve_command(find_model("llama"), "http://127.0.0.1:8123")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "8123"
    assert command[command.index("--generation-config") + 1] == "vllm"


def test_every_model_asks_its_question_and_nothing_begins_with_a_first_token() -> None:
    for model in known_models().values():
        assert fill(model.brief, "QUESTION {x}").count("QUESTION {x}") == 1
        assert not model.template.startswith(("<s>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"))


def test_an_unknown_tutor_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ValueError, match=r"deepseak.*did you mean 'deepseek'"):
        find_model("deepseak")
