"""Fill the generated blocks of README.md and docs/ from results/: `python docs/generate.py`, or `make docs`.

A block lies between `<!-- begin NAME -->` and `<!-- end NAME -->`, and NAME is a key of BLOCKS. With `--check` nothing
is written, and the exit code is 1 if a page is not current. Only the standard library is needed.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
BLOCK = re.compile(r"(<!-- begin ([\w-]+) -->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)
Row = dict[str, str]


def main(arguments: Sequence[str]) -> int:
    """Rewrite the pages that are not current, or list them with `--check`; return the exit code."""
    stale = {path: text for path in pages() if (text := filled(path.read_text())) != path.read_text()}
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not current; run `make docs`", file=sys.stderr)
        return int(bool(stale))
    for path, text in stale.items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def pages() -> list[Path]:
    """Return README.md and every page under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """Return a page with each of its blocks made anew.

    Raises:
        KeyError: the page has a block that BLOCKS does not name.
    """
    return BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block[2]]()}\n{block[4]}", text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column of numbers and all after it are aligned right."""
    rows = list(rows)
    is_number = [
        all(re.match(r"[\d+−*<-]|$", row[at]) for row in rows) and any(row[at] for row in rows)
        for at in range(len(head))
    ]
    rule = ["---:" if number else "---" for number in is_number]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def number(value: float, form: str) -> str:
    """Return a number with a true minus sign."""
    return format(value, form).replace("-", "−")


def made_by(measured: dict[str, Any]) -> str:
    """Return the command, commit, machine and versions of a benchmark's results."""
    machine = measured["machine"]
    return (
        f"`{measured['command']}` at commit {machine['commit']}, on {machine['machine']} ({machine['cpu']}), "
        f"Python {machine['python']}, PyTorch {machine['torch']}."
    )


def benchmark(name: str) -> dict[str, Any]:
    """Return what a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table_of_csv(path: Path) -> tuple[str, list[Row]]:
    """Return (the comment in the first line of a CSV, its rows)."""
    comment, *lines = path.read_text().splitlines()
    return comment.removeprefix("# "), list(csv.DictReader(lines))


# Studies


def study_command(name: str) -> str:
    """Return how a study was made: its report's first sentence."""
    report = (RESULTS / "study" / name / "report.md").read_text()
    return report.partition("Made by ")[2].partition("\n")[0]


def study_section(name: str, title: str) -> str:
    """Return the table under one title of a study's report."""
    report = (RESULTS / "study" / name / "report.md").read_text()
    _, found, rest = report.partition(f"## {title}\n\n")
    assert found, f"the report of {name} has no section {title!r}"
    return rest.partition("\n\n")[0]


def gains(name: str, measure: str) -> str:
    """Return what each method of a study changes beside the same student alone, by the tutor's accuracy."""
    _, rows = table_of_csv(RESULTS / "study" / name / "conditions.csv")
    tutored = [row for row in rows if row["tutor"] != "none"]
    tutors = sorted({row["tutor"] for row in tutored}, key=accuracy)
    groups: dict[tuple[str, str, str], Row] = {}
    for row in tutored:
        groups.setdefault((row["env"], row["algo"], row["guidance"]), {})[row["tutor"]] = gain(row, measure)
    body = (
        [env, algo, f"`{method}`", *(cells.get(one, "") for one in tutors)]
        for (env, algo, method), cells in groups.items()
    )
    return table(["env", "student", "`--guidance`", *(f"{accuracy(one):g}" for one in tutors)], body)


def gain(row: Row, measure: str) -> str:
    """Return a condition's gain over the student alone, bold where its 95 % interval leaves out 0."""
    value, low, high = (float(row[f"{measure}_gain{end}"]) for end in ("", "_low", "_high"))
    shown = number(value, "+.2f")
    return f"**{shown}**" if low > 0 or high < 0 else shown


def accuracy(tutor: str) -> float:
    """Return the accuracy of a scripted tutor, `scripted:0.9`."""
    return float(tutor.partition(":")[2])


