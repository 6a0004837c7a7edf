"""A receiver of OTLP for tests: a real gRPC server that keeps the spans it is sent. It needs the extra ``tracing``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class SentSpan:
    """A span as it arrived. Ids are hex; ``parent`` and ``links`` are ids of spans; times are in nanoseconds."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    attributes: dict[str, Any]
    events: tuple[str, ...]
    links: tuple[str, ...]
    failed: bool
    resource: dict[str, Any]


class Collector(TraceServiceServicer):  # type: ignore[misc]  # generated, and an extra that may be absent: Any
    """Takes spans.

    Attributes:
        hangs: while it does, it takes a request and never answers.
    """

    def __init__(self) -> None:
        self.hangs = False
        self.metadata: dict[str, str] = {}
        self.raw: list[bytes] = []
        self.asked = threading.Event()
        self._released = threading.Event()
        self._spans: list[SentSpan] = []

    def Export(self, request: Any, context: Any) -> Any:
        """See OTLP."""
        self.asked.set()
        if self.hangs:
            self._released.wait(60)
        self.take(request)
        self.metadata = dict(context.invocation_metadata())
        return ExportTraceServiceResponse()

    def take(self, request: Any) -> None:
        """Keep a request's spans."""
        self.raw.append(request.SerializeToString())
        self._spans += [_span(span, sent.resource) for sent in request.resource_spans for span in _spans_of(sent)]

    def take_bytes(self, body: bytes) -> None:
        """The same from an HTTP body."""
        self.take(ExportTraceServiceRequest.FromString(body))

    def release(self) -> None:
        """Answer what hangs."""
        self._released.set()

    @property
    def spans(self) -> list[SentSpan]:
        """All that came, by the time they began."""
        return sorted(self._spans, key=lambda span: span.began)

    def of(self, trace: str) -> list[SentSpan]:
        """Those of one trace."""
        return [span for span in self.spans if span.trace == trace]

    def wait(
        self, enough: Callable[[list[SentSpan]], bool], *, trace: str = "", seconds: float = 20.0
    ) -> list[SentSpan]:
        """The spans, of one trace where one is named, as soon as they are enough. Blocks; raises TimeoutError."""
        ends = time.monotonic() + seconds
        while not enough(found := self.of(trace) if trace else self.spans):
            if time.monotonic() > ends:
                raise TimeoutError(f"So far: {[f'{span.service}: {span.name}' for span in found]}")
            time.sleep(_POLL_SECONDS)
        return found


@contextmanager
def collecting(port: int = 0) -> Iterator[tuple[Collector, str]]:
    """A collector that listens on loopback, and its URL as ``OTEL_EXPORTER_OTLP_ENDPOINT`` wants it."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(collector, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{bound}"
    finally:
        collector.release()
        server.stop(0).wait()


def _spans_of(sent: Any) -> Iterator[Any]:
    for scope in sent.scope_spans:
        yield from scope.spans


def _span(span: Any, resource: Any) -> SentSpan:
    about = _values(resource.attributes)
    return SentSpan(
        service=about.get("service.name", ""),
        name=span.name,
        kind=type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        events=tuple(event.name for event in span.events),
        links=tuple(link.span_id.hex() for link in span.links),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        resource=about,
    )


def _values(pairs: Sequence[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
