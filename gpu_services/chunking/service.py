"""What a request for chunks goes through: rules, admission, upload, a child process, and a finish that adds it up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gpu_services.chunking.artifacts import PdfPipeline, choose_pdf_pipeline
from gpu_services.chunking.child_process import Child
from gpu_services.chunking.events import ChildSetup, Event, Finished, Limits, Order, Progress, Refused
from gpu_services.chunking.kinds import DocumentKind, declared_kind
from gpu_services.chunking.pool import ChildPool, DocumentProcess, PoolLimits
from gpu_services.chunking.spool import Spool, check_size
from gpu_services.chunking.traces import Stages
from gpu_services.chunking.vocabulary import Vocabularies, locate
from gpu_services.chunking.warmup import small_pdf
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.docling.chunks import Chunk
from mesh.errors import DeadlineExceeded, Internal, InvalidRequest, MeshError, Overloaded, Unavailable

MAX_FRAME_BYTES = 1024 * 1024
_CANARY_SECONDS = 8.0
_MEMORY_BYTES = {"native": 2 * 1024**3, "layout": 8 * 1024**3}
"""Address space that a document gets where the settings do not say: torch alone maps several GiB."""


@dataclass(frozen=True, slots=True)
class ChunkerOffer:
    """A way to cut documents. ``merge_peers``: small neighbours under the same headings become one chunk."""

    name: str
    aliases: tuple[str, ...]
    description: str
    merge_peers: bool


CHUNKERS = (
    ChunkerOffer(
        "docling-hybrid",
        ("docling",),
        "Along the document's structure, small neighbours under the same headings put together up to max_tokens.",
        merge_peers=True,
    ),
    ChunkerOffer(
        "docling-hierarchical",
        (),
        "One chunk for every element of the document's structure, cut where it is longer than max_tokens.",
        merge_peers=False,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkingConfig:
    """What an operator decides; see `gpu_services.settings` for the meaning of each."""

    tokenizers: tuple[str, ...]
    tokenizer_aliases: Mapping[str, str]
    pdf_pipeline: Literal["auto", "native", "layout"]
    artifacts_path: str
    spool_path: str
    max_document_bytes: int
    limits: Limits
    pool: PoolLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the caller says about a document, and how it is to be cut."""

    filename: str = ""
    media_type: str = ""
    size_bytes: int | None = None
    chunker: str = ""
    max_tokens: int | None = None
    tokenizer: str = ""
    convert_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The end of a document: what the child found, and what is known here."""

    filename: str
    sha256: str
    size_bytes: int
    found: Finished
    total_us: int
    queue_us: int
    first_chunk_us: int


Answer = Chunk | Progress | Done


class ChunkingService:
    """Chunks documents in child processes.

    Args:
        start_child: starts a child with a setup; the real one but for tests.
    """

    def __init__(
        self, config: ChunkingConfig, start_child: Callable[[ChildSetup], Awaitable[DocumentProcess]] = Child.start
    ) -> None:
        self.config = config
        self._start_child = start_child
        self._pool: ChildPool | None = None
        self._vocabularies: Vocabularies | None = None
        self.pdf_pipeline: PdfPipeline = "native"

    @property
    def pool(self) -> ChildPool:
        """The children; raise Unavailable before the start."""
        if self._pool is None:
            raise Unavailable("Chunking is still starting; try again in a few seconds.", retry_after=2.0)
        return self._pool

    @property
    def vocabularies(self) -> Vocabularies:
        """The tokenizers; raise Unavailable before the start."""
        if self._vocabularies is None:
            raise Unavailable("Chunking is still starting; try again in a few seconds.", retry_after=2.0)
        return self._vocabularies

    @property
    def docling_version(self) -> str:
        """Version of the docling that the children run; empty before the start."""
        return self._pool.ready.docling_version if self._pool and self._pool.ready else ""

    async def start(self) -> None:
        """Find the tokenizers and warm the first child: it chunks a document before this returns.

        Where no child starts it returns too: ``unhealthy`` then says why, until one does.

        Raises:
            ModelUnusable: a tokenizer, or the layout model where it is asked for, is missing.
        """
        self.pdf_pipeline = choose_pdf_pipeline(self.config.pdf_pipeline, self.config.artifacts_path)
        memory = self.config.limits.max_memory_bytes or _MEMORY_BYTES[self.pdf_pipeline]
        config = self.config = replace(self.config, limits=replace(self.config.limits, max_memory_bytes=memory))
        offered = tuple([await locate(name) for name in config.tokenizers])
        self._vocabularies = Vocabularies(offered, config.tokenizer_aliases)
        setup = ChildSetup(
            pdf_pipeline=self.pdf_pipeline,
            artifacts_path=config.artifacts_path,
            tokenizer_path=str(self._vocabularies.default.tokenizer_path),
            max_memory_bytes=config.limits.max_memory_bytes,
            max_output_bytes=config.limits.max_unpacked_bytes,
        )
        # Known before it has started: what is still starting when the worker ends has to be stopped.
        self._pool = ChildPool(lambda: self._start_child(setup), config.pool)
        await self._pool.start()

    async def stop(self) -> None:
        """End the children."""
        if self._pool is not None:
            await self._pool.stop()

    def unhealthy(self) -> MeshError | None:
        """Why no document can be done for now; None while all is well."""
        return self._pool.unhealthy() if self._pool is not None else None

    async def canary(self) -> None:
        """Chunk a document of our own; raise Overloaded where real ones are at work, which proves more."""
        self.pool.arrange()
        if not self.pool.free:
            raise Overloaded("Documents are at work.")
        # As bulk work: an interactive document that comes meanwhile does not wait for it.
        waiting = Waiting(Deadline.after(_CANARY_SECONDS), Priority.BULK, check=True)
        async with self._admitted(Header(filename="canary.pdf"), waiting) as job:
            await job.write(small_pdf())
            async for _ in job.answers():
                pass

    @asynccontextmanager
    async def admitted(self, header: Header, deadline: Deadline, priority: Priority) -> AsyncIterator[Job]:
        """Check what the caller says, admit the document, and give the job that takes its bytes.

        Raises:
            InvalidRequest, PayloadTooLarge: what the header says cannot work; nothing was uploaded yet.
            Overloaded: too many are inside, or the wait is longer than the deadline; nothing was uploaded yet.
        """
        async with self._admitted(header, Waiting(deadline, priority)) as job:
            yield job

    @asynccontextmanager
    async def _admitted(self, header: Header, waiting: Waiting) -> AsyncIterator[Job]:
        order = self._order(header)
        with self.pool.place(waiting.deadline, waiting.priority):
            async with Spool(self.config.spool_path, max_bytes=self.config.max_document_bytes) as spool:
                job = Job(self.pool, spool, order, waiting)
                try:
                    yield job
                finally:
                    job.abandon()

    def _order(self, header: Header) -> Order:
        if header.size_bytes is not None:
            check_size(header.size_bytes, self.config.max_document_bytes)
        declared_kind(header.media_type, header.filename)
        vocabulary = self.vocabularies.find(header.tokenizer)
        return Order(
            document_path="",
            media_type=header.media_type,
            filename=Path(header.filename.replace("\\", "/")).name[:255],
            merge_peers=_chunker(header.chunker).merge_peers,
            max_tokens=vocabulary.budget(header.max_tokens),
            tokenizer_path=str(vocabulary.tokenizer_path),
            output_path="convert" if header.convert_only else "",
            limits=self.config.limits,
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """How long the caller waits, and in which lane; ``check`` where it is no caller but the worker itself."""

    deadline: Deadline
    priority: Priority
    check: bool = False


class Job:
    """One admitted document: write its bytes, then read its answers."""

    def __init__(self, pool: ChildPool, spool: Spool, order: Order, waiting: Waiting) -> None:
        self._pool = pool
        self._spool = spool
        self._order = order
        self._waiting = waiting
        self._started = time.perf_counter()
        self._child: DocumentProcess | None = None

    async def write(self, data: bytes) -> None:
        """The document's next bytes; raise PayloadTooLarge over the limit, InvalidRequest for too large a frame."""
        if len(data) > MAX_FRAME_BYTES:
            raise InvalidRequest(f"A frame has more than {MAX_FRAME_BYTES} bytes; send the document in smaller ones.")
        await self._spool.write(data)

    def abandon(self) -> None:
        """Nobody waits any more: end the child that works on it, if one does."""
        if self._child is not None:
            self._child.kill()

    async def answers(self) -> AsyncGenerator[Answer, None]:
        """Chunks and progress as pages are done, and Done as the last.

        Raises:
            MeshError: why the document cannot be done, or that time is up.
        """
        sha256 = self._spool.finish()
        order = self._placed_order()
        uploaded = time.perf_counter()
        deadline = self._waiting.deadline
        async with (
            Stages(self._started, uploaded) as stages,
            self._pool.child(deadline, self._waiting.priority, check=self._waiting.check) as child,
        ):
            self._child = child
            stages.begun = begun = time.perf_counter()
            seconds = min(order.limits.max_seconds, deadline.remaining())
            try:
                async with aclosing(child.events(order, seconds=seconds)) as events:
                    async for event in events:
                        if isinstance(event, Chunk | Progress):
                            if isinstance(event, Chunk) and not stages.first_chunk:
                                stages.first_chunk = time.perf_counter()
                            yield event
                        elif isinstance(event, Finished):
                            found = stages.found = event
                        else:
                            raise self._refusal(event)
            finally:
                # Also after a refusal: once it is given back it may work for somebody else, and is not ours to end.
                self._child = None
        yield Done(
            filename=order.filename,
            sha256=sha256,
            size_bytes=self._spool.size,
            found=found,
            total_us=_us(time.perf_counter() - self._started),
            queue_us=_us(begun - uploaded),
            first_chunk_us=_us(stages.first_chunk - uploaded) if stages.first_chunk else 0,
        )

    async def output(self) -> AsyncGenerator[bytes, None]:
        """After the answers of a conversion: docling's JSON in frames of at most 1 MiB."""
        with self._spool.output_path.open("rb") as file:
            while frame := await asyncio.to_thread(file.read, MAX_FRAME_BYTES):
                yield frame

    def _placed_order(self) -> Order:
        output = str(self._spool.output_path) if self._order.output_path else ""
        return replace(self._order, document_path=str(self._spool.path), output_path=output)

    def _refusal(self, event: Event) -> MeshError:
        if not isinstance(event, Refused):
            return Internal("The process that opened the document said something out of turn.")
        if event.error.reason == "DOCUMENT_TIMEOUT" and self._waiting.deadline.expired:
            return DeadlineExceeded(
                "The request's time was up before the document was done; allow more time or send less of it."
            )
        return event.error


def _chunker(name: str) -> ChunkerOffer:
    for offer in CHUNKERS:
        if not name or name == offer.name or name in offer.aliases:
            return offer
    raise InvalidRequest(
        f"There is no chunker of that name; offered: {', '.join(offer.name for offer in CHUNKERS)}.",
        reason="CHUNKER_UNKNOWN",
        param="chunker",
    )


def media_types() -> tuple[str, ...]:
    """The types of document that are read."""
    return tuple(kind.value for kind in DocumentKind)


def _us(seconds: float) -> int:
    return max(0, int(seconds * 1_000_000))
