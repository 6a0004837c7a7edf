"""The reranking worker's client: a query and documents in, one score per document out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.clients.base import AsyncClient, SyncClient, whole_characters
from mesh.clients.embedding import Timings, Truncation, Usage, timings_from_wire
from mesh.deadline import Deadline
from mesh.pb.reranking.v1 import reranking_pb2 as pb
from mesh.pb.reranking.v1.reranking_pb2_grpc import RerankingServiceStub


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """How to score.

    Attributes:
        model: a served model's name or alias; empty means the only one.
        max_tokens_per_document: read at most this many tokens of each document; None means all the model reads.
        truncation: what to do with over-long documents.
        raw_scores: the model's own scores, not scaled to [0, 1].
    """

    model: str = ""
    max_tokens_per_document: int | None = None
    truncation: Truncation = Truncation.END
    raw_scores: bool = False


@dataclass(frozen=True, slots=True)
class Scores:
    """One score per document, in the order of the documents; higher is better, in [0, 1] unless raw."""

    model: str
    scores: tuple[float, ...]
    usage: Usage
    timings: Timings
    truncated_documents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RerankingModel:
    """A served model; ``method`` is late-interaction, cross-encoder or generative."""

    name: str
    aliases: tuple[str, ...]
    revision: str
    source: str
    method: str
    max_input_tokens: int
    engine: str
    precision: str
    device: str
    fidelity_min_cosine: float
    fidelity_mean_cosine: float
    check_documents_per_second: float
    profile: str = ""
    instruction: str = ""


@dataclass(frozen=True, slots=True)
class RerankingLimits:
    """What one request may hold, and what may wait."""

    max_documents_per_request: int
    max_tokens_per_request: int
    max_request_bytes: int
    max_queued_tokens: int


@dataclass(frozen=True, slots=True)
class RerankingInfo:
    """What the worker serves."""

    models: tuple[RerankingModel, ...]
    limits: RerankingLimits
    version: str


class AsyncRerankingServiceClient(AsyncClient):
    """Scores documents by how well they answer a query, on an event loop."""

    hop_name = "reranking"
    service = "reranking.v1.RerankingService"
    stub_class = RerankingServiceStub
    idempotent_methods = ("Rerank", "Info")

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score in [0, 1] per document, in the order of the documents. Raises MeshError."""
        return list((await self.score(query, documents)).scores)

    async def score(
        self,
        query: str,
        documents: Sequence[str],
        options: RerankOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> Scores:
        """The scores with usage and timings. Raises MeshError."""
        options = options or RerankOptions()
        with whole_characters():
            request = pb.RerankRequest(
                model=options.model,
                query=query,
                documents=documents,
                max_tokens_per_document=options.max_tokens_per_document,
                truncation=f"TRUNCATION_{options.truncation.name}",
                raw_scores=options.raw_scores,
            )
        reply = await self.hop.call(self._stub.Rerank, request, deadline=deadline)
        return Scores(
            model=reply.model,
            scores=tuple(reply.scores),
            usage=Usage(reply.usage.tokens, reply.usage.characters),
            timings=timings_from_wire(reply.timings),
            truncated_documents=tuple(reply.truncated_documents),
        )

    async def info(self, *, deadline: Deadline | None = None) -> RerankingInfo:
        """What the worker serves. Raises MeshError."""
        reply = await self.hop.call(self._stub.Info, pb.InfoRequest(), deadline=deadline, evidence=False)
        return RerankingInfo(
            models=tuple(_model_from_wire(model) for model in reply.models),
            limits=RerankingLimits(
                reply.limits.max_documents_per_request,
                reply.limits.max_tokens_per_request,
                reply.limits.max_request_bytes,
                reply.limits.max_queued_tokens,
            ),
            version=reply.version,
        )


class RerankingServiceClient(SyncClient[AsyncRerankingServiceClient]):
    """Scores documents by how well they answer a query, blocking.

    >>> client = RerankingServiceClient("127.0.0.1:50052")  # doctest: +SKIP
    >>> scores = client.rerank("what is a breaker", ["It stops calls to a peer that fails.", "Bread is baked."])
    ... # doctest: +SKIP
    """

    async_class = AsyncRerankingServiceClient

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score in [0, 1] per document, in the order of the documents. Raises MeshError."""
        return self._run(self._client.rerank(query, documents))

    def score(
        self,
        query: str,
        documents: Sequence[str],
        options: RerankOptions | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> Scores:
        """The scores with usage and timings. Raises MeshError."""
        return self._run(self._client.score(query, documents, options, deadline=deadline))

    def info(self, *, deadline: Deadline | None = None) -> RerankingInfo:
        """What the worker serves. Raises MeshError."""
        return self._run(self._client.info(deadline=deadline))


def _model_from_wire(model: pb.Model) -> RerankingModel:
    return RerankingModel(
        name=model.name,
        aliases=tuple(model.aliases),
        revision=model.revision,
        source=model.source,
        method=model.method,
        max_input_tokens=model.max_input_tokens,
        engine=model.engine,
        precision=model.precision,
        device=model.device,
        fidelity_min_cosine=model.fidelity_min_cosine,
        fidelity_mean_cosine=model.fidelity_mean_cosine,
        check_documents_per_second=model.check_documents_per_second,
        profile=model.profile,
        instruction=model.instruction,
    )
