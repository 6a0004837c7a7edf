"""A real Prometheus over the real mesh: it scrapes all processes, its rules see a death, its dashboard has figures."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ops.local.processes import wait_until
from ops.local.prometheus import find_program
from ops.local.testing import LocalMesh
from ops.local.topology import WORKERS
from tests.prometheus import Prometheus, dashboard_queries, prometheus

pytestmark = pytest.mark.integration

MakeMesh = Callable[..., LocalMesh]

PDF = Path(__file__).parents[1] / "data" / "documents" / "shared-mime-info-spec.pdf"
# What may have no figures here, and why. Everything else has some.
WITHOUT_FIGURES = {
    "mesh_gpu_": "on a machine without a GPU",
    "mesh:gpu_": "on a machine without a GPU",
    "mesh_vector_cache_redis_errors_total": "the cache is in the gateway's memory",
    "mesh_hop_retries_total": "each hop has one endpoint: a call may find nothing to be sent again to",
}


def metrics_target(mesh: LocalMesh, worker: str) -> str:
    """Where a worker tells its metrics."""
    prefix = next(each.prefix for each in WORKERS if each.name == worker)
    return f"127.0.0.1:{mesh.environ[f'{prefix}METRICS_PORT']}"


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """A little of everything, again and again until the block is left, however it is answered."""
    over = threading.Event()

    def ask(client: httpx.Client, number: int) -> None:
        client.post("/v1/embeddings", json={"input": ["kept", "kept too", "and a third", f"new {number}"]})
        client.post("/v2/rerank", json={"query": "q", "documents": ["a", "b"]})
        client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "What is a hop?"}]})
        if number % 20 == 0:
            client.post("/v1/chunk", files={"file": PDF.open("rb")}, data={"max_tokens": "256"})
            client.get("/v1/gpu")
            client.get("/nothing/there")

    def run() -> None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            number = 0
            while not over.wait(0.1):
                try:
                    ask(client, number)
                except httpx.HTTPError:
                    continue
                number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(90)


@pytest.fixture
def watched(mesh: LocalMesh, small_mesh: MakeMesh) -> Iterator[tuple[Prometheus, LocalMesh]]:
    """A mesh with an embedding worker of its own and the vector cache on, under traffic, and the Prometheus over it."""
    program = find_program("prometheus")
    if program is None:
        pytest.skip("Prometheus is not there; scripts/install_prometheus.sh brings it where apt has it")
    made = small_mesh("embedding", ENABLE_VECTOR_CACHE="true")
    assert made.start().returncode == 0
    targets = {"gateway": made.url.removeprefix("http://"), "embedding": metrics_target(made, "embedding")}
    targets |= {name: metrics_target(mesh, name) for name in ("reranking", "gpu-services", "llm")}
    with prometheus(program, targets) as running, traffic(made.url):
        yield running, made


def test_prometheus_sees_a_death_and_the_recovery(watched: tuple[Prometheus, LocalMesh]) -> None:
    """Every process is scraped, every rule evaluates, the alerts of a killed worker fire and clear, and the dashboard's
    every query is answered with figures.
    """
    seen, mesh = watched
    assert wait_until(lambda: len(seen.query('up{job="mesh"} == 1')) == 5, seconds=30)
    assert wait_until(lambda: bool(seen.query("mesh:vector_cache_hits:ratio > 0.5")), seconds=30)
    assert not seen.firing("MeshNoHealthyEndpoint")
    assert not seen.firing("MeshProcessDown")

    os.kill(mesh.processes()["embedding"].pid, signal.SIGKILL)
    for alert, labels in (
        ("MeshNoHealthyEndpoint", {"hop": "embedding"}),
        ("MeshProcessDown", {"process": "embedding"}),
    ):
        assert wait_until(lambda alert=alert, labels=labels: seen.firing(alert, **labels), seconds=30), alert
    assert not seen.firing("MeshNoHealthyEndpoint", hop="reranking")
    for alert in ("MeshNoHealthyEndpoint", "MeshProcessDown", "MeshBreakerOpen"):
        assert wait_until(lambda alert=alert: not seen.firing(alert), seconds=90), alert

    time.sleep(3)  # some scrapes more of the traffic after it
    broken = {name: rule.get("lastError") for name, rule in seen.rules().items() if rule["health"] != "ok"}
    assert broken == {}
    has_gpu = bool(httpx.get(f"{mesh.url}/v1/gpu", timeout=30, trust_env=False).json()["devices"])
    may_be_empty = tuple(part for part in WITHOUT_FIGURES if not (has_gpu and "gpu" in part))
    empty = [query for query in dashboard_queries() if not seen.history(query)]
    assert [query for query in empty if not any(part in query for part in may_be_empty)] == []
    if not has_gpu:
        assert seen.history('{__name__=~"mesh_gpu_.*"}') == []  # absent, not zero
