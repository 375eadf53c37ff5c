"""The tutor against a scripted server: its requests, the advice in the replies, and FAULTS.md 1 to 18, 21 and 22.

The server is the standard library's; how it misbehaves stands in each test.
"""

import gzip
import json
import math
import ssl
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import torch
import trustme

from envs.base import select_rows
from tests.helpers.llm_tutors import (
    MODEL,
    VIEW,
    Misbehave,
    always,
    breaker,
    connect_tutor,
    connected_tutor,
    endpoint,
    failures,
    position_with_full_favourite_column,
    positions,
)
from tests.helpers.scripted_server import FAVOURITE, FIRST_ID, Handler, Server, choice, serving
from tutors.base import TutorError
from tutors.llm import client
from tutors.llm.api import ChatAPI
from tutors.llm.breaker import MAX_FAILURES, MAX_PROBE_INTERVAL_S, MIN_PROBE_INTERVAL_S, Breaker
from tutors.llm.client import MAX_RETRY_WAIT_S, MAX_WORDS, Client, RequestError, base_urls, parse_retry_after
from tutors.llm.endpoint import Endpoint, EndpointState, ModelIdentity, ServedModel
from tutors.llm.label_logprobs import LabelLogprobs
from tutors.llm.models import fill_template, find_model
from tutors.llm.pool import EndpointPool
from tutors.llm.server import served_models, wait_for_server
from tutors.llm.text_generation import TextGeneration
from tutors.llm.tutor import VllmTutor


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def tutor(server: Server) -> Iterator[VllmTutor]:
    tutor = connect_tutor(server.url, deadline_s=5)
    server.asked.clear()
    yield tutor
    tutor.pool.close()


def test_label_request_asks_for_one_token_and_every_label(server: Server, tutor: VllmTutor) -> None:
    state = positions(40)
    tutor.advise(state)
    (body,) = server.asked
    assert body["prompt"] == [f"<s>{words}</s>" for words in VIEW.render(state)]
    assert body["max_tokens"] == 1
    assert body["temperature"] == 0
    assert body["logprob_token_ids"] == [FIRST_ID + label for label in range(7)]
    assert tutor.stats["asked"] == 40


def test_advice_is_the_softmax_over_legal_labels_and_their_mass(tutor: VllmTutor) -> None:
    advice = tutor.advise(positions(5))
    assert advice.valid.all()
    expected = torch.full((5, 7), 0.4 / 6)
    expected[:, FAVOURITE] = 0.5
    torch.testing.assert_close(advice.probs, expected / 0.9)
    torch.testing.assert_close(advice.label_mass, torch.full((5,), 0.9))


def test_illegal_label_gets_no_probability_and_adds_no_label_mass(tutor: VllmTutor) -> None:
    advice = tutor.advise(position_with_full_favourite_column())
    assert advice.probs[0, FAVOURITE] == 0
    assert advice.probs.sum().item() == pytest.approx(1)
    assert advice.label_mass.item() == pytest.approx(0.4)


def test_choices_in_any_order_are_sorted(server: Server, tutor: VllmTutor) -> None:
    def shuffled(handler: Handler, body: dict) -> bool:
        choices = [choice(row, body) for row in range(len(body["prompt"]))]
        for row, one in enumerate(choices):
            liked, other = f"token_id:{FIRST_ID + row}", f"token_id:{FIRST_ID + FAVOURITE}"
            logs = one["logprobs"]["top_logprobs"][0]
            logs[liked], logs[other] = logs[other], logs[liked]
        handler.reply(200, {"choices": choices[::-1]})
        return True

    server.misbehave = shuffled
    assert tutor.advise(positions(7)).probs.argmax(1).tolist() == list(range(7))


def test_more_prompts_than_one_request_takes_are_split(server: Server, tutor: VllmTutor) -> None:
    state = positions(10)
    many = select_rows(state, torch.arange(2500) % 10)
    assert tutor.advise(many).valid.all()
    assert sorted(len(body["prompt"]) for body in server.asked) == [452, 1024, 1024]


def test_too_little_label_mass_is_no_advice(server: Server) -> None:
    strict = connect_tutor(server.url, mode=LabelLogprobs(VIEW, min_mass=0.85))
    server.misbehave = with_logs({f"token_id:{FIRST_ID + FAVOURITE}": -1.0})
    advice = strict.advise(positions(3))
    strict.pool.close()
    assert not advice.valid.any()
    assert failures(strict) == {"low_label_mass": 3}


def with_logs(logs: dict) -> Misbehave:
    """A server whose every answer has these log-probabilities in place of some."""

    def misbehave(handler: Handler, body: dict) -> bool:
        choices = [choice(row, body) for row in range(len(body["prompt"]))]
        for one in choices:
            one["logprobs"]["top_logprobs"][0] |= logs
        handler.reply(200, {"choices": choices})
        return True

    return misbehave


@pytest.mark.parametrize("log", [None, float("nan"), float("inf"), "-0.5", 0.5, [], True, False], ids=repr)
def test_fault_18_a_malformed_log_probability_is_no_advice(server: Server, tutor: VllmTutor, log: object) -> None:
    server.misbehave = with_logs({f"token_id:{FIRST_ID + 6}": log})
    assert not tutor.advise(positions(2)).valid.any()
    assert failures(tutor) == {"malformed": 2}


def test_fault_18_minus_infinity_everywhere_is_no_label_mass(server: Server, tutor: VllmTutor) -> None:
    server.misbehave = with_logs({f"token_id:{FIRST_ID + label}": -9999.0 for label in range(7)})
    assert not tutor.advise(positions(2)).valid.any()
    assert failures(tutor) == {"low_label_mass": 2}


def test_fault_1_no_server_at_start_names_the_url_and_the_command() -> None:
    with serving() as gone:
        url = gone.url
    model = find_model("deepseek")
    with pytest.raises(TutorError) as error:
        wait_for_server(model, url, 0.1, print)
    text = str(error.value)
    assert url in text
    assert f"{model.model} --served-model-name deepseek" in text
    assert "--tutor tiny" in text
    assert "--tutor scripted" in text
    assert len(text.splitlines()) <= 12


def test_fault_1_an_optional_tutor_is_picked_up_later() -> None:
    with serving() as gone:
        port, url = gone.server_address[1], gone.url
    tutor = connect_tutor(url, optional=True)
    assert not tutor.advise(positions(2)).valid.any()
    with serving(port):
        breaker(tutor).retry_at = 0
        assert tutor.advise(positions(2)).valid.all()
    tutor.pool.close()
    assert failures(tutor) == {"breaker": 2}


