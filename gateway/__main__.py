"""``python -m gateway``: the gateway as a process."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any

import uvicorn

from gateway.app import create_app
from gateway.connections import server_config
from gateway.door import Door
from gateway.lifecycle import Lifecycle
from gateway.settings import GatewaySettings
from mesh import tracing
from mesh.settings import EXIT_SETTINGS, SettingsError
from mesh.telemetry import configure_logging, fields, get_logger

_LOG = get_logger("gateway")
_BACKLOG = 2048
IDLE_SECONDS = 0.5
"""How long a connection that lies idle at the end may still bring a request. Nobody connected, nobody waits."""


class DrainingServer(uvicorn.Server):
    """Ends without losing a request.

    On the first signal ``/health/ready`` says 503 and every answer says ``Connection: close``, while the port stays
    open for the notice, so that a load balancer stops sending before it is refused. Then the port is closed, and
    connections that lie idle still get a moment: a client may be writing its next request just now. What was admitted
    finishes within the grace. A second signal ends the process at once.
    """

    def __init__(self, config: uvicorn.Config, *, lifecycle: Lifecycle, notice_seconds: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._notice_seconds = notice_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; on a second signal, give up what is under way."""
        if self._lifecycle.draining:
            os._exit(128 + sig)
        self._lifecycle.draining = True
        super().handle_exit(sig, frame)

    def note_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        """Remember a signal that comes while uvicorn's own handlers are not in place.

        Before they are, it ends the gateway as soon as it has started. Behind them, uvicorn raises its signal once
        more, which changes nothing: a drained gateway has ended well.
        """
        self._lifecycle.draining = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Notice, closed port, a moment for idle connections, then uvicorn's own way of finishing what was begun."""
        _LOG.info("draining", extra=fields(notice_seconds=self._notice_seconds))
        await asyncio.sleep(self._notice_seconds)
        # One look at the port: who has connected by now is accepted instead of reset.
        for _ in range(2):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        await self._let_idle_connections_go()
        await super().shutdown(sockets)

    async def _let_idle_connections_go(self) -> None:
        ends = time.monotonic() + IDLE_SECONDS
        # uvicorn's connections have no event to wait for.
        while any(map(_is_idle, self.server_state.connections)) and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _is_idle(connection: Any) -> bool:
    return connection.cycle is None or connection.cycle.response_complete


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    try:
        settings = GatewaySettings.load()
        configure_logging("gateway", settings.log_format)
        tracing.turn_on("gateway")
        lifecycle = Lifecycle()
        door = Door.of(settings, lifecycle)
        app = create_app(settings, lifecycle=lifecycle, door=door)
    except SettingsError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    config = server_config(
        app,
        settings,
        door,
        host=settings.host,
        port=settings.port,
        backlog=_BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.drain_grace_seconds)),
    )
    server = DrainingServer(config, lifecycle=lifecycle, notice_seconds=settings.drain_notice_seconds)
    # What is loaded by now lives as long as the process: collections need not look at it again.
    gc.collect()
    gc.freeze()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.note_exit)
    server.run()
    tracing.turn_off()
    return 0 if server.started else 1


if __name__ == "__main__":
    raise SystemExit(main())
