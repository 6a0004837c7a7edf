"""Stand-ins for the workers.

Every stand-in answers from its input alone, remembers what it was asked in ``calls``, and raises ``error`` where one is
set. None of them needs a socket.
"""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.peers import Peers
from mesh import generation
from mesh.clients.chunking import (
    BoundingBox,
    Chunk,
    Chunker,
    ChunkEvent,
    ChunkFinish,
    ChunkingInfo,
    ChunkingLimits,
    ChunkOptions,
    ChunkProgress,
    ChunkTimings,
    ChunkUsage,
    DocumentInfo,
)
from mesh.clients.embedding import (
    EmbeddingInfo,
    EmbeddingLimits,
    EmbeddingModel,
    Embeddings,
    EmbedInputs,
    EmbedOptions,
    Timings,
    TokenInputs,
    Usage,
)
from mesh.clients.gpu import GpuInfo, GpuStatus
from mesh.clients.llm import LLMInfo, LLMLimits, LLMModel, gathered
from mesh.clients.reranking import RerankingInfo, RerankingLimits, RerankingModel, RerankOptions, Scores
from mesh.context import CallContext, Priority, current_call
from mesh.deadline import Deadline
from mesh.endpoint import EndpointHealth
from mesh.errors import InvalidRequest, MeshError, NotFound
from mesh.generation import (
    Answer,
    Ending,
    Event,
    Finish,
    FinishReason,
    Generation,
    Header,
    Piece,
    TokenCount,
)
from mesh.hop import HopStatus
from mesh.resilience import BreakerSnapshot, BreakerState

EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
RERANKING_MODEL = "maxsim/all-MiniLM-L6-v2"
CHAT_MODEL = "mesh-demo"
OWN_PROMPT = "s2p"
"""A prompt that the embedding model has beside the usual ones."""
DIMENSIONS = 4
_CLOSED = BreakerSnapshot(BreakerState.CLOSED, 1.0, 0, 0.0, 0, None, "")
_TIMINGS = Timings(total_us=3500, tokenization_us=500, queue_us=1000, inference_us=2000, batch_size=2)


@dataclass(slots=True)
class FakeHop:
    """A hop whose health and room a test decides."""

    name: str
    health: str = "SERVING"
    reason: str = ""
    refusal: MeshError | None = None
    breaker: BreakerSnapshot = _CLOSED
    ejected: bool = False
    asked_for: list[Priority] = field(default_factory=list)
    serving_since: float = 1.0
    times: list[float] = field(default_factory=list)
    """How long its calls took, in seconds."""

    def require_room(self, priority: Priority = Priority.INTERACTIVE) -> None:
        """Raise ``refusal`` where one is set."""
        self.asked_for.append(priority)
        if self.refusal is not None:
            raise self.refusal

    def times_since(self, mark: int) -> tuple[int, Sequence[float]]:
        """The ``times`` after the first ``mark``."""
        return len(self.times), self.times[mark:]

    def servers(self) -> frozenset[tuple[str, float]]:
        """One address, since ``serving_since``."""
        return frozenset({("127.0.0.1:1", self.serving_since)})

    def status(self) -> HopStatus:
        """The hop now."""
        return HopStatus(
            name=self.name,
            service=f"{self.name}.v1.Service",
            endpoints=(
                EndpointHealth(
                    "127.0.0.1:1", health=self.health, reason=self.reason, in_flight=3, ejected=self.ejected
                ),
            ),
            breaker=self.breaker,
            in_flight=3,
            limit=64,
            calls=0,
            retries=2,
            p50_seconds=0.004,
            p99_seconds=None,
        )


@dataclass(frozen=True, slots=True)
class Call:
    """What a stand-in was asked: its arguments, the time it was given, and who asked."""

    arguments: tuple[Any, ...]
    seconds: float
    context: CallContext | None


@dataclass
class _Fake:
    """What all stand-ins share."""

    hop: FakeHop
    error: MeshError | None = None
    calls: list[Call] = field(default_factory=list)
    is_open: bool = False

    def start(self) -> None:
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    def asked(self, deadline: Deadline | None, *arguments: Any) -> None:
        """Remember a call, and fail it where an error is set."""
        self.calls.append(Call(arguments, deadline.remaining() if deadline else -1.0, current_call.get()))
        if self.error is not None:
            raise self.error

    def known(self, model: str, names: set[str]) -> None:
        """Fail as a worker does for a name that it does not know."""
        if model not in names:
            raise NotFound("No such model.", param="model", hop=self.hop.name)


