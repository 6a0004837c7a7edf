"""What the environment says of TLS, as an object; None, and nothing imported, where it says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.tls.settings import TlsSettings

if TYPE_CHECKING:  # cryptography is not loaded for a process without TLS
    from mesh.tls.client import ClientTls
    from mesh.tls.server import ServerTls


def client_tls() -> ClientTls | None:
    """For a process that calls workers; None for plaintext.

    Raises:
        SettingsError: the variables are incomplete or misspelt, or the files cannot be used.
    """
    settings = TlsSettings.load()
    if not settings.is_on:
        return None
    from mesh.tls.client import ClientTls

    return ClientTls.from_settings(settings)


def server_tls() -> ServerTls | None:
    """For a worker; None for plaintext. Raises SettingsError like `client_tls`."""
    settings = TlsSettings.load()
    if not settings.is_on:
        return None
    from mesh.tls.server import ServerTls

    return ServerTls.from_settings(settings)
