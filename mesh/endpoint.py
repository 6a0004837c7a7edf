"""One place where a capability is served, as a hop sees it: a connection, its health, its load, its failures."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from mesh.errors import CircuitOpen, MeshError, Unavailable
from mesh.resilience import BreakerState, CircuitBreaker, Transition
from mesh.resilience.breaker import Permit
from mesh.telemetry import ENDPOINT_CALLS, ENDPOINT_EJECTED, ENDPOINT_SERVING, fields, get_logger

log = get_logger(__name__)

_labelled: Counter[tuple[str, str]] = Counter()
"""How many endpoints, of all clients of this process, share a time series; the last one ends it."""
_labelled_lock = threading.RLock()

SERVING = "SERVING"
NOT_SERVING = "NOT_SERVING"
UNREACHABLE = "UNREACHABLE"
UNKNOWN = "UNKNOWN"

_JUST_LOST_SECONDS = 0.5
"""After its connection is gone, an endpoint is still tried for so long where no other is left: perhaps only the
connection was cut."""
_JUST_DRAINING_SECONDS = 1.0
"""A worker that begins to drain takes calls for a moment more. It gets them where the next one is not there yet."""


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """An endpoint at one moment, for people and health scripts.

    Attributes:
        endpoint: as it was configured.
        health: SERVING, NOT_SERVING, UNREACHABLE, or UNKNOWN before anything was heard of it.
        since: when the health became so, on the monotonic clock.
        reason: why it does not serve, as the worker or gRPC's core says.
        reason_code: the same in one word.
        heard_at: when the probe last heard of it.
        address: where a name leads; for an address the same as ``endpoint``.
        in_flight: calls that it is working on for this hop.
        ejected: whether it gets no calls but probes, because its calls failed.
    """

    endpoint: str
    health: str = UNKNOWN
    since: float = 0.0
    reason: str = ""
    reason_code: str = ""
    heard_at: float | None = None
    address: str = ""
    in_flight: int = 0
    ejected: bool = False


class Endpoint:
    """One address of a hop. Its balancer counts its calls; its probe tells its health.

    Args:
        hop: the hop's name.
        written: as it was configured.
        address: as gRPC's core takes it.
        channel: its own connection, for calls and for the probe.
        breaker: a circuit breaker of its own, which ejects it where there are others; one that comes from the
            connection before this one knows already whether it does.
    """

    def __init__(self, *, hop: str, written: str, address: str, channel: Any, breaker: CircuitBreaker) -> None:
        self.address = address
        self.channel = channel
        self.breaker = breaker
        self.in_flight = 0
        self.busy_until = 0.0
        self._gone = False
        # What the probe hears, and what is asked beside it, come in by two threads of a synchronous client.
        self._lock = threading.Lock()
        self.failure: MeshError | None = None
        self.diagnosis: MeshError | None = None
        self._hop = hop
        self._ejected = breaker.snapshot().state is not BreakerState.CLOSED
        self._served_until = -math.inf
        self._health = EndpointHealth(
            written, since=time.monotonic(), address=address.removeprefix("ipv4:").removeprefix("ipv6:")
        )
        self._methods: dict[tuple[str, str], Any] = {}
        with _labelled_lock:
            _labelled[hop, self._health.address] += 1
            if _labelled[hop, self._health.address] == 1:
                # From the start: an endpoint of which nothing was heard yet is none that an alert may overlook.
                ENDPOINT_SERVING.labels(hop, self._health.address).set(0)
                ENDPOINT_EJECTED.labels(hop, self._health.address).set(0)
        self._calls = ENDPOINT_CALLS.labels(hop, self._health.address)
        breaker.name = self._health.address
        breaker.listener = self._breaker_moved

    def method(self, kind: str, path: str, *arguments: Any, **options: Any) -> Any:
        """A method of the service at this endpoint; each is made once."""
        key = (kind, path)
        if key not in self._methods:
            self._methods[key] = getattr(self.channel, kind)(path, *arguments, **options)
        return self._methods[key]

    def rank(self, now: float) -> tuple[int, int] | None:
        """How good a choice it is, least first: its tier, then its calls in flight. None: it would be in vain."""
        health = self._health
        if health.health == SERVING:
            if not self.breaker.available:
                return (2, self.in_flight)
            return (1 if now < self.busy_until else 0, self.in_flight)
        if health.health == UNKNOWN:
            return (3, self.in_flight)
        if health.health == NOT_SERVING and now - self._served_until < _JUST_DRAINING_SECONDS:
            return (4, self.in_flight)
        if health.health == UNREACHABLE and now - self._served_until < _JUST_LOST_SECONDS:
            return (5, self.in_flight)
        return None

    def permit(self, *, alone: bool) -> AbstractContextManager[Permit | None]:
        """Around one call: its outcome decides whether the endpoint is ejected.

        Alone it cannot be ejected, and the hop's own breaker sees the same calls; but one that was ejected before the
        others left is taken back by its calls.
        """
        if alone and not self._ejected:
            return nullcontext()
        try:
            return self.breaker.guard()
        except CircuitOpen:
            # It was chosen although it is ejected, because none is better: then the hop's own breaker judges.
            return nullcontext()

    def count_call(self) -> None:
        """A call is on its way there."""
        self._calls.inc()

    def leave(self) -> None:
        """It is no longer one of the hop's: its probe ends."""
        self._gone = True

    def is_gone(self) -> bool:
        """Whether it left the hop."""
        return self._gone

    @property
    def serving(self) -> bool:
        """Whether it says SERVING."""
        return self._health.health == SERVING

    @property
    def health(self) -> str:
        """SERVING, NOT_SERVING, UNREACHABLE or UNKNOWN."""
        return self._health.health

    @property
    def since(self) -> float:
        """When its health became what it is, on the monotonic clock."""
        return self._health.since

    def heard(self, health: str, failure: MeshError | None = None, detail: str = "") -> bool:
        """Take what the probe found out. Returns whether the endpoint began to serve.

        Args:
            health: the new state.
            failure: why it does not serve, typed; callers get it.
            detail: the core's own words; they name addresses and stay in the log and the status.
        """
        with self._lock:
            began = not self._gone and self._take(health, failure, detail)
        if began:
            self.breaker.peer_is_serving()
        return began

    def explain(self, failure: MeshError) -> None:
        """Take the reason why it does not serve, where it still does not."""
        with self._lock:
            if self._health.health == NOT_SERVING and not self._gone:
                self._take(NOT_SERVING, failure, "")

    def diagnose(self, diagnosis: MeshError | None) -> bool:
        """Take why it cannot be reached, where it still cannot; it stands above the core's words. True: it is news."""
        with self._lock:
            if self._health.health != UNREACHABLE or self._gone:
                return False
            known, self.diagnosis = self.diagnosis, diagnosis
            if diagnosis is not None:
                self._take(UNREACHABLE, diagnosis, "")
            return diagnosis is not None and (known is None or known.message != diagnosis.message)

    def _take(self, health: str, failure: MeshError | None, detail: str) -> bool:
        before = self._health
        now = time.monotonic()
        if health != UNREACHABLE:
            self.diagnosis = None
        elif self.diagnosis is not None:
            failure, detail = self.diagnosis, ""
        changed = before.health != health
        if changed and before.health == SERVING:
            self._served_until = now
        reason = detail or (failure.message if failure else "")
        self.failure = failure
        self._health = replace(
            before,
            health=health,
            since=now if changed else before.since,
            reason=reason,
            reason_code=failure.reason if failure else "",
            heard_at=before.heard_at if health == UNREACHABLE else now,
        )
        if changed:
            level = log.info if health == SERVING else log.warning
            level(
                "endpoint changed", extra=fields(endpoint=before.address, hop=self._hop, health=health, reason=reason)
            )
            ENDPOINT_SERVING.labels(self._hop, before.address).set(health == SERVING)
        return changed and health == SERVING

    def status(self) -> EndpointHealth:
        """The endpoint now."""
        return replace(self._health, in_flight=self.in_flight, ejected=self._ejected)

    def forget(self) -> None:
        """It left the hop: its time series end."""
        key = (self._hop, self._health.address)
        with _labelled_lock:
            _labelled[key] -= 1
            if _labelled[key] > 0:
                return
            del _labelled[key]
        for metric in (ENDPOINT_SERVING, ENDPOINT_EJECTED, ENDPOINT_CALLS):
            try:
                metric.remove(self._hop, self._health.address)
            except KeyError:  # it never had one
                continue

    def refusal(self) -> MeshError:
        """Why a call cannot be served here, for the caller."""
        if self.failure is not None and self.health == NOT_SERVING:
            failure = self.failure
            return type(failure)(
                failure.message, reason=failure.reason, hop=self._hop, retry_after=failure.retry_after or 1.0
            )
        if self.diagnosis is not None:
            return misconnected(self._hop, self.diagnosis.reason)
        return unreachable(self._hop)

    def _breaker_moved(self, move: Transition) -> None:
        ejected = move.after is not BreakerState.CLOSED
        if ejected == self._ejected or self._gone:
            return
        self._ejected = ejected
        ENDPOINT_EJECTED.labels(self._hop, self._health.address).set(ejected)
        values = fields(endpoint=self._health.address, hop=self._hop, reason=move.reason)
        if ejected:
            log.warning("endpoint ejected", extra=values)
        else:
            log.info("endpoint taken back", extra=values)


def unreachable(hop: str) -> Unavailable:
    """Nothing of a hop can be reached."""
    return Unavailable(
        f"The {hop} service cannot be reached. Try again shortly.",
        reason="NO_ENDPOINT",
        hop=hop,
        retry_after=1.0,
    )


def misconnected(hop: str, problem: str) -> Unavailable:
    """Certificates keep a hop's endpoints from being reached. Their names and dates stay in its status."""
    return Unavailable(
        f"The {hop} service cannot be reached, because certificates do not fit. The status of the hop says which.",
        reason=problem,
        hop=hop,
        retry_after=5.0,
    )
