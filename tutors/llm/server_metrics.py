"""vLLM's own numbers, from its Prometheus page `/metrics`."""

from prometheus_client.parser import text_string_to_metric_families

from tutors.base import TutorError
from tutors.llm.client import Client, RequestError, with_deadline

METRICS_DEADLINE_S = 2.0  # a report must not hold up training
MAX_LINE, MAX_LINES = 4096, 1000  # characters of a line, and lines, of a page that are read
MAX_VALUE = 1e18  # beyond which a number is no count
GAUGES = {
    "vllm:num_requests_waiting": "vllm/requests_waiting",
    "vllm:num_requests_running": "vllm/requests_running",
}
COUNTERS = {  # since the server's start
    "vllm:prompt_tokens_total": "vllm/prompt_tokens",
    "vllm:generation_tokens_total": "vllm/generation_tokens",
    "vllm:prefix_cache_queries_total": "vllm/prefix_cache_queries",
    "vllm:prefix_cache_hits_total": "vllm/prefix_cache_hits",
}


async def read_metrics(client: Client) -> dict[str, float]:
    """Return a server's numbers by tag, summed over its engines; none where the page cannot be read."""
    try:
        return parse_metrics(await with_deadline(METRICS_DEADLINE_S, client.get_text("/metrics")))
    except (RequestError, TutorError):
        return {}


def parse_metrics(text: str) -> dict[str, float]:
    """Return the numbers of a page by tag, summed over engines. What is no sound number of ours is left out.

    The parser sees those lines alone that may be ours, one at a time: whatever a page holds, its work is bounded.
    """
    tags = GAUGES | COUNTERS
    metrics: dict[str, float] = {}
    lines = [line for line in text.split("\n") if line.startswith(tuple(tags)) and len(line) <= MAX_LINE]
    for line in lines[:MAX_LINES]:
        for name, value in parse_line(line):
            if name in tags and 0 <= value <= MAX_VALUE:
                metrics[tags[name]] = metrics.get(tags[name], 0.0) + value
    return metrics


def parse_line(line: str) -> list[tuple[str, float]]:
    """Return the names and the values of a line's samples; none if it is not Prometheus'."""
    try:
        return [
            (one.name, float(one.value)) for family in text_string_to_metric_families(line) for one in family.samples
        ]
    except Exception:  # the parser's own errors are not all: it trips over `a{, =b}`
        return []


def metrics_since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Return gauges as they are, and counters as their increase; the whole counter if the server was restarted."""
    metrics = {tag: now[tag] for tag in GAUGES.values() if tag in now}
    for tag in COUNTERS.values():
        if tag in now:
            increase = now[tag] - before.get(tag, 0.0)
            metrics[tag] = increase if increase >= 0 else now[tag]
    return metrics


def sum_metrics(parts: list[dict[str, float]]) -> dict[str, float]:
    """Return the sums over several servers, with the prefix caches' hit rate in place of their counters."""
    total = {tag: sum(part.get(tag, 0.0) for part in parts) for tag in {tag for part in parts for tag in part}}
    queries, hits = (total.pop(tag, 0.0) for tag in ("vllm/prefix_cache_queries", "vllm/prefix_cache_hits"))
    return total | ({"vllm/prefix_cache_hit_rate": hits / queries} if queries else {})
