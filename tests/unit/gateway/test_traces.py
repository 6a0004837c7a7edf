"""The span of an HTTP request: what it says, what it never says, and what goes on below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from gateway.app import create_app
from gateway.door import Door
from gateway.lifecycle import Lifecycle
from gateway.settings import GatewaySettings
from gateway.testing import FakePeers
from gateway.traces import REFUSALS_PER_SECOND, DoorTraces, Traced
from mesh.context import CallContext
from mesh.errors import CircuitOpen, Unavailable
from mesh.testing.tracing import KEPT_TRACE, RecordingTracer, recording
from mesh.tracing import Kind
from tests.unit.gateway.conftest import connected

URL = "/v1/embeddings"


@pytest.fixture
def tracer() -> Iterator[RecordingTracer]:
    """Traces are on."""
    with recording() as made:
        yield made


@pytest.fixture
async def traced(
    tracer: RecordingTracer, settings: GatewaySettings, peers: FakePeers
) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that was made while traces were on."""
    async with connected(create_app(settings, peers=peers.as_peers())) as http:
        yield http


def context_of(peers: FakePeers) -> CallContext:
    """What the embedding worker would be told of the last call."""
    context = peers.embedder.calls[-1].context
    assert context is not None
    return context


async def test_the_workers_are_called_below_the_requests_span(
    traced: httpx.AsyncClient, tracer: RecordingTracer, peers: FakePeers
) -> None:
    """The caller's trace goes on, with the gateway's span in between."""
    await traced.post(URL, json={"input": "a"}, headers={"traceparent": KEPT_TRACE})
    span = tracer.one("POST /v1/embeddings")
    assert (span.kind, span.parent) == (Kind.SERVER, KEPT_TRACE)
    assert context_of(peers).traceparent == span.traceparent
    assert context_of(peers).trace_id == "a" * 32


async def test_a_request_without_a_trace_begins_one(
    traced: httpx.AsyncClient, tracer: RecordingTracer, peers: FakePeers
) -> None:
    """Also where the header that should say so is none."""
    await traced.post(URL, json={"input": "a"}, headers={"traceparent": "00-nonsense"})
    span = tracer.one("POST /v1/embeddings")
    assert span.parent == ""
    assert context_of(peers).traceparent == span.traceparent


async def test_the_span_says_what_the_conventions_name_and_nothing_that_was_sent(
    traced: httpx.AsyncClient, tracer: RecordingTracer
) -> None:
    """Method, route, status, model and counts; no text, no query, no header, no key."""
    await traced.post(
        f"{URL}?key=canary-query",
        json={"input": "canary-text", "user": "canary-user"},
        headers={"authorization": "Bearer canary-key", "user-agent": "canary-agent"},
    )
    said = tracer.one("POST /v1/embeddings").attributes
    assert said["http.request.method"] == "POST"
    assert (said["http.route"], said["url.path"], said["http.response.status_code"]) == (URL, URL, 200)
    assert said["gen_ai.usage.input_tokens"] == 13 - len("a canary text") + len("canary-text")
    assert said["mesh.inputs"] == 1
    assert said["mesh.outcome"] == "ok"
    assert "canary" not in str(said)


async def test_probes_are_not_kept(traced: httpx.AsyncClient, tracer: RecordingTracer) -> None:
    """They come every few seconds for ever; the span of one that is well never ends."""
    for path in ("/health", "/health/live", "/metrics"):
        assert (await traced.get(path)).status_code == 200
    assert tracer.spans == []


async def test_a_clients_mistake_is_no_error_of_the_gateway(traced: httpx.AsyncClient, tracer: RecordingTracer) -> None:
    """As the conventions for servers say; a path that does not exist is called unmatched."""
    assert (await traced.get("/made/up")).status_code == 404
    span = tracer.one("GET unmatched")
    assert (span.error, span.attributes["mesh.outcome"]) == ("", "route_not_found")


async def test_a_failing_hop_is_named(traced: httpx.AsyncClient, tracer: RecordingTracer, peers: FakePeers) -> None:
    """A 5xx is an error, with the hop that it came from; and the problem's trace is the span's."""
    peers.embedder.error = Unavailable("Away.", reason="NO_ENDPOINT", hop="embedding")
    answer = await traced.post("/embed", json={"inputs": "a"})
    span = tracer.one("POST /embed")
    assert answer.status_code == 503
    assert (span.error, span.attributes["mesh.hop"]) == ("no_endpoint", "embedding")
    nowhere = await traced.get("/nowhere")
    assert nowhere.json()["trace_id"] == tracer.one("GET unmatched").traceparent[3:35]


async def test_off_there_is_no_layer_for_traces(settings: GatewaySettings, peers: FakePeers) -> None:
    """A request takes the same way as before there were any."""
    off = create_app(settings, peers=peers.as_peers()).middleware_stack
    with recording():
        on = create_app(settings, peers=peers.as_peers()).middleware_stack
    assert isinstance(on, Traced)
    assert not isinstance(off, Traced)


async def test_what_the_door_turns_away_is_traced_too(tracer: RecordingTracer) -> None:
    """With the hop and its reason, from the request's coming on."""
    peers, lifecycle, settings = FakePeers(), Lifecycle(), GatewaySettings()
    door = Door.of(settings, lifecycle)
    create_app(settings, peers=peers.as_peers(), lifecycle=lifecycle, door=door)
    peers.embedder.hop.refusal = CircuitOpen("Open.", hop="embedding", retry_after=7)
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": URL,
        "headers": [(b"content-length", b"1"), (b"traceparent", KEPT_TRACE.encode())],
    }  # fmt: skip
    assert door.turn_away(scope) is not None
    span = tracer.one("POST /v1/embeddings")
    assert (span.parent, span.error) == (KEPT_TRACE, "circuit_open")
    assert span.events == [("refused at the door", {"mesh.hop": "embedding", "mesh.reason": "CIRCUIT_OPEN"})]


async def test_a_flood_of_refusals_is_not_a_flood_of_spans(tracer: RecordingTracer) -> None:
    """So many a second; the next second has its own."""
    now = 100.0
    traces = DoorTraces(clock=lambda: now)

    def refuse() -> bool:
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": URL, "headers": []}
        from gateway.exchange import Exchange

        return traces.begin(Exchange.open(scope), scope) is not None

    assert [refuse() for _ in range(REFUSALS_PER_SECOND + 5)].count(True) == REFUSALS_PER_SECOND
    now = 101.0
    assert refuse()
