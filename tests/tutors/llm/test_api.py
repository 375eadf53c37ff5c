"""Random replies and random model texts against what must hold of every answer: FAULTS.md 16 to 20.

Replies are JSON whose keys, places and values are nearly what a server sends; then whole bodies, through the tutor.
"""

import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import envs
from tests.helpers.fuzzing import SCALE
from tests.helpers.llm_tutors import MODEL, VIEW, connect_tutor, connected_tutor, endpoint, failures, positions
from tests.helpers.scripted_server import Handler, serving
from tutors.llm.api import (
    IMPOSSIBLE_LOGPROB,
    MAX_TOP_LOGPROBS,
    ChatAPI,
    CompletionsAPI,
    Failure,
    LabelRequest,
    TextRequest,
    logaddexp,
)
from tutors.llm.label_logprobs import LabelLogprobs, ParsedOutputs
from tutors.llm.models import Model, find_model
from tutors.llm.text_generation import TextGeneration
from tutors.prompts import make_view

LETTERS = ("A", "B", "C", "D")
IDS = {letter: 65 + number for number, letter in enumerate(LETTERS)}
SNAKE = make_view(envs.make_game("snake"), "full")
MANY = settings(max_examples=100 * SCALE, deadline=None, database=None, derandomize=True)  # examples, of EACH replies
EACH = 100
seeds = st.integers(0, 2**32).map(Random)  # Hypothesis' own recursive strategies take ten times as long

TOKENS = [f"token_id:{number}" for number in IDS.values()]
KEYS = ["choices", "index", "logprobs", "top_logprobs", "message", "content", "text", "usage", "model", "token"]
WORDS = [*LETTERS, " A", "", "no_answer", "malformed", "<action>A</action>"]
NUMBERS = [0, -0.0, 1, True, -1, 5e-324, 1e-3, -30.5, IMPOSSIBLE_LOGPROB, -9999, 1e308, -1e308, 10**400, -(10**400)]
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


def random_mask(rng: Random) -> torch.Tensor:
    """Which actions are legal, (1, A) bool, at least one."""
    action_mask = torch.tensor([[rng.random() < 0.6 for _ in LETTERS]])
    return action_mask if action_mask.any() else torch.ones_like(action_mask)


def random_text(rng: Random) -> str:
    return "".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(0, 12)))


def assert_sound(parsed: ParsedOutputs, action_mask: torch.Tensor) -> None:
    """A distribution over the legal actions, or a failure and no advice; and a label mass."""
    (probs, given, label_mass), (failure,) = parsed
    assert probs.shape == action_mask.shape == (1, len(LETTERS))
    assert 0 <= label_mass <= 1 + 1e-6
    assert given == (failure is None)
    if failure is not None:
        assert failure.kind.isidentifier(), "a kind is counted under its name"
        assert not probs.any()
        return
    assert (probs >= 0).all()
    assert not probs[~action_mask].any()
    assert math.isclose(probs.sum(), 1, abs_tol=1e-6)


@MANY
@given(rng=seeds)
def test_ten_thousand_label_replies_give_a_distribution_or_a_failure(rng: Random) -> None:
    for _ in range(EACH):
        reply, action_mask = reply_of(rng), random_mask(rng)
        api, count = rng.choice([(ChatAPI(), 1), (CompletionsAPI(MODEL, IDS), 1), (CompletionsAPI(MODEL, IDS), 2)])
        outputs = api.parse(reply, count, LabelRequest(LETTERS))
        assert len(outputs) == count
        mode = LabelLogprobs(SNAKE, permutations=count, calibrate=rng.random() < 0.5)
        for output in outputs:
            if not isinstance(output, Failure):
                assert len(output) == len(LETTERS)
                assert all(isinstance(log, float) and not math.isnan(log) and log < 2 for log in output)
        content_free = [] if any(isinstance(output, Failure) for output in outputs) else outputs[::-1]
        assert_sound(mode.parse(outputs, action_mask, content_free), action_mask)


@MANY
@given(rng=seeds)
def test_ten_thousand_text_replies_give_a_distribution_or_a_failure(rng: Random) -> None:
    for _ in range(EACH):
        reply, action_mask, samples = reply_of(rng), random_mask(rng), rng.randint(1, 2)
        api, count = rng.choice([(ChatAPI(), 1), (CompletionsAPI(MODEL, IDS), 1), (CompletionsAPI(MODEL, IDS), 2)])
        mode = TextGeneration(SNAKE, thinks=rng.random() < 0.2, samples=samples)
        outputs = api.parse(reply, count, mode.request(0))
        assert len(outputs) == count
        for output in outputs:
            if not isinstance(output, Failure):
                assert 1 <= len(output) <= samples
                assert all(type(text) is str for text in output)
            assert_sound(mode.parse([output], action_mask), action_mask)


