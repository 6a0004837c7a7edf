"""Seeing the real mesh: a real Prometheus with rules and dashboard, and logs that tell all but what clients said."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from ops.local.processes import wait_until
from ops.local.prometheus import find_program
from ops.local.testing import LocalMesh
from ops.local.topology import WORKERS
from tests.prometheus import Prometheus, dashboard_queries, prometheus

pytestmark = pytest.mark.integration

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
            client.post("/v1/chunk", files={"file": ("a.pdf", PDF.read_bytes())}, data={"max_tokens": "256"})
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


@pytest.fixture(scope="module")
def seen_mesh(mesh: LocalMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    """A gateway with the vector cache on and an embedding worker of its own, both logging JSON."""
    elsewhere = {"RERANKING_SERVICE_URL": "reranking", "GPU_SERVICE_URL": "gpu-services", "LLM_SERVICE_URL": "llm"}
    made = LocalMesh.make(
        tmp_path_factory.mktemp("seen"),
        ENABLE_VECTOR_CACHE="true",
        GATEWAY_LOG_FORMAT="json",
        EMBEDDING_LOG_FORMAT="json",
        **{variable: mesh.target(worker) for variable, worker in elsewhere.items()},
    )
    try:
        started = made.start()
        assert started.returncode == 0, started.stdout + started.stderr
        yield made
    finally:
        made.stop()


@pytest.fixture
def exporters(mesh: LocalMesh, seen_mesh: LocalMesh) -> dict[str, str]:
    """Where each process tells its metrics, by its name."""
    shared = {name: metrics_target(mesh, name) for name in ("reranking", "gpu-services", "llm")}
    own = {"gateway": seen_mesh.url.removeprefix("http://"), "embedding": metrics_target(seen_mesh, "embedding")}
    return {**own, **shared}


@pytest.fixture
def seen(seen_mesh: LocalMesh, exporters: dict[str, str]) -> Iterator[Prometheus]:
    """A Prometheus over all five processes, which are under traffic."""
    program = find_program("prometheus")
    if program is None:
        pytest.skip("Prometheus is not there; scripts/install_prometheus.sh brings it where apt has it")
    with prometheus(program, exporters) as running, traffic(seen_mesh.url):
        yield running


def test_prometheus_sees_a_death_and_the_recovery(seen: Prometheus, seen_mesh: LocalMesh) -> None:
    """Every process is scraped, every rule evaluates, the alerts of a killed worker fire and clear, and the dashboard's
    every query is answered with figures.
    """
    assert wait_until(lambda: len(seen.query('up{job="mesh"} == 1')) == 5, seconds=30)
    assert wait_until(lambda: bool(seen.query("mesh:vector_cache_hits:ratio > 0.5")), seconds=30)
    quiet = ("MeshNoHealthyEndpoint", "MeshProcessDown")
    assert not any(seen.has_fired(alert) for alert in quiet)

    # Frozen first: the supervisor starts a dead one again sooner than the two scrapes that an alert takes here.
    worker = seen_mesh.processes()["embedding"].pid
    os.kill(worker, signal.SIGSTOP)
    try:
        assert wait_until(partial(seen.has_fired, "MeshNoHealthyEndpoint", hop="embedding"), seconds=30)
        assert wait_until(partial(seen.has_fired, "MeshProcessDown", process="embedding"), seconds=30)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert wait_until(lambda: not any(seen.firing(alert) for alert in (*quiet, "MeshBreakerOpen")), seconds=90)
    assert not seen.has_fired("MeshNoHealthyEndpoint", hop="reranking")
    assert not seen.has_fired("MeshProcessDown", process="gateway")

    time.sleep(3)  # some scrapes more of the traffic after it
    broken = {name: rule.get("lastError") for name, rule in seen.rules().items() if rule["health"] != "ok"}
    assert broken == {}
    has_gpu = bool(httpx.get(f"{seen_mesh.url}/v1/gpu", timeout=30, trust_env=False).json()["devices"])
    may_be_empty = tuple(part for part in WITHOUT_FIGURES if not (has_gpu and "gpu" in part))
    empty = [query for query in dashboard_queries() if not seen.history(query)]
    assert [query for query in empty if not any(part in query for part in may_be_empty)] == []
    if not has_gpu:
        assert seen.history('{__name__=~"mesh_gpu_.*"}') == []  # absent, not zero


PROMPT = "canary-prompt-5f1c77"
SECRET = "canary-secret-90ab3e"
REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/embeddings", {"input": PROMPT}),
    ("/v1/embeddings", {"input": [PROMPT, 7]}),
    ("/v1/embeddings", {"input": PROMPT, "model": PROMPT}),
    ("/v1/embeddings", {"input": PROMPT, PROMPT: SECRET}),
    ("/embed", {"inputs": PROMPT}),
    ("/v2/rerank", {"query": PROMPT, "documents": [PROMPT, "b"]}),
    ("/v2/rerank", {"query": PROMPT, "documents": PROMPT}),
    ("/rerank", {"query": PROMPT, "texts": [PROMPT]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], "stream": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT * 2000}]}),
    ("/v1/chat/completions", {"messages": [{"role": PROMPT, "content": PROMPT}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], "response_format": {"type": PROMPT}}),
    ("/v1/completions", {"prompt": PROMPT}),
    ("/v1/messages", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, "model": ""}),
)


def say_everything(url: str) -> dict[str, int]:
    """Send the canaries through every route that takes words, good and bad. Returns the statuses by request id."""
    headers = {
        "authorization": f"Bearer {SECRET}",
        "x-api-key": SECRET,
        "cookie": f"session={SECRET}",
        "x-mesh-tenant": SECRET,
        "user-agent": SECRET,
    }
    statuses: dict[str, int] = {}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:

        def send(path: str, **content: Any) -> None:
            request_id = f"canary-{len(statuses)}"
            answer = client.post(
                path, params={"key": SECRET}, headers={"x-request-id": request_id}, follow_redirects=False, **content
            )
            statuses[request_id] = answer.status_code

        for path, body in REQUESTS:
            send(path, json=body)
        send("/v1/chat/completions", content=f'{{"messages": "{PROMPT}'.encode())
        send("/v1/embeddings", content=PROMPT.encode())
        for name, data in (("a.html", f"<p>{PROMPT}</p>"), ("a.pdf", f"%PDF-1.4 {PROMPT}"), ("a.docx", PROMPT)):
            send("/v1/chunk", files={"file": (name, data.encode())})
        send("/nothing", json={"input": PROMPT})
    return statuses


def log_lines(text: str) -> list[dict[str, Any]]:
    """What a process logged as JSON, but for a line of which the end is still to be written."""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def test_logs_tell_of_every_request_and_never_what_it_said(
    mesh: LocalMesh, seen_mesh: LocalMesh, exporters: dict[str, str]
) -> None:
    """One JSON line a request with its status and id; no canary in any process's log or metrics."""
    statuses = say_everything(seen_mesh.url)
    assert {200, 400, 404} <= set(statuses.values()), statuses
    last = next(reversed(statuses))
    assert wait_until(lambda: last in seen_mesh.log("gateway"), seconds=10)
    lines = log_lines(seen_mesh.log("gateway"))
    told = [line for line in lines if line["message"] == "request" and line["request_id"] in statuses]
    assert {line["request_id"]: line["status"] for line in told} == statuses
    assert len(told) == len(statuses)
    assert any(line.get("request_id") in statuses for line in log_lines(seen_mesh.log("embedding")))

    logs = {f"{each.home.name}/{path.name}": path.read_text(errors="replace")
            for each in (mesh, seen_mesh) for path in each.layout.logs.glob("*.log")}  # fmt: skip
    assert len(logs) >= 7
    metrics = {name: httpx.get(f"http://{target}/metrics", trust_env=False).text for name, target in exporters.items()}
    for name, text in {**logs, **metrics}.items():
        for canary in (PROMPT, SECRET):
            assert canary not in text, name


