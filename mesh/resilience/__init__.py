"""What keeps a hop from being hurt, one concern per file; none knows gRPC.

Their locks can be taken again by the thread that holds them: the garbage collector may end an abandoned stream
anywhere, also in a thread that is just inside, and a stream's end gives its place back.

Use them alone in one line each::

    breaker = CircuitBreaker(failure_threshold=5, timeout=60)
    with breaker.guard():
        answer = ask_the_peer()
"""

from mesh.resilience.breaker import (
    BreakerSnapshot,
    BreakerState,
    Cause,
    CircuitBreaker,
    Listener,
    Transition,
    TripPolicy,
)
from mesh.resilience.budget import RetryBudget
from mesh.resilience.limiter import AdaptiveLimiter
from mesh.resilience.returning import ReturnSchedule
from mesh.resilience.service_time import ServiceTime

__all__ = [
    "AdaptiveLimiter",
    "BreakerSnapshot",
    "BreakerState",
    "Cause",
    "CircuitBreaker",
    "Listener",
    "RetryBudget",
    "ReturnSchedule",
    "ServiceTime",
    "Transition",
    "TripPolicy",
]
