"""OpenTelemetry's SDK behind `mesh.tracing`: the one module that imports it, and only imported where traces are on.

Spans wait in a bounded queue and leave by a thread of their own: where the receiver is slow or away they are dropped,
and no request notices. Spans are begun and ended by hand, never made current, so that OpenTelemetry's own context is
not in the way of ours, which travels in `mesh.context`.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan

from mesh.settings import SettingsError
from mesh.tracing import NO_ATTRIBUTES, Attributes, Kind
from mesh.version import VERSION

_KINDS = {Kind.INTERNAL: SpanKind.INTERNAL, Kind.SERVER: SpanKind.SERVER, Kind.CLIENT: SpanKind.CLIENT}
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NOTHING_ABOVE = Context()


class SdkSpan:
    """A span of OpenTelemetry."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def rename(self, name: str) -> None:
        """See Span."""
        self._span.update_name(name)

    def note(self, attributes: Attributes) -> None:
        """See Span."""
        self._span.set_attributes(attributes)

    def tell(self, event: str, attributes: Attributes = NO_ATTRIBUTES) -> None:
        """See Span."""
        self._span.add_event(event, attributes)

    def end(self, *, error: str = "", unix_ns: int | None = None) -> None:
        """See Span."""
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(unix_ns)


class SdkTracer:
    """Begins spans, and hands those that ended to an exporter."""

    def __init__(self, process: str, exporter: SpanExporter) -> None:
        # As the standard wants it, the environment stands above the program.
        ours = {
            "service.name": process,
            "service.namespace": "torch-isolation-mesh",
            "service.version": VERSION,
            "service.instance.id": str(uuid.uuid4()),
        }
        self._provider = TracerProvider(
            resource=Resource(ours).merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("torch-isolation-mesh", VERSION)

    @classmethod
    def exporting(cls, process: str, environ: Mapping[str, str]) -> SdkTracer:
        """A tracer whose spans leave by OTLP. Raises SettingsError."""
        chosen = next((environ[name].strip() for name in _PROTOCOL_VARIABLES if environ.get(name)), "grpc")
        try:
            return cls(process, _exporter(chosen))
        except SettingsError:
            raise
        except Exception as error:
            raise SettingsError(
                f"The traces' exporter cannot be made: {type(error).__name__}: {error}. "
                "See the variables OTEL_EXPORTER_OTLP_*."
            ) from error

    def begin(  # noqa: PLR0913 - see Tracer
        self,
        name: str,
        kind: Kind = Kind.INTERNAL,
        *,
        parent: str = "",
        attributes: Attributes = NO_ATTRIBUTES,
        links: Sequence[str] = (),
        unix_ns: int | None = None,
    ) -> SdkSpan:
        """See Tracer."""
        above = set_span_in_context(NonRecordingSpan(_parsed(parent)), _NOTHING_ABOVE) if parent else _NOTHING_ABOVE
        return SdkSpan(
            self._tracer.start_span(
                name,
                above,
                _KINDS[kind],
                attributes,
                links=[Link(_parsed(each)) for each in links],
                start_time=unix_ns,
            )
        )

    def stop(self, seconds: float) -> None:
        """See Tracer."""
        # The SDK's own end takes up to half a minute where the receiver hangs.
        ending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(seconds)


def _exporter(protocol: str) -> SpanExporter:
    """It reads the standard's variables by itself. Raises SettingsError for a protocol that is not offered."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as ByGrpc

        return ByGrpc()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as ByHttp

        return ByHttp()
    raise SettingsError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not offered: use grpc or http/protobuf.")


def _parsed(traceparent: str) -> SpanContext:
    """What a traceparent says; `mesh.context.acceptable_traceparent` has checked its form."""
    _, trace, span, flags = traceparent.split("-")
    return SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
