"""``python -m gateway``: the gateway as a process."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys

import uvicorn

from gateway.app import create_app
from gateway.lifecycle import Lifecycle
from gateway.settings import GatewaySettings
from mesh.settings import EXIT_SETTINGS, SettingsError
from mesh.telemetry import configure_logging, fields, get_logger

_LOG = get_logger("gateway")
_BACKLOG = 2048


class DrainingServer(uvicorn.Server):
    """Says that it is not ready before it closes its port, so that a load balancer stops sending first."""

    def __init__(self, config: uvicorn.Config, *, lifecycle: Lifecycle, notice_seconds: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._notice_seconds = notice_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain: unready, notice, then uvicorn's own way of finishing what was begun."""
        self._lifecycle.draining = True
        _LOG.info("draining", extra=fields(notice_seconds=self._notice_seconds))
        await asyncio.sleep(self._notice_seconds)
        await super().shutdown(sockets)


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    try:
        settings = GatewaySettings.load()
    except SettingsError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    configure_logging("gateway", settings.log_format)
    lifecycle = Lifecycle()
    app = create_app(settings, lifecycle=lifecycle)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        # uvloop and httptools where they are installed, asyncio and h11 where they are not.
        loop="auto",
        http="auto",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing here is decided by the client's address, so nobody needs to be trusted to forward one.
        proxy_headers=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.drain_grace_seconds)),
    )
    server = DrainingServer(config, lifecycle=lifecycle, notice_seconds=settings.drain_notice_seconds)
    # What is loaded by now lives as long as the process: collections need not look at it again.
    gc.collect()
    gc.freeze()
    # uvicorn raises the signal once more after its own shutdown; a drained gateway has ended well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    raise SystemExit(main())