class FakeEmbedder(_Fake):
    """A text's vector counts up from its length; ids' vector counts up from their sum."""

    fingerprint: str = "fake"

    async def embed(
        self, inputs: EmbedInputs, options: EmbedOptions | None = None, *, deadline: Deadline | None = None
    ) -> Embeddings:
        """Vectors of DIMENSIONS numbers, or of as many as are asked for."""
        options = options or EmbedOptions()
        self.asked(deadline, inputs, options)
        self.known(options.model, {"", EMBEDDING_MODEL, "all-MiniLM-L6-v2"})
        if options.prompt_name not in ("", OWN_PROMPT):
            raise InvalidRequest("No such prompt.", param="input_type", reason="UNKNOWN_PROMPT")
        firsts = [sum(ids) for ids in inputs.ids] if isinstance(inputs, TokenInputs) else [len(text) for text in inputs]
        dim = options.dimensions or DIMENSIONS
        values = array("f", [first + step / 8 for first in firsts for step in range(dim)])
        usage = Usage(tokens=sum(firsts), characters=0 if isinstance(inputs, TokenInputs) else sum(firsts))
        cut = tuple(position for position, first in enumerate(firsts) if first > 1000)
        return Embeddings(
            EMBEDDING_MODEL, len(firsts), dim, values.tobytes(), usage, _TIMINGS, cut, self.fingerprint, tuple(firsts)
        )

    async def info(self, *, deadline: Deadline | None = None) -> EmbeddingInfo:
        """One model."""
        self.asked(deadline)
        model = EmbeddingModel(
            EMBEDDING_MODEL, ("all-MiniLM-L6-v2",), "r1", "package", DIMENSIONS, 256, "onnxruntime", "float32", "cpu",
            1.0, 1.0, 100.0, "mean", (), self.fingerprint,
        )  # fmt: skip
        return EmbeddingInfo((model,), EmbeddingLimits(2048, 100_000, 16 << 20, 100_000), "0")


