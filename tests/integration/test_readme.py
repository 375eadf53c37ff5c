"""The README's numbers against the files that programs wrote: the tiny tutor's card, curves, the benchmarks' rows."""

import csv
import json
from statistics import median

from tests.helpers.paths import ROOT

README = (ROOT / "README.md").read_text()


def row_with(*cells: str) -> list[str]:
    """The cells of the README's table row that begins with `cells`."""
    found = [
        row
        for line in README.splitlines()
        if line.startswith("|")
        and (row := [cell.strip() for cell in line.strip("|").split("|")])[: len(cells)] == [*cells]
    ]
    assert len(found) == 1, f"the README has {len(found)} rows that begin with {cells}"
    return found[0]


def test_what_the_tiny_tutor_knows_is_what_its_card_says() -> None:
    card = json.loads((ROOT / "tutors" / "tiny" / "weights" / "card.json").read_text())
    for view, told in card["views"].items():
        _, positions, agreement, chance, alone = row_with(view)
        assert positions == f"{told['positions']:,}"
        assert agreement == f"{100 * told['agreement']:.1f} %"
        assert chance == f"{100 * told['chance']:.1f} %"
        for name, digits in (("random", "+.3f"), ("tactical", "+.3f"), ("regret", ".6f"), ("fruits", ".1f")):
            assert name not in told or format(told[name], digits).replace("-", "−") in alone


def test_how_fast_the_games_are_is_what_the_benchmark_wrote() -> None:
    rows = json.loads((ROOT / "results" / "games.json").read_text())["rows"]
    copies = sorted({row["copies"] for row in rows})
    for row in rows:
        program = row["program"]
        name = f"ours, {program}" if program.startswith(("eager", "compile")) else program
        cell = row_with(row["game"], name)[2 + copies.index(row["copies"])]
        assert cell == ("–" if row["steps_per_second"] is None else f"{row['steps_per_second'] / 1e6:.3g}")


def test_what_students_learn_is_what_the_curves_end_with() -> None:
    paths = sorted((ROOT / "results" / "curves").glob("*.csv"))
    assert paths
    for path in paths:
        command, *lines = path.read_text().splitlines()
        last = list(csv.DictReader(lines))[-1]
        algo, game = path.stem.split("_")
        assert f"--algo {algo} " in command
        _, _, steps, mean, interval, seeds = row_with(algo, game.replace("gym-", "gym:"))
        assert steps == f"{int(last['global_step']):,}"
        digits = ".4f" if game == "blackjack" else ".2f" if game == "connect4" else ".1f"
        shown = [format(float(last[name]), digits).replace("-", "−") for name in ("mean", "low", "high")]
        assert [mean, interval] == [shown[0], f"{shown[1]} to {shown[2]}"]
        assert int(seeds) == sum(name.startswith("seed") for name in last)


def test_how_fast_students_learn_is_what_the_benchmark_wrote() -> None:
    for row in json.loads((ROOT / "results" / "training.json").read_text())["rows"]:
        program = row["program"]
        name = program if program == "stable-baselines3" else f"ours, {program}"
        _, _, _, rate, *shares = row_with(row["game"], row["algo"], name)
        assert rate == ("–" if row["steps_per_second"] is None else f"{row['steps_per_second'] / 1e3:.3g}")
        for part, cell in zip(("act", "env", "store", "play", "learn"), shares, strict=True):
            assert cell == (f"{100 * row['shares'][part]:.0f} %" if part in row.get("shares", {}) else "")


def test_how_fast_a_tutor_answers_is_what_the_benchmark_wrote() -> None:
    for row in json.loads((ROOT / "results" / "tutor.json").read_text())["rows"]:
        _, _, rate, share, tokens, cached = row_with(f"{row['batch']:,}", row["program"])
        assert rate == f"{row['questions_per_second']:.0f}"
        if row["shares"]:
            assert share == f"{100 * median(row['shares']):.1f} %"
            assert tokens == f"{median(row['tokens']):.0f}"
            assert cached == f"{100 * median(row['cached']):.0f} %"


