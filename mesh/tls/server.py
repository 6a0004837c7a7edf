"""How a worker listens by TLS: every caller shows a certificate of the authorities, and may call what the rules say."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from mesh.tls.access import Access
from mesh.tls.certificates import TlsFiles
from mesh.tls.identity import Identity, Watching
from mesh.tls.settings import TlsSettings


class ServerTls:
    """A worker's certificate and rules.

    Args:
        identity: the certificate, and the authorities whose callers are let in.
        access: what they may call.
        check_seconds: how often the files are looked at while nobody connects.
    """

    def __init__(self, identity: Identity, access: Access, *, check_seconds: float = 1.0) -> None:
        self.identity = identity
        self.access = access
        self._check_seconds = check_seconds
        self._configured: tuple[int, grpc.ServerCertificateConfiguration] | None = None

    @classmethod
    def from_settings(cls, settings: TlsSettings) -> ServerTls | None:
        """As the settings say; None where TLS is off.

        Raises:
            CertificateProblem: the files cannot be used.
        """
        if settings.ca is None or settings.certificate is None or settings.key is None:
            return None
        files = TlsFiles(settings.ca, settings.certificate, settings.key)
        identity = Identity(files, Watching(settings.expiry_warning_days, settings.check_seconds))
        return cls(identity, Access(settings.allow), check_seconds=settings.check_seconds)

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Open a port that speaks TLS alone. Returns its number. Raises RuntimeError where it cannot be had."""
        return server.add_secure_port(
            address,
            grpc.dynamic_ssl_server_credentials(
                self._configuration(), self._configuration, require_client_authentication=True
            ),
        )

    async def watch(self) -> None:
        """Look at the files for ever, so that a certificate's end is told of although nobody connects."""
        while True:
            await asyncio.sleep(self._check_seconds)
            self.identity.refresh()

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        """What a new connection meets. gRPC's core asks at every handshake, on a thread of its own."""
        version = self.identity.refresh()
        configured = self._configured
        if configured is None or configured[0] != version:
            material = self.identity.material
            configured = (
                version,
                grpc.ssl_server_certificate_configuration(
                    [(material.key, material.certificate)], root_certificates=material.ca
                ),
            )
            self._configured = configured
        return configured[1]
