"""Calls through a breaker under test, as its tests speak of them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mesh.errors import Unavailable
from mesh.resilience import CircuitBreaker, TripPolicy
from mesh.resilience.breaker import Permit
from mesh.testing import FakeClock

NEVER_BY_RATE = TripPolicy(minimum_calls=10**9)


def make(clock: FakeClock, policy: TripPolicy = NEVER_BY_RATE, **arguments: Any) -> CircuitBreaker:
    """A breaker on the test's clock with fixed jitter."""
    return CircuitBreaker(clock=clock, rng=random.Random(7), policy=policy, **arguments)


def fail(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    """One call that ends with ``error``."""
    with pytest.raises(BaseException), breaker.guard():  # noqa: B017 - whatever is raised comes back out
        raise error or Unavailable("down")


def succeed(breaker: CircuitBreaker) -> None:
    """One call that is answered."""
    with breaker.guard():
        pass


def opened(clock: FakeClock, **arguments: Any) -> CircuitBreaker:
    """A breaker that has just opened."""
    breaker = make(clock, failure_threshold=1, **arguments)
    fail(breaker)
    return breaker


def settle(permit: Permit, error: BaseException | None = None) -> None:
    """A call that was let in earlier ends now."""
    permit.__exit__(type(error) if error else None, error, None)
