"""The chunking worker's client: a document in, its chunks out as pages are done."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from mesh.clients.base import AsyncClient, SyncClient, whole_characters
from mesh.deadline import Deadline
from mesh.errors import Unavailable
from mesh.outgoing import Outgoing, taken
from mesh.pb.chunking.v1 import chunking_pb2 as pb
from mesh.pb.chunking.v1.chunking_pb2_grpc import ChunkingServiceStub
from mesh.transport import as_async

FRAME_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentHeader:
    """What a document is: its file name and type; either may be empty where the other, or the bytes, tell."""

    filename: str = ""
    media_type: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOptions:
    """What a document is and how to cut it.

    Attributes:
        filename: its ending names the type when ``media_type`` does not.
        media_type: for example application/pdf.
        chunker: docling-hybrid (the default) or docling-hierarchical.
        max_tokens: longest chunk; None means what the tokenizer's model reads.
        tokenizer: a served embedding model whose tokens are counted; empty means the default one.
        size_bytes: size of the document where it is known, so that too large a one is refused before it is sent.
    """

    filename: str = ""
    media_type: str = ""
    chunker: str = ""
    max_tokens: int | None = None
    tokenizer: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class BoundingBox:
    """A rectangle on a page (from 1), in points of 1/72 inch from the page's top left corner."""

    page: int
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a document; see chunking.v1.Chunk."""

    index: int
    text: str
    headings: tuple[str, ...]
    pages: tuple[int, ...]
    tokens: int
    bbox: tuple[BoundingBox, ...]
    contextualized_text: str


@dataclass(frozen=True, slots=True)
class ChunkProgress:
    """Pages that are done; ``pages_total`` is 0 while it is not known."""

    pages_done: int
    pages_total: int


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """What the document turned out to be."""

    filename: str
    media_type: str
    pages: int
    title: str
    sha256: str
    size_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChunkUsage:
    """What came out."""

    chunks: int
    tokens: int
    characters: int


@dataclass(frozen=True, slots=True)
class ChunkTimings:
    """Where the time went in the worker, in microseconds."""

    total_us: int
    queue_us: int
    conversion_us: int
    chunking_us: int
    first_chunk_us: int


@dataclass(frozen=True, slots=True)
class ChunkFinish:
    """The end of a whole stream."""

    document: DocumentInfo
    usage: ChunkUsage
    timings: ChunkTimings


ChunkEvent = Chunk | ChunkProgress | ChunkFinish


@dataclass(frozen=True, slots=True)
class Chunker:
    """A way to cut documents."""

    name: str
    aliases: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class ChunkingLimits:
    """What one document may be and take."""

    max_document_bytes: int
    max_pages: int
    max_unpacked_bytes: int
    max_seconds: int
    max_memory_bytes: int
    max_frame_bytes: int
    max_concurrent_documents: int
    max_queued_documents: int


@dataclass(frozen=True, slots=True)
class ChunkingInfo:
    """What the worker offers."""

    chunkers: tuple[Chunker, ...]
    media_types: tuple[str, ...]
    pdf_pipeline: str
    tokenizers: tuple[str, ...]
    limits: ChunkingLimits
    version: str
    docling_version: str


class AsyncChunkingServiceClient(AsyncClient):
    """Cuts documents into chunks, on an event loop."""

    hop_name = "chunking"
    service = "chunking.v1.ChunkingService"
    stub_class = ChunkingServiceStub
    # An upload cannot be replayed from the middle, so only Info is sent again by the core.
    idempotent_methods = ("Info",)

    async def chunk(
        self,
        document: bytes | AsyncIterable[bytes],
        options: ChunkOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> AsyncGenerator[ChunkEvent, None]:
        """Chunks in reading order, progress between them, and one ChunkFinish at the end.

        Raises:
            MeshError: also Unavailable when the worker's stream ends without its finish: a broken stream is never
                taken for a whole one.
        """
        options = options or ChunkOptions()
        with whole_characters():
            header = pb.ChunkHeader(
                filename=options.filename,
                media_type=options.media_type,
                chunker=options.chunker,
                max_tokens=options.max_tokens,
                tokenizer=options.tokenizer,
                size_bytes=options.size_bytes,
            )
        frames = _frames(lambda data: pb.ChunkRequest(data=data), document)
        upload = Outgoing(frames, header=pb.ChunkRequest(header=header))
        finish: ChunkFinish | None = None
        # Read to the end also after the finish: a stream that is left early counts as cancelled, not as answered.
        async with aclosing(self.hop.stream(self._stub.Chunk, upload, deadline=deadline)) as replies:
            async for reply in replies:
                event = _event_from_wire(reply)
                if isinstance(event, ChunkFinish):
                    finish = event
                else:
                    yield event
        if finish is None:
            raise _broken(self.hop_name)
        yield finish

    async def convert(
        self,
        document: bytes | AsyncIterable[bytes],
        header: DocumentHeader | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Docling's own document as JSON bytes, piece by piece. Raises MeshError, also when the stream is broken."""
        header = header or DocumentHeader()
        with whole_characters():
            first = pb.ConvertHeader(
                filename=header.filename, media_type=header.media_type, size_bytes=header.size_bytes
            )
        frames = _frames(lambda data: pb.ConvertRequest(data=data), document)
        upload = Outgoing(frames, header=pb.ConvertRequest(header=first))
        finished = False
        async with aclosing(self.hop.stream(self._stub.Convert, upload, deadline=deadline)) as replies:
            async for reply in replies:
                if reply.WhichOneof("frame") == "finish":
                    finished = True
                else:
                    yield reply.data
        if not finished:
            raise _broken(self.hop_name)

    async def info(self, *, deadline: Deadline | None = None) -> ChunkingInfo:
        """What the worker offers. Raises MeshError."""
        reply = await self.hop.call(self._stub.Info, pb.InfoRequest(), deadline=deadline, evidence=False)
        limits = reply.limits
        return ChunkingInfo(
            chunkers=tuple(Chunker(each.name, tuple(each.aliases), each.description) for each in reply.chunkers),
            media_types=tuple(reply.media_types),
            pdf_pipeline=reply.pdf_pipeline,
            tokenizers=tuple(reply.tokenizers),
            limits=ChunkingLimits(**{field.name: getattr(limits, field.name) for field in limits.DESCRIPTOR.fields}),
            version=reply.version,
            docling_version=reply.docling_version,
        )


