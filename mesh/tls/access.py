"""Who may call what: a certificate proves who calls, these rules say what for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextvars import Context
from typing import Any

from mesh.clock import Clock, monotonic
from mesh.errors import CallerRefused
from mesh.telemetry import fields, get_logger

log = get_logger(__name__)

EVERYTHING = "*"
_NAMES = ("peer_dns", "peer_uri", "peer_ip")
"""Not the addresses of mail, though they are subject alternative names too: an authority may give those to anybody."""

TELL_AGAIN_SECONDS = 10.0
MOST_TOLD = 32
"""Certificates, in that time. A peer that is refused tries again and again; metrics count all of it."""
_OTHERS = "further certificates"


def refuse_malformed(rules: Mapping[str, Iterable[str]]) -> None:
    """Raise ValueError where a rule could never match: a service has dots, a method stands behind a slash."""
    for name, allowed in rules.items():
        if not name.strip():
            raise ValueError("a rule names no certificate")
        for each in allowed:
            service, slash, method = each.partition("/")
            if each != EVERYTHING and ("." not in service or service.startswith("/") or (slash and not method)):
                raise ValueError(
                    f"{name} may call {each!r}, which names nothing: write *, embedding.v1.EmbeddingService, or "
                    "embedding.v1.EmbeddingService/Embed"
                )


class Access:
    """The rules of one worker.

    Args:
        rules: from a name in the caller's certificate (a DNS name, a URI or an address of a host among its subject
            alternative names) to what it may call: ``*``, a service, or ``service/method``.
        clock: times the log's lines about refused callers.
    """

    def __init__(self, rules: Mapping[str, Iterable[str]], clock: Clock = monotonic) -> None:
        refuse_malformed(rules)
        self._refusals = _Refusals(clock)
        self._rules = {_folded(name): frozenset(allowed) for name, allowed in rules.items()}

    def allows(self, names: Iterable[str], service: str, method: str) -> bool:
        """Whether one of ``names`` may call ``method`` of ``service``."""
        wanted = {EVERYTHING, service, f"{service}/{method}"}
        return any(not wanted.isdisjoint(self._rules.get(_folded(name), ())) for name in names)

    def require(self, context: Any, service: str, method: str) -> None:
        """Let a call pass, or raise.

        Args:
            context: of the call, as grpc.aio gives it to a handler.
            service: full gRPC name.
            method: its own name.

        Raises:
            CallerRefused: none of the names in the caller's certificate may call this.
        """
        names = names_in(context.auth_context())
        if self.allows(names, service, method):
            return
        self._refusals.tell(", ".join(names), f"{service}/{method}")
        raise CallerRefused(
            "A worker does not let its caller's certificate call this. MESH_TLS_ALLOW of that worker says who may.",
            reason="CERTIFICATE_NOT_ALLOWED",
        )


class _Refusals:
    """One log line for a refused certificate; what it tries soon after is counted, and told with the next refusal."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends = 0.0
        self._refused: Counter[str] = Counter()

    def tell(self, names: str, method: str) -> None:
        """Say that a certificate with these names was refused, or count it."""
        if (now := self._clock()) >= self._ends:
            Context().run(self._tell_left_out)  # outside of this call's context: the lines are about others
            self._ends = now + TELL_AGAIN_SECONDS
        if names not in self._refused and len(self._refused) >= MOST_TOLD:
            names = _OTHERS
        self._refused[names] += 1
        if self._refused[names] == 1:
            log.warning("a certificate may not call this", extra=fields(names=names, method=method))

    def _tell_left_out(self) -> None:
        for names, calls in self._refused.items():
            if calls > 1:
                log.warning("further calls of a certificate were refused", extra=fields(names=names, calls=calls - 1))
        self._refused.clear()


def names_in(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """The names in a caller's certificate. Its common name is none of them: nothing checks that."""
    return tuple(name.decode(errors="replace") for kind in _NAMES for name in auth_context.get(kind, ()))


def _folded(name: str) -> str:
    """As names are compared: hosts in any case, URIs as they are written.

    >>> _folded("GateWay"), _folded("spiffe://mesh/Gateway")
    ('gateway', 'spiffe://mesh/Gateway')
    """
    return name if "://" in name else name.lower()
