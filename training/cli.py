"""How programs read their flags and how they end."""

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import tyro
from rich.console import Console
from rich.logging import RichHandler

from tutors.base import TutorError

Told = TypeVar("Told")


def run_program(
    main: Callable[[Told], object],
    told: type[Told],
    description: str | None,
    defaults: Callable[[Sequence[str]], Told] | None = None,
) -> None:
    """Read the flags, run `main`, and end as a program should: 2 for what the user must mend, no traceback.

    `defaults` makes the default values from the flags themselves.

    SIGTERM unwinds like Ctrl-C, so that a server we started ends with us.
    """
    handler = RichHandler(console=Console(stderr=True), show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands)
    try:
        default = {} if defaults is None else {"default": defaults(sys.argv[1:])}
        main(tyro.cli(told, description=description, config=config, **default))
    except (ValueError, TutorError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print("error: out of memory; a smaller --num-envs, --buffer-size or --hidden needs less", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, CUDA or PyTorch's allocator on the CPU, which has no class for it, found no memory."""
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)
