"""What a servicer may ask about the call it is serving."""

from __future__ import annotations

from typing import Any

import grpc.aio

from mesh.context import CallContext, current_call
from mesh.deadline import Deadline

ServicerContext = grpc.aio.ServicerContext[Any, Any]


def call_context(context: ServicerContext) -> CallContext:
    """Who is calling: request id, lane and tenant, as set by the interceptor."""
    call = current_call.get()
    return call if call is not None else CallContext.from_metadata(context.invocation_metadata() or ())


def deadline_of(context: ServicerContext, default_seconds: float = 30.0) -> Deadline:
    """The caller's deadline; ``default_seconds`` from now where the call came without one.

    gRPC's timeouts are relative on the wire, so this is the caller's deadline up to the time the message travelled.
    """
    remaining = context.time_remaining()
    return Deadline.after(default_seconds if remaining is None else min(remaining, 24 * 3600.0))
