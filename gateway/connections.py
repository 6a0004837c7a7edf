"""How a connection is read: what uvicorn's own protocol leaves to the client is bounded and closed here.

uvicorn has no public seam for it. What is used of its protocol, ``parser``, ``cycle``, ``pipeline``, ``flow``,
``_start_asgi_task``, ``_unset_keepalive_if_required``, ``timeout_keep_alive_task``, ``_unsupported_upgrade_warning``
and the parser's callbacks, is held to the real server by ``tests/contract``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from gateway.door import Door
    from gateway.settings import GatewaySettings

import uvicorn


def server_config(app: ASGIApp, settings: GatewaySettings, door: Door, **others: Any) -> uvicorn.Config:
    """How uvicorn serves the gateway, in its own process and in tests; ``door`` is the one that the app has."""
    return uvicorn.Config(
        app,
        # uvloop where it is installed, asyncio where it is not.
        loop="auto",
        http=http_protocol(settings.timeouts.headers_seconds, door),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing here is decided by the client's address, so nobody needs to be trusted to forward one.
        proxy_headers=False,
        date_header=False,
        **others,
    )


def http_protocol(headers_seconds: float, door: Door) -> Any:
    """The protocol that uvicorn has on httptools, made strict; without httptools, its own on h11.

    h11 reads the body of a request that asks for an upgrade by itself. Only the time for headers is not bounded there,
    and refusals cost what they cost.
    """
    try:
        import uvicorn.protocols.http.httptools_impl as httptools_impl  # noqa: PLR0402 - needs httptools
    except ImportError:
        return "h11"
    # Typed as unknown: the bases below must not depend on how the installed uvicorn annotates its inner names.
    base: Any = httptools_impl.HttpToolsProtocol

    class StrictProtocol(base):  # type: ignore[misc]  # see above
        """Bounds the time for a request's head, and reads nothing behind a request that asks for another protocol.

        The time runs from the connection's first moment and from each later head's first byte. Between an answer and
        the next head's first byte uvicorn's keep-alive time counts.
        """

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._patience: asyncio.TimerHandle | None = None
            self._in_head = False
            self._is_deaf = False

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._be_patient()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_patience()
            super().connection_lost(exc)
            self._unset_keepalive_if_required()  # uvicorn leaves it running where the connection was reset

        def data_received(self, data: bytes) -> None:
            if self._is_deaf:
                return
            super().data_received(data)
            # A head that came whole needs no timer. Idle, uvicorn's own timer was ended by the bytes that came: an
            # empty line, or the rest of a body that nobody read.
            idle = self.timeout_keep_alive_task is None and not self._is_answering()
            if self._patience is None and (self._in_head or idle):
                self._be_patient()

        def on_message_begin(self) -> None:
            self._in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._end_patience()
            super().on_headers_complete()
            if self.parser.should_upgrade():
                # httptools takes the body of such a request for the other protocol's, skips what has come of it, and
                # would read what still comes as the connection's next request: somebody else's words, as it were.
                self._is_deaf = True
                self.cycle.keep_alive = False

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            # One that ends the connection, or whose client does not read, needs more care than the door takes. And what
            # is pipelined behind this one must not be answered from within its own answer, as deep as it is long.
            plain = cycle.keep_alive and not (self.parser.should_upgrade() or self.pipeline or self.flow.write_paused)
            answer = door.turn_away(cycle.scope) if plain else None
            if answer is None:
                super()._start_asgi_task(cycle, app)
                return
            self.transport.write(answer)
            cycle.response_started = cycle.response_complete = True
            cycle.on_response = _nothing  # as uvicorn does at its end: it would hold this connection in a circle
            self.on_response_complete()

        def _unsupported_upgrade_warning(self) -> None:
            """One line per request that any client can send says nothing; a refusal is logged like every other."""

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _be_patient(self) -> None:
            self._patience = self.loop.call_later(headers_seconds, self._give_up)

        def _end_patience(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _give_up(self) -> None:
            if self._is_answering():
                # Half of the next request must not cost this one its answer.
                self._be_patient()
            elif not self.transport.is_closing():
                self.transport.close()

    return StrictProtocol


def _nothing() -> None:
    """What is done about an answer that was already dealt with."""