def alone(name: str) -> str:
    """Return what the students of a study come to without a tutor."""
    _, rows = table_of_csv(RESULTS / "study" / name / "conditions.csv")
    body = (
        [
            row["env"],
            row["algo"],
            number(float(row["auc"]), "+.2f"),
            number(float(row["final_score"]), "+.2f"),
            row["seeds"],
        ]
        for row in rows
        if row["tutor"] == "none"
    )
    return table(["env", "student", "mean of the curve", "final score", "seeds"], body)


def steps_to_threshold(name: str, tutors: Sequence[str]) -> str:
    """Return the median env steps to the threshold, alone and by method."""
    _, rows = table_of_csv(RESULTS / "study" / name / "conditions.csv")
    students = list(dict.fromkeys((row["env"], row["algo"]) for row in rows))
    body: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["tutor"] in ("none", *tutors):
            method = "alone" if row["tutor"] == "none" else f"`{row['guidance']}`"
            steps = float(row["steps_to_threshold"])
            shown = f"{steps:,.0f}" if steps < float("inf") else "not reached"
            body.setdefault((method, row["tutor"]), {})[f"{row['env']} {row['algo']}"] = (
                f"{shown} ({row['reached']} of {row['seeds']})"
            )
    head = ["`--guidance`", "accuracy", *(f"{env}, {algo}" for env, algo in students)]
    lines = (
        [
            method,
            "" if tutor == "none" else f"{accuracy(tutor):g}",
            *(cells.get(f"{env} {algo}", "") for env, algo in students),
        ]
        for (method, tutor), cells in body.items()
    )
    return table(head, lines)


def trusted() -> str:
    """Return what tutors are worth by default, by their accuracy: times sooner, and the gain of the mean score."""
    rows = [row for study in ("trust", "lake") for row in table_of_csv(RESULTS / "study" / study / "conditions.csv")[1]]
    names = {"connect4": "Connect Four", "snake": "Snake", "blackjack": "Blackjack", "gym:FrozenLake-v1": "FrozenLake"}
    tutored = [row for row in rows if row["tutor"] != "none"]
    tutors = sorted({row["tutor"] for row in tutored}, key=accuracy)
    cells: dict[tuple[str, str], Row] = {}
    for row in tutored:
        faster = f"{float(row['speedup']):.1f}" if row["speedup"] else "–"
        cells.setdefault((row["env"], row["algo"]), {})[row["tutor"]] = f"{faster} / {gain(row, 'auc')}"
    body = (
        [f"{names[env]}, {algo.upper()}", *(found.get(one, "") for one in tutors)]
        for (env, algo), found in cells.items()
    )
    return table(["accuracy of the tutor", *(f"{accuracy(one):g}" for one in tutors)], body)


def trusted_on_average() -> str:
    """Return how many times sooner students learn by default, the geometric mean over all, by the tutor's accuracy."""
    _, rows = table_of_csv(RESULTS / "study" / "trust" / "conditions.csv")
    speedups: dict[float, list[float]] = {}
    for row in rows:
        if row["tutor"] != "none" and row["speedup"]:
            speedups.setdefault(accuracy(row["tutor"]), []).append(float(row["speedup"]))
    found = [f"**{geometric_mean(speedups[one]):.1f}** ({one:g})" for one in sorted(speedups, reverse=True)]
    count = max(map(len, speedups.values()))
    begin = f"Times sooner than alone, in env steps, over {count} students, by the accuracy of the tutor:"
    return f"{begin} {', '.join(found)}."


