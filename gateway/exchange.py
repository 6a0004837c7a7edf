"""One HTTP request and its answer, as the layers and routes of the gateway share it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import Scope

from gateway.dialects import Dialect, dialect_of
from gateway.keys.records import KeyRecord
from mesh.clock import Clock, monotonic
from mesh.context import (
    PRIORITY_KEY,
    REQUEST_ID_KEY,
    TRACEPARENT_KEY,
    CallContext,
    Priority,
    acceptable_request_id,
    acceptable_traceparent,
    new_request_id,
)
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, MeshError

TIMEOUT_HEADER = "x-request-timeout-ms"
_STAINLESS_HEADERS = ("x-stainless-read-timeout", "x-stainless-timeout")
# As ASGI spells them; encoding names for every look-up would cost more than the look-up.
_RAW = {
    name: name.encode("latin-1")
    for name in (TIMEOUT_HEADER, *_STAINLESS_HEADERS, PRIORITY_KEY, REQUEST_ID_KEY, TRACEPARENT_KEY)
}
_BULK = Priority.BULK.value.encode("latin-1")
_SCOPE_KEY = "gateway.exchange"


@dataclass(slots=True)
class Exchange:
    """What is known about a request while it is being answered: identifiers, clock, and what the log line will say."""

    call: CallContext
    dialect: Dialect
    path: str
    headers: dict[bytes, bytes]
    started: float
    clock: Clock
    timings_ms: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    outcome: str = "ok"
    failed_hop: str = ""
    """Whose failure ``outcome`` is: a hop's name, or nobody's where the gateway or the client failed."""
    body_read: bool = False
    """Whether the whole body was taken from the connection."""
    abandoned: bool = False
    """Whether the client has left."""
    refused: bool = False
    """Whether it was turned away because something is busy or away, which may befall thousands a second."""
    misframed: bool = False
    """Whether nobody can say where the request ends, so that nothing may be read behind it."""
    caller: KeyRecord | None = None
    """Whose key let it in; None where none was asked for."""
    answered: float | None = None
    """When the answer's last byte was sent."""

    @classmethod
    def open(cls, scope: Scope, clock: Clock = monotonic) -> Exchange:
        """The exchange of an ASGI request, begun where it was not yet; it can be found again with `Exchange.of`."""
        begun = scope.get(_SCOPE_KEY)
        if isinstance(begun, cls):
            return begun
        # On a repeated header the first one counts, as in Starlette's own look-up.
        headers = dict(reversed(scope["headers"]))
        path = scope["path"]
        exchange = cls(_call_of(headers), dialect_of(path), path, headers, clock(), clock)
        scope[_SCOPE_KEY] = exchange
        return exchange

    @classmethod
    def at(cls, scope: Scope) -> Exchange:
        """The exchange that this ASGI request belongs to."""
        exchange = scope[_SCOPE_KEY]
        assert isinstance(exchange, cls)  # noqa: S101 - a layer that replaced it is a bug
        return exchange

    @classmethod
    def of(cls, request: Request) -> Exchange:
        """The exchange that this request belongs to."""
        return cls.at(request.scope)

    def header(self, name: bytes, default: str = "") -> str:
        """A header of the request, by its name in lower case."""
        value = self.headers.get(name)
        return default if value is None else value.decode("latin-1")

    def deadline(self, seconds: float, *, streamed: bool = False) -> Deadline:
        """When the answer must be there: ``seconds`` after the request came, or earlier where the client says so.

        A client says so by ``x-request-timeout-ms``. The SDKs send the longest pause that they put up with between two
        reads; it bounds an answer that comes in one piece, and says nothing about one that is ``streamed``.

        Raises:
            InvalidRequest: the header is not a positive number.
        """
        ours = seconds
        asked = self.headers.get(_RAW[TIMEOUT_HEADER])
        if asked is not None:
            seconds = min(seconds, _positive(asked, TIMEOUT_HEADER) / 1000)
        if not streamed:
            for name in _STAINLESS_HEADERS:
                said = self.headers.get(_RAW[name])
                if said is not None:
                    seconds = min(seconds, _seconds_or(said, seconds))
        return Deadline(at=self.started + seconds, clock=self.clock, imposed=seconds == ours)

    def elapsed_ms(self) -> float:
        """Milliseconds from the request's coming to its answer's last byte, or to now while that is to come."""
        return ((self.clock() if self.answered is None else self.answered) - self.started) * 1000

    def end(self) -> None:
        """Stop the clock: the answer's last byte was sent. Only the first end counts."""
        if self.answered is None:
            self.answered = self.clock()

    def timed(self, **milliseconds: float) -> None:
        """Remember where the time went: it is told in ``Server-Timing`` and in the log."""
        self.timings_ms.update(milliseconds)

    def failed(self, error: MeshError) -> None:
        """Remember why there is no answer, or no whole one."""
        self.outcome = error.reason.lower()
        self.failed_hop = error.hop or ""

    def note(self, **values: Any) -> None:
        """Remember something for the log line: counts and model names, never content."""
        self.notes.update(values)

    def server_timing(self) -> str:
        """The ``Server-Timing`` header: total first, then the worker's parts."""
        total = f"total;dur={self.elapsed_ms():.2f}"
        if not self.timings_ms:
            return total
        return ", ".join([total, *(f"{name};dur={value:.2f}" for name, value in self.timings_ms.items())])


def _call_of(headers: dict[bytes, bytes]) -> CallContext:
    wanted = headers.get(_RAW[PRIORITY_KEY], b"").lower()
    given_id = headers.get(_RAW[REQUEST_ID_KEY])
    traceparent = headers.get(_RAW[TRACEPARENT_KEY])
    return CallContext(
        request_id=(acceptable_request_id(given_id.decode("latin-1")) if given_id else None) or new_request_id(),
        priority=Priority.BULK if wanted == _BULK else Priority.INTERACTIVE,
        traceparent=acceptable_traceparent(traceparent.decode("latin-1")) if traceparent else "",
    )


def _positive(text: bytes, header: str) -> float:
    number = _number(text)
    if number is None or not 0 < number < float("inf"):
        raise InvalidRequest(f"The header {header} must be a positive number.", param=header)
    return number


def _seconds_or(text: bytes, fallback: float) -> float:
    """What an SDK sent by itself; nonsense in it is not the caller's fault, so it falls back."""
    number = _number(text)
    return number if number is not None and 0 < number < float("inf") else fallback


def _number(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def unix_seconds() -> int:
    """Now, as the dialects write it."""
    return int(time.time())
