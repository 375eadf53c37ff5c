"""metrics.csv, a line for each logged value: what damaged it costs lines, never a run that resumes or a report."""

import csv
import logging
import math
from pathlib import Path

HEADER = ["global_step", "wall_seconds", "tag", "value"]
MAX_DIGITS = 15  # of an env step


def read_rows(path: Path) -> list[list[str]]:
    """Return the rows of a metrics.csv without its header. Damaged ones are left out with a warning.

    A process that is killed leaves half a line at the end, which is no damage.

    Raises:
        OSError: the file cannot be read.
    """
    rows, damaged = [], []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        row = parse(line)
        if is_sound(row):
            rows.append(row)
        elif line.endswith(b"\n") and (number > 1 or row != HEADER):
            damaged.append(number)
    if damaged:
        logging.getLogger(__name__).warning(
            "%s: lines left out as damaged: %d, the first is line %d", path, len(damaged), damaged[0]
        )
    return rows


def parse(line: bytes) -> list[str]:
    """Return the fields of a line; none if it is no text."""
    try:
        return next(csv.reader([line.decode()]), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def is_sound(row: list[str]) -> bool:
    """Return whether a row has the fields of HEADER: an env step, seconds, a tag and a number."""
    if len(row) != len(HEADER):
        return False
    step, seconds, tag, value = row
    try:
        float(value)
        is_time = math.isfinite(float(seconds))
    except ValueError:
        return False
    return is_time and step.isascii() and step.isdigit() and len(step) <= MAX_DIGITS and tag.isprintable() and bool(tag)
