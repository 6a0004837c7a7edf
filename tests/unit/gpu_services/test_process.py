"""The worker as a process: told to end, it finishes what it has begun and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.clients.chunking import AsyncChunkingServiceClient, Chunk, ChunkEvent, ChunkFinish, ChunkOptions
from mesh.errors import Unavailable

pytest.importorskip("docling", reason="the chunking worker's environment has docling")

pytestmark = pytest.mark.workers_env

_PATIENCE_SECONDS = 60.0
_CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True)
class _Worker:
    process: asyncio.subprocess.Process
    target: str

    def children(self) -> set[int]:
        """The processes that it has started and that live."""
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return {pid for pid in pids if _state_and_parent(pid)[1] == self.process.pid and _alive(pid)}


def _state_and_parent(pid: int) -> tuple[str, int]:
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return state, int(parent)


def _alive(pid: int) -> bool:
    return _state_and_parent(pid)[0] not in "XZ"


@asynccontextmanager
async def _worker(spool: Path, **variables: str) -> AsyncIterator[_Worker]:
    """A worker that listens, with a folder of its own for uploads."""
    own = {
        "GPU_SERVICES_HOST": "127.0.0.1",
        "GPU_SERVICES_PORT": "0",
        "GPU_SERVICES_METRICS_PORT": "0",
        "GPU_SERVICES_PDF_PIPELINE": "native",
        "GPU_SERVICES_SPOOL_PATH": str(spool),
        "GPU_SERVICES_DRAIN_NOTICE_SECONDS": "0",
        "GPU_SERVICES_DRAIN_GRACE_SECONDS": "30",
        "GPU_SERVICES_RESERVED_CHILDREN": "0",
        **variables,
    }
    written = spool.parent / "worker.log"
    with written.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gpu_services", cwd=_CHECKOUT, env={**os.environ, **own}, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (found := re.search(r"127\.0\.0\.1:(\d+)", written.read_text(errors="replace"))) is None:
                assert process.returncode is None, written.read_text(errors="replace")
                await asyncio.sleep(0.05)
        yield _Worker(process, f"127.0.0.1:{found[1]}")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _until_it_chunks(client: AsyncChunkingServiceClient) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            with suppress(Unavailable):
                async for _ in client.chunk(b"words", ChunkOptions(filename="a.txt")):
                    pass
                return
            await asyncio.sleep(0.2)


@pytest.fixture
def pdf(real_pdf: Path) -> bytes:
    """The real document's bytes."""
    return real_pdf.read_bytes()


@pytest.mark.parametrize("documents_per_child", ["32", "1"], ids=["one child", "and its successor that starts"])
async def test_told_to_end_it_finishes_its_document_and_leaves_no_process(
    tmp_path: Path, pdf: bytes, documents_per_child: str
) -> None:
    """SIGTERM in the middle of a document: every chunk and the finish arrive, it exits with 0, its children end."""
    spool = tmp_path / "spool"
    spool.mkdir()
    variables = {"GPU_SERVICES_DOCUMENTS_PER_CHILD": documents_per_child, "GPU_SERVICES_WINDOW_PAGES": "1"}
    async with _worker(spool, **variables) as worker, AsyncChunkingServiceClient(worker.target) as client:
        await _until_it_chunks(client)
        events: list[ChunkEvent] = []
        children = set[int]()
        async for event in client.chunk(pdf, ChunkOptions(filename="spec.pdf")):
            if not events:
                children = worker.children()
                worker.process.send_signal(signal.SIGTERM)
            events.append(event)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            code = await worker.process.wait()
    finish = events[-1]
    assert isinstance(finish, ChunkFinish)
    assert finish.document.pages == 17
    assert finish.usage.chunks == sum(isinstance(event, Chunk) for event in events)
    assert code == 0
    assert len(children) == (1 if documents_per_child == "32" else 2)
    async with asyncio.timeout(5):
        while any(map(_alive, children)):
            await asyncio.sleep(0.05)
    assert os.listdir(spool) == []
