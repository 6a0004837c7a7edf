"""HTTP to an engine's server: httpx's interface, so that callers and tests need no other, over aiohttp's connections.

httpx's own connections take 100 µs of processor time for each piece of a stream that arrives, which is most of what a
token costs on its way through the worker; aiohttp's, whose parser is in C, take 20.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import httpx
from yarl import URL

KEEP_ALIVE_SECONDS = 2.0
"""uvicorn closes an idle connection after 5 s; a request sent into one that is just closing would fail for nothing."""
_AT_ONCE_BYTES = 256 * 1024
_ADDED_BY_AIOHTTP = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class EngineTransport(httpx.AsyncBaseTransport):
    """As many connections as there are requests, to any URL or to one Unix socket. No proxies, no redirects.

    A body that is not read to its end closes its connection at once: that is how an engine learns that nobody waits.

    Args:
        socket: the Unix socket that all requests go to; None for what their URLs name.
    """

    def __init__(self, socket: Path | None = None) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return once the answer's head is here. Raises httpx.TransportError."""
        if self._session is None:  # a session belongs to the loop that runs when it is made
            self._session = self._connect()
        limits = request.extensions.get("timeout", {})
        content = request.content
        with _as_httpx():
            response = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers.multi_items(),
                # A large body goes out in parts: whole, it would hold the loop.
                data=io.BytesIO(content) if len(content) > _AT_ONCE_BYTES else content or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=limits.get("connect"), sock_read=limits.get("read")
                ),
            )
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Body(response), request=request)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _connect(self) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if self._socket is not None:
            connector = aiohttp.UnixConnector(str(self._socket), limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
        else:
            context = httpx.create_ssl_context(trust_env=False)
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, ssl=context)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # httpx does that
            skip_auto_headers=_ADDED_BY_AIOHTTP,
        )


class _Body(httpx.AsyncByteStream):
    """An answer's body: what has arrived, as soon as anything has."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            while data := await self._response.content.readany():
                yield data

    async def aclose(self) -> None:
        """Leave the connection to the next request where the body was read to its end, otherwise close it."""
        self._response.close()


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Failures of the connection in httpx's vocabulary."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx.ConnectTimeout(repr(error)) from None
    except aiohttp.SocketTimeoutError as error:
        raise httpx.ReadTimeout(repr(error)) from None
    except aiohttp.ClientConnectorError as error:
        raise httpx.ConnectError(repr(error)) from None
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientResponseError, aiohttp.ClientPayloadError) as error:
        raise httpx.RemoteProtocolError(repr(error)) from None
    except aiohttp.ClientError as error:
        raise httpx.ReadError(repr(error)) from None
