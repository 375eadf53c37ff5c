"""The README's numbers against the files that programs wrote: the tiny tutor's card and the benchmark's rows."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
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