@pytest.mark.parametrize("late", ["another model", "a chat alone"])
def test_late_server_is_used_only_if_it_fits_the_identity_of_the_stored_answers(
    late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as gone:
        port, url = gone.server_address[1], gone.url
    tutor = connect_tutor(url, optional=True)
    kept = dict(tutor.identity)
    if late == "a chat alone":
        monkeypatch.setattr(Endpoint, "_choose_api", chat_only)
    with serving(port) as server:
        server.roots = {"tiny": "/another"} if late == "another model" else server.roots
        breaker(tutor).retry_at = 0
        assert not tutor.advise(positions(2)).valid.any()
        assert endpoint(tutor).state is EndpointState.WRONG_MODEL
        assert tutor.identity == kept
    tutor.pool.close()
    assert failures(tutor) == {"other_model": 2}


async def chat_only(endpoint: Endpoint, name: str, found: str) -> ServedModel:
    return ServedModel(name, ModelIdentity(found, uses_chat=True), ChatAPI(), name, [])


def test_fault_2_a_late_server_is_waited_for_and_that_is_shown(tmp_path: Path) -> None:
    with serving() as gone:
        port, url = gone.server_address[1], gone.url
    said: list[str] = []
    over = threading.Event()

    def come_late() -> None:
        time.sleep(2)
        with serving(port):
            over.wait()

    late = threading.Thread(target=come_late)
    late.start()
    wait_for_server(MODEL, url, 30, said.append)
    assert served_models(url) == {"tiny": "tiny"}
    over.set()
    late.join()
    assert any("waiting for" in line for line in said)


def test_list_of_models_may_take_as_long_as_the_flags_allow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    get = Handler.do_GET

    def slow(self: Handler) -> None:
        time.sleep(2.5)
        get(self)

    monkeypatch.setattr(Handler, "do_GET", slow)
    wait_for_server(MODEL, server.url, 10, print)
    with connected_tutor(server.url) as tutor:
        endpoint(tutor).last_reply_at = -math.inf
        assert tutor.advise(positions(1)).valid.all()
    with pytest.raises(TutorError, match="refused"):
        connect_tutor(server.url, deadline_s=1)


def test_fault_3_refused_in_mid_run_opens_the_breaker_which_closes_on_recovery() -> None:
    state = positions(2)
    with serving() as server:
        port = server.server_address[1]
        tutor = connect_tutor(server.url)
        assert tutor.advise(state).valid.all()
    for _ in range(MAX_FAILURES):
        assert not tutor.advise(state).valid.any()
    assert set(failures(tutor)) <= {"refused", "reset"}
    assert breaker(tutor).is_open
    before = tutor.stats["requests"]
    assert not tutor.advise(state).valid.any()
    assert tutor.stats["requests"] == before, "an open breaker asks nothing"
    breaker(tutor).retry_at = 0
    assert not tutor.advise(state).valid.any()
    assert breaker(tutor).is_open, "a probe that fails leaves it open"
    with serving(port):
        breaker(tutor).retry_at = 0
        assert tutor.advise(state).valid.all()
    assert not breaker(tutor).is_open
    tutor.pool.close()


def test_breaker_opens_after_five_failures_in_a_row_and_probes_ever_more_rarely() -> None:
    now = 0.0
    breaker = Breaker(lambda: now)
    for _ in range(MAX_FAILURES - 1):
        breaker.record_failure()
    breaker.record_success()
    for _ in range(MAX_FAILURES - 1):
        breaker.record_failure()
    assert not breaker.is_open
    breaker.record_failure()
    assert breaker.is_open
    waits = []
    for _ in range(9):
        assert not breaker.should_probe
        waits.append(breaker.retry_at - now)
        now = breaker.retry_at
        assert breaker.should_probe
        breaker.record_failure()
    assert waits[:3] == [MIN_PROBE_INTERVAL_S, 2 * MIN_PROBE_INTERVAL_S, 4 * MIN_PROBE_INTERVAL_S]
    assert waits[-1] == MAX_PROBE_INTERVAL_S
    breaker.half_open()
    assert not breaker.is_open
    breaker.record_failure()
    assert breaker.is_open, "one failure after a recovery is enough"


def test_fault_4_dropped_connection_is_replaced_without_a_failure(server: Server, tutor: VllmTutor) -> None:
    tutor.advise(positions(1))
    dropped = []

    def drop_the_first(handler: Handler, _body: dict) -> bool:
        if dropped:
            return False
        dropped.append(True)
        handler.close_connection = True
        return True

    server.misbehave = drop_the_first
    assert tutor.advise(positions(3)).valid.all()
    assert dropped
    assert failures(tutor) == {}
    assert breaker(tutor).failures == 0


def test_fault_5_half_an_answer_is_tried_three_times(server: Server, tutor: VllmTutor) -> None:
    def half(handler: Handler, _body: dict) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')
        handler.close_connection = True
        return True

    server.misbehave = half
    assert not tutor.advise(positions(4)).valid.any()
    assert len(server.asked) == 3
    assert failures(tutor) == {"reset": 4}


def never(handler: Handler, _body: dict) -> bool:
    threading.Event().wait(30)
    return True


def one_byte_at_a_time(handler: Handler, _body: dict) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(300):
            handler.wfile.write(b" ")
            time.sleep(0.1)
    except OSError:
        handler.close_connection = True
    return True


@pytest.mark.parametrize("misbehave", [never, one_byte_at_a_time])
def test_faults_6_and_7_the_deadline_is_a_total(server: Server, misbehave: Callable) -> None:
    tutor = connect_tutor(server.url, deadline_s=2)
    server.misbehave = misbehave
    began = time.monotonic()
    assert not tutor.advise(positions(2)).valid.any()
    assert 1.9 < time.monotonic() - began < 2.2
    tutor.pool.close()
    assert failures(tutor) == {"deadline": 2}


def test_fault_6_a_hundred_unanswered_questions_leak_nothing(server: Server) -> None:
    tutor = connect_tutor(server.url)
    tutor.pool.deadline_s = 0.03
    over = threading.Event()

    def hang(handler: Handler, _body: dict) -> bool:
        over.wait(30)
        handler.close_connection = True
        return True

    server.misbehave = hang
    state = positions(1)

    def files() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) - len(
            server.asked
        )  # the server's ends are in this process too

    def ask(times: int) -> None:
        for _ in range(times):
            breaker(tutor).record_success()
            tutor.advise(state)

    ask(5)
    before = files()
    ask(100)
    after = files()
    over.set()
    tutor.pool.close()
    assert after <= before + 2
    assert failures(tutor) == {"deadline": 105}


