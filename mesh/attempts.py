"""The attempts of one call: where each goes, and whether another one is worth it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mesh.balancing import Attempt, Balancer
from mesh.deadline import Deadline
from mesh.endpoint import Endpoint
from mesh.errors import MeshError, Overloaded
from mesh.hop_tracing import HopSpan
from mesh.repetition import may_be_repeated, may_have_been_the_connection
from mesh.resilience import RetryBudget

MOST_ATTEMPTS = 3
RECONNECT_PAUSE_SECONDS = 0.025
"""Before the only endpoint is asked once more, when perhaps only its connection was cut."""
SHORTEST_ATTEMPT_SECONDS = 0.005
"""With less time left than this, another attempt would be in vain."""


class Attempts:
    """Counts the call in the budget, and remembers whom it was sent to.

    Args:
        balancer: chooses the endpoints.
        budget: of the hop's retries.
        deadline: the call's.
        idempotent: whether its method may be carried out twice.
        evidence: whether the outcome says something about an endpoint's work.

    Attributes:
        span: the call's, where it is traced.
    """

    def __init__(
        self, balancer: Balancer, budget: RetryBudget, deadline: Deadline, *, idempotent: bool, evidence: bool = True
    ) -> None:
        self._balancer = balancer
        self._budget = budget
        self._deadline = deadline
        self._idempotent = idempotent
        self._evidence = evidence
        self.span: HopSpan | None = None
        self._tried: list[Endpoint] = []
        self._avoid: Sequence[Endpoint] = ()
        budget.record_call()

    @contextmanager
    def next(self) -> Iterator[Attempt]:
        """The next attempt. Raises Unavailable where no endpoint serves."""
        with self._balancer.attempt(self._avoid, evidence=self._evidence) as attempt:
            self._tried.append(attempt.endpoint)
            if self.span is None:
                yield attempt
                return
            with self.span.attempt(attempt):
                yield attempt

    def pause_before_another(self, error: MeshError) -> float | None:
        """Seconds to wait before the next attempt; None where there shall be none. Takes from the budget.

        Elsewhere, where that can do no harm, and at once; at the only endpoint, where perhaps just its connection was
        cut, after a moment.
        """
        if not self._tried or not may_be_repeated(error, idempotent=self._idempotent):
            return None
        elsewhere = self._balancer.has_another(self._tried, idle=isinstance(error, Overloaded))
        if elsewhere:
            allowed = len(self._tried) < MOST_ATTEMPTS
        else:
            allowed = len(self._tried) == 1 and may_have_been_the_connection(error)
        if not allowed or self._deadline.remaining() < SHORTEST_ATTEMPT_SECONDS or not self._budget.take():
            return None
        self._avoid = self._tried if elsewhere else ()
        return 0.0 if elsewhere else RECONNECT_PAUSE_SECONDS