def test_random_replies_hold_enough_outputs_and_enough_failures() -> None:
    rng = Random(0)
    for api in (ChatAPI(), CompletionsAPI(MODEL, IDS)):
        for request in (LabelRequest(LETTERS), TextRequest(9)):
            outputs = [api.parse(reply_of(rng), 1, request)[0] for _ in range(2000)]
            assert 100 < sum(isinstance(output, Failure) for output in outputs) < 1900


@MANY
@given(rng=seeds)
def test_fault_20_ten_thousand_texts_of_a_model_give_a_legal_action_or_a_failure(rng: Random) -> None:
    for _ in range(EACH):
        texts, action_mask = tuple(random_text(rng) for _ in range(rng.randint(1, 3))), random_mask(rng)
        mode = TextGeneration(SNAKE, rng.random() < 0.5, samples=len(texts))
        assert_sound(mode.parse([texts], action_mask), action_mask)


@MANY
@given(rng=seeds)
def test_one_pair_of_tags_after_the_thinking_is_always_found(rng: Random) -> None:
    letter = rng.choice(LETTERS)
    after = "".join(rng.choice("abc D.<\n") for _ in range(rng.randint(0, 20)))
    text = f"{random_text(rng)}</think><action>{letter}</action>{after}"
    advice, _ = TextGeneration(SNAKE, thinks=True).parse([(text,)], torch.ones(1, 4, dtype=torch.bool))
    assert advice.probs.tolist() == [[float(letter == label) for label in LETTERS]]
    assert advice.label_mass == 1


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
        answer_mode = LabelLogprobs(VIEW) if mode == "label" else TextGeneration(VIEW, thinks=False, max_tries=2)
        tutor = connect_tutor(server.url, mode=answer_mode, model=Model("tiny", "tiny", "{words}"))
        rows = given_rows = 0

        def advise(body: bytes) -> None:
            nonlocal rows, given_rows
            spared[:] = [body]
            endpoint(tutor).breaker.record_success()
            endpoint(tutor).has_wrong_model = False
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
            tutor.pool.close()
    assert rows == 3 * bodies
    assert sum(failures(tutor).values()) + given_rows == rows


@pytest.mark.parametrize(
    "usage",
    [None, [], 3, "many", {}]
    + [{"prompt_tokens": number} for number in (None, "9", 2.5, -7, math.nan, math.inf, 10**400, [1], {"a": 1})],
    ids=repr,
)
def test_tokens_are_counted_where_they_are_numbers(usage: object) -> None:
    with serving() as server, connected_tutor(server.url) as tutor:

        def misbehave(handler: Handler, body: dict) -> bool:
            choices = [server.answer(row, prompt, body) for row, prompt in enumerate(body["prompt"])]
            handler.reply(200, {"choices": choices, "usage": usage})
            return True

        server.misbehave = misbehave
        assert tutor.advise(positions(2)).valid.all()
    assert tutor.stats["prompt_tokens"] == tutor.stats["answer_tokens"] == 0


def test_chat_labels_are_summed_over_their_tokens_and_the_rest_is_impossible() -> None:
    shares = {"A": 0.3, " A": 0.2, "C": 0.1, "Ab": 0.2, "d": 0.1}
    top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    reply = {"choices": [{"index": 0, "logprobs": {"content": [{"top_logprobs": top}]}}]}
    (logs,) = ChatAPI().parse(reply, 1, LabelRequest(LETTERS))
    assert [math.exp(log) for log in logs] == pytest.approx([0.5, 0, 0.1, 0.1])
    body = ChatAPI().body("m", ["Hello"], LabelRequest(LETTERS))
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"], body["temperature"]) == (
        True,
        MAX_TOP_LOGPROBS,
        1,
        0,
    )


def chat_labels(shares: dict[str, float], message: object = None) -> tuple[float, ...] | str:
    """Probabilities of the labels where a chat's first token has these, or the kind of the failure."""
    top = [{"token": token, "logprob": math.log(share)} for token, share in shares.items()]
    choice = {"index": 0, "logprobs": {"content": [{"top_logprobs": top}]}, "message": message}
    (output,) = ChatAPI().parse({"choices": [choice]}, 1, LabelRequest(LETTERS))
    return output.kind if isinstance(output, Failure) else tuple(round(math.exp(log), 6) for log in output)


@pytest.mark.parametrize("token", ["▁{}", "Ġ{}", "Ċ{}", " {}", "{}\n", "{}.", "({})", "**{}", '"{}', "{}</w>", "{}:"])
@pytest.mark.parametrize("letter", ["D", "d"])
def test_label_is_read_whatever_marks_its_token_has(token: str, letter: str) -> None:
    assert chat_labels({token.format(letter): 0.6, "A": 0.3, "B": 0.02}) == (0.3, 0.02, 0, 0.6)


@pytest.mark.parametrize("token", ["<0x44>", "bytes:\\x44", "bytes:\\x20\\x44", "bytes:\\xe2\\x96\\x81\\x44"])
def test_label_is_read_where_its_token_is_written_in_bytes(token: str) -> None:
    assert chat_labels({token: 0.6, "D": 0.1, "A": 0.3}) == (0.3, 0, 0, 0.7)


