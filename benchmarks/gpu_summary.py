"""What each part of `python -m benchmarks gpu` comes to, in a line for each measurement, beside what is aimed at."""

import re
from statistics import median
from typing import NamedTuple

from benchmarks.common import Row

PPO_AIMS = {"small": "10 M", "defaults": "3 M"}  # env steps a second of a captured PPO on an H200
LOOKUPS_AIM = "4.8 G"  # a second in 16 M entries: HierarchicalKV's on an H100, scaled to an H200's memory
LOOKUPS_AIM_ENTRIES = 1 << 24
LOOP_AIM = "90%"  # of the untutored speed, with a warm table
SHARES_OF = ("act", "env", "store", "play", "learn")


class Headline(NamedTuple):
    """One measurement, as it is read."""

    what: str
    measured: str
    aim: str = ""


def headlines(row: Row) -> list[Headline]:
    """Return the measurements of a part; the reason of one that was skipped or failed comes first."""
    reason = [] if row["reason"] is None else [Headline(row["reason"], "")]
    if row["part"] == "tests":
        return [*reason, Headline("tests marked gpu", tests_of(row["last_line"]))]
    measured = [one for one in (row["results"] or {}).get("rows", []) if one.get("error") is None]
    kind = row["part"].partition(",")[0]
    return reason + [line for one in measured for line in KINDS[kind](one)]


def tests_of(last_line: str) -> str:
    """Return the counts in pytest's last line."""
    return ", ".join(re.findall(r"\d+ (?:passed|failed|skipped|errors?)", last_line)) or "no result"


def of_games(row: Row) -> list[Headline]:
    """Return a line a game, program and number of copies."""
    if row["steps_per_second"] is None:
        return []
    return [Headline(f"{row['game']}, {row['program']}, {row['copies']:,} copies", short(row["steps_per_second"]))]


def of_training(row: Row) -> list[Headline]:
    """Return a line with the rate, and where the time goes."""
    if row["steps_per_second"] is None:
        return []
    shares = ", ".join(f"{name} {row['shares'][name]:.0%}" for name in SHARES_OF if name in row["shares"])
    what = f"{row['algo']}, {row['game']}, {row['program']}, {row['preset']}, {row['num_envs']:,} copies ({shares})"
    has_aim = row["algo"] == "ppo" and row["program"] == "graph"
    return [Headline(what, short(row["steps_per_second"]), PPO_AIMS[row["preset"]] if has_aim else "")]


def of_table(row: Row) -> list[Headline]:
    """Return a line a program, and one for inserts."""
    where = f"{row['entries']:,} entries, load {row['load']}"
    lines = [
        Headline(
            f"look-ups, {where}, {program}",
            short(rate),
            LOOKUPS_AIM if program == "graph" and row["entries"] == LOOKUPS_AIM_ENTRIES else "",
        )
        for program, rate in row["per_second"].items()
    ]
    if "inserts_per_second" in row:
        lines.append(Headline(f"inserts, {where}, eager", short(row["inserts_per_second"])))
    return lines


def of_loop(row: Row) -> list[Headline]:
    """Return a line with the rate and its share of the untutored one."""
    if row["steps_per_second"] is None:
        return []
    if row["way"] == "untutored":
        return [Headline(f"{row['game']}, untutored", short(row["steps_per_second"]))]
    return [Headline(f"{row['game']}, {row['way']}: {short(row['steps_per_second'])}", f"{row['share']:.0%}", LOOP_AIM)]


def of_tutor(row: Row) -> list[Headline]:
    """Return a line with questions a second and the tokens of each."""
    if row.get("questions_per_second") is None:
        return []
    tokens = f", {median(row['tokens']):.0f} tokens each" if row["tokens"] else ""
    what = f"{row['program']}, {row['batch']:,} questions at once{tokens}"
    return [Headline(what, short(row["questions_per_second"]))]


KINDS = {"games": of_games, "training": of_training, "table": of_table, "loop": of_loop, "tutor": of_tutor}


def short(rate: float) -> str:
    """Return a rate a second in three digits."""
    for size, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if rate >= size:
            return f"{rate / size:.3g}{name}"
    return f"{rate:.3g}"
