"""Why a connection fails, by a handshake of our own beside gRPC's: its core calls every problem UNAVAILABLE.

Blocking, and bounded: it belongs on a thread. A port where nobody listens, and a peer that hangs, are told apart from
one that refuses a certificate.
"""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.tls.problems import Finding, TlsProblem

if TYPE_CHECKING:  # cryptography is not loaded for a hop without TLS
    from mesh.tls.certificates import Material

STEP_SECONDS = 1.0
"""How long connecting, a handshake and an answer may take, each."""

# An HTTP/2 client's first words, and an empty SETTINGS frame: every gRPC server answers them with a frame of its own.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_FRAME = 4

# X509_V_ERR_… of OpenSSL.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_CA = frozenset({2, 18, 19, 20, 21, 27})
_WRONG_NAME = frozenset({62, 64})


@dataclass(frozen=True, slots=True)
class Shown:
    """What a hop shows and expects.

    Attributes:
        material: the own certificate and the authorities, as they are in use: files may have changed meanwhile.
        server_name: that the peer's certificate must carry.
        now: the time, in Unix seconds.
    """

    material: Material
    server_name: str
    now: float


def diagnose(address: str, shown: Shown | None) -> Finding | None:
    """What is wrong with the certificates between here and ``address``; None where nothing is, or nobody answers.

    Args:
        address: as gRPC's core takes it, for example ``ipv4:127.0.0.1:50051``.
        shown: what the hop shows; None for a hop without TLS.
    """
    try:
        if shown is None:
            return _NEEDS_TLS if _speaks_tls(address) else None
        return _handshake(address, shown)
    except OSError:  # nobody there, or gone in the middle
        return None


_NEEDS_TLS = Finding(
    TlsProblem.PEER_NEEDS_TLS,
    "The worker takes TLS only, and this process has no certificate. Set MESH_TLS_CA, MESH_TLS_CERTIFICATE and "
    "MESH_TLS_KEY here.",
)
_PLAINTEXT = Finding(
    TlsProblem.PEER_PLAINTEXT,
    "The worker speaks plaintext, which this process refuses. Set MESH_TLS_CA, MESH_TLS_CERTIFICATE and MESH_TLS_KEY "
    "there.",
)


def _handshake(address: str, shown: Shown) -> Finding | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=shown.material.ca.decode("ascii", "replace"))
    try:
        _load_own(context, shown.material)
    except (OSError, ssl.SSLError):
        return None  # OpenSSL does not take what gRPC's core takes; so nothing can be said
    with _connect(address) as connection:
        try:
            tls = context.wrap_socket(connection, server_hostname=shown.server_name)
        except ssl.SSLCertVerificationError as error:
            return _peers_fault(address, error, shown)
        except TimeoutError:
            return None  # it hangs, which is no matter of certificates
        except OSError as error:
            return _broken_off(address, getattr(error, "reason", None) or "", shown)
    with tls:
        return _greet(tls, shown)


