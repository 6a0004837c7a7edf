"""Traces through a hop of mutual TLS: what is told is what a hop in plaintext tells."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mesh.clients import AsyncEmbeddingServiceClient
from mesh.errors import CallerRefused
from mesh.testing import ScriptedEmbedding, serve, until_serving
from mesh.testing.tracing import KEPT_TRACE, RecordedSpan, RecordingTracer
from mesh.tracing import Kind
from ops.tls.testing import Office
from tests.hop.tls_stand import SERVER, client_tls, client_to, serve_tls

METHOD = "embedding.v1.EmbeddingService/Embed"
HOP = "hop embedding"


def told(spans: Iterable[RecordedSpan]) -> list[dict[str, Any]]:
    """What spans say, but for ids, times and the port."""
    return [
        {"name": each.name, "kind": each.kind, "error": each.error}
        | {name: value for name, value in each.attributes.items() if name != "server.port"}
        for each in spans
    ]


async def test_a_trace_goes_through_mutual_tls_and_says_the_same(tracer: RecordingTracer, tmp_path: Path) -> None:
    """The worker's span is below the attempt's, and every span has the name and the words that it has without TLS."""
    office = Office.open(tmp_path)
    async with serve([ScriptedEmbedding().capability()]) as plain, AsyncEmbeddingServiceClient(plain.target) as client:
        await until_serving(client.hop)
        await client.embed(["a"])
    in_plaintext = tuple(tracer.spans)
    async with (
        serve_tls(office.issue(SERVER)) as worker,
        client_to(worker.port, client_tls(office.issue("gateway"))) as client,
    ):
        await until_serving(client.hop)
        await client.embed(["a"])
    by_tls = tracer.spans[len(in_plaintext) :]
    hop, attempt, served = by_tls
    assert (hop.name, attempt.name, served.name) == (HOP, METHOD, METHOD)
    assert (hop.parent, attempt.parent, served.parent) == (KEPT_TRACE, hop.traceparent, attempt.traceparent)
    assert (attempt.kind, served.kind) == (Kind.CLIENT, Kind.SERVER)
    assert attempt.attributes["server.port"] == worker.port
    assert told(by_tls) == told(in_plaintext)


async def test_a_refused_certificate_is_in_the_trace_by_its_reason_alone(
    tracer: RecordingTracer, tmp_path: Path
) -> None:
    """At both ends of the hop; nobody's names, which the worker's log has, and no file."""
    office = Office.open(tmp_path)
    async with (
        serve_tls(office.issue(SERVER), rules={"gateway": ["*"]}) as worker,
        client_to(worker.port, client_tls(office.issue("stranger"))) as client,
    ):
        await until_serving(client.hop)
        with pytest.raises(CallerRefused):
            await client.embed(["a"])
    attempt, served = tracer.named(METHOD)
    assert served.parent == attempt.traceparent
    assert served.attributes["mesh.reason"] == attempt.error == "CERTIFICATE_NOT_ALLOWED"
    assert attempt.attributes["rpc.response.status_code"] == "PERMISSION_DENIED"
    said = str([vars(span) for span in tracer.spans])
    assert "stranger" not in said
    assert str(tmp_path) not in said
