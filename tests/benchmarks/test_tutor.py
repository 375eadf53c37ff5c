"""The timing of a tutor, against a scripted server: what is asked, what is counted, and who is not here."""

from pathlib import Path

import pytest

import envs
from benchmarks.tutor import OPENAI, Tutor, positions, take
from tests.helpers.scripted_server import serving
from tutors.prompts import make_view


def test_every_question_is_a_new_one_and_the_rows_say_what_it_cost() -> None:
    with serving() as server:
        benchmark = Tutor(url=server.url, batches=(1, 8), repeats=2, seconds=0.1, peers=Path("nowhere"))
        *_, rows = benchmark.measure()
        prompts = [prompt for body in server.asked for prompt in body["prompt"] if "Options" in prompt]
    assert len(set(prompts)) == len(prompts) > 20
    assert [(row["batch"], row["program"]) for row in rows] == [(1, "ours"), (1, OPENAI), (8, "ours"), (8, OPENAI)]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert len(ours["runs"]) == 2
        assert min(ours["runs"]) <= ours["questions_per_second"] <= max(ours["runs"])
        assert ours["tokens"] == [100, 100], "what the scripted server says of every prompt"
        assert all(0 < share < 1.5 for share in ours["shares"])
        assert theirs["error"] == "there is no nowhere"
        assert theirs["questions_per_second"] is None
    assert benchmark.table(rows).row_count == 4


def test_a_game_of_which_all_positions_were_asked_about_is_said() -> None:
    fresh = positions("blackjack", make_view(envs.make_game("blackjack")))
    take(fresh, 200)
    with pytest.raises(ValueError, match="random play of blackjack comes to 280 positions and no more"):
        take(fresh, 81)
