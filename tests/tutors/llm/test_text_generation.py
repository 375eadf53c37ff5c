"""Free text: what is read out of answers against a table of them, and FAULTS.md 20 against a scripted server."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import envs
from tests.helpers.llm_tutors import (
    MODEL,
    VIEW,
    connect_tutor,
    failures,
    position_with_full_favourite_column,
    positions,
)
from tests.helpers.scripted_server import Handler, Server, serving
from tests.helpers.views import EVERY_VIEW, game_of
from tutors.llm.api import Failure, TextRequest
from tutors.llm.models import Model
from tutors.llm.text_generation import (
    ACTION_TAG_PROMPT,
    MAX_PARSED_CHARS,
    RETRYABLE_KINDS,
    TEMPERATURE,
    TextGeneration,
    parse_action,
    with_action_tag,
)
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view
from tutors.prompts.base import ANSWER, LETTER_ONLY

LETTERS = tuple("ABCDEFG")
B, D = 1, 3
THINKING = Model("tiny", "tiny", "<s>{words}</s><think>\n", closing="\n</think>\n\n")

TEXTS = [  # of a model that does not think, or does not show it
    ("<action>D</action>", D),
    ("I take the middle.\n<action>D</action> It wins.", D),
    ("<ACTION>D</Action>", D),
    ("<action>\n  D\n</action>", D),
    ("<action>d</action>", D),
    ("<action>'D'</action>", D),
    ('<action>"d."</action>', D),
    ("<action>**D**</action>", D),
    ("<action>__D__</action>", D),
    ("<action>(b)</action>", B),
    ("<action>B) hit</action>", B),
    ("<action>Column D</action>", D),
    ("<action>LETTER D</action>", D),
    ("<action>D</action> as I said: <action>d</action>", D),
    ("<think>A? <action>A</action> No.</think><action>D</action>", D),
    ("<think>A</think><action>A</action><think>B</think><action>D</action>", D),
    ("<action>A</action></think><action>D</action>", D),
    ("x" * 10_000 + "<action>D</action>", D),
    ("<action>D</action>" * 600, D),
    ("<action>" * 1000 + "D</action>", D),
    ("<action>" + " " * 10_000 + "D" + "!" * 10_000 + "</action>", D),
    ("", "no_action"),
    ("D", "no_action"),
    ("Answer: D", "no_action"),
    ("I cannot help with games of chance.", "no_action"),
    ("\x00\ufffd\U0001f600 \ud800 asdf <b>", "no_action"),
    ("x" * 10_000, "no_action"),
    ("<action>D", D),
    ("so <action> D\n", D),
    ("<action>D</act", D),
    ("<action>D</", D),
    ("D</action>", "no_action"),
    ("<action>D<action>", "unknown_action"),
    ("<action>D</action" + "x" * 10_000, "no_action"),
    ("<action>D</action>" + "x" * MAX_PARSED_CHARS, "no_action"),  # only the end of a very long text is looked at
    ("<action></action>", "unknown_action"),
    ("<action> </action>", "unknown_action"),
    ("<action>column 9</action>", "unknown_action"),
    ("<action>9</action>", "unknown_action"),
    ("<action>H</action>", "unknown_action"),
    ("<action>LETTER</action>", "unknown_action"),
    ("<action>DD</action>", "unknown_action"),
    ("<action>Drop</action>", "unknown_action"),
    ("<action>a move to the left</action>", "unknown_action"),  # an article is no letter
    ("<action>A or B</action>", "unknown_action"),
    ("<action>A, B</action>", "unknown_action"),
    ("<action>Ｄ</action>", "unknown_action"),  # of full width
    ("<action>" + "x" * 10_000 + "</action>", "unknown_action"),
    ("<action>A</action><action>B</action>", B),
    ("<action>D</action> or <action>9</action>", D),
    ("in the form <action>LETTER</action>.\n<action>D</action>", D),
    ("<action>D</action>, as you asked: <action>LETTER</action>", D),
    ("<action>one of A, B, D</action> <action>...</action> <action>D</action>", D),
    ("<thinking><action>A</action></thinking><action>D</action>", D),
    ("<thought>A? <action>A</action></thought><action>D</action>", D),
    ("<Reasoning><action>A</action></Reasoning> <action>D</action>", D),
    ("[THINK]<action>A</action>[/THINK]<action>D</action>", D),
    ("◁think▷<action>A</action>◁/think▷<action>D</action>", D),
    ("<seed:think><action>A</action></seed:think><action>D</action>", D),
    ("<|begin_of_thought|><action>A</action><|end_of_thought|><action>D</action>", D),
    ("<|START_THINKING|><action>A</action><|END_THINKING|><action>D</action>", D),
    ("<|channel|>analysis<|message|><action>A</action><|end|><|channel|>final<|message|><action>D</action>", D),
    ("<unused94>thought <action>A</action><unused95><action>D</action>", D),
    ("<action>D</action><think>sure? <action>A</action></think> Yes.", D),
    ("[THINK]<action>D</action>", "unfinished"),
    ("<|channel|>analysis<|message|><action>D</action>", "unfinished"),
    ("<think>I wonder <action>D</action>", "unfinished"),
    ("<action>D</action><think>", "unfinished"),
    ("</think><action>D</action><think>but", "unfinished"),
    ("<think>" + "hm " * 5000, "unfinished"),
]


@contextmanager
def text_tutor(server: Server, model: Model = MODEL, deadline_s: float = 60, **how: Any) -> Iterator[VllmTutor]:
    """A tutor that is asked in words; what it was asked at the start is forgotten."""
    mode = TextGeneration(VIEW, bool(model.closing), **how)
    tutor = connect_tutor(server.url, mode=mode, model=model, deadline_s=deadline_s)
    server.asked.clear()
    try:
        yield tutor
    finally:
        tutor.pool.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def action_or_failure(expected: int | str) -> int | Failure:
    """An action as it is, the kind of a failure as one."""
    return Failure(expected) if isinstance(expected, str) else expected


def answering(server: Server, *texts: str) -> None:
    """Let the first request be answered in the first text, the next in the second; the last one stays."""
    left = list(texts)

    def misbehave(_handler: Handler, _body: dict) -> bool:
        server.text = left.pop(0) if len(left) > 1 else left[0]
        return False

    server.misbehave = misbehave


@pytest.mark.parametrize(("text", "expected"), TEXTS, ids=lambda said: repr(said)[:40])
def test_fault_20_text_is_parsed_into_an_action_or_a_failure(text: str, expected: int | str) -> None:
    assert parse_action(text, LETTERS, thinks=False) == action_or_failure(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hm</think><action>D</action>", D),
        ("<action>A</action></think>\n\n<action>D</action>", D),
        ("<think>again</think> hm </think> <action>D</action>", D),
        ("<action>D</action>", "unfinished"),
        ("hm " * 5000 + "<action>D</action>", "unfinished"),
        ("", "unfinished"),
        ("<action>A</action></think> it is D", "no_action"),
    ],
    ids=lambda said: repr(said)[:40],
)
def test_where_the_prompt_begins_the_thinking_only_what_follows_its_end_counts(text: str, expected: int | str) -> None:
    assert parse_action(text, LETTERS, thinks=True) == action_or_failure(expected)


@pytest.mark.parametrize(
    "text",
    [
        "<action>" + "_" * (MAX_PARSED_CHARS - 99) + "ab</action>",
        "<action>" + "(" * (MAX_PARSED_CHARS - 99),
        "<action><" * 11_000,
        "</think" * 14_000,
    ],
    ids=["underscores", "brackets", "tags", "ends"],
)
def test_parsing_a_long_text_takes_no_time(text: str) -> None:
    began = time.process_time()
    parse_action(text, LETTERS, thinks=False)
    assert time.process_time() - began < 1


def test_the_letters_are_those_of_the_game() -> None:
    assert parse_action("<action>B</action>", "AB", thinks=False) == 1
    assert parse_action("<action>C</action>", "AB", thinks=False) == Failure("unknown_action")


@pytest.mark.parametrize(("game", "name"), EVERY_VIEW)
def test_prompt_asks_for_tags_in_place_of_a_label(game: str, name: str) -> None:
    view = make_view(game_of(game), name)
    env = envs.make(game, 20)
    env.reset()
    state, _ = view.canonicalize(env.state)
    mode = TextGeneration(view, thinks=False)
    for words, asked in zip(view.render(state), mode.render(state), strict=True):
        assert asked.endswith(f"\n\n{ACTION_TAG_PROMPT}")
        assert asked.count(ACTION_TAG_PROMPT) == 1
        assert ANSWER not in asked
        assert LETTER_ONLY not in asked
        rest = words.removesuffix(ANSWER).rstrip()
        assert asked.removesuffix(f"\n\n{ACTION_TAG_PROMPT}").split() == rest.replace(LETTER_ONLY, "").split()
        assert asked.splitlines()[-3] == rest.splitlines()[-1], "the position stands at the end"
    (blank,) = mode.content_free_prompts()
    assert blank == with_action_tag(view.content_free_prompt())
    assert ANSWER not in blank


def test_a_question_is_asked_in_the_template_with_its_thinking_left_open(server: Server) -> None:
    server.text = "hm</think><action>D</action>"
    state = positions(5)
    with text_tutor(server, THINKING, max_tokens=77) as tutor:
        assert tutor.advise(state).valid.all()
    (body,) = server.asked
    assert body["prompt"] == [f"<s>{with_action_tag(words)}</s><think>\n" for words in VIEW.render(state)]
    assert body["max_tokens"] == 77
    assert body["temperature"] == 0
    assert body["n"] == 1
    assert "logprob_token_ids" not in body
    assert "logprobs" not in body


def test_advice_is_the_letter_and_costs_what_the_server_says(server: Server) -> None:
    with text_tutor(server) as tutor:
        advice = tutor.advise(positions(3))
        assert advice.valid.all()
        assert advice.probs.equal(torch.eye(7)[[D, D, D]])
        assert advice.label_mass.tolist() == [1, 1, 1]
        assert tutor.stats == {"asked": 3, "requests": 1, "prompt_tokens": 300, "answer_tokens": 3}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("I cannot help with that.", "no_action"),
        ("<action>column 9</action>", "unknown_action"),
        ("<think>hm", "unfinished"),
    ],
)
def test_fault_20_text_without_an_action_is_retried_and_counted_once(server: Server, text: str, kind: str) -> None:
    server.text = text
    with text_tutor(server, max_tries=3) as tutor:
        advice = tutor.advise(positions(4))
        assert not advice.valid.any()
        assert not advice.probs.any()
        assert failures(tutor) == {kind: 4}
        assert tutor.stats["asked"] == 12
    assert [len(body["prompt"]) for body in server.asked] == [4, 4, 4]
    assert [body["temperature"] for body in server.asked] == [0, TEMPERATURE, TEMPERATURE]
    assert len({body["seed"] for body in server.asked}) == 3


def test_fault_20_illegal_action_is_asked_for_again(server: Server) -> None:
    with text_tutor(server) as tutor:
        answering(server, "<action>D</action>", "<action>D</action>", "<action>E</action>")
        advice = tutor.advise(position_with_full_favourite_column())
        assert advice.probs.tolist() == [[0, 0, 0, 0, 1, 0, 0]]
        assert failures(tutor) == {}
        assert len(server.asked) == 3
        answering(server, "<action>D</action>")
        assert not tutor.advise(position_with_full_favourite_column()).valid.any()
        assert failures(tutor) == {"illegal_action": 1}


def test_only_the_positions_without_a_legal_answer_are_asked_again(server: Server) -> None:
    state = positions(6)
    stubborn = VIEW.render(state)[4].removesuffix(ANSWER).splitlines()[-7:-1]

    def answer(index: int, prompt: str, body: dict) -> dict:
        mute = "\n".join(stubborn) in prompt and body["temperature"] == 0
        return {"index": index, "text": "hm" if mute else "<action>B</action>"}

    with text_tutor(server) as tutor:
        server.answer = answer
        assert tutor.advise(state).valid.all()
        assert tutor.stats["asked"] == 7
        assert failures(tutor) == {}
    assert [len(body["prompt"]) for body in server.asked] == [6, 1]


@pytest.mark.parametrize("tries", [1, 2, 5])
def test_there_are_so_many_tries_and_no_more(server: Server, tries: int) -> None:
    server.text = "hm"
    with text_tutor(server, max_tries=tries) as tutor:
        tutor.advise(positions(2))
        assert failures(tutor) == {"no_action": 2}
    assert len(server.asked) == tries


def test_server_failure_is_not_asked_again(server: Server) -> None:
    with text_tutor(server) as tutor:
        server.misbehave = lambda handler, _body: handler.reply(200, {"error": {"message": "no"}}) or True
        tutor.advise(positions(2))
        assert failures(tutor) == {"error_in_200": 2}
    assert len(server.asked) == 1


def test_the_shares_of_several_samples_are_the_advice(server: Server) -> None:
    said = ["<action>A</action>", "<action>B</action>", "B", "<action>b</action>", "<action>9</action>"]

    def answer(index: int, prompt: str, body: dict) -> dict:
        return {"index": index, "text": said[index % 5]}

    with text_tutor(server, samples=5) as tutor:
        server.answer = answer
        advice = tutor.advise(positions(3, moves=1))
        assert tutor.stats["asked"] == 3
    torch.testing.assert_close(advice.probs, torch.tensor([1 / 3, 2 / 3, 0, 0, 0, 0, 0]).expand(3, 7))
    torch.testing.assert_close(advice.label_mass, torch.full((3,), 3 / 5))
    (body,) = server.asked
    assert body["n"] == 5
    assert body["temperature"] == TEMPERATURE, "at 0 all samples would be the same"


def test_samples_belong_to_their_own_question(server: Server) -> None:
    def answer(index: int, prompt: str, body: dict) -> dict:
        return {"index": index, "text": f"<action>{LETTERS[index // 2]}</action>"}

    with text_tutor(server, samples=2) as tutor:
        server.answer = answer
        assert tutor.advise(positions(7)).probs.equal(torch.eye(7))


def test_first_failure_is_counted_and_adds_no_label_mass() -> None:
    mode = TextGeneration(VIEW, thinks=False, samples=2)
    outputs = [
        ("<action>G</action>", "hm"), ("hm", "<action>G</action>"), ("hm", "<action>F</action>"), Failure("reset")
    ]  # fmt: skip
    action_mask = torch.tensor([[True] * 6 + [False]]).expand(4, 7)
    advice, failures = mode.parse(outputs, action_mask)
    assert failures == [Failure("illegal_action"), Failure("no_action"), None, Failure("reset")]
    assert advice.valid.tolist() == [False, False, True, False]
    assert advice.probs.tolist() == [[0] * 7, [0] * 7, [0, 0, 0, 0, 0, 1, 0], [0] * 7]
    assert advice.label_mass.tolist() == [0, 0, 0.5, 0]


def test_the_deadline_is_over_all_tries(server: Server) -> None:
    def slow(_handler: Handler, _body: dict) -> bool:
        time.sleep(0.45)
        return False

    server.text = "hm"
    with text_tutor(server, deadline_s=1, max_tries=50) as tutor:
        server.misbehave = slow
        began = time.monotonic()
        assert not tutor.advise(positions(2)).valid.any()
        assert 0.9 < time.monotonic() - began < 1.2
        assert sum(failures(tutor).values()) == 2
    assert 2 <= len(server.asked) <= 3


def test_chat_server_is_asked_for_text(server: Server) -> None:
    server.is_vllm = False
    state = positions(70)  # more than go out at once
    with text_tutor(server, max_tokens=33, samples=2) as tutor:
        advice = tutor.advise(state)
        assert advice.valid.all()
        assert advice.probs.argmax(1).tolist() == [D] * 70
        assert tutor.identity["template"] == "the server's own"
    assert len(server.asked) == 70
    asked = {body["messages"][0]["content"] for body in server.asked}
    assert asked == {with_action_tag(words) for words in VIEW.render(state)}
    for body in server.asked:
        assert len(body["messages"]) == 1
        assert (body["max_tokens"], body["n"], body["temperature"]) == (33, 2, TEMPERATURE)


def test_chat_without_an_action_is_asked_again_too(server: Server) -> None:
    server.is_vllm = False
    server.text = "hm"
    with text_tutor(server, max_tries=2) as tutor:
        assert not tutor.advise(positions(3)).valid.any()
        assert failures(tutor) == {"no_action": 3}
    assert sorted(body["seed"] for body in server.asked) == [0, 0, 0, 1, 1, 1]


def test_each_try_has_another_seed_and_only_the_first_of_one_sample_has_temperature_0() -> None:
    one, many = TextGeneration(VIEW, False, max_tokens=9), TextGeneration(VIEW, False, max_tokens=9, samples=4)
    assert [one.request(attempt) for attempt in range(3)] == [
        TextRequest(9, 1, 0.0, 0), TextRequest(9, 1, TEMPERATURE, 1), TextRequest(9, 1, TEMPERATURE, 2)
    ]  # fmt: skip
    assert [many.request(attempt).temperature for attempt in range(2)] == [TEMPERATURE, TEMPERATURE]
    assert TEMPERATURE > 0


def test_identity_holds_how_the_text_was_generated(server: Server) -> None:
    with text_tutor(server, THINKING, max_tokens=9, samples=2, max_tries=4) as tutor:
        assert tutor.identity == {
            "tutor": "tiny", "template": THINKING.template, "mode": "text", "tokens": 9, "samples": 2, "tries": 4
        }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"samples": 0}, {"max_tries": 0}, {"max_tries": -1}])
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TextGeneration(VIEW, False, **wrong)


def test_only_failures_of_the_text_are_retryable() -> None:
    assert {"unfinished", "no_action", "unknown_action", "illegal_action"} == RETRYABLE_KINDS


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS"])
@pytest.mark.parametrize("text", [None, "", " ", "hm", "<action>", "<action>A", "<think>hm"])
@pytest.mark.parametrize("is_vllm", [True, False])
def test_text_that_its_tokens_cut_is_asked_for_again_and_the_flag_named(
    server: Server, is_vllm: bool, text: str | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.is_vllm = is_vllm

    def answer(index: int, prompt: str, body: dict) -> dict:
        content = {"text": text} if is_vllm else {"message": {"content": text, "reasoning_content": "hm"}}
        return {"index": index, "finish_reason": reason} | content

    server.answer = answer  # also to the first prompt, which shows that the server answers
    with text_tutor(server, max_tries=2) as tutor:
        assert not tutor.advise(positions(2)).valid.any()
        assert failures(tutor) == {"unfinished": 2}
        assert tutor.stats["asked"] == 4
    assert "--tutor-tokens" in caplog.text


def test_answer_in_a_cut_text_is_read(server: Server) -> None:
    with text_tutor(server) as tutor:
        server.answer = lambda index, prompt, body: {
            "index": index, "text": "<action>D</action> for it", "finish_reason": "length"
        }  # fmt: skip
        assert tutor.advise(positions(2)).valid.all()


@pytest.mark.parametrize("reason", ["stop", "content_filter", "tool_calls"])
def test_text_that_is_null_is_no_action(server: Server, reason: str) -> None:
    server.is_vllm = False
    with text_tutor(server, max_tries=1) as tutor:
        server.answer = lambda index, prompt, body: {
            "index": index, "message": {"content": None}, "finish_reason": reason
        }  # fmt: skip
        assert not tutor.advise(positions(1)).valid.any()
        assert failures(tutor) == {"no_action": 1}


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "<action>D</action>"}],
        [{"type": "text", "text": "<action>"}, {"type": "text", "text": "D</action>"}],
        [{"type": "thinking", "thinking": "<action>A</action>"}, {"type": "text", "text": "<action>D</action>"}],
        [{"text": "<action>D</action>"}],
    ],
    ids=repr,
)
def test_content_in_parts_is_read_and_choices_need_no_index(server: Server, parts: list) -> None:
    server.is_vllm = False
    server.answer = lambda index, prompt, body: {"message": {"content": parts}, "finish_reason": "stop"}
    with text_tutor(server) as tutor:
        assert tutor.advise(positions(2)).probs.argmax(1).tolist() == [D, D]
