"""From settings to a reranker that is ready to be loaded."""

from __future__ import annotations

from inference import rerankers
from inference.life import ModelLife
from inference.rerankers import Method, RerankerRequest
from inference.runner import RunnerLimits
from reranking_service.cross_encoder import CrossEncoderScorer
from reranking_service.late_interaction import LateInteractionScorer
from reranking_service.reranker import Reranker
from reranking_service.settings import RerankingSettings

_SCORERS: dict[Method, type[LateInteractionScorer] | type[CrossEncoderScorer]] = {
    Method.LATE_INTERACTION: LateInteractionScorer,
    Method.CROSS_ENCODER: CrossEncoderScorer,
}


def reranking_life(settings: RerankingSettings) -> ModelLife[Reranker]:
    """The capability's life; nothing is loaded before it starts."""
    return ModelLife(lambda: load_reranker(settings), capability="reranking")


def load_reranker(settings: RerankingSettings) -> Reranker:
    """Find and load the model. Blocks.

    Raises:
        ModelUnusable: the model is missing, damaged or of the wrong kind.
    """
    request = RerankerRequest(
        name=settings.model,
        method=None if settings.method == "auto" else Method(settings.method),
        revision=settings.model_revision,
        sha256=settings.model_sha256,
        setting=settings.variable("model"),
        served_as=settings.served_model_name,
    )
    loaded, method = rerankers.load_reranker(request, settings.engine_plan, max_tokens=settings.max_input_tokens)
    limits = RunnerLimits(
        items_per_request=settings.max_documents_per_request,
        tokens_per_request=settings.max_tokens_per_request,
        queued_tokens=settings.max_queued_tokens,
        batch_tokens=settings.max_batch_tokens,
    )
    return Reranker(_SCORERS[method](loaded, limits, aliases=settings.model_aliases))
