"""What is told of every call that a worker served: metrics, and one log line; of refusals so many lines a second."""

from __future__ import annotations

from contextvars import Context
from typing import Any

from prometheus_client import Counter

from mesh.clock import Clock, monotonic
from mesh.errors import BreakerEffect, CallerRefused, MeshError, Unavailable
from mesh.telemetry import RPC_CALLS, RPC_IN_FLIGHT, RPC_LATENCY, fields, get_logger

log = get_logger(__name__)

REFUSALS_PER_SECOND = 10
"""Lines. A worker that refuses thousands of calls a second must not spend its time on saying so; metrics count all."""


class MethodSeries:
    """The metrics of one method. Series are looked up once: a refusal has to be cheap."""

    def __init__(self, service: str, method: str) -> None:
        self.service = service
        self.method = method
        self.in_flight = RPC_IN_FLIGHT.labels(service)
        self._latency = RPC_LATENCY.labels(service, method)
        self._outcomes: dict[str, Counter] = {}

    @property
    def names(self) -> dict[str, str]:
        """Service and method, as fields of a log line."""
        return {"service": self.service, "method": self.method}

    def finished(self, outcome: str, seconds: float) -> None:
        """A call that was counted as in flight is over."""
        self.in_flight.dec()
        self._latency.observe(seconds)
        calls = self._outcomes.get(outcome)
        if calls is None:
            calls = self._outcomes[outcome] = RPC_CALLS.labels(self.service, self.method, outcome)
        calls.inc()


class CallJournal:
    """One log line per call, but no more than so many refusals a second; what is left out is counted."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._refusals = 0
        self._left_out = 0

    def finished(self, series: MethodSeries, outcome: str, seconds: float, failure: MeshError | None) -> None:
        """Say how a call ended."""
        if self._second != (second := int(self._clock())):
            self._second, self._refusals = second, 0
            self._tell_left_out()
        if _is_refusal(failure):
            self._refusals += 1
            if self._refusals > REFUSALS_PER_SECOND:
                self._left_out += 1
                return
        values: dict[str, Any] = {**series.names, "outcome": outcome, "ms": round(seconds * 1000, 2)}
        if failure is not None:
            values["reason"] = failure.reason
        log.info("call", extra=fields(**values))

    def _tell_left_out(self) -> None:
        if self._left_out:
            # Outside of this call's context: the line is about others.
            Context().run(log.info, "further calls were refused", extra=fields(calls=self._left_out))
            self._left_out = 0


def _is_refusal(failure: MeshError | None) -> bool:
    """Whether a call failed by being turned away, which happens often and says the same each time."""
    return failure is not None and (
        failure.breaker is BreakerEffect.BUSY or isinstance(failure, Unavailable | CallerRefused)
    )
