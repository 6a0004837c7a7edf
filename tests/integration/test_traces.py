"""One trace from the HTTP request to the engine, collected over OTLP from the whole mesh as its users start it."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from mesh.testing.collector import Collector, SentSpan, collecting
from ops.local.layout import CHECKOUT
from ops.local.processes import wait_until
from ops.local.testing import LocalMesh

pytestmark = pytest.mark.integration

PDF = CHECKOUT / "tests" / "data" / "documents" / "shared-mime-info-spec.pdf"
CANARY = "canary-7f3a"
CALLER = "c" * 16
_NS_OF_SLACK = 20_000_000
"""Two processes read the clock at different moments of the same call."""


@dataclass(frozen=True)
class Stand:
    """The mesh, a collector that its spans go to, and a client."""

    mesh: LocalMesh
    collector: Collector
    http: httpx.Client

    def trace(self, number: int, names: Sequence[str]) -> list[SentSpan]:
        """The spans of a trace, once all of these names are among them, and with each span the one above it.

        Every process sends its own by turns, and one that ends later a turn later.
        """
        wanted = set(names)

        def whole(found: list[SentSpan]) -> bool:
            above = {span.parent for span in found} - {CALLER, ""}
            return wanted <= {span.name for span in found} and above <= {span.id for span in found}

        return self.collector.wait(whole, trace=f"{number:032x}")


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A mesh of its own that was told by OpenTelemetry's variables where its spans go."""
    with collecting() as (collector, url):
        mesh = LocalMesh.make(
            tmp_path_factory.mktemp("traced"), OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="200"
        )
        result = mesh.start()
        try:
            assert result.returncode == 0, result.stdout + result.stderr
            with httpx.Client(base_url=mesh.url, timeout=60.0, trust_env=False) as http:
                yield Stand(mesh, collector, http)
        finally:
            mesh.stop()


def headers(number: int) -> dict[str, str]:
    """Of a request in a caller's trace."""
    return {"traceparent": f"00-{number:032x}-{CALLER}-01", "authorization": f"Bearer {CANARY}"}


def require_way(spans: Sequence[SentSpan], *way: tuple[str, str]) -> list[SentSpan]:
    """Each of these (service and name) is below the one before, and within its time. Returns them."""
    found: list[SentSpan] = []
    above = CALLER
    for service, name in way:
        below = [span for span in spans if (span.service, span.name, span.parent) == (service, name, above)]
        assert below, f"no {name!r} of {service} below {found[-1].name if found else 'the caller'}: {tree(spans)}"
        if found:
            assert found[-1].began - _NS_OF_SLACK <= below[0].began <= below[0].ended <= found[-1].ended + _NS_OF_SLACK
        found.append(below[0])
        above = below[0].id
    return found


def tree(spans: Sequence[SentSpan]) -> list[str]:
    """For a failed test: who is below whom."""
    return [f"{span.parent[:6]} > {span.id[:6]} {span.service} {span.name}" for span in spans]


def test_an_embedding_is_one_trace_from_the_request_to_the_engines_batch(stand: Stand) -> None:
    """HTTP request, hop, attempt, the worker's call, and in it the wait, the inference and its batch."""
    answer = stand.http.post("/v1/embeddings", json={"input": ["a cat", CANARY]}, headers=headers(1))
    assert answer.status_code == 200
    spans = stand.trace(1, ["POST /v1/embeddings", "queue", "batch", "tokenize"])
    rpc = "embedding.v1.EmbeddingService/Embed"
    call = (("gateway", "POST /v1/embeddings"), ("gateway", "hop embedding"), ("gateway", rpc), ("embedding", rpc))
    request, *_, served = require_way(spans, *call)
    require_way(spans, *call, ("embedding", "tokenize"))
    (*_, queue) = require_way(spans, *call, ("embedding", "queue"))
    *_, inference, batch = require_way(spans, *call, ("embedding", "inference"), ("embedding", "batch"))
    assert served.began <= queue.began <= queue.ended == inference.began
    assert batch.links == (served.id,)
    assert batch.attributes["mesh.batch.items"] == 2
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["gen_ai.usage.input_tokens"] == answer.json()["usage"]["total_tokens"]


def test_requests_at_once_share_a_batch_that_is_linked_to_each_of_them(stand: Stand) -> None:
    """A batch that several requests are in stands in the trace of one, and knows the others by links."""
    long = {"input": ["a long text about nothing in particular " * 20] * 64}
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        first = pool.submit(stand.http.post, "/v1/embeddings", json=long, headers=headers(100))
        others = [
            pool.submit(stand.http.post, "/v1/embeddings", json={"input": f"cat {n}"}, headers=headers(n))
            for n in range(101, 109)
        ]
        assert {each.result().status_code for each in (first, *others)} == {200}
    for number in range(100, 109):
        stand.trace(number, ["POST /v1/embeddings", "inference"])
    shared = [span for span in stand.collector.spans if span.name == "batch" and len(span.links) > 1]
    assert shared
    served = {span.id: span for span in stand.collector.spans if span.kind == "server"}
    assert all(link in served for span in shared for link in span.links)
    linked_to_it = [span for span in stand.collector.spans if span.name == "inference" and shared[0].id in span.links]
    assert len(linked_to_it) == len(shared[0].links) - 1


