"""Turns requests away before anything is begun for them, while the gateway itself has no time."""

from __future__ import annotations

from http import HTTPStatus

from starlette.types import Scope

from gateway.admission import ALWAYS, Places
from gateway.exchange import Exchange
from gateway.journal import Journal
from gateway.lifecycle import Lifecycle
from gateway.loop import LoopDelay
from gateway.middleware import UnreadLimits
from gateway.problems import problem
from gateway.settings import GatewaySettings
from mesh.errors import Overloaded


class Door:
    """Stands before the layers: says the same as they would, for half of the time that it takes to come to them.

    Without it an overload is spent on refusing: a task, a cycle and two messages for each.
    """

    def __init__(self, places: Places, *, journal: Journal, lifecycle: Lifecycle) -> None:
        self.places = places
        self.journal = journal
        self._lifecycle = lifecycle
        self._unread = UnreadLimits()

    @classmethod
    def of(cls, settings: GatewaySettings, lifecycle: Lifecycle) -> Door:
        """As the settings say."""
        limits = settings.limits
        delay = LoopDelay(limits.max_loop_delay_seconds)
        places = Places(most=limits.max_concurrent_requests, delay=delay)
        return cls(places, journal=Journal(), lifecycle=lifecycle)

    def turn_away(self, scope: Scope) -> bytes | None:
        """The whole answer to a request that there is no time for; None for one that the layers have to look at.

        Its connection lives on, and what still comes of its body is to be dropped.
        """
        if scope["path"] in ALWAYS or scope["method"] == "HEAD" or self._lifecycle.draining:
            return None
        error = self.places.busy()
        if error is None:
            return None
        exchange = Exchange.open(scope)
        exchange.body_read = scope["method"] == "GET"
        return self._refused(exchange, scope, error) if self._unread.keeps(exchange) else None

    def _refused(self, exchange: Exchange, scope: Scope, error: Overloaded) -> bytes:
        exchange.outcome = error.reason.lower()
        exchange.refused = True
        shown = problem(error, dialect=exchange.dialect, call=exchange.call, path=exchange.path)
        body = shown.body
        lines = [
            f"HTTP/1.1 {shown.status} {HTTPStatus(shown.status).phrase}",
            *(f"{name}: {value}" for name, value in shown.headers),
            f"content-length: {len(body)}",
            f"x-request-id: {exchange.call.request_id}",
            f"server-timing: {exchange.server_timing()}\r\n\r\n",
        ]
        exchange.end()
        self.journal.record(exchange, scope, shown.status)
        return "\r\n".join(lines).encode("latin-1") + body
