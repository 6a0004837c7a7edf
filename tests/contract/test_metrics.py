"""What the processes tell Prometheus: conventional names, all documented, and labels that no client can fill."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics_core import Metric

import gateway.keys.metrics
import gateway.keys.shared_meter
import gateway.vector_cache.metrics
import gpu_services.chunking.metrics
import inference.metrics
import llm_service.metrics
import mesh.tls.metrics
from gateway.app import create_app
from gateway.settings import GatewaySettings
from gpu_services.gpu.metrics import families
from gpu_services.gpu.status import Device, Status
from mesh.clients import AsyncEmbeddingServiceClient
from mesh.errors import MeshError, Overloaded, all_error_classes
from mesh.testing import ScriptedEmbedding, serve
from ops.local.prometheus import find_program

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
ROW = re.compile(r"^\| `(mesh_\w+)(?:\{([\w,]+)\})?` \| (counter|gauge|histogram) \| \S", re.MULTILINE)
# Where each label's values come from. One that is not here is a question for the review: can a client choose it?
CLOSED_LABELS = {
    "capability": "the two model workers",
    "cause": "mesh.resilience.breaker.Cause",
    "endpoint": "the configuration, and what its names resolve to",
    "error": "exception classes of the Redis library",
    "file": "certificate and ca",
    "gpu": "the machine's devices",
    "hop": "the configuration",
    "kind": "prompt and completion",
    "lane": "mesh.context.Priority",
    "method": "the protos, or four HTTP methods and 'other'",
    "name": "the machine's devices",
    "operation": "get and put",
    "outcome": "the error table, ok and cancelled; the cache's four",
    "problem": "mesh.tls.problems.TlsProblem",
    "reason": "the error table; a batcher's few; gateway.keys' eight",
    "route": "the templates of the gateway's routes",
    "service": "the protos",
    "status": "HTTP's",
    "to": "mesh.resilience.BreakerState",
    "uuid": "the machine's devices",
    "version": "the package's",
}
A_GPU = Device(
    index=0,
    memory_total_bytes=2,
    memory_used_bytes=1,
    utilization_percent=50,
    temperature_celsius=40,
    power_watts=1.0,
    power_limit_watts=2.0,
)
DEFINED_IN = (
    gateway.keys.metrics,
    gateway.keys.shared_meter,
    gateway.vector_cache.metrics,
    gpu_services.chunking.metrics,
    inference.metrics,
    llm_service.metrics,
    mesh.tls.metrics,
)


def exported() -> dict[str, tuple[str, frozenset[str]]]:
    """Every metric of ours by its name on the wire: its type and its labels."""
    assert DEFINED_IN  # importing them registered what they define
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for collector, names in REGISTRY._collector_to_names.items():
        labels = frozenset(getattr(collector, "_labelnames", ()))
        for family in collector.describe() if hasattr(collector, "describe") else ():
            if family.name.startswith("mesh_") and names:
                found[wire_name(family)] = (wire_type(family), labels)
    found["mesh_build_info"] = ("gauge", frozenset({"version"}))
    for family in families(Status(read_at_unix_ms=0, devices=(A_GPU,))):
        found[family.name] = (family.type, frozenset(family.samples[0].labels))
    return found


def wire_name(family: Metric) -> str:
    """The name as it stands in the exposition."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def wire_type(family: Metric) -> str:
    """The type as it stands in the exposition."""
    return "gauge" if family.type == "info" else str(family.type)


def test_every_metric_is_documented_as_it_is() -> None:
    """The page's table holds each metric with its type and labels, and none that does not exist."""
    rows = {name: (kind, frozenset(labels.split(",")) - {""}) for name, labels, kind in ROW.findall(PAGE.read_text())}
    there = exported()
    there.pop("mesh_build", None)
    assert rows == there


def test_names_follow_the_conventions() -> None:
    """Counters end in _total and nothing else does; times are seconds, sizes bytes; no unit is a multiple or a share
    of a hundred.
    """
    for name, (kind, _) in exported().items():
        assert re.fullmatch(r"mesh_[a-z][a-z0-9]*(_[a-z0-9]+)+", name) or name == "mesh_build"
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(
            r"_(ms|milliseconds|us|minutes|hours|days|kb|mb|mib|gib|percent|count|sum|bucket|gauge|counter)(_|$)", name
        )
        assert kind != "histogram" or name.endswith(("_seconds", "_size")), name


def test_labels_come_from_closed_sets() -> None:
    """Each label is known, with where its values come from, and none is left that no metric has."""
    used = {label for _, labels in exported().values() for label in labels}
    assert used == set(CLOSED_LABELS)


def test_prometheuss_own_linter_is_content() -> None:
    """``promtool check metrics`` finds nothing to complain about."""
    promtool = find_program("promtool")
    if promtool is None:
        pytest.skip("promtool is not there; scripts/install_prometheus.sh brings it where apt has it")
    linted = subprocess.run([promtool, "check", "metrics"], input=generate_latest(), capture_output=True)
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, b"", b"")


def series() -> frozenset[tuple[str, frozenset[tuple[str, str]]]]:
    """Every time series of this process."""
    return frozenset(
        (sample.name, frozenset(sample.labels.items()))
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("mesh_")
    )


async def nonsense(http: httpx.AsyncClient) -> None:
    """Requests in which everything that a client chooses is random."""
    word = secrets.token_hex(8)
    for path in ("/v1/embeddings", "/v2/rerank", "/v1/chat/completions", "/embed", f"/{word}", f"/v1/models/{word}"):
        for method in ("POST", "GET", f"X{word.upper()}"):
            await http.request(
                method,
                f"{path}?{word}=1",
                json={"model": word, "input": word, "user": word},
                headers={"x-request-id": word, "x-mesh-priority": word, "x-mesh-tenant": word, "authorization": word},
            )


async def test_a_clients_words_make_no_series() -> None:
    """Paths, methods, models, users and headers that nobody has seen add nothing after the first such request."""
    async with serve([ScriptedEmbedding().capability()]) as worker:
        url = {"url": worker.target}
        nowhere = {"url": "127.0.0.1:1"}
        services = {"embedding": url, "reranking": nowhere, "gpu": nowhere, "llm": nowhere}
        app = create_app(GatewaySettings.model_validate({"services": services}))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
                for _ in range(8):  # breakers open, and refusals have an outcome of their own
                    await nonsense(http)
                before = series()
                for _ in range(20):
                    await nonsense(http)
                grown = {one for one in series() - before if not is_movement(one[0])}
    assert grown == set()


def is_movement(name: str) -> bool:
    """Whether a metric counts what time brings, with or without requests: its label sets are closed all the same."""
    return name.startswith(("mesh_breaker_transitions", "mesh_hop_retries"))


async def test_a_workers_words_make_no_series() -> None:
    """A reason that a worker makes up anew for each call becomes no label: the outcome is the error table's code."""
    script: Iterable[MeshError] = (Overloaded("No.", reason=secrets.token_hex(8)) for _ in range(20))
    async with serve([ScriptedEmbedding(script).capability()]) as worker:
        client = AsyncEmbeddingServiceClient(worker.target)
        for _ in range(20):
            with pytest.raises(Overloaded):
                await client.embed(["x"])
        await client.close()
    codes = {cls.code for cls in all_error_classes()} | {"ok", "cancelled"}
    outcomes = {value for name, labels in series() if name.startswith(("mesh_hop_calls", "mesh_rpc_calls"))
                for label, value in labels if label == "outcome"}  # fmt: skip
    assert "overloaded" in outcomes
    assert outcomes <= codes
