"""The whole mesh with mutual TLS on every hop, as the start script's option makes it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.clients import ClientTls, EmbeddingServiceClient
from mesh.errors import CallerRefused, Unavailable
from ops.local.layout import CHECKOUT
from ops.local.processes import wait_until
from ops.local.testing import LocalMesh
from ops.tls.names import CLIENT, CertificateFiles

pytestmark = pytest.mark.integration

ROTATIONS = 3


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    """A mesh of its own, started with ``--tls``."""
    made = LocalMesh.make(tmp_path_factory.mktemp("secure"))
    started = made.start("--tls")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        assert "Mutual TLS on every hop" in started.stdout
        yield made
    finally:
        made.stop()


def files_of(mesh: LocalMesh) -> CertificateFiles:
    """Where its development certificates are."""
    return CertificateFiles(mesh.home / "tls")


def tls_of(mesh: LocalMesh, name: str = CLIENT) -> ClientTls:
    """The certificate of that name."""
    files = files_of(mesh)
    return ClientTls(files.ca, files.certificate(name), files.key(name), server_name="embedding-services")


def test_all_of_it_serves_and_says_how_long_its_certificate_lasts(secure: LocalMesh) -> None:
    """Every hop, by the health script too; requests pass through each kind of worker."""
    health = secure.health("--json")
    assert health.returncode == 0, health.stdout
    assert all(hop["serving"] for hop in json.loads(health.stdout)["hops"])
    with httpx.Client(base_url=secure.url, timeout=60, trust_env=False) as http:
        certificate = http.get("/status").json()["gateway"]["certificate"]
        assert certificate["names"][0] == "gateway"
        assert 29 < certificate["days_left"] <= 30
        assert http.post("/v1/embeddings", json={"input": "hello"}).status_code == 200
        assert http.post("/v2/rerank", json={"query": "a", "documents": ["a", "b"]}).status_code == 200
        chunked = http.post("/v1/chunk", files={"file": ("a.md", b"# Title\n\nSome text.")})
        assert chunked.status_code == 200, chunked.text
        assert http.get("/v1/gpu").status_code == 200
        said = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}]})
        assert said.status_code == 200, said.text


def test_python_programs_call_it_with_a_clients_certificate(secure: LocalMesh, tmp_path: Path) -> None:
    """The client class and `mesh.bulk` do; one without a certificate, or with another worker's, does not."""
    target = secure.target("embedding")
    with EmbeddingServiceClient(target, tls=tls_of(secure)) as client:
        assert client.generate_embeddings(["hello"]).shape == (1, 384)
    with EmbeddingServiceClient(target) as plain, pytest.raises(Unavailable):
        plain.generate_embeddings(["hello"])
    with EmbeddingServiceClient(target, tls=tls_of(secure, "llm-services")) as other, pytest.raises(CallerRefused):
        other.generate_embeddings(["hello"])
    (tmp_path / "docs.txt").write_text("one\ntwo\n")
    bulk = subprocess.run(
        [sys.executable, "-m", "mesh.bulk", "embed", "--in", "docs.txt", "--out", "v.parquet", "--target", target],
        cwd=tmp_path,
        env={
            **secure.environ,
            **files_of(secure).variables(CLIENT),
            "MESH_TLS_SERVER_NAMES": '{"embedding": "embedding-services"}',
            "PYTHONPATH": f"{CHECKOUT}:{secure.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert bulk.returncode == 0, bulk.stderr
    assert "2 vectors" in bulk.stdout


@pytest.mark.parametrize("worker", ["embedding", "reranking", "gpu-services", "llm"])
def test_no_worker_answers_in_plaintext(secure: LocalMesh, worker: str) -> None:
    """Not even health."""
    with grpc.insecure_channel(secure.target(worker)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_certificates_are_renewed_under_load_without_a_lost_request(secure: LocalMesh) -> None:
    """By the script, again and again, at last with a new authority: every process takes them, and no request fails."""
    answers: list[int | str] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=secure.url, timeout=60, trust_env=False) as http:
            while not over.is_set():
                try:
                    answers.append(http.post("/v1/embeddings", json={"input": "hello"}).status_code)
                except httpx.HTTPError as error:
                    answers.append(type(error).__name__)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(ROTATIONS):
        new_authority = ["--new-authority"] if number == ROTATIONS - 1 else []
        made = secure.script("make_dev_certs", *new_authority)
        assert made.returncode == 0, made.stdout + made.stderr
        for process in ("gateway", "embedding", "llm"):
            taken = partial(_taken, secure, process, number + 1)
            assert wait_until(taken, seconds=20), process
    wait_until(lambda: False, seconds=3)
    over.set()
    for thread in threads:
        thread.join(60)
    assert set(answers) == {200}
    assert len(answers) > 50
    assert secure.health().returncode == 0


def _taken(mesh: LocalMesh, process: str, times: int) -> bool:
    return mesh.log(process).count("new certificate taken") >= times
