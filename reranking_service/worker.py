"""From settings to a reranker that is ready to be loaded."""

from __future__ import annotations

from inference import rerankers
from inference.life import ModelLife
from inference.profiles import Overrides
from inference.rerankers import LoadedReranker, Method, RerankerRequest
from inference.runner import RunnerLimits
from reranking_service.cross_encoder import CrossEncoderScorer
from reranking_service.late_interaction import LateInteractionScorer
from reranking_service.reranker import Reranker
from reranking_service.scoring import Scorer
from reranking_service.settings import RerankingSettings


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
        overrides=Overrides(file=settings.model_profile, instruction=settings.instruction),
    )
    found = rerankers.load_reranker(request, settings.engine_plan, max_tokens=settings.max_input_tokens)
    limits = RunnerLimits(
        items_per_request=settings.max_documents_per_request,
        tokens_per_request=settings.max_tokens_per_request,
        queued_tokens=settings.max_queued_tokens,
        batch_tokens=settings.max_batch_tokens,
    )
    instruction = found.profile.instruction if found.profile is not None else ""
    return Reranker(_scorer(found, limits, settings), profile=found.source, instruction=instruction)


def _scorer(found: LoadedReranker, limits: RunnerLimits, settings: RerankingSettings) -> Scorer:
    aliases = settings.model_aliases
    if found.method is Method.LATE_INTERACTION:
        return LateInteractionScorer(found.loaded, limits, aliases=aliases)
    return CrossEncoderScorer(found.loaded, limits, aliases=aliases, method=found.method)
