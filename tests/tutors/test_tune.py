"""`report --tune` with models whose best way of being asked is known, and with models that know nothing."""

import functools
import json
import math
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import envs
from tests.helpers.commands import tutors
from tests.helpers.scripted_server import Server, serving
from training.cli import parse
from training.config import Config, defaults_from_flags
from training.flag_effects import check_effects
from tutors.advice_table import AdviceTable
from tutors.advisor import Advisor
from tutors.config import TutorConfig
from tutors.llm.models import MARK
from tutors.positions import sample_positions
from tutors.prompts import make_view
from tutors.prompts.base import PromptView
from tutors.report import expert_best, p_value
from tutors.scripted import ScriptedTutor
from tutors.tune import MIN_POSITIONS, Sample, Tuning, planned_prompts, round_ends, tune

FIRST_LABELS = (ord("A"), ord("1"))
FLAGS = ("report", "--tune", "--env", "blackjack", "--view", "table", "--tutor", "org/model")
Say = Callable[[str], str | None]  # a letter for a prompt


@pytest.fixture(autouse=True)
def short_play(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutors.positions.STEPS_PER_ROUND", 15)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as one:
        one.models = ("org/model",)
        yield one


def right_letter(prompt: str) -> str | None:
    """Stick from 17 on, under whatever letter that stands in the prompt; None for rules without a position."""
    options, total = re.search(r"Options: (\w) stick, (\w) hit", prompt), re.search(r"Your sum: (\d+)", prompt)
    return None if options is None or total is None else options[1 if int(total[1]) >= 17 else 2]


def letter_by_hash(prompt: str) -> str:
    return ("12" if "1 stick" in prompt else "AB")[zlib.crc32(prompt.encode()) % 2]


def answer_with(server: Server, label: Say, text: Say, bias: float = 0.0) -> None:
    """Make the server prefer a label for each prompt, and the first one besides by `bias` nats; `text` is in tags."""

    def answer(index: int, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        if "logprob_token_ids" not in body:
            return {"index": index, "text": f"<action>{text(prompt) or '?'}</action>", "finish_reason": "stop"}
        wanted = label(prompt)
        scores = {
            token: bias * (token in FIRST_LABELS) + (wanted is not None and token == ord(wanted))
            for token in body["logprob_token_ids"]
        }
        total = math.log(sum(map(math.exp, scores.values())) / 0.9)
        logprobs = {f"token_id:{token}": score - total for token, score in scores.items()}
        return {"index": index, "text": "A", "logprobs": {"top_logprobs": [logprobs]}}

    server.answer = answer  # type: ignore[method-assign]


def tuned(server: Server, *flags: str) -> dict[str, Any]:
    done = tutors(*FLAGS, "--tutor-url", server.url, "--json", *flags)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_bias_that_calibration_removes_is_found_and_the_cheapest_cure_wins(server: Server) -> None:
    answer_with(server, right_letter, lambda prompt: "A", bias=3.0)
    found = tuned(server)
    assert found["candidates"][0]["flags"] == ["--calibrate"]
    agreement = {" ".join(one["flags"]): one["agreement"] for one in found["candidates"]}
    assert agreement["--calibrate"] > 0.8, "as often as the rule is right"
    assert agreement["--calibrate"] - agreement[""] > 0.25, "always A, as it is"
    assert agreement["--label-permutations 2"] > 0.8
    assert found["is_better_than_chance"]
    assert found["verdict"]["positions"] == 100
    assert found["verdict"]["interval"][0] > found["verdict"]["chance"]


def test_the_command_of_the_best_works_when_pasted(server: Server) -> None:
    answer_with(server, right_letter, lambda prompt: "A", bias=3.0)
    done = tutors(*FLAGS, "--tutor-url", server.url, "--min-label-mass", "0.2", "--env-kwargs", "sab=false")
    assert done.returncode == 0, done.stderr
    assert "The best of 9 ways of asking is the first" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-2])) <= 80
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[1].endswith("train.py")
    config = parse(words[2:], Config, defaults=defaults_from_flags)
    check_effects(config, words[2:])
    assert (config.env, config.env_kwargs) == ("blackjack", ("sab=false",))
    expected = TutorConfig("org/model", view="table", tutor_url=(server.url,), calibrate=True, min_label_mass=0.2)
    assert config.tutoring == expected


def test_text_without_thinking_is_found(server: Server) -> None:
    server.chat_template = "<s>[{}]<think>\n"
    closed = "</think>\n\n"

    def letter_of_text(prompt: str) -> str | None:
        total = re.search(r"Your sum: (\d+)", prompt)
        if not prompt.endswith(closed) or total is None:
            return None
        return "A" if int(total[1]) >= 17 else "B"

    answer_with(server, letter_by_hash, letter_of_text)
    found = tuned(server)
    assert found["candidates"][0]["flags"] == ["--tutor-mode", "text", "--no-thinking"]
    assert found["is_better_than_chance"]
    assert "--no-thinking" in found["command"]
    thinking = next(one for one in found["candidates"] if one["flags"] == ["--tutor-mode", "text"])
    assert thinking["answered"] == 0, "its thinking does not end"


def test_model_that_knows_nothing_is_said_to_be_no_better_than_chance(server: Server) -> None:
    answer_with(server, letter_by_hash, letter_by_hash)
    done = tutors(*FLAGS, "--tutor-url", server.url)
    assert done.returncode == 0, done.stderr
    assert "None of 9 ways of asking is better than chance" in " ".join(done.stdout.split())
    assert "train.py" not in done.stdout
    assert tuned(server)["command"] is None


