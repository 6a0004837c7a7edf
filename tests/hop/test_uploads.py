"""Uploads: what a worker refuses is not sent, arrives typed, and is offered to another worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from mesh.clients.chunking import AsyncChunkingServiceClient, ChunkFinish, ChunkingServiceClient
from mesh.endpoint import SERVING
from mesh.errors import MeshError, Overloaded, PayloadTooLarge, Unavailable
from mesh.pb.chunking.v1 import chunking_pb2 as pb
from mesh.pb.chunking.v1.chunking_pb2_grpc import ChunkingServiceServicer, add_ChunkingServiceServicer_to_server
from mesh.serving import Capability
from mesh.serving.calls import ServicerContext
from mesh.testing import serve, serve_in_thread

PIECES = 40
PIECE = b"x" * 100_000


class Taking(ChunkingServiceServicer):
    """Takes documents, or refuses each of them before or after so many frames of data."""

    def __init__(self, refusal: MeshError | None = None, *, after: int = 0) -> None:
        self.refusal = refusal
        self.after = after
        self.frames = 0
        self.calls = 0

    async def Chunk(
        self, request_iterator: AsyncIterator[pb.ChunkRequest], context: ServicerContext
    ) -> AsyncIterator[pb.ChunkResponse]:
        """Counts the document's bytes."""
        self.calls += 1
        size = 0
        async for frame in request_iterator:
            if frame.WhichOneof("frame") == "header":
                if self.refusal is not None and self.after == 0:
                    raise self.refusal
                await context.send_initial_metadata(())
                continue
            self.frames += 1
            size += len(frame.data)
            if self.refusal is not None and self.frames >= self.after:
                raise self.refusal
        yield pb.ChunkResponse(finish=pb.ChunkFinish(document=pb.Document(size_bytes=size)))

    def capability(self) -> Capability:
        """Ready at once."""

        async def ready() -> None:
            """Nothing to load."""

        return Capability(
            service="chunking.v1.ChunkingService",
            register=lambda server: add_ChunkingServiceServicer_to_server(self, server),
            start=ready,
        )


async def document() -> AsyncIterator[bytes]:
    """Four megabytes."""
    for _ in range(PIECES):
        yield PIECE


async def size_of(client: AsyncChunkingServiceClient) -> int:
    """Upload the document; returns how many bytes arrived."""
    async for event in client.chunk(document()):
        if isinstance(event, ChunkFinish):
            return event.document.size_bytes
    raise AssertionError("no finish")


async def test_a_refused_upload_arrives_typed_and_is_not_sent() -> None:
    """Every time, however large it is: with data under way, gRPC's core would report a bug of its own."""
    refusing = Taking(Overloaded("full", reason="QUEUE_FULL", retry_after=2.0))
    async with serve([refusing.capability()]) as running, AsyncChunkingServiceClient(running.target) as client:
        for _ in range(50):
            with pytest.raises(Overloaded) as caught:
                await size_of(client)
            assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 2.0)
    assert (refusing.calls, refusing.frames) == (50, 0)


@pytest.mark.parametrize(
    "refusal", [Overloaded("full", retry_after=2.0), Unavailable("draining", reason="DRAINING", retry_after=1.0)]
)
async def test_an_upload_that_one_worker_refuses_goes_to_another(refusal: MeshError) -> None:
    """Nothing of it was sent, so the whole of it still can be."""
    refusing, taking = Taking(refusal), Taking()
    async with AsyncExitStack() as stack:
        targets = [(await stack.enter_async_context(serve([each.capability()]))).target for each in (refusing, taking)]
        client = await stack.enter_async_context(AsyncChunkingServiceClient(",".join(targets)))
        while not all(each.health == SERVING for each in client.hop.status().endpoints):
            await asyncio.sleep(0.01)
        assert [await size_of(client) for _ in range(4)] == [PIECES * len(PIECE)] * 4
    assert refusing.calls >= 1
    assert (refusing.frames, taking.calls) == (0, 4)


async def test_an_upload_refused_halfway_is_not_begun_anew() -> None:
    """Its first half is gone; the error is typed, the worker's own or that the request was ended."""
    refusing, taking = Taking(PayloadTooLarge("too large"), after=10), Taking()
    async with AsyncExitStack() as stack:
        targets = [(await stack.enter_async_context(serve([each.capability()]))).target for each in (refusing, taking)]
        client = await stack.enter_async_context(AsyncChunkingServiceClient(targets[0]))
        with pytest.raises((PayloadTooLarge, Unavailable)):
            await size_of(client)
    assert taking.calls == 0


async def test_an_error_of_the_callers_own_document_comes_back_as_itself() -> None:
    """And nothing is left under way."""

    async def broken() -> AsyncIterator[bytes]:
        yield PIECE
        raise LookupError("my own")

    taking = Taking()
    async with serve([taking.capability()]) as running, AsyncChunkingServiceClient(running.target) as client:
        with pytest.raises(LookupError, match="my own"):
            async for _ in client.chunk(broken()):
                pass
        assert client.hop.status().in_flight == 0
        assert await size_of(client) == PIECES * len(PIECE)


def test_the_sync_client_does_the_same() -> None:
    """A refusal is typed and nothing is sent; a document that is taken arrives whole."""
    refusing = Taking(Overloaded("full", retry_after=2.0))
    with serve_in_thread([refusing.capability()]) as target, ChunkingServiceClient(target) as client:
        for _ in range(20):
            with pytest.raises(Overloaded):
                list(client.chunk(PIECE * PIECES))
        assert refusing.frames == 0
        refusing.refusal = None
        *_, finish = client.chunk(PIECE * PIECES)
        assert isinstance(finish, ChunkFinish)
        assert finish.document.size_bytes == PIECES * len(PIECE)
