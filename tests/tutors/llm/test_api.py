"""Random replies and random model texts against what must hold of every answer: FAULTS.md 16 to 20.

Replies are JSON whose keys, places and values are nearly what a server sends; then whole bodies, through the tutor.
"""

import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from tests.helpers.scripted_server import Handler, serving
from tests.tutors.llm.test_tutor import MODEL, VIEW, positions, silences
from tutors.llm.api import NOTHING, TOP, Chat, Completions, Labels, Text, Trouble, add_logs
from tutors.llm.client import Client
from tutors.llm.label_logprobs import LabelWay
from tutors.llm.models import Model, find_model
from tutors.llm.text_generation import TextWay
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view

LETTERS = ("A", "B", "C", "D")
IDS = {letter: 65 + number for number, letter in enumerate(LETTERS)}
SNAKE = make_view(envs.make_game("snake"), "full")
MANY = settings(max_examples=100, deadline=None, database=None)  # examples, of EACH replies
EACH = 100
seeds = st.integers(0, 2**32).map(Random)  # Hypothesis' own recursive strategies take ten times as long

TOKENS = [f"token_id:{number}" for number in IDS.values()]
KEYS = ["choices", "index", "logprobs", "top_logprobs", "message", "content", "text", "usage", "model", "token"]
WORDS = [*LETTERS, " A", "", "no_answer", "malformed", "<action>A</action>"]
NUMBERS = [0, -0.0, 1, True, -1, 5e-324, 1e-3, -30.5, NOTHING, -9999, 1e308, -1e308, 10**400, -(10**400)]
NUMBERS += [math.nan, math.inf, -math.inf]
TEXTS = ["<action>A</action>", "<action>C</action>", "</think><action>b</action>", "hm"]
FRAGMENTS = ["<action>", "</action>", "<ACTION>", "<think>", "</think>", "\n", " ", "<", ">", "/", "_", "**", "'", '"']
FRAGMENTS += [
    "é",
    "\u202e",
    "\U0001f40d",
    "\x00",
    "\ud800",
    "ſ",
    "Ａ",
    "or",
    "column 9",
    "I cannot",
    "a",
    "d",
    "E",
    *LETTERS,
]


def anything(rng: Random, depth: int = 3) -> Any:
    """Any JSON, with plausible keys."""
    kind = rng.randrange(6 if depth else 4)
    if kind == 0:
        return rng.choice([None, False])
    if kind < 4:
        return rng.choice(NUMBERS) if kind < 3 else rng.choice(WORDS)
    inner = [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    return inner if kind == 4 else {rng.choice([*KEYS, "logprob", *TOKENS]): one for one in inner}


def nearly(rng: Random, right: Any) -> Any:
    """What belongs here, nine times in ten."""
    return anything(rng) if rng.random() < 0.1 else right


def some(rng: Random, make: Callable[[Random], Any], most: int) -> Any:
    return nearly(rng, [nearly(rng, make(rng)) for _ in range(rng.randint(0, most))])


def log_of(rng: Random) -> Any:
    return rng.choice(NUMBERS) if rng.random() < 0.05 else nearly(rng, -rng.expovariate(0.5))


def entry(rng: Random) -> Any:
    return {"token": nearly(rng, rng.choice([*LETTERS, " A", "B "])), "logprob": log_of(rng)}


def choice(rng: Random) -> dict[str, Any]:
    """One choice as vLLM or a chat server gives it, nearly."""
    logs = {
        "top_logprobs": some(rng, lambda rng: {token: log_of(rng) for token in TOKENS}, 2),
        "content": some(rng, lambda rng: {"top_logprobs": some(rng, entry, 5)}, 2),
    }
    return {
        "index": nearly(rng, rng.randint(-1, 3)),
        "text": nearly(rng, rng.choice(TEXTS)),
        "message": nearly(rng, {"content": nearly(rng, rng.choice(TEXTS))}),
        "logprobs": nearly(rng, logs),
    }


def reply_of(rng: Random) -> dict[str, Any]:
    choices = some(rng, choice, 4)
    if rng.random() < 0.5 and isinstance(choices, list):
        choices = [one | {"index": index} for index, one in enumerate(choices) if isinstance(one, dict)]
    return {"choices": choices} | rng.choice([{}, {"usage": anything(rng)}, {"model": anything(rng)}])


def some_legal(rng: Random) -> list[bool]:
    action_mask = [rng.random() < 0.6 for _ in LETTERS]
    return action_mask if any(action_mask) else [True] * len(LETTERS)


def saying(rng: Random) -> str:
    return "".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(0, 12)))