def test_each_move_of_a_breaker_is_a_line(seen_mesh: LocalMesh) -> None:
    """As many JSON lines as the metric counts, with the hop, where from, where to, and why."""

    def moves() -> float:
        text = httpx.get(f"{seen_mesh.url}/metrics", trust_env=False).text
        lines = (line for line in text.splitlines() if line.startswith("mesh_breaker_transitions_total"))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    os.kill(seen_mesh.processes()["embedding"].pid, signal.SIGKILL)
    with httpx.Client(base_url=seen_mesh.url, timeout=30, trust_env=False) as client:
        texts = map("never asked before {}".format, itertools.count())

        def refused() -> bool:
            return (
                client.post("/v1/embeddings", json={"input": next(texts)}).status_code
                == httpx.codes.SERVICE_UNAVAILABLE
            )

        assert wait_until(lambda: refused() and moves() > 0, seconds=30)
        assert wait_until(lambda: not refused(), seconds=90)

    def told() -> list[dict[str, Any]]:
        return [line for line in log_lines(seen_mesh.log("gateway")) if line["message"] == "breaker moved"]

    # The supervisor writes the log, a moment after the gateway has said its line.
    assert wait_until(lambda: len(told()) == moves(), seconds=10)
    assert {"embedding"} == {line["hop"] for line in told()}
    assert {"open", "half_open", "closed"} == {line["after"] for line in told()}
    assert all(line["before"] != line["after"] and line["cause"] and line["reason"] for line in told())
