"""Fetches a document from a URL: every host is resolved once, its addresses are checked, and exactly these are asked.

A name is never resolved a second time, so what answers is what was checked (DNS rebinding). A redirect begins anew,
with all checks. Nothing of the caller's goes along: no header, no cookie, no credential; and no proxy is taken from the
environment.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import httpcore

from gateway.uploads import FRAME_BYTES, plain_filename
from gateway.url_sources.addresses import may_be_asked
from gateway.url_sources.locations import Location, read_url
from gateway.url_sources.settings import UrlSourceSettings
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, MeshError, Overloaded, PayloadTooLarge
from mesh.version import VERSION

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a name; raises OSError where it has none."""

Result = TypeVar("Result")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAYS_NOTHING = frozenset({"", "application/octet-stream", "binary/octet-stream"})
_DOCUMENTS = (
    "application/pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/xhtml+xml",
    "text/html",
    "text/markdown",
    "text/x-markdown",
    "text/plain",
)
_MOST_ADDRESSES = 16
_MOST_LOOKUPS = 32
_HEADERS = (
    (b"User-Agent", f"torch-isolation-mesh/{VERSION}".encode()),
    (b"Accept", ", ".join(_DOCUMENTS).encode()),
    # What is not encoded cannot grow while it is decoded.
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
)


class UrlSource:
    """Fetches documents within the settings' limits.

    Args:
        settings: what may be asked, and how much of it.
        resolve: how names become addresses; left out, the system's way.
        tls: how servers are trusted; left out, by the system's certificates.
    """

    def __init__(
        self, settings: UrlSourceSettings, *, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._networks = tuple(map(ipaddress.ip_network, settings.allowed_networks))
        self._resolve = resolve or _by_the_system(settings.max_fetches)
        self._tls = tls or ssl.create_default_context()
        self._fetching = 0

    @asynccontextmanager
    async def open(self, url: str, deadline: Deadline) -> AsyncIterator[RemoteDocument]:
        """The document, its headers read and its bytes still to come. Leaving the block closes the connection.

        Raises:
            InvalidRequest: the URL is not one that is fetched, or its server does not give a document; the reason
                begins with URL_.
            PayloadTooLarge: DOCUMENT_TOO_LARGE: the server says so itself.
            Overloaded: as many documents as may are being fetched.
        """
        if self._fetching >= self._settings.max_fetches:
            raise Overloaded(
                f"{self._fetching} documents are being fetched. Try again after the given time.",
                reason="URL_BUSY",
                retry_after=1.0,
            )
        patience = _Patience(min(self._settings.seconds, deadline.remaining()))
        self._fetching += 1
        try:
            async with AsyncExitStack() as opened:
                location, response = await self._followed(read_url(url), patience, opened)
                yield RemoteDocument(location, response, patience, self._settings.max_bytes)
        finally:
            self._fetching -= 1

    async def _followed(
        self, location: Location, patience: _Patience, opened: AsyncExitStack
    ) -> tuple[Location, httpcore.Response]:
        """The first answer that is no redirect."""
        for _ in range(self._settings.max_redirects + 1):
            self._require_allowed(location)
            response = await patience.wait(self._ask(location, opened))
            if response.status not in _REDIRECTS:
                return location, response
            await opened.aclose()
            location = _redirected(location, response)
        raise InvalidRequest(
            f"The URL leads on more than {self._settings.max_redirects} times; send the one that it ends at.",
            param="url",
            reason="URL_REDIRECTS",
        )

    def _require_allowed(self, location: Location) -> None:
        settings = self._settings
        if location.scheme not in settings.schemes:
            raise _not_allowed(f"Documents are fetched by {' or '.join(settings.schemes)} only.")
        if location.port not in settings.ports:
            raise _not_allowed(f"Documents are fetched from port {' or '.join(map(str, settings.ports))} only.")
        if settings.allowed_hosts and not any(_matches(location.host, each) for each in settings.allowed_hosts):
            raise _not_allowed("The URL's host is not one that documents are fetched from here.")

    async def _ask(self, location: Location, opened: AsyncExitStack) -> httpcore.Response:
        connection = httpcore.AsyncHTTPConnection(
            httpcore.Origin(location.scheme.encode(), location.host.encode(), location.port),
            ssl_context=self._tls,
            network_backend=_Pinned(await self._addresses(location)),
        )
        opened.push_async_callback(connection.aclose)
        request = httpcore.Request(
            "GET",
            httpcore.URL(
                scheme=location.scheme.encode(),
                host=location.host.encode(),
                port=location.port,
                target=location.target.encode(),
            ),
            headers=[(b"Host", location.authority.encode()), *_HEADERS],
        )
        try:
            response = await connection.handle_async_request(request)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError):
            raise _unreachable() from None
        opened.push_async_callback(response.aclose)
        return response

    async def _addresses(self, location: Location) -> Sequence[str]:
        """The addresses to ask. One that may not be asked refuses them all: a mixed answer is an attack or a mistake.

        What has no address and what must not be asked look the same from outside, so that nobody learns here which
        names exist within the network.
        """
        try:
            found = [location.host] if _is_address(location.host) else await self._resolve(location.host, location.port)
            addresses = [ipaddress.ip_address(each) for each in dict.fromkeys(found)]
        except (OSError, ValueError):
            raise _unreachable() from None
        if not addresses or not all(may_be_asked(each, self._networks) for each in addresses):
            raise _unreachable()
        return tuple(map(str, addresses[:_MOST_ADDRESSES]))


