"""One hop: everything between a client's method and gRPC's own channel.

A call passes these layers, outermost first, and every layer is left on the way out, whatever happened:

=============  =====================================================================================================
observe        counts and times every call, also those that the next layers refuse
limiter        refuses before anything is spent; the breaker must not see what never left
breaker        refuses without asking a peer that fails; sees only what the layers inside say about the peer
deadline       refuses work that cannot finish; turns the caller's deadline into this RPC's timeout
translate      turns gRPC statuses into MeshErrors, so that all layers outside judge one vocabulary
stub           the generated method, on a channel whose service config spreads, skips the unhealthy, and retries
=============  =====================================================================================================

They wrap the stub call instead of being gRPC interceptors: in grpc.aio an error surfaces when the call is awaited,
which an interceptor does not see.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, Field

from mesh.channel import CLIENT_OPTIONS, Target, endpoints_of, joined_target, message_size_options, service_config
from mesh.context import current_call
from mesh.deadline import Deadline
from mesh.errors import MeshError
from mesh.probe import SERVING, EndpointHealth, HealthProbe
from mesh.resilience import AdaptiveLimiter, BreakerSnapshot, BreakerState, CircuitBreaker
from mesh.telemetry import (
    BREAKER_STATE,
    BREAKER_TRANSITIONS,
    HOP_CALLS,
    HOP_IN_FLIGHT,
    HOP_LATENCY,
    HOP_LIMIT,
    fields,
    get_logger,
)
from mesh.transport import Transport, relay
from mesh.wire import from_rpc_error

log = get_logger(__name__)

_STATE_NUMBER = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
LATENCY_SAMPLES = 1024


class HopSettings(BaseModel):
    """What one hop can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_deadline_seconds: float = Field(30.0, gt=0, le=86_400, description="Deadline of a call that names none.")
    attempt_timeout_seconds: float = Field(
        60.0, gt=0, le=86_400, description="Longest that one call may take, even where the caller would wait longer."
    )
    failure_threshold: int = Field(5, ge=1, description="Consecutive failures that open the circuit breaker.")
    breaker_timeout_seconds: float = Field(60.0, gt=0, description="Longest time that the breaker stays open.")
    max_in_flight: int = Field(1024, ge=8, description="Most calls in flight that the limiter ever allows.")
    max_message_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="Largest gRPC message, in bytes.")


@dataclass(frozen=True, slots=True)
class HopStatus:
    """A hop at one moment, for people and health scripts."""

    name: str
    service: str
    endpoints: tuple[EndpointHealth, ...]
    breaker: BreakerSnapshot
    in_flight: int
    limit: int
    calls: int
    p50_seconds: float | None
    p99_seconds: float | None

    @property
    def serving(self) -> bool:
        """Whether a call has a chance: an endpoint serves and the breaker is not open."""
        some_serve = any(endpoint.health == SERVING for endpoint in self.endpoints)
        return some_serve and self.breaker.state is not BreakerState.OPEN


@dataclass(slots=True)
class _Latencies:
    """The latest successful calls' times."""

    samples: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_SAMPLES))
    calls: int = 0

    def quantile(self, share: float) -> float | None:
        # Copied at once: other threads append.
        ordered = sorted(self.samples.copy())
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class _Meter:
    """One method's metrics. Finding a labelled metric takes a lock and a dictionary, so each is found once."""

    def __init__(self, hop: str, method: str) -> None:
        self._hop = hop
        self._method = method
        self._latency = HOP_LATENCY.labels(hop, method)
        self._outcomes: dict[str, Counter] = {}

    def record(self, outcome: str, seconds: float) -> None:
        """Count one finished call."""
        if outcome not in self._outcomes:
            self._outcomes[outcome] = HOP_CALLS.labels(self._hop, self._method, outcome)
        self._outcomes[outcome].inc()
        self._latency.observe(seconds)


