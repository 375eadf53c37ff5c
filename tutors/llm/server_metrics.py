"""vLLM's own numbers, from its Prometheus page `/metrics`."""

import math

from prometheus_client.parser import text_string_to_metric_families

from tutors.base import TutorError
from tutors.llm.client import Client, RequestError, with_deadline

METRICS_DEADLINE_S = 2.0  # a report must not hold up training
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
        text = await with_deadline(METRICS_DEADLINE_S, client.get_text("/metrics"))
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except (RequestError, TutorError, ValueError, KeyError):  # the last two: the page is not Prometheus'
        return {}
    tags = GAUGES | COUNTERS
    metrics: dict[str, float] = {}
    for sample in samples:
        if sample.name in tags and math.isfinite(sample.value):
            metrics[tags[sample.name]] = metrics.get(tags[sample.name], 0.0) + sample.value
    return metrics


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
