"""vLLM's own numbers: pages as it writes them, and nonsense, against sums by hand."""

from collections.abc import Iterator
from random import Random

import pytest

from tests.helpers.scripted_server import Server, serving
from tests.tutors.llm.test_tutor import MODEL, VIEW, hire, positions
from tutors.llm.client import Client
from tutors.llm.label_logprobs import LabelWay
from tutors.llm.server_metrics import add, read_metrics, since
from tutors.llm.tutor import VllmTutor

PAGE = """\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{{implementation="CPython",major="3",minor="12",version="3.12.9"}} 1.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="tiny"}} 2.0
vllm:num_requests_running{{engine="1",model_name="tiny"}} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="tiny"}} 7.0
vllm:num_requests_waiting{{engine="1",model_name="tiny"}} 0.0
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{{engine="0",model_name="tiny"}} {queries}
# HELP vllm:prefix_cache_queries_created Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{{engine="0",model_name="tiny"}} 1.7614e+09
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{engine="0",model_name="tiny"}} {hits}
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{engine="0",model_name="tiny"}} {prompt}
vllm:prompt_tokens_total{{engine="1",model_name="tiny"}} 1000.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {generation}
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.001",model_name="tiny"}} 0.0
vllm:time_to_first_token_seconds_bucket{{engine="0",le="+Inf",model_name="tiny"}} 5.0
vllm:time_to_first_token_seconds_count{{engine="0",model_name="tiny"}} 5.0
vllm:time_to_first_token_seconds_sum{{engine="0",model_name="tiny"}} 0.31
"""
NONSENSE = [
    "", "hello", "<html><body>Not Found</body></html>", '{"error": "no"}', "vllm:prompt_tokens_total", "\x00\x01",
    "vllm:prompt_tokens_total{engine=", 'vllm:prompt_tokens_total{engine="0"} many', "# TYPE", "# HELP", "{} 1", "= 1",
    "vllm:prompt_tokens_total{} ", 'vllm:prompt_tokens_total{engine="0\n"} 3',
]  # fmt: skip


def page(prompt: float = 500, generation: float = 20, queries: float = 400, hits: float = 300) -> str:
    return PAGE.format(prompt=prompt, generation=generation, queries=queries, hits=hits)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server.url)
    yield client
    client.close()


def test_a_page_is_read_and_summed_over_the_engines(server: Server, client: Client) -> None:
    server.metrics = page()
    assert read_metrics(client) == {
        "vllm/requests_running": 5,
        "vllm/requests_waiting": 7,
        "vllm/prefix_cache_queries": 400,
        "vllm/prefix_cache_hits": 300,
        "vllm/prompt_tokens": 1500,
        "vllm/generation_tokens": 20,
    }


@pytest.mark.parametrize("text", NONSENSE, ids=lambda text: repr(text)[:40])
def test_a_page_that_says_nothing_is_no_number(server: Server, client: Client, text: str) -> None:
    server.metrics = text
    assert read_metrics(client) == {}


def test_two_hundred_damaged_pages_are_numbers_or_none(server: Server, client: Client) -> None:
    u = Random(1)
    for _ in range(200):
        text = list(page())
        for _ in range(u.randint(1, 6)):
            place = u.randrange(len(text))
            text[place : place + u.randint(0, 2)] = u.choice(['"', "{", "}", "\n", "#", "e", "-", ",", "\\", "é"])
        server.metrics = "".join(text)
        assert all(isinstance(value, float) for value in read_metrics(client).values())


def test_a_server_without_such_a_page_has_no_numbers(server: Server, client: Client) -> None:
    server.metrics_status = 404
    server.metrics = page()
    assert read_metrics(client) == {}


def test_a_server_that_is_gone_has_no_numbers() -> None:
    with serving() as gone:
        url = gone.url
    client = Client(url)
    assert read_metrics(client) == {}
    client.close()


def test_counts_are_told_as_what_was_added_and_levels_as_they_are() -> None:
    before = {"vllm/requests_waiting": 9.0, "vllm/prompt_tokens": 100.0, "vllm/generation_tokens": 5.0}
    before |= {"vllm/prefix_cache_queries": 1000.0, "vllm/prefix_cache_hits": 900.0}
    now = {"vllm/requests_waiting": 4.0, "vllm/prompt_tokens": 130.0, "vllm/generation_tokens": 5.0}
    now |= {"vllm/prefix_cache_queries": 1040.0, "vllm/prefix_cache_hits": 910.0}
    assert add([since(before, now)]) == {
        "vllm/requests_waiting": 4,
        "vllm/prompt_tokens": 30,
        "vllm/generation_tokens": 0,
        "vllm/prefix_cache_hit_rate": 0.25,
    }
    assert since({}, {}) == {}
    assert since(before, {}) == {}


def test_nothing_asked_is_no_hit_rate() -> None:
    same = {"vllm/prefix_cache_queries": 40.0, "vllm/prefix_cache_hits": 9.0}
    assert add([since(same, same)]) == {}
    assert add([]) == {}


def test_several_servers_are_added_and_their_rates_weighted() -> None:
    parts = [{"vllm/requests_waiting": 2.0, "vllm/prefix_cache_queries": 30.0, "vllm/prefix_cache_hits": 30.0}]
    parts.append({"vllm/requests_waiting": 3.0, "vllm/prefix_cache_queries": 10.0, "vllm/prefix_cache_hits": 0.0})
    assert add(parts) == {"vllm/requests_waiting": 5.0, "vllm/prefix_cache_hit_rate": 0.75}


def test_a_restarted_server_counts_from_nothing() -> None:
    before = {"vllm/prompt_tokens": 500.0, "vllm/prefix_cache_queries": 400.0, "vllm/prefix_cache_hits": 300.0}
    now = {"vllm/prompt_tokens": 30.0, "vllm/prefix_cache_queries": 20.0, "vllm/prefix_cache_hits": 10.0}
    assert since(before, now) == now


def test_the_tutor_reports_what_was_added_since_it_was_hired(server: Server) -> None:
    server.metrics = page()
    tutor = hire(server.url)
    server.metrics = page(prompt=560, generation=21, queries=500, hits=390)
    tutor.advise(positions(1))
    assert tutor.report() == {
        "vllm/requests_running": 5,
        "vllm/requests_waiting": 7,
        "vllm/prompt_tokens": 60,
        "vllm/generation_tokens": 1,
        "vllm/prefix_cache_hit_rate": pytest.approx(0.9),
    }
    server.metrics = page(prompt=560, generation=21, queries=500, hits=390)
    assert tutor.report()["vllm/prompt_tokens"] == 0
    server.metrics = "gone"
    assert tutor.report() == {}
    tutor.lines[0].client.close()


def test_the_numbers_of_several_servers_are_summed() -> None:
    with serving() as one, serving() as other:
        first = Client(one.url)
        clients = [first, Client(other.url, beside=first)]
        try:
            tutor = VllmTutor(VIEW, MODEL, clients, LabelWay(VIEW))
            one.metrics, other.metrics = page(), page(prompt=1)
            shown = tutor.report()
            tutor.lines[1].breaker.failures = 5
            assert tutor.report()["vllm/requests_waiting"] == 7, "a server that fails is not asked"
        finally:
            for client in clients[::-1]:
                client.close()
    assert shown["vllm/requests_waiting"] == 14
    assert shown["vllm/prompt_tokens"] == 1500 + 1001
