"""The tutor against a scripted server: what it asks, what it makes of answers, and FAULTS.md 1 to 18, 21 and 22.

The server is the standard library's; how it misbehaves stands in each test.
"""

import math
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

import envs
from envs.base import State, select_rows
from envs.rng import sample_legal
from tests.helpers.scripted_server import FAVOURITE, FIRST_ID, Handler, Server, choice, serving
from tutors.base import TutorError
from tutors.llm.api import Answer, Chat
from tutors.llm.breaker import FIRST_WAIT, LONGEST_WAIT, OPENS_AFTER, Breaker
from tutors.llm.client import Client, RequestError, seconds
from tutors.llm.endpoint import Line
from tutors.llm.label_logprobs import LabelWay
from tutors.llm.models import Model, fill, find_model
from tutors.llm.server import server_for
from tutors.llm.tutor import VllmTutor
from tutors.prompts import make_view

VIEW = make_view(envs.make_game("connect4"))
MODEL = Model("tiny", "tiny", "<s>{words}</s>")


def hire(url: str, deadline: float = 60, optional: bool = False, **how: Any) -> VllmTutor:
    """A tutor that is asked for labels at `url`."""
    client = Client(url, deadline)
    try:
        return VllmTutor(VIEW, MODEL, [client], LabelWay(VIEW, **how), optional)
    except TutorError:
        client.close()
        raise


def breaker(tutor: VllmTutor) -> Breaker:
    return tutor.lines[0].breaker


def close(tutor: VllmTutor) -> None:
    tutor.lines[0].client.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def tutor(server: Server) -> Iterator[VllmTutor]:
    tutor = hire(server.url, deadline=5)
    server.asked.clear()
    yield tutor
    close(tutor)


def positions(count: int, moves: int = 3) -> State:
    """`count` different canonical positions after a few random moves."""
    env = envs.make("connect4", 50 * count, seed=count)
    step = env.reset()
    for _ in range(moves):
        step = env.step(
            sample_legal(step.action_mask, torch.rand(len(step.action_mask), generator=torch.manual_seed(0)))
        )
    state, _ = VIEW.canonicalize(env.state)
    distinct, which = VIEW.key(state)[:, 0].unique(return_inverse=True)
    rows = torch.zeros_like(distinct).scatter_(0, which, torch.arange(len(which)))
    return select_rows(state, rows[:count])


def a_full_column() -> State:
    """A position whose favourite column is full."""
    mine = theirs = 0
    for row in range(6):
        cell = 1 << FAVOURITE * 7 + row
        mine, theirs = (mine | cell, theirs) if row % 2 else (mine, theirs | cell)
    return {"mine": torch.tensor([mine]), "theirs": torch.tensor([theirs])}


def silences(tutor: VllmTutor) -> dict[str, int]:
    return {kind.removeprefix("no_advice/"): n for kind, n in tutor.stats.items() if kind.startswith("no_advice/")}


def always(status: int, body: object, **headers: str) -> Callable[[Handler, dict], bool]:
    def misbehave(handler: Handler, _body: dict) -> bool:
        handler.reply(status, body, **headers)
        return True

    return misbehave


def test_a_question_is_one_token_with_every_label_in_one_request(server: Server, tutor: VllmTutor) -> None:
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


def test_an_illegal_label_gets_nothing_and_does_not_count_as_trust(tutor: VllmTutor) -> None:
    advice = tutor.advise(a_full_column())
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


def test_little_label_mass_is_silence(server: Server) -> None:
    strict = hire(server.url, min_mass=0.95)
    advice = strict.advise(positions(3))
    close(strict)
    assert not advice.valid.any()
    assert silences(strict) == {"low_label_mass": 3}


def with_logs(logs: dict) -> Callable[[Handler, dict], bool]:
    """A server whose every answer has these log-probabilities in place of some."""

    def misbehave(handler: Handler, body: dict) -> bool:
        choices = [choice(row, body) for row in range(len(body["prompt"]))]
        for one in choices:
            one["logprobs"]["top_logprobs"][0] |= logs
        handler.reply(200, {"choices": choices})
        return True

    return misbehave


