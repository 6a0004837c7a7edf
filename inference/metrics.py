"""What a batcher tells Prometheus. One series per capability."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

_QUEUE_TOKENS = Gauge("mesh_batch_queue_tokens", "Tokens that wait for the engine.", ["capability"])
_BATCH_SIZE = Histogram(
    "mesh_batch_size", "Inputs in one batch.", ["capability"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
)
_TOKENS = Counter("mesh_batch_tokens_total", "Tokens that the engine read, padding left out.", ["capability"])
_PADDING = Counter("mesh_batch_padding_tokens_total", "Padding that was computed beside them.", ["capability"])
_QUEUE_SECONDS = Histogram(
    "mesh_batch_queue_seconds",
    "Time from a request's admission to its first batch.",
    ["capability", "lane"],
    buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0),
)
_INFERENCE_SECONDS = Histogram(
    "mesh_batch_inference_seconds",
    "Time the engine took for one batch.",
    ["capability"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
_REFUSED = Counter("mesh_batch_refused_total", "Requests refused at admission or dropped.", ["capability", "why"])
_FAILURES = Counter("mesh_batch_failures_total", "Batches that the engine failed.", ["capability", "why"])
_SPLITS = Counter("mesh_batch_splits_total", "Batches split after a failure.", ["capability", "why"])


@dataclass(frozen=True, slots=True)
class BatchMetrics:
    """The batcher's metrics, bound to one capability."""

    capability: str

    def queued(self, tokens: int) -> None:
        """Tokens that wait now."""
        _QUEUE_TOKENS.labels(self.capability).set(tokens)

    def batch(self, *, size: int, tokens: int, longest: int, seconds: float) -> None:
        """One batch is computed."""
        _BATCH_SIZE.labels(self.capability).observe(size)
        _TOKENS.labels(self.capability).inc(tokens)
        _PADDING.labels(self.capability).inc(size * longest - tokens)
        _INFERENCE_SECONDS.labels(self.capability).observe(seconds)

    def waited(self, lane: str, seconds: float) -> None:
        """A request's first item went to the engine."""
        _QUEUE_SECONDS.labels(self.capability, lane).observe(seconds)

    def refused(self, why: str) -> None:
        """A request was not computed: ``full``, ``deadline``, ``cancelled`` or ``draining``."""
        _REFUSED.labels(self.capability, why).inc()

    def failed(self, why: str) -> None:
        """The engine failed a batch: ``oom`` or ``error``."""
        _FAILURES.labels(self.capability, why).inc()

    def split(self, why: str) -> None:
        """A failing batch was split: ``oom`` or ``error``."""
        _SPLITS.labels(self.capability, why).inc()