def test_fault_8_a_redirect_is_not_followed_and_the_key_stays_here(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "canary")
    tutor = connect_tutor(server.url)
    with serving() as elsewhere:
        server.misbehave = always(307, {}, Location=f"{elsewhere.url}/v1/completions")
        assert not tutor.advise(positions(1)).valid.any()
        assert elsewhere.headers_seen == []
    tutor.pool.close()
    assert all(headers["Authorization"] == "Bearer canary" for headers in server.headers_seen)
    assert failures(tutor) == {"status_307": 1}


@pytest.mark.parametrize("status", [429, 503])
def test_fault_10_retry_after_of_a_busy_server_is_kept(server: Server, tutor: VllmTutor, status: int) -> None:
    times: list[float] = []

    def busy_once(handler: Handler, _body: dict) -> bool:
        times.append(time.monotonic())
        if len(times) == 1:
            handler.reply(status, {"error": {"message": "busy"}}, Retry_After="1")
        return len(times) == 1

    server.misbehave = busy_once
    assert tutor.advise(positions(2)).valid.all()
    assert times[1] - times[0] >= 1


def test_fault_10_retry_after_is_seconds_or_a_date() -> None:
    assert parse_retry_after("3600") == MAX_RETRY_WAIT_S
    assert parse_retry_after("-5") == parse_retry_after(None) == 0.1
    assert parse_retry_after("2.5") == 2.5
    assert parse_retry_after("Wed, 21 Oct 2020 07:28:00 GMT") == 0.1
    assert parse_retry_after("soon") == 1
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < parse_retry_after(soon) <= 30


@pytest.mark.parametrize("status", [429, 503, 529])
def test_wait_that_is_longer_than_the_deadline_is_no_advice_at_once_and_nothing_is_asked_before(
    server: Server, tutor: VllmTutor, status: int
) -> None:
    server.misbehave = always(status, {"error": {"message": "busy"}}, Retry_After="40")
    began = time.monotonic()
    assert not tutor.advise(positions(2)).valid.any()
    assert time.monotonic() - began < 2
    assert 38 < breaker(tutor).retry_at - time.monotonic() <= 40
    asked = len(server.asked)
    assert not tutor.advise(positions(2)).valid.any()
    assert len(server.asked) == asked == 1
    assert failures(tutor) == {f"status_{status}": 2, "breaker": 2}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (402, {"message": "Insufficient Balance"}),
        (402, {}),
        (429, {"message": "You exceeded your current quota, please check your plan and billing details."}),
        (429, {"message": "no", "code": "insufficient_quota"}),
        (429, {"message": "Your credit balance is too low"}),
    ],
)
def test_account_without_quota_ends_the_run_with_the_servers_words(
    server: Server, tutor: VllmTutor, status: int, error: dict
) -> None:
    server.misbehave = always(status, {"error": error})
    with pytest.raises(TutorError, match=f"quota is used up.*{error.get('message', '')}"):
        tutor.advise(positions(1))


def test_quota_of_a_minute_is_waited_for(server: Server, tutor: VllmTutor) -> None:
    words = "Quota exceeded for quota metric 'requests per minute'"
    for reply in (always(429, {"error": words}), always(429, {"error": "Quota exceeded"}, Retry_After="0.2")):
        server.misbehave = reply
        assert not tutor.advise(positions(1)).valid.any()
    assert failures(tutor) == {"status_429": 2}


def test_fault_11_one_500_is_forgotten_and_many_open_the_breaker(server: Server, tutor: VllmTutor) -> None:
    remaining = [True]

    def fail(handler: Handler, _body: dict) -> bool:
        if remaining:
            remaining.pop()
            handler.reply(500, {"error": {"message": "engine"}})
            return True
        return False

    server.misbehave = fail
    assert tutor.advise(positions(2)).valid.all()
    server.misbehave = always(500, {"error": {"message": "engine"}})
    for _ in range(MAX_FAILURES):
        tutor.advise(positions(2))
    assert breaker(tutor).is_open
    assert failures(tutor) == {"status_500": 2 * MAX_FAILURES}


def test_fault_12_only_the_poisoned_prompt_gets_no_advice(server: Server, tutor: VllmTutor) -> None:
    state = positions(33)
    poison = fill_template(MODEL.answer_template, VIEW.render(state)[20])

    def choke(handler: Handler, body: dict) -> bool:
        if poison in body["prompt"]:
            handler.reply(400, {"error": {"message": "bad prompt"}})
        return poison in body["prompt"]

    server.misbehave = choke
    advice = tutor.advise(state)
    assert (~advice.valid).nonzero()[:, 0].tolist() == [20]
    assert failures(tutor) == {"status_400": 1}
    assert not breaker(tutor).failures
    assert len(server.asked) < 2 * 6 + 2


def test_fault_13_a_refused_key_ends_the_run_and_is_not_printed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "canary")
    tutor = connect_tutor(server.url)
    server.misbehave = always(401, {"error": "Unauthorized"})
    with pytest.raises(TutorError, match="TUTOR_API_KEY") as error:
        tutor.advise(positions(1))
    tutor.pool.close()
    assert "canary" not in str(error.value)


def test_fault_14_another_model_at_the_start_is_refused_and_those_served_are_listed(server: Server) -> None:
    server.models = ("llama", "gemma")
    with pytest.raises(TutorError, match="llama, gemma"):
        connect_tutor(server.url)


def test_faults_14_and_22_missing_model_is_not_asked_until_it_is_back(
    server: Server, tutor: VllmTutor, caplog: pytest.LogCaptureFixture
) -> None:
    server.models = ("llama", "gemma")
    server.misbehave = always(404, {"error": {"message": "no such model"}})
    assert not tutor.advise(positions(2)).valid.any()
    asked = len(server.asked)
    assert not tutor.advise(positions(2)).valid.any()
    assert len(server.asked) == asked
    assert failures(tutor) == {"other_model": 4}
    assert "its advice is not used" in caplog.text
    server.models, server.misbehave = ("tiny",), None
    breaker(tutor).retry_at = 0
    assert tutor.advise(positions(2)).valid.all()


def test_fault_22_another_model_of_the_same_name_is_recognised_by_what_it_was_loaded_from(
    server: Server, tutor: VllmTutor
) -> None:
    server.roots = {"tiny": "/somewhere/else"}
    endpoint(
        tutor
    ).last_reply_at = -math.inf  # a server that was asked a moment ago cannot have been replaced unnoticed
    assert not tutor.advise(positions(2)).valid.any()
    assert failures(tutor) == {"other_model": 2}
    server.roots = {}
    breaker(tutor).retry_at = 0
    assert tutor.advise(positions(2)).valid.all()


