"""The switch for traces, and what is true on both sides of it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from mesh import tracing
from mesh.context import CallContext, current_call
from mesh.settings import SettingsError
from mesh.testing.tracing import KEPT_TRACE, recording

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://collector:4317"}, False),
        ({"OTEL_SDK_DISABLED": "True", ENDPOINT: "http://collector:4317"}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),
    ],
)
def test_traces_are_on_where_a_place_for_them_is_named(environ: dict[str, str], on: bool) -> None:
    """By OpenTelemetry's own variables; its switches for off stand above."""
    assert tracing.asked_for(environ) is on


def test_another_exporter_is_refused() -> None:
    """Nobody should wait for spans that never come."""
    with pytest.raises(SettingsError, match="OTEL_TRACES_EXPORTER=zipkin"):
        tracing.asked_for({"OTEL_TRACES_EXPORTER": "zipkin"})


def test_off_nothing_of_opentelemetry_is_imported() -> None:
    """By no process: not its SDK, not its exporters, and not its API by us."""
    program = (
        "import sys, mesh.hop, mesh.serving, mesh.clients, inference.batcher, mesh.tracing\n"
        "mesh.tracing.turn_on('test', {}); mesh.tracing.turn_off()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
        "import gateway.app\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_without_the_extra_the_start_says_what_to_install() -> None:
    """An operator who asks for traces and would get none is told so, and how to do without."""
    program = (
        "import sys; sys.modules['opentelemetry.sdk'] = None\n"
        "import mesh.tracing\n"
        "mesh.tracing.turn_on('test', {'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:9'})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "Install torch-isolation-mesh[tracing]" in done.stderr


@pytest.mark.parametrize(
    ("traceparent", "kept"),
    [(KEPT_TRACE, True), (KEPT_TRACE[:-1] + "0", False), (KEPT_TRACE[:-1] + "3", True), ("", False)],
)
def test_only_what_is_kept_has_spans_below_it(traceparent: str, kept: bool) -> None:
    """The caller's flag decides, and outside of a request there is nothing to belong to."""
    with recording():
        assert tracing.present() == ""
        token = current_call.set(CallContext(traceparent=traceparent))
        try:
            assert tracing.present() == (traceparent if kept else "")
        finally:
            current_call.reset(token)


def test_off_there_is_no_present_span() -> None:
    """Whatever the caller sent."""
    token = current_call.set(CallContext(traceparent=KEPT_TRACE))
    try:
        assert tracing.present() == ""
    finally:
        current_call.reset(token)


def test_a_task_is_above_what_is_called_inside() -> None:
    """And nothing of it is left behind, however it ends."""
    with recording() as tracer:
        with pytest.raises(ValueError):
            with tracing.task("job", parent=KEPT_TRACE, links=["another"]) as above:
                assert tracing.present() == above
                raise ValueError
        assert tracing.present() == ""
    job = tracer.one("job")
    assert (job.parent, job.links, job.error) == (KEPT_TRACE, ["another"], "ValueError")


def test_off_a_task_changes_nothing() -> None:
    """The caller's own call goes on as it is."""
    with tracing.task("job", parent=KEPT_TRACE) as above:
        assert (above, current_call.get()) == ("", None)


def test_a_time_on_another_clock_is_told_as_the_time_of_day() -> None:
    """Two seconds ago is two seconds ago."""
    ago = time.time_ns() - tracing.unix_ns(98.0, 100.0)
    assert abs(ago - 2_000_000_000) < 100_000_000


def test_a_call_below_a_span_keeps_everything_else() -> None:
    """Its id and lane go on; the trace is the span's."""
    call = CallContext(request_id="mine", tenant="team").below(KEPT_TRACE)
    assert (call.request_id, call.tenant, call.trace_id) == ("mine", "team", "a" * 32)
