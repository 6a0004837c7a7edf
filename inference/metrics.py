"""What a batcher tells Prometheus. One series per capability."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from mesh.context import Priority

Refusal = Literal["full", "deadline", "cancelled", "draining"]

_REFUSALS: tuple[Refusal, ...] = get_args(Refusal)
_FAILURE_KINDS = ("oom", "error")

_QUEUE_TOKENS = Gauge("mesh_batch_queue_tokens", "Tokens that wait for the engine.", ["capability"])
_QUEUE_LIMIT = Gauge(
    "mesh_batch_queue_limit_tokens", "Tokens that may wait; over it requests are refused.", ["capability"]
)
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
_REFUSED = Counter(
    "mesh_batch_requests_refused_total", "Requests refused at admission or dropped.", ["capability", "reason"]
)
_FAILURES = Counter("mesh_batch_failures_total", "Batches that the engine failed.", ["capability", "reason"])
_SPLITS = Counter("mesh_batch_splits_total", "Batches split after a failure.", ["capability", "reason"])


class BatchMetrics:
    """The batcher's metrics, bound to one capability. Series are looked up once: a refusal has to be cheap.

    Args:
        capability: whose batches.
        queued_tokens: tokens that may wait.
    """

    def __init__(self, capability: str, *, queued_tokens: int) -> None:
        _QUEUE_LIMIT.labels(capability).set(queued_tokens)
        self._queue_tokens = _QUEUE_TOKENS.labels(capability)
        self._size = _BATCH_SIZE.labels(capability)
        self._tokens = _TOKENS.labels(capability)
        self._padding = _PADDING.labels(capability)
        self._inference_seconds = _INFERENCE_SECONDS.labels(capability)
        self._queue_seconds = {lane: _QUEUE_SECONDS.labels(capability, lane.value) for lane in Priority}
        self._refused = {why: _REFUSED.labels(capability, why) for why in _REFUSALS}
        self._failures = {why: _FAILURES.labels(capability, why) for why in _FAILURE_KINDS}
        self._splits = {why: _SPLITS.labels(capability, why) for why in _FAILURE_KINDS}

    def queued(self, tokens: int) -> None:
        """Tokens that wait now."""
        self._queue_tokens.set(tokens)

    def batch(self, *, size: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """One batch is computed."""
        self._size.observe(size)
        self._tokens.inc(tokens)
        self._padding.inc(padded_tokens - tokens)
        self._inference_seconds.observe(seconds)

    def waited(self, lane: Priority, seconds: float) -> None:
        """A request's first item went to the engine."""
        self._queue_seconds[lane].observe(seconds)

    def refused(self, why: Refusal) -> None:
        """A request was not computed."""
        self._refused[why].inc()

    def failed(self, *, out_of_memory: bool) -> None:
        """The engine failed a batch."""
        self._failures["oom" if out_of_memory else "error"].inc()

    def split(self, *, out_of_memory: bool) -> None:
        """A failing batch was split."""
        self._splits["oom" if out_of_memory else "error"].inc()
