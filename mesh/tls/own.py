"""A worker asked from beside it, as a container's health probe does: with its own certificate, for its own name."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from mesh.channel import Option
from mesh.tls.configured import client_tls


def own_channel(target: str, options: Sequence[Option] = ()) -> grpc.Channel:
    """A channel to the worker whose variables this process shares; by TLS where they name certificates.

    Args:
        target: its ``host:port``, most likely on loopback, which its certificate need not carry.
        options: of the channel.

    Raises:
        SettingsError: the variables are incomplete or misspelt, or the files cannot be used.
    """
    tls = client_tls()
    if tls is None:
        return grpc.insecure_channel(target, options=list(options))
    names = tls.identity.material.names
    # The name of a host or an address: URIs, which may stand before them, are none to a handshake.
    tls = tls.expecting(next((name for name in names if "://" not in name), names[0]))
    return grpc.secure_channel(target, tls.credentials(), options=[*options, *tls.options()])
