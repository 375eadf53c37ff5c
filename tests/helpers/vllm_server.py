"""One real vLLM server of the tiny model for all tests that ask one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripted_server import serving
from tutors.llm.models import find_model
from tutors.llm.server import running_server


def require_vllm() -> Path:
    """Return the Python that vLLM is installed for, or skip a test where there is none."""
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no .venv-vllm: make setup")
    return python


@contextmanager
def tiny_server(folder: Path) -> Iterator[str]:
    """Serve the tiny tutor's weights, which also go by the name of deepseek, and yield the URL."""
    require_vllm()
    with serving() as free:
        url = free.url
    tiny = find_model("tiny")
    model = replace(tiny, serve=("--served-model-name", "tiny", "deepseek", *tiny.serve))
    with running_server(model, url, 0, folder / "log", print):
        yield url
