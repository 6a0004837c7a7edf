"""The mesh in containers with mutual TLS on every hop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ops.docker.composition import CERTIFICATES, SERVICES
from ops.tls.testing import Office
from tests.containers.stack import WORKERS, Stack, is_healthy, wait_for

pytestmark = [pytest.mark.containers, pytest.mark.slow]

USER = 10001
NAMES = tuple(service.name for service in SERVICES)


@pytest.fixture
def behind_tls(stack: Stack, tmp_path: Path) -> Iterator[Stack]:
    """The mesh with a certificate for each container; afterwards as it was."""
    if os.geteuid() != 0:
        pytest.skip("only root can hand a key to the containers' user")
    folder, office = tmp_path / "certificates", Office.open(tmp_path / "authority")
    for name in NAMES:
        files, place = office.issue(name, also=()), folder / name
        place.mkdir(parents=True)
        for target, source in (("ca.pem", files.ca), ("tls.pem", files.certificate), ("tls.key", files.key)):
            (place / target).write_bytes(source.read_bytes())
            (place / target).chmod(0o400)
            os.chown(place / target, USER, USER)
    certified = stack.changed(**{CERTIFICATES: str(folder)})
    try:
        certified.anew(*NAMES)
        yield certified
    finally:
        stack.anew(*NAMES)
        wait_for(lambda: all(map(is_healthy, NAMES)), "healthy without certificates again", seconds=180)


def test_every_hop_serves_behind_certificates_and_plaintext_is_refused(behind_tls: Stack) -> None:
    """Each container is healthy by its own certificate, the gateway reaches all, and nobody without one does."""
    wait_for(lambda: all(map(is_healthy, NAMES)), "healthy behind certificates", seconds=180)
    with httpx.Client(base_url=behind_tls.url, trust_env=False, timeout=30) as http:
        wait_for(
            lambda: all(hop["serving"] for hop in http.get("/status").json()["hops"]), "all hops serve", seconds=60
        )
        assert http.post("/v1/embeddings", json={"input": "a red cat"}).status_code == 200
    for service in SERVICES:
        if service.name in WORKERS:
            with grpc.insecure_channel(behind_tls.mesh.target(service.process)) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                with pytest.raises(grpc.RpcError) as refused:
                    health.Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
