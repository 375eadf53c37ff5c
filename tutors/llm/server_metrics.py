"""vLLM's own numbers, as its `/metrics` shows them."""

import math

from prometheus_client.parser import text_string_to_metric_families

from tutors.base import TutorError
from tutors.llm.client import Client, RequestError

DEADLINE = 2.0  # seconds: a report must not hold up the training
LEVELS = {  # how it stands now
    "vllm:num_requests_waiting": "vllm/requests_waiting",
    "vllm:num_requests_running": "vllm/requests_running",
}
COUNTS = {  # how often since the server's start
    "vllm:prompt_tokens_total": "vllm/prompt_tokens",
    "vllm:generation_tokens_total": "vllm/generation_tokens",
    "vllm:prefix_cache_queries_total": "vllm/prefix_cache_queries",
    "vllm:prefix_cache_hits_total": "vllm/prefix_cache_hits",
}


def read_metrics(client: Client) -> dict[str, float]:
    """Return what a server says of itself, by tag, summed over its engines; nothing where it says nothing."""
    try:
        text = client.run(client.within(DEADLINE, client.text("/metrics")))
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    except (RequestError, TutorError, ValueError, KeyError):  # the last two: not what Prometheus writes
        return {}
    tags = LEVELS | COUNTS
    found: dict[str, float] = {}
    for sample in samples:
        if sample.name in tags and math.isfinite(sample.value):
            found[tags[sample.name]] = found.get(tags[sample.name], 0.0) + sample.value
    return found


def since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """Return how a server stands, and what it has counted between two readings; all of it if it has begun anew."""
    shown = {tag: now[tag] for tag in LEVELS.values() if tag in now}
    for tag in COUNTS.values():
        if tag in now:
            shown[tag] = now[tag] - before.get(tag, 0.0) if now[tag] >= before.get(tag, 0.0) else now[tag]
    return shown


def add(parts: list[dict[str, float]]) -> dict[str, float]:
    """Return the sums over several servers, and the share of their tokens that was cached already."""
    total = {tag: sum(part.get(tag, 0.0) for part in parts) for tag in {tag for part in parts for tag in part}}
    queries, hits = (total.pop(tag, 0.0) for tag in ("vllm/prefix_cache_queries", "vllm/prefix_cache_hits"))
    return total | ({"vllm/prefix_cache_hit_rate": hits / queries} if queries else {})