def headline() -> str:
    """Return the overview: a good and a bad tutor, by method."""
    _, rows = table_of_csv(RESULTS / "study" / "guidance" / "conditions.csv")
    shown = ("override", "distill", "demonstrate", "advantage", "shape")
    columns = [("connect4", "ppo"), ("connect4", "dqn"), ("snake", "ppo"), ("snake", "dqn")]
    cells = {
        (row["env"], row["algo"], row["guidance"], row["tutor"]): gain(row, "auc")
        for row in rows
        if row["tutor"] != "none"
    }
    body = [
        [
            f"`{method}`",
            *(
                " / ".join(cells[env, algo, method, tutor] for tutor in ("scripted:0.9", "scripted:0"))
                if (env, algo, method, "scripted:0.9") in cells
                else ""
                for env, algo in columns
            ),
        ]
        for method in shown
    ]
    names = {"connect4": "Connect Four", "snake": "Snake"}
    return table(["`--guidance`", *(f"{names[env]}, {algo.upper()}" for env, algo in columns)], body)


# Curves, reuse, the tiny tutor


def curves() -> str:
    """Return what students come to without a tutor."""
    body = []
    for path in sorted((RESULTS / "study" / "alone" / "curves").glob("*.csv")):
        _, rows = table_of_csv(path)
        last = rows[-1]
        algo, _, env = path.stem.partition("_")
        form = ".4f" if env == "blackjack" else ".2f" if env == "connect4" else ".1f"
        mean, low, high = (number(float(last[name]), form) for name in ("mean", "low", "high"))
        seeds = sum(name.startswith("seed") for name in last)
        link = f"[CSV](../../results/study/alone/curves/{path.name})"
        steps = f"{int(last['global_step']):,}"
        body.append([algo, env.replace("gym-", "gym:"), steps, mean, f"{low} to {high}", str(seeds), link])
    return table(["student", "env", "env steps", "mean return", "95 % interval", "seeds", "curve and command"], body)


def curves_of(algo: str) -> str:
    """Return what one student comes to without a tutor, and the command of each curve."""
    body = []
    for path in sorted((RESULTS / "study" / "alone" / "curves").glob(f"{algo}_*.csv")):
        comment, rows = table_of_csv(path)
        command, _, commit = re.sub(r" --folder \S+", "", comment).partition(" # commit ")
        env, last = path.stem.partition("_")[2], rows[-1]
        form = ".4f" if env == "blackjack" else ".2f" if env == "connect4" else ".1f"
        mean, steps = number(float(last["mean"]), form), f"{int(last['global_step']):,}"
        body.append([env.replace("gym-", "gym:"), steps, mean, f"`{command}`", commit.partition(",")[0]])
    return table(["env", "env steps", "mean return at the end", "command", "commit"], body)


def reuse() -> str:
    """Return how many questions reuse saves."""
    forms = {"blackjack": ".4f", "snake": ".1f", "connect4": ".2f"}
    _, rows = table_of_csv(RESULTS / "study" / "reuse" / "conditions.csv")
    body = []
    for env, algo, variant in dict.fromkeys((row["env"], row["algo"], row["variant"]) for row in rows):
        student = [row for row in rows if (row["env"], row["algo"]) == (env, algo)]
        (alone_row,) = (row for row in student if row["tutor"] == "none")
        tutored = {(row["variant"], row["reuse"]): row for row in student if row["tutor"] != "none"}
        budgets = [tutored[variant, budget] for budget in ("0", "3", "inf")]
        asked = [f"{int(row['asked']):,}" for row in budgets]
        share = 100 * int(budgets[2]["asked"]) / int(tutored["", "0"]["asked"])
        asked[2] += f" ({share:.1f} %)" if share < 1 else f" ({share:.0f} %)"
        name = f"{env}, {algo}" + (f", `--{variant}`" if variant else "")
        scores = [number(float(row["final_score"]), forms[env]) for row in (budgets[2], alone_row)]
        body.append([name, f"{int(budgets[0]['consulted']):,}", *asked, *scores])
    head = ["env, student", "consulted", "asked, reuse 0", "reuse 3", "reuse inf", "score, tutored", "alone"]
    return table(head, body)


