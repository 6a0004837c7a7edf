"""Traces, for the tests of what hops and workers tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mesh.context import CallContext, current_call
from mesh.testing.tracing import KEPT_TRACE, RecordingTracer, recording


@pytest.fixture
def tracer() -> Iterator[RecordingTracer]:
    """Traces are on, and the calls are below a span that is kept."""
    token = current_call.set(CallContext(request_id="mine", traceparent=KEPT_TRACE))
    with recording() as made:
        yield made
    current_call.reset(token)
