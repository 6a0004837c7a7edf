"""The layers around the routes, as plain ASGI. Outermost first: `Account`, `Framing`, `HostCheck`, `Admission`,
`BodyCap`, `Attention`; with keys, `Guarded` before and `Rationed` behind `Admission` (`gateway.keys`).

`Account` stands outside because every failure, of the other layers too, must be rendered, counted and logged once.
`Admission` comes before anything that costs, `BodyCap` before anything that reads. `HostCheck` and `Attention` are in
modules of their own; `Attention` stands inside them all: what it cancels is the work itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.dialects import request_id_headers
from gateway.exchange import Exchange
from gateway.journal import Journal
from gateway.lifecycle import Lifecycle
from gateway.problems import as_mesh_error, out_of_time, problem
from gateway.security_headers import SECURITY_HEADERS
from mesh.context import current_call
from mesh.errors import (
    Cancelled,
    Internal,
    InvalidRequest,
    MeshError,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    Unauthenticated,
    Unavailable,
)
from mesh.telemetry import get_logger

_LOG = get_logger(__name__)

_CLOSE = (b"connection", b"close")
_BODILESS = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class UnreadLimits:
    """What is still taken from a client whose request was answered before its body was read.

    Up to ``kept_bytes`` are read and dropped by the server, and the connection lives on: a new connection would cost
    both sides more. Where more is declared, or nothing, the connection is closed; but not before the client has sent
    ``lingering_bytes`` or ``lingering_seconds`` have passed, since a closed socket that was not read destroys the
    answer on its way to the client.
    """

    kept_bytes: int = 1024 * 1024
    lingering_bytes: int = 4 * 1024 * 1024
    lingering_seconds: float = 1.0

    def keeps(self, exchange: Exchange) -> bool:
        """Whether the connection can be used again once the rest of the body was dropped."""
        if exchange.misframed:
            return False
        if exchange.body_read:
            return True
        if b"transfer-encoding" in exchange.headers or b"expect" in exchange.headers:
            # Nobody knows how much comes, or whether the body that waits for our "go on" comes at all.
            return False
        declared = exchange.headers.get(b"content-length", b"0")
        return declared.isdigit() and int(declared) <= self.kept_bytes


class Account:
    """Gives every request its id, its time, its one log line and its metrics, and every failure its dialect's shape."""

    def __init__(
        self, app: ASGIApp, *, journal: Journal, lifecycle: Lifecycle, unread: UnreadLimits | None = None
    ) -> None:
        self._app = app
        self._journal = journal
        self._lifecycle = lifecycle
        self._unread = unread or UnreadLimits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.open(scope)
        exchange.body_read = scope["method"] in _BODILESS
        token = current_call.set(exchange.call)
        answer = _Answer(exchange, receive, send, lifecycle=self._lifecycle, unread=self._unread)
        try:
            await self._app(scope, receive, answer.send)
        except MeshError as error:
            await answer.fail(error)
        except HTTPException as error:
            await answer.fail(_from_framework(error, scope), allow=(error.headers or {}).get("Allow"))
        except ClientDisconnect:
            await answer.fail(Cancelled("The client went away."))
        except asyncio.CancelledError:
            if not self._lifecycle.draining:
                raise
            await answer.fail(out_of_time())
        except Exception as error:
            _LOG.exception("A request failed in a way nobody foresaw.")
            await answer.fail(as_mesh_error(error))
        finally:
            self._journal.record(exchange, scope, answer.status)
            current_call.reset(token)


class _Answer:
    """The way out: adds the headers that every answer has, and remembers what was sent."""

    __slots__ = ("_exchange", "_lifecycle", "_receive", "_send", "_unread", "status")

    def __init__(
        self, exchange: Exchange, receive: Receive, send: Send, *, lifecycle: Lifecycle, unread: UnreadLimits
    ) -> None:
        self._exchange = exchange
        self._receive = receive
        self._send = send
        self._lifecycle = lifecycle
        self._unread = unread
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            exchange = self._exchange
            request_id = exchange.call.request_id.encode("latin-1")
            headers = [
                *message.get("headers", ()),
                *((name, request_id) for name in request_id_headers(exchange.dialect)),
                (b"server-timing", exchange.server_timing().encode("latin-1")),
                *SECURITY_HEADERS,
            ]
            if self._lifecycle.draining:
                # The client's next request goes elsewhere, instead of into a connection that is just being closed.
                headers.append(_CLOSE)
            message["headers"] = headers
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._exchange.end()

    async def fail(self, error: MeshError, allow: str | None = None) -> None:
        """Answer with the error; a started answer stays unfinished, so that nobody takes it for whole."""
        exchange = self._exchange
        exchange.failed(error)
        if self.status or isinstance(error, Cancelled):
            self.status = self.status or error.http_status
            return
        exchange.refused = isinstance(error, (Overloaded, Unavailable, Unauthenticated))
        shown = problem(error, dialect=exchange.dialect, call=exchange.call, path=exchange.path)
        body = shown.body
        headers = [*shown.raw_headers, (b"content-length", b"%d" % len(body))]
        if allow:
            headers.append((b"allow", allow.encode("latin-1")))
        keeps = self._unread.keeps(exchange)
        if not keeps:
            headers.append(_CLOSE)
        await self.send({"type": "http.response.start", "status": shown.status, "headers": headers})
        # A misframed request is not waited for: what comes is not to be read.
        lingers = not keeps and not exchange.misframed
        await self.send({"type": "http.response.body", "body": body, "more_body": lingers})
        if lingers:
            exchange.end()
            await self._linger()
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        """Drop what still comes, until it is enough; the client has its answer by now."""
        left = self._unread.lingering_bytes
        try:
            async with asyncio.timeout(self._unread.lingering_seconds):
                while left > 0:
                    message = await self._receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
                    left -= len(message.get("body", b""))
        except TimeoutError:
            return


