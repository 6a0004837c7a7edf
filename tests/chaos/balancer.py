"""Two gateways behind Envoy, run by the configuration that the project ships."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import yaml

from ops.local.layout import CHECKOUT, Layout
from ops.local.testing import free_ports
from ops.local.topology import LOOPBACK
from tests.chaos.stand import Started, started

SHIPPED = CHECKOUT / "ops" / "envoy" / "gateway.yaml"
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.05


class Gateway:
    """A gateway at a port that stays its own while its processes come and go.

    Args:
        urls: where the workers are: ``EMBEDDING_SERVICE_URL`` and the others.
        notice_seconds: between saying that it is not ready and closing its port.
    """

    def __init__(self, urls: Mapping[str, str], *, notice_seconds: float) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._variables = {
            "GATEWAY_HOST": LOOPBACK,
            "GATEWAY_PORT": str(self.port),
            "GATEWAY_DRAIN_NOTICE_SECONDS": str(notice_seconds),
            **urls,
        }
        self._ends = AsyncExitStack()
        self.process: Started | None = None

    async def start(self, *hops: str) -> None:
        """Start a process and wait until it is ready and its hops serve: all, or those that are named."""
        layout = Layout.from_environment(os.environ)
        self.process = await self._ends.enter_async_context(
            started("gateway", [layout.python("gateway"), "-m", "gateway"], self._variables)
        )
        began = time.monotonic()
        async with httpx.AsyncClient(base_url=self.url, timeout=2.0, trust_env=False) as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    known = (await http.get("/status")).json()["hops"]
                    if all(hop["serving"] for hop in known if not hops or hop["name"] in hops):
                        return
                self.process.require_alive(began, _PATIENCE_SECONDS)
                await asyncio.sleep(_POLL_SECONDS)

    async def end(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.process.terminate()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await self.process.process.wait()

    async def close(self) -> None:
        """End what still runs."""
        await self._ends.aclose()


class Listening(Protocol):
    """A gateway, whoever runs it."""

    @property
    def port(self) -> int:
        """Its HTTP port on loopback."""
        ...


@asynccontextmanager
async def running_envoy(gateways: Sequence[Listening]) -> AsyncIterator[str]:
    """Envoy's address, while the shipped configuration runs before ``gateways``; nothing but addresses is changed."""
    port, admin_port = free_ports(2)
    config = shipped_for([gateway.port for gateway in gateways], port=port, admin_port=admin_port)
    binary = Layout.from_environment(os.environ).python("test").with_name("envoy")
    with tempfile.TemporaryDirectory(prefix="envoy-") as directory:
        file = Path(directory) / "gateway.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        command: list[str | Path] = [
            binary,
            "-c",
            file,
            "--use-dynamic-base-id",
            "--concurrency",
            "1",
            "--log-level",
            "warn",
        ]
        async with started("envoy", command, {}) as process:
            began = time.monotonic()
            async with httpx.AsyncClient(timeout=2.0, trust_env=False) as http:
                while await _healthy(http, admin_port) < len(gateways):
                    process.require_alive(began, _PATIENCE_SECONDS)
                    await asyncio.sleep(_POLL_SECONDS)
            yield f"http://{LOOPBACK}:{port}"


def shipped_for(gateway_ports: Sequence[int], *, port: int, admin_port: int) -> dict[str, Any]:
    """The shipped configuration with other addresses."""
    config: dict[str, Any] = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    (listener,) = config["static_resources"]["listeners"]
    listener["address"]["socket_address"]["port_value"] = port
    (cluster,) = config["static_resources"]["clusters"]
    (group,) = cluster["load_assignment"]["endpoints"]
    group["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": LOOPBACK, "port_value": each}}}}
        for each in gateway_ports
    ]
    return config


async def _healthy(http: httpx.AsyncClient, admin_port: int) -> int:
    """How many gateways Envoy takes for healthy."""
    try:
        answer = (await http.get(f"http://{LOOPBACK}:{admin_port}/clusters?format=json")).json()
    except httpx.HTTPError:
        return 0
    hosts = [host for cluster in answer["cluster_statuses"] for host in cluster.get("host_statuses", ())]
    return sum(host["health_status"].get("eds_health_status") == "HEALTHY" and not _failing(host) for host in hosts)


def _failing(host: dict[str, Any]) -> bool:
    return bool(host["health_status"].get("failed_active_health_check"))
