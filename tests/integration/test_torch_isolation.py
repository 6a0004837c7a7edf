"""The whole mesh, started by its scripts: from a real PDF to an answer, over HTTP and over gRPC."""

from __future__ import annotations

import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from mesh.clients import (
    ChunkingServiceClient,
    CircuitBreaker,
    EmbeddingServiceClient,
    GPUServiceClient,
    LLMServiceClient,
    RerankingServiceClient,
)
from mesh.clients.chunking import Chunk, ChunkFinish, ChunkOptions
from mesh.clients.llm import ChatMessage, Generation, Role, Sampling
from ops.local.processes import wait_until
from ops.local.testing import LocalMesh

pytestmark = pytest.mark.integration

PDF = Path(__file__).parents[1] / "data" / "documents" / "shared-mime-info-spec.pdf"

# Question, what the passages found must hold, and the answer that the demo model has learnt.
QUESTIONS = [
    (
        "Which command must an application run after it installs a file in the MIME packages directory?",
        "update-mime-database",
        "It must run update-mime-database.",
    ),
    (
        "Which file takes precedence over all other files in the same MIME packages directory?",
        "Override.xml",
        "Any file named Override.xml takes precedence.",
    ),
    (
        "Does the MIME database store user preferences?",
        "does NOT store user preferences",
        "No. It stores static information and no user preferences.",
    ),
]
SERVICES = {
    "embedding": ["embedding.v1.EmbeddingService"],
    "reranking": ["reranking.v1.RerankingService"],
    "gpu-services": ["chunking.v1.ChunkingService", "gpu.v1.GpuService"],
    "llm": ["llm.v1.LlmService"],
}


def prompt(passages: list[str], question: str) -> str:
    """Retrieved passages and a question, in the form that the demo model's card describes."""
    listed = "\n".join(f"[{number}] {text}" for number, text in enumerate(passages, start=1))
    return f"Use these passages:\n{listed}\n\nQuestion: {question}"


def nearest(query: np.ndarray, vectors: np.ndarray, count: int) -> list[int]:
    """Indices of the vectors closest to ``query`` by cosine, nearest first."""
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return [int(index) for index in np.argsort(-(vectors @ query) / norms)[:count]]


def embed_over_http(http: httpx.Client, texts: list[str]) -> np.ndarray:
    """One row a text."""
    answer = http.post("/v1/embeddings", json={"model": "all-MiniLM-L6-v2", "input": texts}).raise_for_status().json()
    assert [row["index"] for row in answer["data"]] == list(range(len(texts)))
    return np.array([row["embedding"] for row in answer["data"]], dtype=np.float32)


def test_a_document_is_asked_over_http(http: httpx.Client) -> None:
    """A real PDF goes in, is chunked, embedded, searched and reranked, and each question is answered word for word."""
    with PDF.open("rb") as file:
        upload = http.post("/v1/chunk", files={"file": (PDF.name, file, "application/pdf")})
    document = upload.raise_for_status().json()
    chunks = document["chunks"]
    assert document["document"]["pages"] == 17
    assert document["usage"]["chunks"] == len(chunks) > 30
    assert {page for chunk in chunks for page in chunk["pages"]} == set(range(1, 18))

    vectors = embed_over_http(http, [chunk["contextualized_text"] for chunk in chunks])
    assert vectors.shape == (len(chunks), 384)
    for question, evidence, answer in QUESTIONS:
        found = [chunks[index]["text"] for index in nearest(embed_over_http(http, [question])[0], vectors, 10)]
        ranking = http.post("/v2/rerank", json={"model": "", "query": question, "documents": found, "top_n": 3})
        results = ranking.raise_for_status().json()["results"]
        assert [r["relevance_score"] for r in results] == sorted((r["relevance_score"] for r in results), reverse=True)
        passages = [found[result["index"]] for result in results]
        assert any(evidence in " ".join(passage.split()) for passage in passages)

        chat = {"model": "", "temperature": 0, "messages": [{"role": "user", "content": prompt(passages, question)}]}
        reply = http.post("/v1/chat/completions", json=chat).raise_for_status().json()
        assert reply["choices"][0]["message"]["content"] == answer
        assert reply["choices"][0]["finish_reason"] == "stop"


