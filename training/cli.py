"""How programs parse their flags and how they exit."""

import copy
import importlib.metadata
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from functools import partial
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
import tyro

from envs.base import EnvError
from envs.registry import unknown_name_message
from training.hints import called, python
from training.hub import local_run
from training.interrupts import stopped_by_closed_pipes
from training.ranges import check_ranges, describe_interval, find_interval, flag_of
from training.reserved_stdout import reserved_stdout
from training.stop_signal import end_by_signal
from training.threads import choose_threads
from tutors.base import TutorError
from tutors.config import QUERY_FIELDS
from tutors.hub import PREFIX
from tutors.terminal import log_to_terminal, print_error

Options = TypeVar("Options")
STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone)
RENAMED = {  # flags of versions 0.x and what replaced them: refused with the new name, in this version only
    "--folder": "--run-dir",
    "--nowait": "--async-tutor",
    "--asking": "--query-strategy",
    "--asking-threshold": "--query-threshold",
    "--ask-budget": "--query-budget",
    "--ask-per-step": "--query-budget-per-step",
    "--tutor-fresh": "--tutor-stochastic",
    "--strength-from": "--guidance-start",
    "--strength-to": "--guidance-end",
    "--strength-over": "--guidance-fraction",
    "--which": "--episode-selection",
    "--accelerate": "--compile-mode",
    "--who": "--policy",
    "--report": "python -m tutors report",
    "--fill": "python -m tutors fill",
}
ALIASES = {"--lr": "--learning-rate", "--total-timesteps": "--total-steps", "--timesteps": "--total-steps"}
NAMES = ("--algo", "--tutor", "--guidance", "--device", "--policy")  # flags whose values may be in capitals
HUB_FLAGS = ("--resume", "--against")  # flags whose run directory may be hub:NAME, as a positional one
OUT_OF_MEMORY = "error: out of memory; a smaller --num-envs, --buffer-size or --hidden needs less"
MULTIPLES = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def run_program(
    main: Callable[[Options], object],
    options_type: type[Options],
    description: str | None,
    defaults: Callable[[Sequence[str]], Options] | None = None,
    common: Collection[str] = (),
    examples: str = "",
    renamed: Mapping[str, str] = RENAMED,
    check: Callable[[Options, Sequence[str]], None] | None = None,
) -> None:
    """Parse the flags, run `main`, and exit with a code and no traceback.

    Exit codes: 2 for what the user can fix, 130 after Ctrl-C, 143 after SIGTERM, and where nobody reads the output any
    more, as in `train.py | head -1`. SIGTERM unwinds the stack as Ctrl-C
    does, so that a server that was started ends, too. With --json or --progress json nothing but the program's own
    lines reaches standard output.

    Args:
        defaults: makes the default options from the command line.
        common: fields that `--help` shows; `--help-all` shows every flag. Empty: `--help` shows every flag.
        examples: command lines, printed below the help.
        renamed: flags of versions 0.x, and what replaced them.
        check: raises ValueError for flags of the command line that cannot act.
    """
    with exit_codes():
        options = parse(sys.argv[1:], options_type, description, defaults, common, examples, renamed)
        is_for_programs = getattr(options, "json", False) or getattr(options, "progress", None) == "json"
        with reserved_stdout() if is_for_programs else nullcontext():
            if check is not None:
                check(options, sys.argv[1:])
            choose_threads()
            main(options)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn the errors and the signals that end a program into exit codes: see `run_program`."""
    log_to_terminal()
    signal.signal(signal.SIGTERM, end_by_signal)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stopped_by_closed_pipes():
            yield
    except EnvError as error:
        cause = error.__cause__
        if cause is not None and is_out_of_memory(cause):
            print(OUT_OF_MEMORY, file=sys.stderr)
        else:
            if cause is not None:
                traceback.print_exception(cause)
            print_error(error)
        sys.exit(2)
    except (ValueError, TutorError) as error:
        print_error(error)
        sys.exit(2)
    except OSError as error:  # a full disk, a file that may not be written
        print_error(os_error_message(error))
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(OUT_OF_MEMORY, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def parse(
    args: Sequence[str],
    options_type: type[Options],
    description: str | None = None,
    defaults: Callable[[Sequence[str]], Options] | None = None,
    common: Collection[str] = (),
    examples: str = "",
    renamed: Mapping[str, str] = RENAMED,
) -> Options:
    """Return the options that a command line gives: see `run_program`.

    Raises:
        ValueError: a flag of version 0.x was given, the message has its new name; or a number is out of its range.
        SystemExit: help was asked for, or a flag or a value is unknown.
    """
    refuse_renamed(args, options_type, renamed)
    refuse_unknown_command(args, commands_of(options_type))
    if "--version" in args:
        print(importlib.metadata.version("tutored"))
        sys.exit(0)
    args = expand(args, options_type)
    default: Any = tyro.MISSING_NONPROP if defaults is None else defaults(args)
    refuse_of_others(args, default)
    if is_dataclass(options_type) and {"-h", "--help", "--help-all"} & set(args):
        shown = None if "--help-all" in args or not common else common
        show_help(options_type, description, default, shown, examples)
    if {"-h", "--help"} & set(args):
        options_type = ranged_union(options_type)
    options = tyro.cli(options_type, prog=called(), args=args, description=description, default=default, config=STYLE)
    check_ranges(options, flag_of)
    return options


def refuse_renamed(args: Sequence[str], options_type: Any, renamed: Mapping[str, str] = RENAMED) -> None:
    """Raise ValueError if a flag of version 0.x was given that this program no longer has."""
    known = set(flags(options_type))
    for arg in args:
        flag = arg.partition("=")[0].replace("_", "-")
        if flag in renamed and flag not in known:
            raise ValueError(f"{flag} was renamed in version 1.0: use {renamed[flag]}")


def commands_of(options_type: Any) -> list[str]:
    """Return the names of the subcommands, of a union of options; of any other type none."""
    markers = (marker for member in get_args(options_type) for marker in getattr(member, "__metadata__", ()))
    return [marker.name for marker in markers if getattr(marker, "name", None)]


def refuse_unknown_command(args: Sequence[str], commands: Collection[str]) -> None:
    """Raise ValueError, with the closest name, if a command line begins with a word that is no subcommand.

    Without subcommands any word may stand there.
    """
    if commands and args and not args[0].startswith("-") and args[0] not in commands:
        raise ValueError(unknown_name_message("command", args[0], commands))


def refuse_of_others(args: Sequence[str], default: Any) -> None:
    """Raise ValueError, which names the owners, if a flag of another choice of options, a student, was given."""
    if not is_dataclass(default):
        return
    hints, known = get_type_hints(type(default), include_extras=True), set(flags(type(default)))
    for one in fields(default):
        hint = hints[one.name]
        kinds = get_args(get_args(hint)[0]) if get_origin(hint) is Annotated else get_args(hint)
        ours, chosen = set(flags(type(getattr(default, one.name)))), type(getattr(default, one.name))
        if chosen not in kinds or not all(is_dataclass(kind) for kind in kinds):
            continue
        for flag in (arg.partition("=")[0].replace("_", "-") for arg in args):
            owners = [name_of_options(kind) for kind in kinds if flag in flags(kind)]
            if flag in known and owners and flag not in ours:
                raise ValueError(f"{flag} is a flag of {' and '.join(owners)}, not of {name_of_options(chosen)}")


def name_of_options(kind: type) -> str:
    """Return what a class of options is for, as in DQNConfig."""
    return kind.__name__.removesuffix("Config").lower()


def expand(args: Sequence[str], options_type: Any) -> list[str]:
    """Return a command line as the flags' types want it, from what people type.

    Whole numbers may be written 1e6, 20k or 3M; --lr and --total-timesteps are what other programs say; a scripted
    tutor may be scripted:0.6, as in study files; the names of students and games may be in capitals. A run on the hub,
    hub:NAME, becomes the run directory of its download.
    """
    types, found = dict(typed_flags(options_type)), []
    for flag, value in flags_and_values(args):
        if flag.startswith(PREFIX) and "--run" in types:
            flag = str(local_run(flag))
        elif value is not None and value.startswith(PREFIX) and flag in HUB_FLAGS:
            value = str(local_run(value))
        name = flag.replace("_", "-")
        if name not in types and ALIASES.get(name) in types:
            flag = name = ALIASES[name]
        if value is not None and name == "--tutor" and value.startswith("scripted:") and "--tutor-accuracy" in types:
            value, _, accuracy = value.partition(":")
            found += ["--tutor-accuracy", accuracy]
        if value is not None and is_name(name, value):
            value = value.lower()
        if (name, value) == ("--device", "gpu"):
            value = "cuda"
        if value is not None and types.get(name) is int:
            value = whole_number(value)
        found += [flag] if value is None else [flag, value]
    return found


def is_name(flag: str, value: str) -> bool:
    """Return whether a value may be typed in capitals: names of ours, but no Gymnasium id."""
    return (flag in NAMES and value.replace("-", "").isalnum()) or (flag == "--env" and value.isalnum())


def flags_and_values(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each argument with the value of a flag, or alone."""
    rest = list(args)
    while rest:
        first = rest.pop(0)
        flag, sign, value = first.partition("=")
        if not first.startswith("--"):
            yield first, None
        elif sign:
            yield flag, value
        elif rest and not rest[0].startswith("--"):
            yield flag, rest.pop(0)
        else:
            yield flag, None


