"""From settings to an embedder that is ready to be loaded."""

from __future__ import annotations

from embedding_service.embedder import Embedder
from embedding_service.settings import EmbeddingSettings
from inference.card import ModelKind
from inference.life import ModelLife
from inference.loading import load
from inference.models import ModelRequest
from inference.runner import RunnerLimits


def embedding_life(settings: EmbeddingSettings) -> ModelLife[Embedder]:
    """The capability's life; nothing is loaded before it starts."""
    return ModelLife(lambda: load_embedder(settings), capability="embedding")


def load_embedder(settings: EmbeddingSettings) -> Embedder:
    """Find and load the model. Blocks.

    Raises:
        ModelUnusable: the model is missing, damaged or of the wrong kind.
    """
    request = ModelRequest(
        name=settings.model,
        kind=ModelKind.EMBEDDING,
        revision=settings.model_revision,
        sha256=settings.model_sha256,
        setting=settings.variable("model"),
        served_as=settings.served_model_name,
    )
    limits = RunnerLimits(
        items_per_request=settings.max_inputs_per_request,
        tokens_per_request=settings.max_tokens_per_request,
        queued_tokens=settings.max_queued_tokens,
        batch_tokens=settings.max_batch_tokens,
    )
    loaded = load(request, settings.engine_plan, max_tokens=settings.max_input_tokens)
    return Embedder(loaded, limits, aliases=settings.model_aliases, dimensions=settings.dimensions)
