"""reranking.v1 to the reranker and back: translation only."""

from __future__ import annotations

import grpc.aio

from inference.life import ModelLife
from inference.tokenizing import Truncation
from mesh.errors import InvalidRequest
from mesh.pb.reranking.v1 import reranking_pb2 as pb
from mesh.pb.reranking.v1 import reranking_pb2_grpc
from mesh.serving import call_context, deadline_of
from mesh.serving.calls import ServicerContext
from mesh.version import VERSION
from reranking_service.reranker import Reranker, Scores
from reranking_service.scoring import RerankingRequest

SERVICE = pb.DESCRIPTOR.services_by_name["RerankingService"].full_name

_TRUNCATION = {
    pb.TRUNCATION_UNSPECIFIED: Truncation.END,
    pb.TRUNCATION_END: Truncation.END,
    pb.TRUNCATION_START: Truncation.START,
    pb.TRUNCATION_REFUSE: Truncation.REFUSE,
}


class RerankingServicer(reranking_pb2_grpc.RerankingServiceServicer):
    """RerankingService. MeshErrors raised here are translated by the worker's interceptor."""

    def __init__(self, life: ModelLife[Reranker], *, max_request_bytes: int) -> None:
        self._life = life
        self._max_request_bytes = max_request_bytes

    def register(self, server: grpc.aio.Server) -> None:
        """Serve this on ``server``."""
        reranking_pb2_grpc.add_RerankingServiceServicer_to_server(self, server)

    async def Rerank(self, request: pb.RerankRequest, context: ServicerContext) -> pb.RerankResponse:
        """See reranking.proto."""
        reranker = self._life.served
        # Counted before they are copied: a message holds millions of tiny documents.
        reranker.scorer.runner.require_items(len(request.documents), param="documents")
        priority = call_context(context).priority
        found = await reranker.rerank(_from_wire(request), deadline=deadline_of(context), priority=priority)
        return _to_wire(found, model=reranker.loaded.model.name)

    async def Info(self, request: pb.InfoRequest, context: ServicerContext) -> pb.InfoResponse:  # noqa: ARG002 - gRPC's
        """See reranking.proto."""
        reranker = self._life.served
        scorer, limits = reranker.scorer, reranker.scorer.runner.limits
        model, verdict, traits = reranker.loaded.model, reranker.loaded.verdict, reranker.loaded.engine.traits
        return pb.InfoResponse(
            models=[
                pb.Model(
                    name=model.name,
                    aliases=scorer.runner.aliases,
                    revision=model.revision,
                    source=model.source.value,
                    method=scorer.method.value,
                    max_input_tokens=model.card.max_input_tokens,
                    engine=verdict.engine,
                    precision=traits.precision,
                    device=traits.device,
                    fidelity_min_cosine=verdict.min_cosine,
                    fidelity_mean_cosine=verdict.mean_cosine,
                    check_documents_per_second=verdict.texts_per_second,
                    profile=reranker.profile,
                    instruction=reranker.instruction,
                )
            ],
            limits=pb.Limits(
                max_documents_per_request=limits.items_per_request,
                max_tokens_per_request=limits.tokens_per_request,
                max_request_bytes=self._max_request_bytes,
                max_queued_tokens=limits.queued_tokens,
            ),
            version=VERSION,
        )


def _from_wire(request: pb.RerankRequest) -> RerankingRequest:
    truncation = _TRUNCATION.get(request.truncation)
    if truncation is None:
        raise InvalidRequest(f"truncation has no value {request.truncation}.", param="truncation")
    limited = request.HasField("max_tokens_per_document")
    return RerankingRequest(
        query=request.query,
        documents=tuple(request.documents),
        model=request.model,
        max_tokens_per_document=request.max_tokens_per_document if limited else None,
        truncation=truncation,
        raw=request.raw_scores,
    )


def _to_wire(found: Scores, *, model: str) -> pb.RerankResponse:
    return pb.RerankResponse(
        model=model,
        scores=found.scores.tolist(),
        usage=pb.Usage(tokens=found.tokens, characters=found.characters),
        timings=pb.Timings(
            total_us=_microseconds(found.total_seconds),
            tokenization_us=_microseconds(found.tokenization_seconds),
            queue_us=_microseconds(found.queue_seconds),
            inference_us=_microseconds(found.inference_seconds),
            batch_size=found.batch_size,
        ),
        truncated_documents=found.truncated,
    )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
