"""Every failure that the mesh reports, as one tree. A class states its own row of the error table.

::

    MeshError
    ├── InvalidRequest            the caller sent something that can never work       INVALID_ARGUMENT    400
    │   └── InvalidBody           … the body does not validate                        INVALID_ARGUMENT    422
    ├── Unauthenticated           who are you                                         UNAUTHENTICATED     401
    ├── Forbidden                 you may not                                         PERMISSION_DENIED   403
    │   └── CallerRefused         … the process in between may not: its operator acts PERMISSION_DENIED   503
    ├── NotFound                  no such model, route, document                      NOT_FOUND           404
    ├── PayloadTooLarge           over a stated limit                                 OUT_OF_RANGE        413
    ├── WrongState                the model cannot do this                            FAILED_PRECONDITION 409
    ├── Overloaded                too much at once; come back after retry_after       RESOURCE_EXHAUSTED  429
    │   ├── RateLimited           … more than this caller may ask                     RESOURCE_EXHAUSTED  429
    │   └── GpuOutOfMemory        … the device's memory, after splitting the batch    RESOURCE_EXHAUSTED  503
    ├── Unavailable               down, warming up or draining                        UNAVAILABLE         503
    │   ├── CircuitOpen           … refused here, without asking the peer             UNAVAILABLE         503
    │   └── ModelUnusable         … its model is missing, damaged or the wrong kind   UNAVAILABLE         503
    ├── AttemptTimedOut           the peer took longer than the hop allows            DEADLINE_EXCEEDED   504
    ├── DeadlineExceeded          the caller's own time is up                         DEADLINE_EXCEEDED   504
    ├── Cancelled                 the caller went away                                CANCELLED           499
    └── Internal                  a bug or an engine's failure                        INTERNAL            500

`mesh.wire` turns these into gRPC statuses and back; `gateway.problems` renders them in each HTTP dialect. Neither
knows more than the attributes stated here.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class RetryAdvice(Enum):
    """Whether a caller should send the same request again."""

    NEVER = "never"
    AFTER_DELAY = "after_delay"
    IF_IDEMPOTENT = "if_idempotent"


class BreakerEffect(Enum):
    """What an outcome tells a circuit breaker about the peer's health."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    BUSY = "busy"
    """Neutral while calls flow; a probe answered so has not shown that the peer is well again."""


class MeshError(Exception):
    """Base of all failures with a meaning on the wire.

    Args:
        message: one sentence for the caller that says what to do next. It reaches clients: no secrets, no paths of
            other users, no text of unknown exceptions.
        reason: a machine-readable refinement in UPPER_SNAKE_CASE, for example ``DOCUMENT_ENCRYPTED``; by default the
            class's own code.
        param: the request field at fault, in the caller's vocabulary.
        hop: the hop on which it happened, for example ``embedding``.
        retry_after: seconds after which trying again is worth it; None where it is not known.
    """

    code: ClassVar[str] = "internal"
    grpc_status: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    retry: ClassVar[RetryAdvice] = RetryAdvice.NEVER
    breaker: ClassVar[BreakerEffect] = BreakerEffect.FAILURE

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        param: str | None = None,
        hop: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code.upper()
        self.param = param
        self.hop = hop
        self.retry_after = retry_after


class InvalidRequest(MeshError):
    """The caller sent something that can never work. It proves the peer alive."""

    code = "invalid_request"
    grpc_status = "INVALID_ARGUMENT"
    http_status = 400
    breaker = BreakerEffect.SUCCESS


class InvalidBody(InvalidRequest):
    """The request's body does not validate against the schema."""

    code = "invalid_body"
    http_status = 422


class Unauthenticated(MeshError):
    """No credentials, or credentials that are not known."""

    code = "unauthenticated"
    grpc_status = "UNAUTHENTICATED"
    http_status = 401
    breaker = BreakerEffect.SUCCESS


class Forbidden(MeshError):
    """The credentials are known and do not allow this."""

    code = "forbidden"
    grpc_status = "PERMISSION_DENIED"
    http_status = 403
    breaker = BreakerEffect.SUCCESS


class CallerRefused(Forbidden):
    """A worker does not let the calling process's certificate call this. No fault of whoever asked that process."""

    code = "caller_refused"
    http_status = 503


class NotFound(MeshError):
    """No such model, route or document."""

    code = "not_found"
    grpc_status = "NOT_FOUND"
    http_status = 404
    breaker = BreakerEffect.SUCCESS


class PayloadTooLarge(MeshError):
    """Over a stated limit of bytes, items, tokens, pages or time."""

    code = "payload_too_large"
    grpc_status = "OUT_OF_RANGE"
    http_status = 413
    breaker = BreakerEffect.SUCCESS


class WrongState(MeshError):
    """The request is well formed, and this model or mode cannot do it."""

    code = "wrong_state"
    grpc_status = "FAILED_PRECONDITION"
    http_status = 409
    breaker = BreakerEffect.SUCCESS


class Overloaded(MeshError):
    """Too much at once: busy, not broken. Worth trying again after ``retry_after``."""

    code = "overloaded"
    grpc_status = "RESOURCE_EXHAUSTED"
    http_status = 429
    retry = RetryAdvice.AFTER_DELAY
    breaker = BreakerEffect.BUSY


class RateLimited(Overloaded):
    """More than this caller may ask, whoever else does. Worth trying again after ``retry_after``."""

    code = "rate_limited"


class GpuOutOfMemory(Overloaded):
    """The device's memory did not suffice, even after the worker split the batch."""

    code = "gpu_oom"
    http_status = 503
    retry = RetryAdvice.NEVER
    breaker = BreakerEffect.FAILURE


class Unavailable(MeshError):
    """The peer is down, warming up or draining."""

    code = "unavailable"
    grpc_status = "UNAVAILABLE"
    http_status = 503
    retry = RetryAdvice.IF_IDEMPOTENT


class CircuitOpen(Unavailable):
    """Refused here, without asking the peer: the hop's circuit breaker is open."""

    code = "circuit_open"
    retry = RetryAdvice.NEVER
    breaker = BreakerEffect.NEUTRAL


class ModelUnusable(Unavailable):
    """The capability's model is missing, damaged, pickled or of the wrong kind; an operator has to act."""

    code = "model_unusable"
    retry = RetryAdvice.NEVER


class AttemptTimedOut(MeshError):
    """The peer took longer than the hop allows for one attempt."""

    code = "attempt_timed_out"
    grpc_status = "DEADLINE_EXCEEDED"
    http_status = 504
    retry = RetryAdvice.IF_IDEMPOTENT


class DeadlineExceeded(MeshError):
    """The caller's own time is up. It says nothing about the peer."""

    code = "deadline_exceeded"
    grpc_status = "DEADLINE_EXCEEDED"
    http_status = 504
    breaker = BreakerEffect.NEUTRAL


class Cancelled(MeshError):
    """The caller went away. 499 appears in logs only."""

    code = "cancelled"
    grpc_status = "CANCELLED"
    http_status = 499
    breaker = BreakerEffect.NEUTRAL


class Internal(MeshError):
    """A bug, or a failure of the engine."""

    code = "internal"


def all_error_classes() -> tuple[type[MeshError], ...]:
    """Every class of the tree below MeshError, parents before children."""
    found: list[type[MeshError]] = []
    pending: list[type[MeshError]] = list(MeshError.__subclasses__())
    while pending:
        cls = pending.pop(0)
        found.append(cls)
        pending.extend(cls.__subclasses__())
    return tuple(found)
