"""What the gateway asks of the workers, as Protocols: a cache, a fallback or a fake fits as well."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mesh.clients.chunking import ChunkEvent, ChunkingInfo, ChunkOptions
from mesh.clients.embedding import EmbeddingInfo, Embeddings, EmbedInputs, EmbedOptions
from mesh.clients.gpu import GpuInfo, GpuStatus
from mesh.clients.llm import LLMInfo
from mesh.clients.reranking import RerankingInfo, RerankOptions, Scores
from mesh.context import Priority
from mesh.deadline import Deadline
from mesh.generation import Answer, Event, Generation, TokenCount
from mesh.hop import HopStatus


class PeerHop(Protocol):
    """The way to a worker, as far as the gateway asks about it: `mesh.hop.Hop`."""

    def status(self) -> HopStatus:
        """The hop now."""

    def require_room(self, priority: Priority = Priority.INTERACTIVE) -> None:
        """Raise Overloaded, CircuitOpen or Unavailable where a call now would be refused here anyway."""

    def times_since(self, mark: int) -> tuple[int, Sequence[float]]:
        """How long the successful calls after the first ``mark`` took, in seconds, and the mark for the next time."""

    def servers(self) -> Hashable:
        """Who serves now; changes whenever one comes, goes or was started anew."""


class Peer(Protocol):
    """What all peers have in common. Their methods raise MeshError and nothing else."""

    @property
    def hop(self) -> PeerHop:
        """The way to the worker."""

    def start(self) -> None:
        """Connect and probe."""

    async def close(self) -> None:
        """End the probe and every call."""


class Embedder(Peer, Protocol):
    """Turns texts into vectors."""

    async def embed(
        self, inputs: EmbedInputs, options: EmbedOptions | None = None, *, deadline: Deadline | None = None
    ) -> Embeddings:
        """The vectors of ``inputs``."""

    async def info(self, *, deadline: Deadline | None = None) -> EmbeddingInfo:
        """What is served."""


class Reranker(Peer, Protocol):
    """Scores documents against a query."""

    async def score(
        self,
        query: str,
        documents: Sequence[str],
        options: RerankOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> Scores:
        """One score per document, in their order."""

    async def info(self, *, deadline: Deadline | None = None) -> RerankingInfo:
        """What is served."""


class Chunker(Peer, Protocol):
    """Cuts documents."""

    def chunk(
        self,
        document: bytes | AsyncIterable[bytes],
        options: ChunkOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> AsyncIterator[ChunkEvent]:
        """Chunks in reading order, and a finish."""

    async def info(self, *, deadline: Deadline | None = None) -> ChunkingInfo:
        """What is offered."""


class GpuReader(Peer, Protocol):
    """Tells the state of the GPUs."""

    async def get_gpu_status(self, *, deadline: Deadline | None = None) -> GpuStatus:
        """The state now."""

    def watch_gpu_status(
        self, *, interval_seconds: float = 1.0, deadline: Deadline | None = None
    ) -> AsyncIterator[GpuStatus]:
        """The state again and again."""

    async def info(self, *, deadline: Deadline | None = None) -> GpuInfo:
        """What reads the GPUs."""


class Writer(Peer, Protocol):
    """Writes text."""

    def generate(self, request: Generation, *, deadline: Deadline | None = None) -> AsyncIterator[Event]:
        """A header, pieces, and a finish."""

    async def complete(self, request: Generation, *, deadline: Deadline | None = None) -> Answer:
        """The whole answer."""

    async def count_tokens(self, request: Generation, *, deadline: Deadline | None = None) -> TokenCount:
        """What the request's prompt takes of the context."""

    async def info(self, *, deadline: Deadline | None = None) -> LLMInfo:
        """What is served."""


@dataclass(frozen=True, slots=True)
class Peers:
    """One peer per capability.

    Attributes:
        writer: who writes where nobody in particular is asked for.
        writers: who writes as one model, by its name; ``writer`` may be one of them.
    """

    embedder: Embedder
    reranker: Reranker
    chunker: Chunker
    gpu: GpuReader
    writer: Writer
    writers: Mapping[str, Writer] = field(default_factory=dict)

    def all(self) -> tuple[Peer, ...]:
        """Each of them, once."""
        return (self.embedder, self.reranker, self.chunker, self.gpu, *self.all_writers())

    def all_writers(self) -> tuple[Writer, ...]:
        """Each writer once, the one for everybody first."""
        return (self.writer, *(each for each in self.writers.values() if each is not self.writer))

    def start(self) -> None:
        """Connect to all of them. One that is down does not matter: the hops come back by themselves."""
        for peer in self.all():
            peer.start()

    async def close(self) -> None:
        """Leave all of them."""
        for peer in self.all():
            await peer.close()
