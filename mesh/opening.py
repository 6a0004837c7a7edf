"""How an endpoint is connected to: in plaintext, or by TLS with the certificate of the moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.channel import Option, Place
from mesh.transport import Transport

if TYPE_CHECKING:  # cryptography is not loaded for a hop without TLS
    from mesh.tls.client import ClientTls


@dataclass(frozen=True, slots=True)
class Connection:
    """A channel, and the version of the certificate that it was opened with."""

    channel: Any
    tls_version: int


class Opener:
    """Opens a hop's channels.

    Args:
        transport: of the hop.
        options: of every channel.
        tls: certificates; None connects in plaintext.
    """

    def __init__(self, transport: Transport, options: Sequence[Option], tls: ClientTls | None) -> None:
        self._transport = transport
        self._options = tuple(options)
        self._tls = tls

    def open(self, place: Place, address: str) -> Connection:
        """A channel to one of the place's addresses; it connects by itself."""
        # The name stands in the request's authority, for proxies that route by it.
        authority = (("grpc.default_authority", f"{place.host}:{place.port}"),) if place.host else ()
        options = (*self._options, *authority)
        if self._tls is None:
            return Connection(self._transport.open(address, options), 0)
        version = self._tls.identity.version  # first: one that changes meanwhile is seen as old
        channel = self._transport.open(address, (*options, *self._tls.options()), self._tls.credentials())
        return Connection(channel, version)
