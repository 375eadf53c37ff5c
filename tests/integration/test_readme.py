"""The README's numbers against the files that programs wrote: the tiny tutor's card, the benchmarks' rows."""

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
