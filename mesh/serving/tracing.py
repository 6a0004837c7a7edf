"""What a worker tells a trace about a call that it serves."""

from __future__ import annotations

from mesh import tracing
from mesh.context import CallContext
from mesh.errors import MeshError
from mesh.tracing import Kind, Span, Tracer
from mesh.wire import grpc_code

_QUESTIONS = frozenset({"Info", "GetLoad"})
"""Asked again and again by health scripts and hops: they are part of a trace that asks them, and begin none."""
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Statuses that are errors to a server's span, as the conventions for gRPC have it."""


def rpc_span(tracer: Tracer, service: str, method: str, call: CallContext) -> Span | None:
    """The span of a call that begins now; None for one that is not to be traced.

    Whoever began the trace has decided whether it is kept.
    """
    wanted = tracing.is_kept(call.traceparent) if call.traceparent else method not in _QUESTIONS
    if not wanted:
        return None
    name = f"{service}/{method}"
    attributes: dict[str, tracing.Value] = {
        "rpc.system.name": "grpc",
        "rpc.method": name,
        "mesh.request_id": call.request_id,
        "mesh.priority": call.priority.value,
    }
    return tracer.begin(name, Kind.SERVER, parent=call.traceparent, attributes=attributes)


def end_rpc(span: Span, outcome: str, failure: MeshError | None) -> None:
    """The call is over."""
    code = grpc_code(failure).name if failure is not None else "CANCELLED" if outcome == "cancelled" else "OK"
    attributes: dict[str, tracing.Value] = {"rpc.response.status_code": code, "mesh.outcome": outcome}
    if failure is not None:
        attributes["mesh.reason"] = failure.reason
    span.note(attributes)
    span.end(error=failure.reason if failure is not None and code in _FAULTS else "")