def test_model_that_never_answers_is_said_to_give_no_advice(server: Server) -> None:
    answer_with(server, lambda prompt: None, lambda prompt: None)
    found = tuned(server, "--min-label-mass", "0.95")
    assert found["verdict"]["answered"] == 0
    assert not found["is_better_than_chance"]


def test_ways_that_a_server_does_not_offer_are_named(server: Server) -> None:
    server.is_vllm = False
    server.misbehave = lambda handler, body: bool(body.get("logprobs")) and not handler.reply(400, {"error": "no"})
    server.text = "<action>A</action>"
    done = tutors(*FLAGS, "--tutor-url", server.url)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "Not asked in 8 other ways" in said
    assert "does not return the log-probabilities of labels" in said


def test_no_more_queries_than_allowed(server: Server) -> None:
    answer_with(server, letter_by_hash, lambda prompt: None)
    found = tuned(server, "--max-queries", "300")
    asked = sum(len(body["prompt"]) for body in server.asked)
    content_free = sum("Your sum" not in prompt for body in server.asked for prompt in body["prompt"])
    assert 100 < asked - content_free <= 300
    assert found["verdict"]["positions"] < 100


def max_prompts_by_simulation(costs: list[int], positions: int) -> int:
    """What is asked if the costliest candidates always remain."""
    total, asked, remaining = 0, 0, sorted(costs)
    for number, stop in enumerate(round_ends(positions)):
        if number:
            remaining = remaining[len(remaining) // 2 :]
        total += sum(cost * (stop - asked) for cost in remaining)
        asked = stop
    return total + remaining[-1] * (positions - asked)


@pytest.mark.parametrize("costs", [[1], [1, 1, 7, 7, 3], [2, 4, 4], [1] * 20 + [7] * 21])
def test_planned_prompts_are_the_most_that_can_come(costs: list[int]) -> None:
    for positions in (0, 16, 77, 200):
        assert planned_prompts(costs, positions) == max_prompts_by_simulation(costs, positions)


@functools.cache
def some_positions() -> tuple[PromptView, Sample]:
    env = envs.make("blackjack", 256, seed=3)
    view = make_view(env.game)
    state = sample_positions(env, view, 200, seed=3)
    return view, Sample(state, expert_best(view, state, 1))


def play_tune(accuracy: Callable[[int], float], first_seed: int) -> Tuning:
    """18 candidates, each of another seed, that name a best action of Blackjack with some probability."""
    view, sample = some_positions()
    seeds = iter(range(first_seed, first_seed + 100))

    def connect(config: TutorConfig) -> tuple[Advisor, Sample]:
        seed = next(seeds)
        tutor = ScriptedTutor(view, accuracy(seed - first_seed), 1, seed)
        return Advisor(view, tutor, AdviceTable(2, math.inf, 400), None), sample

    return tune(TutorConfig("any"), ["table"] * 2, connect, 10**6, lambda line: None)


def test_the_luckiest_of_many_random_ways_is_not_taken_for_a_good_one() -> None:
    tunings = [play_tune(lambda number: 0.0, 1000 * trial) for trial in range(5)]
    assert sum(one.outcomes[0].report.p_value < 0.05 for one in tunings) >= 2, "by the positions that chose it"
    assert sum(one.is_better_than_chance for one in tunings) == 0
    assert {len(one.outcomes) for one in tunings} == {18}


def test_the_one_good_way_among_random_ones_is_found() -> None:
    tuning = play_tune(lambda number: 0.8 if number == 17 else 0.0, 5)
    assert tuning.is_better_than_chance
    assert tuning.verdict.agreement > 0.75
    assert [one.report.positions for one in tuning.outcomes] == [100] * 5 + [50] * 4 + [25] * 9


def test_p_value_of_a_few_coins_is_near_the_binomial_one() -> None:
    coins = torch.full((40,), 0.5)
    exact = sum(math.comb(40, hits) for hits in range(27, 41)) / 2**40
    assert p_value(27, coins) == pytest.approx(exact, rel=0.05)
    assert p_value(0, coins) == pytest.approx(1, abs=1e-6)
    assert p_value(3, torch.ones(3)) == 1, "where every action is right, nothing is shown"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tutor", "scripted"), "can be asked in one way only"),
        (("--tutor", "tiny", "--calibrate"), "leave out --tune"),
        (("--tutor", "tiny", "--picture", "a.png"), "leave out --tune"),
        (("--tutor", "tiny", "--view", "tabel"), "did you mean 'table'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_impossible_tuning_is_refused_with_exit_code_2(flags: tuple[str, ...], said: str) -> None:
    done = tutors("report", "--tune", "--env", "blackjack", *flags)
    assert done.returncode == 2
    assert said in done.stderr


def test_too_small_a_budget_is_refused_with_what_is_needed(server: Server) -> None:
    done = tutors(*FLAGS, "--tutor-url", server.url, "--max-queries", "20")
    assert done.returncode == 2
    assert f"compared in {MIN_POSITIONS} positions at least" in " ".join(done.stderr.split())
    without = tutors("report", "--env", "blackjack", "--tutor", "scripted", "--max-queries", "20")
    assert without.returncode == 2
    assert "add --tune" in without.stderr


def test_digits_that_letters_give_way_to_are_one_way_of_asking(server: Server) -> None:
    def letters_are_two_tokens(body: dict[str, Any]) -> list[int]:
        text = server.chat_template.format(MARK) if "messages" in body else body["prompt"]
        return [*map(ord, text), *([0] if text[-1] in "AB" else [])]

    answer_with(server, letter_by_hash, letter_by_hash)
    server.tokenize = letters_are_two_tokens  # type: ignore[method-assign]
    ways = [" ".join(one["flags"]) for one in tuned(server)["candidates"]]
    assert len(ways) == 5
    assert not any("digits" in way for way in ways)
