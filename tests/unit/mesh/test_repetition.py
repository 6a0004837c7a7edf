"""Which failed calls are sent once more."""

from __future__ import annotations

import pytest

from mesh.errors import (
    AttemptTimedOut,
    Cancelled,
    CircuitOpen,
    DeadlineExceeded,
    GpuOutOfMemory,
    Internal,
    InvalidRequest,
    MeshError,
    ModelUnusable,
    Overloaded,
    Unavailable,
)
from mesh.repetition import may_be_repeated, may_have_been_the_connection
from mesh.wire import CONNECTION_LOST


@pytest.mark.parametrize(
    ("error", "idempotent", "otherwise"),
    [
        (Unavailable("lost", reason=CONNECTION_LOST), True, False),
        (Unavailable("engine lost", reason="ENGINE_LOST"), True, False),
        (Unavailable("draining", reason="DRAINING"), True, True),
        (Unavailable("starting", reason="STARTING"), True, True),
        (Unavailable("engine restarts", reason="ENGINE_RESTARTING"), True, True),
        (Unavailable("no engine", reason="ENGINE_UNREACHABLE"), True, True),
        (Unavailable("engine silent", reason="ENGINE_STUCK"), True, False),
        (Overloaded("full"), True, True),
        (AttemptTimedOut("late"), True, False),
        (GpuOutOfMemory("oom"), False, False),
        (CircuitOpen("open"), False, False),
        (ModelUnusable("damaged"), False, False),
        (Internal("bug"), False, False),
        (InvalidRequest("bad"), False, False),
        (DeadlineExceeded("late"), False, False),
        (Cancelled("left"), False, False),
    ],
    ids=lambda value: f"{type(value).__name__}-{value.reason}" if isinstance(value, MeshError) else str(value),
)
def test_a_call_is_repeated_only_where_it_can_do_no_harm(error: MeshError, idempotent: bool, otherwise: bool) -> None:
    """What may be done twice follows the error's row; anything else needs the worker's word that it did not begin."""
    assert may_be_repeated(error, idempotent=True) is idempotent
    assert may_be_repeated(error, idempotent=False) is otherwise


def test_only_the_cores_own_failure_may_have_been_the_connection() -> None:
    """A worker's words prove that the connection held."""
    assert may_have_been_the_connection(Unavailable("lost", reason=CONNECTION_LOST))
    assert not may_have_been_the_connection(Unavailable("draining", reason="DRAINING"))
    assert not may_have_been_the_connection(Internal("bug", reason=CONNECTION_LOST))
