"""The terminal: what is printed and logged is text, whatever it holds; no markup, no escape sequences."""

import logging
import sys
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from tutors.display import printable_lines

MAX_RECORD_CHARS = 20_000  # of a log: tracebacks are long


class TerminalConsole(Console):
    """A console for text from anywhere. Only a `Text` may have a style."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)


def log_to_terminal() -> None:
    """Show warnings on stderr."""
    handler = RichHandler(console=TerminalConsole(stderr=True), show_path=False)
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class PrintableFormatter(logging.Formatter):
    """Shows a record's message, and its traceback if it has one."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record), MAX_RECORD_CHARS)


def print_error(error: object) -> None:
    """Print what went wrong."""
    print(f"error: {printable_lines(error)}", file=sys.stderr)