def tiny() -> str:
    """Return what the tiny tutor knows, by its card."""
    card = json.loads((ROOT / "tutors" / "tiny" / "weights" / "card.json").read_text())
    body = []
    for view, known in card["views"].items():
        scores = [
            f"{number(known[key], form)} {text}"
            for key, form, text in (
                ("random", "+.3f", "against `random`"),
                ("tactical", "+.3f", "against `tactical`"),
                ("regret", ".6f", "per hand below the optimum"),
                ("fruits", ".1f", "fruits"),
            )
            if key in known
        ]
        shares = (f"{100 * known[name]:.1f} %" for name in ("agreement", "chance"))
        body.append([view, f"{known['positions']:,}", *shares, ", ".join(scores)])
    made = f"{card['parameters']:,} parameters, trained in {card['seconds'] / 60:.0f} minutes on 2 CPU cores."
    head = ["prompt view", "positions trained on", "names a best action", "random does", "plays alone"]
    return f"{table(head, body)}\n\n{made}"


# Benchmarks


def speed_of_games() -> str:
    """Return random play, million env steps a second."""
    measured = benchmark("games")
    copies = sorted({row["copies"] for row in measured["rows"]})
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in measured["rows"]:
        shown = rate(row["steps_per_second"], 1e6)
        cells.setdefault((row["game"], ours(row["program"])), {})[row["copies"]] = shown
    body = (
        [env, program, *(found[one] for one in copies)]
        for (env, program), found in sorted(cells.items(), key=lambda cell: cell[0][0])
    )
    return table(["env", "program", *(f"{one:,} copies" for one in copies)], body) + "\n\n" + made_by(measured)


def rate(per_second: float | None, unit: float) -> str:
    """Return a rate in a table; a dash where it could not be measured."""
    if per_second is None:
        return "–"
    return f"{per_second / unit:,.0f}" if per_second >= 100 * unit else f"{per_second / unit:.3g}"


def ours(program: str) -> str:
    """Return a program's name in a table."""
    return f"ours, {program}" if program.startswith(("eager", "compile", "graph")) else program


def speed_of_training() -> str:
    """Return training, thousand env steps a second."""
    measured = benchmark("training")
    parts = ("act", "env", "store", "play", "learn")
    body = (
        [
            row["game"],
            row["algo"],
            ours(row["program"]),
            rate(row["steps_per_second"], 1e3),
            *(f"{100 * row['shares'][part]:.0f} %" if part in row.get("shares", {}) else "" for part in parts),
        ]
        for row in measured["rows"]
    )
    return table(["env", "student", "program", "thousand steps/s", *parts], body) + "\n\n" + made_by(measured)


def speed_of_tutor() -> str:
    """Return questions a second."""
    measured = benchmark("tutor")
    body = (
        [
            f"{row['batch']:,}",
            row["program"],
            rate(row["questions_per_second"], 1),
            f"{100 * median(row['shares']):.1f} %" if row["shares"] else "",
            f"{median(row['tokens']):.0f}" if row["tokens"] else "",
            f"{100 * median(row['cached']):.0f} %" if row["cached"] else "",
        ]
        for row in measured["rows"]
    )
    head = [
        "questions at once",
        "client",
        "questions/s",
        "CPU time on our side",
        "tokens a question",
        "of these cached",
    ]
    return table(head, body) + "\n\n" + made_by(measured)


def speed_of_table() -> str:
    """Return look-ups of the advice table, million a second, half of them hits."""
    measured = benchmark("table")
    programs = list(dict.fromkeys(program for row in measured["rows"] for program in row["per_second"]))
    body = (
        [f"{row['queries']:,}", str(row["load"]), *(rate(row["per_second"].get(one), 1e6) for one in programs)]
        for row in measured["rows"]
        if row["hits"] == 0.5
    )
    head = ["queries at once", "load", *(ours(program) for program in programs)]
    return table(head, body) + "\n\n" + made_by(measured)