def whole_number(text: str) -> str:
    """Return the digits of a whole number such as 1e6, 20k or 3M; any other text as it is."""
    unit = MULTIPLES.get(text[-1:].lower(), 1)
    try:
        number = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else text


def flags(options_type: Any) -> Iterator[str]:
    """Yield the flags of an options class, or of a union of classes, with those of nested classes."""
    yield from (flag for flag, _ in typed_flags(options_type))


def typed_flags(options_type: Any) -> Iterator[tuple[str, Any]]:
    """Yield those flags with their types; of a flag that may be left out, the type of its value."""
    if get_origin(options_type) is Annotated:
        options_type = get_args(options_type)[0]
    if get_origin(options_type) in (Union, UnionType):
        for member in get_args(options_type):
            yield from typed_flags(member)
    elif is_dataclass(options_type):
        for name, hint in get_type_hints(options_type, include_extras=True).items():
            members = [one for one in get_args(hint) if one is not type(None)]
            is_optional = get_origin(hint) in (Union, UnionType) and len(members) == 1
            kind = members[0] if is_optional else hint
            yield f"--{name.replace('_', '-')}", get_args(kind)[0] if get_origin(kind) is Annotated else kind
            yield from typed_flags(hint)


def show_help(
    options_type: type, description: str | None, default: Any, shown: Collection[str] | None, examples: str
) -> None:
    """Print the help of the flags named in `shown`, or of all flags, then exit."""
    described = ranged_class(options_type) if default is tyro.MISSING_NONPROP else help_class(default, shown)
    try:
        tyro.cli(described, prog=called(), args=["--help"], description=description, config=STYLE)
    finally:
        if shown is not None:
            groups = ", ".join(parts_of(default))
            print(f"These are the flags that matter most. --help-all shows all of them, in the groups {groups}.\n")
        if examples:
            print(f"examples:\n{examples.replace('python ', f'{python()} ')}")


