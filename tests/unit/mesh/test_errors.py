"""The error tree: every class states its own row, and the table of rows is the one the mesh promises."""

from __future__ import annotations

import grpc
import pytest

from mesh import errors
from mesh.errors import BreakerEffect, MeshError, RetryAdvice, all_error_classes

FAILURE, SUCCESS, NEUTRAL, BUSY = (
    BreakerEffect.FAILURE,
    BreakerEffect.SUCCESS,
    BreakerEffect.NEUTRAL,
    BreakerEffect.BUSY,
)
NEVER, LATER, IDEMPOTENT = RetryAdvice.NEVER, RetryAdvice.AFTER_DELAY, RetryAdvice.IF_IDEMPOTENT

TABLE = {
    "InvalidRequest": ("INVALID_ARGUMENT", 400, NEVER, SUCCESS),
    "InvalidBody": ("INVALID_ARGUMENT", 422, NEVER, SUCCESS),
    "Unauthenticated": ("UNAUTHENTICATED", 401, NEVER, SUCCESS),
    "Forbidden": ("PERMISSION_DENIED", 403, NEVER, SUCCESS),
    "CallerRefused": ("PERMISSION_DENIED", 503, NEVER, SUCCESS),
    "NotFound": ("NOT_FOUND", 404, NEVER, SUCCESS),
    "PayloadTooLarge": ("OUT_OF_RANGE", 413, NEVER, SUCCESS),
    "WrongState": ("FAILED_PRECONDITION", 409, NEVER, SUCCESS),
    "Overloaded": ("RESOURCE_EXHAUSTED", 429, LATER, BUSY),
    "RateLimited": ("RESOURCE_EXHAUSTED", 429, LATER, BUSY),
    "GpuOutOfMemory": ("RESOURCE_EXHAUSTED", 503, NEVER, FAILURE),
    "Unavailable": ("UNAVAILABLE", 503, IDEMPOTENT, FAILURE),
    "CircuitOpen": ("UNAVAILABLE", 503, NEVER, NEUTRAL),
    "ModelUnusable": ("UNAVAILABLE", 503, NEVER, FAILURE),
    "AttemptTimedOut": ("DEADLINE_EXCEEDED", 504, IDEMPOTENT, FAILURE),
    "DeadlineExceeded": ("DEADLINE_EXCEEDED", 504, NEVER, NEUTRAL),
    "Cancelled": ("CANCELLED", 499, NEVER, NEUTRAL),
    "Internal": ("INTERNAL", 500, NEVER, FAILURE),
}


def test_the_table_is_complete() -> None:
    """No class without a row, no row without a class."""
    assert {cls.__name__ for cls in all_error_classes()} == set(TABLE)


@pytest.mark.parametrize("cls", all_error_classes())
def test_each_class_states_its_row(cls: type[MeshError]) -> None:
    """Status, HTTP, retry and breaker are as promised."""
    assert (cls.grpc_status, cls.http_status, cls.retry, cls.breaker) == TABLE[cls.__name__]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Whoever reads the drawing reads the truth: each class with its status and its HTTP code."""
    drawn = errors.__doc__ or ""
    for cls in all_error_classes():
        line = next(line for line in drawn.splitlines() if f"── {cls.__name__} " in line)
        assert line.split()[-2:] == [cls.grpc_status, str(cls.http_status)]


def test_codes_are_unique_and_statuses_exist() -> None:
    """A code names one class; a status is gRPC's."""
    codes = [cls.code for cls in all_error_classes()]
    assert len(codes) == len(set(codes))
    assert all(hasattr(grpc.StatusCode, cls.grpc_status) for cls in all_error_classes())


def test_the_reason_is_the_code_unless_refined() -> None:
    """A machine always finds a reason."""
    assert errors.NotFound("x").reason == "NOT_FOUND"
    assert errors.NotFound("x", reason="MODEL_NOT_SERVED").reason == "MODEL_NOT_SERVED"