def test_fault_22_another_model_of_the_same_name_and_place_is_recognised_by_its_answers(
    server: Server, tutor: VllmTutor
) -> None:
    server.misbehave = with_logs({f"token_id:{FIRST_ID + FAVOURITE}": -3.0})
    endpoint(tutor).last_reply_at = -math.inf
    assert not tutor.advise(positions(2)).valid.any()
    assert failures(tutor) == {"other_model": 2}


def test_fault_22_reply_of_another_model_is_not_used(server: Server, tutor: VllmTutor) -> None:
    def someone_else(handler: Handler, body: dict) -> bool:
        choices = [choice(row, body) for row in range(len(body["prompt"]))]
        handler.reply(200, {"model": "gemma", "choices": choices})
        return True

    server.misbehave = someone_else
    assert not tutor.advise(positions(2)).valid.any()
    assert failures(tutor) == {"other_model": 2}


def test_fault_15_an_error_in_a_200_is_no_advice(server: Server, tutor: VllmTutor) -> None:
    server.misbehave = always(200, {"error": {"message": "no"}})
    assert not tutor.advise(positions(3)).valid.any()
    assert failures(tutor) == {"error_in_200": 3}


@pytest.mark.parametrize(
    ("head", "encode", "kind"),
    [
        ("Content-Encoding: gzip\r\nContent-Length: {0}", gzip.compress, None),
        ("Content-Encoding: gzip\r\nContent-Length: {0}", bytes, "reset"),
        ("Content-Length: {0}", lambda raw: raw.decode().encode("utf-16"), None),
        ("Content-Length: {0}", lambda raw: raw.replace(b'"index": 0', b'"index": 9, "index": 0'), None),
        ("Content-Length: {0}", lambda raw: raw.replace(b"-", b"NaN, -"), "not_json"),
        ("Content-Length: {0}", lambda raw: raw.replace(b'"index": 0', b'"index": ' + b"9" * 5000), "not_json"),
        ("Transfer-Encoding: chunked", lambda raw: b"%x\r\n%b\r\n" % (len(raw), raw), "reset"),
        ("Transfer-Encoding: chunked", lambda raw: b"-5\r\n%b\r\n0\r\n\r\n" % raw, "reset"),
        ("Content-Length: -2", bytes, "reset"),
        ("X: " + "x" * 100_000 + "\r\nContent-Length: {0}", bytes, "reset"),
    ],
    ids=["gzip", "no gzip", "UTF-16", "twice", "no JSON", "long", "no end", "below 0", "length", "header"],
)
def test_body_in_any_form_is_an_answer_or_a_failure(
    server: Server, tutor: VllmTutor, head: str, encode: Callable, kind: str | None
) -> None:
    def answer(handler: Handler, body: dict) -> bool:
        raw = encode(json.dumps({"choices": [choice(row, body) for row in range(len(body["prompt"]))]}).encode())
        handler.wfile.write(f"HTTP/1.1 200 OK\r\n{head.format(len(raw))}\r\n\r\n".encode() + raw)
        handler.close_connection = True
        return True

    server.misbehave = answer
    assert tutor.advise(positions(3)).valid.all() == (kind is None)
    assert failures(tutor) == ({} if kind is None else {kind: 3})


@pytest.mark.parametrize("nothing", [None, False, 0, "", {}, []], ids=repr)
def test_reply_that_says_that_there_is_no_error_is_read(server: Server, tutor: VllmTutor, nothing: object) -> None:
    def answer(handler: Handler, body: dict) -> bool:
        choices = [choice(row, body) for row in range(len(body["prompt"]))]
        handler.reply(200, {"error": nothing, "choices": choices})
        return True

    server.misbehave = answer
    assert tutor.advise(positions(3)).valid.all()


@pytest.mark.parametrize("raw", [b"", b"not json", b"\xff\xfe", b"[1]", b"[" * 100_000, b"3"])
def test_reply_that_is_no_json_object_is_no_advice(server: Server, tutor: VllmTutor, raw: bytes) -> None:
    def nonsense(handler: Handler, _body: dict) -> bool:
        handler.send_raw(200, raw)
        return True

    server.misbehave = nonsense
    assert not tutor.advise(positions(2)).valid.any()
    assert failures(tutor) == {"not_json": 2}


@pytest.mark.parametrize(
    "choices",
    [None, "x", [], [{}], [{"index": 7}], [{"index": 0, "logprobs": None}], [{"index": "0"}], [3]],
    ids=repr,
)
def test_choices_without_content_are_no_advice(server: Server, tutor: VllmTutor, choices: object) -> None:
    server.misbehave = always(200, {"choices": choices})
    assert not tutor.advise(positions(1)).valid.any()
    assert sum(failures(tutor).values()) == 1


