"""Workers that a test kills, freezes, hurts and starts again, each at addresses of its own that stay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.channel import CLIENT_OPTIONS
from ops.local.layout import CHECKOUT, Layout
from ops.local.testing import free_ports
from ops.local.topology import LOOPBACK, WORKERS
from tests.chaos.stand import (
    DidNotServe,
    Gateway,
    Started,
    Worker,
    running_gateway,
    started,
    until_healthy,
    until_serving,
)
from tests.chaos.vitals import Counts, scrape

_DIAL_SECONDS = 0.005
_PATIENCE_SECONDS = 30.0
_STOPPED = "T"
"""How the system writes that a process stands still."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a replica runs.

    Attributes:
        name: the worker's in ``ops.local.topology``.
        service: the capability that it serves.
        arguments: of the workers' Python.
    """

    name: str
    service: str
    arguments: tuple[str, ...]


REAL_EMBEDDING = Program("embedding", "embedding.v1.EmbeddingService", ("-m", "embedding_service"))
EMBEDDING = Program("embedding", "embedding.v1.EmbeddingService", ("-m", "embedding_service.testing"))
LLM = Program("llm", "llm.v1.LlmService", (str(CHECKOUT / "tests/chaos/llm_worker.py"),))

BUSY = "slow:0.0005"
"""A fault that hurts nobody: batches take some milliseconds, so that what happens to a worker meets calls under way."""


class Replica:
    """One worker at a port that stays its own, whatever is done to it.

    Args:
        program: what it runs.
        fault_file: what its engine reads before each batch; see ``embedding_service.testing``.
        variables: added to its environment.
    """

    def __init__(self, program: Program, fault_file: Path, variables: Mapping[str, str]) -> None:
        self.program = program
        self.port, self._metrics_port = free_ports(2)
        self._fault_file = fault_file
        self._variables = variables
        self._started: Started | None = None
        self._ends = AsyncExitStack()

    @property
    def target(self) -> str:
        """Its gRPC address."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def worker(self) -> Worker:
        """The process that runs now, or ran last."""
        assert self._started is not None, "it was never started"
        return Worker(self._started, self.target, f"http://{LOOPBACK}:{self._metrics_port}/metrics")

    async def begin(self) -> None:
        """Start its process and wait for nothing."""
        layout = Layout.from_environment(os.environ)
        prefix = next(each.prefix for each in WORKERS if each.name == self.program.name)
        own = {
            "MESH_MODELS": str(layout.models),
            "MESH_FAULT_FILE": str(self._fault_file),
            # A program that is run by its path finds the project's packages here.
            "PYTHONPATH": str(CHECKOUT),
            f"{prefix}HOST": LOOPBACK,
            f"{prefix}PORT": str(self.port),
            f"{prefix}METRICS_PORT": str(self._metrics_port),
            **self._variables,
        }
        command: list[str | Path] = [layout.python("workers"), *self.program.arguments]
        self._started = await self._ends.enter_async_context(started(self.program.name, command, own))

    async def start(self) -> None:
        """Start its process and wait until it serves. Raises DidNotServe."""
        await self.begin()
        await until_healthy(self.worker, self.program.service)

    async def kill(self) -> None:
        """``kill -9``; returns when it is gone. Nothing happens where it has ended."""
        if self._started is not None:
            self.signal(signal.SIGKILL)
            await self._started.process.wait()

    async def freeze(self) -> None:
        """SIGSTOP; returns when it stands still."""
        self.signal(signal.SIGSTOP)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while _state_of(self.worker.process.pid) != _STOPPED:
                await asyncio.sleep(_DIAL_SECONDS)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        with contextlib.suppress(ProcessLookupError):
            self.worker.process.process.send_signal(number)

    async def exit_code(self, within: float = _PATIENCE_SECONDS) -> int:
        """How its process ends by itself. Raises TimeoutError."""
        async with asyncio.timeout(within):
            return await self.worker.process.process.wait()

    async def close(self) -> None:
        """End it; a frozen one too."""
        await self.kill()
        await self._ends.aclose()

    def fault(self, what: str) -> None:
        """From the next batch on its engine does this."""
        fresh = self._fault_file.with_suffix(".new")
        fresh.write_text(what, encoding="utf-8")
        fresh.replace(self._fault_file)

    async def counts(self) -> Counts:
        """What its process has counted."""
        return await scrape(self.worker.metrics_url)

    async def computed(self) -> float:
        """Inputs that its process has computed since it began."""
        return (await self.counts()).total("mesh_batch_size_sum")

    async def says_serving(self, within: float = _PATIENCE_SECONDS) -> float:
        """Wait for the very moment at which it says SERVING, on a connection of its own; returns that moment.

        Raises:
            DidNotServe: it did not.
        """
        began = time.monotonic()
        while not await _listens(self.port):
            self.worker.process.require_alive(began, within)
            await asyncio.sleep(_DIAL_SECONDS)
        return await self._health_becomes(health_pb2.HealthCheckResponse.SERVING, within)

    async def says_not_serving(self, within: float = _PATIENCE_SECONDS) -> float:
        """Wait for the very moment at which it says NOT_SERVING; returns that moment. Raises DidNotServe."""
        return await self._health_becomes(health_pb2.HealthCheckResponse.NOT_SERVING, within)

    async def _health_becomes(self, wanted: int, within: float) -> float:
        question = health_pb2.HealthCheckRequest(service=self.program.service)
        with contextlib.suppress(TimeoutError, grpc.RpcError):
            async with asyncio.timeout(within), self.channel() as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                async for reply in stub.Watch(question, timeout=within):
                    if reply.status == wanted:
                        return time.monotonic()
        raise DidNotServe(f"{self.program.name} did not say {wanted} within {within:.0f} s")

    def channel(self) -> grpc.aio.Channel:
        """A connection to it that nothing else uses."""
        return grpc.aio.insecure_channel(self.target, options=list(CLIENT_OPTIONS))


@asynccontextmanager
async def replicas(
    program: Program, count: int, variables: Mapping[str, str] | None = None, *, serving: bool = True
) -> AsyncIterator[Sequence[Replica]]:
    """Workers that serve, until the block is left; whatever was done to them, they end.

    Args:
        program: what they run.
        count: how many.
        variables: added to their environment.
        serving: whether they are started; otherwise the test starts them.

    Raises:
        DidNotServe: one did not.
    """
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        made = [Replica(program, Path(directory) / f"fault-{number}", variables or {}) for number in range(count)]
        try:
            if serving:
                await asyncio.gather(*(each.start() for each in made))
            yield made
        finally:
            for each in made:
                await each.close()


@asynccontextmanager
async def gateway_before(
    made: Sequence[Replica], hop: str = "embedding", variables: Mapping[str, str] | None = None
) -> AsyncIterator[Gateway]:
    """A gateway whose hop leads to all of them and serves, until the block is left. Raises DidNotServe."""
    targets = ",".join(each.target for each in made)
    async with running_gateway({made[0].program.name: targets}, variables) as gateway:
        await until_serving(gateway, hop)
        yield gateway


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