def _load_own(context: ssl.SSLContext, material: Material) -> None:
    """Have ``context`` show the certificate in use. OpenSSL reads files alone: on Linux it gets one in memory."""
    with os.fdopen(os.memfd_create("tls"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(material.certificate + b"\n" + material.key)
        file.flush()
        file.seek(0)
        # OpenSSL asks the terminal for a password that it is not given, and waits.
        context.load_cert_chain(f"/dev/fd/{file.fileno()}", password="")


def _greet(tls: ssl.SSLSocket, shown: Shown) -> Finding | None:
    """Whether the peer goes on after the handshake: only by then, in TLS 1.3, has it seen our certificate."""
    try:
        tls.sendall(_GREETING)
        return None if tls.recv(1) else _refused(shown, "")
    except TimeoutError:
        return None
    except OSError as error:
        return _refused(shown, getattr(error, "reason", None) or "")


def _broken_off(address: str, reason: str, shown: Shown) -> Finding | None:
    """What a handshake means that the peer ended: no client's certificate has been looked at by then, in TLS 1.3."""
    if "ALERT" in reason:
        return _refused(shown, reason)
    if _speaks_plaintext(address):
        return _PLAINTEXT
    if not reason or "EOF" in reason:
        return None  # a connection was lost, such as by a balancer with nobody behind it
    return Finding(TlsProblem.HANDSHAKE_FAILED, f"The TLS handshake failed ({reason}). The worker's log may say more.")


def _refused(shown: Shown, alert: str) -> Finding:
    """The peer ended a connection that was good from here: our certificate does not please it, and it says no more."""
    from mesh.tls.certificates import day, out_of_time

    own = out_of_time(shown.material, shown.now)
    if own is not None:
        return own
    names = ", ".join(shown.material.names)
    if not shown.material.is_from_ca:
        return Finding(
            TlsProblem.OWN_UNKNOWN_CA,
            f"The worker refuses this process's certificate ({names}), which no authority in MESH_TLS_CA has signed. "
            "Make one by an authority that the worker trusts.",
        )
    return Finding(
        TlsProblem.OWN_REFUSED,
        f"The worker refuses this process's certificate ({names}, valid until {day(shown.material.not_after)})"
        f"{f': {alert}' if alert else ''}. Its MESH_TLS_CA may name another authority, or its clock be wrong; its log "
        "says which.",
    )


def _peers_fault(address: str, error: ssl.SSLCertVerificationError, shown: Shown) -> Finding:
    what = _describe_peer(address)
    if error.verify_code == _EXPIRED:
        return Finding(TlsProblem.PEER_EXPIRED, f"The worker's certificate{what} has expired. Renew it there.")
    if error.verify_code == _NOT_YET_VALID:
        return Finding(
            TlsProblem.PEER_NOT_YET_VALID, f"The worker's certificate{what} is not valid yet. Check both clocks."
        )
    if error.verify_code in _WRONG_NAME:
        return Finding(
            TlsProblem.PEER_WRONG_NAME,
            f"The worker's certificate{what} does not carry the name {shown.server_name}. Make one that does, or name "
            "one of its names in MESH_TLS_SERVER_NAMES here.",
        )
    if error.verify_code in _UNKNOWN_CA:
        return Finding(
            TlsProblem.PEER_UNKNOWN_CA,
            f"The worker's certificate{what} comes from an authority that MESH_TLS_CA does not hold. Add that "
            "authority here, or renew the certificate there.",
        )
    return Finding(TlsProblem.PEER_REFUSED, f"The worker's certificate{what} is refused: {error.verify_message}.")


def _describe_peer(address: str) -> str:
    """The peer's certificate in a few words, by a handshake that believes everything and sends nothing."""
    from cryptography import x509

    from mesh.tls.certificates import UNREADABLE, day, names_of

    try:
        with _connect(address) as connection, _believing().wrap_socket(connection) as tls:
            found = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    except (OSError, *UNREADABLE):
        return ""
    begins, ends = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    return f" ({', '.join(names_of(found)) or 'no name'}; {day(begins)} to {day(ends)})"


def _speaks_tls(address: str) -> bool:
    with _connect(address) as connection:
        try:
            with _believing().wrap_socket(connection):
                return True
        except ssl.SSLError as error:
            return "ALERT" in (error.reason or "")


def _speaks_plaintext(address: str) -> bool:
    """Whether an HTTP/2 server answers there without TLS."""
    try:
        with _connect(address) as connection:
            connection.sendall(_GREETING)
            head = connection.recv(9)
    except OSError:
        return False
    return len(head) == 9 and head[3] == _SETTINGS_FRAME


def _believing() -> ssl.SSLContext:
    """Looks and trusts nothing: no call and no secret goes over such a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _connect(address: str) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(STEP_SECONDS)
        try:
            connection.connect(address.removeprefix("unix:"))
        except OSError:
            connection.close()
            raise
        return connection
    host, _, port = address.removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=STEP_SECONDS)
