"""The ranges of the numbers in options, which their types state: what the help shows, and one check for all programs.

A number's range is an `annotated_types.Interval` in its type, `Annotated[int, Interval(ge=1, le=100)]`, also within
`tuple[…, ...]`. NaN is in no range; infinity is in one that ends with it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from annotated_types import Interval

MAX_SHOWN = 40  # characters of a wrong number


def flag_of(name: str) -> str:
    """Return the flag of a field, whose group is not part of it."""
    return f"--{name.rpartition('.')[2].replace('_', '-')}"


def check_ranges(options: Any, describe: Callable[[str], str] = str, prefix: str = "") -> None:
    """Raise ValueError for a number of a dataclass, or of one in it, that is out of its range.

    Args:
        describe: makes of a field's name, such as agent.gamma, what the message calls it.
        prefix: of the names.
    """
    hints = get_type_hints(type(options), include_extras=True)
    for one in fields(options):
        value = getattr(options, one.name)
        interval = find_interval(hints[one.name])
        if is_dataclass(value):
            check_ranges(value, describe, f"{prefix}{one.name}.")
        elif interval is not None and value is not None:
            for number in numbers_in(value):
                if not is_in(number, interval):
                    found = f"{describe(prefix + one.name)} is {shorten(str(number))}"
                    raise ValueError(f"{found}; it must be {describe_interval(interval)}")


def numbers_in(value: Any) -> Iterable[float]:
    """Return the numbers of an option."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, tuple) else (value,)


def find_interval(hint: Any) -> Interval | None:
    """Return the range in a type, or None."""
    if get_origin(hint) is Annotated:
        kind, *markers = get_args(hint)
        found = next((one for one in markers if isinstance(one, Interval)), None)
        return found or find_interval(kind)
    return next((found for part in get_args(hint) if (found := find_interval(part)) is not None), None)


def is_in(number: float, interval: Interval) -> bool:
    """Return whether a number is in a range."""
    limits: Any = (interval.gt, interval.ge, interval.le, interval.lt)
    above, least, most, below = limits
    return (
        number == number  # not NaN
        and (above is None or number > above)
        and (least is None or number >= least)
        and (most is None or number <= most)
        and (below is None or number < below)
    )


def describe_interval(interval: Interval) -> str:
    """Return a range in words, as `at least 1 and at most 100`, or `between 0 and 1`."""
    if interval.ge == 0 and interval.le is not None and interval.le != math.inf:
        return f"between 0 and {show(interval.le)}"
    words = (("above", interval.gt), ("at least", interval.ge), ("at most", interval.le), ("below", interval.lt))
    return " and ".join(f"{word} {show(bound)}" for word, bound in words if bound is not None and bound != math.inf)


def show(bound: Any) -> str:
    """Return a bound as people write it."""
    return f"{bound:g}" if float(f"{bound:g}") == bound else str(bound)


def shorten(text: str) -> str:
    """Return a text, or its begin."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