def test_reranking_is_one_trace(stand: Stand) -> None:
    """Down to the engine of another worker."""
    body = {"query": CANARY, "documents": ["bread", "a breaker"]}
    assert stand.http.post("/v1/rerank", json=body, headers=headers(2)).status_code == 200
    spans = stand.trace(2, ["POST /v1/rerank", "batch"])
    rpc = "reranking.v1.RerankingService/Rerank"
    require_way(
        spans, ("gateway", "POST /v1/rerank"), ("gateway", "hop reranking"), ("gateway", rpc), ("reranking", rpc),
        ("reranking", "inference"), ("reranking", "batch"),
    )  # fmt: skip


def test_a_streamed_chat_is_one_trace(stand: Stand) -> None:
    """With the wait for a place, the first token and the rest of the answer."""
    body = {"messages": [{"role": "user", "content": f"What does a circuit breaker do? {CANARY}"}], "stream": True}
    with stand.http.stream("POST", "/v1/chat/completions", json=body, headers=headers(3)) as answer:
        assert answer.status_code == 200
        assert "[DONE]" in "".join(answer.iter_text())
    spans = stand.trace(3, ["POST /v1/chat/completions", "generation"])
    rpc = "llm.v1.LlmService/Chat"
    call = (("gateway", "POST /v1/chat/completions"), ("gateway", "hop llm"), ("gateway", rpc), ("llm", rpc))
    written = "chat torch-isolation-mesh-demo"
    require_way(spans, *call, ("llm", "queue"))
    *_, whole, first = require_way(spans, *call, ("llm", written), ("llm", "first token"))
    *_, rest = require_way(spans, *call, ("llm", written), ("llm", "generation"))
    assert first.ended == rest.began
    assert whole.attributes["gen_ai.usage.output_tokens"] > 0


def test_a_chunked_document_is_one_trace(stand: Stand) -> None:
    """Upload, wait, and window by window what the process did with it."""
    with PDF.open("rb") as file:
        answer = stand.http.post("/v1/chunk", files={"file": (f"{CANARY}.pdf", file)}, headers=headers(4))
    assert answer.status_code == 200
    spans = stand.trace(4, ["POST /v1/chunk", "document", "chunking"])
    rpc = "chunking.v1.ChunkingService/Chunk"
    call = (("gateway", "POST /v1/chunk"), ("gateway", "hop chunking"), ("gateway", rpc), ("gpu-services", rpc))
    for stage in ("upload", "queue"):
        require_way(spans, *call, ("gpu-services", stage))
    *_, document, _ = require_way(spans, *call, ("gpu-services", "document"), ("gpu-services", "conversion"))
    require_way(spans, *call, ("gpu-services", "document"), ("gpu-services", "chunking"))
    assert document.attributes["mesh.document.pages"] == 17


def test_a_refused_request_names_what_refused_it(stand: Stand) -> None:
    """The worker's reason stands in every span above it, and only what is the mesh's own fault is an error."""
    stand.http.post("/v1/embeddings", json={"input": "x", "dimensions": 7}, headers=headers(5))
    spans = stand.trace(5, ["POST /v1/embeddings"])
    request = next(span for span in spans if span.name == "POST /v1/embeddings")
    assert (request.attributes["http.response.status_code"], request.failed) == (409, False)
    assert request.attributes["mesh.hop"] == "embedding"
    (attempt,) = [span for span in spans if span.kind == "client"]
    assert attempt.failed
    assert attempt.attributes["rpc.response.status_code"] == "FAILED_PRECONDITION"


def test_a_bulk_job_is_seen_in_its_pipelines_trace(stand: Stand, tmp_path: Path) -> None:
    """The job is below what the environment names; each of its streams is a trace of its own that is linked to it."""
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(json.dumps({"text": f"{CANARY} {n}"}) + "\n" for n in range(100)))
    python = stand.mesh.layout.python("workers")
    command = [
        str(python), "-m", "mesh.bulk", "embed", "--in", str(source), "--out", str(tmp_path / "out.parquet"),
        "--target", stand.mesh.target("embedding"),
    ]  # fmt: skip
    environ = {**os.environ, **stand.mesh.environ, "TRACEPARENT": headers(6)["traceparent"]}
    subprocess.run(command, env=environ, cwd=CHECKOUT, check=True, capture_output=True, timeout=120)
    (job,) = [span for span in stand.trace(6, ["bulk embed"]) if span.name == "bulk embed"]
    assert (job.service, job.parent) == ("bulk", CALLER)
    streams = [span for span in stand.collector.spans if span.name == "bulk stream"]
    assert streams
    assert all(span.links == (job.id,) for span in streams)
    found = stand.collector.wait(
        lambda spans: any(span.name == "batch" for span in spans), trace=next(iter(streams)).trace
    )
    assert {"bulk", "embedding"} == {span.service for span in found}


def test_probes_leave_no_trace_and_content_is_in_none(stand: Stand) -> None:
    """The probes of load balancers and hops, and every text, name and key that the tests above have sent."""
    for _ in range(3):
        assert stand.http.get("/health/ready", headers=headers(7)).status_code == 200
    stand.http.get("/v1/models", headers=headers(8))
    stand.trace(8, ["GET /v1/models"])
    assert stand.collector.of(f"{7:032x}") == []
    assert not any(CANARY.encode() in raw for raw in stand.collector.raw)
    assert not any(span.name.endswith(("/Info", "Health/Watch")) and not span.parent for span in stand.collector.spans)


def test_the_log_names_the_trace(stand: Stand) -> None:
    """So that from a line to its trace, and back, is one search."""
    stand.http.post("/v1/embeddings", json={"input": "x"}, headers=headers(9))
    # The line follows the answer.
    assert wait_until(
        lambda: all(f"trace_id={9:032x}" in stand.mesh.log(process) for process in ("gateway", "embedding")),
        seconds=5.0,
    )
