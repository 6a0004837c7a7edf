"""The commands that the migration guide prints, and what a restart keeps."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from ops.docker.composition import SERVICES
from tests.chaos.bars import Measured
from tests.containers.conftest import ALIAS, Started
from tests.containers.stack import NETWORK, WORKERS, Stack, docker, is_healthy, python_in, wait_for

pytestmark = [pytest.mark.containers, pytest.mark.slow]

NAMES = [service.name for service in SERVICES]
_KEPT = """
import hashlib, json, pathlib
files = [each for each in pathlib.Path("/models").rglob("*") if each.is_file()]
print(json.dumps({str(f): (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files}))
"""


def test_the_start_says_what_serves(started: Started) -> None:
    """Every capability serves with its default model, found without a hub."""
    assert "The mesh is up (" in started.words
    for model in ("all-MiniLM-L6-v2", "late-interaction", "docling-hierarchical", "torch-isolation-mesh-demo"):
        assert model in started.words
    assert "NOT SERVING" not in started.words


def test_ps_and_logs_work_as_the_guide_prints_them(stack: Stack) -> None:
    """`docker-compose -f … ps` shows all services, and `logs` what they say, one JSON object a line."""
    listed = stack.compose("ps")
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in NAMES)
    logged = stack.compose("logs", "--no-color", "embedding-services")
    assert "capability is serving" in logged.stdout
    lines = docker("logs", "embedding-services").splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines if line.startswith("{"))


def test_torch_is_where_the_guide_looks_for_it(stack: Stack) -> None:
    """`docker exec gpu-services python -c "import torch; …"` answers, with a GPU or without."""
    assert python_in("gpu-services", "import torch; print(torch.cuda.is_available())") in {"True", "False"}
    assert stack.url


def test_every_worker_listens_on_50051_and_is_reached_from_this_machine(stack: Stack) -> None:
    """Reflection lists the services on each worker's port, as the guide's grpcurl does."""
    services = {}
    for service in SERVICES:
        if service.process == "gateway":
            continue
        assert "50051/tcp" in docker("port", service.name)
        with grpc.insecure_channel(stack.mesh.target(service.process)) as channel:
            services[service.name] = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert "embedding.v1.EmbeddingService" in services["embedding-services"]
    assert {"chunking.v1.ChunkingService", "gpu.v1.GpuService"} <= services["gpu-services"]
    assert "reranking.v1.RerankingService" in services["reranking-services"]
    assert "llm.v1.LlmService" in services["llm-services"]


def test_the_health_script_knows_containers(stack: Stack) -> None:
    """The check has a row a hop and exit code 0, and says where to look when one is gone."""
    well = stack.mesh.health()
    assert well.returncode == 0, well.stdout
    assert well.stdout.count("SERVING") == 6
    docker("pause", "reranking-services")
    try:
        wait_for(lambda: stack.mesh.health().returncode == 1, "the health script sees a paused worker", seconds=20)
        assert "docker logs reranking-services" in stack.mesh.health().stdout
    finally:
        docker("unpause", "reranking-services")
    wait_for(lambda: stack.mesh.health().returncode == 0, "the health script sees it back", seconds=20)


def test_a_second_start_says_that_it_runs(stack: Stack) -> None:
    """It changes nothing, and names the gateway."""
    again = stack.start()
    assert again.returncode == 0, again.stderr
    assert f"already running (docker mode): {stack.url}" in again.stdout


def test_settings_before_the_start_script_reach_the_containers(stack: Stack, http: httpx.Client) -> None:
    """A variable in the start's environment is a setting of the process that it is for, and of no other."""
    answered = http.post("/v1/embeddings", json={"model": ALIAS, "input": "a red cat"})
    assert answered.status_code == 200, answered.text
    assert python_in("embedding-services", "import os; print(os.environ['EMBEDDING_MODEL_ALIASES'])") == ALIAS
    assert python_in("gateway", "import os; print('EMBEDDING_MODEL_ALIASES' in os.environ)") == "False"
    assert stack.url


def test_a_restart_of_everything_loses_no_configuration_and_no_model(
    stack: Stack, http: httpx.Client, measured: Measured
) -> None:
    """After all containers were restarted the same vectors come back, the same names are known, no file has changed."""
    body = {"model": ALIAS, "input": ["a red cat", "far away"]}
    before = _components(http.post("/v1/embeddings", json=body))
    kept = json.loads(python_in("embedding-services", _KEPT))
    assert any("engines/" in name for name in kept)
    assert any("demo-llm/" in name for name in kept)
    began = time.monotonic()
    docker("restart", "-t", "30", *NAMES, seconds=300)
    back = wait_for(lambda: _all_serve(stack), "everything serves again", seconds=180)
    measured("containers: all restarted and serving", back - began, "s")
    assert _components(http.post("/v1/embeddings", json=body)) == pytest.approx(before, abs=1e-3)
    assert json.loads(python_in("embedding-services", _KEPT)) == kept


def test_compose_alone_brings_it_up_in_order(stack: Stack, measured: Measured) -> None:
    """`up -d`, without the script, starts the workers after the models and the gateway after healthy workers."""
    removed = stack.compose("rm", "--stop", "--force", *NAMES, "models")
    assert removed.returncode == 0, removed.stderr
    began = time.monotonic()
    up = stack.compose("up", "-d", "--no-build")
    assert up.returncode == 0, up.stdout + up.stderr
    measured("containers: up by Compose alone", time.monotonic() - began, "s")
    facts = {each: json.loads(docker("container", "inspect", each))[0] for each in (*NAMES, "mesh-models")}
    for worker in WORKERS:
        filled = _moment(facts["mesh-models"]["State"]["FinishedAt"])
        assert filled <= _moment(facts[worker]["State"]["StartedAt"]), worker
        healthy = min(each["End"] for each in facts[worker]["State"]["Health"]["Log"] if each["ExitCode"] == 0)
        assert _moment(facts["gateway"]["State"]["StartedAt"]) > _moment(healthy), worker
    wait_for(lambda: is_healthy("gateway"), "the gateway is healthy", seconds=60)
    wait_for(lambda: _all_serve(stack), "everything serves", seconds=60)
    assert "gateway" in docker("network", "inspect", NETWORK)


def _moment(stamp: str) -> datetime:
    """One of the engine's, which have nanoseconds, and some a zone in place of Z."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", stamp)).astimezone(UTC)


def _components(answer: httpx.Response) -> list[float]:
    """Of all vectors, one after the other, as pytest compares them."""
    assert answer.status_code == 200, answer.text
    return [component for each in answer.json()["data"] for component in each["embedding"]]


def _all_serve(stack: Stack) -> bool:
    try:
        hops: list[dict[str, Any]] = httpx.get(f"{stack.url}/status", trust_env=False, timeout=5).json()["hops"]
    except (httpx.HTTPError, ValueError):
        return False
    return all(hop["serving"] for hop in hops)