def speed_of_loop() -> str:
    """Return what a tutor costs the training loop."""
    measured = benchmark("loop")
    body = (
        [
            row["game"],
            row["way"].replace("nowait", "asynchronous"),
            str(row["num_envs"]),
            rate(row["steps_per_second"], 1e3),
            f"{100 * row['share']:.0f} %",
            f"{row['asked']:,}" if "asked" in row else "",
            ", ".join(f"{100 * rate:.1f}" for rate in row.get("hit_rates", ())),
        ]
        for row in measured["rows"]
    )
    head = ["env", "tutor", "env copies", "thousand steps/s", "of untutored", "asked", "hit rate by quarter, %"]
    return table(head, body) + "\n\n" + made_by(measured)


def thresholds() -> str:
    """Return the seconds to fixed scores, of CPU and of the clock."""
    measured = benchmark("thresholds")
    body = []
    for row in measured["rows"]:
        best = max((run["best"] for run in row["runs"] if run["best"] is not None), default=None)
        used, seconds = (rate(row[name], 1) for name in ("cpu_seconds", "seconds"))
        if any(run["was_capped"] for run in row["runs"]) and row["seconds"] is None:
            used = f"> {max(run['cpu_seconds'] for run in row['runs']):,.0f}"
            seconds = f"not in {row['cap_seconds']:,.0f}"
        scores = [number(row["score"], "g"), "–" if best is None else number(best, ".3g")]
        env = row["cell"].partition("-")[0]
        body.append([env, row["algo"], row["program"], *scores, used, seconds, str(len(row["runs"]))])
    head = ["env", "student", "program", "score", "best", "seconds of CPU", "seconds", "seeds"]
    return table(head, body) + "\n\n" + made_by(measured)


def smollm2() -> str:
    """Return what the best ways of asking SmolLM2 came to, and how they were found."""
    measured = benchmark("smollm2")
    body = []
    for row in measured["tuning"]:
        low, high = (f"{100 * row[end]:.0f}" for end in ("low", "high"))
        shares = [f"{100 * row[name]:.0f} %" for name in ("agreement", "chance", "constant")]
        shares[0] += f" ({low} to {high})"
        verdict = "yes" if row["is_better_than_chance"] else "no"
        body.append([row["env"], str(row["ways"]), f"`{row['best']}`", *shares, f"{row['p_value']:.2f}", verdict])
    head = ["env", "ways", "the best", "agrees", "random does", "one letter always", "p", "better than chance"]
    return f"{table(head, body)}\n\n`{measured['command']}`, {measured['machine']}."


BLOCKS: dict[str, Callable[[], str]] = {
    "trust-headline": trusted,
    "trust-on-average": trusted_on_average,
    "trust-worth": partial(study_section, "trust", "What the tutor was worth"),
    "headline": headline,
    "guidance-gains": partial(gains, "guidance", "auc"),
    "guidance-final": partial(gains, "guidance", "final"),
    "guidance-alone": partial(alone, "guidance"),
    "guidance-steps": partial(steps_to_threshold, "guidance", ("scripted:0.9", "scripted:1")),
    "review-gains": partial(gains, "modulation", "auc"),
    "review-final": partial(gains, "modulation", "final"),
    "curves": curves,
    "reuse": reuse,
    "tiny": tiny,
    "smollm2": smollm2,
    "speed-of-games": speed_of_games,
    "speed-of-training": speed_of_training,
    "speed-of-tutor": speed_of_tutor,
    "speed-of-table": speed_of_table,
    "speed-of-loop": speed_of_loop,
    "thresholds": thresholds,
}
BLOCKS |= {f"curves-{algo}": partial(curves_of, algo) for algo in ("a2c", "dqn", "ppo")}
BLOCKS |= {
    f"{study}-command": partial(study_command, study)
    for study in ("laptop", "causes", "brief", "fresh", "guidance", "modulation", "trust", "lake")
}
BLOCKS |= {
    f"{study}-totals": partial(study_section, study, "Over all envs and students")
    for study in ("laptop", "causes", "brief", "guidance", "modulation", "trust")
}
BLOCKS |= {f"{study}-claims": partial(study_section, study, "The paper's claims") for study in ("laptop", "fresh")}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
