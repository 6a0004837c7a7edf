"""What a hop tells about itself: its status for people, its metrics for machines."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import Counter

from mesh.endpoint import SERVING, EndpointHealth
from mesh.resilience import BreakerSnapshot, BreakerState
from mesh.telemetry import HOP_CALLS, HOP_LATENCY

LATENCY_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class HopStatus:
    """A hop at one moment, for people and health scripts."""

    name: str
    service: str
    endpoints: tuple[EndpointHealth, ...]
    breaker: BreakerSnapshot
    in_flight: int
    limit: int
    calls: int
    p50_seconds: float | None
    p99_seconds: float | None
    retries: int = 0

    @property
    def serving(self) -> bool:
        """Whether a call has a chance: an endpoint serves and the breaker is not open."""
        some_serve = any(endpoint.health == SERVING for endpoint in self.endpoints)
        return some_serve and self.breaker.state is not BreakerState.OPEN


@dataclass(slots=True)
class Latencies:
    """The latest successful calls' times."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_SAMPLES))
    calls: int = 0
    timed: int = 0

    def took(self, seconds: float) -> None:
        """Keep one successful call's time."""
        self.timed += 1
        self.samples.append(seconds)

    def since(self, mark: int) -> tuple[int, Sequence[float]]:
        """The times of the calls after the first ``mark``, oldest first, and the mark to ask with the next time.

        At most the latest `LATENCY_SAMPLES` of them.
        """
        timed, kept = self.timed, list(self.samples.copy())
        return timed, kept[-min(timed - mark, len(kept)) :] if timed > mark else []

    def quantile(self, share: float) -> float | None:
        """The time within which this share of the calls was done, in seconds; None before the first."""
        # Copied at once: other threads append.
        ordered = sorted(self.samples.copy())
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class Meter:
    """One method's metrics. Finding a labelled metric takes a lock and a dictionary, so each is found once."""

    def __init__(self, hop: str, method: str) -> None:
        self._hop = hop
        self._method = method
        self._latency = HOP_LATENCY.labels(hop, method)
        self._outcomes: dict[str, Counter] = {}

    def record(self, outcome: str, seconds: float) -> None:
        """Count one finished call."""
        if outcome not in self._outcomes:
            self._outcomes[outcome] = HOP_CALLS.labels(self._hop, self._method, outcome)
        self._outcomes[outcome].inc()
        self._latency.observe(seconds)
