"""Random values of every flag of every program: each is taken, or refused with 2 and a line that names the flag."""

import contextlib
import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple, get_args, get_type_hints

import benchmarks.__main__
import evaluate
import experiments.__main__
import tutors.__main__
from training.cli import parse, typed_flags
from training.config import Config, defaults_from_flags
from training.flag_effects import check_effects
from tutors.tiny.recipe import Recipe

NUMBERS = [
    *("0", "-0", "1", "-1", "2", "0.5", "-0.5", "1.5", "3.0", "1e6", "20k", "3M", "1_000", "+1", " 1", "1 ", "０", "²"),
    *("nan", "inf", "-inf", "NaN", "Infinity", "1e30", "-1e30", "1e38", "1e40", "1e308", "1e309", "1e-45", "5e-324"),
    *("2147483647", "2147483648", "4294967296", "9007199254740993", "9223372036854775807", "9223372036854775808"),
    *("-9223372036854775808", "18446744073709551616", "9" * 400, "-" + "9" * 400, "9" * 5000, "0x10", "1e", "--", ""),
]
TEXTS = [
    "",
    " ",
    "\x00",
    "\ud800",
    "é",
    "-",
    "a:b",
    ":",
    "os:path",
    "no/such",
    "None",
    "true",
    "[]",
    "{}",
    "%s",
    "a" * 9000,
]


POSITIONAL = ("run", "runs", "config", "play")  # and a switch in a group


class Program(NamedTuple):
    """A program, or one of its commands."""

    name: str
    options: Any  # the dataclass of its options
    parse: Callable[[Sequence[str]], Any]  # as the program does, with the checks that need nothing but the options
    positional: tuple[str, ...] = ()


def parse_train(args: Sequence[str]) -> Config:
    options = parse(args, Config, defaults=defaults_from_flags)
    check_effects(options, args)
    return options


def parse_command(union: Any, name: str, args: Sequence[str]) -> Any:
    return parse([name, *args], union)


def commands(union: Any) -> Iterator[tuple[str, Any]]:
    """The commands of a program, by name."""
    for member in get_args(union):
        kind, marker = get_args(member)
        yield marker.name, kind


def programs() -> list[Program]:
    """All programs with options."""
    found = [
        Program("train.py", Config, parse_train),
        Program("evaluate.py", evaluate.Evaluation, partial(parse, options_type=evaluate.Evaluation), ("run",)),
    ]
    found.append(Program("tutors.tiny", Recipe, partial(parse, options_type=Recipe)))
    for module in (experiments.__main__, tutors.__main__, benchmarks.__main__):
        package = module.__name__.partition(".")[0]
        for name, kind in commands(module.Command):
            if not fields(kind):  # the store's commands have a parser of their own
                continue
            names = {one.name for one in fields(kind) if one.name != "run" or one.default is MISSING}
            needs = ("file",) if names & {"config", "runs", "run"} else ()
            found.append(Program(f"{package} {name}", kind, partial(parse_command, module.Command, name), needs))
    return found


def number_fields(kind: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass, and of those in it, that hold numbers, with their types."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        parts = set(flatten(hint))
        if any(map(is_dataclass, parts)):
            for part in filter(is_dataclass, parts):
                yield from number_fields(part)
        elif parts & {int, float}:
            yield name, hint


def flatten(hint: Any) -> Iterator[Any]:
    """All classes in a type."""
    if isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from flatten(part)


def numeric(kind: Any) -> bool:
    return bool(set(flatten(kind)) & {int, float})


def random_lines(program: Program, draw: random.Random, count: int) -> Iterator[tuple[str, list[str]]]:
    """So many flags of a program in turn, with the command lines that give each a random value."""
    known = {
        flag: kind
        for flag, kind in typed_flags(program.options)
        if flag.removeprefix("--") not in POSITIONAL and kind is not bool and not any(map(is_dataclass, flatten(kind)))
    }
    flags = sorted(known)
    for number in range(count):
        flag = flags[number % len(flags)]
        is_number = numeric(known[flag])
        value = draw.choice(NUMBERS) if draw.random() < (0.9 if is_number else 0.3) else draw.choice(TEXTS)
        if is_number and draw.random() < 0.3:
            value = repr(draw.choice((1, -1)) * 10 ** draw.uniform(-50, 50))
        tutor = ["--tutor", "scripted"] if program.name == "train.py" and flag != "--tutor" else []
        yield flag, [*program.positional, *tutor, f"{flag}={value}"]


def verdict(program: Program, flag: str, args: list[str]) -> str | None:
    """What is wrong with how a program takes a command line, or None."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            options = program.parse(args)
    except ValueError as error:
        named = flag.removeprefix("--").replace("-", "_")
        text = str(error)
        value = repr(args[-1].partition("=")[2][:20])[1:-1]
        if flag in text or named in text or (value and value in text):
            return None
        return f"{args}: {error} does not name {flag}"
    except SystemExit as error:
        if error.code != 2:
            return f"{args}: exit {error.code}"
        return None if flag in printed.getvalue() else f"{args}: {printed.getvalue()} does not name {flag}"
    except BaseException as error:  # what would be a traceback
        return f"{args}: {type(error).__name__}: {error}"
    return outside(options, flag)


def outside(options: Any, flag: str) -> str | None:
    """What of the options that were taken is in no range, by the definition of a range, or None."""
    for one in fields(options):
        value = getattr(options, one.name)
        if is_dataclass(value):
            found = outside(value, flag)
            if found is not None:
                return found
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and (number != number or abs(number) > 1e38) and one.name != "reuse":
                return f"{flag}: {one.name} is {number}"
            if type(number) is int and not -(10**18) < number < 10**18:
                return f"{flag}: {one.name} is {number}"
    return None


def fuzz(seed: int, count: int) -> list[str]:
    """What is wrong with the flags of all programs, of so many command lines each."""
    draw = random.Random(seed)
    return [
        fault
        for program in programs()
        for flag, args in random_lines(program, draw, count)
        if (fault := verdict(program, flag, args)) is not None
    ]
