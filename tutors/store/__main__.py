"""`python -m tutors store`: inspect advice stores, export, import and merge them."""

if __name__ == "__main__":
    from training.interrupts import exit_on_interrupt  # before PyTorch is imported

    exit_on_interrupt()

import sys
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import sqlalchemy as sql
import tyro
from rich.table import Table

from training.cli import exit_codes, refuse_unknown_command
from training.hints import called
from tutors.display import MAX_NAME_CHARS, markdown_text, printable
from tutors.hub import PREFIX, download, upload
from tutors.recorded import describe
from tutors.store.database import answers, identities, open_database, open_existing
from tutors.store.json_lines import Added, from_lines, read_all, to_lines, write_all
from tutors.store.soundness import COSTS, MAX_COST, MAX_TIME, sound_identity
from tutors.terminal import TerminalConsole

QUESTION = dict.fromkeys(("game", "game_version", "view", "view_version", "rules", "labels"))
LINES = "advice.jsonl"  # the file of a dataset on the hub
Store = Annotated[str, tyro.conf.Positional]  # a file, or the URL of a database


def info(store: Store, json: bool = False) -> None:
    """Show which tutors' answers a store has, how many, and their cost.

    Args:
        store: A file, or the URL of a database.
        json: Print one line of JSON.
    """
    with open_existing(store) as engine:
        found = inventory(engine)
    if json:
        print(dumps(found))
        return
    columns = ("game\nview", "tutor", "answers", "prompt tokens\nanswer tokens", "seconds", "first\nlast")
    table = Table(*columns, show_lines=True)
    for one in found:
        identity = one["identity"]
        table.add_row(
            "\n".join(printable(identity.get(name)) for name in ("game", "view")) if identity else "",
            printable(describe(identity, QUESTION), 4 * MAX_NAME_CHARS) if identity else "a damaged identity",
            f"{one['answers']:,}",
            f"{one['prompt_tokens']:,.0f}\n{one['answer_tokens']:,.0f}",
            f"{one['seconds']:,.1f}",
            "\n".join((one[name] or "–")[:16].replace("T", " ") for name in ("first", "last")),
        )
    TerminalConsole().print(table)


def export(store: Store) -> None:
    """Print a whole store as lines of JSON.

    Args:
        store: A file, or the URL of a database.
    """
    with open_existing(store) as engine:
        for line in to_lines(read_all(engine)):
            print(line)


def push(store: Store, repo: str, private: bool = False) -> None:
    """Upload a whole store to the Hugging Face Hub, as a dataset of lines of JSON with a card.

    Args:
        store: A file, or the URL of a database.
        repo: Dataset, NAME or ORGANISATION/NAME; made if there is none.
        private: A dataset that only its owner sees, if it is made now.
    """
    with TemporaryDirectory() as folder, open_existing(store) as engine:
        with (Path(folder) / LINES).open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in to_lines(read_all(engine)))
        (Path(folder) / "README.md").write_text(dataset_card(inventory(engine), repo), encoding="utf-8")
        print(upload(Path(folder), repo, "dataset", private))


def dataset_card(found: list[dict[str, Any]], repo: str) -> str:
    """Return the page that the hub shows: whose answers, about what, how many."""
    rows = [
        f"| {' | '.join(markdown_text(one['identity'].get(name)) for name in ('game', 'view', 'tutor'))} "
        f"| {one['answers']:,} | {one['prompt_tokens']:,.0f} | {one['answer_tokens']:,.0f} |"
        for one in found
    ]
    head = "| game | view | tutor | answers | prompt tokens | answer tokens |\n|---|---|---|---:|---:|---:|"
    return f"""---
tags: [tutored, reinforcement-learning]
configs: [{{config_name: default, data_files: {LINES}}}]
---

# Advice of tutors

{chr(10).join([head, *rows])}

To use these answers: `python -m tutors store import mine.sqlite {PREFIX}{repo}`, then `--advice-store mine.sqlite`.
"""


def import_lines(store: Store, file: Annotated[Path, tyro.conf.Positional]) -> None:
    """Import what export printed into a store, all of it or nothing; existing answers stay.

    Args:
        store: A file, created if it does not exist, or the URL of a database.
        file: The lines; or hub:NAME, a dataset that push uploaded.
    """
    if str(file).startswith(PREFIX):
        file = download(str(file), "dataset", [LINES]) / LINES
    try:
        with file.open(encoding="utf-8", errors="surrogateescape") as lines, open_database(store) as engine:
            show_added(write_all(engine, from_lines(lines)))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None


def merge(store: Store, other: Store) -> None:
    """Copy all answers of another store into one; existing answers stay.

    Args:
        store: Where they go: a file, created if it does not exist, or the URL of a database.
        other: Where they come from.
    """
    with open_existing(other) as source, open_database(store) as engine:
        show_added(write_all(engine, read_all(source)))


def vacuum(store: Store) -> None:
    """Free the disk space that a database no longer needs.

    Args:
        store: A file, or the URL of a database.
    """
    with open_existing(store) as engine, engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("VACUUM")


def inventory(engine: sql.Engine) -> list[dict[str, Any]]:
    """Return each identity with the number of its answers, their cost, and the times of the first and the last.

    A damaged identity is empty. Costs and times that cannot be believed are left out.
    """
    function = sql.func
    at = sql.case((answers.c.at.between(0, MAX_TIME), answers.c.at))
    costs = {name: sql.case((answers.c[name].between(0, MAX_COST), answers.c[name]), else_=0.0) for name in COSTS}
    query = (
        sql.select(
            identities.c.hash,
            identities.c.text,
            function.count(answers.c.key).label("answers"),
            *(function.coalesce(function.sum(cost), 0.0).label(name) for name, cost in costs.items()),
            function.min(at).label("first"),
            function.max(at).label("last"),
        )
        .outerjoin_from(identities, answers)
        .group_by(identities.c.id, identities.c.hash, identities.c.text)
        .order_by(identities.c.id)
    )
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(query).mappings()]
    for one in found:
        one["identity"] = sound_identity(one.pop("hash"), one.pop("text")) or {}
        for name in ("first", "last"):
            one[name] = None if one[name] is None else datetime.fromtimestamp(one[name], UTC).isoformat()
    return found


def show_added(added: Added) -> None:
    """Print the numbers of new and existing answers."""
    print(f"{added.new:,} answers are new, {added.known:,} were there")


COMMANDS: dict[str, Any] = {
    "info": info,
    "export": export,
    "push": push,
    "import": import_lines,
    "merge": merge,
    "vacuum": vacuum,
}


def main() -> None:
    """Run a command; exit with 2 for an error of the user, without a traceback."""
    with exit_codes():
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        refuse_unknown_command(sys.argv[1:], COMMANDS)
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog=f"{called().removesuffix('.store')} store",
            description=__doc__,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
        )


if __name__ == "__main__":
    main()
