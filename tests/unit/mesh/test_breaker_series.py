"""A breaker's time series are there before it moves, so that Prometheus sees the first move too."""

from __future__ import annotations

import random
from functools import partial

from prometheus_client import REGISTRY

from mesh.breaker_series import MOVES, announce_breaker, breaker_moved
from mesh.errors import Unavailable
from mesh.resilience import BreakerState, CircuitBreaker, Transition, TripPolicy
from mesh.resilience.breaker import Cause
from mesh.testing import FakeClock


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    """Calls that the peer fails."""
    for _ in range(times):
        try:
            with breaker.guard():
                raise Unavailable("away")
        except Unavailable:
            pass


def succeed(breaker: CircuitBreaker, *, clock: FakeClock, seconds: float = 0.0, times: int = 1) -> None:
    """Calls that the peer answers, each after so long."""
    for _ in range(times):
        with breaker.guard():
            clock.advance(seconds)


def test_every_move_has_its_series_from_the_start() -> None:
    """Each cause once, at 0, and a state that is closed."""
    announce_breaker(CircuitBreaker(name="announced"))
    assert REGISTRY.get_sample_value("mesh_breaker_state", {"hop": "announced"}) == 0
    for cause, after in MOVES.items():
        labels = {"hop": "announced", "to": after.value, "cause": cause.value}
        assert REGISTRY.get_sample_value("mesh_breaker_transitions_total", labels) == 0


def test_an_open_breaker_that_nobody_calls_is_told_of_as_half_open_after_its_back_off() -> None:
    """A hop without traffic, whose worker says SERVING all along, does not seem to be refusing for ever."""
    clock = FakeClock()
    breaker = CircuitBreaker(2, timeout=60, name="forgotten", clock=clock, rng=random.Random(1))
    breaker.listener = partial(breaker_moved, "forgotten")
    announce_breaker(breaker)
    told = partial(REGISTRY.get_sample_value, "mesh_breaker_state", {"hop": "forgotten"})
    fail(breaker, times=2)
    assert told() == 2
    wait = breaker.snapshot().retry_after
    assert wait is not None
    clock.advance(wait * 0.99)
    assert told() == 2
    clock.advance(wait)
    assert told() == 1
    moves = {"hop": "forgotten", "to": "half_open", "cause": "backoff_over"}
    assert REGISTRY.get_sample_value("mesh_breaker_transitions_total", moves) == 1
    fail(breaker)
    assert (told(), breaker.snapshot().cause) == (2, Cause.PROBE_FAILED)


def test_a_breaker_makes_these_moves_and_no_others() -> None:
    """All seven causes happen to a real breaker, and each leads where the table says."""
    seen: list[Transition] = []
    clock = FakeClock()
    policy = TripPolicy(minimum_calls=4, failure_rate=0.5, slow_call_seconds=1.0)
    for threshold in (2, 100):
        breaker = CircuitBreaker(threshold, policy=policy, clock=clock)
        breaker.listener = seen.append
        fail(breaker, times=5)  # in a row, or half of enough
        clock.advance(100)  # the back-off is over
        fail(breaker)  # the probe
        breaker.peer_is_serving()
        succeed(breaker, clock=clock)
        clock.advance(100)
        succeed(breaker, clock=clock, seconds=2.0, times=4)  # slow
    assert {move.cause for move in seen} == set(Cause) == MOVES.keys()
    assert all(MOVES[move.cause] is move.after for move in seen)
    assert {move.after for move in seen} == set(BreakerState)
