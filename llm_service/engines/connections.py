"""HTTP to an engine for a thousand requests at once."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import httpx

# uvicorn closes an idle connection after 5 s; a request sent into one that is just closing would fail for nothing.
KEEP_ALIVE_SECONDS = 2.0
POOLS = 16


class SpreadTransport(httpx.AsyncBaseTransport):
    """Spreads requests over several pools of connections, by TCP or to a Unix socket.

    A pool looks at all of its connections whenever one comes or goes. With a single one, a thousand callers who leave
    at once would keep the event loop busy for most of a second, and the engine at work for them meanwhile.
    """

    def __init__(self, socket: Path | None = None) -> None:
        trusted = httpx.create_ssl_context(trust_env=False)  # one for all: making it takes longer than a request
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)
        path = None if socket is None else str(socket)
        self._pools = [
            httpx.AsyncHTTPTransport(verify=trusted, trust_env=False, limits=limits, uds=path) for _ in range(POOLS)
        ]
        self._turns = cycle(self._pools)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it by the next pool. Raises httpx.HTTPError."""
        return await next(self._turns).handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.aclose()
