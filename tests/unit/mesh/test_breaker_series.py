"""A breaker's time series are there before it moves, so that Prometheus sees the first move too."""

from __future__ import annotations

from prometheus_client import REGISTRY

from mesh.breaker_series import MOVES, announce_breaker
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
    announce_breaker("announced")
    assert REGISTRY.get_sample_value("mesh_breaker_state", {"hop": "announced"}) == 0
    for cause, after in MOVES.items():
        labels = {"hop": "announced", "to": after.value, "cause": cause.value}
        assert REGISTRY.get_sample_value("mesh_breaker_transitions_total", labels) == 0


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
