"""Turns requests away before anything is begun for them, while the gateway itself or a hop has no room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import Scope

from gateway.admission import ALWAYS, Places
from gateway.api import PlainRoute
from gateway.dialects import request_id_headers
from gateway.exchange import Exchange
from gateway.journal import Journal
from gateway.lifecycle import Lifecycle
from gateway.loop import LoopDelay
from gateway.middleware import UnreadLimits
from gateway.problems import phrase_of, problem
from gateway.security_headers import SECURITY_HEADERS
from gateway.settings import GatewaySettings
from gateway.traces import DoorTraces
from mesh import tracing
from mesh.context import current_call
from mesh.errors import MeshError

if TYPE_CHECKING:
    from gateway.keys.guard import Guard

_SECURITY_LINES = tuple(f"{name.decode()}: {value.decode()}" for name, value in SECURITY_HEADERS)


class Door:
    """Stands before the layers: says the same as they would, for half of the time that it takes to come to them.

    Without it an overload is spent on refusing: a task, a cycle and two messages for each.
    """

    def __init__(self, places: Places, *, journal: Journal, lifecycle: Lifecycle) -> None:
        self.places = places
        self.journal = journal
        self.lifecycle = lifecycle
        self.routes: dict[tuple[str, str], PlainRoute] = {}
        """Where a method of a path leads, and whose room it needs; whoever mounts the routes fills it."""
        self.guard: Guard | None = None
        """Who knows the callers; whoever builds the app sets it, where keys are asked for."""
        self._unread = UnreadLimits()
        self._traces = DoorTraces()

    @classmethod
    def of(cls, settings: GatewaySettings, lifecycle: Lifecycle) -> Door:
        """As the settings say."""
        limits = settings.limits
        delay = LoopDelay(limits.max_loop_delay_seconds)
        places = Places(most=limits.max_concurrent_requests, delay=delay)
        return cls(places, journal=Journal(), lifecycle=lifecycle)

    def turn_away(self, scope: Scope) -> bytes | None:
        """The whole answer to a request that there is no room for; None for one that the layers have to look at.

        Its connection lives on, and what still comes of its body is to be dropped.
        """
        if scope["path"] in ALWAYS or scope["method"] == "HEAD" or self.lifecycle.draining:
            return None
        exchange = Exchange.open(scope)
        exchange.body_read = scope["method"] == "GET"
        if b"upgrade" in exchange.headers or not self._unread.keeps(exchange):
            return None  # the layers end such a connection
        route = self.routes.get((scope["method"], scope["path"]))
        stranger = self.guard.refusal(exchange, scope) if self.guard is not None else None
        error = stranger or self.places.busy() or _without_room(route, exchange)
        if error is None:
            return None
        if route is not None:
            scope["route"] = route
        return self._refused(exchange, scope, error)

    def _refused(self, exchange: Exchange, scope: Scope, error: MeshError) -> bytes:
        exchange.failed(error)
        exchange.refused = True
        span = None if tracing.active is None else self._traces.begin(exchange, scope)
        shown = problem(error, dialect=exchange.dialect, call=exchange.call, path=exchange.path)
        body = shown.body
        lines = [
            f"HTTP/1.1 {shown.status} {phrase_of(shown.status)}",
            *(f"{name}: {value}" for name, value in shown.headers),
            f"content-length: {len(body)}",
            *(f"{name.decode()}: {exchange.call.request_id}" for name in request_id_headers(exchange.dialect)),
            f"server-timing: {exchange.server_timing()}",
            *_SECURITY_LINES,
            "\r\n",
        ]
        exchange.end()
        # The log line carries this request's id; where requests are pipelined, another one's task calls the door.
        token = current_call.set(exchange.call)
        try:
            self.journal.record(exchange, scope, shown.status)
            if span is not None:
                self._traces.end(span, exchange, scope, status=shown.status, error=error)
        finally:
            current_call.reset(token)
        return "\r\n".join(lines).encode("latin-1") + body


def _without_room(route: PlainRoute | None, exchange: Exchange) -> MeshError | None:
    if route is None or route.hop is None:
        return None
    try:
        route.hop.require_room(exchange.call.priority)
    except MeshError as error:
        return error
    return None
