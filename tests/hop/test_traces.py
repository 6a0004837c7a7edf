"""Spans over real hops, and over real OTLP: what arrives at a collector, and what one that fails does to nobody."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from embedding_service.embedder import Embedder
from embedding_service.servicer import SERVICE, EmbeddingServicer
from inference.life import ModelLife
from inference.runner import RunnerLimits
from inference.testing import fake_loaded_model
from mesh import tracing
from mesh.clients.embedding import AsyncEmbeddingServiceClient
from mesh.context import CallContext, current_call
from mesh.deadline import Deadline
from mesh.errors import CircuitOpen, Internal, InvalidRequest, Overloaded, Unavailable
from mesh.hop import HopSettings
from mesh.resilience import CircuitBreaker
from mesh.serving import Capability
from mesh.settings import SettingsError
from mesh.testing import ScriptedEmbedding, serve, until_serving
from mesh.testing.embedding import HANG, Step
from mesh.testing.tracing import KEPT_TRACE, RecordingTracer, recording
from mesh.tracing import Kind

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra tracing is not installed")

from mesh.testing.collector import Collector, collecting

METHOD = "embedding.v1.EmbeddingService/Embed"
HOP = "hop embedding"


@asynccontextmanager
async def client_of(*scripts: list[Step], **settings: float) -> AsyncIterator[AsyncEmbeddingServiceClient]:
    """A client of a worker for each script, all of them known to serve."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(serve([ScriptedEmbedding(script).capability()])) for script in scripts
        ]
        targets = ",".join(worker.target for worker in workers)
        hop = HopSettings.model_validate(settings)
        client = await stack.enter_async_context(AsyncEmbeddingServiceClient(targets, hop=hop))
        client.hop.start()
        async with asyncio.timeout(10):
            while not all(each.health == "SERVING" for each in client.hop.status().endpoints):
                await asyncio.sleep(0.01)
        yield client


async def test_a_call_is_a_hop_an_attempt_and_the_workers_answer(tracer: RecordingTracer) -> None:
    """Each below the one before, across the wire, with the endpoint's address and the breaker's state."""
    async with client_of([]) as client:
        await client.embed(["a"])
        port = int(client.hop.status().endpoints[0].address.rpartition(":")[2])
    hop, (attempt, served) = tracer.one(HOP), tracer.named(METHOD)
    assert (hop.parent, attempt.parent, served.parent) == (KEPT_TRACE, hop.traceparent, attempt.traceparent)
    assert (attempt.kind, served.kind) == (Kind.CLIENT, Kind.SERVER)
    assert (attempt.attributes["server.address"], attempt.attributes["server.port"]) == ("127.0.0.1", port)
    assert (hop.attributes["mesh.breaker.state"], hop.attributes["mesh.attempts"]) == ("closed", 1)
    assert served.attributes["mesh.request_id"] == "mine"
    assert {span.attributes["rpc.response.status_code"] for span in (attempt, served)} == {"OK"}


async def test_a_retry_is_another_attempt_of_the_same_call(tracer: RecordingTracer) -> None:
    """The failed attempt and the good one stand side by side, numbered, at different endpoints."""
    async with client_of([Unavailable("away", reason="GONE")] * 9, []) as client:
        for _ in range(2):  # whoever is asked first: one of two goes to the one that is away
            await client.embed(["a"])
    attempts = [span for span in tracer.named(METHOD) if span.kind is Kind.CLIENT]
    (failed,) = [span for span in attempts if span.error]
    (again,) = [span for span in attempts if span.parent == failed.parent and span is not failed]
    assert (failed.attributes["mesh.attempt"], again.attributes["mesh.attempt"]) == (1, 2)
    assert failed.attributes["server.port"] != again.attributes["server.port"]
    assert (failed.error, failed.attributes["rpc.response.status_code"]) == ("GONE", "UNAVAILABLE")
    assert failed.attributes["mesh.breaker.counts_as"] == "failure"
    (hop,) = [span for span in tracer.named(HOP) if span.traceparent == failed.parent]
    assert (hop.attributes["mesh.attempts"], hop.error) == (2, "")