def assert_sound(verdict: list[float] | Trouble, mass: float, action_mask: list[bool]) -> None:
    """A distribution over the legal actions, or a kind of silence; and a share of something."""
    assert 0 <= mass <= 1 + 1e-9
    if isinstance(verdict, Trouble):
        assert verdict.isidentifier(), "a kind is counted under its name"
        return
    assert isinstance(verdict, list)
    assert len(verdict) == len(action_mask)
    assert all(share >= 0 and (may or share == 0) for share, may in zip(verdict, action_mask, strict=True))
    assert math.isclose(sum(verdict), 1)


@MANY
@given(rng=seeds)
def test_ten_thousand_replies_about_letters_give_a_distribution_or_silence(rng: Random) -> None:
    for _ in range(EACH):
        reply, action_mask = reply_of(rng), some_legal(rng)
        dialect, count = rng.choice([(Chat(), 1), (Completions(MODEL, IDS), 1), (Completions(MODEL, IDS), 2)])
        answers = dialect.read(reply, count, Labels(LETTERS))
        assert len(answers) == count
        way = LabelWay(SNAKE, permutations=count, calibrate=rng.random() < 0.5)
        if not any(isinstance(answer, Trouble) for answer in answers):
            way.learn_blanks(answers[::-1])
        for answer in answers:
            if not isinstance(answer, Trouble):
                assert len(answer) == len(LETTERS)
                assert all(isinstance(log, float) and not math.isnan(log) and log < 2 for log in answer)
        assert_sound(*way.judge(answers, action_mask), action_mask)


@MANY
@given(rng=seeds)
def test_ten_thousand_replies_in_words_give_a_distribution_or_silence(rng: Random) -> None:
    for _ in range(EACH):
        reply, action_mask, samples = reply_of(rng), some_legal(rng), rng.randint(1, 2)
        dialect, count = rng.choice([(Chat(), 1), (Completions(MODEL, IDS), 1), (Completions(MODEL, IDS), 2)])
        way = TextWay(SNAKE, thinks=rng.random() < 0.2, samples=samples)
        answers = dialect.read(reply, count, way.wanted(0))
        assert len(answers) == count
        for answer in answers:
            if not isinstance(answer, Trouble):
                assert 1 <= len(answer) <= samples
                assert all(type(text) is str for text in answer)
            assert_sound(*way.judge([answer], action_mask), action_mask)


def test_the_random_replies_are_not_so_random_that_none_says_anything() -> None:
    rng = Random(0)
    for dialect in (Chat(), Completions(MODEL, IDS)):
        for wanted in (Labels(LETTERS), Text(9)):
            answers = [dialect.read(reply_of(rng), 1, wanted)[0] for _ in range(2000)]
            assert 100 < sum(isinstance(answer, Trouble) for answer in answers) < 1900


@MANY
@given(rng=seeds)
def test_fault_20_ten_thousand_texts_of_a_model_give_a_legal_action_or_silence(rng: Random) -> None:
    for _ in range(EACH):
        said, action_mask = tuple(saying(rng) for _ in range(rng.randint(1, 3))), some_legal(rng)
        assert_sound(*TextWay(SNAKE, rng.random() < 0.5, samples=len(said)).judge([said], action_mask), action_mask)


@MANY
@given(rng=seeds)
def test_one_pair_of_tags_after_the_thinking_is_always_found(rng: Random) -> None:
    letter = rng.choice(LETTERS)
    after = "".join(rng.choice("abc D.<\n") for _ in range(rng.randint(0, 20)))
    said = f"{saying(rng)}</think><action>{letter}</action>{after}"
    verdict, mass = TextWay(SNAKE, thinks=True).judge([(said,)], [True] * 4)
    assert verdict == [float(letter == label) for label in LETTERS]
    assert mass == 1