@pytest.mark.parametrize("log", [None, float("nan"), float("inf"), "-0.5", 0.5, [], True, False], ids=repr)
def test_fault_18_a_log_probability_that_is_none_is_silence(server: Server, tutor: VllmTutor, log: object) -> None:
    server.misbehave = with_logs({f"token_id:{FIRST_ID + 6}": log})
    assert not tutor.advise(positions(2)).valid.any()
    assert silences(tutor) == {"malformed": 2}


def test_fault_18_minus_infinity_everywhere_is_no_mass(server: Server, tutor: VllmTutor) -> None:
    server.misbehave = with_logs({f"token_id:{FIRST_ID + label}": -9999.0 for label in range(7)})
    assert not tutor.advise(positions(2)).valid.any()
    assert silences(tutor) == {"low_label_mass": 2}


def test_fault_1_no_server_at_start_names_the_url_and_the_command(tmp_path: Path) -> None:
    with serving() as gone:
        url = gone.url
    client = Client(url)
    model = find_model("deepseek")
    with pytest.raises(TutorError) as error, server_for(model, client, False, 0.1, tmp_path / "log", print):
        pass
    client.close()
    text = str(error.value)
    assert url in text
    assert f"vllm serve {model.model} --served-model-name deepseek" in text
    assert "--tutor tiny" in text
    assert "--tutor scripted" in text
    assert len(text.splitlines()) <= 12


def test_fault_1_an_optional_tutor_is_picked_up_later() -> None:
    with serving() as gone:
        port, url = gone.server_address[1], gone.url
    tutor = hire(url, optional=True)
    assert not tutor.advise(positions(2)).valid.any()
    with serving(port):
        breaker(tutor).look_at = 0
        assert tutor.advise(positions(2)).valid.all()
    close(tutor)
    assert silences(tutor) == {"breaker": 2}


@pytest.mark.parametrize("late", ["another model", "a chat alone"])
def test_a_server_that_comes_late_answers_only_as_what_the_answers_are_kept_under(
    late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as gone:
        port, url = gone.server_address[1], gone.url
    tutor = hire(url, optional=True)
    kept = dict(tutor.identity)
    if late == "a chat alone":
        monkeypatch.setattr(Line, "_try_dialects", chatting)
    with serving(port) as server:
        server.roots = {"tiny": "/another"} if late == "another model" else server.roots
        breaker(tutor).look_at = 0
        assert not tutor.advise(positions(2)).valid.any()
        assert tutor.lines[0].is_strange
        assert tutor.identity == kept
    close(tutor)
    assert silences(tutor) == {"other_model": 2}


async def chatting(line: Line, name: str) -> tuple[Chat, list[Answer]]:
    return Chat(), []


def test_fault_2_a_late_server_is_waited_for_and_that_is_shown(tmp_path: Path) -> None:
    with serving() as gone:
        port, url = gone.server_address[1], gone.url
    said: list[str] = []
    client = Client(url)
    over = threading.Event()

    def come_late() -> None:
        time.sleep(2)
        with serving(port):
            over.wait()

    late = threading.Thread(target=come_late)
    late.start()
    with server_for(MODEL, client, False, 30, tmp_path / "log", said.append):
        assert client.models() == {"tiny": "tiny"}
    over.set()
    late.join()
    client.close()
    assert any("waiting for" in line for line in said)


def test_fault_3_refused_in_mid_run_opens_the_breaker_which_closes_on_recovery() -> None:
    state = positions(2)
    with serving() as server:
        port = server.server_address[1]
        tutor = hire(server.url)
        assert tutor.advise(state).valid.all()
    for _ in range(OPENS_AFTER):
        assert not tutor.advise(state).valid.any()
    assert set(silences(tutor)) <= {"refused", "reset"}
    assert breaker(tutor).is_open
    before = tutor.stats["requests"]
    assert not tutor.advise(state).valid.any()
    assert tutor.stats["requests"] == before, "an open breaker asks nothing"
    breaker(tutor).look_at = 0
    assert not tutor.advise(state).valid.any()
    assert breaker(tutor).is_open, "a look that failed leaves it open"
    with serving(port):
        breaker(tutor).look_at = 0
        assert tutor.advise(state).valid.all()
    assert not breaker(tutor).is_open
    close(tutor)


def test_the_breaker_opens_after_five_failures_in_a_row_and_looks_ever_more_rarely() -> None:
    now = 0.0
    breaker = Breaker(lambda: now)
    for _ in range(OPENS_AFTER - 1):
        breaker.failed()
    breaker.worked()
    for _ in range(OPENS_AFTER - 1):
        breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open
    waits = []
    for _ in range(9):
        assert not breaker.wants_a_look
        waits.append(breaker.look_at - now)
        now = breaker.look_at
        assert breaker.wants_a_look
        breaker.failed()
    assert waits[:3] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]
    assert waits[-1] == LONGEST_WAIT
    breaker.recovered()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open, "one failure after a recovery is enough"