async def test_a_call_that_the_breaker_refuses_has_no_attempt(tracer: RecordingTracer) -> None:
    """The hop's span says who refused it."""
    breaker = CircuitBreaker(failure_threshold=1, timeout=60, first_open_seconds=60)
    async with serve([ScriptedEmbedding([Internal("broken")]).capability()]) as running:
        async with AsyncEmbeddingServiceClient(running.target, circuit_breaker=breaker) as client:
            await until_serving(client.hop)
            with pytest.raises(Internal):
                await client.embed(["a"])
            with pytest.raises(CircuitOpen):
                await client.embed(["a"])
    failed, refused = tracer.named(HOP)
    assert (failed.error, failed.attributes["mesh.attempts"]) == ("INTERNAL", 1)
    assert (refused.attributes["mesh.refused_by"], refused.attributes["mesh.breaker.state"]) == ("breaker", "open")
    assert (refused.error, refused.attributes["mesh.attempts"]) == ("CIRCUIT_OPEN", 0)
    assert [name for name, _ in refused.events] == ["refused before it was sent"]


async def test_a_call_that_the_limiter_refuses_has_no_attempt(tracer: RecordingTracer) -> None:
    """The same, by the other layer."""
    async with client_of([HANG] * 8, max_in_flight=8) as client:
        waiting = [asyncio.create_task(client.embed(["a"])) for _ in range(8)]
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded):
            await client.embed(["b"])
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    (refused,) = [span for span in tracer.named(HOP) if span.attributes["mesh.outcome"] == "overloaded"]
    assert (refused.attributes["mesh.refused_by"], refused.attributes["mesh.attempts"]) == ("limiter", 0)
    # Callers that left have not failed, and their attempts say how they ended.
    left = [span for span in tracer.named(HOP) if span is not refused]
    attempts = [span for span in tracer.named(METHOD) if span.kind is Kind.CLIENT]
    assert {(span.attributes["mesh.outcome"], span.error) for span in left} == {("cancelled", "")}
    assert [(span.attributes["rpc.response.status_code"], span.error) for span in attempts] == [("CANCELLED", "")] * 8


async def test_a_callers_mistake_is_no_fault_of_the_worker(tracer: RecordingTracer) -> None:
    """An error to the client's side, none to the server's, as the conventions have it."""
    async with client_of([InvalidRequest("no", reason="EMPTY_INPUT")]) as client:
        with pytest.raises(InvalidRequest):
            await client.embed(["a"])
    attempt, served = tracer.named(METHOD)
    assert (attempt.error, served.error) == ("EMPTY_INPUT", "")
    assert served.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert served.attributes["mesh.reason"] == "EMPTY_INPUT"


async def test_what_a_hop_asks_by_itself_is_no_trace() -> None:
    """Info outside of a request has no span, on either side; a call without a trace begins one at the worker."""
    with recording() as tracer:
        async with client_of([]) as client:
            await client.info()
            assert tracer.begun == []
            await client.embed(["a"])
    (served,) = tracer.spans
    assert (served.name, served.parent, served.kind) == (METHOD, "", Kind.SERVER)


# -- over OTLP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the process's spans are sent to at once."""
    with collecting() as (made, url):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield made
        tracing.turn_off()


@asynccontextmanager
async def real_worker(folder: Path) -> AsyncIterator[AsyncEmbeddingServiceClient]:
    """The embedding worker with a fake engine, and its client."""
    limits = RunnerLimits(items_per_request=50, tokens_per_request=400, queued_tokens=1000, batch_tokens=32)
    life = ModelLife(lambda: Embedder(fake_loaded_model(folder), limits), capability="embedding")
    servicer = EmbeddingServicer(life, max_request_bytes=1024, max_stream_requests=2)
    capability = Capability(service=SERVICE, register=servicer.register, start=life.start, stop=life.stop)
    async with serve([capability]) as running, AsyncEmbeddingServiceClient(running.target) as client:
        await until_serving(client.hop)
        yield client


