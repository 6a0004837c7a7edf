"""Who is calling: the identifiers that follow one request through every process, by gRPC metadata."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import Enum

REQUEST_ID_KEY = "x-request-id"
PRIORITY_KEY = "x-mesh-priority"
TENANT_KEY = "x-mesh-tenant"
TRACEPARENT_KEY = "traceparent"

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Priority(Enum):
    """The lane a request queues in. Interactive goes first; neither lane starves."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


def new_request_id() -> str:
    """A fresh id: 32 lower-case hex digits."""
    return secrets.token_hex(16)


def acceptable_traceparent(candidate: str | None) -> str:
    """The candidate where it is a W3C ``traceparent``, else empty: a bad one is ignored, as the standard says."""
    return candidate if candidate and _TRACEPARENT.fullmatch(candidate) else ""


def acceptable_request_id(candidate: str | None) -> str | None:
    """The candidate where it is 1 to 128 of ``A-Za-z0-9._:-``, else None: an id ends up in logs and headers."""
    return candidate if candidate and _ACCEPTABLE_ID.fullmatch(candidate) else None


@dataclass(frozen=True, slots=True)
class CallContext:
    """The identifiers of one request."""

    request_id: str = field(default_factory=new_request_id)
    priority: Priority = Priority.INTERACTIVE
    tenant: str = ""
    traceparent: str = ""

    def to_metadata(self) -> tuple[tuple[str, str], ...]:
        """As gRPC metadata; empty values are left out."""
        pairs = (
            (REQUEST_ID_KEY, self.request_id),
            (PRIORITY_KEY, self.priority.value),
            (TENANT_KEY, self.tenant),
            (TRACEPARENT_KEY, self.traceparent),
        )
        return tuple((key, value) for key, value in pairs if value)

    @property
    def trace_id(self) -> str:
        """The trace it belongs to, as 32 hex digits; empty where nobody traces."""
        return self.traceparent[3:35]

    def below(self, traceparent: str) -> CallContext:
        """The same request, below another span: what is called from here on belongs to it."""
        return replace(self, traceparent=traceparent)

    @classmethod
    def from_metadata(cls, metadata: Iterable[tuple[str, str | bytes]]) -> CallContext:
        """From a call's metadata; what is missing or unacceptable is made anew."""
        values = {key: value for key, value in metadata if isinstance(value, str)}
        priority = values.get(PRIORITY_KEY, "")
        return cls(
            request_id=acceptable_request_id(values.get(REQUEST_ID_KEY)) or new_request_id(),
            priority=Priority.BULK if priority == Priority.BULK.value else Priority.INTERACTIVE,
            tenant=values.get(TENANT_KEY, "")[:128],
            traceparent=acceptable_traceparent(values.get(TRACEPARENT_KEY)),
        )


current_call: ContextVar[CallContext | None] = ContextVar("current_call", default=None)
"""The request being served by this task or thread. A hop sends its identifiers along."""


def current_metadata(traceparent: str = "") -> tuple[tuple[str, str], ...]:
    """The present request's identifiers as gRPC metadata, below another span where one is given; empty outside of a
    request.
    """
    call = current_call.get()
    if call is None:
        return ()
    return (call.below(traceparent) if traceparent else call).to_metadata()


def current_priority() -> Priority:
    """The present request's lane; interactive outside of a request."""
    call = current_call.get()
    return call.priority if call is not None else Priority.INTERACTIVE
