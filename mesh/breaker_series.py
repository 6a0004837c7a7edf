"""What is told of a hop's breaker: its time series, from the first moment on, and one log line for each move.

Prometheus sees how much a counter grew only from its second value. One that begins with a breaker's first move would
hide that move, which is the one that an operator looks for.
"""

from __future__ import annotations

from functools import partial

from mesh.resilience import BreakerState, CircuitBreaker, Transition
from mesh.resilience.breaker import Cause
from mesh.telemetry import BREAKER_STATE, BREAKER_TRANSITIONS, fields, get_logger

log = get_logger(__name__)

_STATE_NUMBER = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}

MOVES: dict[Cause, BreakerState] = {
    Cause.CONSECUTIVE_FAILURES: BreakerState.OPEN,
    Cause.FAILURE_RATE: BreakerState.OPEN,
    Cause.SLOW_CALLS: BreakerState.OPEN,
    Cause.PROBE_FAILED: BreakerState.OPEN,
    Cause.BACKOFF_OVER: BreakerState.HALF_OPEN,
    Cause.PEER_SERVING: BreakerState.HALF_OPEN,
    Cause.PROBE_SUCCEEDED: BreakerState.CLOSED,
}
"""Where each cause moves a breaker to."""


def announce_breaker(breaker: CircuitBreaker) -> None:
    """Begin the series of a breaker by its name: its state, asked for at each scrape, and each of its moves."""
    name = breaker.name
    BREAKER_STATE.labels(name).set_function(partial(_state_number, breaker))
    for cause, after in MOVES.items():
        BREAKER_TRANSITIONS.labels(name, after.value, cause.value)


def breaker_moved(name: str, moved: Transition) -> None:
    """Count a move and tell it."""
    BREAKER_TRANSITIONS.labels(name, moved.after.value, moved.cause.value).inc()
    level = log.warning if moved.after is BreakerState.OPEN else log.info
    before, after = moved.before.value, moved.after.value
    said = fields(hop=name, before=before, after=after, cause=moved.cause.value, reason=moved.reason)
    level("breaker moved", extra=said)


def _state_number(breaker: CircuitBreaker) -> int:
    breaker.end_back_off()  # else one that nobody calls any more would be told of as open for ever
    return _STATE_NUMBER[breaker.snapshot().state]