def test_fault_4_a_connection_that_the_server_dropped_is_replaced_in_silence(server: Server, tutor: VllmTutor) -> None:
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
    assert silences(tutor) == {}
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
    assert silences(tutor) == {"reset": 4}


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
    tutor = hire(server.url, deadline=2)
    server.misbehave = misbehave
    began = time.monotonic()
    assert not tutor.advise(positions(2)).valid.any()
    assert 1.9 < time.monotonic() - began < 2.2
    close(tutor)
    assert silences(tutor) == {"deadline": 2}


def test_fault_6_a_hundred_unanswered_questions_leak_nothing(server: Server) -> None:
    tutor = hire(server.url)
    tutor.lines[0].client.deadline = 0.03
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
            breaker(tutor).worked()
            tutor.advise(state)

    ask(5)
    before = files()
    ask(100)
    after = files()
    over.set()
    close(tutor)
    assert after <= before + 2
    assert silences(tutor) == {"deadline": 105}


def test_fault_8_a_redirect_is_not_followed_and_the_key_stays_here(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "canary")
    tutor = hire(server.url)
    with serving() as elsewhere:
        server.misbehave = always(307, {}, Location=f"{elsewhere.url}/v1/completions")
        assert not tutor.advise(positions(1)).valid.any()
        assert elsewhere.headers_seen == []
    close(tutor)
    assert all(headers["Authorization"] == "Bearer canary" for headers in server.headers_seen)
    assert silences(tutor) == {"status_307": 1}


@pytest.mark.parametrize("status", [429, 503])
def test_fault_10_a_busy_server_is_given_the_time_it_asks_for(server: Server, tutor: VllmTutor, status: int) -> None:
    times: list[float] = []

    def busy_once(handler: Handler, _body: dict) -> bool:
        times.append(time.monotonic())
        if len(times) == 1:
            handler.reply(status, {"error": {"message": "busy"}}, Retry_After="1")
        return len(times) == 1

    server.misbehave = busy_once
    assert tutor.advise(positions(2)).valid.all()
    assert times[1] - times[0] >= 1


def test_fault_10_the_time_a_server_may_ask_for_is_capped() -> None:
    assert seconds("3600") == 10
    assert seconds("-5") == seconds(None) == 0.1
    assert seconds("2.5") == 2.5
    assert seconds("Wed, 21 Oct 2026 07:28:00 GMT") == 1