@pytest.mark.parametrize("mode", ["label", "text"])
@pytest.mark.parametrize("is_vllm", [True, False])
def test_hundreds_of_random_bodies_leave_every_position_answered_or_counted(mode: str, is_vllm: bool) -> None:
    state = positions(3)
    bodies = 300
    spared: list[bytes] = []

    def misbehave(handler: Handler, _body: dict) -> bool:
        if spared:
            handler.send_raw(200, spared[0])
        return bool(spared)

    with serving() as server:
        server.is_vllm, server.misbehave = is_vllm, misbehave
        client = Client(server.url)
        way = LabelWay(VIEW) if mode == "label" else TextWay(VIEW, thinks=False, tries=2)
        tutor = VllmTutor(VIEW, Model("tiny", "tiny", "{words}"), [client], way)
        rows = given_rows = 0

        def advise(body: bytes) -> None:
            nonlocal rows, given_rows
            spared[:] = [body]
            line = tutor.lines[0]
            line.breaker.worked()
            line.is_strange = False
            advice = tutor.advise(state)
            rows += len(advice.valid)
            given_rows += int(advice.valid.sum())
            assert advice.valid.equal(advice.probs.sum(1) > 0.999)
            assert not advice.probs[~VIEW.action_mask(state)].any()
            assert all(isinstance(count, int) and 0 <= count < 1e15 for count in tutor.stats.values())

        rng = Random(7)
        try:
            for _ in range(bodies):
                advise(rng.randbytes(rng.randint(0, 40)) if rng.random() < 0.1 else json.dumps(reply_of(rng)).encode())
        finally:
            client.close()
    assert rows == 3 * bodies
    assert sum(silences(tutor).values()) + given_rows == rows


@pytest.mark.parametrize(
    "usage",
    [None, [], 3, "many", {}]
    + [{"prompt_tokens": number} for number in (None, "9", 2.5, -7, math.nan, math.inf, 10**400, [1], {"a": 1})],
    ids=repr,
)
def test_tokens_are_counted_where_they_are_numbers(usage: object) -> None:
    with serving() as server:
        client = Client(server.url)
        tutor = VllmTutor(VIEW, MODEL, [client], LabelWay(VIEW))

        def misbehave(handler: Handler, body: dict) -> bool:
            choices = [server.answer(row, prompt, body) for row, prompt in enumerate(body["prompt"])]
            handler.reply(200, {"choices": choices, "usage": usage})
            return True

        server.misbehave = misbehave
        try:
            assert tutor.advise(positions(2)).valid.all()
        finally:
            client.close()
    assert tutor.stats["prompt_tokens"] == tutor.stats["answer_tokens"] == 0


def test_a_chat_s_letters_are_summed_with_and_without_a_space_and_the_rest_is_impossible() -> None:
    shares = {"A": 0.3, " A": 0.2, "C": 0.1, "Ab": 0.2, "d": 0.1}
    top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    reply = {"choices": [{"index": 0, "logprobs": {"content": [{"top_logprobs": top}]}}]}
    (logs,) = Chat().read(reply, 1, Labels(LETTERS))
    assert [math.exp(log) for log in logs] == pytest.approx([0.5, 0, 0.1, 0])
    body = Chat().body("m", ["Hello"], Labels(LETTERS))
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"], body["temperature"]) == (True, TOP, 1, 0)


def test_a_letter_as_rare_as_can_be_is_impossible() -> None:
    tops = {"token_id:65": -0.5, "token_id:66": NOTHING, "token_id:67": NOTHING + 1, "token_id:68": -9999}
    reply = {"choices": [{"index": 0, "logprobs": {"top_logprobs": [tops]}}]}
    assert Completions(MODEL, IDS).read(reply, 1, Labels(LETTERS)) == [(-0.5, -math.inf, NOTHING + 1, -math.inf)]


def test_some_samples_that_did_not_come_leave_the_others() -> None:
    reply = {"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": None}, {"index": 3, "text": 5}]}
    assert Completions(MODEL, IDS).read(reply, 2, Text(9, samples=2)) == [("b",), "no_answer"]
    assert Completions(MODEL, IDS).read({"choices": [{"index": 0}]}, 1, Text(9, samples=2)) == ["malformed"]


def test_an_index_that_is_true_is_none() -> None:
    reply = {"choices": [{"index": True, "text": "b"}, {"index": 0, "text": "a"}]}
    assert Completions(MODEL, IDS).read(reply, 2, Text(9)) == [("a",), "no_answer"]


def test_probabilities_are_summed_by_their_logs() -> None:
    assert add_logs(math.log(0.2), math.log(0.3)) == pytest.approx(math.log(0.5))
    assert add_logs(-math.inf, -3.0) == add_logs(-3.0, -math.inf) == -3.0
    assert add_logs(-math.inf, -math.inf) == -math.inf


def test_what_is_asked_under_a_schema_does_not_begin_with_a_thought() -> None:
    """The schema binds the very next token, which could close no thinking that the template has opened."""
    model = find_model("deepseek")
    dialect = Completions(model, {})
    for schema, ending in (("{}", model.closing), ("", "<think>\n")):
        (prompt,) = dialect.body("deepseek", ["words"], Text(10, schema=schema))["prompt"]
        assert prompt.endswith(ending)
        assert "words" in prompt
