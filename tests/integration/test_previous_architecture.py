"""The way back: the architecture of before runs, agrees with the mesh, and takes over from it and hands over to it.

It runs in the workers' environment, as other processes; these tests need nothing but the mesh's own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mesh.clients import EmbeddingServiceClient, GPUServiceClient, RerankingServiceClient
from ops.local.layout import CHECKOUT
from ops.local.processes import wait_until
from ops.local.testing import LocalMesh

pytestmark = pytest.mark.integration

MakeMesh = Callable[..., LocalMesh]

# The migration guide's four snippets of before, its project's name replaced by the package's.
SNIPPETS = """
from previous.chunking.chunkers.semantic import SemanticSplitterChunker

chunker = SemanticSplitterChunker(
    gpu_semantic_checks=True,  # Required torch
    model_name="sentence-transformers/all-MiniLM-L6-v2"
)

from previous.services.embedding import EmbeddingService

service = EmbeddingService()
embeddings = service.generate_embeddings(texts)

from previous.services.reranking import RerankingService

service = RerankingService()
scores = service.rerank(query, documents)

from previous.services.gpu import GPUManager

manager = GPUManager()
status = manager.get_gpu_status()
"""
READ = """
import json, sys
given = json.load(sys.stdin)
texts, query, documents = given["texts"], given["query"], given["documents"]
"""
WRITE = """
from dataclasses import asdict
plain = SemanticSplitterChunker(max_tokens=given["max_tokens"])
print(json.dumps({
    "vectors": embeddings.tolist(), "dtype": str(embeddings.dtype), "scores": scores, "gpu": asdict(status),
    "by_subject": [asdict(chunk) for chunk in chunker.chunk(given["document"])],
    "plain": [asdict(chunk) for chunk in plain.chunk(given["document"])],
    "one_subject": [asdict(chunk) for chunk in chunker.chunk(given["one_subject"])],
}))
"""

TEXTS = [
    "A circuit breaker stops calls to a peer that fails.",
    "yes",
    "Der Vertrag verlängert sich um ein Jahr.",
    "机器学习模型把文本变成向量。",
    "def add(a, b):\n    return a + b",
    "The quick brown fox jumps over the lazy dog. " * 60,
]
QUERY = "What does a circuit breaker do?"
DOCUMENTS = [
    "Bread is baked in an oven.",
    "A circuit breaker stops calls to a service that fails.",
    "When a service fails again and again, callers are kept from it for a while.",
    "The Roman legions marched along paved roads. " * 60,
    "Paris is the capital of France.",
]
PARAGRAPHS = [
    "A circuit breaker stops calls to a service that fails. After a pause it lets one call through.",
    "Its threshold is five failures in a row. Refused requests never open a circuit breaker.",
    "Sourdough bread needs a starter of flour and water. The bread is baked in a hot oven.",
    "The bread is left to cool on a rack. "
    + "A loaf of bread is cut when it is cold, and the bread keeps for days in a box. " * 4,
]
DOCUMENT = "\n\n".join(PARAGRAPHS)
ONE_SUBJECT = "\n\n".join(PARAGRAPHS[:2])
MAX_TOKENS = 48
GIVEN = {
    "texts": TEXTS,
    "query": QUERY,
    "documents": DOCUMENTS,
    "document": DOCUMENT,
    "one_subject": ONE_SUBJECT,
    "max_tokens": MAX_TOKENS,
}
BEFORE = """
gateway:
  chunking:
    semantic_chunker:
      gpu_enabled: true
      model_name: "sentence-transformers/all-MiniLM-L6-v2"

  embedding:
    gpu_enabled: true
    model_name: "sentence-transformers/all-MiniLM-L6-v2"
"""
_LONGEST_SECONDS = 300


@pytest.fixture(scope="module")
def before(mesh: LocalMesh) -> dict[str, Any]:
    """What the guide's snippets of before give, run in one process of the workers' environment."""
    result = subprocess.run(
        [mesh.layout.python("workers"), "-c", READ + SNIPPETS + WRITE],
        cwd=CHECKOUT,
        input=json.dumps(GIVEN),
        capture_output=True,
        text=True,
        timeout=_LONGEST_SECONDS,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def as_before(python: Path, config: Path, port: int) -> list[str]:
    """The command that starts the API process of before."""
    return [str(python), "-m", "previous", "--config", str(config), "--port", str(port)]


@contextmanager
def serving_as_before(python: Path, config: Path, port: int, environ: Mapping[str, str]) -> Iterator[str]:
    """The API process of before on ``port`` until the block is left; yields its address."""
    url = f"http://127.0.0.1:{port}"
    command = as_before(python, config, port)
    process = subprocess.Popen(command, cwd=CHECKOUT, env=dict(environ), stderr=subprocess.PIPE, text=True)

    def ready() -> bool:
        assert process.poll() is None, process.communicate()[1]
        try:
            return httpx.get(f"{url}/health/ready", timeout=5.0, trust_env=False).is_success
        except httpx.TransportError:
            return False

    try:
        assert wait_until(ready, seconds=_LONGEST_SECONDS)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=60)


def asked(url: str) -> tuple[np.ndarray, list[int]]:
    """Vectors of TEXTS and the order of DOCUMENTS, as a client of either architecture asks for them."""
    with httpx.Client(base_url=url, timeout=120.0, trust_env=False) as client:
        embedded = client.post("/v1/embeddings", json={"input": TEXTS, "encoding_format": "float"})
        rows = embedded.raise_for_status().json()["data"]
        ranked = client.post("/v2/rerank", json={"model": "", "query": QUERY, "documents": DOCUMENTS})
        results = ranked.raise_for_status().json()["results"]
    return np.array([row["embedding"] for row in rows]), [result["index"] for result in results]


def test_the_snippets_of_before_run(before: dict[str, Any]) -> None:
    """Each of the migration guide's four classes of before is made and called as it prints them."""
    assert np.array(before["vectors"]).shape == (len(TEXTS), 384)
    assert before["dtype"] == "float32"
    assert len(before["scores"]) == len(DOCUMENTS)
    assert before["gpu"]["devices"] or before["gpu"]["unavailable_reason"]
    assert len(before["by_subject"]) > 1