def test_fault_11_one_500_is_forgotten_and_many_open_the_breaker(server: Server, tutor: VllmTutor) -> None:
    failures = [True]

    def fail(handler: Handler, _body: dict) -> bool:
        if failures:
            failures.pop()
            handler.reply(500, {"error": {"message": "engine"}})
            return True
        return False

    server.misbehave = fail
    assert tutor.advise(positions(2)).valid.all()
    server.misbehave = always(500, {"error": {"message": "engine"}})
    for _ in range(OPENS_AFTER):
        tutor.advise(positions(2))
    assert breaker(tutor).is_open
    assert silences(tutor) == {"status_500": 2 * OPENS_AFTER}


def test_fault_12_only_the_poisoned_prompt_is_silent(server: Server, tutor: VllmTutor) -> None:
    state = positions(33)
    poison = fill(MODEL.brief, VIEW.render(state)[20])

    def choke(handler: Handler, body: dict) -> bool:
        if poison in body["prompt"]:
            handler.reply(400, {"error": {"message": "bad prompt"}})
        return poison in body["prompt"]

    server.misbehave = choke
    advice = tutor.advise(state)
    assert (~advice.valid).nonzero()[:, 0].tolist() == [20]
    assert silences(tutor) == {"status_400": 1}
    assert not breaker(tutor).failures
    assert len(server.asked) < 2 * 6 + 2


def test_fault_13_a_refused_key_ends_the_run_and_is_not_printed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "canary")
    tutor = hire(server.url)
    server.misbehave = always(401, {"error": "Unauthorized"})
    with pytest.raises(TutorError, match="TUTOR_API_KEY") as error:
        tutor.advise(positions(1))
    close(tutor)
    assert "canary" not in str(error.value)


def test_fault_14_another_model_at_the_start_is_refused_and_those_served_are_listed(server: Server) -> None:
    server.models = ("llama", "gemma")
    with pytest.raises(TutorError, match="llama, gemma"):
        hire(server.url)


def test_faults_14_and_22_a_model_that_is_gone_is_not_asked_until_it_is_back(
    server: Server, tutor: VllmTutor, caplog: pytest.LogCaptureFixture
) -> None:
    server.models = ("llama", "gemma")
    server.misbehave = always(404, {"error": {"message": "no such model"}})
    assert not tutor.advise(positions(2)).valid.any()
    asked = len(server.asked)
    assert not tutor.advise(positions(2)).valid.any()
    assert len(server.asked) == asked
    assert silences(tutor) == {"other_model": 4}
    assert "its advice is not used" in caplog.text
    server.models, server.misbehave = ("tiny",), None
    breaker(tutor).look_at = 0
    assert tutor.advise(positions(2)).valid.all()


def test_fault_22_another_model_of_the_same_name_is_recognised_by_what_it_was_loaded_from(
    server: Server, tutor: VllmTutor
) -> None:
    server.roots = {"tiny": "/somewhere/else"}
    tutor.lines[0].heard_at = -math.inf  # a server that was asked a moment ago cannot have been replaced unnoticed
    assert not tutor.advise(positions(2)).valid.any()
    assert silences(tutor) == {"other_model": 2}
    server.roots = {}
    breaker(tutor).look_at = 0
    assert tutor.advise(positions(2)).valid.all()


def test_fault_22_another_model_of_the_same_name_and_place_is_recognised_by_its_answers(
    server: Server, tutor: VllmTutor
) -> None:
    server.misbehave = with_logs({f"token_id:{FIRST_ID + FAVOURITE}": -3.0})
    tutor.lines[0].heard_at = -math.inf
    assert not tutor.advise(positions(2)).valid.any()
    assert silences(tutor) == {"other_model": 2}


def test_fault_22_an_answer_in_another_name_is_not_used(server: Server, tutor: VllmTutor) -> None:
    def someone_else(handler: Handler, body: dict) -> bool:
        choices = [choice(row, body) for row in range(len(body["prompt"]))]
        handler.reply(200, {"model": "gemma", "choices": choices})
        return True

    server.misbehave = someone_else
    assert not tutor.advise(positions(2)).valid.any()
    assert silences(tutor) == {"other_model": 2}