def test_fault_21_a_server_that_ignores_the_labels_is_found_at_the_start(server: Server) -> None:
    server.misbehave = always(200, {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:9": -1.0}]}}]})
    with pytest.raises(TutorError, match=r"vLLM 0\.26"):
        connect_tutor(server.url)


@pytest.mark.parametrize("is_vllm", [True, False])
def test_model_that_gives_labels_less_than_the_minimum_is_refused_at_the_start(server: Server, is_vllm: bool) -> None:
    server.is_vllm = is_vllm
    with pytest.raises(TutorError, match=r"hardly any label.*--tutor-mode text"):
        connect_tutor(server.url, mode=LabelLogprobs(VIEW, min_mass=0.95))


def test_thinking_model_in_label_mode_is_refused_at_the_start(server: Server) -> None:
    server.is_vllm = False
    top = [{"token": token, "logprob": math.log(share)} for token, share in {"The": 0.6, "A": 0.06}.items()]
    message = {"role": "assistant", "content": None, "reasoning_content": "The"}
    thinks = {"index": 0, "message": message, "logprobs": {"content": [{"token": "The", "top_logprobs": top}]}}
    server.misbehave = always(200, {"choices": [thinks | {"finish_reason": "length"}]})
    with pytest.raises(TutorError, match=r"unfinished.*--tutor-mode text"):
        connect_tutor(server.url)
    server.misbehave = None
    with connected_tutor(server.url) as tutor:
        server.misbehave = always(200, {"choices": [thinks]})
        assert not tutor.advise(positions(2)).valid.any()
        assert failures(tutor) == {"unfinished": 2}


@pytest.mark.parametrize(
    ("url", "root", "api"),
    [
        ("http://host", "http://host", "http://host/v1"),
        ("http://host/", "http://host", "http://host/v1"),
        (" http://host/v1\n", "http://host", "http://host/v1"),
        ("http://host:8000/v1/", "http://host:8000", "http://host:8000/v1"),
        ("http://host/v1/chat/completions", "http://host", "http://host/v1"),
        ("http://host/v1/models/", "http://host", "http://host/v1"),
        ("https://host/api/v1", "https://host/api", "https://host/api/v1"),
        ("https://host/openai", "https://host/openai", "https://host/openai/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai", "https://host/v1beta/openai"),
        ("https://host/api/paas/v4", "https://host/api/paas/v4", "https://host/api/paas/v4"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("localhost:8000/v1", "http://localhost:8000", "http://localhost:8000/v1"),
        ("localhost", "http://localhost", "http://localhost/v1"),
        ("[::1]:8000", "http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_base_url_is_what_other_clients_take(url: str, root: str, api: str) -> None:
    assert base_urls(url) == (root, api)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/v1/completions"])
def test_server_is_asked_at_any_of_its_urls(server: Server, ending: str) -> None:
    for url in (server.url + ending, server.url.removeprefix("http://") + ending):
        with connected_tutor(url) as tutor:
            assert tutor.advise(positions(1)).valid.all()
            assert "logprob_token_ids" in server.asked[-1], "/tokenize was found"
    assert len(served_models(server.url + ending)) == 1


@pytest.mark.parametrize(
    "url", ["host", "ftp://x", "http://", "", "http://h:x", "http://h:99999", "http://h/v1?a=b", "ftp:x"]
)
def test_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="looks like"):
        Client(url)


@pytest.fixture
def secure() -> Iterator[Server]:
    """A server whose certificate nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1", "localhost").configure_cert(context)
    with serving(tls=context) as server:
        yield server


def test_fault_9_untrusted_certificate_is_refused_before_anything_is_sent(
    secure: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "canary")
    assert secure.url.startswith("https://")
    with closing(EndpointPool([secure.url])) as pool:
        client = pool.clients[0]
        for work in (client.list_models, lambda: client.post("/v1/completions", {"prompt": "x"})):
            with pytest.raises(RequestError) as error:
                pool.run(work())
            assert error.value.kind == "certificate"
            assert not error.value.is_retryable
    with pytest.raises(TutorError, match="certificate"):
        wait_for_server(MODEL, secure.url, 1, print)
    with pytest.raises(TutorError, match="certificate") as refused:
        connect_tutor(secure.url)
    assert "canary" not in str(refused.value)
    assert secure.asked == []
    assert secure.headers_seen == []


def test_trusted_certificate_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    connector = client.SilentConnector
    monkeypatch.setattr(client, "SilentConnector", lambda **how: connector(ssl=trusting, **how))
    with serving(tls=context) as server:
        tutor = connect_tutor(server.url)
        assert tutor.advise(positions(2)).valid.all()
        tutor.pool.close()


def test_a_key_file_is_sent_without_the_space_around_it_and_before_the_variable(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "another")
    path = tmp_path / "key"
    path.write_text("\n  canary-7 \n")
    with closing(EndpointPool([server.url], key_file=path)) as pool:
        pool.run(pool.clients[0].list_models())
        pool.run(pool.clients[0].post("/v1/completions", {"model": "tiny", "prompt": ["x"]}))
    assert [headers["Authorization"] for headers in server.headers_seen] == ["Bearer canary-7"] * 2


@pytest.mark.parametrize(
    "held", [b"", b" \n", "cänary".encode(), b"\xff\xfe canary", b"canary\nX-Evil: 1", None], ids=repr
)
def test_a_key_file_without_a_key_is_refused_and_not_shown(tmp_path: Path, held: bytes | None) -> None:
    path = tmp_path / "key"
    if held is not None:
        path.write_bytes(held)
    with pytest.raises(ValueError, match=str(path)) as error:
        Client("http://127.0.0.1:1", key_file=path)
    assert "nary" not in str(error.value)


@pytest.mark.parametrize("around", ["\n", " ", "\r\n", "\t"])
def test_key_of_the_environment_is_sent_without_the_space_around_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", f"{around}canary{around}")
    served_models(server.url)
    assert [headers["Authorization"] for headers in server.headers_seen] == ["Bearer canary"]


@pytest.mark.parametrize("key", ["cänary", "canary\nX-Evil: 1", "can\x7fary", "canary\r\n\r\n1"])
def test_key_of_the_environment_that_cannot_be_sent_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", key)
    with pytest.raises(ValueError, match="TUTOR_API_KEY") as error:
        Client("http://127.0.0.1:1")
    assert "nary" not in str(error.value)


def test_empty_variable_is_no_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", " \n")
    served_models(server.url)
    assert all("Authorization" not in headers for headers in server.headers_seen)


def test_key_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbfcanary\r\n")
    assert Client("http://h", tmp_path / "key").key == "canary"


def refusing(unfit: Callable[[dict], bool], words: str, status: int = 400) -> Misbehave:
    """A server that refuses the bodies that are unfit, in these words."""

    def misbehave(handler: Handler, body: dict) -> bool:
        if unfit(body):
            handler.reply(status, {"error": {"message": words}})
        return unfit(body)

    return misbehave


@pytest.mark.parametrize(
    ("unfit", "words"),
    [
        (
            lambda body: "max_tokens" in body,
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        ),
        (lambda body: body["top_logprobs"] > 5, "top_logprobs must be less than or equal to 5, got 20"),
        (lambda body: body["top_logprobs"] > 8, "Invalid value for 'top_logprobs': must be at most 8."),
        (lambda body: body["top_logprobs"] > 5, "too many top_logprobs"),
        (lambda body: "temperature" in body, "Unsupported value: 'temperature' does not support 0 with this model."),
        (lambda body: body["max_tokens"] < 16, "Invalid 'max_tokens': integer below minimum value. Expected >= 16."),
    ],
)
def test_chat_that_refuses_a_parameter_is_asked_as_it_wants_from_then_on(
    server: Server, unfit: Callable, words: str
) -> None:
    server.is_vllm, server.misbehave = False, refusing(unfit, words)
    with connected_tutor(server.url) as tutor:
        asked = len(server.asked)
        assert tutor.advise(positions(2)).valid.all()
        assert len(server.asked) == asked + 2
        assert failures(tutor) == {}


def test_chat_that_refuses_one_parameter_after_the_other_is_asked_as_it_wants(server: Server) -> None:
    def misbehave(handler: Handler, body: dict) -> bool:
        refusals = {
            "use max_completion_tokens in place of max_tokens": "max_tokens" in body,
            "'max_completion_tokens': expected a value >= 16": body.get("max_completion_tokens", 0) < 16,
            "temperature is deprecated for this model": "temperature" in body,
            "top_logprobs: at most 5": body["top_logprobs"] > 5,
        }
        words = next((words for words, is_refused in refusals.items() if is_refused), None)
        if words is not None:
            handler.reply(400, {"error": {"message": words}})
        return words is not None

    server.is_vllm, server.misbehave = False, misbehave
    with connected_tutor(server.url) as tutor:
        assert tutor.advise(positions(2)).valid.all()


@pytest.mark.parametrize("parameter", ["seed", "n", "temperature"])
@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("is_vllm", [True, False])
def test_text_is_asked_for_without_what_a_server_does_not_know(
    server: Server, parameter: str, status: int, is_vllm: bool
) -> None:
    server.is_vllm = is_vllm
    server.misbehave = refusing(lambda body: parameter in body, f"Unknown parameter: '{parameter}'", status)
    with connected_tutor(server.url, mode=TextGeneration(VIEW, thinks=False)) as tutor:
        assert tutor.advise(positions(2)).valid.all()


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "logprobs are out of stock"}},
        {"error": "logprobs are out of stock"},
        {"message": "logprobs are out of stock"},
        {"detail": "logprobs are out of stock"},
        {"detail": [{"loc": ["body"], "msg": "logprobs are out of stock"}]},
    ],
    ids=repr,
)
@pytest.mark.parametrize("status", [400, 404, 422])
def test_words_of_a_server_that_refuses_the_first_prompt_are_shown(server: Server, status: int, body: object) -> None:
    server.is_vllm, server.misbehave = False, always(status, body)
    with pytest.raises(TutorError, match=rf"status_{status}: .*logprobs are out of stock"):
        connect_tutor(server.url)


def test_words_of_a_server_are_short_and_printable_and_without_the_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "canary")
    server.is_vllm, server.misbehave = False, always(400, {"error": "\x1b[31mthe key canary\n\u202e is " + "x" * 9999})
    with pytest.raises(TutorError, match="the key … is xxx") as error:
        connect_tutor(server.url)
    assert "canary" not in str(error.value)
    assert len(str(error.value)) < MAX_WORDS + 400
    assert str(error.value).isprintable()


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("is_vllm", [True, False])
def test_prompts_that_are_too_long_in_mid_run_are_told_and_not_asked_for_ever(
    server: Server, is_vllm: bool, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.is_vllm = is_vllm
    with connected_tutor(server.url) as tutor:
        server.misbehave = always(status, {"error": {"message": "This model's maximum context length is 9 tokens."}})
        for _ in range(50):
            assert not tutor.advise(positions(1)).valid.any()
        assert tutor.stats["asked"] == MAX_FAILURES
        assert failures(tutor) == {f"status_{status}": MAX_FAILURES, "breaker": 50 - MAX_FAILURES}
    assert "maximum context length is 9 tokens" in caplog.text


@pytest.mark.parametrize("status", [401, 403, 404, 405, 500, 501])
def test_server_without_tokenize_is_asked_by_chat_whatever_it_says(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    post = Handler.do_POST

    def refuse(self: Handler) -> None:
        if self.path == "/tokenize":
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(status, {"error": "no"})
        else:
            post(self)

    monkeypatch.setattr(Handler, "do_POST", refuse)
    with connected_tutor(server.url) as tutor:
        assert tutor.advise(positions(1)).valid.all()
        assert tutor.pool.identity.uses_chat


@pytest.mark.parametrize("status", [401, 403, 404])
def test_server_whose_completions_are_refused_is_asked_by_chat(server: Server, status: int) -> None:
    server.misbehave = refusing(lambda body: "prompt" in body, "no completions", status)
    with connected_tutor(server.url) as tutor:
        assert tutor.advise(positions(1)).valid.all()
        assert tutor.pool.identity.uses_chat


def test_without_a_key_none_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUTOR_API_KEY", raising=False)
    served_models(server.url)
    assert all("Authorization" not in headers for headers in server.headers_seen)


def test_fault_16_two_hundred_megabytes_are_not_read_to_their_end(server: Server, tutor: VllmTutor) -> None:
    sent = []

    def endless(handler: Handler, _body: dict) -> bool:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        piece = b" " * (1 << 20)
        try:
            for _ in range(200):
                handler.wfile.write(b"100000\r\n" + piece + b"\r\n")
                sent.append(len(piece))
            handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            handler.close_connection = True
        return True

    tutor.pool.deadline_s = 60
    state = positions(2)
    tutor.advise(state)
    server.misbehave = endless
    tracemalloc.start()
    try:
        assert not tutor.advise(state).valid.any()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20
    assert sum(sent) < 100 << 20
    assert failures(tutor) == {"too_large": 2}


@pytest.mark.parametrize("delay_s", [0.0, 0.02], ids=["at once", "later"])
def test_reply_that_nobody_asked_for_is_not_read_as_the_next_one(
    server: Server, tutor: VllmTutor, delay_s: float
) -> None:
    """Each request is answered twice: column 1, 2, 3, and then always 0."""
    asked = []

    def reply(body: dict, column: int) -> bytes:
        choices = [choice(row, body) for row in range(len(body["prompt"]))]
        for one in choices:
            logs = one["logprobs"]["top_logprobs"][0]
            liked, other = f"token_id:{FIRST_ID + column}", f"token_id:{FIRST_ID + FAVOURITE}"
            logs[liked], logs[other] = logs[other], logs[liked]
        raw = json.dumps({"choices": choices}).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw

    def answer_twice(handler: Handler, body: dict) -> bool:
        asked.append(body)
        handler.wfile.write(reply(body, len(asked)))
        time.sleep(delay_s)
        with suppress(OSError):
            handler.wfile.write(reply(body, 0))
        return True

    server.misbehave = answer_twice
    for number in (1, 2, 3):
        assert tutor.advise(positions(2)).probs.argmax(1).tolist() == [number, number]
        time.sleep(3 * delay_s)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 3], {2: "no_answer"}),
        ([0, 1, 2, 3, 4, -1], {}),
        ([0, 1, 1, 2, 3], {1: "malformed"}),
        ([2, 2, 2, 0, 1, 3], {2: "malformed"}),
        ([3, 1, 0, 2], {}),
        ([3, 3, 9], {0: "no_answer", 1: "no_answer", 2: "no_answer", 3: "malformed"}),
        ([], dict.fromkeys(range(4), "no_answer")),
    ],
    ids=["missing", "extra", "twice", "three times", "out of order", "all of it", "none"],
)
def test_fault_17_choices_belong_to_the_questions_of_their_index(
    server: Server, tutor: VllmTutor, order: list[int], expected: dict[int, str]
) -> None:
    def misbehave(handler: Handler, body: dict) -> bool:
        choices = [choice(index, body) for index in order]
        for one in choices:  # each index likes a column of its own
            logs = one["logprobs"]["top_logprobs"][0]
            logs[f"token_id:{FIRST_ID + one['index'] % 7}"] = -0.01
        handler.reply(200, {"choices": choices})
        return True

    server.misbehave = misbehave
    advice = tutor.advise(positions(4, moves=1))
    assert (~advice.valid).nonzero()[:, 0].tolist() == list(expected)
    assert failures(tutor) == dict(Counter(expected.values()))
    rows = [row for row in range(4) if row not in expected]
    assert advice.probs[rows].argmax(1).tolist() == rows


@contextmanager
def two_servers() -> Iterator[tuple[Server, Server, VllmTutor]]:
    with serving() as one, serving() as other, connected_tutor(one.url, other.url) as tutor:
        one.asked.clear()
        other.asked.clear()
        yield one, other, tutor


def prompts(server: Server) -> list[str]:
    found = [prompt for body in server.asked for prompt in body["prompt"]]
    server.asked.clear()
    return found


def test_of_two_servers_each_prompt_always_goes_to_the_same() -> None:
    state = positions(40)
    with two_servers() as (one, other, tutor):
        assert tutor.advise(state).valid.all()
        shares = [set(prompts(server)) for server in (one, other)]
        assert not shares[0] & shares[1]
        assert shares[0] | shares[1] == {f"<s>{words}</s>" for words in VIEW.render(state)}
        assert min(map(len, shares)) >= 10
        for rows in (torch.arange(40).flip(0), torch.arange(7), torch.tensor([5] * 3)):
            assert tutor.advise(select_rows(state, rows)).valid.all()
            for server, share in zip((one, other), shares, strict=True):
                assert set(prompts(server)) <= share
        assert tutor.stats["asked"] == 40 + 40 + 7 + 3


def test_outputs_of_two_servers_are_returned_in_the_order_of_the_prompts() -> None:
    state = positions(20, moves=1)
    with two_servers() as (one, other, tutor):
        other.answer = lambda index, prompt, body: (
            choice(index, body)
            | {"logprobs": {"top_logprobs": [{f"token_id:{FIRST_ID + label}": -1.0 - label for label in range(7)}]}}
        )
        liked = tutor.advise(state).probs.argmax(1).tolist()
        mine = set(prompts(one))
    assert liked == [FAVOURITE if f"<s>{words}</s>" in mine else 0 for words in VIEW.render(state)]


def test_when_one_of_two_servers_dies_the_other_gets_everything() -> None:
    state = positions(30)
    with serving() as one:
        with serving() as other:
            tutor = connect_tutor(one.url, other.url)
            prompts(other)
            assert tutor.advise(state).valid.all()
            theirs = len(prompts(other))
        for _ in range(MAX_FAILURES):
            given = tutor.advise(state).valid
            assert int((~given).sum()) == theirs, "until its breaker opens, the prompts of the dead one get no advice"
        assert [one.state for one in tutor.pool.endpoints] == [EndpointState.READY, EndpointState.DOWN]
        assert not breaker(tutor).failures
        counted = sum(failures(tutor).values())
        assert counted == MAX_FAILURES * theirs
        prompts(one)
        assert tutor.advise(state).valid.all()
        assert len(prompts(one)) == 30
        assert sum(failures(tutor).values()) == counted
        tutor.pool.close()


def test_prompts_of_one_position_go_to_one_server() -> None:
    state = positions(12)
    with serving() as one, serving() as other:
        with connected_tutor(one.url, other.url, mode=LabelLogprobs(VIEW, permutations=3)) as tutor:
            one.asked.clear()
            other.asked.clear()
            assert tutor.advise(state).valid.all()
        sent = [{prompt.partition("Options")[0][-80:] for prompt in prompts(server)} for server in (one, other)]
    assert all(sent)
    assert not sent[0] & sent[1]


def test_servers_of_different_models_are_refused_at_the_start() -> None:
    with serving() as one, serving() as other:
        other.roots = {"tiny": "/somewhere/else"}
        with pytest.raises(TutorError, match=r"/somewhere/else.*one model"):
            connect_tutor(one.url, other.url)


@pytest.mark.parametrize(
    ("url", "shares_cpu"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://10.0.0.9:1", False),
    ],
)
def test_tutor_shares_the_cpu_with_a_server_on_this_machine_only(url: str, shares_cpu: bool) -> None:
    assert EndpointPool([url]).is_local == shares_cpu
    assert EndpointPool(["http://10.0.0.9:1", url]).is_local == shares_cpu


def test_cancel_ends_a_call_that_another_thread_waits_for(server: Server, tutor: VllmTutor) -> None:
    server.misbehave = never
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            tutor.advise(positions(2))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.asked:
        time.sleep(0.01)
    tutor.cancel()
    thread.join(2)
    assert not thread.is_alive()
    assert len(ended) == 1


def test_retry_after_that_is_no_number_is_a_short_wait() -> None:
    assert parse_retry_after("nan") == 0.1
    assert parse_retry_after("inf") == MAX_RETRY_WAIT_S
    assert parse_retry_after("-inf") == 0.1


def test_fault_13_a_key_that_is_refused_at_a_probe_ends_the_run_too(
    server: Server, tutor: VllmTutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint(tutor).last_reply_at = -math.inf
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.reply(401, {"error": "Unauthorized"}))
    with pytest.raises(TutorError, match="TUTOR_API_KEY"):
        tutor.advise(positions(1))


def test_a_late_server_of_another_model_is_not_asked() -> None:
    with serving() as gone:
        port, url = gone.server_address[1], gone.url
    with serving() as second:
        second.roots = {"tiny": "/the/one"}
        tutor = connect_tutor(url, second.url, optional=True)
        assert tutor.advise(positions(9)).valid.all()
        with serving(port) as late:
            late.roots = {"tiny": "/another"}
            breaker(tutor).retry_at = 0
            assert tutor.advise(positions(9)).valid.all()
            assert all("Options" not in prompt for body in late.asked for prompt in body["prompt"])
            assert endpoint(tutor).state is EndpointState.WRONG_MODEL
        tutor.pool.close()


NO_LISTS = {
    "404": (404, b'{"detail": "Not Found"}'),
    "405": (405, b"Method Not Allowed"),
    "400": (400, b'{"error": {"message": "unknown route"}}'),
    "401": (401, b'{"error": "this key may not list models"}'),
    "403": (403, b'{"error": {"message": "Missing scopes: api.model.read"}}'),
    "500": (500, b"Internal Server Error"),
    "501": (501, b""),
    "redirect": (302, b""),
    "page": (200, b"<html>Welcome</html>"),
    "empty": (200, b""),
    "array": (200, b"[]"),
    "null": (200, b'{"data": null}'),
    "nothing": (200, b'{"object": "list", "data": []}'),
    "strings": (200, b'{"data": ["tiny"]}'),
    "error": (200, b'{"error": {"message": "no such route"}}'),
}


@pytest.mark.parametrize("reply", NO_LISTS.values(), ids=NO_LISTS)
@pytest.mark.parametrize("is_vllm", [True, False])
def test_server_without_a_list_of_models_is_asked_for_the_named_one(
    reply: tuple[int, bytes], is_vllm: bool, server: Server
) -> None:
    server.models_reply, server.is_vllm = reply, is_vllm
    model = find_model("tiny", "served/model:latest")
    wait_for_server(model, server.url, 0, lambda line: None)
    with connected_tutor(server.url, model=model) as tutor:
        assert tutor.advise(positions(3)).valid.all()
        assert tutor.identity["tutor"] == "served/model:latest"
        endpoint(tutor).last_reply_at = -math.inf  # as after a pause: is it still the same model?
        assert tutor.advise(positions(3)).valid.all()
    assert {body["model"] for body in server.asked} == {"served/model:latest"}


@pytest.mark.parametrize("name", ["404", "page", "null", "strings"])
def test_server_without_a_list_of_models_is_refused_where_none_is_named(name: str, server: Server) -> None:
    server.models_reply = NO_LISTS[name]
    with pytest.raises(TutorError, match="--tutor-model names the one"):
        wait_for_server(find_model("tiny"), server.url, 0, lambda line: None)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_server_that_is_starting_is_waited_for_whatever_is_named(status: int, server: Server) -> None:
    server.models_reply = (status, b"")
    with pytest.raises(TutorError, match="no server answers"):
        wait_for_server(find_model("tiny", "named"), server.url, 0, lambda line: None)


def test_named_model_must_be_in_a_list_that_there_is(server: Server) -> None:
    with pytest.raises(TutorError, match="serves tiny, not other"):
        connect_tutor(server.url, model=find_model("tiny", "other"))


def test_wrong_key_ends_a_server_without_a_list_at_the_first_prompt(server: Server) -> None:
    server.models_reply, server.is_vllm = NO_LISTS["401"], False
    server.misbehave = always(401, {"error": "no"})
    with pytest.raises(TutorError, match="refuses the API key"):
        connect_tutor(server.url, model=find_model("tiny", "named"))


def test_list_that_goes_away_in_mid_run_costs_nothing(server: Server) -> None:
    model = find_model("tiny", "tiny")
    with connected_tutor(server.url, model=model) as tutor:
        server.models_reply = NO_LISTS["404"]
        endpoint(tutor).last_reply_at = -math.inf
        assert tutor.advise(positions(3)).valid.all()


def renormalised(handler: Handler, body: dict) -> bool:
    """Two labels with probability 1, as of a server that renormalises what it returns."""
    zero = {"token_id:68": 0.0, "token_id:65": 0.0}
    choices = []
    for row in range(len(body.get("prompt", [0]))):
        if "messages" in body:
            top = [{"token": token, "logprob": 0.0} for token in ("D", "A")]
            choices.append({"index": row, "logprobs": {"content": [{"top_logprobs": top}]}})
        else:
            found = {f"token_id:{token}": -9999.0 for token in body["logprob_token_ids"]} | zero
            choices.append({"index": row, "text": "D", "logprobs": {"top_logprobs": [found]}})
    handler.reply(200, {"model": body["model"], "choices": choices})
    return True


@pytest.mark.parametrize("is_vllm", [True, False])
def test_renormalised_log_probabilities_are_read_by_their_ratio_and_said_once(
    is_vllm: bool, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.is_vllm, server.misbehave = is_vllm, renormalised
    with connected_tutor(server.url) as tutor:
        for _ in range(3):
            advice = tutor.advise(positions(2))
            assert advice.valid.all()
            assert advice.probs[:, [0, 3]].eq(0.5).all()
            assert advice.label_mass.eq(1).all()
    assert caplog.text.count("add up to more than 1") == 1


def test_log_probabilities_that_add_up_to_1_are_not_remarked_on(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    for server.is_vllm in (True, False):
        with connected_tutor(server.url) as tutor:
            tutor.advise(positions(3))
    assert "add up" not in caplog.text


@pytest.mark.parametrize("is_vllm", [True, False])
@pytest.mark.parametrize("has_index", [True, False])
def test_server_that_ignores_n_is_read_prompt_by_prompt_and_said_once(
    is_vllm: bool, has_index: bool, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.is_vllm = is_vllm

    def misbehave(handler: Handler, body: dict) -> bool:
        """One text for each prompt: its column's letter is that of the prompt's length, as no other has it."""
        prompts = body["prompt"] if "prompt" in body else [body["messages"][0]["content"]]
        texts = [f"<action>{letter_of(prompt)}</action>" for prompt in prompts]
        choices = [{"text": text, "message": {"content": text}, "index": row} for row, text in enumerate(texts)]
        if not has_index:
            choices = [{name: value for name, value in choice.items() if name != "index"} for choice in choices]
        handler.reply(200, {"model": body["model"], "choices": choices})
        return True

    def letter_of(prompt: str) -> str:
        return "ABCDEFG"[zlib.crc32(prompt.replace("<s>", "").replace("</s>", "").encode()) % 7]

    server.misbehave = misbehave
    mode = TextGeneration(VIEW, thinks=False, samples=4)
    state = positions(6)
    with connected_tutor(server.url, mode=mode) as tutor:
        for _ in range(2):
            advice = tutor.advise(state)
    expected = [letter_of(prompt) for prompt in mode.render(state)]
    assert [VIEW.labels[action] for action in advice.probs.argmax(1).tolist()] == expected
    assert advice.probs.amax(1).eq(1).all()
    assert caplog.text.count("fewer texts than the 4 of --tutor-samples") == 1
