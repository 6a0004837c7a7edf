"""One hop: everything between a client's method and gRPC's own channel.

A call passes these layers, outermost first, and every layer is left on the way out, whatever happened:

=============  =====================================================================================================
observe        counts and times every call, also those that the next layers refuse
limiter        refuses before anything is spent; the breaker must not see what never left
breaker        refuses without asking a peer that fails; sees only what the layers inside say about the peer
deadline       refuses work that cannot finish; turns the caller's deadline into each attempt's timeout
attempts       chooses an endpoint, and another one when that fails and the call may be repeated, within a budget
translate      turns gRPC statuses into MeshErrors, so that all layers outside judge one vocabulary
stub           the generated method, on the chosen endpoint's channel
=============  =====================================================================================================

The limiter and the breaker count a call once, however many attempts it took. They wrap the stub call instead of being
gRPC interceptors: in grpc.aio an error surfaces when the call is awaited, which an interceptor does not see.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from mesh import tracing
from mesh.attempts import Attempts
from mesh.balanced import BalancedChannel, BalancedMethod
from mesh.balancing import Attempt, Balancer
from mesh.breaker_series import announce_breaker, breaker_moved
from mesh.channel import CLIENT_OPTIONS, Target, endpoints_of, message_size_options
from mesh.context import Priority, current_metadata, current_priority
from mesh.deadline import Deadline
from mesh.endpoint import EndpointHealth
from mesh.errors import BreakerEffect, MeshError, Unavailable
from mesh.hop_settings import HopSettings
from mesh.hop_status import HopStatus, Latencies, Meter
from mesh.hop_tracing import HopSpan, hop_span
from mesh.outgoing import CallersOwn, Outgoing, as_itself
from mesh.resilience import (
    AdaptiveLimiter,
    CircuitBreaker,
    RetryBudget,
    TripPolicy,
)
from mesh.telemetry import (
    HOP_IN_FLIGHT,
    HOP_LIMIT,
    HOP_RETRIES,
)
from mesh.transport import Transport
from mesh.wire import from_rpc_error

if TYPE_CHECKING:  # cryptography is not loaded for a hop without TLS
    from mesh.tls.client import ClientTls

__all__ = ["Hop", "HopSettings", "HopStatus"]


class Hop:
    """The way to one capability.

    Args:
        name: what it is called in errors, metrics and status, for example ``embedding``.
        service: full gRPC name of the service.
        target: where it is: see ``mesh.channel.Target``.
        transport: on an event loop or blocking.
        settings: limits and times.
        circuit_breaker: one made by the caller; otherwise made from the settings.
        tls: certificates of this process, and whose it trusts; None connects in plaintext.
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
        tls: ClientTls | None = None,
        idempotent_methods: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.service = service
        self.settings = settings or HopSettings()
        self.transport = transport
        self._tls = tls.for_hop(name) if tls is not None else None
        self.breaker = circuit_breaker or self._new_breaker()
        self.breaker.name = name
        self.breaker.listener = partial(breaker_moved, name)
        self.limiter = AdaptiveLimiter(
            maximum=self.settings.max_in_flight, name=name, initial=min(256, self.settings.max_in_flight)
        )
        self._endpoints = endpoints_of(target)
        self._idempotent = frozenset(idempotent_methods)
        self._budget = RetryBudget()
        self._latencies = Latencies()
        self._retries = 0
        self._balancer: Balancer | None = None
        self._starting = threading.Lock()
        self._meters: dict[str, Meter] = {}
        announce_breaker(self.breaker)
        # Read when they are scraped, instead of set by every call.
        HOP_IN_FLIGHT.labels(name).set_function(lambda: self.limiter.in_flight)
        HOP_LIMIT.labels(name).set_function(lambda: self.limiter.limit)

    def start(self) -> None:
        """Connect and begin to probe. A peer that is down does not matter: both come back by themselves."""
        self._started()

    @property
    def channel(self) -> BalancedChannel:
        """The channel for stubs: each call of their methods goes to the endpoint that is best at that moment."""
        return BalancedChannel()

    def require_room(self, priority: Priority = Priority.INTERACTIVE) -> None:
        """Raise at once what a call now would be refused with here: for callers that have yet to read their request.

        Raises:
            Overloaded: too many calls are in flight.
            CircuitOpen: the breaker is open, or another call is probing.
        """
        self.limiter.require_room(priority)
        self.breaker.require()

    async def close(self) -> None:
        """End the probes and every call."""
        with self._starting:
            balancer, self._balancer = self._balancer, None
        if balancer is not None:
            self.transport.close()
            await balancer.stop()

    async def call(
        self, method: BalancedMethod, request: Any, *, deadline: Deadline | None = None, evidence: bool = True
    ) -> Any:
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
        with (
            self._observe(method, sampled=evidence) as span,
            self.limiter.slot(current_priority(), seconds=deadline.remaining()),
            admit(),
        ):
            deadline.require()
            balancer = await self._ready(deadline)
            attempts = self._attempts(balancer, method, deadline, evidence=evidence)
            attempts.span = span
            while True:
                try:
                    with attempts.next() as attempt, self._translate(balancer, deadline):
                        return await self._send(method, request, attempt, deadline)
                except MeshError as error:
                    pause = attempts.pause_before_another(error)
                    if pause is None:
                        raise
                    await self._retrying(balancer, method, error, pause)

    async def _send(self, method: BalancedMethod, request: Any, attempt: Attempt, deadline: Deadline) -> Any:
        timeout = min(deadline.remaining(), self.settings.attempt_timeout_seconds)
        stub = method.on(attempt.endpoint)
        return await self.transport.unary(
            stub, request, timeout=timeout, metadata=current_metadata(attempt.traceparent)
        )

    async def stream(
        self, method: BalancedMethod, request: Any, *, deadline: Deadline | None = None
    ) -> AsyncGenerator[Any, None]:
        """One request, or several, and a stream of replies. Closing it cancels the call.

        A stream ends at the deadline alone: its attempt has no other limit, since a long answer is not a slow one.
        Nothing is sent again after the first reply, nor once a stream of requests has begun.

        Args:
            method: of a stub on this hop's channel.
            request: a message, an async iterable of messages, or an Outgoing that has a header.
            deadline: the caller's; left out, the settings' default.
        """
        deadline = deadline or self._default_deadline()
        if isinstance(request, AsyncIterable) and not isinstance(request, Outgoing):
            request = Outgoing(request)
        with (
            as_itself(),
            self._observe(method) as span,
            self.limiter.slot(current_priority(), seconds=deadline.remaining()),
            self.breaker.guard() as permit,
        ):
            deadline.require()
            balancer = await self._ready(deadline)
            attempts = self._attempts(balancer, method, deadline)
            attempts.span = span
            answered = False
            while True:
                try:
                    with attempts.next() as attempt:
                        async with aclosing(self._replies(method, request, attempt, deadline)) as replies:
                            async for reply in replies:
                                if not answered:
                                    answered = True
                                    permit.peer_answered()
                                    attempt.peer_answered()
                                yield reply
                        return
                except MeshError as error:
                    if answered or (isinstance(request, Outgoing) and not request.repeatable):
                        raise
                    pause = attempts.pause_before_another(error)
                    if pause is None:
                        raise
                    await self._retrying(balancer, method, error, pause)

    async def _replies(
        self, method: BalancedMethod, request: Any, attempt: Attempt, deadline: Deadline
    ) -> AsyncGenerator[Any, None]:
        stub = method.on(attempt.endpoint)
        try:
            with self._translate(attempt.balancer, deadline) as outcome:
                metadata = current_metadata(attempt.traceparent)
                sent = self.transport.stream(stub, request, timeout=deadline.remaining(), metadata=metadata)
                async with aclosing(sent) as replies:
                    async for reply in replies:
                        outcome.answered = True
                        yield reply
        except (MeshError, asyncio.CancelledError):
            # gRPC reports it as its own cancelling, or as an unknown error.
            if isinstance(request, Outgoing) and request.failure is not None:
                raise CallersOwn(request.failure) from None
            raise

    def _attempts(
        self, balancer: Balancer, method: BalancedMethod, deadline: Deadline, *, evidence: bool = True
    ) -> Attempts:
        return Attempts(balancer, self._budget, deadline, idempotent=method.name in self._idempotent, evidence=evidence)

    async def _retrying(self, balancer: Balancer, method: BalancedMethod, error: MeshError, pause: float) -> None:
        self._retries += 1
        HOP_RETRIES.labels(self.name, method.name, error.code).inc()
        if pause:
            with self._translate(balancer):
                await self.transport.sleep(pause)

    def status(self) -> HopStatus:
        """The hop now."""
        self.breaker.end_back_off()
        balancer = self._balancer
        return HopStatus(
            name=self.name,
            service=self.service,
            endpoints=balancer.status() if balancer else tuple(map(EndpointHealth, self._endpoints)),
            breaker=self.breaker.snapshot(),
            in_flight=self.limiter.in_flight,
            limit=self.limiter.limit,
            calls=self._latencies.calls,
            retries=self._retries,
            p50_seconds=self._latencies.quantile(0.50),
            p99_seconds=self._latencies.quantile(0.99),
        )

    def times_since(self, mark: int) -> tuple[int, Sequence[float]]:
        """How long the successful calls after the first ``mark`` took, in seconds, and the mark for the next time."""
        return self._latencies.since(mark)

    def servers(self) -> frozenset[tuple[str, float]]:
        """The addresses that serve now and since when: another set whenever one comes, goes or was started anew."""
        return self._balancer.servers() if self._balancer else frozenset()

    def _started(self) -> Balancer:
        with self._starting:
            if self._balancer is None:
                self.transport.start()
                balancer = Balancer(
                    hop=self.name,
                    service=self.service,
                    endpoints=self._endpoints,
                    transport=self.transport,
                    options=(*CLIENT_OPTIONS, *message_size_options(self.settings.max_message_bytes)),
                    new_breaker=self._new_breaker,
                    on_serving=self.breaker.peer_is_serving,
                    tls=self._tls,
                )
                balancer.start()
                self._balancer = balancer
            return self._balancer

    async def _ready(self, deadline: Deadline) -> Balancer:
        balancer = self._balancer or self._started()
        await balancer.ready(deadline)
        if balancer.stopped:
            raise self._closed()
        return balancer

    def _new_breaker(self) -> CircuitBreaker:
        settings = self.settings
        policy = TripPolicy(
            window_seconds=settings.window_seconds,
            minimum_calls=settings.minimum_calls,
            failure_rate=settings.failure_rate,
            slow_call_seconds=settings.slow_call_seconds,
        )
        return CircuitBreaker(settings.failure_threshold, settings.breaker_timeout_seconds, policy=policy)

    def _default_deadline(self) -> Deadline:
        return Deadline.after(self.settings.default_deadline_seconds, imposed=True)

    @contextmanager
    def _observe(self, method: BalancedMethod, *, sampled: bool = True) -> Iterator[HopSpan | None]:
        meter = self._meter(method.name)
        started = time.monotonic()
        outcome, failure = "cancelled", None
        span = None if tracing.active is None else hop_span(self.name, self.service, method.name, self.breaker)
        try:
            yield span
            outcome = "ok"
        except MeshError as error:
            outcome, failure = error.code, error
            raise
        finally:
            seconds = time.monotonic() - started
            self._latencies.calls += 1
            if sampled and outcome == "ok":
                self._latencies.took(seconds)
            meter.record(outcome, seconds)
            if span is not None:
                span.end(outcome, failure)

    def _meter(self, method: str) -> Meter:
        if method not in self._meters:
            self._meters[method] = Meter(self.name, method)
        return self._meters[method]

    @contextmanager
    def _translate(self, balancer: Balancer, deadline: Deadline | None = None) -> Iterator[_Outcome]:
        outcome = _Outcome()
        try:
            yield outcome
        except grpc.RpcError as error:
            if balancer.stopped and error.code() is grpc.StatusCode.CANCELLED:
                raise self._closed() from None
            # gRPC's clock and ours differ by a little, and a timeout fires a moment before the deadline itself. A peer
            # that was answering when our own limit came has not failed.
            is_up = deadline is not None and deadline.remaining() < 0.05
            up = is_up and (outcome.answered or not (deadline and deadline.imposed))
            raise from_rpc_error(error, hop=self.name, caller_time_is_up=up) from error
        except asyncio.CancelledError:
            if balancer.stopped and not _task_is_cancelled():
                raise self._closed() from None
            raise
        except (ValueError, grpc.aio.UsageError) as error:
            if "closed" in str(error).lower() and "channel" in str(error).lower():
                raise self._closed() from None
            raise

    def _closed(self) -> Unavailable:
        """What gRPC calls cancelled, or a closed channel, where nobody cancelled."""
        error = Unavailable(
            "The client was closed while the call was under way.", reason="CLIENT_CLOSED", hop=self.name
        )
        error.breaker = BreakerEffect.NEUTRAL  # type: ignore[misc]  # our own doing, not the peer's
        return error


@dataclass(slots=True)
class _Outcome:
    """What is known of a call that is under way."""

    answered: bool = False


def _task_is_cancelled() -> bool:
    """Whether somebody asked this task to end; a thread of the synchronous stack is none."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0