def test_fault_15_an_error_in_a_200_is_silence(server: Server, tutor: VllmTutor) -> None:
    server.misbehave = always(200, {"error": {"message": "no"}})
    assert not tutor.advise(positions(3)).valid.any()
    assert silences(tutor) == {"error_in_200": 3}


@pytest.mark.parametrize("raw", [b"", b"not json", b"\xff\xfe", b"[1]", b"[" * 100_000, b"3"])
def test_an_answer_that_is_not_a_json_object_is_silence(server: Server, tutor: VllmTutor, raw: bytes) -> None:
    def nonsense(handler: Handler, _body: dict) -> bool:
        handler.send_raw(200, raw)
        return True

    server.misbehave = nonsense
    assert not tutor.advise(positions(2)).valid.any()
    assert silences(tutor) == {"not_json": 2}


@pytest.mark.parametrize(
    "choices",
    [None, "x", [], [{}], [{"index": 7}], [{"index": 0, "logprobs": None}], [{"index": "0"}], [3]],
    ids=repr,
)
def test_choices_that_say_nothing_are_silence(server: Server, tutor: VllmTutor, choices: object) -> None:
    server.misbehave = always(200, {"choices": choices})
    assert not tutor.advise(positions(1)).valid.any()
    assert sum(silences(tutor).values()) == 1