class FakeReranker(_Fake):
    """A document's score is the share of the query's words that it holds."""

    async def score(
        self,
        query: str,
        documents: Sequence[str],
        options: RerankOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> Scores:
        """One score per document."""
        options = options or RerankOptions()
        self.asked(deadline, query, tuple(documents), options)
        self.known(options.model, {"", RERANKING_MODEL, "maxsim"})
        words = set(query.split())
        scores = tuple(len(words & set(document.split())) / max(1, len(words)) for document in documents)
        if options.raw_scores:
            scores = tuple(score * 10 - 5 for score in scores)
        characters = len(query) + sum(map(len, documents))
        return Scores(RERANKING_MODEL, scores, Usage(characters, characters), _TIMINGS)

    async def info(self, *, deadline: Deadline | None = None) -> RerankingInfo:
        """One model."""
        self.asked(deadline)
        model = RerankingModel(
            RERANKING_MODEL, ("maxsim",), "r1", "package", "late-interaction", 256, "onnxruntime", "float32", "cpu",
            1.0, 1.0, 100.0,
        )  # fmt: skip
        return RerankingInfo((model,), RerankingLimits(1000, 100_000, 16 << 20, 100_000), "0")


class FakeChunker(_Fake):
    """Every line of the document is a chunk. ``received`` holds the sizes of the pieces that it came in."""

    received: list[int]

    async def chunk(
        self,
        document: bytes | AsyncIterable[bytes],
        options: ChunkOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> AsyncIterator[ChunkEvent]:
        """Chunks, one progress, and a finish."""
        options = options or ChunkOptions()
        self.asked(deadline, options)
        self.received = []
        data = b""
        pieces = _one(document) if isinstance(document, bytes) else document
        async for piece in pieces:
            self.received.append(len(piece))
            data += piece
        text = data.decode("utf-8", "replace")
        yield ChunkProgress(1, 1)
        lines = text.splitlines()
        for index, line in enumerate(lines):
            yield Chunk(
                index, line, ("Title",), (1,), len(line), (BoundingBox(1, 0.0, 1.0, 2.0, 3.0),), f"Title\n{line}"
            )
        yield ChunkFinish(
            DocumentInfo(options.filename, options.media_type, 1, "", "0" * 64, len(data), ()),
            ChunkUsage(len(lines), len(text), len(text)),
            ChunkTimings(4000, 1000, 2000, 1000, 3000),
        )

    async def info(self, *, deadline: Deadline | None = None) -> ChunkingInfo:
        """Two chunkers."""
        self.asked(deadline)
        limits = ChunkingLimits(1 << 28, 1000, 1 << 30, 300, 1 << 31, 1 << 20, 2, 8)
        chunkers = (Chunker("docling-hybrid", ("docling",), ""), Chunker("docling-hierarchical", (), ""))
        return ChunkingInfo(chunkers, ("text/plain",), "docling-native", (EMBEDDING_MODEL,), limits, "0", "2")


async def _one(document: bytes) -> AsyncIterator[bytes]:
    yield document


class FakeGpu(_Fake):
    """A machine without a GPU."""

    async def get_gpu_status(self, *, deadline: Deadline | None = None) -> GpuStatus:
        """No devices, and why."""
        self.asked(deadline)
        return GpuStatus(1_763_600_000_000, (), "", "", "No NVIDIA driver is installed on this machine.")

    async def watch_gpu_status(
        self, *, interval_seconds: float = 1.0, deadline: Deadline | None = None
    ) -> AsyncIterator[GpuStatus]:
        """Three readings, without a pause."""
        self.asked(deadline, interval_seconds)
        for _ in range(3):
            yield await self.get_gpu_status(deadline=deadline)

    async def info(self, *, deadline: Deadline | None = None) -> GpuInfo:
        """Nothing reads GPUs here."""
        self.asked(deadline)
        return GpuInfo("0", "none", "", 100, 3_600_000)


@dataclass
class FakeWriter(_Fake):
    """Writes ``pieces``, each after a turn of ``gate`` where one is set, then ends, or fails with ``break_with``.

    As a worker does, it says nothing at all before its first piece. ``endings`` are told as they stand.
    """

    pieces: tuple[str | Piece, ...] = ("Hel", "lo", "!")
    endings: tuple[Ending, ...] = (Ending(FinishReason.STOP),)
    model: str = CHAT_MODEL
    usage: generation.Usage | None = field(default_factory=lambda: generation.Usage(5, 3))
    break_with: MeshError | None = None
    break_after: int | None = None
    gate: asyncio.Semaphore | None = None
    left_early: bool = False
    closed: threading.Event = field(default_factory=threading.Event)

    async def generate(self, request: Generation, *, deadline: Deadline | None = None) -> AsyncIterator[Event]:
        """A header, the pieces, a finish; ``break_with`` in place of the finish, or of the piece ``break_after``."""
        self.asked(deadline, request)
        self.known(request.model, {"", self.model})
        self.left_early = True
        try:
            for position, piece in enumerate(self.pieces):
                # A real call gives way to the loop between two messages.
                await (self.gate.acquire() if self.gate is not None else asyncio.sleep(0))
                if self.break_with is not None and position == self.break_after:
                    raise self.break_with
                if position == 0:
                    yield Header(
                        self.model, 1_763_600_000, self.usage and generation.Usage(self.usage.prompt_tokens, 0)
                    )
                yield Piece(piece) if isinstance(piece, str) else piece
            if self.break_with is not None:
                raise self.break_with
            self.left_early = False
            yield Finish(self.endings, self.usage, generation.Timings(9000, 1000, 2000))
        finally:
            self.closed.set()

    async def complete(self, request: Generation, *, deadline: Deadline | None = None) -> Answer:
        """The pieces, joined."""
        return await gathered(self.generate(request, deadline=deadline))

    async def count_tokens(self, request: Generation, *, deadline: Deadline | None = None) -> TokenCount:
        """One token a word of all messages, and ten for each tool."""
        self.asked(deadline, request)
        self.known(request.model, {"", self.model})
        words = sum(len(message.content.split()) for message in request.messages)
        return TokenCount(self.model, words + 10 * len(request.tools), 256)

    async def info(self, *, deadline: Deadline | None = None) -> LLMInfo:
        """One model."""
        self.asked(deadline)
        model = LLMModel(self.model, (), "r1", "demo", 256, "A demo.")
        return LLMInfo((model,), LLMLimits(256, 1 << 20, 2, 8), "0", "fake", "0")


@dataclass(frozen=True, slots=True)
class FakePeers:
    """One stand-in per capability."""

    embedder: FakeEmbedder = field(default_factory=lambda: FakeEmbedder(FakeHop("embedding")))
    reranker: FakeReranker = field(default_factory=lambda: FakeReranker(FakeHop("reranking")))
    chunker: FakeChunker = field(default_factory=lambda: FakeChunker(FakeHop("chunking")))
    gpu: FakeGpu = field(default_factory=lambda: FakeGpu(FakeHop("gpu")))
    writer: FakeWriter = field(default_factory=lambda: FakeWriter(FakeHop("llm")))
    writers: dict[str, FakeWriter] = field(default_factory=dict)

    def as_peers(self) -> Peers:
        """As the gateway takes them; that this type-checks is what makes them fakes of the Protocols."""
        return Peers(self.embedder, self.reranker, self.chunker, self.gpu, self.writer, self.writers)

    def fail(self, error: MeshError | None) -> None:
        """Let every one of them fail with ``error``."""
        for fake in (self.embedder, self.reranker, self.chunker, self.gpu, self.writer):
            fake.error = error