class RemoteDocument:
    """A document on another server. ``failure`` is what ended it early: who reads the frames does not pass it on."""

    def __init__(self, location: Location, response: httpcore.Response, patience: _Patience, max_bytes: int) -> None:
        headers = {name.lower(): value for name, value in response.headers}
        self._response = response
        self._patience = patience
        self._max_bytes = max_bytes
        self.failure: MeshError | None = None
        self.host = location.host
        self.filename = plain_filename(location.filename)
        self.media_type = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        self._require_document(headers)
        if self.media_type in _SAYS_NOTHING:
            self.media_type = ""

    async def frames(self) -> AsyncIterator[bytes]:
        """The document's bytes, in pieces of at most half a mebibyte. The next one is read when this one was taken.

        Raises:
            MeshError: the server's answer is broken, too slow or too large; ``failure`` holds the same error.
        """
        seen = 0
        pieces = self._response.aiter_stream()
        try:
            while (piece := await self._patience.wait(_next(pieces))) is not None:
                seen += len(piece)
                if seen > self._max_bytes:
                    raise _too_large(self._max_bytes)
                for start in range(0, len(piece), FRAME_BYTES):
                    yield piece[start : start + FRAME_BYTES]
        except MeshError as error:
            self.failure = error
            raise

    def _require_document(self, headers: dict[bytes, bytes]) -> None:
        if self._response.status != 200:
            raise InvalidRequest(
                f"The URL's server answered with status {self._response.status} instead of a document.",
                param="url",
                reason="URL_STATUS",
            )
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
            raise InvalidRequest(
                "The URL's server sends the document compressed although it was asked not to; upload it instead.",
                param="url",
                reason="URL_ENCODED",
            )
        if self.media_type not in _SAYS_NOTHING and self.media_type not in _DOCUMENTS:
            raise InvalidRequest(
                "The URL's server says that it is no document of a kind that is read here: PDF, DOCX, PPTX, XLSX, "
                "HTML, Markdown or plain text.",
                param="url",
                reason="URL_TYPE",
            )
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_bytes:
            raise _too_large(self._max_bytes)


class _Patience:
    """How much longer another server is waited for; what our own side takes in between does not count."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def wait(self, work: Awaitable[Result]) -> Result:
        """The work's result. Raises InvalidRequest (URL_TIMEOUT)."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(max(0.0, self._seconds)):
                return await work
        except TimeoutError:
            raise InvalidRequest(
                "The URL's server did not give the document in time; upload it instead.",
                param="url",
                reason="URL_TIMEOUT",
            ) from None
        finally:
            self._seconds -= loop.time() - began


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to the given addresses whatever the name, which is still what certificates are checked against."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._system = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - resolved already
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address that takes one."""
        for address in self._addresses[:-1]:
            try:
                return await self._system.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        return await self._system.connect_tcp(self._addresses[-1], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Between tries, which there are none of."""
        await self._system.sleep(seconds)


def _by_the_system(most: int) -> Resolve:
    """Asks on threads of its own: a lookup cannot be given up, and slow ones would hold those that others wait for."""
    threads = ThreadPoolExecutor(min(most, _MOST_LOOKUPS), thread_name_prefix="resolve")

    async def resolved(host: str, port: int) -> Sequence[str]:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(threads, ask)
        return [str(address[0]) for *_, address in found]

    return resolved


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    try:
        return await anext(pieces, None)
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
        raise InvalidRequest(
            "The URL's server ended the document before it was whole; try again, or upload it.",
            param="url",
            reason="URL_INCOMPLETE",
        ) from None


def _redirected(location: Location, response: httpcore.Response) -> Location:
    reference = next((value for name, value in response.headers if name.lower() == b"location"), b"")
    following = location.follow(reference.decode("latin-1"))
    if location.scheme == "https" and following.scheme != "https":
        raise _not_allowed("The URL leads on from https to http, which is not followed.")
    return following


def _matches(host: str, allowed: str) -> bool:
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _not_allowed(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="url", reason="URL_NOT_ALLOWED")


def _unreachable() -> InvalidRequest:
    return InvalidRequest(
        "The URL's host does not exist, does not answer, or is not one that documents are fetched from here.",
        param="url",
        reason="URL_UNREACHABLE",
    )


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The document has more than the {max_bytes // 2**20} MiB that are fetched; upload it in parts.",
        param="url",
        reason="DOCUMENT_TOO_LARGE",
    )
