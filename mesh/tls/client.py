"""How a hop connects by TLS: with whose certificate, and to whom."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, Self

import grpc

from mesh.channel import Option, Place
from mesh.tls.certificates import TlsFiles
from mesh.tls.identity import Identity, Watching
from mesh.tls.settings import TlsSettings


class ClientTls:
    """The certificate that a client shows, and the authorities whose workers it trusts.

    The files are read when it is made, and again when they change: its clients then connect anew, and end their old
    connections once the last call on them is done. One object may serve many clients.

    >>> tls = ClientTls("ca.pem", "client.pem", "client.key")  # doctest: +SKIP
    >>> client = EmbeddingServiceClient("host:50051", tls=tls)  # doctest: +SKIP

    Args:
        ca: PEM file of the authorities.
        certificate: PEM file of the own certificate.
        key: PEM file of its private key.
        server_name: name that the worker's certificate must carry, or such names by hop, as in {"embedding":
            "embedding-services"}; without one it is the host of the client's target.
        watching: how the files are watched.

    Raises:
        CertificateProblem: the files cannot be used; the text says why.
    """

    def __init__(
        self,
        ca: str | Path,
        certificate: str | Path,
        key: str | Path,
        *,
        server_name: str | Mapping[str, str] = "",
        watching: Watching | None = None,
    ) -> None:
        self.identity = Identity(TlsFiles(Path(ca), Path(certificate), Path(key)), watching)
        self._server_name = server_name if isinstance(server_name, str) else ""
        self._server_names = {} if isinstance(server_name, str) else dict(server_name)

    @classmethod
    def from_settings(cls, settings: TlsSettings) -> Self | None:
        """As the settings say; None where TLS is off. Raises CertificateProblem."""
        if settings.ca is None or settings.certificate is None or settings.key is None:
            return None
        return cls(
            settings.ca,
            settings.certificate,
            settings.key,
            server_name=settings.server_names,
            watching=Watching(settings.expiry_warning_days, settings.check_seconds),
        )

    def for_hop(self, hop: str) -> ClientTls:
        """The same certificate on the hop of this name, where a name of its own may be expected.

        A hop to one model's own workers, ``llm:small``, expects what ``llm`` does unless it is named itself.
        """
        name = self._server_names.get(hop) or self._server_names.get(hop.partition(":")[0])
        return self if name is None else self.expecting(name)

    def expecting(self, server_name: str) -> ClientTls:
        """The same certificate, for workers whose own must carry ``server_name``."""
        other = copy(self)
        other._server_name = server_name
        return other

    def refresh(self) -> int:
        """Take new files where there are some. Returns a number that changes whenever there were."""
        return self.identity.refresh()

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel that is opened now."""
        material = self.identity.material
        return grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)

    def server_name(self, place: Place) -> str:
        """The name that a worker's certificate must carry."""
        return self._server_name or place.host or _bare_host(place.address)

    def options(self) -> tuple[Option, ...]:
        """Of a channel: whose certificate is expected. The same name stands in the request's authority."""
        if not self._server_name:
            return ()  # gRPC takes the host of the authority or of the address, as everybody expects
        return (
            ("grpc.ssl_target_name_override", self._server_name),
            # Last, so that it stands above the host's name: the core refuses calls whose authority is another one.
            ("grpc.default_authority", self._server_name),
        )

    def status(self) -> dict[str, Any]:
        """For ``/status``."""
        return self.identity.status()


def _bare_host(address: str) -> str:
    """The host of an address as gRPC's core takes it.

    >>> _bare_host("ipv4:10.0.0.7:50051"), _bare_host("ipv6:[::1]:50051"), _bare_host("unix:/run/mesh.sock")
    ('10.0.0.7', '::1', 'localhost')
    """
    if address.startswith("unix:"):
        return "localhost"  # what gRPC's core expects of a socket's file
    host = address.removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0]
    return host.removeprefix("[").removesuffix("]")