@pytest.mark.parametrize("token", ["Do", "▁Do", "DD", "D or A", "E", "<0x45>", "<0x44>a", "ĠĠ", "", "Ｄ"])
def test_token_that_is_more_than_a_label_is_none(token: str) -> None:
    assert chat_labels({"A": 0.4, token: 0.3}) == (0.4, 0, 0, 0)


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": "The"},
        {"content": "", "reasoning": "The"},
        {"content": "D", "reasoning_content": "D is the middle."},
        {"content": None},
        {"content": ""},
    ],
    ids=repr,
)
def test_first_token_of_thinking_is_no_answer(message: dict) -> None:
    assert chat_labels({"D": 0.6, "A": 0.3}, message) == "unfinished"
    assert chat_labels({"D": 0.6, "A": 0.3}, {"content": "D", "reasoning_content": None}) == (0.3, 0, 0, 0.6)


@pytest.mark.parametrize("first", ["<think>", "The", "▁Okay", "ĠWe", "[THINK]", "<|channel|>analysis", "◁think▷"])
def test_label_that_is_a_word_proves_nothing_where_a_sentence_begins(first: str) -> None:
    assert chat_labels({first: 0.6, "A": 0.06}) == "unfinished"
    assert chat_labels({first: 0.6, " a": 0.04, "A": 0.03, "C": 0.01}) == "unfinished"
    choice = {
        "index": 0,
        "text": first,
        "logprobs": {"top_logprobs": [dict(zip(TOKENS, [-2.8, -9, -9, -9], strict=True))]},
    }
    if "▁" not in first and "Ġ" not in first:  # vLLM's completions return text
        assert CompletionsAPI(MODEL, IDS).parse({"choices": [choice]}, 1, LabelRequest(LETTERS)) == [
            Failure("unfinished")
        ]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"A": 0.9, "The": 0.05}, (0.9, 0, 0, 0)),
        ({"**": 0.6, "A": 0.3}, (0.3, 0, 0, 0)),
        ({"The": 0.4, "A": 0.2, "B": 0.3}, (0.2, 0.3, 0, 0)),
        ({"The": 0.6, "D": 0.1}, (0, 0, 0, 0.1)),
    ],
)
def test_label_counts_where_an_answer_may_begin(shares: dict, expected: tuple) -> None:
    assert chat_labels(shares) == expected


def test_label_below_the_smallest_log_probability_is_impossible() -> None:
    tops = {
        "token_id:65": -0.5,
        "token_id:66": IMPOSSIBLE_LOGPROB,
        "token_id:67": IMPOSSIBLE_LOGPROB + 1,
        "token_id:68": -9999,
    }
    reply = {"choices": [{"index": 0, "logprobs": {"top_logprobs": [tops]}}]}
    assert CompletionsAPI(MODEL, IDS).parse(reply, 1, LabelRequest(LETTERS)) == [
        (-0.5, -math.inf, IMPOSSIBLE_LOGPROB + 1, -math.inf)
    ]


def test_text_of_a_model_is_encodable() -> None:
    reply = json.loads('{"choices": [{"index": 0, "text": "a\\ud800b", "message": {"content": "a\\ud800b"}}]}')
    for api in (ChatAPI(), CompletionsAPI(MODEL, IDS)):
        assert api.parse(reply, 1, TextRequest(9)) == [("a?b",)]


def test_missing_samples_leave_the_others() -> None:
    reply = {"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": None}, {"index": 3, "text": 5}]}
    assert CompletionsAPI(MODEL, IDS).parse(reply, 2, TextRequest(9, n=2)) == [("b",), Failure("no_answer")]
    assert CompletionsAPI(MODEL, IDS).parse({"choices": [{"index": 0}]}, 1, TextRequest(9, n=2)) == [
        Failure("malformed")
    ]


def test_index_true_is_no_index() -> None:
    reply = {"choices": [{"index": True, "text": "b"}, {"index": 0, "text": "a"}]}
    assert CompletionsAPI(MODEL, IDS).parse(reply, 2, TextRequest(9)) == [("a",), Failure("no_answer")]


def test_probabilities_are_summed_by_their_logs() -> None:
    assert logaddexp(math.log(0.2), math.log(0.3)) == pytest.approx(math.log(0.5))
    assert logaddexp(-math.inf, -3.0) == logaddexp(-3.0, -math.inf) == -3.0
    assert logaddexp(-math.inf, -math.inf) == -math.inf


def test_prompt_under_a_schema_does_not_begin_the_thinking() -> None:
    """The schema binds the very next token, which could close no thinking that the template has opened."""
    model = find_model("deepseek")
    api = CompletionsAPI(model, {})
    for schema, ending in (("{}", model.closing), ("", "<think>\n")):
        (prompt,) = api.body("deepseek", ["words"], TextRequest(10, json_schema=schema))["prompt"]
        assert prompt.endswith(ending)
        assert "words" in prompt
