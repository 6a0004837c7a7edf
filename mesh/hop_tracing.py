"""What a hop tells a trace: one span for the call, and below it one for every attempt at an endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from mesh import tracing
from mesh.balancing import Attempt
from mesh.errors import CircuitOpen, DeadlineExceeded, MeshError, Overloaded
from mesh.resilience import CircuitBreaker
from mesh.tracing import Attributes, Kind
from mesh.wire import grpc_code

_REFUSED_BY = ((Overloaded, "limiter"), (CircuitOpen, "breaker"), (DeadlineExceeded, "deadline"))


class HopSpan:
    """The span of one call: what the limiter and the breaker said, and how it ended."""

    def __init__(self, tracer: tracing.Tracer, span: tracing.Span, *, service: str, method: str) -> None:
        self._tracer = tracer
        self._span = span
        self._method = f"{service}/{method}"
        self._attempts = 0

    @contextmanager
    def attempt(self, attempt: Attempt) -> Iterator[None]:
        """Around one attempt, which hands its own span on to the worker."""
        self._attempts += 1
        address, port = _place(attempt.endpoint.address)
        attributes: dict[str, tracing.Value] = {
            "rpc.system.name": "grpc",
            "rpc.method": self._method,
            "server.address": address,
            "mesh.attempt": self._attempts,
        }
        if port:
            attributes["server.port"] = port
        span = self._tracer.begin(self._method, Kind.CLIENT, parent=self._span.traceparent, attributes=attributes)
        attempt.span = span
        code, error = "OK", ""
        try:
            yield
        except MeshError as failure:
            code, error = grpc_code(failure).name, failure.reason
            span.note({"mesh.breaker.counts_as": failure.breaker.value})
            raise
        except BaseException:  # the caller's own: it left, or what it was sending failed
            code = "CANCELLED"
            raise
        finally:
            span.note({"rpc.response.status_code": code})
            span.end(error=error)

    def end(self, outcome: str, failure: MeshError | None) -> None:
        """The call is over."""
        attributes: dict[str, tracing.Value] = {"mesh.outcome": outcome, "mesh.attempts": self._attempts}
        if failure is not None and not self._attempts:
            by = next((layer for kind, layer in _REFUSED_BY if isinstance(failure, kind)), "endpoints")
            attributes["mesh.refused_by"] = by
            self._span.tell("refused before it was sent", {"mesh.refused_by": by, "mesh.reason": failure.reason})
        self._span.note(attributes)
        self._span.end(error=failure.reason if failure is not None else "")


def hop_span(hop: str, service: str, method: str, breaker: CircuitBreaker) -> HopSpan | None:
    """The span of a call that begins now; None where it belongs to no request whose trace is kept.

    What a hop asks by itself belongs to none.
    """
    tracer, above = tracing.active, tracing.present()
    if tracer is None or not above:
        return None
    attributes: Attributes = {"mesh.hop": hop, "mesh.breaker.state": breaker.snapshot().state.value}
    span = tracer.begin(f"hop {hop}", parent=above, attributes=attributes)
    return HopSpan(tracer, span, service=service, method=method)


@lru_cache(maxsize=1024)
def _place(address: str) -> tuple[str, int]:
    """Host and port of an endpoint's address; port 0 for a socket in the file system."""
    host, _, port = address.removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdecimal() else (address, 0)
