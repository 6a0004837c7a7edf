"""What scrapers find under vLLM's names, whichever engine writes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llm_service.metrics import EngineMetrics, Published
from mesh.generation import EngineLoad

EXPOSITION = """\
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="m"} 45.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 2.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 2.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.3
"""


def scraped(now: Published | None) -> dict[str, float]:
    """Every sample's name and value."""
    registry, metrics = CollectorRegistry(), EngineMetrics()
    registry.register(metrics)
    if now is not None:
        metrics.publish(lambda: now)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_what_waits_is_what_waits_in_the_engine_and_here() -> None:
    """An autoscaler sees the whole queue, and the engine's own gauge does not stand beside it."""
    found = scraped(
        Published(
            model="m",
            running=9,
            waiting=4,
            load=EngineLoad(running=8, waiting=3),
            families=text_string_to_metric_families(EXPOSITION),
        )
    )
    assert found["vllm:num_requests_waiting"] == 7
    assert found["vllm:num_requests_running"] == 8
    assert found["vllm:kv_cache_usage_perc"] == 0.5
    assert found["vllm:generation_tokens_total"] == 45
    assert found["vllm:time_to_first_token_seconds_count"] == 2


def test_an_engine_without_metrics_has_the_two_that_matter() -> None:
    """Routers balance over engines of every kind."""
    found = scraped(Published(model="m", running=1, waiting=4, load=None, families=()))
    assert found == {"vllm:num_requests_running": 1, "vllm:num_requests_waiting": 4}


def test_before_there_is_a_worker_nothing_is_published() -> None:
    """Not even zeros, which would read as an idle engine."""
    assert scraped(None) == {}
