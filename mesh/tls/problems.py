"""What can be wrong with certificates, each with a name: gRPC calls every one of them UNAVAILABLE."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mesh.settings import SettingsError


class TlsProblem(StrEnum):
    """A problem's name in status, log and metrics. The set is closed, so it may label a time series."""

    FILE_MISSING = "TLS_FILE_MISSING"
    FILE_UNREADABLE = "TLS_FILE_UNREADABLE"
    FILE_DAMAGED = "TLS_FILE_DAMAGED"
    KEY_ENCRYPTED = "TLS_KEY_ENCRYPTED"
    KEY_MISMATCH = "TLS_KEY_MISMATCH"
    NO_NAME = "TLS_NO_NAME"
    CA_EXPIRED = "TLS_CA_EXPIRED"
    OWN_EXPIRED = "TLS_OWN_EXPIRED"
    OWN_NOT_YET_VALID = "TLS_OWN_NOT_YET_VALID"
    OWN_UNKNOWN_CA = "TLS_OWN_UNKNOWN_CA"
    OWN_REFUSED = "TLS_OWN_REFUSED"
    PEER_EXPIRED = "TLS_PEER_EXPIRED"
    PEER_NOT_YET_VALID = "TLS_PEER_NOT_YET_VALID"
    PEER_UNKNOWN_CA = "TLS_PEER_UNKNOWN_CA"
    PEER_WRONG_NAME = "TLS_PEER_WRONG_NAME"
    PEER_REFUSED = "TLS_PEER_REFUSED"
    PEER_PLAINTEXT = "TLS_PEER_PLAINTEXT"
    PEER_NEEDS_TLS = "TLS_PEER_NEEDS_TLS"
    HANDSHAKE_FAILED = "TLS_HANDSHAKE_FAILED"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and a sentence for the operator: what is wrong, and what to do. It may name files and peers."""

    problem: TlsProblem
    message: str


class CertificateProblem(SettingsError):
    """The configured files cannot be used. The text is for the operator."""

    def __init__(self, problem: TlsProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem
