"""Every failure in every dialect: the only file that knows both the error tree and the vendors' error shapes.

=========  ======================================================================================================
OpenAI     ``{"error": {"message", "type", "param", "code"}}``; a body that does not validate is 400, as theirs is
Cohere     ``{"message", "id"}``
Jina       ``{"detail", "message", "id"}``: Jina's client reads the first, Cohere's v1 client the second
Anthropic  ``{"type": "error", "error": {"type", "message"}, "request_id"}``; busy is 529, as theirs is
TEI        ``{"error", "error_type"}`` with TEI's own statuses: 422 for what is invalid, 424 for a failed backend
ours       RFC 9457 ``application/problem+json`` with ``code``, ``hop``, ``retry_after``, ``trace_id``, ``request_id``
=========  ======================================================================================================

All of them carry ``retry-after``, ``retry-after-ms`` and ``x-should-retry``, which the SDKs obey.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic_core import to_json

from gateway.dialects import Dialect, generates
from mesh.context import CallContext
from mesh.errors import (
    GpuOutOfMemory,
    Internal,
    InvalidBody,
    InvalidRequest,
    MeshError,
    ModelUnusable,
    Overloaded,
    RateLimited,
    RetryAdvice,
    Unauthenticated,
    Unavailable,
)

# Reasons that HTTP has a status of its own for, in every dialect.
_STATUS_OF_REASON = {
    "UPGRADE_NOT_SUPPORTED": 400,
    "METHOD_NOT_ALLOWED": 405,
    "BODY_TIMEOUT": 408,
    "LENGTH_REQUIRED": 411,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "HOST_NOT_ALLOWED": 421,
}
_DEFAULT_RETRY_SECONDS = 1.0
SITE_IS_OVERLOADED = 529
"""What Anthropic's API says while it is busy. Its 429 means the caller's own rate."""
_EMPTY_REASONS = frozenset({"EMPTY_INPUT", "EMPTY"})


@dataclass(frozen=True, slots=True)
class Problem:
    """A failure as it goes to the client."""

    status: int
    headers: tuple[tuple[str, str], ...]
    document: dict[str, Any]

    @property
    def body(self) -> bytes:
        """The document as JSON."""
        return to_json(self.document)

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The headers as ASGI takes them."""
        return tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers)


def as_mesh_error(error: BaseException) -> MeshError:
    """The error itself where it is ours, else Internal without a word of its text: that may hold secrets."""
    if isinstance(error, MeshError):
        return error
    return Internal("The gateway failed on this request. Report the request id to whoever runs it.")


def out_of_time() -> Unavailable:
    """The error of a request that was still under way when the gateway's own time to end was over."""
    return Unavailable(
        "This gateway ends before the request is done. Send it again; another gateway may take it.",
        reason="GATEWAY_DRAINING",
        retry_after=1.0,
    )


def problem(error: MeshError, *, dialect: Dialect, call: CallContext, path: str) -> Problem:
    """Render ``error`` for a client of ``dialect`` that asked for ``path``."""
    status = _status(error, dialect)
    media_type = "application/problem+json" if dialect is Dialect.OURS else "application/json"
    headers = (("content-type", media_type), *_retry_headers(error, path), *_challenges(error))
    return Problem(status=status, headers=headers, document=document(error, dialect=dialect, call=call, path=path))


def document(error: MeshError, *, dialect: Dialect, call: CallContext, path: str) -> dict[str, Any]:
    """Only the JSON of `problem`: what a broken stream carries in place of its end."""
    return _SHAPES[dialect](error, call, path)


def _status(error: MeshError, dialect: Dialect) -> int:
    by_reason = _STATUS_OF_REASON.get(error.reason)
    if by_reason is not None:
        return by_reason
    if dialect is Dialect.TEI:
        return _tei_status(error)
    if dialect in {Dialect.OPENAI, Dialect.ANTHROPIC} and isinstance(error, InvalidBody):
        return int(HTTPStatus.BAD_REQUEST)
    is_busy = error.http_status == HTTPStatus.TOO_MANY_REQUESTS and not isinstance(error, RateLimited)
    if dialect is Dialect.ANTHROPIC and is_busy:
        return SITE_IS_OVERLOADED
    return error.http_status


def _tei_status(error: MeshError) -> int:
    if isinstance(error, InvalidRequest):
        return int(HTTPStatus.BAD_REQUEST if error.reason in _EMPTY_REASONS else HTTPStatus.UNPROCESSABLE_ENTITY)
    if isinstance(error, (Internal, GpuOutOfMemory)):
        return int(HTTPStatus.FAILED_DEPENDENCY)
    return error.http_status


def retry_after_seconds(error: MeshError) -> float | None:
    """Seconds after which trying again is worth it; a default where the peer is busy or away and did not say."""
    if error.retry_after is not None:
        return error.retry_after
    waiting_helps = isinstance(error, (Unavailable, Overloaded)) and not isinstance(
        error, (ModelUnusable, GpuOutOfMemory)
    )
    return _DEFAULT_RETRY_SECONDS if waiting_helps else None


def _challenges(error: MeshError) -> tuple[tuple[str, str], ...]:
    """What a client without a key is asked for. A browser asks its user for the second."""
    if not isinstance(error, Unauthenticated):
        return ()
    return (
        ("www-authenticate", 'Bearer realm="mesh"'),
        ("www-authenticate", 'Basic realm="mesh", charset="UTF-8"'),
    )


def _retry_headers(error: MeshError, path: str) -> tuple[tuple[str, str], ...]:
    again = "true" if _should_retry(error, path) else "false"
    seconds = retry_after_seconds(error)
    if seconds is None:
        return (("x-should-retry", again),)
    return (
        # Whole seconds, never 0: a client that waits "0" comes back at once.
        ("retry-after", str(max(1, math.ceil(seconds)))),
        ("retry-after-ms", str(max(1, math.ceil(seconds * 1000)))),
        ("x-should-retry", again),
    )


def _should_retry(error: MeshError, path: str) -> bool:
    if error.retry is RetryAdvice.AFTER_DELAY:
        return True
    if error.retry is RetryAdvice.NEVER:
        return False
    # A text is only written a second time where the worker itself said when to come back.
    return error.retry_after is not None or not generates(path)


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}


def _openai(error: MeshError, call: CallContext, path: str) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    status = _status(error, Dialect.OPENAI)
    kind = _OPENAI_TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.reason.lower()}}


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    SITE_IS_OVERLOADED: "overloaded_error",
}


def _anthropic(error: MeshError, call: CallContext, path: str) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    status = _status(error, Dialect.ANTHROPIC)
    kind = _ANTHROPIC_TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    message = f"{error.param}: {error.message}" if error.param and error.param not in error.message else error.message
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": call.request_id}


def _cohere(error: MeshError, call: CallContext, path: str) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    return {"message": error.message, "id": call.request_id}


def _jina(error: MeshError, call: CallContext, path: str) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    return {"detail": error.message, "message": error.message, "id": call.request_id}


def _tei(error: MeshError, call: CallContext, path: str) -> dict[str, Any]:  # noqa: ARG001 - one signature for all
    return {"error": error.message, "error_type": _tei_type(error)}


def _tei_type(error: MeshError) -> str:
    if error.reason in _EMPTY_REASONS:
        return "Empty"
    if isinstance(error, GpuOutOfMemory):
        return "Backend"
    if isinstance(error, Overloaded):
        return "Overloaded"
    if isinstance(error, Unavailable):
        return "Unhealthy"
    return "Validation" if error.http_status < 499 else "Backend"


def trace_id(call: CallContext) -> str:
    """The trace that a request belongs to: its ``traceparent``'s, or its own id where nobody traces."""
    parts = call.traceparent.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else call.request_id


def _ours(error: MeshError, call: CallContext, path: str) -> dict[str, Any]:
    status = _status(error, Dialect.OURS)
    wait = retry_after_seconds(error)
    optional = {"param": error.param, "hop": error.hop, "retry_after": None if wait is None else round(wait, 3)}
    return {
        "type": f"urn:torch-isolation-mesh:error:{error.code}",
        "title": phrase_of(status),
        "status": status,
        "detail": error.message,
        "instance": path,
        "code": error.code,
        "reason": error.reason,
        **{key: value for key, value in optional.items() if value is not None},
        "trace_id": trace_id(call),
        "request_id": call.request_id,
    }


_UNREGISTERED_PHRASES = {499: "Client Closed Request", SITE_IS_OVERLOADED: "Site is overloaded"}


def phrase_of(status: int) -> str:
    """A status in words, those included that HTTP has no register for."""
    return _UNREGISTERED_PHRASES.get(status) or HTTPStatus(status).phrase


_SHAPES: Mapping[Dialect, Callable[[MeshError, CallContext, str], dict[str, Any]]] = {
    Dialect.OPENAI: _openai,
    Dialect.COHERE: _cohere,
    Dialect.JINA: _jina,
    Dialect.TEI: _tei,
    Dialect.ANTHROPIC: _anthropic,
    Dialect.OURS: _ours,
}
