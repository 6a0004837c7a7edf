"""What the limiter promises."""

from __future__ import annotations

import pytest

from mesh.errors import AttemptTimedOut, InvalidRequest, MeshError, Overloaded
from mesh.resilience import AdaptiveLimiter
from mesh.testing import FakeClock


def finish(limiter: AdaptiveLimiter, error: MeshError | None = None) -> None:
    """One call alone, ended with ``error``."""
    slot = limiter.slot()
    slot.__exit__(type(error) if error else None, error, None)


def test_over_the_limit_the_answer_is_no_at_once() -> None:
    """Nothing queues: the call beyond the limit is refused with the time to come back."""
    limiter = AdaptiveLimiter(initial=8, minimum=8, clock=FakeClock())
    slots = [limiter.slot() for _ in range(8)]
    with pytest.raises(Overloaded) as caught:
        limiter.slot()
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 0
    slots[0].__exit__(None, None, None)
    limiter.slot()


@pytest.mark.parametrize("error", [Overloaded("busy"), AttemptTimedOut("slow")])
def test_it_shrinks_when_the_peer_is_busy_but_never_below_its_minimum(error: MeshError) -> None:
    """Each busy answer, at most one per call time, takes a tenth."""
    clock = FakeClock()
    limiter = AdaptiveLimiter(initial=100, minimum=8, clock=clock)
    clock.advance(1)
    finish(limiter, error)
    finish(limiter, error)
    assert limiter.limit == 90
    for _ in range(100):
        clock.advance(1)
        finish(limiter, error)
    assert limiter.limit == 8


def test_it_grows_while_it_is_in_use_and_never_above_its_maximum() -> None:
    """A full round of successes adds about one."""
    limiter = AdaptiveLimiter(initial=10, minimum=8, maximum=12, clock=FakeClock())
    for _ in range(100):
        slots = [limiter.slot() for _ in range(limiter.limit)]
        for slot in slots:
            slot.__exit__(None, None, None)
    assert limiter.limit == 12


def test_it_does_not_grow_while_nobody_needs_it() -> None:
    """Calls one at a time prove nothing about many at once."""
    limiter = AdaptiveLimiter(initial=10, minimum=8, clock=FakeClock())
    for _ in range(1000):
        finish(limiter)
    assert limiter.limit == 10


def test_other_errors_neither_shrink_nor_leak() -> None:
    """A bad request gives its place back and changes nothing."""
    limiter = AdaptiveLimiter(initial=10, minimum=8, clock=FakeClock())
    for _ in range(100):
        finish(limiter, InvalidRequest("bad"))
    assert (limiter.limit, limiter.in_flight) == (10, 0)


def test_nonsense_is_refused() -> None:
    """The bounds have an order."""
    with pytest.raises(ValueError):
        AdaptiveLimiter(initial=4, minimum=8)
