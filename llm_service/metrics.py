"""What the LLM worker counts beside what every worker counts, and what its engine publishes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llm_service.load import RUNNING_NAME, WAITING_NAME
from mesh.generation import EngineLoad
from mesh.telemetry import LATENCY_BUCKETS

RUNNING = Gauge(
    "mesh_llm_requests_running",
    "Requests that the engine is writing for; each of several answers to one prompt counts.",
)
WAITING = Gauge("mesh_llm_requests_waiting", "Requests that wait for the engine, counted alike.")
RUNNING_LIMIT = Gauge("mesh_llm_requests_running_limit", "Requests that the engine may write for at once.")
WAITING_LIMIT = Gauge("mesh_llm_requests_waiting_limit", "Requests that may wait; over it they are refused.")
TOKENS = Counter("mesh_llm_tokens_total", "Tokens, as the engine counted them.", ["kind"])
FIRST_PIECE = Histogram(
    "mesh_llm_time_to_first_token_seconds", "Time from a request's arrival to its first piece.", buckets=LATENCY_BUCKETS
)
ENGINE_RESTARTS = Counter("mesh_llm_engine_restarts_total", "Times that the engine was started again.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What there is to publish at one scrape.

    Attributes:
        model: the name that callers use.
        running: requests that have a slot here.
        waiting: requests that wait here.
        load: what the engine says of its own; None where it does not.
        families: the engine's own metrics.
    """

    model: str
    running: int
    waiting: int
    load: EngineLoad | None
    families: Iterable[Metric]


class EngineMetrics(Collector):
    """The engine's metrics under vLLM's names, by which ready-made autoscalers and routers read an engine's load.

    An engine that publishes none gets the two that matter most. What waits is what waits in the engine and what the
    worker keeps back in its queue: who scales by it must see both.
    """

    def __init__(self) -> None:
        self._source: Callable[[], Published] | None = None

    def publish(self, source: Callable[[], Published]) -> None:
        """Ask ``source`` at every scrape."""
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Nothing: what an engine publishes is known when it runs."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The engine's families, and the gauges of its load with the worker's queue added."""
        if self._source is None:
            return
        now = self._source()
        for family in now.families:
            if family.name not in (RUNNING_NAME, WAITING_NAME):
                yield family
        running = now.running if now.load is None else now.load.running
        waiting = now.waiting + (0 if now.load is None else now.load.waiting)
        gauges = ((RUNNING_NAME, "Requests in the batch.", running), (WAITING_NAME, "Requests that wait.", waiting))
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(name, text, labels=["model_name", "engine"])
            gauge.add_metric([now.model, "0"], value)
            yield gauge


ENGINE = EngineMetrics()
REGISTRY.register(ENGINE)