def test_fault_21_a_server_that_ignores_the_labels_is_found_at_the_start(server: Server) -> None:
    server.misbehave = always(200, {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:9": -1.0}]}}]})
    with pytest.raises(TutorError, match=r"vLLM 0\.26"):
        hire(server.url)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="looks like"):
        Client(url)


@pytest.fixture
def secure() -> Iterator[Server]:
    """A server whose certificate nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme = pytest.importorskip("trustme")
    trustme.CA().issue_cert("127.0.0.1", "localhost").configure_cert(context)
    with serving(tls=context) as server:
        yield server


def test_fault_9_a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_said(
    secure: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "canary")
    client = Client(secure.url)
    assert secure.url.startswith("https://")
    for work in (lambda: client.models(), lambda: client.run(client.post("/v1/completions", {"prompt": "x"}))):
        with pytest.raises(RequestError) as error:
            work()
        assert error.value.kind == "certificate"
        assert not error.value.again
    with pytest.raises(TutorError, match="certificate"), server_for(MODEL, client, False, 1, tmp_path / "log", print):
        pass
    client.close()
    with pytest.raises(TutorError, match="certificate") as refused:
        hire(secure.url)
    assert "canary" not in str(refused.value)
    assert secure.asked == []
    assert secure.headers_seen == []


def test_a_certificate_that_is_trusted_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    connector = aiohttp.TCPConnector
    monkeypatch.setattr(aiohttp, "TCPConnector", lambda **how: connector(ssl=trusting, **how))
    with serving(tls=context) as server:
        tutor = hire(server.url)
        assert tutor.advise(positions(2)).valid.all()
        close(tutor)


def test_a_key_file_is_sent_without_the_space_around_it_and_before_the_variable(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTOR_API_KEY", "another")
    path = tmp_path / "key"
    path.write_text("\n  canary-7 \n")
    client = Client(server.url, key_file=path)
    client.models()
    client.run(client.post("/v1/completions", {"model": "tiny", "prompt": ["x"]}))
    client.close()
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


def test_without_a_key_none_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUTOR_API_KEY", raising=False)
    client = Client(server.url)
    client.models()
    client.close()
    assert all("Authorization" not in headers for headers in server.headers_seen)


def peak() -> int:
    """Bytes that this process has held at most since `clear_peak`."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def clear_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


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

    tutor.lines[0].client.deadline = 60
    state = positions(2)
    tutor.advise(state)
    server.misbehave = endless
    before = clear_peak()
    began = time.monotonic()
    assert not tutor.advise(state).valid.any()
    assert time.monotonic() - began < 5
    assert peak() - before < 150 << 20
    assert sum(sent) < 100 << 20
    assert silences(tutor) == {"too_large": 2}


@pytest.mark.parametrize(
    ("order", "silent"),
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
    server: Server, tutor: VllmTutor, order: list[int], silent: dict[int, str]
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
    assert (~advice.valid).nonzero()[:, 0].tolist() == list(silent)
    assert silences(tutor) == dict(Counter(silent.values()))
    rows = [row for row in range(4) if row not in silent]
    assert advice.probs[rows].argmax(1).tolist() == rows


@contextmanager
def two_servers(**how: Any) -> Iterator[tuple[Server, Server, VllmTutor]]:
    with serving() as one, serving() as other:
        first = Client(one.url)
        clients = [first, Client(other.url, beside=first)]
        try:
            tutor = VllmTutor(VIEW, MODEL, clients, LabelWay(VIEW), **how)
            one.asked.clear()
            other.asked.clear()
            yield one, other, tutor
        finally:
            for client in clients[::-1]:
                client.close()


def prompts(server: Server) -> list[str]:
    found = [prompt for body in server.asked for prompt in body["prompt"]]
    server.asked.clear()
    return found


def test_of_two_servers_each_question_always_goes_to_the_same() -> None:
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


def test_answers_of_two_servers_are_put_where_they_were_asked_for() -> None:
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
            first = Client(one.url)
            clients = [first, Client(other.url, beside=first)]
            tutor = VllmTutor(VIEW, MODEL, clients, LabelWay(VIEW))
            prompts(other)
            assert tutor.advise(state).valid.all()
            theirs = len(prompts(other))
        for _ in range(OPENS_AFTER):
            given = tutor.advise(state).valid
            assert int((~given).sum()) == theirs, "what went to the dead one is silent until its breaker opens"
        assert tutor.lines[1].breaker.is_open
        assert not tutor.lines[0].breaker.failures
        counted = sum(silences(tutor).values())
        assert counted == OPENS_AFTER * theirs
        prompts(one)
        assert tutor.advise(state).valid.all()
        assert len(prompts(one)) == 30
        assert sum(silences(tutor).values()) == counted
        for client in clients[::-1]:
            client.close()


def test_servers_of_different_models_are_refused_at_the_start() -> None:
    with serving() as one, serving() as other:
        other.roots = {"tiny": "/somewhere/else"}
        first = Client(one.url)
        second = Client(other.url, beside=first)
        with pytest.raises(TutorError, match=r"/somewhere/else.*one model is meant"):
            VllmTutor(VIEW, MODEL, [first, second], LabelWay(VIEW))
        second.close()
        first.close()


def test_a_wait_that_is_no_number_is_a_short_one() -> None:
    assert seconds("nan") == 0.1
    assert seconds("inf") == 10
    assert seconds("-inf") == 0.1


def test_fault_13_a_key_that_is_refused_after_a_silence_ends_the_run_too(
    server: Server, tutor: VllmTutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tutor.lines[0].heard_at = -math.inf
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.reply(401, {"error": "Unauthorized"}))
    with pytest.raises(TutorError, match="TUTOR_API_KEY"):
        tutor.advise(positions(1))


def test_a_late_server_of_another_model_is_not_asked() -> None:
    with serving() as gone:
        port, url = gone.server_address[1], gone.url
    with serving() as second:
        second.roots = {"tiny": "/the/one"}
        first = Client(url)
        clients = [first, Client(second.url, beside=first)]
        tutor = VllmTutor(VIEW, MODEL, clients, LabelWay(VIEW), optional=True)
        assert tutor.advise(positions(9)).valid.all()
        with serving(port) as late:
            late.roots = {"tiny": "/another"}
            tutor.lines[0].breaker.look_at = 0
            assert tutor.advise(positions(9)).valid.all()
            assert all("Options" not in prompt for body in late.asked for prompt in body["prompt"])
            assert tutor.lines[0].is_strange
        for client in reversed(clients):
            client.close()
