"""What the gateway tells a trace: the span of each HTTP request, above everything that is done for it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.exchange import Exchange
from gateway.journal import is_quiet, method_label, route_label
from mesh import tracing
from mesh.clock import Clock, monotonic
from mesh.errors import MeshError
from mesh.tracing import Kind, Span, Tracer

REFUSALS_PER_SECOND = 10
"""Spans. What the door turns away comes by the thousand, all alike; metrics count it."""

_KNOWN_NOTES = {
    "model": "gen_ai.response.model",
    "tokens": "gen_ai.usage.input_tokens",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
}
_LONGEST_TEXT = 256


class Traced:
    """The layer outside of all others, there only while traces are on.

    The request goes on below its span, so that every hop, log line and problem names the same trace.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        tracer = tracing.active
        if tracer is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.open(scope)
        span = _begin(tracer, exchange, scope)
        status = 0

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            _end(span, exchange, scope, status)


class DoorTraces:
    """Spans of requests that were turned away before the layers; so many a second at most."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._told = 0

    def begin(self, exchange: Exchange, scope: Scope) -> Span | None:
        """The span of a request that is being turned away; None where there were enough of them in this second."""
        if self._second != (second := int(self._clock())):
            self._second, self._told = second, 0
        self._told += 1
        if (tracer := tracing.active) is None or self._told > REFUSALS_PER_SECOND:
            return None
        return _begin(tracer, exchange, scope)

    @staticmethod
    def end(span: Span, exchange: Exchange, scope: Scope, *, status: int, error: MeshError) -> None:
        """It was answered."""
        span.tell("refused at the door", {"mesh.hop": error.hop or "gateway", "mesh.reason": error.reason})
        _end(span, exchange, scope, status)


def _begin(tracer: Tracer, exchange: Exchange, scope: Scope) -> Span:
    span = tracer.begin(
        method_label(scope),
        Kind.SERVER,
        parent=exchange.call.traceparent,
        attributes={
            "http.request.method": method_label(scope),
            "url.scheme": scope.get("scheme", "http"),
            "url.path": exchange.path[:_LONGEST_TEXT],
            "mesh.request_id": exchange.call.request_id,
            "mesh.priority": exchange.call.priority.value,
        },
        unix_ns=tracing.unix_ns(exchange.started, exchange.clock()),
    )
    exchange.call = exchange.call.below(span.traceparent)
    return span


def _end(span: Span, exchange: Exchange, scope: Scope, status: int) -> None:
    """Say how it ended. A probe that was answered well is not kept: it asks every few seconds for ever."""
    route = route_label(scope)
    if not tracing.is_kept(span.traceparent) or is_quiet(route, status):
        return
    attributes: dict[str, tracing.Value] = {"http.route": route, "mesh.outcome": exchange.outcome}
    if status:
        attributes["http.response.status_code"] = status
    if exchange.failed_hop:
        attributes["mesh.hop"] = exchange.failed_hop
    for name, value in exchange.notes.items():
        if isinstance(value, str | int | float):
            shown = value[:_LONGEST_TEXT] if isinstance(value, str) else value
            attributes[_KNOWN_NOTES.get(name, f"mesh.{name}")] = shown
    span.rename(f"{method_label(scope)} {route}")
    span.note(attributes)
    span.end(error=exchange.outcome if status >= 500 else "")