def help_class(default: Any, shown: Collection[str] | None) -> type:
    """Return a class for the help alone: a group for each part of the options, with the values of `default`."""
    groups = {
        title: part_class(value, [name for name in names if shown is None or name in shown])
        for title, (value, names) in parts_of(default).items()
        if shown is None or set(names) & set(shown)
    }
    members: list[Any] = [
        (title, Annotated[kind, tyro.conf.arg(name=title)], field(default_factory=kind))
        for title, kind in groups.items()
    ]
    return make_dataclass(type(default).__name__, members, frozen=True)


def parts_of(default: Any) -> dict[str, tuple[Any, list[str]]]:
    """Return the groups of flags by title, each with the options that hold them and the names of their fields.

    The fields that are no options themselves are "run"; the tutor's of how often it is asked are "query".
    """
    names = [one.name for one in fields(default)]
    found = {"run": (default, [name for name in names if not is_dataclass(getattr(default, name))])}
    hints = get_type_hints(type(default), include_extras=True)
    for name in names:
        if is_dataclass(value := getattr(default, name)):
            title = next((one.name for one in get_args(hints[name])[1:] if getattr(one, "name", None)), name)
            of_part = [one.name for one in fields(value)]
            found[title] = (value, [one for one in of_part if one not in QUERY_FIELDS])
            if query := [one for one in of_part if one in QUERY_FIELDS]:
                found["query"] = (value, query)
    return found


def part_class(default: Any, names: Collection[str]) -> type:
    """Return a class for the help alone, with those fields of `default` and their values; the others are no flags."""
    hints = with_ranges(type(default))
    namespace: dict[str, Any] = {"__annotations__": hints, "__doc__": ""}
    for one in fields(default):
        namespace[one.name] = field(default_factory=partial(getattr, default, one.name))
        if one.name not in names:
            hints[one.name] = Annotated[hints[one.name], tyro.conf.Fixed, tyro.conf.Suppress]
    return dataclass(frozen=True)(type(type(default).__name__, (type(default),), namespace))


def ranged_class(kind: type) -> type:
    """Return a class for the help alone, with the fields of `kind`, a dataclass, and their ranges."""
    hints = with_ranges(kind)
    namespace: dict[str, Any] = {"__annotations__": hints, "__doc__": kind.__doc__}
    for one in fields(kind):
        value = one.default if one.default_factory is MISSING else one.default_factory()
        if is_dataclass(value):
            described = ranged_class(type(value))
            hints[one.name] = Annotated[described, *getattr(hints[one.name], "__metadata__", ())]
            namespace[one.name] = field(default_factory=described)
        elif value is not MISSING:
            namespace[one.name] = field(default_factory=partial(copy.copy, value))
    return dataclass(frozen=True)(type(kind.__name__, (kind,), namespace))


def ranged_union(options_type: Any) -> Any:
    """Return a union of commands for the help alone, each as of `ranged_class`; any other type as it is."""
    members = [Annotated[ranged_class(kind), *markers] for kind, *markers in map(get_args, get_args(options_type))]
    return Union[*members] if members else options_type


def with_ranges(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, such that the help of each number has its range."""
    hints = get_type_hints(kind, include_extras=True)
    for name, hint in hints.items():
        if (interval := find_interval(hint)) is not None:
            text = f"({describe_interval(interval)}; default: {{}})"
            hints[name] = Annotated[hint, tyro.conf.arg(help_behavior_hint=text.format)]
    return hints


def os_error_message(error: OSError) -> str:
    """Return what could not be read or written, and why."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: PyTorch's CPU allocator has no class of error for it."""
    phrases = ("not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(phrase in str(error) for phrase in phrases)
