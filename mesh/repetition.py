"""Which failures allow that the same call is sent once more."""

from __future__ import annotations

from mesh.errors import MeshError, Overloaded, RetryAdvice, Unavailable
from mesh.wire import CONNECTION_LOST

REFUSED_BEFORE_WORK = frozenset({"STARTING", "WARMING_UP", "DRAINING", "ENGINE_RESTARTING", "ENGINE_UNREACHABLE"})
"""Reasons with which a worker turns a call away before it, or the engine behind it, begins to work on it."""


def may_be_repeated(error: MeshError, *, idempotent: bool) -> bool:
    """Whether a second attempt can do no harm and may help.

    What is idempotent may be repeated whenever the error's row says so. Anything else, above all a generation, only
    where the worker itself said that it did not begin.
    """
    if isinstance(error, Overloaded):
        return error.retry is RetryAdvice.AFTER_DELAY
    if isinstance(error, Unavailable) and error.reason in REFUSED_BEFORE_WORK:
        return True
    return idempotent and error.retry is RetryAdvice.IF_IDEMPOTENT


def may_have_been_the_connection(error: MeshError) -> bool:
    """Whether the failure says nothing about the peer: no worker's words came with it, only gRPC's core gave up."""
    return isinstance(error, Unavailable) and error.reason == CONNECTION_LOST
