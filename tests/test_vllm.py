"""The tutor against a scripted server: what it asks, what it makes of answers, and FAULTS.md 1 to 15.

The server is the standard library's; how it misbehaves stands in each test.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import envs
from envs.base import State, rows_of
from envs.luck import pick
from tests.scripted_server import FAVOURITE, FIRST_ID, Handler, Server, choice, serving
from tutors.base import TutorError
from tutors.breaker import FIRST_WAIT, LONGEST_WAIT, OPENS_AFTER, Breaker
from tutors.client import Client, seconds
from tutors.label import LabelWay
from tutors.models import Model, fill, find_model
from tutors.server import server_for
from tutors.views import make_view
from tutors.vllm import VllmTutor

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
        step = env.step(pick(step.legal, torch.rand(len(step.legal), generator=torch.manual_seed(0))))
    state, _ = VIEW.canonical(env.state)
    distinct, which = VIEW.key(state)[:, 0].unique(return_inverse=True)
    rows = torch.zeros_like(distinct).scatter_(0, which, torch.arange(len(which)))
    return rows_of(state, rows[:count])


def a_full_column() -> State:
    """A position whose favourite column is full."""
    mine = theirs = 0
    for row in range(6):
        cell = 1 << FAVOURITE * 7 + row
        mine, theirs = (mine | cell, theirs) if row % 2 else (mine, theirs | cell)
    return {"mine": torch.tensor([mine]), "theirs": torch.tensor([theirs])}


def silences(tutor: VllmTutor) -> dict[str, int]:
    return {kind.removeprefix("silent/"): n for kind, n in tutor.stats.items() if kind.startswith("silent/")}


def always(status: int, body: object, **headers: str) -> Callable[[Handler, dict], bool]:
    def misbehave(handler: Handler, _body: dict) -> bool:
        handler.reply(status, body, **headers)
        return True

    return misbehave


def test_a_question_is_one_token_with_every_label_in_one_request(server: Server, tutor: VllmTutor) -> None:
    state = positions(40)
    tutor.advise(state)
    (body,) = server.asked
    assert body["prompt"] == [f"<s>{words}</s>" for words in VIEW.words(state)]
    assert body["max_tokens"] == 1
    assert body["temperature"] == 0
    assert body["logprob_token_ids"] == [FIRST_ID + label for label in range(7)]
    assert tutor.stats["asked"] == 40


def test_advice_is_the_softmax_over_legal_labels_and_their_mass(tutor: VllmTutor) -> None:
    advice = tutor.advise(positions(5))
    assert advice.given.all()
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
    many = rows_of(state, torch.arange(2500) % 10)
    assert tutor.advise(many).given.all()
    assert sorted(len(body["prompt"]) for body in server.asked) == [452, 1024, 1024]


def test_little_label_mass_is_silence(server: Server) -> None:
    strict = hire(server.url, min_mass=0.95)
    advice = strict.advise(positions(3))
    close(strict)
    assert not advice.given.any()
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


@pytest.mark.parametrize("log", [None, float("nan"), float("inf"), "-0.5", 0.5, [], True], ids=repr)
def test_fault_18_a_log_probability_that_is_none_is_silence(server: Server, tutor: VllmTutor, log: object) -> None:
    server.misbehave = with_logs({f"token_id:{FIRST_ID + 6}": log})
    assert not tutor.advise(positions(2)).given.any()
    assert silences(tutor) == {"malformed": 2}


def test_fault_18_minus_infinity_everywhere_is_no_mass(server: Server, tutor: VllmTutor) -> None:
    server.misbehave = with_logs({f"token_id:{FIRST_ID + label}": -9999.0 for label in range(7)})
    assert not tutor.advise(positions(2)).given.any()
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
    assert not tutor.advise(positions(2)).given.any()
    with serving(port):
        breaker(tutor).look_at = 0
        assert tutor.advise(positions(2)).given.all()
    close(tutor)
    assert silences(tutor) == {"breaker": 2}


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
        assert tutor.advise(state).given.all()
    for _ in range(OPENS_AFTER):
        assert not tutor.advise(state).given.any()
    assert set(silences(tutor)) <= {"refused", "reset"}
    assert breaker(tutor).is_open
    before = tutor.stats["requests"]
    assert not tutor.advise(state).given.any()
    assert tutor.stats["requests"] == before, "an open breaker asks nothing"
    breaker(tutor).look_at = 0
    assert not tutor.advise(state).given.any()
    assert breaker(tutor).is_open, "a look that failed leaves it open"
    with serving(port):
        breaker(tutor).look_at = 0
        assert tutor.advise(state).given.all()
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
    assert tutor.advise(positions(3)).given.all()
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
    assert not tutor.advise(positions(4)).given.any()
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
    assert not tutor.advise(positions(2)).given.any()
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
        assert not tutor.advise(positions(1)).given.any()
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
    assert tutor.advise(positions(2)).given.all()
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
    assert tutor.advise(positions(2)).given.all()
    server.misbehave = always(500, {"error": {"message": "engine"}})
    for _ in range(OPENS_AFTER):
        tutor.advise(positions(2))
    assert breaker(tutor).is_open
    assert silences(tutor) == {"status_500": 2 * OPENS_AFTER}


def test_fault_12_only_the_poisoned_prompt_is_silent(server: Server, tutor: VllmTutor) -> None:
    state = positions(33)
    poison = fill(MODEL.brief, VIEW.words(state)[20])

    def choke(handler: Handler, body: dict) -> bool:
        if poison in body["prompt"]:
            handler.reply(400, {"error": {"message": "bad prompt"}})
        return poison in body["prompt"]

    server.misbehave = choke
    advice = tutor.advise(state)
    assert (~advice.given).nonzero()[:, 0].tolist() == [20]
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
    assert not tutor.advise(positions(2)).given.any()
    asked = len(server.asked)
    assert not tutor.advise(positions(2)).given.any()
    assert len(server.asked) == asked
    assert silences(tutor) == {"other_model": 4}
    assert "its advice is not used" in caplog.text
    server.models, server.misbehave = ("tiny",), None
    breaker(tutor).look_at = 0
    assert tutor.advise(positions(2)).given.all()


def test_fault_22_another_model_of_the_same_name_is_recognised_by_what_it_was_loaded_from(
    server: Server, tutor: VllmTutor
) -> None:
    server.roots = {"tiny": "/somewhere/else"}
    tutor.lines[0].heard_at = -math.inf  # a server that was asked a moment ago cannot have been replaced unnoticed
    assert not tutor.advise(positions(2)).given.any()
    assert silences(tutor) == {"other_model": 2}
    server.roots = {}
    breaker(tutor).look_at = 0
    assert tutor.advise(positions(2)).given.all()


def test_fault_22_another_model_of_the_same_name_and_place_is_recognised_by_its_answers(
    server: Server, tutor: VllmTutor
) -> None:
    server.misbehave = with_logs({f"token_id:{FIRST_ID + FAVOURITE}": -3.0})
    tutor.lines[0].heard_at = -math.inf
    assert not tutor.advise(positions(2)).given.any()
    assert silences(tutor) == {"other_model": 2}


def test_fault_22_an_answer_in_another_name_is_not_used(server: Server, tutor: VllmTutor) -> None:
    def someone_else(handler: Handler, body: dict) -> bool:
        choices = [choice(row, body) for row in range(len(body["prompt"]))]
        handler.reply(200, {"model": "gemma", "choices": choices})
        return True

    server.misbehave = someone_else
    assert not tutor.advise(positions(2)).given.any()
    assert silences(tutor) == {"other_model": 2}


def test_fault_15_an_error_in_a_200_is_silence(server: Server, tutor: VllmTutor) -> None:
    server.misbehave = always(200, {"error": {"message": "no"}})
    assert not tutor.advise(positions(3)).given.any()
    assert silences(tutor) == {"error_in_200": 3}


@pytest.mark.parametrize("raw", [b"", b"not json", b"\xff\xfe", b"[1]", b"[" * 100_000, b"3"])
def test_an_answer_that_is_not_a_json_object_is_silence(server: Server, tutor: VllmTutor, raw: bytes) -> None:
    def nonsense(handler: Handler, _body: dict) -> bool:
        handler.send_raw(200, raw)
        return True

    server.misbehave = nonsense
    assert not tutor.advise(positions(2)).given.any()
    assert silences(tutor) == {"not_json": 2}


@pytest.mark.parametrize(
    "choices",
    [None, "x", [], [{}], [{"index": 7}], [{"index": 0, "logprobs": None}], [{"index": "0"}], [3]],
    ids=repr,
)
def test_choices_that_say_nothing_are_silence(server: Server, tutor: VllmTutor, choices: object) -> None:
    server.misbehave = always(200, {"choices": choices})
    assert not tutor.advise(positions(1)).given.any()
    assert sum(silences(tutor).values()) == 1


def test_fault_21_a_server_that_ignores_the_labels_is_found_at_the_start(server: Server) -> None:
    server.misbehave = always(200, {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:9": -1.0}]}}]})
    with pytest.raises(TutorError, match=r"vLLM 0\.26"):
        hire(server.url)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="looks like"):
        Client(url)