def test_the_vectors_are_those_of_the_mesh(mesh: LocalMesh, before: dict[str, Any]) -> None:
    """Text by text, also one that is longer than the model reads: an index stays valid in both directions."""
    with EmbeddingServiceClient(mesh.target("embedding")) as client:
        served = client.generate_embeddings(TEXTS)
    vectors = np.array(before["vectors"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (served * vectors).sum(axis=1).min() >= 0.999


def test_the_order_is_that_of_the_mesh(mesh: LocalMesh, before: dict[str, Any]) -> None:
    """The same documents first, and scores on the same scale, so that a threshold holds on both sides."""
    with RerankingServiceClient(mesh.target("reranking")) as client:
        served = np.array(client.rerank(QUERY, DOCUMENTS))
    scores = np.array(before["scores"])
    assert list(np.argsort(-served)) == list(np.argsort(-scores))
    assert scores.argmax() in (1, 2)
    assert np.abs(served - scores).max() < 0.01


def test_the_chunks_are_those_of_the_mesh_where_both_can(http: httpx.Client, before: dict[str, Any]) -> None:
    """By paragraphs and lengths alone both cut alike, over-long ones included; and so they do what has one subject."""

    def served(document: str, **options: int) -> list[tuple[str, int]]:
        answer = http.post("/v1/chunk", json={"text": document, "filename": "a.txt", **options})
        return [(chunk["text"], chunk["tokens"]) for chunk in answer.raise_for_status().json()["chunks"]]

    def here(which: str) -> list[tuple[str, int]]:
        return [(chunk["text"], chunk["tokens"]) for chunk in before[which]]

    assert here("plain") == served(DOCUMENT, max_tokens=MAX_TOKENS)
    assert len(here("plain")) > len(PARAGRAPHS)
    assert here("one_subject") == served(ONE_SUBJECT)
    # What only a model that reads the text can: to cut between breakers and bread.
    assert [text.startswith("Sourdough") for text, _ in here("by_subject")].count(True) == 1


def test_the_gpus_are_those_of_the_mesh(mesh: LocalMesh, before: dict[str, Any]) -> None:
    """The same devices by the same names, or the same reason why there are none."""
    with GPUServiceClient(mesh.target("gpu-services")) as client:
        served = client.get_gpu_status()
    status = before["gpu"]
    assert status["unavailable_reason"] == served.unavailable_reason
    assert [(device["uuid"], device["memory_total_bytes"]) for device in status["devices"]] == [
        (device.uuid, device.memory_total_bytes) for device in served.devices
    ]


def test_there_and_back_again(small_mesh: MakeMesh, tmp_path: Path) -> None:
    """Before, the mesh, and before again on one port, by the guide's steps: a client sees the same answers."""
    config = tmp_path / "config" / "gateway.yaml"
    backup = config.with_name("gateway.yaml.backup")
    config.parent.mkdir()
    config.write_text(BEFORE, encoding="utf-8")
    new = small_mesh(GATEWAY_CONFIG=str(config))
    port, python = int(new.environ["GATEWAY_PORT"]), new.layout.python("workers")

    with serving_as_before(python, config, port, new.environ) as url:
        vectors, order = asked(url)
    shutil.copy(config, backup)
    shutil.copy(CHECKOUT / "config" / "gateway.yaml", config)
    started = new.start()
    assert started.returncode == 0, started.stdout + started.stderr
    found, ranked = asked(new.url)
    assert (found * vectors).sum(axis=1).min() >= 0.999
    assert ranked == order

    assert new.stop().returncode == 0
    command = as_before(python, config, port)
    early = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=_LONGEST_SECONDS)
    assert early.returncode == 78
    assert "cp config/gateway.yaml.backup config/gateway.yaml" in early.stderr
    shutil.copy(backup, config)
    with serving_as_before(python, config, port, new.environ) as url:
        again, reordered = asked(url)
    assert np.allclose(again, vectors, atol=1e-6)
    assert reordered == order


def test_it_is_not_in_the_environment_of_the_gateway(mesh: LocalMesh, tmp_path: Path) -> None:
    """Neither the package nor what it needs can be imported there: going back is a choice, never an accident."""
    names = ("previous", "torch", "sentence_transformers", "mesh")
    code = f"import importlib.util as u; print([name for name in {names} if u.find_spec(name)])"
    gateway = str(mesh.layout.python("gateway"))
    result = subprocess.run([gateway, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['mesh']"
