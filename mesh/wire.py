"""MeshError ↔ gRPC status: the only file that knows both.

The status code and message are gRPC's own; ``google.rpc.ErrorInfo`` (domain, reason, and our class's code) and
``google.rpc.RetryInfo`` travel in ``grpc-status-details-bin``, so that any client reads them with standard tools.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from mesh.errors import (
    AttemptTimedOut,
    DeadlineExceeded,
    Forbidden,
    Internal,
    InvalidRequest,
    MeshError,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    RetryAdvice,
    Unauthenticated,
    Unavailable,
    WrongState,
    all_error_classes,
)

DOMAIN = "torch-isolation-mesh"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
CONNECTION_LOST = "CONNECTION_LOST"
"""The reason of an Unavailable that no peer sent: gRPC's core could not reach it, or lost it during the call."""
_RECONNECT_SECONDS = 1.0
_SENDING_FAILED = "Internal error from Core"
"""What grpc.aio says of a call whose message could not be sent, whatever the peer has answered."""

_BY_CODE = {cls.code: cls for cls in all_error_classes()}

# What a bare status means when it carries none of our details: it came from gRPC's core, a proxy or another server.
_BY_STATUS: dict[grpc.StatusCode, type[MeshError]] = {
    grpc.StatusCode.CANCELLED: Unavailable,  # we did not cancel, so the server dropped the call while it went down
    grpc.StatusCode.UNKNOWN: Internal,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: AttemptTimedOut,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: WrongState,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: WrongState,
    grpc.StatusCode.ABORTED: Unavailable,
    grpc.StatusCode.OUT_OF_RANGE: PayloadTooLarge,
    grpc.StatusCode.UNIMPLEMENTED: Internal,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: Internal,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}

# Text for a status without our details: gRPC core's own text names addresses and internals.
_PUBLIC_MESSAGE: dict[type[MeshError], str] = {
    Unavailable: "The service behind this request cannot be reached. Try again shortly.",
    AttemptTimedOut: "The service behind this request did not answer in time. Try again, or send less at once.",
    Internal: "The service behind this request failed.",
    PayloadTooLarge: "The message is larger than this hop carries. Send less at once.",
    Overloaded: "The service behind this request is busy. Try again shortly.",
}


def grpc_code(error: MeshError | type[MeshError]) -> grpc.StatusCode:
    """The gRPC status code of an error's row."""
    return grpc.StatusCode[error.grpc_status]


def to_trailing_metadata(error: MeshError) -> tuple[tuple[str, str | bytes], ...]:
    """The details of an error, as a server's trailing metadata."""
    info = ErrorInfo(domain=DOMAIN, reason=error.reason, metadata={"code": error.code})
    if error.param:
        info.metadata["param"] = error.param
    if error.hop:
        info.metadata["hop"] = error.hop
    status = Status(code=grpc_code(error).value[0], message=error.message)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    metadata: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status.SerializeToString())]
    if error.retry is RetryAdvice.NEVER:
        # Tells the retry policy in the client's gRPC core that trying again is in vain.
        metadata.append((PUSHBACK_KEY, "-1"))
    return tuple(metadata)


def from_rpc_error(error: grpc.RpcError, *, hop: str, caller_time_is_up: bool) -> MeshError:
    """The MeshError that a failed call means.

    Args:
        error: as raised by grpc or grpc.aio.
        hop: the hop on which it happened.
        caller_time_is_up: whether the caller's own deadline has passed: then it, not the peer, ended the call.
    """
    code: grpc.StatusCode = error.code()
    details: str = error.details() or ""
    # Typed by the stubs as a class of their own; in both stacks it is pairs of key and value.
    trailing: Iterable[Any] = error.trailing_metadata() or ()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and caller_time_is_up:
        return DeadlineExceeded("The request's time is up. Allow it more time or send less at once.", hop=hop)
    return _from_details(trailing, hop) or _from_status(code, details, hop)


def _from_details(trailing: Iterable[tuple[str, str | bytes]], hop: str) -> MeshError | None:
    raw = next((value for key, value in trailing if key == DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return None
    status = Status()
    try:
        status.ParseFromString(raw)
    except DecodeError:  # a peer or a proxy wrote something else there
        return None
    info, retry = ErrorInfo(), RetryInfo()
    retry_after = None
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    cls = _BY_CODE.get(info.metadata.get("code", ""))
    if info.domain != DOMAIN or cls is None:
        return None
    return cls(
        status.message,
        reason=info.reason or None,
        param=info.metadata.get("param") or None,
        hop=info.metadata.get("hop") or hop,
        retry_after=retry_after,
    )


def _from_status(code: grpc.StatusCode, details: str, hop: str) -> MeshError:
    cls = _BY_STATUS.get(code, Internal)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        # The core reports an oversized message with the code that a busy server uses; only the text tells them apart.
        cls = PayloadTooLarge
    message = _PUBLIC_MESSAGE.get(cls) or f"The service behind this request refused it ({code.name})."
    if code is grpc.StatusCode.INTERNAL and details == _SENDING_FAILED:
        # The peer ended the call while the request was still being sent, and its own words were lost.
        cls, message = Unavailable, "The service ended the request while it was being sent. Try again shortly."
        return cls(message, reason=CONNECTION_LOST, hop=hop, retry_after=_RECONNECT_SECONDS)
    if code is grpc.StatusCode.UNAVAILABLE:
        return cls(message, reason=CONNECTION_LOST, hop=hop, retry_after=_RECONNECT_SECONDS)
    reason = None if code is grpc.StatusCode[cls.grpc_status] else code.name
    return cls(message, reason=reason, hop=hop)
