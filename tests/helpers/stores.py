"""Advice stores to compare with, and the command line of `python -m tutors.store`."""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import envs
from envs.base import Spec
from tests.helpers.paths import ROOT
from tutors.base import Advice
from tutors.prompts import make_view
from tutors.store import AdviceStore, identity_of
from tutors.store.__main__ import main

SPEC = Spec("connect4", 1, (2, 6, 7), 7, num_reset_uniforms=2, num_step_uniforms=1, time_limit=None)
IDENTITY = identity_of(SPEC, make_view(envs.make_game("connect4")), {"tutor": "somebody"})
KEYS = torch.tensor([[5, 0], [5, 9], [-(2**63), 2**63 - 1], [2**63 - 1, -(2**63)], [-1, -1], [0, 0]])


def random_advice(rows: int, seed: int = 0, num_actions: int = 7) -> Advice:
    """Numbers that no short decimal can write, the smallest float32 among them."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(rows, num_actions, generator=generator).softmax(1)
    probs[0, 0], probs[0, 1] = 2.0**-149, 1 - 2.0**-24
    return Advice(probs, torch.ones(rows, dtype=torch.bool), torch.rand(rows, generator=generator))


def words(rows: int) -> list[str]:
    """Texts for so many rows."""
    return [f"position {row}" for row in range(rows)]


def keys_of(*numbers: int) -> torch.Tensor:
    """A key for each number."""
    return torch.tensor([[number, -number] for number in numbers])


def put(store: AdviceStore, *numbers: int) -> Advice:
    """Put answers under these numbers, and return them."""
    advice = random_advice(len(numbers), seed=numbers[0])
    store.put(keys_of(*numbers), advice, [f"number {number}" for number in numbers])
    return advice


def assert_same(advice: Advice, expected: Advice) -> None:
    """Equal to the bit, types included."""
    for ours, theirs in zip(advice, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.equal(theirs)


def soon(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether a condition holds within some seconds."""
    over = time.monotonic() + seconds
    while not holds() and time.monotonic() < over:
        time.sleep(0.01)
    return holds()


def child(program: str, *arguments: str) -> subprocess.Popen:
    """A program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str | Path) -> Done:
    """Call a command in this very process, for a new one takes seconds to start."""
    streams = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
    streams[1].reconfigure(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        patch.setattr(sys, "argv", ["store", *map(str, arguments)])
        patch.setattr(signal, "signal", lambda *_: None)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        for stream in streams:
            stream.flush()
    return Done(code, *(stream.buffer.getvalue().decode() for stream in streams))
