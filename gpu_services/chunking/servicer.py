"""chunking.v1.ChunkingService: between the wire and `ChunkingService`, and nothing else."""

# ruff: noqa: ARG002 - gRPC calls every method with a request and a context
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TypeVar

import grpc.aio

from gpu_services.chunking.events import Progress
from gpu_services.chunking.service import (
    CHUNKERS,
    MAX_FRAME_BYTES,
    Answer,
    ChunkingService,
    Done,
    Header,
    Job,
    media_types,
)
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.docling.chunks import Chunk
from mesh.errors import InvalidRequest
from mesh.pb.chunking.v1 import chunking_pb2 as pb
from mesh.pb.chunking.v1 import chunking_pb2_grpc
from mesh.serving import call_context, deadline_of
from mesh.serving.calls import ServicerContext
from mesh.version import VERSION

NAME = "chunking.v1.ChunkingService"
Request = TypeVar("Request", pb.ChunkRequest, pb.ConvertRequest)


class ChunkingServicer(chunking_pb2_grpc.ChunkingServiceServicer):
    """Serves documents. ``default_seconds`` is the deadline of a call that came without one."""

    def __init__(self, service: ChunkingService, *, default_seconds: float) -> None:
        self._service = service
        self._default_seconds = default_seconds

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to a server."""
        chunking_pb2_grpc.add_ChunkingServiceServicer_to_server(self, server)

    async def Chunk(
        self, request_iterator: AsyncIterator[pb.ChunkRequest], context: ServicerContext
    ) -> AsyncIterator[pb.ChunkResponse]:
        """Upload, then chunks as pages are done."""
        first = await _header_of(request_iterator)
        header = first.header
        wanted = Header(
            filename=header.filename,
            media_type=header.media_type,
            size_bytes=header.size_bytes if header.HasField("size_bytes") else None,
            chunker=header.chunker,
            max_tokens=header.max_tokens if header.HasField("max_tokens") else None,
            tokenizer=header.tokenizer,
        )
        async with self._service.admitted(wanted, *self._caller(context)) as job:
            await _say_admitted(context)
            await _upload(job, request_iterator, context)
            async with aclosing(job.answers()) as answers:
                async for answer in answers:
                    yield _chunk_response(answer)

    async def Convert(
        self, request_iterator: AsyncIterator[pb.ConvertRequest], context: ServicerContext
    ) -> AsyncIterator[pb.ConvertResponse]:
        """Upload, then docling's JSON in frames."""
        first = await _header_of(request_iterator)
        header = first.header
        wanted = Header(
            filename=header.filename,
            media_type=header.media_type,
            size_bytes=header.size_bytes if header.HasField("size_bytes") else None,
            convert_only=True,
        )
        async with self._service.admitted(wanted, *self._caller(context)) as job:
            await _say_admitted(context)
            await _upload(job, request_iterator, context)
            async with aclosing(job.answers()) as answers:
                done = [answer async for answer in answers if isinstance(answer, Done)]
            async with aclosing(job.output()) as output:
                async for data in output:
                    yield pb.ConvertResponse(data=data)
            yield pb.ConvertResponse(finish=_convert_finish(done[-1]))

    async def Info(self, request: pb.InfoRequest, context: ServicerContext) -> pb.InfoResponse:
        """What is offered."""
        service, config = self._service, self._service.config
        return pb.InfoResponse(
            chunkers=[
                pb.Chunker(name=offer.name, aliases=offer.aliases, description=offer.description) for offer in CHUNKERS
            ],
            media_types=media_types(),
            pdf_pipeline=f"docling-{service.pdf_pipeline}",
            tokenizers=[vocabulary.name for vocabulary in service.vocabularies.offered],
            limits=pb.Limits(
                max_document_bytes=config.max_document_bytes,
                max_pages=config.limits.max_pages,
                max_unpacked_bytes=config.limits.max_unpacked_bytes,
                max_seconds=int(config.limits.max_seconds),
                max_memory_bytes=config.limits.max_memory_bytes,
                max_frame_bytes=MAX_FRAME_BYTES,
                max_concurrent_documents=config.pool.children,
                max_queued_documents=config.pool.max_queued,
            ),
            version=VERSION,
            docling_version=service.docling_version,
        )

    def _caller(self, context: ServicerContext) -> tuple[Deadline, Priority]:
        return deadline_of(context, self._default_seconds), call_context(context).priority


async def _header_of(frames: AsyncIterator[Request]) -> Request:
    async for frame in frames:
        if frame.WhichOneof("frame") == "header":
            return frame
        break
    raise InvalidRequest("The first frame must be the document's header.", param="header")


async def _say_admitted(context: ServicerContext) -> None:
    """Send the response's headers before the document is here: a client may wait for them, and upload nothing in vain.

    A refusal reaches a client that waits for sure. One that is still sending may lose it: gRPC then fails the sending
    first, as INTERNAL.
    """
    await context.send_initial_metadata(())


async def _upload(
    job: Job, frames: AsyncIterator[pb.ChunkRequest | pb.ConvertRequest], context: ServicerContext
) -> None:
    """Take the document's frames. A client that goes away ends the child that works for it."""

    def ended(_: object) -> None:
        job.abandon()

    context.add_done_callback(ended)  # type: ignore[arg-type] # the stubs name the parameter
    async for frame in frames:
        if frame.WhichOneof("frame") != "data":
            raise InvalidRequest("Only the first frame is a header; all others carry the document's bytes.")
        await job.write(frame.data)


def _chunk_response(answer: Answer) -> pb.ChunkResponse:
    if isinstance(answer, Chunk):
        return pb.ChunkResponse(
            chunk=pb.Chunk(
                index=answer.index,
                text=answer.text,
                headings=answer.headings,
                pages=answer.pages,
                tokens=answer.tokens,
                bbox=[
                    pb.BoundingBox(page=box.page, left=box.left, top=box.top, right=box.right, bottom=box.bottom)
                    for box in answer.boxes
                ],
                contextualized_text=answer.contextualized_text,
            )
        )
    if isinstance(answer, Progress):
        return pb.ChunkResponse(progress=pb.ChunkProgress(pages_done=answer.pages_done, pages_total=answer.pages_total))
    found = answer.found
    return pb.ChunkResponse(
        finish=pb.ChunkFinish(
            document=_document(answer),
            usage=pb.Usage(chunks=found.chunks, tokens=found.tokens, characters=found.characters),
            timings=_timings(answer),
        )
    )


def _convert_finish(done: Done) -> pb.ConvertFinish:
    return pb.ConvertFinish(document=_document(done), timings=_timings(done), schema_version=done.found.schema_version)


def _document(done: Done) -> pb.Document:
    found = done.found
    return pb.Document(
        filename=done.filename,
        media_type=found.media_type,
        pages=found.pages,
        title=found.title,
        sha256=done.sha256,
        size_bytes=done.size_bytes,
        warnings=found.warnings,
    )


def _timings(done: Done) -> pb.Timings:
    return pb.Timings(
        total_us=done.total_us,
        queue_us=done.queue_us,
        conversion_us=done.found.conversion_us,
        chunking_us=done.found.chunking_us,
        first_chunk_us=done.first_chunk_us,
    )
