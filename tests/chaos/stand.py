"""A gateway before one worker: the smallest mesh in which a hop can be hurt, with nothing else that takes CPU time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ops.local.layout import CHECKOUT, Layout
from ops.local.testing import free_ports
from ops.local.topology import LOOPBACK, WORKERS

_SERVING_SECONDS = 60.0
_END_SECONDS = 15.0
_POLL_SECONDS = 0.05


class DidNotServe(Exception):
    """A process ended, or did not serve in time; the message carries its last words."""


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started.

    Attributes:
        log: what it has written.
    """

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def require_alive(self, since: float, within: float) -> None:
        """Raise DidNotServe where it has ended, or ``within`` seconds have passed ``since``."""
        waited = time.monotonic() - since
        if self.process.returncode is not None or waited > within:
            words = self.log.read_text(errors="replace")[-1500:]
            raise DidNotServe(f"{self.name} did not serve after {waited:.0f} s. Its last words:\n{words}")


@asynccontextmanager
async def started(name: str, command: Sequence[str | Path], variables: Mapping[str, str]) -> AsyncIterator[Started]:
    """Run a program until the block is left."""
    with tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".log") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=CHECKOUT, env={**os.environ, **variables}, stdin=asyncio.subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield Started(name, process, Path(log.name))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _END_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


@dataclass(frozen=True, slots=True)
class Worker:
    """A running worker.

    Attributes:
        target: its gRPC address.
        metrics_url: of its Prometheus endpoint.
    """

    process: Started
    target: str
    metrics_url: str

    @property
    def port(self) -> int:
        """Of gRPC."""
        return int(self.target.rpartition(":")[2])


@asynccontextmanager
async def running_worker(
    name: str,
    service: str,
    variables: Mapping[str, str] | None = None,
    *,
    module: str = "",
    host: str = LOOPBACK,
    inside: Sequence[str] = (),
    within: float = _SERVING_SECONDS,
) -> AsyncIterator[Worker]:
    """A worker on free ports that serves, until the block is left.

    Args:
        name: the worker's in ``ops.local.topology``.
        service: the capability that has to serve.
        variables: added to its environment.
        module: run in place of its own.
        host: where it listens.
        inside: a command line that runs it somewhere else, such as a network namespace.
        within: how many seconds it may take until it serves.

    Raises:
        DidNotServe: it did not.
    """
    worker = next(each for each in WORKERS if each.name == name)
    port, metrics_port = free_ports(2)
    layout = Layout.from_environment(os.environ)
    command: list[str | Path] = [*inside, layout.python("workers"), "-m", module or worker.module]
    own = {
        "MESH_MODELS": str(layout.models),
        f"{worker.prefix}HOST": host,
        f"{worker.prefix}PORT": str(port),
        f"{worker.prefix}METRICS_PORT": str(metrics_port),
        **(variables or {}),
    }
    async with started(name, command, own) as process:
        running = Worker(process, f"{host}:{port}", f"http://{host}:{metrics_port}/metrics")
        await until_healthy(running, service, within)
        yield running


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway."""

    process: Started
    url: str

    def client(self, timeout: float = 30.0) -> httpx.AsyncClient:
        """An HTTP client of it."""
        return httpx.AsyncClient(base_url=self.url, timeout=timeout, trust_env=False)


@asynccontextmanager
async def running_gateway(
    targets: Mapping[str, str], variables: Mapping[str, str] | None = None
) -> AsyncIterator[Gateway]:
    """A gateway that is ready, until the block is left.

    Args:
        targets: the workers' addresses by name. Every other service is pointed at one of them, where it is unknown
            and costs nothing; a closed port would be dialled again and again.
        variables: added to its environment.

    Raises:
        DidNotServe: it was not ready in time.
    """
    layout = Layout.from_environment(os.environ)
    (port,) = free_ports(1)
    anywhere = next(iter(targets.values()))
    urls = {worker.url_variable: targets.get(worker.name, anywhere) for worker in WORKERS}
    own = {"GATEWAY_HOST": LOOPBACK, "GATEWAY_PORT": str(port), **urls, **(variables or {})}
    async with started("gateway", [layout.python("gateway"), "-m", "gateway"], own) as process:
        gateway = Gateway(process, f"http://{LOOPBACK}:{port}")
        began = time.monotonic()
        async with gateway.client(timeout=1.0) as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get("/health/ready")).is_success:
                        break
                process.require_alive(began, _SERVING_SECONDS)
                await asyncio.sleep(_POLL_SECONDS)
        yield gateway


async def until_healthy(worker: Worker, service: str, within: float = _SERVING_SECONDS) -> None:
    """Wait until a worker says SERVING for a capability. Raises DidNotServe."""
    question = health_pb2.HealthCheckRequest(service=service)
    began = time.monotonic()
    async with grpc.aio.insecure_channel(worker.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            with contextlib.suppress(grpc.RpcError):
                reply = await stub.Check(question, timeout=1.0, wait_for_ready=True)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            worker.process.require_alive(began, within)
            await asyncio.sleep(_POLL_SECONDS)


async def until_serving(gateway: Gateway, hop: str, within: float = _SERVING_SECONDS) -> None:
    """Wait until a hop of the gateway serves. Raises DidNotServe."""
    began = time.monotonic()
    async with gateway.client(timeout=5.0) as http:
        while not (await hop_status(http, hop))["serving"]:
            gateway.process.require_alive(began, within)
            await asyncio.sleep(_POLL_SECONDS)


async def hop_status(http: httpx.AsyncClient, hop: str) -> dict[str, Any]:
    """What the gateway's ``/status`` says of a hop."""
    hops: list[dict[str, Any]] = (await http.get("/status")).json()["hops"]
    return next(each for each in hops if each["name"] == hop)