class ChunkingServiceClient(SyncClient[AsyncChunkingServiceClient]):
    """Cuts documents into chunks, blocking.

    >>> client = ChunkingServiceClient("127.0.0.1:50053")  # doctest: +SKIP
    >>> for event in client.chunk(open("report.pdf", "rb"), ChunkOptions(filename="report.pdf")):  # doctest: +SKIP
    ...     print(event)
    """

    async_class = AsyncChunkingServiceClient

    def chunk(
        self,
        document: bytes | Iterable[bytes],
        options: ChunkOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> Iterator[ChunkEvent]:
        """Chunks in reading order, progress between them, and one ChunkFinish at the end. Raises MeshError."""
        return self._iterate(self._client.chunk(_readable(document), options, deadline=deadline))

    def convert(
        self,
        document: bytes | Iterable[bytes],
        header: DocumentHeader | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> Iterator[bytes]:
        """Docling's own document as JSON bytes, piece by piece. Raises MeshError."""
        return self._iterate(self._client.convert(_readable(document), header, deadline=deadline))

    def info(self, *, deadline: Deadline | None = None) -> ChunkingInfo:
        """What the worker offers. Raises MeshError."""
        return self._run(self._client.info(deadline=deadline))


def _readable(document: bytes | Iterable[bytes]) -> bytes | AsyncIterable[bytes]:
    return document if isinstance(document, bytes) else as_async(document)


async def _frames(frame: Callable[[bytes], Any], document: bytes | AsyncIterable[bytes]) -> AsyncGenerator[Any, None]:
    """The document in frames that fit: a piece of any size is cut, so that no message is too large."""
    pieces = as_async([document]) if isinstance(document, bytes) else document
    async with taken(pieces) as opened:
        async for piece in opened:
            for start in range(0, len(piece), FRAME_BYTES):
                yield frame(piece[start : start + FRAME_BYTES])


def _event_from_wire(reply: pb.ChunkResponse) -> ChunkEvent:
    kind = reply.WhichOneof("frame")
    if kind == "chunk":
        chunk = reply.chunk
        return Chunk(
            index=chunk.index,
            text=chunk.text,
            headings=tuple(chunk.headings),
            pages=tuple(chunk.pages),
            tokens=chunk.tokens,
            bbox=tuple(BoundingBox(b.page, b.left, b.top, b.right, b.bottom) for b in chunk.bbox),
            contextualized_text=chunk.contextualized_text,
        )
    if kind == "progress":
        return ChunkProgress(reply.progress.pages_done, reply.progress.pages_total)
    document, usage, timings = reply.finish.document, reply.finish.usage, reply.finish.timings
    return ChunkFinish(
        document=DocumentInfo(
            filename=document.filename,
            media_type=document.media_type,
            pages=document.pages,
            title=document.title,
            sha256=document.sha256,
            size_bytes=document.size_bytes,
            warnings=tuple(document.warnings),
        ),
        usage=ChunkUsage(usage.chunks, usage.tokens, usage.characters),
        timings=ChunkTimings(
            timings.total_us, timings.queue_us, timings.conversion_us, timings.chunking_us, timings.first_chunk_us
        ),
    )


def _broken(hop: str) -> Unavailable:
    return Unavailable(
        "The worker's answer ended before it was whole. Send the document again.", reason="BROKEN_STREAM", hop=hop
    )
