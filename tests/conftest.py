"""One thread for all tests, one vLLM server for all that ask one, and one worker for the tests of a file.

Threads on a busy machine wait for each other, and the tests' tensors are small.
"""

import os
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported, here and in the programs that tests start


@pytest.fixture(scope="session")
def tiny_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a real vLLM server, started once a session."""
    from tests.helpers.vllm_server import tiny_server

    with tiny_server(tmp_path_factory.mktemp("vllm")) as url:
        yield url


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one worker, and all that ask a real server: with xdist's `--dist loadgroup`."""
    for item in items:
        group = "serve" if item.get_closest_marker("serve") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say that kinds of tests were left out, if some were."""
    if config.option.markexpr:
        terminalreporter.write_line(f"ran only tests that are {config.option.markexpr!r}; `make test` runs all")