def test_how_fast_the_table_is_is_what_the_benchmark_wrote() -> None:
    for row in json.loads((ROOT / "results" / "table.json").read_text())["rows"]:
        if row["hits"] == 0.5:
            cells = row_with(f"{row['queries']:,}", str(row["load"]))[2:]
            programs = ("eager", "compile", "searchsorted", "fbgemm", "dict")
            assert cells == [f"{row['per_second'][name] / 1e6:.3g}" for name in programs]


def test_what_a_tutor_costs_the_loop_is_what_the_benchmark_wrote() -> None:
    for row in json.loads((ROOT / "results" / "loop.json").read_text())["rows"]:
        _, _, games, rate, share, asked, hits = row_with(row["game"], row["way"])
        assert games == str(row["num_envs"])
        assert rate == f"{row['steps_per_second'] / 1e3:.3g}"
        assert share == f"{100 * row['share']:.0f} %"
        assert asked == (f"{row['asked']:,}" if "asked" in row else "")
        assert hits == ", ".join(f"{100 * rate:.1f}" for rate in row.get("hit_rates", ()))


def test_what_reuse_saves_is_what_the_sweep_wrote() -> None:
    views = {"dqn_blackjack": "blackjack, table", "ppo_snake_local": "snake, local", "ppo_connect4": "connect4, board"}
    assert {path.stem for path in (ROOT / "results" / "reuse").glob("*.csv")} == set(views)
    for name, view in views.items():
        _, *lines = (ROOT / "results" / "reuse" / f"{name}.csv").read_text().splitlines()
        rows = {(row["reuse"], row["symmetry"]): row for row in csv.DictReader(lines)}
        for symmetry in sorted({told for _, told in rows}, reverse=True):
            cells = row_with(view if symmetry == "yes" else "the same, `--no-symmetry`")[2:]
            budgets = [rows[budget, symmetry] for budget in ("0", "3", "inf")]
            asked = [f"{int(row['asked']):,}" for row in budgets]
            whole = int(rows["0", symmetry]["asked"] if symmetry == "yes" else rows["0", "yes"]["asked"])
            share = 100 * int(budgets[2]["asked"]) / whole
            asked[2] += f" ({share:.1f} %)" if share < 1 else f" ({share:.0f} %)"
            score = ".4f" if view.startswith("blackjack") else ".1f" if view.startswith("snake") else ".2f"
            alone = format(float(rows["no tutor", "yes"]["score"]), score) if symmetry == "yes" else ""
            shown = [format(float(budgets[2]["score"]), score), alone]
            wanted = f"{int(budgets[0]['consulted']):,}"
            assert cells == [wanted, *asked, *(number.replace("-", "−") for number in shown)]


def test_whether_tutors_help_is_what_the_study_reports() -> None:
    report = (ROOT / "results" / "study" / "laptop" / "report.md").read_text()
    for title in ("What these data say of the paper's claims", "Over all games and students"):
        _, _, rest = report.partition(f"## {title}\n\n")
        table, *_ = rest.split("\n\n")
        assert len(table.splitlines()) > 5
        assert table in README
    command = report.partition("Made by `")[2].partition("`")[0]
    assert command in README


def test_what_guidance_does_is_what_the_studies_say() -> None:
    """A cell is the gain in area beside a student alone; bold where its interval leaves out 0."""
    for name in ("guidance", "modulation"):
        path = ROOT / "results" / "study" / name / "cells.csv"
        command, *lines = path.read_text().splitlines()
        assert f"experiments/configs/{path.parent.name}.toml" in command
        rows = [row for row in csv.DictReader(lines) if row["tutor"] != "none"]
        assert rows
        accuracies = sorted({row["tutor"] for row in rows})
        for row in rows:
            gain, low, high = (float(row[name]) for name in ("area_gain", "area_gain_low", "area_gain_high"))
            shown = format(gain, "+.2f").replace("-", "−")
            cells = row_with(row["game"], row["student"], f"`{row['guidance']}`")
            assert cells[3 + accuracies.index(row["tutor"])] == (f"**{shown}**" if low > 0 or high < 0 else shown)
