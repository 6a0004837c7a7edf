"""A gateway before the LLM worker before a real vLLM, each a process of its own, and a look into the engine itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from llm_service.servicer import SERVICE
from ops.local.checks import WHY_NOT
from ops.local.layout import CHECKOUT, Layout
from tests.chaos.stand import Gateway, Worker, running_gateway, running_worker, until_serving
from tests.chaos.vitals import Counts, scrape

LAYOUT = Layout.from_environment(os.environ)
PYTHON = LAYOUT.python("vllm")
CROWD = 1000
"""So many requests may the engine run at once."""
MODEL = "torch-isolation-mesh-demo"
PAGE: list[dict[str, str]] = yaml.safe_load((CHECKOUT / "ops/demo_llm/questions.yaml").read_text())["entries"]
"""The questions that the demo model knows, each with its only answer."""

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
START_SECONDS = 300.0
"""vLLM imports itself in three processes, one after another."""
_POLL_SECONDS = 0.02
_CORE = b"VLLM::EngineCore"


def why_not() -> str:
    """Why vLLM cannot run here; empty where it can."""
    if not PYTHON.exists():
        told = os.environ.get(WHY_NOT, "").partition("\n")[0]
        return told or "there is no environment with vLLM: scripts/test.sh vllm makes it"
    if not (LAYOUT.models / "demo-llm" / "config.json").exists():
        return "the demo model is not there: python ops/demo_llm/train.py makes it"
    return ""


@dataclass(frozen=True, slots=True)
class VllmMesh:
    """What runs.

    Attributes:
        gateway: through which clients come.
        worker: which holds the engine.
        directory: in which the engine's socket is.
    """

    gateway: Gateway
    worker: Worker
    directory: Path

    async def engine(self) -> Counts:
        """What the engine itself has counted, asked at its own door."""
        (socket,) = self.directory.glob("mesh-llm-*/engine.sock")
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(socket)), timeout=30.0) as client:
            return Counts.read((await client.get("http://engine/metrics")).text)

    def pid_of_the_door(self) -> int:
        """The engine's HTTP server, which runs on the worker's tether."""
        (tether,) = _children(self.worker.process.pid)
        return _children(tether)[0]

    def pid_of_the_core(self) -> int:
        """The process behind the door that computes."""
        behind = _children(self.pid_of_the_door())
        return next(pid for pid in behind if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_CORE))

    async def published(self) -> Counts:
        """What a scrape of the worker finds."""
        return await scrape(self.worker.metrics_url)

    async def runs(self, *, at_least: int = 0, at_most: int = 1_000_000, within: float) -> float:
        """Wait until the engine counts so many running requests; the seconds that took. Raises TimeoutError."""
        began = time.monotonic()
        async with asyncio.timeout(within):
            while not at_least <= (await self.engine()).total(RUNNING) <= at_most:
                await asyncio.sleep(_POLL_SECONDS)
        return time.monotonic() - began


@asynccontextmanager
async def running_mesh(directory: Path, variables: Mapping[str, str] | None = None) -> AsyncIterator[VllmMesh]:
    """A mesh that serves, until the block is left.

    Args:
        directory: an empty one, with a short path: the engine's socket will be in it.
        variables: added to the worker's environment.

    Raises:
        DidNotServe: it did not.
    """
    own = {"LLM_ENGINE": "vllm", "LLM_ENGINE_PYTHON": str(PYTHON), "TMPDIR": str(directory), **(variables or {})}
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(running_worker("llm", SERVICE, own, within=START_SECONDS))
        gateway = await stack.enter_async_context(running_gateway({"llm": worker.target}))
        await until_serving(gateway, "llm")
        yield VllmMesh(gateway, worker, directory)


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