def _from_framework(error: HTTPException, scope: Scope) -> MeshError:
    if error.status_code == 404:
        return NotFound(
            f"There is no {scope['method'][:16]} {scope['path'][:128]} here; /docs lists what there is.",
            reason="ROUTE_NOT_FOUND",
        )
    if error.status_code == 405:
        return InvalidRequest(
            f"{scope['path'][:128]} does not take {scope['method'][:16]}; /docs lists what it takes.",
            reason="METHOD_NOT_ALLOWED",
        )
    if error.status_code < 500:
        return InvalidRequest("The request cannot be read; /docs shows how each one looks.")
    return Internal("The gateway failed on this request. Report the request id to whoever runs it.")


class Framing:
    """Refuses requests whose end is not certain: a body behind ``Upgrade``, and a tunnel.

    Parsers differ in whether such a body belongs to the request or to the protocol that was asked for. Read as the
    connection's next request, it would let a client speak in the name of whoever shares the connection. Without a body
    there is nothing to differ about: ``Upgrade`` is then ignored, as RFC 9110 lets a server do.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            exchange = Exchange.at(scope)
            if scope["method"] == "CONNECT" or (b"upgrade" in exchange.headers and _announces_body(exchange.headers)):
                exchange.misframed = True
                raise InvalidRequest(
                    "Only version 1.1 of HTTP is spoken here, and no tunnel is opened. Send the request without the "
                    "header Upgrade: HTTP libraries call it using version 1.1, or not using h2c.",
                    reason="UPGRADE_NOT_SUPPORTED",
                )
        await self._app(scope, receive, send)


def _announces_body(headers: Mapping[bytes, bytes]) -> bool:
    """Any length but a plain zero: what is no number is no reason to trust it."""
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip(b"0") != b""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Most bytes that a request's body may have, longest time that it may take to come, and how many may be coming.

    Documents on ``upload_paths``, JSON everywhere else. Where ``most_coming`` bodies are under way already, the one
    that has been for longest is given up for the next, unless it has been for less than ``spared_seconds``.
    """

    json_bytes: int
    upload_bytes: int
    json_seconds: float
    upload_seconds: float
    most_coming: int
    spared_seconds: float = 1.0
    upload_paths: frozenset[str] = frozenset({"/v1/chunk"})

    def of(self, path: str, content_type: bytes) -> tuple[int, float]:
        """The limits of a request, in bytes and in seconds."""
        if path in self.upload_paths and not content_type.startswith(b"application/json"):
            return self.upload_bytes, self.upload_seconds
        return self.json_bytes, self.json_seconds


class BodyCap:
    """Refuses a body over its limits before it is parsed.

    Too large by ``Content-Length`` is refused at once, else as soon as it is over. A body that comes too slowly is
    given up: it would hold its place among the requests in progress as long as its sender likes. Many that come slowly
    give way to new ones: so they cannot hold all places between them either.
    """

    def __init__(self, app: ASGIApp, *, limits: BodyLimits) -> None:
        self._app = app
        self._limits = limits
        self._coming: dict[asyncio.Timeout, float] = {}  # since when; the one that has been for longest stands first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in _BODILESS:
            await self._app(scope, receive, send)
            return
        exchange = Exchange.at(scope)
        most, seconds = self._limits.of(exchange.path, exchange.headers.get(b"content-type", b""))
        if exchange.caller is not None:
            most = exchange.caller.limits.bytes_within(most)
        declared = exchange.headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > most:
            raise _too_large(most)
        self._make_room()
        try:
            async with asyncio.timeout(seconds) as patience:
                self._coming[patience] = asyncio.get_running_loop().time()
                try:
                    await self._app(scope, self._counted(receive, exchange, most, patience), send)
                finally:
                    self._coming.pop(patience, None)
        except TimeoutError:
            if not patience.expired():
                raise
            raise InvalidRequest(
                f"The body did not arrive in time: within {seconds:g} seconds, and sooner while many others come as "
                "slowly. Send it faster, or in smaller requests.",
                reason="BODY_TIMEOUT",
            ) from None

    def _make_room(self) -> None:
        if len(self._coming) < self._limits.most_coming:
            return
        oldest, since = next(iter(self._coming.items()))
        now = asyncio.get_running_loop().time()
        left = since + self._limits.spared_seconds - now
        if left > 0:
            raise Overloaded(
                f"{len(self._coming)} requests are sending their bodies. Try again after the given time.",
                reason="GATEWAY_LIMIT",
                retry_after=left,
            )
        del self._coming[oldest]
        oldest.reschedule(now)

    def _counted(self, receive: Receive, exchange: Exchange, most: int, patience: asyncio.Timeout) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _too_large(most)
            if not message.get("more_body", False) and not exchange.body_read:
                exchange.body_read = True
                # One that was given up in this very moment stays so.
                if self._coming.pop(patience, None) is not None:
                    patience.reschedule(None)
            return message

        return counted


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The body is larger than the {limit:,} bytes that are taken here; send less at once, or split it."
    )


Layer = Callable[[ASGIApp], ASGIApp]


def folded(app: ASGIApp, *layers: Layer) -> ASGIApp:
    """``app`` within the layers, outermost first."""
    for layer in reversed(layers):
        app = layer(app)
    return app
