"""The layers around the routes, as plain ASGI. Outermost first: `Account`, `BodyCap`, `Attention`.

`Account` stands outside because every failure, of the other layers too, must be rendered, counted and logged once.
`BodyCap` stands before anything that reads. `Attention` stands inside both: what it cancels is the work itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.exchange import Exchange
from gateway.problems import as_mesh_error, problem
from mesh.context import current_call
from mesh.errors import Cancelled, Internal, InvalidRequest, MeshError, NotFound, PayloadTooLarge
from mesh.telemetry import LATENCY_BUCKETS, fields, get_logger

_LOG = get_logger(__name__)

REQUESTS = Counter("mesh_http_requests_total", "HTTP requests answered.", ["route", "method", "status"])
LATENCY = Histogram(
    "mesh_http_latency_seconds", "Time from a request's first byte to its answer's last.", ["route", "method"],
    buckets=LATENCY_BUCKETS,
)  # fmt: skip

_QUIET_ROUTES = frozenset({"/health/live", "/health/ready", "/health", "/metrics"})


class Account:
    """Gives every request its id, its time, its one log line and its metrics, and every failure its dialect's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.open(scope)
        token = current_call.set(exchange.call)
        answer = _Answer(exchange, send)
        try:
            await self._app(scope, receive, answer.send)
        except MeshError as error:
            await answer.fail(error)
        except HTTPException as error:
            await answer.fail(_from_framework(error, scope), allow=(error.headers or {}).get("Allow"))
        except ClientDisconnect:
            await answer.fail(Cancelled("The client went away."))
        except Exception as error:
            _LOG.exception("A request failed in a way nobody foresaw.")
            await answer.fail(as_mesh_error(error))
        finally:
            _record(exchange, scope, answer.status)
            current_call.reset(token)


class _Answer:
    """The way out: adds the headers that every answer has, and remembers what was sent."""

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange = exchange
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self._exchange.call.request_id.encode("latin-1")),
                (b"server-timing", self._exchange.server_timing().encode("latin-1")),
            ]
        await self._send(message)

    async def fail(self, error: MeshError, allow: str | None = None) -> None:
        """Answer with the error; a started answer stays unfinished, so that nobody takes it for whole."""
        self._exchange.outcome = error.reason.lower()
        if self.status or isinstance(error, Cancelled):
            self.status = self.status or error.http_status
            return
        shown = problem(error, dialect=self._exchange.dialect, call=self._exchange.call, path=self._exchange.path)
        body = shown.body
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in shown.headers]
        headers.append((b"content-length", str(len(body)).encode("ascii")))
        if allow:
            headers.append((b"allow", allow.encode("latin-1")))
        await self.send({"type": "http.response.start", "status": shown.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


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


def route_label(scope: Scope) -> str:
    """The route's template, for metrics: a path that a client made up must not become a time series."""
    return str(getattr(scope.get("route"), "path", "unmatched"))


@cache
def _series(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    """The time series of a request; finding one by its labels costs as much as all the rest of the counting."""
    return REQUESTS.labels(route, method, str(status)), LATENCY.labels(route, method)


def _record(exchange: Exchange, scope: Scope, status: int) -> None:
    seconds = exchange.elapsed_ms() / 1000
    route = route_label(scope)
    # Methods are the client's words too.
    method = scope["method"] if scope["method"] in {"GET", "POST", "HEAD", "OPTIONS"} else "other"
    requests, latency = _series(route, method, status)
    requests.inc()
    latency.observe(seconds)
    if route in _QUIET_ROUTES and status < 400:
        return
    _LOG.info(
        "request",
        extra=fields(
            method=scope["method"],
            path=exchange.path[:256],
            status=status,
            outcome=exchange.outcome,
            ms=round(seconds * 1000, 2),
            **exchange.notes,
            **{f"{name}_ms": round(value, 2) for name, value in exchange.timings_ms.items()},
        ),
    )


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Most bytes that a request's body may have: documents on ``upload_paths``, JSON everywhere else."""

    json_bytes: int
    upload_bytes: int
    upload_paths: frozenset[str] = frozenset({"/v1/chunk"})

    def of(self, path: str, content_type: str) -> int:
        """The limit of a request."""
        is_upload = path in self.upload_paths and not content_type.startswith("application/json")
        return self.upload_bytes if is_upload else self.json_bytes


class BodyCap:
    """Refuses a body over its limit before it is parsed: by ``Content-Length`` at once, else as soon as it is over."""

    def __init__(self, app: ASGIApp, *, limits: BodyLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        limit = self._limits.of(scope["path"], headers.get(b"content-type", b"").decode("latin-1"))
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > limit:
            raise _too_large(limit)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        await self._app(scope, counted, send)


def _too_large(limit: int) -> PayloadTooLarge:
    # What the client still sends after this answer is read and dropped by the server, so the client gets to see it.
    return PayloadTooLarge(
        f"The body is larger than the {limit:,} bytes that are taken here; send less at once, or split it."
    )


class Attention:
    """Cancels the work when the client goes away: what nobody waits for is not computed.

    The watch begins once the whole body was read, since until then the body's reader sees the client leave.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = _Watch(receive, send)
        if scope["method"] in {"GET", "HEAD"}:
            watch.begin()
        try:
            await self._app(scope, watch.receive, watch.send)
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            raise watch.claim() from None
        finally:
            watch.end()


class _Watch:
    """Waits for the client's leaving beside the work."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._work = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self.gone = False

    async def receive(self) -> Message:
        if self._task is not None:
            await asyncio.shield(self._task)
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.begin()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            # A server tells of the end of its own answer in the same words as of the client's leaving.
            self.end()
        await self._send(message)

    def begin(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._work is not None:
            self._work.cancel()

    def claim(self) -> Cancelled:
        """Take the cancellation back, since it was this watch's own, and name it."""
        if self._work is not None:
            self._work.uncancel()
        return Cancelled("The client went away.")

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