async def test_spans_arrive_at_a_collector_as_one_trace(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the call to the engine's batch, by the standard's variables, with nothing of the text in what was sent."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=team")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    tracing.turn_on("test-process")
    async with real_worker(tmp_path) as client:
        with tracing.task("job"):
            await client.embed(["canary cat", "dog"])
        spans = await asyncio.to_thread(collector.wait, lambda found: {"job", "batch"} <= {each.name for each in found})
    by_name = {(span.name, span.kind): span for span in spans}
    way = [
        ("job", "internal"), (HOP, "internal"), (METHOD, "client"), (METHOD, "server"),
        ("inference", "internal"), ("batch", "internal"),
    ]  # fmt: skip
    for above, below in itertools.pairwise(way):
        assert by_name[below].parent == by_name[above].id, below
    served = by_name[METHOD, "server"]
    assert by_name["queue", "internal"].parent == by_name["tokenize", "internal"].parent == served.id
    assert by_name["batch", "internal"].links == (served.id,)
    assert {span.trace for span in spans} == {served.trace}
    assert served.resource["service.name"] == "test-process"
    assert served.resource["deployment.environment.name"] == "test"
    assert collector.metadata["x-tenant"] == "team"
    assert not any(b"canary" in raw for raw in collector.raw)


async def test_a_trace_that_the_caller_does_not_keep_is_not_sent(collector: Collector, tmp_path: Path) -> None:
    """Its identifiers travel on all the same."""
    tracing.turn_on("test")
    async with real_worker(tmp_path) as client:
        for flag in ("0", "1"):
            token = current_call.set(CallContext(traceparent=f"{KEPT_TRACE[:-1]}{flag}"))
            await client.embed(["a"])
            current_call.reset(token)
        await asyncio.to_thread(collector.wait, lambda found: "batch" in {each.name for each in found})
    assert len([span for span in collector.spans if span.name == METHOD]) == 2


async def test_identifiers_travel_on_where_nothing_is_kept() -> None:
    """A worker behind learns the trace of a caller that does not keep it, and tells nothing of it either."""
    unkept = f"{KEPT_TRACE[:-1]}0"
    token = current_call.set(CallContext(request_id="mine", traceparent=unkept))
    try:
        with recording() as tracer:
            async with serve([(servicer := ScriptedEmbedding()).capability()]) as running:
                async with AsyncEmbeddingServiceClient(running.target) as client:
                    await client.embed(["a"])
    finally:
        current_call.reset(token)
    assert (tracer.begun, servicer.traceparents) == ([], [unkept])


async def test_a_collector_that_hangs_slows_nobody(collector: Collector, tmp_path: Path) -> None:
    """Requests go on while it holds a request for spans, and the end of the process waits for a bounded time."""
    collector.hangs = True
    tracing.turn_on("test")
    async with real_worker(tmp_path) as client:
        with tracing.task("job"):
            await client.embed(["a"])
            assert await asyncio.to_thread(collector.asked.wait, 5)
            began = time.monotonic()
            for _ in range(50):
                await client.embed(["a"], deadline=Deadline.after(2))
            assert time.monotonic() - began < 10
    began = time.monotonic()
    await asyncio.to_thread(tracing.turn_off)
    assert time.monotonic() - began < tracing.LAST_SPANS_SECONDS + 1


async def test_without_a_collector_requests_are_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody listens where the spans are to go: they are dropped."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    tracing.turn_on("test")
    try:
        async with real_worker(tmp_path) as client:
            with tracing.task("job"):
                for _ in range(20):
                    await client.embed(["a"], deadline=Deadline.after(2))
    finally:
        await asyncio.to_thread(tracing.turn_off)


def test_the_last_spans_are_sent_at_the_end(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not wait for the next turn of the exporter, which may be seconds away."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    tracing.turn_on("test")
    with tracing.task("last"):
        pass
    tracing.turn_off()
    assert [span.name for span in collector.spans] == ["last"]


class _HttpCollector(BaseHTTPRequestHandler):
    """OTLP over HTTP."""

    collector = Collector()

    def do_POST(self) -> None:
        self.collector.take_bytes(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_spans_leave_by_http_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many collectors take nothing else."""
    server = HTTPServer(("127.0.0.1", 0), _HttpCollector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        tracing.turn_on("test")
        with tracing.task("by http"):
            pass
        tracing.turn_off()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [span.name for span in _HttpCollector.collector.spans] == ["by http"]


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")]
)
def test_variables_that_make_no_sense_stop_the_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """With the variable's name: silence would be taken for an idle mesh."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_"):
        tracing.turn_on("test")
    assert tracing.active is None
