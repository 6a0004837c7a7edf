"""What is kept of every request: metrics, and one log line; of a flood of refusals, a sum."""

from __future__ import annotations

from collections import Counter as Tally
from functools import cache
from typing import Any, NamedTuple

from prometheus_client import Counter, Histogram
from starlette.types import Scope

from gateway.exchange import Exchange
from gateway.loop import Later, later_on_this_loop
from gateway.refusals import RecentRefusals
from mesh.telemetry import LATENCY_BUCKETS, fields, get_logger

_LOG = get_logger(__name__)

REQUESTS = Counter("mesh_http_requests_total", "HTTP requests answered.", ["route", "method", "status"])
LATENCY = Histogram(
    "mesh_http_request_duration_seconds", "Time from a request's first byte to its answer's last.", ["route", "method"],
    buckets=LATENCY_BUCKETS,
)  # fmt: skip

_QUIET_ROUTES = frozenset({"/health/live", "/health/ready", "/health", "/metrics"})
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS"})
REFUSALS_LOGGED_PER_SECOND = 10


def route_label(scope: Scope) -> str:
    """The route's template, for metrics: a path that a client made up must not become a time series."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


def method_label(scope: Scope) -> str:
    """The request's method, which is the client's word too: one that nobody serves is ``other``."""
    return scope["method"] if scope["method"] in _METHODS else "other"


def is_quiet(route: str, status: int) -> bool:
    """Whether it is a probe that was answered well, which nobody wants to read about."""
    return route in _QUIET_ROUTES and status < 400


@cache
def _series(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    """The time series of a request; finding one by its labels costs as much as all the rest of the counting."""
    return REQUESTS.labels(route, method, str(status)), LATENCY.labels(route, method)


class Journal:
    """Counts, times and logs requests.

    Args:
        later: how to wait for the end of a second of refusals; left out, on the running event loop.
    """

    def __init__(self, later: Later = later_on_this_loop) -> None:
        self._refusals = _Refusals(later)
        self.recent = RecentRefusals()
        """What was refused in the last minutes, for people."""

    def record(self, exchange: Exchange, scope: Scope, status: int) -> None:
        """Keep what is to be kept of a request that was answered with ``status``."""
        milliseconds = exchange.elapsed_ms()
        route = route_label(scope)
        requests, latency = _series(route, method_label(scope), status)
        requests.inc()
        latency.observe(milliseconds / 1000)
        if exchange.outcome != "ok":
            self.recent.note(route, status, exchange.outcome, exchange.failed_hop)
        if is_quiet(route, status):
            return
        if exchange.refused and not self._refusals.told_singly(_Kind(route, exchange.dialect.value, exchange.outcome)):
            return
        _LOG.info("request", extra=fields(**_line(exchange, scope, status, milliseconds)))


def _line(exchange: Exchange, scope: Scope, status: int, milliseconds: float) -> dict[str, Any]:
    return {
        "method": scope["method"],
        "path": exchange.path[:256],
        "status": status,
        "outcome": exchange.outcome,
        "ms": round(milliseconds, 2),
        **exchange.notes,
        **{f"{name}_ms": round(value, 2) for name, value in exchange.timings_ms.items()},
    }


class _Kind(NamedTuple):
    """What refusals have in common. No word of the client is in it, such as a path: those have no end."""

    route: str
    dialect: str
    outcome: str


class _Refusals:
    """The first refusals of a second get lines of their own; the others, which are all alike, one line together.

    A log line costs more than a refusal itself, and an overload is no time to spend on either.
    """

    def __init__(self, later: Later) -> None:
        self._later = later
        self._told = 0
        self._left_out: Tally[_Kind] = Tally()

    def told_singly(self, kind: _Kind) -> bool:
        """Whether this one gets a line of its own; otherwise it is counted for the line at the second's end."""
        if self._told == 0:
            self._later(1.0, self._end_second)
        self._told += 1
        if self._told <= REFUSALS_LOGGED_PER_SECOND:
            return True
        self._left_out[kind] += 1
        return False

    def _end_second(self) -> None:
        for kind, count in self._left_out.items():
            _LOG.info("requests refused without a line of their own", extra=fields(**kind._asdict(), n=count))
        self._left_out.clear()
        self._told = 0
