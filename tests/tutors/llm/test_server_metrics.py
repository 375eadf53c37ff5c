"""vLLM's metrics: pages as it writes them, and malformed ones, against sums by hand."""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from random import Random

import pytest

from tests.helpers.fuzzing import SCALE
from tests.helpers.llm_tutors import connected_tutor, positions
from tests.helpers.scripted_server import Server, serving
from tutors.llm.pool import EndpointPool
from tutors.llm.server_metrics import COUNTERS, GAUGES, metrics_since, parse_metrics, read_metrics, sum_metrics

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
def pool(server: Server) -> Iterator[EndpointPool]:
    pool = EndpointPool([server.url])
    yield pool
    pool.close()


def metrics_of(pool: EndpointPool) -> dict[str, float]:
    """What the page of a pool's first server says."""
    return pool.run(read_metrics(pool.clients[0]))


def test_page_is_parsed_and_summed_over_the_engines(server: Server, pool: EndpointPool) -> None:
    server.metrics = page()
    assert metrics_of(pool) == {
        "vllm/requests_running": 5,
        "vllm/requests_waiting": 7,
        "vllm/prefix_cache_queries": 400,
        "vllm/prefix_cache_hits": 300,
        "vllm/prompt_tokens": 1500,
        "vllm/generation_tokens": 20,
    }


@pytest.mark.parametrize("text", NONSENSE, ids=lambda text: repr(text)[:40])
def test_malformed_page_gives_no_metrics(server: Server, pool: EndpointPool, text: str) -> None:
    server.metrics = text
    assert metrics_of(pool) == {}


def test_two_hundred_damaged_pages_give_numbers_or_nothing(server: Server, pool: EndpointPool) -> None:
    u = Random(1)
    for _ in range(200):
        text = list(page())
        for _ in range(u.randint(1, 6)):
            place = u.randrange(len(text))
            text[place : place + u.randint(0, 2)] = u.choice(['"', "{", "}", "\n", "#", "e", "-", ",", "\\", "é"])
        server.metrics = "".join(text)
        assert all(isinstance(value, float) for value in metrics_of(pool).values())


def test_server_without_the_page_has_no_metrics(server: Server, pool: EndpointPool) -> None:
    server.metrics_status = 404
    server.metrics = page()
    assert metrics_of(pool) == {}


def test_server_that_is_gone_has_no_metrics() -> None:
    with serving() as gone:
        url = gone.url
    with closing(EndpointPool([url])) as pool:
        assert metrics_of(pool) == {}


def test_counters_are_reported_as_increases_and_gauges_as_they_are() -> None:
    before = {"vllm/requests_waiting": 9.0, "vllm/prompt_tokens": 100.0, "vllm/generation_tokens": 5.0}
    before |= {"vllm/prefix_cache_queries": 1000.0, "vllm/prefix_cache_hits": 900.0}
    now = {"vllm/requests_waiting": 4.0, "vllm/prompt_tokens": 130.0, "vllm/generation_tokens": 5.0}
    now |= {"vllm/prefix_cache_queries": 1040.0, "vllm/prefix_cache_hits": 910.0}
    assert sum_metrics([metrics_since(before, now)]) == {
        "vllm/requests_waiting": 4,
        "vllm/prompt_tokens": 30,
        "vllm/generation_tokens": 0,
        "vllm/prefix_cache_hit_rate": 0.25,
    }
    assert metrics_since({}, {}) == {}
    assert metrics_since(before, {}) == {}


def test_no_queries_give_no_hit_rate() -> None:
    same = {"vllm/prefix_cache_queries": 40.0, "vllm/prefix_cache_hits": 9.0}
    assert sum_metrics([metrics_since(same, same)]) == {}
    assert sum_metrics([]) == {}


def test_servers_are_summed_and_their_hit_rates_weighted() -> None:
    parts = [{"vllm/requests_waiting": 2.0, "vllm/prefix_cache_queries": 30.0, "vllm/prefix_cache_hits": 30.0}]
    parts.append({"vllm/requests_waiting": 3.0, "vllm/prefix_cache_queries": 10.0, "vllm/prefix_cache_hits": 0.0})
    assert sum_metrics(parts) == {"vllm/requests_waiting": 5.0, "vllm/prefix_cache_hit_rate": 0.75}


def test_restarted_server_counts_from_0() -> None:
    before = {"vllm/prompt_tokens": 500.0, "vllm/prefix_cache_queries": 400.0, "vllm/prefix_cache_hits": 300.0}
    now = {"vllm/prompt_tokens": 30.0, "vllm/prefix_cache_queries": 20.0, "vllm/prefix_cache_hits": 10.0}
    assert metrics_since(before, now) == now


def test_tutor_reports_the_increase_since_it_was_connected(server: Server) -> None:
    server.metrics = page()
    with connected_tutor(server.url) as tutor:
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


def test_metrics_of_several_servers_are_summed() -> None:
    with serving() as one, serving() as other, connected_tutor(one.url, other.url) as tutor:
        one.metrics, other.metrics = page(), page(prompt=1)
        shown = tutor.report()
        tutor.pool.endpoints[1].breaker.failures = 5
        assert tutor.report()["vllm/requests_waiting"] == 7, "a server that fails is not asked"
    assert shown["vllm/requests_waiting"] == 14
    assert shown["vllm/prompt_tokens"] == 1500 + 1001


PIECES = [
    *GAUGES, *COUNTERS, "{", "}", "=", ",", '"', "\\", "\n", " ", "a", "#", "# TYPE ", "# HELP ", "le", "engine",
    '"0"', "1.0",
    "nan", "+Inf", "-1", "1e308", "1e999", "\x00", "\r", "é", "\ud800", "{, =b}", "} 1 # {a=\"b\"} 2", " 3 4 5",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_page_gives_finite_numbers_or_none(seed: int) -> None:
    """10,000 pages of what Prometheus' format is made of, and of any characters."""
    draw = Random(seed)
    for _ in range(2500 * SCALE):
        parts = [draw.choice(PIECES) for _ in range(draw.randrange(30))]
        parts += [chr(draw.randrange(0x300)) for _ in range(draw.randrange(5))]
        draw.shuffle(parts)
        found = parse_metrics("".join(parts))
        assert all(math.isfinite(value) and value >= 0 for value in found.values())
        assert all(math.isfinite(value) for value in sum_metrics([metrics_since({}, found)] * 3).values())


@pytest.mark.parametrize("text", ["a{, =b}", "vllm:prompt_tokens_total{, =b}", "vllm:prompt_tokens_total{, =b} 3"])
def test_line_that_trips_the_parser_is_left_out(text: str) -> None:
    assert parse_metrics(f"{text}\nvllm:generation_tokens_total 7\n{text}") == {"vllm/generation_tokens": 7}


@pytest.mark.parametrize(
    "text",
    [
        'vllm:prompt_tokens_total{a="' + "\\" * 10_000_000 + '"} 1',
        "vllm:prompt_tokens_total{" * 1_000_000,
        "vllm:prompt_tokens_total{,,,,,,,,} 1\n" * 200_000,
        "a 1\n" * 2_000_000,
    ],
    ids=["one label", "braces", "lines", "others' lines"],
)
def test_long_page_is_read_in_bounded_time(text: str) -> None:
    began = time.monotonic()
    parse_metrics(text)
    assert time.monotonic() - began < 2
