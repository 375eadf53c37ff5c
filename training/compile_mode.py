"""How the training loop runs where nobody says: decided before it begins and never by a clock.

What a compiled loop computes differs from an eager one in the last bits. So `auto` depends on the student, the env, the
length and the device of a run alone, equal commands are equal runs, and a run that is resumed goes on as it began.
"""

import os
import shutil
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

from agents.compile import Mode
from training.config import Config
from tutors.llm.weights import cache_dir

CACHE = "TORCHINDUCTOR_CACHE_DIR"  # PyTorch's variable for the folder that keeps what was compiled
# Env steps from which on a run is over sooner if it is compiled, even the first one on a machine: the CPU seconds that
# its start then takes longer, by what an env step then takes less. Measured with plain defaults and one thread on
# x86_64 (AMD EPYC), PyTorch 2.13; what is not here was not measured and stays eager.
BREAK_EVEN: dict[tuple[str, str], int] = {
    ("ppo", "blackjack"): 2_000_000,  # 66 s by 35 us; 160,000 where it was compiled before, in 5 s
    ("ppo", "connect4"): 4_500_000,  # 90 s by 20 us; 350,000
}


def resolve_compile_mode(config: Config) -> Mode:
    """Return how a run on its device is to be run: as configured; for auto, compiled if it is long enough for that.

    On a CUDA device auto is never graph, which copies the arguments of each call: no GPU has been measured.

    Raises:
        ValueError: the configured mode is not possible here.
    """
    lacking, mode = missing_for_compiling(), config.compile_mode
    if mode == "graph" and not config.device.startswith("cuda"):
        raise ValueError(f"--compile-mode graph requires a CUDA device; on {config.device} use compile")
    if mode in ("compile", "graph") and lacking is not None:
        raise ValueError(f"--compile-mode {mode} requires {lacking}, which was not found; use eager")
    if mode != "auto":
        return mode
    break_even = BREAK_EVEN.get((config.algo, config.env))
    is_long = break_even is not None and config.total_steps >= break_even
    return "compile" if is_long and lacking is None else "eager"


def missing_for_compiling() -> str | None:
    """Return what PyTorch's compiler requires and this machine lacks, or None."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler, {compiler}"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python's headers, python3-dev"
    return None


def keep_compiled() -> None:
    """Keep what is compiled for later starts, unless CACHE names a folder: PyTorch's own is in /tmp."""
    folder = cache_dir() / "inductor"
    with suppress(OSError):  # it cannot be made: then PyTorch's own
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ.setdefault(CACHE, str(folder))