def test_a_document_is_asked_over_grpc(mesh: LocalMesh) -> None:
    """The same way through the workers' own clients, with the calls that the migration guide prints."""
    with (
        ChunkingServiceClient(mesh.target("gpu-services")) as chunker,
        EmbeddingServiceClient(
            mesh.target("embedding"), circuit_breaker=CircuitBreaker(failure_threshold=5, timeout=60)
        ) as embedder,
        RerankingServiceClient(mesh.target("reranking")) as reranker,
        LLMServiceClient(mesh.target("llm")) as llm,
    ):
        events = list(chunker.chunk(PDF.read_bytes(), ChunkOptions(filename=PDF.name)))
        chunks = [event for event in events if isinstance(event, Chunk)]
        assert isinstance(events[-1], ChunkFinish)
        assert events[-1].usage.chunks == len(chunks) > 30

        vectors = embedder.generate_embeddings([chunk.contextualized_text for chunk in chunks])
        assert vectors.shape == (len(chunks), 384)
        assert vectors.dtype == np.float32
        for question, evidence, answer in QUESTIONS:
            found = [chunks[i].text for i in nearest(embedder.generate_embeddings([question])[0], vectors, 10)]
            scores = reranker.rerank(question, found)
            assert len(scores) == len(found)
            passages = [found[i] for i in np.argsort(scores)[::-1][:3]]
            assert any(evidence in " ".join(passage.split()) for passage in passages)
            asked = ChatMessage(Role.USER, prompt(passages, question))
            completion = llm.complete(Generation(messages=(asked,), sampling=Sampling(temperature=0.0)))
            assert completion.text == answer


def test_http_and_grpc_give_the_same_vectors(http: httpx.Client, mesh: LocalMesh) -> None:
    """The gateway adds nothing and loses nothing."""
    texts = ["one text", "another, a little longer text"]
    with EmbeddingServiceClient(mesh.target("embedding")) as embedder:
        np.testing.assert_allclose(embed_over_http(http, texts), embedder.generate_embeddings(texts), atol=2e-3)


def test_gpus_are_told_or_their_absence_is(http: httpx.Client, mesh: LocalMesh) -> None:
    """Devices, or an empty list and the reason; never an error."""
    over_http = http.get("/v1/gpu").raise_for_status().json()
    with GPUServiceClient(mesh.target("gpu-services")) as gpu:
        status = gpu.get_gpu_status()
    assert len(over_http["devices"]) == len(status.devices)
    assert bool(status.devices) != bool(status.unavailable_reason)


@pytest.mark.parametrize("worker", SERVICES)
def test_every_worker_tells_its_health_and_what_it_offers(mesh: LocalMesh, worker: str) -> None:
    """grpc.health.v1 per capability and overall, and reflection lists every service."""
    with grpc.insecure_channel(mesh.target(worker)) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in [*SERVICES[worker], ""]:
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=5)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        listed = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {*SERVICES[worker], "grpc.health.v1.Health"} <= set(listed)


def test_watch_keeps_watching(mesh: LocalMesh) -> None:
    """The stream says SERVING and stays open, so that a change would be seen."""
    ended = threading.Event()
    with grpc.insecure_channel(mesh.target("embedding")) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES["embedding"][0]))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.add_callback(ended.set)
        assert not ended.wait(2.0)
        watch.cancel()
        assert ended.wait(5.0)


def test_every_model_is_listed_with_its_capability(http: httpx.Client) -> None:
    """What the workers serve, under the names that clients use."""
    models = http.get("/v1/models").raise_for_status().json()["data"]
    served = {(model["id"], model["capability"]) for model in models}
    assert {
        ("sentence-transformers/all-MiniLM-L6-v2", "embedding"),
        ("all-MiniLM-L6-v2", "embedding"),
        ("late-interaction/all-MiniLM-L6-v2", "rerank"),
        ("docling-hybrid", "chunking"),
        ("torch-isolation-mesh-demo", "chat"),
    } <= served


def test_a_request_id_reaches_the_workers_log(http: httpx.Client, mesh: LocalMesh) -> None:
    """One id finds a request in every process that it passed."""
    request_id = "journey-4f1c2a"
    answer = http.post("/v1/embeddings", json={"input": "traced"}, headers={"x-request-id": request_id})
    assert answer.headers["x-request-id"] == request_id
    for process in ("gateway", "embedding"):
        # The supervisor writes the logs, a moment after the processes have said their line.
        assert wait_until(partial(_has_logged, mesh, process, request_id), seconds=5)


def _has_logged(mesh: LocalMesh, process: str, text: str) -> bool:
    return text in mesh.log(process)


def test_the_gateways_environment_holds_no_torch(mesh: LocalMesh) -> None:
    """Absent, not merely unimported, and the environment stays below 150 MB."""
    seek = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'onnxruntime') if u.find_spec(n)])"
    python = mesh.layout.python("gateway")
    found = subprocess.run([python, "-c", seek], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    files = (path for path in python.parents[1].rglob("*") if path.is_file() and not path.is_symlink())
    assert sum(path.stat().st_blocks * 512 for path in files) <= 150e6
