"""A mesh that asks for keys, started and looked at by the scripts that users run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from gateway.keys.records import Role
from gateway.testing.keys import KeyFile, bearer
from ops.local.testing import LocalMesh

pytestmark = pytest.mark.integration

MakeMesh = Callable[..., LocalMesh]


def test_a_mesh_with_keys_starts_serves_and_is_looked_at_with_them(small_mesh: MakeMesh, tmp_path: Path) -> None:
    """Beyond loopback it starts with keys only; the scripts need an operator's, and say so; tenants are served."""
    book = KeyFile(tmp_path / "book" / "keys.json")
    user, operator = book.add(tenant="search"), book.add(Role.OPERATOR, tenant="ops")
    open_to_all = small_mesh(GATEWAY_HOST="0.0.0.0").start("--wait-seconds", "60")
    assert open_to_all.returncode == 1
    assert "its settings are wrong" in open_to_all.stdout + open_to_all.stderr

    variables = {"GATEWAY_HOST": "0.0.0.0", "GATEWAY_KEYS__FILE": str(book.path)}
    blind = small_mesh(**variables, MESH_API_KEY=user)
    refused = blind.start()
    assert refused.returncode == 1
    assert "MESH_API_KEY" in refused.stdout + refused.stderr
    assert blind.pids() == []

    mesh = small_mesh(**variables, MESH_API_KEY=operator)
    started = mesh.start()
    assert started.returncode == 0, started.stdout + started.stderr
    assert mesh.health().returncode == 0
    environment = Path(f"/proc/{mesh.processes()['gateway'].pid}/environ").read_bytes()
    assert operator.encode() not in environment

    with httpx.Client(base_url=mesh.url, timeout=60, trust_env=False) as client:
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 401
        assert client.post("/v1/embeddings", json={"input": "a"}, headers=bearer(operator)).status_code == 403
        assert client.get("/status", headers=bearer(user)).status_code == 403
        client.post("/v1/embeddings", json={"input": "a"}, headers=bearer(user)).raise_for_status()
    log = mesh.log("gateway")
    assert "tenant=search" in log
    assert not any(key[20:] in log for key in (user, operator))