class Hop:
    """The way to one capability.

    Args:
        name: what it is called in errors, metrics and status, for example ``embedding``.
        service: full gRPC name of the service.
        target: where it is: see ``mesh.channel.Target``.
        transport: on an event loop or blocking.
        settings: limits and times.
        circuit_breaker: one made by the caller; otherwise made from the settings.
        idempotent_methods: methods that gRPC's core may send again when the peer was unavailable.
    """

    def __init__(  # noqa: PLR0913 - the composition of a hop is spelled out here, once
        self,
        name: str,
        service: str,
        target: Target,
        *,
        transport: Transport,
        settings: HopSettings | None = None,
        circuit_breaker: CircuitBreaker | None = None,
        idempotent_methods: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.service = service
        self.settings = settings or HopSettings()
        self.transport = transport
        self.breaker = circuit_breaker or CircuitBreaker(
            self.settings.failure_threshold, self.settings.breaker_timeout_seconds
        )
        self.breaker.name = name
        self.breaker.listener = self._breaker_moved
        self.limiter = AdaptiveLimiter(
            maximum=self.settings.max_in_flight, name=name, initial=min(256, self.settings.max_in_flight)
        )
        self._endpoints = endpoints_of(target)
        self._probe = HealthProbe(
            name, service, self._endpoints, transport=transport, on_serving=self.breaker.peer_is_serving
        )
        self._idempotent = tuple(idempotent_methods)
        self._latencies = _Latencies()
        self._channel: Any = None
        self._starting = threading.Lock()
        self._meters: dict[str, _Meter] = {}
        BREAKER_STATE.labels(name).set(0)
        # Read when they are scraped, instead of set by every call.
        HOP_IN_FLIGHT.labels(name).set_function(lambda: self.limiter.in_flight)
        HOP_LIMIT.labels(name).set_function(lambda: self.limiter.limit)

    def start(self) -> None:
        """Open the channel and begin to probe. A peer that is down does not matter: both come back by themselves."""
        with self._starting:
            if self._channel is not None:
                return
            options = (
                *CLIENT_OPTIONS,
                *message_size_options(self.settings.max_message_bytes),
                ("grpc.service_config", service_config(self.service, self._idempotent)),
            )
            self._channel = self.transport.open(joined_target(self._endpoints), options)
            self._probe.start()

    @property
    def channel(self) -> Any:
        """The channel for stubs; opened on first use."""
        self.start()
        return self._channel

    async def close(self) -> None:
        """End the probe and every call."""
        if self._channel is not None:
            await self._probe.stop()
            await self.transport.close(self._channel)
            self._channel = None

    async def call(self, method: Any, request: Any, *, deadline: Deadline | None = None, evidence: bool = True) -> Any:
        """One request, one reply.

        Args:
            method: of a stub on this hop's channel.
            request: its message.
            deadline: the caller's; left out, the settings' default.
            evidence: whether the outcome says something about the peer's work. Info needs no engine, so its success
                must neither close a breaker nor make the hop look quick.

        Raises:
            MeshError: any; see the table in mesh.errors. Nothing else but cancellation.
        """
        deadline = deadline or self._default_deadline()
        # The breaker is asked inside the limiter: a probe's place taken and then refused would never be given back.
        admit = self.breaker.guard if evidence else self.breaker.pass_by
        with self._observe(method, sampled=evidence), self.limiter.slot(), admit():
            deadline.require()
            timeout = min(deadline.remaining(), self.settings.attempt_timeout_seconds)
            with self._translate(deadline):
                return await self.transport.unary(method, request, timeout=timeout, metadata=_metadata())

    async def stream(self, method: Any, request: Any, *, deadline: Deadline | None = None) -> AsyncIterator[Any]:
        """One request, or an async iterable of them, and a stream of replies. Closing it cancels the call.

        A stream ends at the deadline alone: its attempt has no other limit, since a long answer is not a slow one.
        """
        deadline = deadline or self._default_deadline()
        with self._observe(method), self.limiter.slot(), self.breaker.guard() as permit:
            deadline.require()
            answered = False
            with self._translate(deadline):
                replies = self.transport.stream(method, request, timeout=deadline.remaining(), metadata=_metadata())
                async for reply in relay(replies):
                    if not answered:
                        permit.peer_answered()
                        answered = True
                    yield reply

    def status(self) -> HopStatus:
        """The hop now."""
        return HopStatus(
            name=self.name,
            service=self.service,
            endpoints=tuple(self._probe.endpoints.values()),
            breaker=self.breaker.snapshot(),
            in_flight=self.limiter.in_flight,
            limit=self.limiter.limit,
            calls=self._latencies.calls,
            p50_seconds=self._latencies.quantile(0.50),
            p99_seconds=self._latencies.quantile(0.99),
        )

    def _default_deadline(self) -> Deadline:
        return Deadline.after(self.settings.default_deadline_seconds, imposed=True)

    @contextmanager
    def _observe(self, method: Any, *, sampled: bool = True) -> Iterator[None]:
        meter = self._meter(_method_name(method))
        started = time.monotonic()
        outcome = "cancelled"
        try:
            yield
            outcome = "ok"
        except MeshError as error:
            outcome = error.code
            raise
        finally:
            seconds = time.monotonic() - started
            self._latencies.calls += 1
            if sampled and outcome == "ok":
                self._latencies.samples.append(seconds)
            meter.record(outcome, seconds)

    def _meter(self, method: str) -> _Meter:
        if method not in self._meters:
            self._meters[method] = _Meter(self.name, method)
        return self._meters[method]

    @contextmanager
    def _translate(self, deadline: Deadline) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            # gRPC's clock and ours differ by a little, and a timeout fires a moment before the deadline itself.
            up = deadline.remaining() < 0.05 and not deadline.imposed
            raise from_rpc_error(error, hop=self.name, caller_time_is_up=up) from error

    def _breaker_moved(self, before: BreakerState, after: BreakerState, reason: str) -> None:
        BREAKER_STATE.labels(self.name).set(_STATE_NUMBER[after])
        BREAKER_TRANSITIONS.labels(self.name, after.value).inc()
        level = log.warning if after is BreakerState.OPEN else log.info
        level("breaker moved", extra=fields(hop=self.name, before=before.value, after=after.value, reason=reason))


def _metadata() -> tuple[tuple[str, str], ...]:
    call = current_call.get()
    return call.to_metadata() if call is not None else ()


def _method_name(method: Any) -> str:
    raw = method._method
    text: str = raw.decode() if isinstance(raw, bytes) else raw
    return text.rpartition("/")[2]
