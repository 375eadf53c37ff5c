"""Some seconds of soak.py: what the tutor counts is what the server says it must, and nothing leaks."""

from pathlib import Path

import pytest

from tests.integration.soak import soak

pytestmark = pytest.mark.process


def test_a_server_that_fails_in_every_way_costs_advice_and_nothing_else(tmp_path: Path) -> None:
    account = soak(25, tmp_path)
    assert account.requests["ill"] > 20
    assert account.faults() == []
